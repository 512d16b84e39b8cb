"""The main job on real ratings, with few epochs."""

import json
from pathlib import Path

from pipeline import Pipeline

STAGES = [
    "fetch_ratings",
    "read_ratings",
    "split_ratings",
    "fetch_release_labels",
    "label_from_release",
    "warm_up",
    "mine_similar_items",
    "train",
    "evaluate",
]


def test_ml100k_runs_from_the_raw_files_to_metrics(fresh: Pipeline, mirror: Path) -> None:
    fresh.run("results/ml100k/metrics.json", mirror=mirror)
    results = fresh.folder / "results/ml100k"

    statistics = json.loads((results / "split/statistics.json").read_text())
    assert [statistics[name] for name in ("users", "items", "ratings")] == [938, 1008, 95215]
    assert round(statistics["density"], 4) == 0.1007
    assert round(statistics["negatives_per_positive"], 2) == 0.75
    assert [statistics["validation"], statistics["test"]] == [5018, 10514]

    refinement = json.loads((results / "release/refinement.json").read_text())
    assert refinement["labels"] == {
        "positive": 38881,
        "falsely_identified": 14103,
        "confirmed": 7957 + 4900,
        "undecided": 13842,
    }

    metrics = json.loads((results / "metrics.json").read_text())
    assert (metrics["dataset"], metrics["experiment"], metrics["judge"]) == (
        "ml100k",
        "refine",
        "release",
    )
    assert metrics["metrics"]["recall@20"]["published"] == 0.4296
    # Four epochs are no result, but a model that learns beats chance (20 of 1,008 items) by far.
    assert metrics["metrics"]["recall@20"]["mean"] > 0.15
    assert list(metrics["wall_time"]) == STAGES

    # Where the files came from is no reason to fetch them again.
    assert not fresh.planned("results/ml100k/metrics.json")
