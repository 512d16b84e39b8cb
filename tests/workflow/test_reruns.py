"""A stage runs again if, and only if, something it depends on has changed."""

import json
import os
import time
from pathlib import Path

import pytest
from pipeline import EVERYTHING, ROOT, Pipeline

LABELLING = {"answer_prompts", "label_answers", "describe_feedback"}
REPORTING = {"evaluate", "summarise", "headline", "compare", "tabulate"}
TRAINING = {"warm_up", "mine_similar_items", "train", "draw_curves"} | REPORTING
AFTER_SPLIT = {"write_prompts", "label_by_threshold", "fit"} | LABELLING | TRAINING
AFTER_PROMPTS = LABELLING | TRAINING
# What judges say of each other is told with the metrics, and the table reads those.
AFTER_DESCRIPTION = {"summarise", "headline", "tabulate"}
ALL = {"fetch_ratings", "read_ratings", "split_ratings"} | AFTER_SPLIT


@pytest.fixture(scope="module")
def pipeline(finished: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return finished.copy(tmp_path_factory.mktemp("reruns") / "pipeline")


def test_a_second_run_does_nothing(pipeline: Pipeline) -> None:
    assert "Nothing to be done" in pipeline.run(*EVERYTHING)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"datasets": {"demo": {"model": {"learning_rate": 0.002}}}}, TRAINING),
        ({"mining": {"near_disliked": 50}}, TRAINING - {"warm_up"}),
        # The random judge copies the labelled coverage of another, so it answers anew.
        ({"labels": {"unasked_low_ratings": "undecided"}}, LABELLING | TRAINING),
        ({"evaluation": {"k": [5, 20]}}, REPORTING),
        ({"evaluation": {"bootstrap": 50}}, REPORTING - {"evaluate"}),
        (
            {"experiments": {"lightgcn": {"sampling": {"confirmed": 2.0}}}},
            TRAINING - {"mine_similar_items", "headline", "draw_curves"},
        ),
        (
            {"experiments": {"ease": {"model": {"search": {"ridge": [100]}}}}},
            {"fit"} | REPORTING - {"compare", "headline"},
        ),
        ({"split": {"seed": 7}}, {"split_ratings"} | AFTER_SPLIT),
        ({"judges": {"random": {"seed": 7}}}, LABELLING | AFTER_DESCRIPTION),
        ({"refine": {"compare_with": []}}, {"describe_feedback"} | AFTER_DESCRIPTION),
        # A limit that stops a run says nothing about results that are there.
        ({"refine": {"max_undecided": 0.5}, "probe": {"min_auc": 0.6}}, set()),
        ({"datasets": {"demo": {"title": "Other"}}}, {"draw_curves", "tabulate"}),
        # Where files come from, which device trains, what is saved and shown on the way, and other
        # data sets' settings change nothing.
        ({"mirror": "/nowhere", "device": "cpu"}, set()),
        ({"training": {"checkpoint_minutes": 1, "tensorboard": True}}, set()),
        ({"datasets": {"ml100k": {"split": {"seed": 7}}}}, set()),
        # An experiment more is all that is made anew.
        (
            {"comparison": ["lightgcn", "ease", "most-popular"]},
            {"fit"} | REPORTING - {"compare", "headline"},
        ),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_a_setting_reruns_what_reads_it_and_what_follows(
    pipeline: Pipeline, settings: dict[str, object], expected: set[str]
) -> None:
    configfile = pipeline.configure(**settings)
    assert set(pipeline.planned(*EVERYTHING, configfile=configfile)) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("src/refine/artifacts.py", ALL),
        ("src/refine/logs.py", ALL),
        ("src/refine/datasets/demo.py", ALL),
        ("src/refine/datasets/readers.py", ALL - {"fetch_ratings"}),
        ("src/refine/splits/kcore.py", {"split_ratings"} | AFTER_SPLIT),
        ("src/refine/feedback/prompts.py", {"write_prompts"} | AFTER_PROMPTS),
        ("config/prompts/numbers.yaml", {"write_prompts"} | AFTER_PROMPTS),
        ("config/prompts/score.yaml", set()),
        ("src/refine/feedback/profile.py", AFTER_PROMPTS),
        ("src/refine/feedback/controls.py", LABELLING | AFTER_DESCRIPTION),
        ("src/refine/feedback/agreement.py", {"describe_feedback"} | AFTER_DESCRIPTION),
        ("src/refine/sampling.py", TRAINING | {"fit"}),
        ("src/refine/mining.py", TRAINING - {"warm_up"}),
        ("src/refine/training/train.py", TRAINING - {"warm_up", "mine_similar_items"}),
        ("src/refine/evaluation/stage.py", REPORTING),
        ("src/refine/evaluation/comparison.py", {"compare", "tabulate"}),
        ("src/refine/reporting/table.py", {"tabulate"}),
        ("src/refine/models/ease.py", {"fit"} | REPORTING - {"compare", "headline"}),
        ("src/refine/models/lightgcn.py", TRAINING),
        ("src/refine/models/siren.py", set()),
        ("src/refine/models/catalogue.py", set()),
        ("src/refine/feedback/llm/judge.py", set()),
        ("src/refine/config.py", set()),
        ("src/refine/provenance.py", set()),
        ("workflow/scripts/evaluate.py", REPORTING),
    ],
)
def test_code_reruns_the_stages_that_use_it_and_what_follows(
    pipeline: Pipeline, path: str, expected: set[str]
) -> None:
    file = pipeline.folder / path
    before = file.read_bytes()
    file.write_bytes(before + b"\n# More.\n")
    try:
        assert set(pipeline.planned(*EVERYTHING)) == expected
    finally:
        file.write_bytes(before)


def test_touching_every_file_reruns_nothing(pipeline: Pipeline) -> None:
    # Later files get earlier times, so that inputs are newer than what was made of them.
    now = time.time()
    files = sorted(path for path in pipeline.folder.rglob("*") if path.is_file())
    for place, path in enumerate(files):
        os.utime(path, (now - 2 * place, now - 2 * place))
    assert not pipeline.planned(*EVERYTHING)


def test_a_copy_with_new_times_reruns_nothing(pipeline: Pipeline, tmp_path: Path) -> None:
    copy = pipeline.copy(tmp_path / "elsewhere", keep_times=False)
    assert not copy.planned(*EVERYTHING)


def test_a_lost_result_is_all_that_is_made_again(pipeline: Pipeline, tmp_path: Path) -> None:
    copy = pipeline.copy(tmp_path / "pipeline")
    (copy.folder / "results/demo/compare/lightgcn-vs-refine.json").unlink()
    assert copy.planned(*EVERYTHING) == {"compare": 1}


def test_each_stage_has_one_parameter_that_holds_its_code(finished: Pipeline) -> None:
    # Snakemake compares parameters as a set without names: two of one rule could swap unseen.
    records = [
        json.loads(p.read_text()) for p in (finished.folder / ".snakemake/metadata").iterdir()
    ]
    scripts = {path.stem for path in (ROOT / "workflow/scripts").glob("*.py")}
    elsewhere = {"fetch_release_labels", "label_from_release", "plan", "probe"}
    assert {record["rule"] for record in records} == (scripts | {"headline"}) - elsewhere
    for record in records:
        assert len(record["params"]) == 1, record["rule"]
        assert "'code': '" in record["params"][0], record["rule"]
