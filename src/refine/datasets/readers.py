"""Reads any supported source into the two tables that everything else starts from.

What may differ from file to file (encodings, spellings of years, blank lines, several ratings of
one item by one user) is repaired by fixed rules, counted in a report and logged. What cannot be
repaired without guessing is refused with file, row and remedy. Ratings stream through in batches:
memory holds one batch and 8 bytes a rating.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from refine.artifacts import interactions_schema, items_schema, replacing, write_json, write_table
from refine.datasets.formats import ITEM_COLUMNS, Source
from refine.datasets.tables import Batch, DataError, latin1_rows
from refine.digest import WHOLE_NUMBER, RatingsDigest

log = logging.getLogger("refine.datasets")

LOWEST_RATING, HIGHEST_RATING = 1, 5

_LACKING = {name: f"item_without_{name}" for name in ("title", "year", "genres")}
"""What may be required of an item, and how the ratings dropped for the lack of it are counted."""

_TRAILING_YEAR = r"^(.*\S)\s*\((\d{4})\)(?:\s*\([A-Z]+\))?\s*$"
"""A title's year; a mark such as "(V)", straight to video, may follow."""

_TIME_FORMATS = ("%Y-%m-%d", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S")


class _TextIdError(Exception):
    """An id is no whole number, so that all ids must be read as text."""


def read(
    source: Path,
    interactions: Path,
    items: Path,
    report: Path,
    *,
    reading: dict[str, Any],
    digest: str | None,
) -> None:
    """Reads a fetched source, checks it, and writes interactions.parquet and items.parquet.

    Interactions keep the order of the file (``order: file``) or are sorted by user and item
    (``order: sorted``). Items are those that have ratings, in ascending order of their ids.

    Args:
        source: source.json, beside which ``ratings.digest`` keeps the digest of the first reading.
        interactions: where the ratings go (``artifacts.interactions_schema``).
        items: where the items go (``artifacts.items_schema``).
        report: where the counts of everything dropped and repaired go (reading.json).
        reading: the settings ``require``, ``duplicates`` and ``order``.
        digest: what the parsed ratings must amount to (``refine.digest``); None if not known.

    Raises:
        DataError: the data must not be used as they are; nothing is written.
    """
    loaded = Source.load(source)
    listed, item_counts = _read_items(loaded, reading["require"])
    required = listed if reading["require"] else None
    with replacing(interactions) as temporary:
        try:
            ratings = _Ratings(loaded, required, temporary, pa.int64())
        except _TextIdError:
            log.info("%s: ids are text", loaded.dataset)
            ratings = _Ratings(loaded, required, temporary, pa.string())
        duplicates = _drop_duplicates(temporary, ratings.pairs, reading["duplicates"], loaded)
        if reading["order"] == "sorted":
            table = pl.read_parquet(temporary).sort("user_id", "item_id", maintain_order=True)
            write_table(table.to_arrow(), temporary, interactions_schema(ratings.id_type))
        rated = _rated_items(listed, temporary)
        found = ratings.digest.hexdigest()
        counts: dict[str, dict[str, int]] = {
            "ratings": {
                "read": ratings.n_read,
                "kept": ratings.n_kept - duplicates,
                "users": len(_unique(temporary, "user_id")),
                "items": rated.height,
            },
            "dropped": {**ratings.dropped, "duplicate": duplicates},
            "repaired": ratings.repaired,
            "item_file": item_counts,
        }
        record = {
            "dataset": loaded.dataset,
            "at": loaded.at,
            "reader": loaded.reader,
            "files": {role: [path.name for path in paths] for role, paths in loaded.files.items()},
            "ids": "text" if ratings.id_type == pa.string() else "whole numbers",
            "digest": found,
            "digest_checked_against": _check_digest(found, digest, source, loaded),
            **counts,
        }
        write_table(rated.to_arrow(), items, items_schema(ratings.id_type))
        write_json(record, report)
    for part, numbers in counts.items():
        text = ", ".join(f"{count:,} {name}" for name, count in numbers.items() if count)
        log.info("%s: %s: %s", loaded.dataset, part.replace("_", " "), text or "nothing")


class _Ratings:
    """One pass over the ratings: checked, filtered, digested, and written in row groups."""

    def __init__(
        self, source: Source, required: pl.DataFrame | None, output: Path, id_type: pa.DataType
    ) -> None:
        self.id_type = id_type
        self.digest = RatingsDigest()
        self.n_read = self.n_kept = 0
        self.dropped = dict.fromkeys(("blank", "item_not_listed", *_LACKING.values()), 0)
        self.repaired = {"rating_rounded": 0, "timestamp_missing": 0}
        self.pairs: list[NDArray[np.uint64]] = []
        """One key for each kept (user, item) pair, in the order of the rows written."""
        allowed = None if required is None else self._allowed(required)
        schema = interactions_schema(id_type)
        with pq.ParquetWriter(output, schema, compression="zstd") as writer:
            batches = source.format.ratings(source)
            for batch in tqdm(batches, f"reading {source.dataset}", unit="batch", disable=None):
                frame = self._check(batch, source.options.get("round"))
                pairs = self.digest.update(*frame.select("user_id", "item_id", "rating").to_arrow())
                self.n_read += len(frame)
                if allowed is not None:
                    frame, pairs = self._filter(frame, pairs, allowed)
                self.n_kept += len(frame)
                self.pairs.append(pairs)
                if len(frame):
                    writer.write_table(frame.to_arrow().cast(schema))
        files = ", ".join(map(str, source.files["ratings"]))
        if not self.n_read:
            raise DataError(f"{files}: there are no ratings; fetch or export the file again")
        if not self.n_kept:
            reasons = ", ".join(f"{name}: {count}" for name, count in self.dropped.items() if count)
            raise DataError(
                f"{files}: no rating is left ({reasons}); give the items what they lack or take it "
                "out of `reading.require`"
            )

    def _check(self, batch: Batch, rounding: str | None) -> pl.DataFrame:
        """The batch with numbers in place of text, without blank rows."""
        blank = batch.frame.select(pl.all_horizontal(pl.all().is_null())).to_series()
        if blank.any():
            rows, located = (~blank).arg_true(), batch.locate
            self.dropped["blank"] += int(blank.sum())
            batch = Batch(batch.frame[rows], lambda row: located(rows[row]))
        frame = batch.frame
        return pl.DataFrame(
            {
                "user_id": self._ids(batch, "user_id"),
                "item_id": self._ids(batch, "item_id"),
                "rating": self._whole_ratings(batch, rounding),
                "timestamp": self._timestamps(batch)
                if "timestamp" in frame.columns
                else pl.repeat(None, len(frame), dtype=pl.Int64, eager=True),
            }
        )

    def _ids(self, batch: Batch, name: str) -> pl.Series:
        ids = batch.frame[name]
        _refuse(batch, ids.is_null(), f"the {name} is missing; fill it in or delete the row")
        if self.id_type == pa.string():
            return ids.cast(pl.String)
        if not ids.dtype.is_integer() and not ids.str.contains(WHOLE_NUMBER).all():
            raise _TextIdError
        return ids.cast(pl.Int64)

    def _whole_ratings(self, batch: Batch, rounding: str | None) -> pl.Series:
        text = batch.frame["rating"]
        _refuse(batch, text.is_null(), "the rating is missing; fill it in or delete the row")
        ratings = text.cast(pl.Float64, strict=False)
        bad = ratings.is_null() | ~ratings.is_finite()
        _refuse(batch, bad, "the rating {!r} is no number; correct it or delete the row", text)
        fractional = ratings != ratings.floor()
        if rounding is None:
            remedy = "set `round: up` or `round: down` on this source to take half stars"
            _refuse(batch, fractional, f"the rating {{!r}} is not whole; {remedy}", text)
        else:
            self.repaired["rating_rounded"] += int(fractional.sum())
            ratings = ratings.ceil() if rounding == "up" else ratings.floor()
        outside = ~ratings.is_between(LOWEST_RATING, HIGHEST_RATING)
        remedy = "correct it, or bring the whole column to that scale first"
        _refuse(batch, outside, f"the rating {{!r}} is not between 1 and 5; {remedy}", text)
        return ratings.cast(pl.Int8)

    def _timestamps(self, batch: Batch) -> pl.Series:
        """Seconds since 1970; from whole or decimal seconds, dates, and dates with times."""
        text = batch.frame["timestamp"]
        missing = text.is_null()
        self.repaired["timestamp_missing"] += int(missing.sum())
        seconds = text.cast(pl.Int64, strict=False)
        for attempt in (None, *_TIME_FORMATS):
            if seconds.null_count() == missing.sum():
                return seconds
            parsed = (
                text.cast(pl.Float64, strict=False).floor().cast(pl.Int64, strict=False)
                if attempt is None
                else text.str.to_datetime(attempt, strict=False, time_unit="ms").dt.epoch("s")
            )
            seconds = seconds.fill_null(parsed)
        remedy = "use seconds since 1970, or dates like 2005-09-06 or 2005-09-06 23:59:59"
        unknown = seconds.is_null() & ~missing
        _refuse(batch, unknown, f"the timestamp {{!r}} is not understood; {remedy}", text)
        return seconds

    def _allowed(self, required: pl.DataFrame) -> pl.DataFrame:
        """Item ids in this pass's type, and what each lacks."""
        if self.id_type == pa.int64():  # where all rated ids are numbers, others have no ratings
            required = required.filter(pl.col("item_id").str.contains(WHOLE_NUMBER))
            required = required.with_columns(pl.col("item_id").cast(pl.Int64))
        return required.select("item_id", "lacks")

    def _filter(
        self, frame: pl.DataFrame, pairs: NDArray[np.uint64], allowed: pl.DataFrame
    ) -> tuple[pl.DataFrame, NDArray[np.uint64]]:
        complete = allowed.filter(pl.col("lacks").is_null())["item_id"]
        kept = frame["item_id"].is_in(complete.implode())
        if kept.all():
            return frame, pairs
        reasons = frame.filter(~kept).join(allowed, on="item_id", how="left")["lacks"]
        for reason, count in reasons.fill_null("item_not_listed").value_counts().iter_rows():
            self.dropped[reason] += count
        return frame.filter(kept), pairs[kept.to_numpy()]


def _read_items(source: Source, require: list[str]) -> tuple[pl.DataFrame, dict[str, int]]:
    """The listed items with text ids, and ``lacks``: the first required thing they are without."""
    batch = source.format.items(source)
    if batch is None:
        if require:
            raise DataError(
                f"the source {source.at} of {source.dataset} has no file of items, but "
                f"`reading.require` asks for {', '.join(require)}; name the file as `items`, or "
                "set `reading.require: []`"
            )
        nothing = pl.DataFrame(schema=dict.fromkeys(ITEM_COLUMNS, pl.String))
        batch = Batch(nothing.with_columns(pl.lit([]).alias("genres")), str)
    frame = batch.frame
    blank = frame.select(
        pl.all_horizontal(pl.col("item_id", "title", "year").is_null())
    ).to_series()
    missing = frame["item_id"].is_null() & ~blank
    _refuse(batch, missing, "the item_id is missing; fill it in or delete the row")
    frame = frame.filter(~blank)
    listed = frame.unique("item_id", keep="first", maintain_order=True)
    in_title = pl.col("title").str.extract(_TRAILING_YEAR, 2).cast(pl.Int16)
    in_column = _year(pl.col("year"))
    listed = listed.with_columns(
        year=pl.coalesce(in_column, in_title),
        not_a_number=pl.col("year").is_not_null() & in_column.is_null(),
        in_title=in_title,
    ).with_columns(
        title=pl.when(pl.col("year") == pl.col("in_title"))
        .then(pl.col("title").str.extract(_TRAILING_YEAR, 1))
        .otherwise(pl.col("title"))
    )
    lacking = {
        "title": pl.col("title").is_null(),
        "year": pl.col("year").is_null(),
        "genres": pl.col("genres").list.len().fill_null(0) == 0,
    }
    counts = {
        "listed": listed.height,
        "blank_rows": int(blank.sum()),
        "listed_again": len(frame) - listed.height,
        "year_not_a_number": int(listed["not_a_number"].sum()),
        "latin1_rows": latin1_rows(source.file("items")) if "items" in source.files else 0,
    }
    for name, condition in lacking.items():
        counts[f"without_{name}"] = int(listed.select(condition.sum()).item())
        if name in require and counts[f"without_{name}"] == len(listed):
            raise DataError(
                f"{source.file('items')}: no item has a value for {name}, which "
                "`reading.require` asks for; map its column, or take it out of `reading.require`"
            )
    for row in listed.filter("not_a_number").head(5).iter_rows(named=True):
        log.warning("%s: item %s has a year that is no number", source.dataset, row["item_id"])
    lacks = [
        pl.when(lacking[name]).then(pl.lit(reason))
        for name, reason in _LACKING.items()
        if name in require
    ]
    return listed.select(
        "item_id",
        "title",
        "year",
        pl.col("genres").fill_null([]),
        pl.coalesce(*lacks, pl.lit(None, pl.String)).alias("lacks"),
    ), counts


def _year(text: pl.Expr) -> pl.Expr:
    """A year of four digits, also from 1995.0 or 1995-03-01."""
    return text.str.extract(r"^([12]\d{3})(?:\.0|-\d\d-\d\d.*)?$", 1).cast(pl.Int16)


def _unique(path: Path, name: str) -> pl.Series:
    """The distinct values of a column of a Parquet file, in no order."""
    column = pl.scan_parquet(path).select(pl.col(name).unique())
    return column.collect(engine="streaming")[name]


def _rated_items(listed: pl.DataFrame, interactions: Path) -> pl.DataFrame:
    """The items with ratings in ascending order; one without title is called by its id."""
    ids = _unique(interactions, "item_id").sort()
    items = pl.DataFrame({"item_id": ids, "key": ids.cast(pl.String)})
    items = items.join(listed.rename({"item_id": "key"}), on="key", how="left").sort("item_id")
    return items.select(
        "item_id",
        pl.coalesce("title", "key").alias("title"),
        "year",
        pl.col("genres").fill_null([]),
    )


def _drop_duplicates(
    path: Path, pairs: list[NDArray[np.uint64]], policy: str, source: Source
) -> int:
    """Keeps one row of every (user, item) pair in a Parquet file; returns how many it dropped."""
    keys = np.concatenate(pairs)
    pairs.clear()
    ordered = np.sort(keys)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    del ordered
    if not len(repeated):
        return 0
    # Equal keys are equal pairs almost surely; looking at the ids makes that certain.
    suspects = np.flatnonzero(np.isin(keys, repeated))
    rows = pl.concat(
        [
            group.select("user_id", "item_id").with_columns(position=positions)
            for positions, group in _groups(path, suspects)
        ]
    )
    again = rows.filter(pl.struct("user_id", "item_id").is_duplicated())
    if policy == "refuse" and len(again):
        user_id, item_id, _ = again.row(0)
        places = _find(source, str(user_id), str(item_id))
        raise DataError(
            f"{places}: user {user_id} rates item {item_id} more than once; delete all but one, "
            "or set `reading.duplicates` to last or first"
        )
    keep: Literal["first", "last"] = "last" if policy == "last" else "first"
    stays = rows.unique(["user_id", "item_id"], keep=keep)["position"]
    dropped = np.setdiff1d(suspects, stays.to_numpy())
    with (
        replacing(path) as temporary,
        pq.ParquetFile(path) as parquet,
        pq.ParquetWriter(temporary, parquet.schema_arrow, compression="zstd") as writer,
    ):
        first = 0
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group)
            mask = np.ones(len(table), dtype=bool)
            mask[dropped[(dropped >= first) & (dropped < first + len(table))] - first] = False
            writer.write_table(table.filter(pa.array(mask)))
            first += len(table)
    return len(dropped)


def _groups(
    path: Path, positions: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], pl.DataFrame]]:
    """The rows of a Parquet file at ascending positions, row group by row group."""
    first = 0
    with pq.ParquetFile(path) as parquet:
        for group in range(parquet.num_row_groups):
            count = parquet.metadata.row_group(group).num_rows
            here = positions[(positions >= first) & (positions < first + count)]
            if len(here):
                frame = pl.DataFrame(parquet.read_row_group(group))
                yield here, frame[here - first]
            first += count


def _find(source: Source, user_id: str, item_id: str) -> str:
    """Where the file has this pair."""
    places: list[str] = []
    for batch in source.format.ratings(source):
        same = (batch.frame["user_id"].cast(pl.String) == user_id) & (
            batch.frame["item_id"].cast(pl.String) == item_id
        )
        places += [batch.locate(row) for row in same.arg_true()]
    return " and ".join(places[:3])


def _check_digest(found: str, registered: str | None, source: Path, loaded: Source) -> str:
    """Compares with the registry or the first reading; says which."""
    recorded = source.parent / "ratings.digest"
    if registered is not None:
        if found != registered:
            raise DataError(
                f"{loaded.dataset}: the ratings from {loaded.at} have the digest {found}, but the "
                f"configuration says {registered}: the files are damaged, cut short or of another "
                f"version; delete {source} and fetch them from another source"
            )
        return "registry"
    if loaded.at == "generated":
        return "nothing, as they are generated"
    if not recorded.exists():
        with replacing(recorded) as temporary:
            temporary.write_text(found + "\n", encoding="ascii")
    expected = recorded.read_text(encoding="ascii").strip()
    if found != expected:
        raise DataError(
            f"{loaded.dataset}: the ratings from {loaded.at} have the digest {found}, but at the "
            f"first reading it was {expected}; if the change is meant, delete {recorded}"
        )
    return "first reading"


def _refuse(batch: Batch, bad: pl.Series, message: str, values: pl.Series | None = None) -> None:
    """Raises for the first bad row, if there is one."""
    if not bad.any():
        return
    row = int(bad.arg_true()[0])
    raise DataError(
        f"{batch.locate(row)}: {message.format(values[row] if values is not None else None)}"
    )
