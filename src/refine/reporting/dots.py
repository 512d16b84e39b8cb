"""The comparison as a picture: a row an experiment, a dot where it stands, its published value."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from refine.reporting.svg import COLOURS, svg_figure
from refine.reporting.table import metric_name

_OURS, _PUBLISHED = COLOURS[:2]


def draw_comparison(
    rows: Sequence[Mapping[str, Any]], metrics: Sequence[str], output: Path, *, title: str
) -> None:
    """Draws a panel a metric, the experiments below each other, as SVG.

    Args:
        rows: of the COMPARISON table, the headline's first.
        metrics: which of its metrics to draw.
        output: the SVG file to write; the same rows give the same bytes.
        title: above the panels.
    """
    names = list(dict.fromkeys(map(_name, rows)))
    with svg_figure(output, 9.6, 1.1 + 0.2 * len(names)) as figure:
        figure.suptitle(title)
        panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for axes, metric in zip(panels, metrics, strict=True):
            _draw_panel(axes, [row for row in rows if row["metric"] == metric], metric)
        panels[0].set_yticks(range(len(names)), names)
        panels[0].invert_yaxis()
        figure.supxlabel(
            f"dots: means ± standard deviation over seeds; diamonds: published; line: {names[0]}",
            fontsize=8,
            color="0.4",
        )


def _name(row: Mapping[str, Any]) -> str:
    """The experiment, with what the model's label says beside its name."""
    _, space, remark = row["model"].partition(" ")
    return f"{row['experiment']}{space}{remark}"


def _draw_panel(axes: Axes, rows: Sequence[Mapping[str, Any]], metric: str) -> None:
    """One metric: a row of ``rows`` on each line."""
    lines = range(len(rows))
    means = [row["mean"] for row in rows]
    spreads = [row["sd"] or 0.0 for row in rows]
    axes.axvline(means[0], color="0.6", linewidth=0.8, linestyle="--")
    known = [line for line in lines if rows[line]["published"] is not None]
    published = [rows[line]["published"] for line in known]
    axes.scatter(published, known, marker="D", s=22, c="none", edgecolors=_PUBLISHED)
    axes.errorbar(means, lines, xerr=spreads, fmt="o", color=_OURS, markersize=4, linewidth=1.1)
    axes.set(title=metric_name(metric))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="both", color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
