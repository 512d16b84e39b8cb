"""Small tables for a log: what was found out, line by line, and what to do about it."""

import io
from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table

_WIDTH = 100


def draw(title: str, rows: Iterable[tuple[str, str]], notes: Iterable[str] = ()) -> str:
    """Draws a title, a table of names and values, and one line a note, as plain text."""
    table = Table(box=box.SIMPLE_HEAD, show_header=False, title=title, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    text = io.StringIO()
    console = Console(file=text, width=_WIDTH, color_system=None, markup=False, highlight=False)
    console.print(table)
    for note in notes:
        console.print(note)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip("\n")
