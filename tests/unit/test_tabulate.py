"""The table of all experiments against hand-computed cases and SciPy."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from refine.artifacts import COMPARISON, read_table, write_json, write_table
from refine.evaluation.card import CardError
from refine.evaluation.comparison import ComparisonError
from refine.evaluation.names import LIST_METRICS, USER_METRICS
from refine.evaluation.summary import summarise
from refine.reporting.comparison import tabulate

SETTINGS = {"bootstrap": 500, "confidence": 0.95, "seed": 2024}
CARD = {
    "mask": "rated",
    "mask_validation": False,
    "k": [5, 20],
    "users_scored": 40,
    "users_skipped": 0,
    "candidate_items": 30,
}
USERS = 40


class Runs:
    """Experiments whose users' metrics are drawn around a level."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.summaries: dict[str, Path] = {}
        self.users: dict[str, list[Path]] = {}
        self.values: dict[str, np.ndarray] = {}

    def add(self, name: str, level: float, seeds: int = 2, **context: Any) -> None:
        rng = np.random.default_rng(len(self.users))
        values = np.clip(level + 0.1 * rng.standard_normal((seeds, USERS)), 0, 1)
        folder = self.folder / name
        runs, self.users[name], self.values[name] = [], [], values
        card = CARD | context.pop("card", {})
        for seed, row in enumerate(values):
            names = [f"{metric}@{k}" for metric in USER_METRICS for k in (5, 20)]
            columns: dict[str, Any] = {"user": pa.array(range(USERS), pa.int32())}
            columns |= {metric: pa.array(row) for metric in names}
            table = pa.table(columns, metadata={"card": json.dumps(card), "model": "siren"})
            self.users[name].append(folder / f"users{seed}.parquet")
            write_table(table, self.users[name][-1])
            means = dict.fromkeys(names, row.mean())
            means |= {f"{metric}@{k}": 0.5 for metric in LIST_METRICS for k in (5, 20)}
            run = {"model": "siren", "seed": seed, "metrics": means, "card": card}
            runs.append(folder / f"{seed}.json")
            write_json(run, runs[-1])
        times = folder / "train.tsv"
        times.write_text("s\tmax_rss\n30\t1\n50\t1\n")
        self.summaries[name] = folder / "metrics.json"
        summarise(
            runs,
            self.summaries[name],
            context={"dataset": "demo", "experiment": name, "judge": "random"} | context,
            benchmarks={"train": [times], "evaluate": [times]},
        )

    def tabulate(self, headline: str = "refine") -> tuple[list[dict[str, Any]], str]:
        table, page, chart = (
            self.folder / f"comparison.{kind}" for kind in ("parquet", "md", "svg")
        )
        written = (table, page, chart)
        tabulate(headline, self.summaries, self.users, *written, title="Demo", evaluation=SETTINGS)
        return read_table(table, COMPARISON).to_pylist(), page.read_text(encoding="utf-8")


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    runs = Runs(tmp_path)
    runs.add("refine", 0.5)
    runs.add("same", 0.5, seeds=1)
    runs.add("worse", 0.3, seeds=3, published={"recall@20": 0.25})
    return runs


def test_a_row_holds_what_was_measured(runs: Runs) -> None:
    rows, _ = runs.tabulate()
    assert [row["experiment"] for row in rows[::4]] == ["refine", "same", "worse"]
    assert [row["metric"] for row in rows[:4]] == ["recall@20", "ndcg@20", "recall@5", "ndcg@5"]
    recall, ndcg = rows[8:10]
    per_seed = runs.values["worse"].mean(1)
    assert recall["mean"] == pytest.approx(per_seed.mean())
    assert recall["sd"] == pytest.approx(per_seed.std(ddof=1))
    assert (recall["published"], ndcg["published"]) == (0.25, None)
    assert recall["from_published"] == pytest.approx(per_seed.mean() - 0.25)
    assert (recall["model"], recall["judge"], recall["seeds"]) == ("siren", "random", 3)
    assert recall["seconds"] == 40  # of a training; evaluation is not part of it
    assert rows[4]["sd"] is None


def test_differences_are_those_of_users_and_their_tests_are_adjusted(runs: Runs) -> None:
    rows = [row for row in runs.tabulate()[0] if row["metric"] == "recall@20"]
    headline, *others = rows
    assert headline["from_headline"] == 0
    assert headline["p"] is headline["p_adjusted"] is headline["low"] is None
    expected = []
    for row in others:
        gain = runs.values[row["experiment"]].mean(0) - runs.values["refine"].mean(0)
        assert row["from_headline"] == pytest.approx(gain.mean())
        assert row["low"] < gain.mean() < row["high"]
        expected.append(stats.wilcoxon(gain.round(12), zero_method="pratt").pvalue)
        assert row["p"] == pytest.approx(expected[-1])
    # Benjamini and Hochberg by hand: the larger stays; the smaller doubles, up to the larger.
    small, large = sorted(expected)
    assert sorted(row["p_adjusted"] for row in others) == pytest.approx(
        [min(2 * small, large), large]
    )


def test_the_page_shows_the_longest_lists(runs: Runs) -> None:
    _, page = runs.tabulate()
    lines = page.splitlines()
    assert lines[0] == "**Demo**"
    header, _, first, *_ = lines[2:]
    assert header.count("|") == first.count("|")
    assert "Recall@20" in header
    assert "Recall@5" not in header
    worse = next(line for line in lines if line.startswith("| worse"))
    assert "| 0.2500 | +0.0" in worse
    assert "< .001" in worse
    assert worse.endswith("| 40 |")


def test_what_was_measured_under_other_rules_is_refused(runs: Runs) -> None:
    runs.add("masked", 0.5, card={"mask": "train_positives"})
    with pytest.raises(CardError, match="mask"):
        runs.tabulate()


def test_other_users_are_refused(runs: Runs) -> None:
    table = read_table(runs.users["same"][0])
    write_table(table.slice(1), runs.users["same"][0])
    with pytest.raises(ComparisonError, match="same score different users"):
        runs.tabulate()
