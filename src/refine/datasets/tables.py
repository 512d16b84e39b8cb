"""Delimited and Parquet files as batches of text columns that know which row they came from.

Files are read in chunks that end at a line's end, so that memory does not grow with the file.
Everything stays text here: what a value means, and whether it is allowed, the readers decide,
and they can name file and row when they refuse one.
"""

import csv
import difflib
import io
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import polars as pl
import pyarrow.parquet as pq

log = logging.getLogger("refine.datasets")

CHUNK_BYTES = 32 * 2**20
"""Bytes of a delimited file that are parsed at once."""

BATCH_ROWS = 1_000_000
"""Rows of a Parquet file that are read at once."""


class DataError(ValueError):
    """The data cannot be used as they are; the message names file, row and remedy."""


@dataclass(frozen=True)
class Batch:
    """Some rows of a file, every column text or null."""

    frame: pl.DataFrame
    locate: Callable[[int], str]
    """Row of ``frame``, counted from 0 -> "file, row N" as a person would count."""


@dataclass(frozen=True)
class Layout:
    """How a delimited file is laid out.

    ``names`` are the columns of a file without header. ``latin1`` says that bytes which are no
    UTF-8 are Latin-1, as in files from before UTF-8 was common.
    """

    separator: str
    names: tuple[str, ...] | None = None
    quoted: bool = False
    latin1: bool = False


def read_batches(path: Path, layout: Layout) -> Iterator[Batch]:
    """Yields a delimited or Parquet file (by its suffix) in batches, in file order.

    Raises:
        DataError: the file is empty, undecodable, or has a row with too many fields.
    """
    if not path.stat().st_size:
        raise DataError(f"{path}: the file is empty; fetch or export it again")
    if path.suffix == ".parquet":
        return _parquet_batches(path)
    return _delimited_batches(path, layout)


def read_whole(path: Path, layout: Layout) -> Batch:
    """Reads a small file into one batch; errors as for ``read_batches``."""
    batches = list(read_batches(path, layout))
    if not batches:
        raise DataError(f"{path}: there are no rows; fetch or export the file again")
    frame = pl.concat([batch.frame for batch in batches])
    first = 1 if layout.names or path.suffix == ".parquet" else 2
    return Batch(frame, lambda row: f"{path}, row {row + first}")


def chunks(stream: BinaryIO, quoted: bool = False) -> Iterator[bytes]:
    """Yields a stream in pieces that end with whole lines.

    A line's end inside quotes is part of a field, so there a piece must hold an even number of
    quotes.
    """
    rest = b""
    while block := stream.read(CHUNK_BYTES):
        block = rest + block
        end = block.rfind(b"\n") + 1
        while quoted and end and block.count(b'"', 0, end) % 2:
            end = block.rfind(b"\n", 0, end - 1) + 1
        if end:
            yield block[:end]
        rest = block[end:]
    if rest:
        yield rest


def parse(
    chunk: bytes, layout: Layout, names: tuple[str, ...], locate: Callable[[int], str]
) -> pl.DataFrame:
    """Parses whole lines into text columns; short rows are filled with nulls.

    Raises:
        DataError: bytes that are no text, or a row with too many fields.
    """
    chunk = _utf8(chunk, layout, locate)
    separator = layout.separator
    if len(separator) > 1:  # polars splits at single bytes; this one is in no text
        chunk = chunk.replace(separator.encode(), b"\x1f")
        separator = "\x1f"
    # A header of our own: polars takes the number of columns from the first line.
    header = [f"column_{index}" for index in range(len(names))]
    try:
        frame = pl.read_csv(
            (separator.join(header) + "\n").encode() + chunk,
            separator=separator,
            quote_char='"' if layout.quoted else None,
            schema=dict.fromkeys(header, pl.String),
        )
    except pl.exceptions.PolarsError as error:
        for row, fields in enumerate(_fields(chunk.decode(), separator, layout.quoted)):
            if len(fields) > len(names):
                raise DataError(
                    f"{locate(row)}: {len(fields)} fields where {len(names)} are expected "
                    f"({', '.join(names)}); check the separator {layout.separator!r} and the quotes"
                ) from error
        first, last = locate(0), locate(chunk.count(b"\n") - 1)
        raise DataError(
            f"{first} to {last}: cannot be split into fields; check the separator "
            f"{layout.separator!r} and look for a quote that is not closed"
        ) from error
    return frame.rename(dict(zip(header, names, strict=True)))


def pick(names: list[str], wanted: str, path: Path, hint: str = "") -> str:
    """Returns ``wanted`` if a file has that column.

    Raises:
        DataError: it has not; the message lists its columns, the nearest first.
    """
    if wanted in names:
        return wanted
    raise DataError(
        f"{path}: there is no column {wanted!r}; it has {nearest(wanted, names)}"
        + (f"; {hint}" if hint else "")
    )


def nearest(wanted: str | None, names: Iterable[str]) -> str:
    """The names as a text, the likeliest first: what a message offers in place of ``wanted``."""

    def unlikeness(name: str) -> float:
        return -difflib.SequenceMatcher(None, str(wanted).lower(), name.lower()).ratio()

    return ", ".join(repr(name) for name in sorted(names, key=unlikeness))


def latin1_rows(path: Path) -> int:
    """How many rows of a small delimited file are no UTF-8."""
    if path.suffix == ".parquet":
        return 0
    rows = path.read_bytes().split(b"\n")
    return sum(row.decode(errors="replace").encode() != row for row in rows)


def _delimited_batches(path: Path, layout: Layout) -> Iterator[Batch]:
    names, first = layout.names, 1
    with path.open("rb") as stream:
        for chunk in chunks(stream, layout.quoted):
            if first == 1:
                chunk = chunk.removeprefix(b"\xef\xbb\xbf")
            if names is None:
                header, _, chunk = chunk.partition(b"\n")
                names, first = _header(header, layout, path), 2
                if not chunk:
                    continue

            def locate(row: int, first: int = first) -> str:
                return f"{path}, row {row + first}"

            frame = parse(chunk, layout, names, locate)
            yield Batch(frame, locate)
            first += len(frame)


def _header(line: bytes, layout: Layout, path: Path) -> tuple[str, ...]:
    text = _utf8(line, layout, lambda row: f"{path}, row {row + 1}").decode().rstrip("\r")
    names = [name.strip() for name in next(_fields(text, layout.separator, layout.quoted), [])]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"{path}, row 1: column {repeated[0]!r} appears twice; rename one of them")
    return tuple(names)


def _fields(text: str, separator: str, quoted: bool) -> Iterator[list[str]]:
    if quoted:
        return csv.reader(io.StringIO(text), delimiter=separator)
    return (line.split(separator) for line in text.split("\n"))


def _utf8(chunk: bytes, layout: Layout, locate: Callable[[int], str]) -> bytes:
    if chunk.isascii():
        return chunk
    try:
        chunk.decode()
    except UnicodeDecodeError as error:
        if layout.latin1:
            return chunk.decode("latin-1").encode()
        row = chunk.count(b"\n", 0, error.start)
        raise DataError(
            f"{locate(row)}: byte 0x{chunk[error.start]:02X} is not UTF-8; save the file as UTF-8, "
            "or set `encoding: latin-1` on this source"
        ) from error
    return chunk


def _parquet_batches(path: Path) -> Iterator[Batch]:
    try:
        parquet = pq.ParquetFile(path)
    except ValueError as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from error
    first = 1
    with parquet:
        for batch in parquet.iter_batches(BATCH_ROWS):
            frame = pl.DataFrame(batch)

            def locate(row: int, first: int = first) -> str:
                return f"{path}, row {row + first}"

            yield Batch(frame.select(_as_text(column) for column in frame), locate)
            first += len(frame)


def _as_text(column: pl.Series) -> pl.Series:
    """Numbers in their shortest spelling, dates as seconds, lists joined by a bar."""
    if column.dtype.is_temporal():
        return column.cast(pl.Datetime("ms")).dt.epoch("s").cast(pl.String)
    if column.dtype.is_float() and bool((column.drop_nulls() % 1 == 0).all()):
        return column.cast(pl.Int64).cast(pl.String)
    if isinstance(column.dtype, pl.List):
        return column.cast(pl.List(pl.String)).list.join("|")
    return column.cast(pl.String)
