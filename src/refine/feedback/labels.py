"""From answers, or from the ratings alone, to a label for every train rating."""

import logging
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from refine.artifacts import (
    ANSWER_STATUSES,
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
    [ANSWERS.field(name) for name in ("prompt_id", "status", "picked", "left_out", "scores")]
)

_RATED = pa.schema([RATINGS.field(name) for name in ("user", "item", "rating")])
_LABEL, _REASON = pl.Enum(LABELS), pl.Categorical()

_UNUSABLE = tuple(status for status in ANSWER_STATUSES if status != ANSWERED)

_UNASKED_IN_DOUBT = 3
"""A rating from here up that no prompt asks about stays undecided whatever the settings say."""


_REMEDIES = {
    "unparseable": "Unparseable: see in the column `text` what the model says instead; set the "
    "judge's `strategy: score`, or `form: chat` for a model made for chats, or take another model.",
    "truncated": "Truncated: see in the column `text` what the model goes on about; lower "
    "prompts.chunk, or set the judge's `strategy: score`.",
    "missing": "Missing: the log of answer_prompts says why; delete the answers and run again, "
    "which asks about these alone.",
}
"""What to do about candidates without a usable answer, by cause."""


class LabelError(ValueError):
    """Answers do not fit the prompts or the train ratings, or too few of them can be used."""


def label_answers(
    train: Path,
    prompts: Path,
    answers: list[Path],
    output: Path,
    *,
    labels: dict[str, Any],
    max_undecided: float,
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
        labels: settings ``unasked_low_ratings`` (undecided or confirmed) and ``threshold``: above
            it a candidate with a score counts as picked, whatever the judge itself picked; None
            leaves it to the judge.
        max_undecided: the share of the candidates asked about that may lack a usable answer.

    Raises:
        LabelError: the files do not belong together, or more candidates than ``max_undecided`` lack
            a usable answer; the answers are kept.
    """
    ratings = pl.DataFrame(read_table(train, RATINGS)).select("user", "item", "rating")
    verdicts = _verdicts(prompts, answers, labels["threshold"])
    known = verdicts.join(ratings, on=("user", "item"), how="left")
    foreign = known.filter(pl.col("rating").is_null() | (pl.col("rating") >= POSITIVE_RATING))
    if len(foreign):
        user, item = foreign.select("user", "item").row(0)
        raise LabelError(
            f"{prompts}: {len(foreign)} candidates are no low ratings of {train}, the first is "
            f"item {item} of user {user}; they are of another split: delete them and rerun"
        )
    _require_answers(verdicts, max_undecided, answers)
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
    ratings = pl.DataFrame(read_table(train, _RATED)).with_columns(
        label=label.cast(_LABEL), reason=reason.cast(_REASON)
    )
    write_feedback(ratings, output)


def write_feedback(labelled: pl.DataFrame, output: Path) -> None:
    """Writes feedback.parquet and logs how many ratings have which label.

    Args:
        labelled: columns of FEEDBACK, in any order of the rows.
        output: feedback.parquet.
    """
    # Kept as codes, as texts of 100 million ratings would take gigabytes more.
    coded = labelled.select(
        "user", "item", "rating", pl.col("label").cast(_LABEL), pl.col("reason").cast(_REASON)
    ).sort("user", "item")
    counts = dict(coded["label"].value_counts().iter_rows())
    write_table(coded.to_arrow(), output, FEEDBACK)
    log.info(", ".join(f"{counts.get(name, 0)} {name}" for name in LABELS))


def _verdicts(prompts: Path, answers: list[Path], threshold: float | None) -> pl.DataFrame:
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
    scores = pl.col("scores")
    unscored = answered.filter(
        (scores.list.len() != pl.col("candidates").list.len())
        | scores.list.eval(pl.element().is_nan()).list.any()
    )
    if len(unscored):
        raise LabelError(
            f"{_names(answers)}: the answer to prompt {unscored['prompt_id'][0]} does not have "
            f"one number a candidate as its scores; delete the answers and run again"
        )
    item, status = pl.col("item"), pl.col("status").fill_null("missing")
    picked = item.is_in(pl.col("picked"))
    if threshold is not None:
        picked = (
            pl.when(pl.col("score").is_null()).then(picked).otherwise(pl.col("score") > threshold)
        )
    no_scores = pl.lit(None, pl.Float32).repeat_by(pl.col("candidates").list.len())
    verdicts = (
        answered.with_columns(item="candidates", score=scores.fill_null(no_scores))
        .explode("item", "score", empty_as_null=False)
        .select(
            "user",
            "item",
            reason=pl.when(status != ANSWERED)
            .then(status)
            .when(item.is_in(pl.col("left_out")))
            .then(pl.lit("left_out"))
            .when(picked)
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


def _require_answers(verdicts: pl.DataFrame, max_undecided: float, answers: list[Path]) -> None:
    """Refuses labels that rest on too few usable answers; what a judge left out does not count."""
    counts = {cause: verdicts.filter(reason=cause).height for cause in _UNUSABLE}
    unusable = sum(counts.values())
    asked = len(verdicts) - verdicts.filter(reason="left_out").height
    causes = ", ".join(f"{count:,} {cause}" for cause, count in counts.items() if count)
    if unusable:
        log.info("%d of %d candidates have no usable answer: %s", unusable, asked, causes)
    if unusable > max_undecided * asked:
        remedies = " ".join(_REMEDIES[cause] for cause, count in counts.items() if count)
        raise LabelError(
            f"{unusable:,} of {asked:,} candidates ({unusable / asked:.1%}) have no usable answer "
            f"({causes}), and refine.max_undecided allows {max_undecided:.1%}. All answers are "
            f"kept, in {_names(answers)}. {remedies} Or raise refine.max_undecided: these "
            f"candidates then stay undecided"
        )


def _names(paths: list[Path]) -> str:
    return ", ".join(str(path) for path in paths)
