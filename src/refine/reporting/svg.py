"""Charts as SVG files: one style, and the same bytes whenever the same is drawn."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from refine.artifacts import replacing

# Okabe and Ito's colours, which stay apart for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


@contextmanager
def svg_figure(output: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure to draw on, which is written, whole or not at all, when the block ends.

    Args:
        output: the SVG file.
        width: in inches.
        height: in inches.
    """
    # Text stays text: small files, and fonts of the reader's choice. The salt fixes the ids.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "refine", "font.size": 9}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        with replacing(output) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
