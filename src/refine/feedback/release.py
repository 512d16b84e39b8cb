"""The `release` judge: the labels that the paper's authors published, on our train ratings."""

from pathlib import Path

import polars as pl

from refine.artifacts import (
    CONFIRMED,
    FALSELY_IDENTIFIED,
    POSITIVE,
    POSITIVE_RATING,
    RATINGS,
    UNDECIDED,
    read_json,
    read_table,
)
from refine.feedback.labels import LabelError, write_feedback

_COLUMNS = ["user_id:token", "item_id:token", "rating:float"]

_PICKED = 4.5
_NOT_PICKED = 0.5


def label_from_release(train: Path, users: Path, items: Path, source: Path, output: Path) -> None:
    """Labels the train ratings as published.

    The published rating is 4.5 where the LLM picked the item (falsely identified), 0.5 where it did
    not (confirmed), and the user's own rating elsewhere: 4 and 5 positive, 1 confirmed, 2 and 3
    undecided.

    Args:
        train: the train ratings, which have to be those of the release, row for row.
        users: the users' codes and ids.
        items: the items' codes and ids.
        source: source.json of the release, which names the file of the role ``labels``.
        output: feedback.parquet.

    Raises:
        LabelError: the labels do not fit the train ratings; the message names the file and the row.
    """
    path = source.parent / read_json(source)["files"]["labels"]["path"]
    published = _read(path)
    rows = (
        pl.DataFrame(read_table(train, RATINGS))
        .select("user", "item", "rating")
        .join(_ids(users, "user"), on="user")
        .join(_ids(items, "item"), on="item")
        .join(published, on=("user_id", "item_id"), how="full", coalesce=True)
    )
    _check(rows, path, train)
    value, positive = pl.col("published"), pl.col("rating") >= POSITIVE_RATING
    label = (
        pl.when(positive)
        .then(pl.lit(POSITIVE))
        .when(value == _PICKED)
        .then(pl.lit(FALSELY_IDENTIFIED))
        .when((value == _NOT_PICKED) | (value == 1))
        .then(pl.lit(CONFIRMED))
        .otherwise(pl.lit(UNDECIDED))
    )
    reason = (
        pl.when(positive)
        .then(pl.lit("rating"))
        .when(value == 1)
        .then(pl.lit("lowest_rating"))
        .otherwise(pl.lit("published"))
    )
    write_feedback(rows.with_columns(label=label, reason=reason), output)


def _read(path: Path) -> pl.DataFrame:
    """The published rows: user_id and item_id as text, published rating, line of the file."""
    try:
        rows = pl.read_csv(path, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise LabelError(f"{path}: cannot be read as CSV: {error}") from error
    if rows.columns != _COLUMNS:
        raise LabelError(
            f"{path}: the columns are {', '.join(rows.columns)}; published labels have "
            f"{', '.join(_COLUMNS)}"
        )
    rows = rows.rename(dict(zip(_COLUMNS, ("user_id", "item_id", "published"), strict=True)))
    rows = rows.with_row_index("line", offset=2)
    values = rows.with_columns(value=pl.col("published").cast(pl.Float64, strict=False))
    wrong = values.filter(
        ~pl.col("value").is_in((0.5, 1.0, 2.0, 3.0, 4.0, 4.5, 5.0)) | pl.col("value").is_null()
    )
    if len(wrong):
        line, value = wrong.select("line", "published").row(0)
        raise LabelError(
            f"{path}: line {line}: {value} is no published rating; there are "
            f"0.5, 1, 2, 3, 4, 4.5 and 5"
        )
    return values.select("user_id", "item_id", "line", published="value")


def _ids(path: Path, code: str) -> pl.DataFrame:
    """Codes and ids, the ids as text."""
    table = pl.DataFrame(read_table(path))
    return table.select(code, pl.col(f"{code}_id").cast(pl.String))


def _check(rows: pl.DataFrame, path: Path, train: Path) -> None:
    remedy = (
        "the published labels fit the published split only: keep the original files and the "
        "settings of `reading`, `subset` and `split`, or take another judge"
    )
    repeated = rows.filter(pl.struct("user_id", "item_id").is_duplicated())
    if len(repeated):
        user, item = repeated.select("user_id", "item_id").row(0)
        raise LabelError(f"{path}: user {user} has item {item} more than once")
    extra = rows.filter(pl.col("rating").is_null())
    missing = rows.filter(pl.col("published").is_null())
    if len(extra) or len(missing):
        first = missing if len(missing) else extra
        user, item = first.select("user_id", "item_id").row(0)
        raise LabelError(
            f"{path}: {len(missing)} train ratings of {train} have no published label, and "
            f"{len(extra)} labels no train rating, first item {item} of user {user}; {remedy}"
        )
    judged = pl.col("published").is_in((_PICKED, _NOT_PICKED))
    fits = (
        pl.when(judged)
        .then(pl.col("rating").is_in((2, 3)))
        .otherwise(pl.col("published") == pl.col("rating"))
    )
    wrong = rows.filter(~fits).sort("line")
    if len(wrong):
        line, value, rating = wrong.select("line", "published", "rating").row(0)
        raise LabelError(
            f"{path}: line {line}: published rating {value:g} does not fit the user's own, "
            f"{rating} ({len(wrong)} such rows); {remedy}"
        )
