"""What a judge decided, in numbers: refinement.json."""

import logging
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


def describe_feedback(feedback: Path, users: Path, items: Path, source: Path, output: Path) -> None:
    """Counts labels, and compares them with the truth where the dataset comes with it.

    Candidates are counted by the published rule, whatever the judge was asked: so all judges are
    compared on the same ratings.

    Args:
        feedback: feedback.parquet.
        users: the users' codes and ids.
        items: the items' codes and ids.
        source: source.json of the dataset; its role ``truth``, if any, names a CSV with user_id,
            item_id and falsely_identified.
        output: refinement.json.

    Raises:
        TruthError: the truth cannot be read.
    """
    ratings = assign_roles(pl.DataFrame(read_table(feedback, FEEDBACK)))
    truth = read_json(source)["files"].get("truth")
    report = {
        "ratings": len(ratings),
        "train_positives": ratings.filter(
            pl.col("label").is_in((POSITIVE, FALSELY_IDENTIFIED))
        ).height,
        "labels": {label: ratings.filter(label=label).height for label in LABELS},
        "reasons": _table(ratings, "label", "reason"),
        "by_rating": _table(ratings, "rating", "label"),
        "candidates": _coverage(ratings.filter(role=CANDIDATE)),
        "truth": None
        if truth is None
        else _against(ratings, source.parent / truth["path"], users, items),
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


def _coverage(candidates: pl.DataFrame) -> dict[str, Any]:
    """How many candidates, and users with any, have a verdict; and how many verdicts are yes."""
    decided = candidates.filter(pl.col("label").is_in((FALSELY_IDENTIFIED, CONFIRMED)))
    picked = decided.filter(label=FALSELY_IDENTIFIED)
    return {
        "total": len(candidates),
        "decided": len(decided),
        "picked": len(picked),
        "yes_rate": _ratio(len(picked), len(decided)),
        "users": candidates["user"].n_unique(),
        "users_decided": decided["user"].n_unique(),
    }


def _against(ratings: pl.DataFrame, path: Path, users: Path, items: Path) -> dict[str, Any]:
    """The agreement with the truth over decided candidates, and the share of all truths found.

    ``found`` counts every low train rating: what a judge is not asked, or leaves undecided, is not
    found.
    """
    known = ratings.filter(pl.col("rating") < POSITIVE_RATING).join(
        _read_truth(path, users, items), on=("user", "item")
    )
    decided = known.filter(
        pl.col("role") == CANDIDATE, pl.col("label").is_in((FALSELY_IDENTIFIED, CONFIRMED))
    )
    yes = decided["label"] == FALSELY_IDENTIFIED
    hidden = known.filter("truth")
    found = hidden.filter(label=FALSELY_IDENTIFIED)
    result = {
        **agreement(yes.to_numpy(), decided["truth"].to_numpy()),
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


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
