"""The training curves of an experiment: loss and validation metrics of each seed, by epoch."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes

from refine.artifacts import HISTORY, ArtifactError, read_table
from refine.reporting.svg import COLOURS, svg_figure

_PANELS = {
    "loss": "Training loss",
    "recall@20": "Validation Recall@20",
    "ndcg@20": "Validation NDCG@20",
}


def draw_curves(
    histories: dict[int, Path], output: Path, *, title: str, warmup_epochs: int | None = None
) -> None:
    """Draws one line a seed, and a dot at the epoch that is kept, as SVG.

    Args:
        histories: history.parquet of each seed.
        output: the SVG file to write; the same histories give the same bytes.
        title: above the panels.
        warmup_epochs: draws a line after this epoch, where similar items are mined.

    Raises:
        ArtifactError: a history breaks its schema, or is empty.
    """
    tables: dict[int, pa.Table] = {}
    for seed, path in sorted(histories.items()):
        tables[seed] = read_table(path, HISTORY)
        if not tables[seed].num_rows:
            raise ArtifactError(f"{path}: has no epoch")
    with svg_figure(output, 9.6, 3.2) as figure:
        figure.suptitle(title)
        for axes, (column, label) in zip(
            figure.subplots(1, len(_PANELS)), _PANELS.items(), strict=True
        ):
            _draw_panel(axes, tables, column, label, warmup_epochs)
        line = "" if warmup_epochs is None else "; dashed line: the end of the warm-up"
        figure.supxlabel(f"dot: the epoch that is kept{line}", fontsize=8, color="0.4")
        figure.axes[0].legend(frameon=False, title="Seed")


def _draw_panel(
    axes: Axes, tables: dict[int, pa.Table], column: str, label: str, warmup_epochs: int | None
) -> None:
    for place, (seed, table) in enumerate(tables.items()):
        colour = COLOURS[place % len(COLOURS)]
        epochs, values = (table.column(name).to_numpy() for name in ("epoch", column))
        axes.plot(epochs, values, color=colour, linewidth=1.1, label=str(seed))
        if column != "loss":
            recall = table.column("recall@20").to_numpy()
            best = int(np.flatnonzero(recall == recall.max())[-1])  # as early stopping has it
            axes.plot(epochs[best], values[best], "o", color=colour, markersize=4)
    if warmup_epochs is not None:
        axes.axvline(warmup_epochs, color="0.6", linewidth=0.8, linestyle="--")
    axes.set(xlabel="Epoch", title=label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", linewidth=0.6)
