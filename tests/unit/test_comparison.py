"""Paired comparison of two experiments against hand-computed cases and SciPy."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from refine.artifacts import ArtifactError, read_json, write_table
from refine.evaluation.card import CardError
from refine.evaluation.comparison import ComparisonError, bootstrap_intervals, compare
from refine.evaluation.names import USER_METRICS

SETTINGS = {"bootstrap": 2000, "confidence": 0.95, "seed": 2024}
CARD = {"mask": "rated", "k": [20], "split_digest": "d"}


def _file(
    path: Path, values: Any, users: list[int] | None = None, card: dict[str, Any] = CARD
) -> Path:
    """A users.parquet in which every metric has the same values."""
    columns = {f"{name}@{k}": pa.array(values, pa.float64()) for name in USER_METRICS for k in [20]}
    codes = pa.array(users or range(len(values)), pa.int32())
    metadata = {"card": json.dumps(card), "model": "siren"}
    write_table(pa.table({"user": codes} | columns, metadata=metadata), path)
    return path


def _compare(tmp_path: Path, a: list[Path], b: list[Path], **settings: Any) -> dict[str, Any]:
    output = tmp_path / "a-vs-b.json"
    compare(a, b, output, evaluation=SETTINGS | settings, names=("refine", "lightgcn"))
    result: dict[str, Any] = read_json(output)
    return result


def test_hand_computed_case(tmp_path: Path) -> None:
    # Means over two seeds: a = .2, .4, .5, 1, and b = .4, .4, .3, 1 user by user, then one more
    # user who gains .3: differences .2, 0, -.2, 0, .3.
    a = [
        _file(tmp_path / "a1.parquet", [0.1, 0.4, 0.5, 1.0, 0.0]),
        _file(tmp_path / "a2.parquet", [0.3, 0.4, 0.5, 1.0, 0.2]),
    ]
    b = [
        _file(tmp_path / "b1.parquet", [0.4, 0.3, 0.3, 1.0, 0.4]),
        _file(tmp_path / "b2.parquet", [0.4, 0.5, 0.3, 1.0, 0.4]),
    ]
    result = _compare(tmp_path, a, b)
    row = result["metrics"]["recall@20"]
    assert (result["a"], result["b"], result["users"]) == ("refine", "lightgcn", 5)
    assert result["seeds"] == {"a": 2, "b": 2}
    assert row["a"] == pytest.approx(2.2 / 5)
    assert row["b"] == pytest.approx(2.5 / 5)
    assert row["difference"] == pytest.approx(0.06)
    assert (row["users_better"], row["users_equal"], row["users_worse"]) == (0.4, 0.4, 0.2)
    differences = [0.2, 0.0, -0.2, 0.0, 0.3]
    assert row["p_t"] == pytest.approx(stats.ttest_rel(differences, [0.0] * 5).pvalue)
    assert row["p_wilcoxon"] == pytest.approx(
        stats.wilcoxon(differences, zero_method="pratt").pvalue
    )
    assert row["over_seeds"]["a"] == pytest.approx([0.4, 0.48])
    assert row["over_seeds"]["b"] == pytest.approx([0.48, 0.52])
    low, high = row["interval"]
    assert low < 0 < 0.06 < high
    assert result["verdict"]["recall@20"] == (
        f"no difference is visible: the interval [{low:+.4f}, {high:+.4f}] contains 0"
    )


def test_over_seeds_is_welchs_interval(tmp_path: Path) -> None:
    means = {"a": [0.30, 0.34, 0.32], "b": [0.40, 0.41, 0.45]}
    paths = {
        name: [
            _file(tmp_path / f"{name}{seed}.parquet", [mean, mean])
            for seed, mean in enumerate(values)
        ]
        for name, values in means.items()
    }
    row = _compare(tmp_path, paths["a"], paths["b"])["metrics"]["recall@20"]
    # Welch-Satterthwaite by hand: variances .0004 and .0007 of three seeds each.
    variance = (0.0004 + 0.0007) / 3
    freedom = variance**2 / ((0.0004 / 3) ** 2 / 2 + (0.0007 / 3) ** 2 / 2)
    half = stats.t.ppf(0.975, freedom) * variance**0.5
    assert row["over_seeds"]["interval"] == pytest.approx([0.1 - half, 0.1 + half])


def test_a_clear_difference_is_called_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0.2, 0.6, 400)
    a = [_file(tmp_path / "a.parquet", base)]
    b = [_file(tmp_path / "b.parquet", base + rng.normal(0.02, 0.05, 400))]
    result = _compare(tmp_path, a, b)
    assert "lightgcn is better than refine by 0.0" in result["verdict"]["recall@20"]
    assert result["metrics"]["recall@20"]["p_wilcoxon"] < 0.001
    # Which is named first is turned round with the files.
    assert "lightgcn is better" not in _compare(tmp_path, b, a)["verdict"]["recall@20"]
    # One seed each: nothing is known about the spread over seeds.
    assert result["metrics"]["recall@20"]["over_seeds"]["interval"] is None


def test_equal_experiments(tmp_path: Path) -> None:
    a = [_file(tmp_path / "a.parquet", [0.1, 0.7, 1 / 3])]
    row = _compare(tmp_path, a, a)["metrics"]["recall@20"]
    assert row["difference"] == 0.0
    assert row["interval"] == [0.0, 0.0]
    assert row["p_wilcoxon"] == row["p_t"] == 1.0
    assert row["users_equal"] == 1.0


def test_rounding_is_no_difference(tmp_path: Path) -> None:
    """Three seeds of the same values in another order have equal means only up to rounding."""
    values = [0.1, 0.2, 0.3]
    a, b = (
        [_file(tmp_path / f"{name}{i}.parquet", [value, 0.5]) for i, value in enumerate(ordered)]
        for name, ordered in (("a", values), ("b", values[::-1]))
    )
    row = _compare(tmp_path, a, b)["metrics"]["recall@20"]
    assert np.mean(values) != np.mean(values[::-1])
    assert row["users_equal"] == 1.0


def test_a_single_user_says_nothing(tmp_path: Path) -> None:
    a, b = (_file(tmp_path / f"{v}.parquet", [v]) for v in (0.2, 0.4))
    result = _compare(tmp_path, [a], [b])
    assert result["metrics"]["recall@20"]["interval"] is None
    assert result["metrics"]["recall@20"]["p_t"] is None
    assert "nothing can be said" in result["verdict"]["recall@20"]


def test_interval_equals_a_plain_bootstrap() -> None:
    rng = np.random.default_rng(3)
    differences = rng.normal(0.01, 0.1, (2, 300))
    intervals = bootstrap_intervals(differences, n_resamples=4000, confidence=0.9, seed=1)
    draws = np.random.default_rng(99).integers(0, 300, (4000, 300))
    for row, interval in zip(differences, intervals, strict=True):
        expected = np.quantile(row[draws].mean(1), [0.05, 0.95])
        assert interval == pytest.approx(
            expected, abs=6e-4
        )  # about 5 standard errors of a quantile


def test_the_batch_size_and_the_run_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = np.random.default_rng(3).normal(0.01, 0.1, (3, 50))
    whole = bootstrap_intervals(differences, n_resamples=500, confidence=0.95, seed=1)
    monkeypatch.setattr("refine.evaluation.comparison._BATCH_CELLS", 1000)
    assert bootstrap_intervals(differences, n_resamples=500, confidence=0.95, seed=1) == whole
    assert bootstrap_intervals(differences, n_resamples=500, confidence=0.95, seed=2) != whole


def test_interval_covers_the_truth() -> None:
    """95% intervals of samples with a known mean hold it in about 95% of the cases."""
    samples = np.random.default_rng(11).normal(0.0, 1.0, (400, 60))
    intervals = bootstrap_intervals(samples, n_resamples=400, confidence=0.95, seed=0)
    held = sum(low <= 0 <= high for low, high in filter(None, intervals))
    assert 0.90 <= held / 400 <= 0.98


def test_different_cards_are_refused(tmp_path: Path) -> None:
    a = _file(tmp_path / "a.parquet", [0.1, 0.2])
    b = _file(tmp_path / "b.parquet", [0.1, 0.2], card=CARD | {"mask": "train_positives"})
    with pytest.raises(CardError, match='mask: "rated" in refine, "train_positives" in lightgcn'):
        _compare(tmp_path, [a], [b])
    with pytest.raises(CardError, match=r"a\.parquet.*b\.parquet"):
        _compare(tmp_path, [a, b], [a])
    assert not (tmp_path / "a-vs-b.json").exists()


def test_different_users_are_refused(tmp_path: Path) -> None:
    a = _file(tmp_path / "a.parquet", [0.1, 0.2])
    b = _file(tmp_path / "b.parquet", [0.1, 0.2], users=[0, 7])
    with pytest.raises(ComparisonError, match="2 are in one only, the first being user 1"):
        _compare(tmp_path, [a], [b])
    with pytest.raises(ComparisonError, match="does not score the users"):
        _compare(tmp_path, [a, b], [a])


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    bare = tmp_path / "bare.parquet"
    write_table(pa.table({"user": [0]}), bare)
    with pytest.raises(ArtifactError, match=r"bare\.parquet: has no evaluation card"):
        _compare(tmp_path, [bare], [bare])
    metadata = {"card": json.dumps(CARD), "model": "siren"}
    write_table(pa.table({"user": [0]}, metadata=metadata), bare)
    with pytest.raises(ArtifactError, match="column recall@20 is missing"):
        _compare(tmp_path, [bare], [bare])
