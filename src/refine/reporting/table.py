"""Prints metrics.json files as a table: ``python -m refine.reporting.table FILE... [--markdown]``.

One file gives a row a metric; several give a row a file, and are refused where their evaluation
cards differ.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console
from rich.table import Table as RichTable

from refine.artifacts import ArtifactError, read_json
from refine.evaluation.card import MASKS, Card, CardError, require_same_card

Summary: TypeAlias = Mapping[str, Any]
"""What ``refine.evaluation.summary.summarise`` writes."""

MISSING = "-"
_HEADERS = {"recall": "Recall", "ndcg": "NDCG", "mrr": "MRR", "hit_rate": "Hit rate"}


@dataclass(frozen=True)
class Table:
    """Text cells; the first ``n_labels`` columns are text, the others numbers."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""
    n_labels: int = 1

    def markdown(self) -> str:
        """A table as GitHub renders it."""
        rulers = ["---" if place < self.n_labels else "---:" for place in range(len(self.columns))]
        lines = [f"**{self.title}**", ""] if self.title else []
        for row in (self.columns, rulers, *self.rows):
            cells = (cell.replace("|", "\\|") for cell in row)
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join([*lines, *(["", self.note] if self.note else [])])

    def rich(self) -> RichTable:
        """A table for a terminal."""
        table = RichTable(
            title=self.title,
            title_justify="left",
            caption=self.note or None,
            caption_justify="left",
        )
        for place, column in enumerate(self.columns):
            table.add_column(column, justify="left" if place < self.n_labels else "right")
        for row in self.rows:
            table.add_row(*row)
        return table


def read_summaries(paths: Sequence[Path]) -> dict[str, Summary]:
    """Reads metrics.json files that may stand in one table.

    Returns:
        The files' contents, by path.

    Raises:
        ArtifactError: a file is not there, or is no metrics.json over seeds.
        CardError: their evaluation cards differ.
    """
    summaries: dict[str, Summary] = {}
    for path in paths:
        if not path.is_file():
            raise ArtifactError(f"{path}: no such file; `snakemake {path}` makes it")
        summary = read_json(path)
        if not isinstance(summary, dict) or not {"headline", "metrics", "card"} <= set(summary):
            raise ArtifactError(
                f"{path}: is no metrics.json over seeds (results/<dataset>/<experiment>/)"
            )
        summaries[str(path)] = summary
    require_same_card({name: summary["card"] for name, summary in summaries.items()})
    return summaries


def result_table(summary: Summary) -> Table:
    """One experiment: a row a metric at its largest cut-off, the published value beside it."""
    level = f"{100 * summary['confidence']:g}%"
    largest = f"@{max(summary['card']['k'])}"
    shown = {name: row for name, row in summary["metrics"].items() if name.endswith(largest)}
    columns = ["Metric", "Mean", "SD", f"{level} interval"]
    rows = [
        [metric_name(name), _number(row["mean"]), _number(row["sd"]), _interval(row["interval"])]
        for name, row in shown.items()
    ]
    if any("published" in row for row in shown.values()):
        columns.append("Published")
        for cells, row in zip(rows, shown.values(), strict=True):
            cells.append(_number(row.get("published")))
    seeds = summary["seeds"]
    title = f"{_name(summary)}, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
    return Table(title, columns, rows, card_sentence(summary["card"]))


def comparison_table(summaries: Sequence[Summary], metrics: Sequence[str] | None = None) -> Table:
    """Several experiments: a row each, and of each metric ours and the published value.

    Args:
        summaries: as ``read_summaries`` gives them, so that their cards agree.
        metrics: the metrics to show; by default Recall and NDCG at the largest cut-off.

    Raises:
        ArtifactError: a file has no such metric.
    """
    card = summaries[0]["card"]
    metrics = metrics or list(summaries[0]["metrics"])[:2]  # a summary's first are its headline
    labels = ["experiment", "judge"]
    if len({str(summary.get("model")) for summary in summaries}) > 1:
        labels.append("model")
    columns = [*(label.capitalize() for label in labels), "Seeds"]
    for name in metrics:
        columns += [f"{metric_name(name)} ± SD", "published"]
    rows = []
    for summary in summaries:
        row = [*(str(summary.get(label, MISSING)) for label in labels), str(len(summary["seeds"]))]
        for name in metrics:
            if name not in summary["metrics"]:
                raise ArtifactError(
                    f"{name}: no such metric; there are {', '.join(summary['metrics'])}"
                )
            values = summary["metrics"][name]
            spread = "" if values["sd"] is None else f" ± {_number(values['sd'])}"
            row += [f"{_number(values['mean'])}{spread}", _number(values.get("published"))]
        rows.append(row)
    title = ", ".join(dict.fromkeys(str(summary.get("dataset", "")) for summary in summaries))
    return Table(title, columns, rows, card_sentence(card), n_labels=len(labels))


def judge_table(summary: Summary) -> Table | None:
    """How well each judge finds the falsely identified negatives, where the truth is known."""
    rows = [
        [name, *(_number(judge["truth"][key]) for key in ("yes_rate", "precision", "recall"))]
        for name, judge in summary.get("judges", {}).items()
        if judge.get("truth")
    ]
    if not rows:
        return None
    return Table(
        title="Judges against the truth",
        columns=["Judge", "Yes rate", "Precision", "Recall"],
        rows=rows,
        note="A judge that does not beat the controls all, random and popularity knows nothing.",
    )


def card_sentence(card: Card) -> str:
    """The evaluation card in one sentence."""
    skipped = f", {card['users_skipped']} without one skipped" if card["users_skipped"] else ""
    validation = "masked" if card["mask_validation"] else "not masked"
    return (
        f"{card['users_scored']} users with a held-out positive{skipped}; all "
        f"{card['candidate_items']} items ranked, {MASKS[card['mask']]}; validation positives "
        f"{validation}."
    )


def _name(summary: Summary) -> str:
    named = [str(summary[key]) for key in ("dataset", "experiment") if key in summary]
    made_by = [f"{key} {summary[key]}" for key in ("model", "judge") if key in summary]
    return ", ".join(named) + (f" ({', '.join(made_by)})" if made_by else "")


def metric_name(name: str) -> str:
    """A metric as people write it: ``recall@20`` is Recall@20."""
    metric, _, k = name.partition("@")
    return f"{_HEADERS.get(metric, metric.capitalize())}@{k}"


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4f}"


def _interval(ends: Sequence[float] | None) -> str:
    return MISSING if ends is None else f"{ends[0]:.4f} to {ends[1]:.4f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m refine.reporting.table", description="Prints metrics.json files as a table."
    )
    parser.add_argument("files", nargs="+", type=Path, help="results/.../metrics.json")
    parser.add_argument("--markdown", action="store_true", help="Markdown instead of a drawn table")
    parser.add_argument("--metrics", nargs="+", metavar="M", help="e.g. recall@20 precision@5")
    options = parser.parse_args(arguments)
    try:
        summaries = list(read_summaries(options.files).values())
        if len(summaries) == 1 and not options.metrics:
            tables = [result_table(summaries[0]), judge_table(summaries[0])]
        else:
            tables = [comparison_table(summaries, options.metrics)]
    except (ArtifactError, CardError) as error:
        print(error, file=sys.stderr)
        return 1
    if options.markdown:
        print("\n\n".join(table.markdown() for table in tables if table))
    else:
        for table in filter(None, tables):
            drawn, console = table.rich(), Console()
            # A number is never cut, whatever the width of the terminal.
            unbounded = console.options.update_width(1000)
            console.width = max(console.width, console.measure(drawn, options=unbounded).maximum)
            console.print(drawn)
    return 0


if __name__ == "__main__":
    sys.exit(main())
