"""Compares two experiments user by user.

The same users are scored on the same held-out items in both, so the difference of one user's
metric between the two is free of how hard that user is: pairing removes most of the variance that
makes two means with their own intervals look alike.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import stats

from refine.artifacts import ArtifactError, read_table, write_json
from refine.evaluation.card import CARD_METADATA, MODEL_METADATA, Card, require_same_card
from refine.evaluation.names import USER_METRICS

_BATCH_CELLS = 2**22  # resampled values held at once: 32 MiB

Floats = npt.NDArray[np.float64]


class ComparisonError(ValueError):
    """Two experiments whose users do not match."""


@dataclass(frozen=True)
class UserMetrics:
    """Per-user metrics of an experiment's seeds.

    Attributes:
        model: its name.
        card: under which rules they were measured.
        users: codes of the users who were scored.
        values: of each metric, [seeds, users].
    """

    model: str
    card: Card
    users: npt.NDArray[np.int64]
    values: dict[str, Floats]

    @classmethod
    def read(cls, paths: list[Path]) -> Self:
        """Reads users.parquet of each seed of an experiment.

        Raises:
            ArtifactError: a file has no card, or lacks a metric.
            CardError: the seeds were evaluated under different rules.
            ComparisonError: they do not score the same users.
        """
        tables = {str(path): read_table(path) for path in paths}
        heads = {name: _model_and_card(table, name) for name, table in tables.items()}
        card = require_same_card({name: card for name, (_, card) in heads.items()})
        model, _ = next(iter(heads.values()))
        users: list[npt.NDArray[np.int64]] = []
        for name, table in tables.items():
            users.append(table.column("user").to_numpy().astype(np.int64))
            if not np.array_equal(users[0], users[-1]):
                raise ComparisonError(f"{name} does not score the users that {paths[0]} scores")
        values = {}
        for metric in (f"{metric}@{k}" for metric in USER_METRICS for k in card["k"]):
            absent = [name for name, table in tables.items() if metric not in table.column_names]
            if absent:
                raise ArtifactError(f"{absent[0]}: column {metric} is missing")
            columns = [table.column(metric).to_numpy() for table in tables.values()]
            values[metric] = np.stack(columns)
        return cls(model, card, users[0], values)


def compare(
    a: list[Path],
    b: list[Path],
    output: Path,
    *,
    evaluation: dict[str, Any],
    names: tuple[str, str] = ("a", "b"),
) -> None:
    """Compares experiment b with experiment a and writes the result as JSON.

    Each user's metric is averaged over the seeds of an experiment first; the difference b - a of
    these averages over the users is what is estimated, resampled and tested.

    Args:
        a: users.parquet of each seed of the experiment to compare with.
        b: users.parquet of each seed of the other experiment.
        output: the JSON file to write.
        evaluation: settings ``bootstrap`` (resamples), ``confidence`` and ``seed``.
        names: how to call the two.

    Raises:
        CardError: the files were made under different evaluation rules.
        ComparisonError: the files do not score the same users.
    """
    first, second = UserMetrics.read(a), UserMetrics.read(b)
    # Longest lists first, and the metrics in the order in which papers report them.
    ks = sorted(first.card["k"], reverse=True)
    metrics = [f"{metric}@{k}" for k in ks for metric in USER_METRICS]
    compared = compare_users(first, second, metrics, evaluation=evaluation, names=names)
    write_json(
        {
            "a": names[0],
            "b": names[1],
            "models": {"a": first.model, "b": second.model},
            "verdict": {metric: _verdict(compared[metric], names) for metric in metrics[:2]},
            "users": len(first.users),
            "seeds": {"a": len(a), "b": len(b)},
            "confidence": evaluation["confidence"],
            "bootstrap": {"resamples": evaluation["bootstrap"], "seed": evaluation["seed"]},
            "metrics": compared,
            "card": first.card,
        },
        output,
    )


def compare_users(
    first: UserMetrics,
    second: UserMetrics,
    metrics: Sequence[str],
    *,
    evaluation: Mapping[str, Any],
    names: tuple[str, str],
) -> dict[str, dict[str, Any]]:
    """Estimates, resamples and tests the paired differences of two experiments.

    Args:
        first: the experiment to compare with.
        second: the other experiment.
        metrics: what to compare.
        evaluation: settings ``bootstrap`` (resamples), ``confidence`` and ``seed``.
        names: how to call the two.

    Returns:
        For each metric: both means, the difference, its interval and what tests say of it.

    Raises:
        CardError: the two were evaluated under different rules.
        ComparisonError: they do not score the same users.
    """
    require_same_card({names[0]: first.card, names[1]: second.card})
    if not np.array_equal(first.users, second.users):
        strangers = np.setxor1d(first.users, second.users)
        raise ComparisonError(
            f"{names[0]} and {names[1]} score different users: {len(strangers)} are in one only, "
            f"the first being user {strangers[0]}; evaluate both on the same split"
        )
    # Each user's mean over the seeds; what rounding leaves of equal means is no difference.
    differences = np.stack(
        [second.values[metric].mean(0) - first.values[metric].mean(0) for metric in metrics]
    ).round(12)
    intervals = bootstrap_intervals(
        differences,
        n_resamples=evaluation["bootstrap"],
        confidence=evaluation["confidence"],
        seed=evaluation["seed"],
    )
    return {
        metric: _compare_metric(
            first.values[metric], second.values[metric], row, interval, evaluation["confidence"]
        )
        for metric, row, interval in zip(metrics, differences, intervals, strict=True)
    }


def _model_and_card(table: pa.Table, name: str) -> tuple[str, Card]:
    metadata = table.schema.metadata or {}
    if not metadata.keys() >= {MODEL_METADATA, CARD_METADATA}:
        raise ArtifactError(
            f"{name}: has no evaluation card and model in its metadata; write it with `evaluate`"
        )
    return metadata[MODEL_METADATA].decode(), json.loads(metadata[CARD_METADATA])


def _compare_metric(
    a: Floats, b: Floats, per_user: Floats, interval: list[float] | None, confidence: float
) -> dict[str, Any]:
    """One metric of both experiments, [seeds, users], and its differences, [users]."""
    return {
        "a": float(a.mean()),
        "b": float(b.mean()),
        "difference": float(per_user.mean()),
        "interval": interval,
        "p_wilcoxon": _wilcoxon(per_user),
        "p_t": _paired_t(per_user),
        "users_better": float((per_user > 0).mean()),
        "users_equal": float((per_user == 0).mean()),
        "users_worse": float((per_user < 0).mean()),
        "over_seeds": _over_seeds(a.mean(1), b.mean(1), confidence),
    }


def bootstrap_intervals(
    differences: Floats, *, n_resamples: int, confidence: float, seed: int
) -> list[list[float] | None]:
    """Percentile bootstrap intervals of means over users (Efron, 1979).

    All rows share the resampled users, so that their intervals belong together.

    Args:
        differences: [metrics, users].
        n_resamples: resampled sets of users.
        confidence: coverage, e.g. 0.95.
        seed: of the resampling.

    Returns:
        Lower and upper end of each row; nulls where there is a single user.
    """
    n_metrics, n_users = differences.shape
    if n_users < 2:
        return [None] * n_metrics
    interval = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=n_resamples,
        batch=max(1, _BATCH_CELLS // differences.size),
        vectorized=True,
        axis=-1,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    ends = np.stack([np.asarray(interval.low), np.asarray(interval.high)], axis=1)
    return [[float(low), float(high)] for low, high in ends]


def _over_seeds(a: Floats, b: Floats, confidence: float) -> dict[str, Any]:
    """Means of the seeds, and Welch's t-interval of their difference: what training chance adds.

    The interval is null where an experiment has a single seed, or the seeds do not vary at all.
    """
    interval = None
    if min(len(a), len(b)) > 1 and a.std() + b.std() > 0:
        ends = stats.ttest_ind(b, a, equal_var=False).confidence_interval(confidence)
        interval = [float(ends.low), float(ends.high)]
    return {"a": a.tolist(), "b": b.tolist(), "interval": interval}


def _wilcoxon(differences: Floats) -> float:
    """Wilcoxon signed-rank test; users without a difference count for neither side (Pratt)."""
    if not differences.any():
        return 1.0
    return float(stats.wilcoxon(differences, zero_method="pratt").pvalue)


def _paired_t(differences: Floats) -> float | None:
    """Paired t-test; null where a single user or equal differences leave no variance to test."""
    if not differences.any():
        return 1.0
    if np.ptp(differences) == 0.0:
        return None
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def _verdict(compared: dict[str, Any], names: tuple[str, str]) -> str:
    if compared["interval"] is None:
        return "a single user was scored: nothing can be said"
    low, high = compared["interval"]
    ends = f"[{low:+.4f}, {high:+.4f}]"
    if low <= 0.0 <= high:
        return f"no difference is visible: the interval {ends} contains 0"
    difference = compared["difference"]
    better, worse = (names[1], names[0]) if difference > 0 else names
    return f"{better} is better than {worse} by {abs(difference):.4f}: {ends} excludes 0"
