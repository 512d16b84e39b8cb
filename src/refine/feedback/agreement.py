"""What a judge decided, in numbers: refinement.json."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from refine.artifacts import (
    CONFIRMED,
    FALSELY_IDENTIFIED,
    FEEDBACK,
    LABELS,
    POSITIVE,
    POSITIVE_RATING,
    UNDECIDED,
    read_json,
    read_table,
    write_json,
)
from refine.feedback.roles import CANDIDATE, assign_roles

log = logging.getLogger("refine.agreement")

_YES = ("1", "true")
_NO = ("0", "false")


class TruthError(ValueError):
    """The file that says which low ratings were falsely identified cannot be used."""


def describe_feedback(
    feedback: Path,
    users: Path,
    items: Path,
    source: Path,
    output: Path,
    *,
    others: Mapping[str, Path] | None = None,
) -> None:
    """Counts labels, and compares them with the truth, where there is any, and with other judges'.

    Candidates are counted by the published rule, whatever the judge was asked: so all judges are
    compared on the same ratings.

    Args:
        feedback: feedback.parquet.
        users: the users' codes and ids.
        items: the items' codes and ids.
        source: source.json of the dataset; its role ``truth``, if any, names a CSV with user_id,
            item_id and falsely_identified.
        output: refinement.json.
        others: feedback.parquet of other judges on the same ratings, by name.

    Raises:
        TruthError: the truth cannot be read.
    """
    ratings = assign_roles(pl.DataFrame(read_table(feedback, FEEDBACK)))
    candidates = ratings.filter(role=CANDIDATE)
    truth = read_json(source)["files"].get("truth")
    report = {
        "ratings": len(ratings),
        "train_positives": ratings.filter(
            pl.col("label").is_in((POSITIVE, FALSELY_IDENTIFIED))
        ).height,
        "labels": {label: ratings.filter(label=label).height for label in LABELS},
        "reasons": _table(ratings, "label", "reason"),
        "by_rating": _table(ratings, "rating", "label"),
        "candidates": {
            **_coverage(candidates),
            "users": candidates["user"].n_unique(),
            "users_decided": _decided(candidates)["user"].n_unique(),
            "undecided": _counts(candidates.filter(label=UNDECIDED)["reason"]),
        },
        "candidates_by_rating": {
            str(rating): _coverage(candidates.filter(rating=rating))
            for rating in candidates["rating"].unique().sort()
        },
        "truth": None
        if truth is None
        else _against(ratings, source.parent / truth["path"], users, items),
        "other_judges": {
            name: _beside(candidates, pl.DataFrame(read_table(path, FEEDBACK)))
            for name, path in (others or {}).items()
        },
    }
    write_json(report, output)


def agreement(decided: NDArray[np.bool_], true: NDArray[np.bool_]) -> dict[str, float | int | None]:
    """How well yes/no decisions agree with another set of them.

    Cohen's kappa is (p - e) / (1 - e), with p the share of equal decisions and e the share expected
    of two independent judges with the same yes rates: 0 says that one knows nothing of the other.

    Args:
        decided: the decisions, [n].
        true: what they are compared with, [n].

    Returns:
        n, base_rate (share of yes in ``true``), yes_rate, precision, recall, f1 and kappa; None
        where a number is undefined.
    """
    n = len(true)
    both = int(np.sum(decided & true))
    yes, base = int(decided.sum()), int(true.sum())
    equal = both + n - yes - base + both
    # n² e: in whole numbers nothing is lost to rounding.
    expected = yes * base + (n - yes) * (n - base)
    return {
        "n": n,
        "base_rate": _ratio(base, n),
        "yes_rate": _ratio(yes, n),
        "precision": _ratio(both, yes),
        "recall": _ratio(both, base),
        "f1": _ratio(2 * both, yes + base),
        "kappa": _ratio(equal * n - expected, n * n - expected),
    }


def _decided(ratings: pl.DataFrame) -> pl.DataFrame:
    """The ratings with a verdict, which is in the column ``yes``."""
    verdicts = ratings.filter(pl.col("label").is_in((FALSELY_IDENTIFIED, CONFIRMED)))
    return verdicts.with_columns(yes=pl.col("label") == FALSELY_IDENTIFIED)


def _coverage(candidates: pl.DataFrame) -> dict[str, Any]:
    """How many candidates have a verdict, and how many verdicts are yes."""
    decided = _decided(candidates)
    picked = int(decided["yes"].sum())
    return {
        "total": len(candidates),
        "decided": len(decided),
        "picked": picked,
        "yes_rate": _ratio(picked, len(decided)),
    }


def _beside(candidates: pl.DataFrame, other: pl.DataFrame) -> dict[str, Any]:
    """The agreement with another judge over the candidates that both decided."""
    both = _decided(candidates).join(
        _decided(other).select("user", "item", other="yes"), on=("user", "item")
    )
    found = agreement(both["yes"].to_numpy(), both["other"].to_numpy())
    # Neither judge is the truth, so that precision and recall would say nothing.
    return {
        "n": found["n"],
        "yes_rate": found["yes_rate"],
        "their_yes_rate": found["base_rate"],
        "kappa": found["kappa"],
    }


def _against(ratings: pl.DataFrame, path: Path, users: Path, items: Path) -> dict[str, Any]:
    """The agreement with the truth over decided candidates, and the share of all truths found.

    ``found`` counts every low train rating: what a judge is not asked, or leaves undecided, is not
    found.
    """
    known = ratings.filter(pl.col("rating") < POSITIVE_RATING).join(
        _read_truth(path, users, items), on=("user", "item")
    )
    decided = _decided(known.filter(role=CANDIDATE))
    hidden = known.filter("truth")
    found = hidden.filter(label=FALSELY_IDENTIFIED)
    result = {
        **agreement(decided["yes"].to_numpy(), decided["truth"].to_numpy()),
        "found": _ratio(len(found), len(hidden)),
        "low_ratings": len(known),
    }
    log.info("against the truth: %s", result)
    return result


def _read_truth(path: Path, users: Path, items: Path) -> pl.DataFrame:
    """The truth in codes: user, item, truth (bool)."""
    try:
        rows = pl.read_csv(path, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise TruthError(f"{path}: cannot be read as CSV: {error}") from error
    absent = [
        name for name in ("user_id", "item_id", "falsely_identified") if name not in rows.columns
    ]
    if absent:
        raise TruthError(
            f"{path}: column {', '.join(absent)} is missing; it has {', '.join(rows.columns)}"
        )
    rows = rows.with_row_index("line", offset=2)
    value = pl.col("falsely_identified").str.to_lowercase()
    wrong = rows.filter(~value.is_in(_YES + _NO) | value.is_null())
    if len(wrong):
        line, text = wrong.select("line", "falsely_identified").row(0)
        raise TruthError(f"{path}: line {line}: falsely_identified is {text}; it has to be 0 or 1")
    rows = rows.unique(("user_id", "item_id"), keep="first", maintain_order=True)
    for code, ids in (("user", users), ("item", items)):
        table = pl.DataFrame(read_table(ids)).select(code, pl.col(f"{code}_id").cast(pl.String))
        rows = rows.join(table, on=f"{code}_id")
    return rows.select("user", "item", truth=value.is_in(_YES))


def _table(ratings: pl.DataFrame, rows: str, columns: str) -> dict[str, dict[str, int]]:
    """Counts of each pair of values that occurs, sorted."""
    table: dict[str, dict[str, int]] = {}
    for row, column, count in ratings.group_by(rows, columns).len().sort(rows, columns).iter_rows():
        table.setdefault(str(row), {})[str(column)] = count
    return table


def _counts(values: pl.Series) -> dict[str, int]:
    """How often each value occurs, sorted by value."""
    return dict(sorted(values.value_counts().iter_rows()))


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
