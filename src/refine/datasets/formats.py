"""The file formats of rating data: each gives batches of ratings and one table of items, as text.

Ratings have the columns user_id, item_id, rating and, where known, timestamp; items have item_id,
title, year and genres (a list). What is missing is null. Nothing is judged here except the shape
of a file; ``refine.datasets.readers`` decides what a value means and whether it is allowed.
"""

import bisect
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import polars as pl

from refine.artifacts import read_json
from refine.datasets.tables import (
    CHUNK_BYTES,
    Batch,
    DataError,
    Layout,
    chunks,
    nearest,
    parse,
    pick,
    read_batches,
    read_whole,
)

RATING_COLUMNS = ("user_id", "item_id", "rating", "timestamp")
ITEM_COLUMNS = ("item_id", "title", "year", "genres")

ML100K_GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary",
    "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi",
    "Thriller", "War", "Western",
)  # fmt: skip
"""What the 19 flags of u.item mean, in order (its u.genre)."""

NO_GENRES = "(no genres listed)"
"""How MovieLens spells an empty genre list."""


class Format(NamedTuple):
    """How to read one file format."""

    ratings: "Callable[[Source], Iterator[Batch]]"
    items: "Callable[[Source], Batch | None]"
    """None where the source has no file of items."""


@dataclass(frozen=True)
class Source:
    """Fetched files, as source.json describes them."""

    dataset: str
    at: str
    reader: str
    format: Format
    options: Mapping[str, Any]
    files: Mapping[str, tuple[Path, ...]]
    """Paths by role; only ``ratings`` may have several, read one after the other."""

    @staticmethod
    def load(path: Path) -> "Source":
        """Reads source.json.

        Raises:
            DataError: a file that it names is gone, or there is no such reader.
        """
        record = read_json(path)
        reader = record["reader"]
        if reader not in READERS:
            raise DataError(
                f"{path}: there is no reader {reader!r}; set `reader` to {nearest(reader, READERS)}"
            )
        files = {}
        for role, entry in record["files"].items():
            entries = entry if isinstance(entry, list) else [entry]
            files[role] = tuple(path.parent / part["path"] for part in entries)
        for file in (file for paths in files.values() for file in paths):
            if not file.is_file():
                raise DataError(f"{file}: the file is gone; delete {path} and fetch it again")
        return Source(
            record["dataset"], record["at"], reader, READERS[reader], record["options"], files
        )

    def file(self, role: str) -> Path:
        """The one file with this role."""
        if len(self.files.get(role, ())) != 1:
            raise DataError(
                f"the source {self.at} of {self.dataset} needs exactly one file {role!r} for the "
                f"reader {self.reader!r}; it names {', '.join(self.files)}"
            )
        return self.files[role][0]


def _ml100k_ratings(source: Source) -> Iterator[Batch]:
    return read_batches(source.file("ratings"), Layout("\t", RATING_COLUMNS))


def _ml100k_items(source: Source) -> Batch:
    names = ("item_id", "title", "released", "released_on_video", "url", *ML100K_GENRES)
    batch = read_whole(source.file("items"), Layout("|", names, latin1=True))
    flags = [pl.when(pl.col(name) == "1").then(pl.lit(name)) for name in ML100K_GENRES]
    frame = batch.frame.select(
        "item_id",
        "title",
        pl.lit(None, pl.String).alias("year"),
        pl.concat_list(flags).list.drop_nulls().alias("genres"),
    )
    return Batch(frame, batch.locate)


def _movielens_ratings(source: Source) -> Iterator[Batch]:
    return read_batches(source.file("ratings"), Layout("::", RATING_COLUMNS))


def _movielens_items(source: Source) -> Batch:
    layout = Layout("::", ("item_id", "title", "genres"), latin1=True)
    return _with_genres(read_whole(source.file("items"), layout), "|")


def _recbole_ratings(source: Source) -> Iterator[Batch]:
    columns = {name: (name,) for name in RATING_COLUMNS} | _columns(source)
    for batch in read_batches(source.file("ratings"), Layout("\t")):
        yield _select(_untyped(batch), columns, RATING_COLUMNS, source.file("ratings"))


def _recbole_items(source: Source) -> Batch | None:
    if "items" not in source.files:
        return None
    columns = {
        "item_id": ("item_id",),
        "title": ("title", "movie_title", "name"),
        "year": ("year", "release_year"),
        "genres": ("genres", "genre", "class", "categories"),
    } | _columns(source)
    batch = _untyped(read_whole(source.file("items"), Layout("\t")))
    return _with_genres(_select(batch, columns, ITEM_COLUMNS, source.file("items")), " ")


def _table_layout(source: Source, path: Path) -> Layout:
    separator = source.options.get("separator") or ("," if path.suffix == ".csv" else "\t")
    return Layout(separator, quoted=True, latin1=source.options.get("encoding") == "latin-1")


def _table_ratings(source: Source) -> Iterator[Batch]:
    columns = {name: (name,) for name in RATING_COLUMNS} | _columns(source)
    for path in source.files["ratings"]:
        for batch in read_batches(path, _table_layout(source, path)):
            yield _select(batch, columns, RATING_COLUMNS, path)


def _table_items(source: Source) -> Batch | None:
    if "items" not in source.files:
        return None
    path = source.file("items")
    columns = {name: (name,) for name in ITEM_COLUMNS} | _columns(source)
    batch = _select(read_whole(path, _table_layout(source, path)), columns, ITEM_COLUMNS, path)
    return _with_genres(batch, source.options.get("genre_separator") or "|")


def _netflix_ratings(source: Source) -> Iterator[Batch]:
    layout = Layout(",")
    names = ("user_id", "rating", "timestamp")
    movie = None
    for lines, locate in _netflix_lines(source):
        frame = parse(lines, layout, names, locate).with_columns(
            is_movie=pl.col("user_id").str.ends_with(":").fill_null(False)
        )
        movies = pl.col("user_id").str.strip_suffix(":").cast(pl.Int64, strict=False)
        frame = frame.with_columns(item_id=pl.when("is_movie").then(movies))
        bad = (frame["is_movie"] & frame["item_id"].is_null()).arg_true()
        if len(bad):
            raise DataError(
                f"{locate(bad[0])}: {frame['user_id'][bad[0]]!r} is no movie number; the Netflix "
                "Prize files start each movie's ratings with a line like `17:`"
            )
        frame = frame.with_columns(
            pl.col("item_id").forward_fill().fill_null(pl.lit(movie, pl.Int64))
        )
        movie = frame["item_id"][-1]
        blank = frame.select(pl.all_horizontal(pl.col(names).is_null())).to_series()
        rows = (~frame["is_movie"] & ~blank).arg_true()

        def locate_rating(
            row: int, rows: pl.Series = rows, locate: Callable[[int], str] = locate
        ) -> str:
            return locate(rows[row])

        yield Batch(frame[rows].select(RATING_COLUMNS), locate_rating)


def _netflix_lines(source: Source) -> Iterator[tuple[bytes, Callable[[int], str]]]:
    """Pieces of whole lines in ascending order of movies, and how to name their rows."""
    for path in source.files["ratings"]:
        if path.suffix == ".tar":
            yield from _netflix_movies(path)
            continue
        first = 1
        with path.open("rb") as stream:
            for lines in chunks(stream):

                def locate(row: int, path: Path = path, first: int = first) -> str:
                    return f"{path}, row {row + first}"

                yield lines, locate
                first += lines.count(b"\n")


def _netflix_movies(path: Path) -> Iterator[tuple[bytes, Callable[[int], str]]]:
    """The movies of training_set.tar in ascending order, many to a piece."""
    with tarfile.open(path, "r:") as archive:
        members = [member for member in archive if member.isfile() and member.size]
        if not members:
            raise DataError(f"{path}: the archive holds no files; fetch it again")
        members.sort(key=lambda member: member.name)
        bodies: list[bytes] = []
        starts, titles, size = [0], list[str](), 0
        for number, member in enumerate(members, start=1):
            body = cast(Any, archive.extractfile(member)).read()
            bodies.append(body if body.endswith(b"\n") else body + b"\n")
            titles.append(member.name)
            starts.append(starts[-1] + bodies[-1].count(b"\n"))
            size += len(body)
            if size >= CHUNK_BYTES or number == len(members):

                def locate(row: int, starts: list[int] = starts, titles: list[str] = titles) -> str:
                    index = bisect.bisect_right(starts, row) - 1
                    return f"{path}, {titles[index]}, row {row - starts[index] + 1}"

                yield b"".join(bodies), locate
                bodies, starts, titles, size = [], [0], [], 0


def _netflix_items(source: Source) -> Batch:
    # A title may hold commas, so that the file is one column of lines first.
    path = source.file("items")
    batch = read_whole(path, Layout("\x1f", ("line",), latin1=True))
    line = pl.col("line").str.strip_chars_end("\r").str.splitn(",", 3)
    fields = [line.struct[index].alias(name) for index, name in enumerate(ITEM_COLUMNS[:3])]
    # The file has id, year, title.
    frame = batch.frame.select(fields).rename({"title": "year", "year": "title"})
    frame = frame.with_columns(pl.col("year").replace("NULL", None))
    genres_path = source.file("genres")
    genres = read_whole(genres_path, Layout(",")).frame
    for name in ("movieId", "genres"):
        pick(genres.columns, name, genres_path)
    genres = genres.select(item_id="movieId", genres="genres").unique(
        "item_id", keep="first", maintain_order=True
    )
    frame = frame.join(genres, on="item_id", how="left", maintain_order="left")
    return _with_genres(Batch(frame, batch.locate), "|")


READERS: Mapping[str, Format] = {
    "movielens-100k": Format(_ml100k_ratings, _ml100k_items),
    "movielens": Format(_movielens_ratings, _movielens_items),
    "recbole": Format(_recbole_ratings, _recbole_items),
    "netflix-prize": Format(_netflix_ratings, _netflix_items),
    "table": Format(_table_ratings, _table_items),
}
"""The formats by the name that a source's ``reader`` gives."""


def _columns(source: Source) -> dict[str, tuple[str, ...]]:
    """The file's names of our columns, as the option ``columns`` gives them."""
    columns: Mapping[str, str | list[str]] = source.options.get("columns") or {}
    known = (*RATING_COLUMNS, *ITEM_COLUMNS)
    for name in columns:
        if name not in known:
            raise DataError(
                f"{source.dataset}: `columns` maps {name!r}; set {nearest(name, known)}"
            )
    return {
        name: (names,) if isinstance(names, str) else tuple(names)
        for name, names in columns.items()
    }


def _select(
    batch: Batch, columns: Mapping[str, tuple[str, ...]], wanted: tuple[str, ...], path: Path
) -> Batch:
    """The wanted columns under our names, stripped of blanks; optional ones become null."""
    needed = ("user_id", "item_id", "rating") if "rating" in wanted else ("item_id",)
    selected = []
    for name in wanted:
        found = [candidate for candidate in columns[name] if candidate in batch.frame.columns]
        named_by_user = columns[name] != (name,) and len(columns[name]) == 1
        if not found and (name in needed or named_by_user):
            pick(batch.frame.columns, columns[name][0], path, f"set `columns: {{{name}: ...}}`")
        text = pl.col(found[0]).str.strip_chars() if found else pl.lit(None, pl.String)
        selected.append(pl.when(text != "").then(text).alias(name))
    return Batch(batch.frame.select(selected), batch.locate)


def _untyped(batch: Batch) -> Batch:
    """RecBole's headers are ``name:type``; the types say nothing that we need."""
    return Batch(batch.frame.rename(lambda name: name.split(":")[0]), batch.locate)


def _with_genres(batch: Batch, separator: str) -> Batch:
    text = pl.when(pl.col("genres") != NO_GENRES).then(pl.col("genres"))
    genres = text.str.split(separator).list.eval(pl.element().str.strip_chars())
    genres = genres.list.eval(pl.element().filter(pl.element() != ""))
    frame = batch.frame.with_columns(genres.alias("genres"))
    if "year" not in frame.columns:
        frame = frame.with_columns(pl.lit(None, pl.String).alias("year"))
    return Batch(frame.select(ITEM_COLUMNS), batch.locate)
