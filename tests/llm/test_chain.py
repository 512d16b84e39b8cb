"""From ratings to metrics with a language model as the judge, by vLLM and by its server."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pipeline import Pipeline, copy_of_code

from refine.feedback.interpreter import engine_python

ANSWERS = "results/demo/{judge}/answers"
FEEDBACK = "results/demo/{judge}/feedback.parquet"
REFINEMENT = "results/demo/{judge}/refinement.json"


def configure(pipeline: Pipeline, model: Path, url: str = "", *, shards: int = 2) -> str:
    """Both judges ask the same model the same prompts."""
    shared = {"model": str(model), "revision": None, "form": "base", "context": 4096}
    engine = {"kv_cache_memory_bytes": 256 << 20, "max_num_seqs": 16}
    served = {"model": "tiny", "tokenizer": str(model), "server": "vllm", "retries": 0}
    return pipeline.configure(
        judge="vllm",
        judges={
            "vllm": shared | {"engine": engine},
            "openai": shared | served | ({"url": url} if url else {}),
        },
        refine={"shards": shards, "compare_with": []},
    )


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, advised_model: Path) -> Pipeline:
    """A pipeline that was run from ratings to metrics. Copy it before changing it."""
    pipeline = copy_of_code(tmp_path_factory.mktemp("judged") / "pipeline")
    pipeline.variables = {"REFINE_LLM_PYTHON": engine_python() or ""}
    pipeline.run("results/demo/metrics.json", configfile=configure(pipeline, advised_model))
    return pipeline


def table(pipeline: Pipeline, path: str, judge: str = "vllm") -> pl.DataFrame:
    return pl.read_parquet(pipeline.folder / path.format(judge=judge))


def answers(pipeline: Pipeline, judge: str = "vllm") -> pl.DataFrame:
    return table(pipeline, f"{ANSWERS}/*.parquet", judge).sort("prompt_id")


def report(pipeline: Pipeline, path: str, judge: str = "vllm") -> Any:
    return json.loads((pipeline.folder / path.format(judge=judge)).read_text())


def unanswered(pipeline: Pipeline, folder: Path) -> Pipeline:
    """A copy that has prompts, and has asked nobody."""
    copy = pipeline.copy(folder)
    copy.variables = pipeline.variables
    shutil.rmtree(copy.folder / ANSWERS.format(judge="vllm"))
    shutil.rmtree(copy.folder / "resources/answers")
    (copy.folder / FEEDBACK.format(judge="vllm")).unlink()
    return copy


def test_every_candidate_of_every_user_is_judged(judged: Pipeline) -> None:
    found = answers(judged)
    assert len(found) > 600
    assert set(found["status"]) == {"answered"}
    assert found["text"].n_unique() > 5

    rated = table(judged, "results/demo/split/train.parquet")
    rated = rated.with_columns(generous=pl.col("rating").mean().over("user") >= 3)
    middling = (pl.col("rating") == 3) | ((pl.col("rating") == 2) & ~pl.col("generous"))
    candidates = rated.filter(middling)
    labels = table(judged, FEEDBACK).join(candidates.select("user", "item"), on=("user", "item"))
    assert len(labels) == len(candidates)
    assert set(labels["label"]) == {"falsely_identified", "confirmed"}
    assert (labels["label"] == "falsely_identified").sum() == found["picked"].list.len().sum()


def test_the_labels_reach_the_metrics(judged: Pipeline) -> None:
    metrics = report(judged, "results/demo/metrics.json")
    assert metrics["judge"] == "vllm"
    decided = report(judged, REFINEMENT)["candidates"]
    assert decided["decided"] == decided["total"]


def test_one_shard_that_is_killed_halfway_gives_the_same_labels(
    judged: Pipeline, advised_model: Path, tmp_path: Path
) -> None:
    copy = unanswered(judged, tmp_path / "pipeline")
    target = FEEDBACK.format(judge="vllm")
    configfile = configure(copy, advised_model, shards=1)
    run = copy.start(target, configfile=configfile)
    kept = copy.folder / "resources/answers"
    while run.poll() is None and not list(kept.glob("*/[!.]*.parquet")):
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert not list(copy.folder.glob(f"{ANSWERS.format(judge='vllm')}/*"))
    before = sum(pl.read_parquet(part).height for part in kept.glob("*/[!.]*.parquet"))
    assert 0 < before < len(answers(judged))

    shutil.rmtree(copy.folder / ".snakemake/locks")  # what --unlock does, a second faster
    said = copy.run(target, configfile=configfile)
    assert f"{before} of {len(answers(judged))} prompts were answered before" in said
    assert (copy.folder / target).read_bytes() == (judged.folder / target).read_bytes()


def test_the_server_gives_the_same_labels(
    judged: Pipeline, advised_model: Path, url: str, tmp_path: Path
) -> None:
    """The same tokens go in, and both decode greedily in float32."""
    copy = judged.copy(tmp_path / "pipeline")
    targets = [f"results/demo/openai/{name}.json" for name in ("probe", "refinement")]
    copy.run(*targets, configfile=configure(copy, advised_model, url))
    assert report(copy, targets[0])["parse_rate"] == 1
    columns = ["prompt_id", "status", "picked", "text", "prompt_tokens", "answer_tokens"]
    assert answers(copy, "openai").select(columns).equals(answers(judged).select(columns))
    assert table(copy, FEEDBACK, "openai").equals(table(judged, FEEDBACK))
    assert report(copy, targets[1])["candidates"] == report(judged, REFINEMENT)["candidates"]
