"""How an item is shown to a judge, whatever its title says."""

import polars as pl

LONGEST = 100
"""Characters of a title, and of an item's genres together; what is longer ends in an ellipsis."""


def quoted_title() -> pl.Expr:
    """The title in double quotes, from the column title; it is what an answer by title names."""
    return pl.concat_str(pl.lit('"'), _bounded(harmless(pl.col("title"))), pl.lit('"'))


def item_line() -> pl.Expr:
    """An item in one line, ``"Title" <Genre, Genre>``, from the columns title and genres."""
    genres = _bounded(pl.col("genres").list.eval(harmless(pl.element())).list.join(", "))
    return pl.concat_str(
        quoted_title(), pl.when(genres != "").then(pl.format(" <{}>", genres)).otherwise(pl.lit(""))
    )


def harmless(text: pl.Expr) -> pl.Expr:
    """Text that cannot leave its line, its quotes or its brackets, nor be a control token.

    Runs of spaces, line breaks, control and invisible formatting characters become one space;
    double quotes become single; angle and square brackets, which models' own marks such as
    ``<|im_end|>`` and ``[INST]`` are written with, become round.
    """
    return (
        text.str.replace_all(r"[\p{C}\p{Z}]+", " ")
        .str.strip_chars(" ")
        .str.replace_many(['"', "<", ">", "[", "]"], ["'", "(", ")", "(", ")"])
    )


def _bounded(text: pl.Expr) -> pl.Expr:
    cut = pl.concat_str(text.str.head(LONGEST - 1).str.strip_chars_end(" "), pl.lit("…"))
    return pl.when(text.str.len_chars() > LONGEST).then(cut).otherwise(text)
