"""The questions to a judge: three lists a user, cut into prompts of a few candidates each.

Step 1 shows the user's favourites, step 2 a worked example with its answer, step 3 the candidates,
which are answered by number (ReFINe, section 3; numbers in place of titles, as titles repeat).
Train ratings are the only ratings that this module ever sees.
"""

import logging
import re
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
from tqdm import tqdm

from refine.artifacts import POSITIVE_RATING, PROMPTS, RATINGS, read_table, replacing
from refine.feedback.hashing import draw_keys, id_keys
from refine.feedback.roles import CANDIDATE, EXAMPLE, FAVOURITE, assign_roles

log = logging.getLogger("refine.prompts")

FIELDS = ("favourites", "example", "example_answer", "candidates")
"""Placeholders of a template, written in braces."""

NOTHING = "none"
"""Shown where a list or an answer is empty."""

_ROWS_WRITTEN_AT_ONCE = 1024


class TemplateError(ValueError):
    """A prompt template cannot be used."""


def write_prompts(
    train: Path,
    users: Path,
    items: Path,
    template: Path,
    output: Path,
    *,
    prompts: dict[str, Any],
) -> None:
    """Writes the prompts of all users; users without a candidate have none.

    Favourites come by popularity in train, most rated first, then by item. The other two lists are
    shuffled by draws that depend on the seed, the user's id and the item's id alone: another user,
    or another user's ratings, change no example and no chunk.

    Args:
        train: the train ratings.
        users: the users' codes and ids.
        items: the items' codes, ids, titles and genres.
        template: text with the placeholders FIELDS, see `read_template`.
        output: prompts.parquet, sorted by user, then chunk. Chunks count from 1.
        prompts: settings ``chunk`` (candidates a prompt, at most) and ``seed``.

    Raises:
        TemplateError: the template cannot be used.
    """
    pieces = read_template(template)
    shown = pl.DataFrame(read_table(items)).select("item", "item_id", line=_item_line())
    ratings = (
        assign_roles(pl.DataFrame(read_table(train, RATINGS)))
        .with_columns(popularity=pl.len().over("item"))
        .join(pl.DataFrame(read_table(users)).select("user", "user_id"), on="user")
        .join(shown, on="item")
    )
    chunks = _chunks(ratings, size=prompts["chunk"], seed=prompts["seed"])
    contexts = chunks.select("user").unique().join(_favourites(ratings), on="user", how="left")
    contexts = contexts.join(_examples(ratings, seed=prompts["seed"]), on="user", how="left")
    contexts = contexts.with_columns(pl.exclude("user").fill_null(NOTHING))

    text = pl.concat_str([pl.col(name) if is_field else pl.lit(name) for name, is_field in pieces])
    with (
        replacing(output) as temporary,
        pq.ParquetWriter(temporary, PROMPTS, compression="zstd") as writer,
        tqdm(total=len(chunks), desc="prompts", unit="prompt", disable=None) as bar,
    ):
        # Each prompt of a user repeats the user's lists: in blocks, so that memory stays bounded.
        for block in chunks.iter_slices(_ROWS_WRITTEN_AT_ONCE):
            rows = block.join(contexts, on="user", maintain_order="left").with_columns(
                text=text, candidates="codes", tokens=pl.lit(None, pl.Int32)
            )
            writer.write_table(rows.select(PROMPTS.names).to_arrow().cast(PROMPTS))
            bar.update(len(block))
    log.info(
        "%d prompts with %d candidates for %d users, of %d",
        len(chunks),
        chunks["codes"].list.len().sum(),
        chunks["user"].n_unique(),
        ratings["user"].n_unique(),
    )


def read_template(path: Path) -> list[tuple[str, bool]]:
    """Cuts a template into literal texts and the placeholders between them.

    Values are put between the pieces and never searched again, so a title that looks like a
    placeholder stays a title.

    Returns:
        Pairs (text, False) or (field, True), in order.

    Raises:
        TemplateError: it is no UTF-8 text, or has an unknown placeholder, or no ``{candidates}``.
    """
    try:
        text = path.read_text(encoding="utf-8").rstrip("\n")
    except UnicodeDecodeError as error:
        raise TemplateError(f"{path}: the prompt template is not UTF-8 text: {error}") from error
    split = re.split(r"\{(\w+)\}", text)
    pieces = [(piece, index % 2 == 1) for index, piece in enumerate(split) if piece]
    fields = [piece for piece, is_field in pieces if is_field]
    known = ", ".join(f"{{{name}}}" for name in FIELDS)
    for name in fields:
        if name not in FIELDS:
            raise TemplateError(
                f"{path}: unknown placeholder {{{name}}}; a template may use {known}"
            )
    if "candidates" not in fields:
        raise TemplateError(f"{path}: {{candidates}} is missing; a template may use {known}")
    return pieces


def _item_line() -> pl.Expr:
    """An item as the prompts show it: ``"Title" <Genre, Genre>``, always one line."""
    genres = pl.col("genres").list.eval(_harmless(pl.element())).list.join(", ")
    brackets = pl.when(genres != "").then(pl.format(" <{}>", genres)).otherwise(pl.lit(""))
    return pl.concat_str(pl.lit('"'), _harmless(pl.col("title")), pl.lit('"'), brackets)


def _harmless(text: pl.Expr) -> pl.Expr:
    """Text that cannot leave its line, its quotes or its brackets, nor be a control token.

    Runs of spaces, line breaks, control and invisible formatting characters become one space;
    double quotes become single, and angle brackets round.
    """
    return (
        text.str.replace_all(r"[\p{C}\p{Z}]+", " ")
        .str.strip_chars(" ")
        .str.replace_many(['"', "<", ">"], ["'", "(", ")"])
    )


def _favourites(ratings: pl.DataFrame) -> pl.DataFrame:
    """One row a user with any: user, favourites (text)."""
    return (
        ratings.filter(role=FAVOURITE)
        .sort("user", "popularity", "item", descending=[False, True, False])
        .group_by("user", maintain_order=True)
        .agg(favourites=("- " + pl.col("line")).str.join("\n"))
    )


def _examples(ratings: pl.DataFrame, seed: int) -> pl.DataFrame:
    """One row a user with any: user, example and example_answer (texts)."""
    number = pl.int_range(1, pl.len() + 1)
    liked = number.filter(pl.col("rating") >= POSITIVE_RATING)
    return (
        _shuffled(ratings.filter(role=EXAMPLE), seed)
        .group_by("user", maintain_order=True)
        .agg(
            example=pl.format("{}. {}", number, "line").str.join("\n"),
            example_answer=liked.cast(pl.String).str.join(", "),
        )
        .with_columns(pl.col("example_answer").replace("", NOTHING))
    )


def _chunks(ratings: pl.DataFrame, size: int, seed: int) -> pl.DataFrame:
    """One row a prompt: prompt_id, user, chunk, and its candidates as codes and as text."""
    number = pl.int_range(1, pl.len() + 1)
    listed = _shuffled(ratings.filter(role=CANDIDATE), seed)
    return (
        listed.with_columns(chunk=(pl.int_range(pl.len()).over("user") // size + 1).cast(pl.Int32))
        .group_by("user", "user_id", "chunk", maintain_order=True)
        .agg(
            pl.col("item").alias("codes"),
            candidates=pl.format("{}. {}", number, "line").str.join("\n"),
        )
        .with_columns(prompt_id=pl.format("{}/{}", "user_id", "chunk"))
    )


def _shuffled(ratings: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Sorted by user, and within a user in a random order that depends on seed and ids alone.

    Sorting by independent random keys is a uniform shuffle, whatever the order before it.
    """
    keys = draw_keys(seed, "order", id_keys(ratings["user_id"]), id_keys(ratings["item_id"]))
    return ratings.with_columns(order=keys).sort("user", "order", "item")
