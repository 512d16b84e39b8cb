"""Every experiment of a dataset in one table, each compared with the headline user by user."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
from scipy import stats

from refine.artifacts import COMPARISON, replacing, write_table
from refine.evaluation.card import Card
from refine.evaluation.comparison import UserMetrics, compare_users
from refine.evaluation.summary import HEADLINE
from refine.reporting.dots import draw_comparison
from refine.reporting.table import Summary, Table, card_sentence, metric_name, read_summaries

_TRAINING = ("warm_up", "mine_similar_items", "train", "fit")
"""The rules whose time is that of a run."""

_Row: TypeAlias = dict[str, Any]


def tabulate(
    headline: str,
    summaries: Mapping[str, Path],
    users: Mapping[str, Sequence[Path]],
    table: Path,
    page: Path,
    chart: Path,
    *,
    title: str,
    evaluation: Mapping[str, Any],
) -> None:
    """Writes a table with a row an experiment and metric; a page and a chart of the longest lists.

    Each user's metric is averaged over an experiment's seeds, and the differences from the headline
    experiment are tested (Wilcoxon's signed-rank test). The p-values of a metric are adjusted
    together (Benjamini and Hochberg, 1995), since among many experiments some differ by chance.

    Args:
        headline: the experiment that the others are compared with.
        summaries: metrics.json of each experiment, in the order of the rows.
        users: users.parquet of each seed of each experiment.
        table: the Parquet file to write (COMPARISON).
        page: the Markdown file to write.
        chart: the SVG file to write.
        title: of page and chart.
        evaluation: settings ``bootstrap`` (resamples), ``confidence`` and ``seed``.

    Raises:
        ArtifactError: a file lacks what it must hold.
        CardError: experiments were evaluated under different rules.
        ComparisonError: they do not score the same users.
    """
    read = dict(zip(summaries, read_summaries(list(summaries.values())).values(), strict=True))
    card = read[headline]["card"]
    metrics = [f"{name}@{k}" for k in sorted(card["k"], reverse=True) for name in HEADLINE]
    first = UserMetrics.read(list(users[headline]))
    rows: list[_Row] = []
    for name, summary in read.items():
        second = UserMetrics.read(list(users[name]))
        compared = compare_users(
            first, second, metrics, evaluation=evaluation, names=(headline, name)
        )
        for metric in metrics:
            tested = None if name == headline else compared[metric]
            rows.append(_row(name, summary, metric) | _difference(tested))
    for metric in metrics:
        _adjust([row for row in rows if row["metric"] == metric and row["p"] is not None])
    write_table(pa.Table.from_pylist(rows, COMPARISON), table, COMPARISON)
    shown = metrics[: len(HEADLINE)]
    notes = [_how_to_read(headline, evaluation["confidence"], card), *_set_apart(read, shown)]
    drawn = _drawn(rows, shown, headline, title, "\n\n".join(notes))
    with replacing(page) as unfinished:
        unfinished.write_text(drawn.markdown() + "\n", encoding="utf-8")
    draw_comparison(rows, shown, chart, title=title)


def _row(experiment: str, summary: Summary, metric: str) -> _Row:
    """What an experiment's own file says of a metric."""
    values = summary["metrics"][metric]
    times = [summary["wall_time"][rule] for rule in _TRAINING if rule in summary["wall_time"]]
    return {
        "experiment": experiment,
        "model": summary["model"],
        "judge": summary["judge"],
        "metric": metric,
        "seeds": len(summary["seeds"]),
        "mean": values["mean"],
        "sd": values["sd"],
        "published": values.get("published"),
        "from_published": values.get("difference"),
        "seconds": sum(time["seconds"] / time["jobs"] for time in times) if times else None,
    }


def _difference(compared: Mapping[str, Any] | None) -> _Row:
    """The difference from the headline; of the headline itself, None, there is nothing to test."""
    if compared is None:
        absent = ("low", "high", "p", "p_adjusted", "seeds_low", "seeds_high")
        return {"from_headline": 0.0, **dict.fromkeys(absent)}
    low, high = compared["interval"] or (None, None)
    seeds_low, seeds_high = compared["over_seeds"]["interval"] or (None, None)
    return {
        "from_headline": compared["difference"],
        "low": low,
        "high": high,
        "p": compared["p_wilcoxon"],
        "seeds_low": seeds_low,
        "seeds_high": seeds_high,
    }


def _adjust(rows: Sequence[_Row]) -> None:
    if rows:
        adjusted = stats.false_discovery_control([row["p"] for row in rows])
        for row, p in zip(rows, adjusted, strict=True):
            row["p_adjusted"] = float(p)


def _how_to_read(headline: str, confidence: float, card: Card) -> str:
    return (
        "Means over seeds ± standard deviation; seconds are those of one training, or of a whole "
        f"search. From {headline}: the mean over users of the paired difference, above 0 where the "
        f"row is better, with its {100 * confidence:g}% bootstrap interval; p is that of "
        "Wilcoxon's signed-rank test, adjusted for the number of experiments (Benjamini-Hochberg), "
        "which the intervals are not. Both ask whether other users would show the difference; "
        "whether another training would is for the standard deviations to say, and for the "
        f"interval over seeds in comparison.parquet. {card_sentence(card)}"
    )


def _set_apart(summaries: Mapping[str, Summary], metrics: Sequence[str]) -> Iterator[str]:
    """Published values that were measured under other rules, and so stand in no cell."""
    for name, summary in summaries.items():
        apart = (summary.get("published") or {}).get("not_comparable", {})
        values = [
            f"{metric_name(metric)} {apart[metric]:.4f}" for metric in metrics if metric in apart
        ]
        if values:
            rules = ", ".join(
                f"{key} {value}" for key, value in summary["published"]["measured_with"].items()
            )
            yield f"Published for {name} under other rules ({rules}): {', '.join(values)}."


def _drawn(
    rows: Sequence[_Row], metrics: Sequence[str], headline: str, title: str, note: str
) -> Table:
    columns = ["Experiment", "Model", "Judge", "Seeds"]
    for metric in metrics:
        columns += [metric_name(metric), "Published (difference)", f"From {headline}"]
    cells = []
    for _, of_experiment in groupby(rows, key=lambda row: row["experiment"]):
        by_metric = {row["metric"]: row for row in of_experiment}
        any_row = by_metric[metrics[0]]
        line = [str(any_row[column]) for column in ("experiment", "model", "judge", "seeds")]
        for metric in metrics:
            line += _cells(by_metric[metric])
        cells.append([*line, "" if any_row["seconds"] is None else f"{any_row['seconds']:.0f}"])
    return Table(title, [*columns, "Seconds a run"], cells, note, n_labels=3)


def _cells(row: _Row) -> list[str]:
    """A metric's mean, the published value, and how far the row is from the headline."""
    mean = f"{row['mean']:.4f}" + ("" if row["sd"] is None else f" ± {row['sd']:.4f}")
    published = difference = ""
    if row["published"] is not None:
        published = f"{row['published']:.4f} ({row['from_published']:+.4f})"
    if row["p"] is not None:
        ends = "" if row["low"] is None else f" [{row['low']:+.4f}, {row['high']:+.4f}]"
        p = "p < .001" if row["p_adjusted"] < 0.001 else f"p = {row['p_adjusted']:.3f}"
        difference = f"{row['from_headline']:+.4f}{ends}, {p}"
    return [mean, published, difference]
