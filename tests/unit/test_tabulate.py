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
METRICS = [f"{metric}@{k}" for metric in USER_METRICS for k in (20, 5)]
SHARES = dict(zip(METRICS, np.linspace(1, 0.4, len(METRICS)), strict=True))
"""Of an experiment's level: no two metrics have the same values, differences or p-values."""


class Runs:
    """Experiments whose users' metrics are drawn around shares of a level."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.summaries: dict[str, Path] = {}
        self.users: dict[str, list[Path]] = {}
        self.values: dict[str, dict[str, np.ndarray]] = {}

    def add(self, name: str, level: float, seeds: int = 2, **context: Any) -> None:
        rng = np.random.default_rng(len(self.users))
        noise = 0.1 * rng.standard_normal((len(METRICS), seeds, USERS))
        folder = self.folder / name
        runs, self.users[name] = [], []
        self.values[name] = values = {
            metric: np.clip(SHARES[metric] * level + of_metric, 0, 1)
            for metric, of_metric in zip(METRICS, noise, strict=True)
        }
        card = CARD | context.pop("card", {})
        for seed in range(seeds):
            columns: dict[str, Any] = {"user": pa.array(range(USERS), pa.int32())}
            columns |= {metric: pa.array(values[metric][seed]) for metric in METRICS}
            table = pa.table(columns, metadata={"card": json.dumps(card), "model": "siren"})
            self.users[name].append(folder / f"users{seed}.parquet")
            write_table(table, self.users[name][-1])
            means = {metric: values[metric][seed].mean() for metric in METRICS}
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
    for row in rows[8:]:
        per_seed = runs.values["worse"][row["metric"]].mean(1)
        assert row["mean"] == pytest.approx(per_seed.mean())
        assert row["sd"] == pytest.approx(per_seed.std(ddof=1))
    recall, ndcg = rows[8:10]
    assert (recall["published"], ndcg["published"]) == (0.25, None)
    assert recall["from_published"] == pytest.approx(recall["mean"] - 0.25)
    assert (recall["model"], recall["judge"], recall["seeds"]) == ("siren", "random", 3)
    assert recall["seconds"] == 40  # of a training; evaluation is not part of it
    assert rows[4]["sd"] is None


def test_the_headline_is_not_compared_with_itself(runs: Runs) -> None:
    for row in runs.tabulate()[0][:4]:
        assert row["from_headline"] == 0
        assert row["p"] is row["p_adjusted"] is row["low"] is row["high"] is None


@pytest.mark.parametrize("metric", ["recall@20", "ndcg@20", "recall@5", "ndcg@5"])
def test_differences_are_those_of_users_and_tests_are_adjusted_by_metric(
    runs: Runs, metric: str
) -> None:
    runs.add("near", 0.47)
    _, *others = (row for row in runs.tabulate()[0] if row["metric"] == metric)
    assert [row["experiment"] for row in others] == ["same", "worse", "near"]
    expected = []
    for row in others:
        ours, theirs = (runs.values[name][metric] for name in (row["experiment"], "refine"))
        gain = ours.mean(0) - theirs.mean(0)
        assert row["from_headline"] == pytest.approx(gain.mean())
        rng = np.random.default_rng(2024)
        resampled = stats.bootstrap(
            (gain,), np.mean, n_resamples=500, method="percentile", rng=rng
        ).confidence_interval
        assert (row["low"], row["high"]) == pytest.approx((resampled.low, resampled.high))
        expected.append(stats.wilcoxon(gain, zero_method="pratt").pvalue)
    # The smallest are below what approx takes for 0.
    exactly = {"rel": 1e-6, "abs": 0}
    assert [row["p"] for row in others] == pytest.approx(expected, **exactly)
    adjusted = stats.false_discovery_control(expected).tolist()
    assert [row["p_adjusted"] for row in others] == pytest.approx(adjusted, **exactly)


def test_the_page_shows_the_longest_lists(runs: Runs) -> None:
    _, page = runs.tabulate()
    lines = page.splitlines()
    assert lines[0] == "**Demo**"
    header, _, first, *_ = lines[2:]
    assert header.count("|") == first.count("|")
    assert "Recall@20" in header
    assert "Recall@5" not in header
    worse = next(line for line in lines if line.startswith("| worse"))
    recall, ndcg = (runs.values["worse"][f"{name}@20"].mean() for name in ("recall", "ndcg"))
    assert worse.index(f"| {recall:.4f} ±") < worse.index(f"| {ndcg:.4f} ±")
    assert "| 0.2500 (+0.0" in worse
    assert "], p < .001 |" in worse
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
