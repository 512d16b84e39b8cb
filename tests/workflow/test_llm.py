"""Judging by a language model, from the ratings to the labels: nothing is asked twice."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from endpoint import Endpoint, serving
from pipeline import Pipeline, copy_of_code

JUDGE = "results/demo/openai"
LABELS = f"{JUDGE}/feedback.parquet"
EVERYTHING = tuple(f"{JUDGE}/{name}.json" for name in ("plan", "probe", "refinement"))

LABELLING = {"label_answers", "describe_feedback"}
ANSWERING = {"answer_prompts"} | LABELLING
ALL = {"write_prompts", "probe", "plan"} | ANSWERING


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    with serving() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, endpoint: Endpoint) -> Pipeline:
    """A pipeline in which a language model has judged the demo. Copy it before changing it."""
    pipeline = copy_of_code(tmp_path_factory.mktemp("judged") / "pipeline")
    pipeline.run(*EVERYTHING, configfile=configure(pipeline, endpoint))
    return pipeline


def configure(pipeline: Pipeline, endpoint: Endpoint, **overlay: Any) -> str:
    judges = overlay.pop("judges", {})
    judge = endpoint.judge | judges.get("openai", {})
    refine = {"shards": 2, "compare_with": []} | overlay.pop("refine", {})
    return pipeline.configure(judges=judges | {"openai": judge}, refine=refine, **overlay)


def table(pipeline: Pipeline, path: str) -> pl.DataFrame:
    return pl.read_parquet(pipeline.folder / path)


def report(pipeline: Pipeline, path: str) -> Any:
    return json.loads((pipeline.folder / path).read_text())


def split_of(pipeline: Pipeline, folder: Path) -> Pipeline:
    """A pipeline in which only the ratings have been split."""
    copy = pipeline.copy(folder)
    shutil.rmtree(copy.folder / JUDGE)
    shutil.rmtree(copy.folder / "resources/answers")
    return copy


def test_every_candidate_is_judged_and_every_prompt_asked_once(
    judged: Pipeline, endpoint: Endpoint
) -> None:
    prompts = table(judged, f"{JUDGE}/prompts.parquet")
    answers = pl.concat(table(judged, f"{JUDGE}/answers/{n}-of-2.parquet") for n in (1, 2))
    assert sorted(answers["prompt_id"]) == sorted(prompts["prompt_id"])
    assert set(answers["status"]) == {"answered"}
    assert all(len(answers.filter(prompt_id=name)) == 1 for name in prompts["prompt_id"][:20])
    counts = [endpoint.asked[prompt_of(row)] for row in prompts.iter_rows(named=True)]
    assert set(counts) == {1}

    found = report(judged, f"{JUDGE}/refinement.json")["candidates"]
    assert found["total"] == found["decided"] == prompts["candidates"].list.len().sum()
    # Of each prompt those with odd numbers.
    odd = sum((len(codes) + 1) // 2 for codes in prompts["candidates"])
    assert found["picked"] == odd


def prompt_of(row: dict[str, Any]) -> str:
    return f"{row['context']}\n\n{row['question']}"


def test_a_second_run_does_nothing(judged: Pipeline, endpoint: Endpoint) -> None:
    configfile = configure(judged, endpoint)
    # The plan tells what is left to ask, and that has changed since it was made.
    assert set(judged.planned(*EVERYTHING, configfile=configfile)) == {"plan"}
    assert not judged.planned(*EVERYTHING[1:], configfile=configfile)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # How the model is reached and paid, and the limits that stop a run.
        ({"judges": {"openai": {"url": "http://127.0.0.1:9/v1"}}}, set()),
        ({"judges": {"openai": {"concurrency": 2, "timeout": 5, "retries": 9}}}, set()),
        ({"judges": {"openai": {"key": "OTHER_KEY"}}}, set()),
        ({"judges": {"openai": {"price": {"prompt": 1}, "speed": {"prompt": 9}}}}, set()),
        ({"refine": {"max_undecided": 0}}, set()),
        ({"datasets": {"demo": {"title": "Other"}}}, set()),
        ({"judges": {"vllm": {"model": "other"}, "random": {"seed": 7}}}, set()),
        # Which model answers.
        ({"judges": {"openai": {"model": "even"}}}, {"probe"} | ANSWERING),
        ({"judges": {"openai": {"revision": "2"}}}, {"probe"} | ANSWERING),
        ({"judges": {"openai": {"request": {"top_p": 1}}}}, {"probe"} | ANSWERING),
        ({"datasets": {"demo": {"judges": {"openai": {"model": "even"}}}}}, {"probe"} | ANSWERING),
        # What it is asked.
        ({"judges": {"openai": {"form": "base"}}}, ALL - {"plan"}),
        ({"judges": {"openai": {"strategy": "score", "server": "openai"}}}, ALL - {"plan"}),
        ({"judges": {"openai": {"context": 4096}}}, ALL - {"plan"}),
        ({"prompts": {"answer": "titles"}}, ALL - {"plan"}),
        ({"prompts": {"chunk": 4}}, ALL - {"plan"}),
        ({"prompts": {"name_dataset": True}}, ALL - {"plan"}),
        ({"prompts": {"templates": {"score": "config/prompts/numbers.yaml"}}}, set()),
        # How many jobs share the prompts.
        ({"refine": {"shards": 3}}, ANSWERING),
        # What becomes of the answers.
        ({"labels": {"threshold": 1.5}}, LABELLING),
        ({"labels": {"unasked_low_ratings": "undecided"}}, LABELLING),
        (
            {"refine": {"compare_with": ["at-least-2"]}},
            {"label_by_threshold", "describe_feedback"},
        ),
        # The test on known ratings.
        ({"probe": {"items": 20}}, {"probe"}),
        ({"probe": {"min_auc": 0.1}}, ANSWERING),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_a_setting_reruns_what_depends_on_it(
    judged: Pipeline, endpoint: Endpoint, settings: dict[str, Any], expected: set[str]
) -> None:
    configfile = configure(judged, endpoint, **settings)
    assert set(judged.planned(*EVERYTHING[1:], configfile=configfile)) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("config/prompts/numbers.yaml", ALL - {"plan"}),
        ("config/prompts/score.yaml", set()),
        ("src/refine/feedback/llm/judge.py", ANSWERING),
        ("src/refine/feedback/llm/probe.py", {"probe"}),
        ("src/refine/feedback/llm/plan.py", set()),
        ("src/refine/feedback/llm/endpoint.py", {"probe"} | ANSWERING),
        ("src/refine/feedback/llm/worker.py", set()),
        ("src/refine/feedback/llm/vllm.py", set()),
        ("src/refine/feedback/profile.py", set()),
        ("src/refine/feedback/labels.py", LABELLING),
        ("src/refine/config.py", set()),
    ],
)
def test_code_reruns_what_it_makes(
    judged: Pipeline, endpoint: Endpoint, path: str, expected: set[str]
) -> None:
    configfile = configure(judged, endpoint)
    file = judged.folder / path
    before = file.read_bytes()
    file.write_bytes(before + b"\n# More.\n")
    try:
        assert set(judged.planned(*EVERYTHING[1:], configfile=configfile)) == expected
    finally:
        file.write_bytes(before)


def test_another_number_of_shards_asks_nobody_and_gives_the_same_labels(
    judged: Pipeline, endpoint: Endpoint, tmp_path: Path
) -> None:
    copy = judged.copy(tmp_path / "pipeline")
    before = (copy.folder / LABELS).read_bytes()
    asked = endpoint.asked.total()
    copy.run(LABELS, configfile=configure(copy, endpoint, refine={"shards": 1}))
    assert (copy.folder / f"{JUDGE}/answers/1-of-1.parquet").exists()
    assert endpoint.asked.total() == asked
    assert (copy.folder / LABELS).read_bytes() == before


def test_a_probe_that_was_repeated_asks_for_no_answer_again(
    judged: Pipeline, endpoint: Endpoint, tmp_path: Path
) -> None:
    copy = judged.copy(tmp_path / "pipeline")
    gate = {"min_auc": 0.0}
    copy.run(LABELS, configfile=configure(copy, endpoint, probe=gate))
    assert not copy.planned(LABELS, configfile=configure(copy, endpoint, probe=gate))
    gate |= {"items": 20}
    assert set(copy.planned(LABELS, configfile=configure(copy, endpoint, probe=gate))) <= {"probe"}


def test_a_judge_that_fails_its_probe_is_not_asked(
    judged: Pipeline, endpoint: Endpoint, tmp_path: Path
) -> None:
    copy = split_of(judged, tmp_path / "pipeline")
    asked = endpoint.asked.copy()
    done = copy.attempt(LABELS, configfile=configure(copy, endpoint, probe={"min_auc": 1.0}))
    assert done.returncode != 0
    assert "on ratings that are known, the judge has an AUC of" in done.stdout
    probed = (endpoint.asked - asked).total()
    assert 0 < probed < table(copy, f"{JUDGE}/prompts.parquet").height
    assert not list((copy.folder / JUDGE).glob("answers/*"))
    # The probe stays, to be looked at, and without the gate it is of no importance.
    assert (copy.folder / f"{JUDGE}/probe.json").exists()


def test_answers_that_cannot_be_used_stop_the_run_and_are_kept(
    judged: Pipeline, endpoint: Endpoint, tmp_path: Path
) -> None:
    copy = split_of(judged, tmp_path / "pipeline")
    usual, endpoint.say = endpoint.say, lambda prompt: "They may well like all of these."
    try:
        done = copy.attempt(LABELS, configfile=configure(copy, endpoint))
    finally:
        endpoint.say = usual
    assert done.returncode != 0
    assert "(100.0%) have no usable answer" in done.stdout
    assert "refine.max_undecided allows 2.0%" in done.stdout
    assert "Traceback" not in done.stdout
    asked = endpoint.asked.total()
    copy.run(LABELS, configfile=configure(copy, endpoint, refine={"max_undecided": 1}))
    assert endpoint.asked.total() == asked
    assert "falsely_identified" not in set(table(copy, LABELS)["label"])


def test_a_run_that_was_killed_in_mid_shard_goes_on_from_what_it_has(
    judged: Pipeline, endpoint: Endpoint, tmp_path: Path
) -> None:
    copy = split_of(judged, tmp_path / "pipeline")
    configfile = configure(copy, endpoint, refine={"shards": 1})
    enough, stuck = threading.Event(), threading.Event()
    before = endpoint.asked.total()
    usual = endpoint.say

    def say(prompt: str) -> str:
        # 256 answers are kept at once; the 300th does not come.
        if endpoint.asked.total() - before >= 300:
            enough.set()
            stuck.wait(60)
        return usual(prompt)

    endpoint.say = say
    process = copy.start(LABELS, configfile=configfile)
    try:
        assert enough.wait(300)
        kept_at_least(copy, 256)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        stuck.set()
        endpoint.say = usual
    shutil.rmtree(copy.folder / ".snakemake/locks")  # what --unlock does, a second faster

    asked = endpoint.asked.copy()
    copy.run(LABELS, configfile=configfile)
    prompts = table(copy, f"{JUDGE}/prompts.parquet").height
    assert (endpoint.asked - asked).total() == prompts - 256
    assert (copy.folder / LABELS).read_bytes() == (judged.folder / LABELS).read_bytes()


def kept_at_least(pipeline: Pipeline, replies: int) -> None:
    deadline = time.monotonic() + 60
    cache = pipeline.folder / "resources/answers"
    while sum(pl.read_parquet(part).height for part in cache.rglob("*.parquet")) < replies:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_scores_are_kept_and_a_threshold_asks_nobody(
    judged: Pipeline, endpoint: Endpoint, tmp_path: Path
) -> None:
    copy = judged.copy(tmp_path / "pipeline")
    scoring = {"judges": {"openai": {"strategy": "score", "server": "openai"}}}
    copy.run(LABELS, configfile=configure(copy, endpoint, **scoring))
    scores = pl.concat(table(copy, f"{JUDGE}/answers/{n}-of-2.parquet") for n in (1, 2))[
        "scores"
    ].explode()
    candidates = report(judged, f"{JUDGE}/refinement.json")["candidates"]["total"]
    assert len(scores) == candidates == len(scores.drop_nulls())
    asked = endpoint.asked.total()
    for threshold in (None, 1.0):
        labels = {"threshold": threshold}
        copy.run(LABELS, configfile=configure(copy, endpoint, labels=labels, **scoring))
        picked = table(copy, LABELS).filter(reason="picked").height
        assert picked == (scores > (threshold or 0)).sum()
    assert 0 < picked < (scores > 0).sum()
    assert endpoint.asked.total() == asked


def test_a_plan_needs_no_model(judged: Pipeline, endpoint: Endpoint, tmp_path: Path) -> None:
    copy = split_of(judged, tmp_path / "pipeline")
    asked = endpoint.asked.total()
    nowhere = {"openai": {"model": None, "url": "http://127.0.0.1:9/v1"}}
    said = copy.run(EVERYTHING[0], configfile=configure(copy, endpoint, judges=nowhere))
    plan = report(copy, EVERYTHING[0])
    prompts = table(copy, f"{JUDGE}/prompts.parquet").height
    assert (plan["prompts"], plan["answered"], len(plan["shards"])) == (prompts, 0, 2)
    assert "Plan: " in said
    assert endpoint.asked.total() == asked

    # Once everything has been answered there is nothing left to ask.
    copy = judged.copy(tmp_path / "judged")
    copy.run(EVERYTHING[0], configfile=configure(copy, endpoint))
    plan = report(copy, EVERYTHING[0])
    assert plan["prompts"] == plan["answered"] == prompts
    assert plan["to_ask"]["prompts"] == 0
    assert not copy.planned(EVERYTHING[0], configfile=configure(copy, endpoint))
