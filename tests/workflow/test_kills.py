"""A run that was killed in any stage goes on to the same bytes as one that was not."""

import hashlib
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pipeline import Pipeline, copy_of_code

DEMO, SPLIT = "results/demo", "results/demo/split"
RUN = "results/demo/refine/seed2024"

STAGES = {
    "fetch_ratings": ["resources/demo/source.json"],
    "read_ratings": [
        f"{DEMO}/{name}" for name in ("interactions.parquet", "items.parquet", "reading.json")
    ],
    "split_ratings": [
        *(f"{SPLIT}/{name}.parquet" for name in ("train", "validation", "test", "users", "items")),
        f"{SPLIT}/statistics.json",
    ],
    "write_prompts": [f"{DEMO}/profile/prompts.parquet"],
    "answer_prompts": [f"{DEMO}/profile/answers/1-of-2.parquet"],
    "label_answers": [f"{DEMO}/profile/feedback.parquet"],
    "label_by_threshold": [f"{DEMO}/at-least-4/feedback.parquet"],
    "describe_feedback": [f"{DEMO}/profile/refinement.json"],
    "warm_up": [f"{RUN}/warmup.safetensors"],
    "mine_similar_items": [f"{RUN}/similar_items.parquet"],
    "train": [f"{RUN}/model.safetensors", f"{RUN}/history.parquet"],
    "fit": [f"{DEMO}/ease/seed2024/model.safetensors"],
    "evaluate": [f"{RUN}/metrics.json", f"{RUN}/users.parquet", f"{RUN}/recommendations.parquet"],
    "summarise": [f"{DEMO}/lightgcn/metrics.json"],
    "headline": [f"{DEMO}/metrics.json"],
    "compare": [f"{DEMO}/compare/lightgcn-vs-refine.json"],
    "draw_curves": [f"{DEMO}/refine/training.svg"],
    "tabulate": [f"{DEMO}/comparison.{kind}" for kind in ("parquet", "md", "svg")],
}


def test_every_stage_of_the_demo_is_killed_here(finished: Pipeline) -> None:
    ran = {path.name for path in (finished.folder / "logs").iterdir()} - {"benchmarks"}
    assert ran == STAGES.keys()


@pytest.mark.parametrize("rule", STAGES)
def test_a_stage_that_was_killed_gives_the_same_bytes(
    finished: Pipeline, tmp_path: Path, rule: str
) -> None:
    pipeline = finished.copy(tmp_path / "pipeline")
    lose(pipeline, rule)
    kill_when(pipeline, lambda: started(pipeline, rule), STAGES[rule][0])
    go_on(pipeline, rule)
    assert contents(pipeline) == contents(finished)


@pytest.mark.parametrize("rule", ["split_ratings", "evaluate"])
def test_a_stage_that_was_killed_between_two_outputs_gives_the_same_bytes(
    finished: Pipeline, tmp_path: Path, rule: str
) -> None:
    pipeline = finished.copy(tmp_path / "pipeline")
    lose(pipeline, rule)
    paths = [pipeline.folder / path for path in STAGES[rule]]
    kill_when(pipeline, lambda: any(path.exists() for path in paths), STAGES[rule][0])
    go_on(pipeline, rule)
    assert contents(pipeline) == contents(finished)


def test_a_killed_run_is_started_again_as_the_messages_say(
    finished: Pipeline, tmp_path: Path
) -> None:
    fresh = copy_of_code(tmp_path / "pipeline", finished.folder)
    target = f"{RUN}/metrics.json"
    kill_when(fresh, lambda: started(fresh, "train"), target)
    locked = fresh.attempt(target)
    assert locked.returncode != 0
    assert "--unlock" in locked.stdout
    fresh.run("--unlock")
    fresh.run(target)
    made = contents(fresh)
    assert {f"{RUN}/{name}" for name in ("metrics.json", "model.safetensors")} <= made.keys()
    assert made.items() <= contents(finished).items()
    assert not fresh.planned(target)


def lose(pipeline: Pipeline, rule: str) -> None:
    shutil.rmtree(pipeline.folder / "logs" / rule)
    for path in STAGES[rule]:
        (pipeline.folder / path).unlink()


def go_on(pipeline: Pipeline, rule: str) -> None:
    shutil.rmtree(pipeline.folder / ".snakemake/locks")  # what --unlock does, a second faster
    pipeline.run(*STAGES[rule])


def started(pipeline: Pipeline, rule: str) -> bool:
    """Whether the rule's script has opened its log, so that its imports are done."""
    return any((pipeline.folder / "logs" / rule).rglob("*.log"))


def kill_when(pipeline: Pipeline, moment: Callable[[], bool], *targets: str) -> None:
    """Runs the pipeline, and kills Snakemake and all its jobs at once at the given moment."""
    process = pipeline.run_until(moment, *targets)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def contents(pipeline: Pipeline) -> dict[str, str]:
    """A digest of every result and resource, leaving out how long stages took."""
    digests = {}
    for folder in ("results", "resources"):
        for path in sorted((pipeline.folder / folder).rglob("*")):
            if path.is_file():
                name = str(path.relative_to(pipeline.folder))
                digests[name] = hashlib.sha256(without_times(path)).hexdigest()
    return digests


def without_times(path: Path) -> bytes:
    content = path.read_bytes()
    if path.name == "metrics.json":
        metrics = json.loads(content)
        metrics.pop("wall_time", None)
        return json.dumps(metrics).encode()
    if path.name == "comparison.parquet":
        return repr(pq.read_table(path).drop_columns(["seconds"]).to_pylist()).encode()
    if path.name == "comparison.md":
        return re.sub(rb" \d+ \|$", b"", content, flags=re.MULTILINE)
    return content
