"""From answers, or from the ratings alone, to a label for every train rating."""

import logging
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from refine.artifacts import (
    ANSWERED,
    ANSWERS,
    CONFIRMED,
    FALSELY_IDENTIFIED,
    FEEDBACK,
    LABELS,
    POSITIVE,
    POSITIVE_RATING,
    PROMPTS,
    RATINGS,
    UNDECIDED,
    read_table,
    write_table,
)

log = logging.getLogger("refine.labels")

_QUESTIONS = pa.schema([PROMPTS.field(name) for name in ("prompt_id", "user", "candidates")])
_VERDICTS = pa.schema(
    [ANSWERS.field(name) for name in ("prompt_id", "status", "picked", "left_out")]
)

_UNASKED_IN_DOUBT = 3
"""A rating from here up that no prompt asks about stays undecided whatever the settings say."""


class LabelError(ValueError):
    """Answers, prompts and train ratings do not belong together."""


def label_answers(
    train: Path, prompts: Path, answers: list[Path], output: Path, *, labels: dict[str, Any]
) -> None:
    """Labels the train ratings by a judge's answers.

    Rated 4 or 5: positive. Picked: falsely identified; asked about and not picked: confirmed.
    Without a verdict: undecided, with the cause as reason. Of the ratings that no prompt asks
    about, 1s are confirmed; 2s are what ``unasked_low_ratings`` says where the judge gave a verdict
    on anything of their user (so it is in the published labels), else undecided.

    Args:
        train: the train ratings.
        prompts: prompts.parquet.
        answers: the answers of all shards.
        output: feedback.parquet.
        labels: setting ``unasked_low_ratings``, undecided or confirmed.

    Raises:
        LabelError: the files do not belong together.
    """
    ratings = pl.DataFrame(read_table(train, RATINGS)).select("user", "item", "rating")
    verdicts = _verdicts(prompts, answers)
    known = verdicts.join(ratings, on=("user", "item"), how="left")
    foreign = known.filter(pl.col("rating").is_null() | (pl.col("rating") >= POSITIVE_RATING))
    if len(foreign):
        user, item = foreign.select("user", "item").row(0)
        raise LabelError(
            f"{prompts}: {len(foreign)} candidates are no low ratings of {train}, the first is "
            f"item {item} of user {user}; they are of another split: delete them and rerun"
        )
    rating, reason = pl.col("rating"), pl.col("reason")
    ratings = ratings.join(verdicts, on=("user", "item"), how="left").with_columns(
        reason=pl.when(rating >= POSITIVE_RATING)
        .then(pl.lit("rating"))
        .when(reason.is_null() & (rating == 1))
        .then(pl.lit("lowest_rating"))
        .otherwise(reason.fill_null("not_asked"))
    )
    judged = reason.is_in(("picked", "not_picked")).any().over("user")
    unasked = pl.when(judged & (rating < _UNASKED_IN_DOUBT)).then(
        pl.lit(labels["unasked_low_ratings"])
    )
    label = (
        pl.when(reason == "rating")
        .then(pl.lit(POSITIVE))
        .when(reason == "picked")
        .then(pl.lit(FALSELY_IDENTIFIED))
        .when(reason.is_in(("not_picked", "lowest_rating")))
        .then(pl.lit(CONFIRMED))
        .when(reason == "not_asked")
        .then(unasked)
        .otherwise(None)
        .fill_null(UNDECIDED)
    )
    write_feedback(ratings.with_columns(label=label), output)


def label_by_threshold(train: Path, output: Path, *, at_least: int) -> None:
    """Labels by the rating alone: at least ``at_least`` and below 4 is falsely identified.

    Args:
        train: the train ratings.
        output: feedback.parquet.
        at_least: 1 to 4; with 4 every low rating is confirmed.

    Raises:
        LabelError: the threshold is not 1, 2, 3 or 4.
    """
    if at_least not in range(1, POSITIVE_RATING + 1):
        raise LabelError(f"at_least: {at_least} is no threshold; take 1, 2, 3 or 4")
    rating = pl.col("rating")
    label = (
        pl.when(rating >= POSITIVE_RATING)
        .then(pl.lit(POSITIVE))
        .when(rating >= at_least)
        .then(pl.lit(FALSELY_IDENTIFIED))
        .otherwise(pl.lit(CONFIRMED))
    )
    reason = (
        pl.when(rating >= POSITIVE_RATING).then(pl.lit("rating")).otherwise(pl.lit("threshold"))
    )
    ratings = pl.DataFrame(read_table(train, RATINGS)).with_columns(label=label, reason=reason)
    write_feedback(ratings, output)


def write_feedback(labelled: pl.DataFrame, output: Path) -> None:
    """Writes feedback.parquet and logs how many ratings have which label.

    Args:
        labelled: columns of FEEDBACK, in any order of the rows.
        output: feedback.parquet.
    """
    write_table(labelled.select(FEEDBACK.names).sort("user", "item").to_arrow(), output, FEEDBACK)
    log.info(", ".join(f"{labelled.filter(label=name).height} {name}" for name in LABELS))


def _verdicts(prompts: Path, answers: list[Path]) -> pl.DataFrame:
    """One row a candidate: user, item, and why it has the label that it will have (``reason``)."""
    questions = pl.DataFrame(read_table(prompts, _QUESTIONS))
    given = pl.concat([pl.DataFrame(read_table(path, _VERDICTS)) for path in answers])
    twice = given.filter(pl.col("prompt_id").is_duplicated())
    if len(twice):
        raise LabelError(
            f"prompt {twice['prompt_id'][0]} has several answers in {_names(answers)}; "
            f"delete the answers and run again"
        )
    unknown = given.join(questions, on="prompt_id", how="anti")
    if len(unknown):
        raise LabelError(
            f"{_names(answers)}: {len(unknown)} answers are to prompts that {prompts} does "
            f"not have, the first to {unknown['prompt_id'][0]}; delete the answers and run again"
        )
    answered = questions.join(given, on="prompt_id", how="left")
    outside = answered.filter(
        pl.col("picked").list.concat("left_out").list.set_difference("candidates").list.len() > 0
    )
    if len(outside):
        raise LabelError(
            f"{_names(answers)}: the answer to prompt {outside['prompt_id'][0]} names items that "
            f"are not among its candidates; delete the answers and run again"
        )
    item = pl.col("item")
    verdicts = (
        answered.with_columns(item="candidates")
        .explode("item", empty_as_null=False)
        .select(
            "user",
            "item",
            reason=pl.when(pl.col("status").fill_null("missing") != ANSWERED)
            .then(pl.col("status").fill_null("missing"))
            .when(item.is_in(pl.col("left_out")))
            .then(pl.lit("left_out"))
            .when(item.is_in(pl.col("picked")))
            .then(pl.lit("picked"))
            .otherwise(pl.lit("not_picked")),
        )
    )
    repeated = verdicts.filter(pl.struct("user", "item").is_duplicated())
    if len(repeated):
        user, item_code = repeated.select("user", "item").row(0)
        raise LabelError(
            f"{prompts}: item {item_code} is asked about more than once for user {user}; "
            f"delete the prompts and run again"
        )
    return verdicts


def _names(paths: list[Path]) -> str:
    return ", ".join(str(path) for path in paths)
