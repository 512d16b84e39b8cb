"""Sums up the seeds of an experiment: the numbers a paper would print, and where they come from.

The file is written for people first: what was measured and how sure it is stands on top, what it
takes to repeat it below.
"""

import csv
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from scipy.special import stdtrit

from refine.artifacts import ArtifactError, read_json, write_json
from refine.evaluation.card import RATED, require_same_card
from refine.evaluation.names import LIST_METRICS, USER_METRICS

_logger = logging.getLogger("refine.evaluation")

HEADLINE = ("recall", "ndcg")

PUBLISHED_RULES = {"mask": RATED, "mask_validation": False}
"""What our card must say for published numbers to stand beside ours; an entry may name its mask."""


def summarise(
    metrics: list[Path],
    output: Path,
    *,
    context: Mapping[str, Any],
    refinements: Mapping[str, Path] | None = None,
    benchmarks: Mapping[str, Sequence[Path]] | None = None,
) -> None:
    """Writes an experiment's metrics.json over its seeds.

    Args:
        metrics: metrics.json of each seed.
        output: the JSON file to write.
        context: ``published`` (metric to value, e.g. {"recall@20": 0.4296}, and the ``mask`` they
            fit if not ``rated``; set beside ours where our evaluation card allows it),
            ``confidence`` (of the interval, 0.95 by default); every other entry (dataset,
            experiment, judge, config digest, ...) is copied as it is.
        refinements: refinement.json of judges, by name; their counts and their agreement with the
            truth go under ``judges``.
        benchmarks: Snakemake benchmark tables of the jobs, by stage; wall times are read off them.

    Raises:
        CardError: the seeds were evaluated under different rules.
        ArtifactError: a file lacks what it must hold, or two are of the same seed.
    """
    runs = {str(path): read_json(path) for path in metrics}
    for name, run in runs.items():
        if missing := {"metrics", "card", "model", "seed"} - set(run):
            raise ArtifactError(f"{name}: {', '.join(sorted(missing))} is missing; run `evaluate`")
    card = require_same_card({name: run["card"] for name, run in runs.items()})
    by_seed = sorted(runs.values(), key=lambda run: run["seed"])
    seeds = [run["seed"] for run in by_seed]
    if len(set(seeds)) < len(seeds):
        raise ArtifactError(f"{', '.join(runs)}: the same seed occurs twice in {seeds}")

    rest = dict(context)
    confidence = rest.pop("confidence", 0.95)
    published = dict(rest.pop("published", None) or {})
    rules = PUBLISHED_RULES | {"mask": published.pop("mask", RATED)}
    require_metric_names(published)
    comparable = all(card.get(field) == value for field, value in rules.items())
    beside = published if comparable else {}
    summary = {}
    for name in _order(card["k"]):
        row = _over_seeds([run["metrics"][name] for run in by_seed], confidence)
        if name in beside:
            row |= {"published": beside[name], "difference": row["mean"] - beside[name]}
        summary[name] = row
    if published and not comparable:
        rest["published"] = {"not_comparable": published, "measured_with": rules}
    identity = {key: rest.pop(key) for key in ("dataset", "experiment", "judge") if key in rest}
    write_json(
        {
            "headline": _headline(summary, card["k"], len(seeds)),
            **identity,
            "model": _one_or_all([run["model"] for run in by_seed]),
            "seeds": seeds,
            "confidence": confidence,
            "metrics": summary,
            "best_epochs": [run.get("epoch") for run in by_seed],
            "card": card,
            "judges": {name: _judge(path) for name, path in (refinements or {}).items()},
            "wall_time": wall_times(benchmarks or {}),
            **{
                key: _one_or_all([run[key] for run in by_seed])
                for key in ("trained_on", "evaluated_on")
                if all(key in run for run in by_seed)
            },
            **rest,
        },
        output,
    )


def _order(ks: Sequence[int]) -> list[str]:
    """Recall and NDCG of the longest lists first, then metric by metric."""
    first = [f"{name}@{max(ks)}" for name in HEADLINE]
    return list(
        dict.fromkeys([*first, *(f"{n}@{k}" for n in USER_METRICS + LIST_METRICS for k in ks)])
    )


def _over_seeds(values: list[float], confidence: float) -> dict[str, Any]:
    """Mean, standard deviation (n - 1) and Student's t-interval of the mean over the seeds.

    The interval is cut at 0 and 1, which no metric exceeds. Both are null for a single seed, which
    says nothing about the spread.
    """
    mean = fmean(values)
    deviation: float | None = None
    interval: list[float] | None = None
    if len(values) > 1:
        deviation = float(np.std(values, ddof=1))
        half = float(stdtrit(len(values) - 1, (1 + confidence) / 2)) * deviation
        half /= len(values) ** 0.5
        interval = [max(0.0, mean - half), min(1.0, mean + half)]
    return {"mean": mean, "sd": deviation, "interval": interval, "per_seed": values}


def require_metric_names(names: Iterable[str]) -> None:
    """Checks the names of published values.

    Raises:
        ArtifactError: one is no metric, such as ``recall@20``, of ours.
    """
    for name in names:
        metric, _, k = name.partition("@")
        if metric not in USER_METRICS + LIST_METRICS or not k.isdecimal():
            raise ArtifactError(
                f"published value of {name!r}: no such metric; there are "
                f"{', '.join(f'{known}@k' for known in USER_METRICS + LIST_METRICS)}"
            )


def _headline(summary: Mapping[str, Mapping[str, Any]], ks: Sequence[int], n_seeds: int) -> str:
    parts = []
    for name in HEADLINE:
        row = summary[f"{name}@{max(ks)}"]
        notes = []
        if row["interval"] is not None:
            notes.append("{:.4f} to {:.4f}".format(*row["interval"]))
        if "published" in row:
            notes.append(f"published {row['published']:.4f}")
        label = {"recall": "Recall", "ndcg": "NDCG"}[name]
        parts.append(
            f"{label}@{max(ks)} {row['mean']:.4f}" + (f" ({'; '.join(notes)})" if notes else "")
        )
    return f"{', '.join(parts)}; {n_seeds} seed{'s' if n_seeds > 1 else ''}"


def _one_or_all(values: list[Any]) -> Any:
    """The value that all seeds share, else the list of them."""
    return values[0] if all(value == values[0] for value in values) else values


def _judge(refinement: Path) -> dict[str, Any]:
    """What a judge decided over the candidates, and how well where the truth is known."""
    described = read_json(refinement)
    return {key: described.get(key) for key in ("candidates", "truth")}


def wall_times(benchmarks: Mapping[str, Sequence[Path]]) -> dict[str, dict[str, Any]]:
    """Wall time and peak memory of each stage, from the tables that Snakemake's benchmarks leave.

    Args:
        benchmarks: the tables of a stage's jobs (tab separated; columns ``s``, seconds, and
            ``max_rss``, MB), by stage. Tables that are not there are left out.

    Returns:
        For each stage: ``jobs``, ``seconds`` (all jobs together), ``longest_seconds`` (the longest
        job) and ``max_rss_mb`` (null where the job was too short to be measured).
    """
    times = {}
    for stage, paths in benchmarks.items():
        rows: list[dict[str, str]] = []
        for path in paths:
            if not path.is_file():
                _logger.warning("%s: no benchmark, so %s lacks its wall time", path, stage)
                continue
            with path.open(newline="", encoding="utf-8") as lines:
                rows.extend(csv.DictReader(lines, delimiter="\t"))
        if rows:
            seconds = [float(row["s"]) for row in rows]
            memory = [value for row in rows if (value := _number(row.get("max_rss"))) is not None]
            times[stage] = {
                "jobs": len(rows),
                "seconds": round(sum(seconds), 3),
                "longest_seconds": round(max(seconds), 3),
                "max_rss_mb": max(memory, default=None),
            }
    return times


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:  # Snakemake writes "-" or "NA"
        return None
