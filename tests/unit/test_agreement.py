from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from feedback_data import write_feedback, write_source, write_split
from hypothesis import given
from hypothesis import strategies as st

from refine.artifacts import (
    CONFIRMED,
    FALSELY_IDENTIFIED,
    FEEDBACK,
    POSITIVE,
    UNDECIDED,
    read_json,
    write_table,
)
from refine.feedback.agreement import TruthError, agreement, describe_feedback

# A generous and a strict user: items 3 and 4 are candidates of the first, 1, 2 and 3 of the second.
ROWS = [
    ("a", "v", 5, POSITIVE, True),
    ("a", "w", 1, CONFIRMED, False),
    ("a", "x", 2, UNDECIDED, True),
    ("a", "y", 3, FALSELY_IDENTIFIED, True),
    ("a", "z", 3, CONFIRMED, True),
    ("a", "zz", 4, POSITIVE, False),
    ("b", "v", 1, CONFIRMED, True),
    ("b", "w", 2, FALSELY_IDENTIFIED, False),
    ("b", "x", 3, CONFIRMED, False),
    ("b", "y", 2, UNDECIDED, True),
]

Describe = Callable[..., Any]


@pytest.fixture
def describe(tmp_path: Path) -> Describe:
    split = write_split(tmp_path, [row[:3] for row in ROWS])
    users, items = sorted({row[0] for row in ROWS}), sorted({row[1] for row in ROWS})
    coded = [(users.index(u), items.index(i), rating, label) for u, i, rating, label, _ in ROWS]
    feedback = write_feedback(tmp_path / "feedback.parquet", coded)

    def run(
        truth: list[str] | None = None,
        header: str = "user_id,item_id,falsely_identified",
        **others: list[str],
    ) -> Any:
        files = {}
        if truth is not None:
            files["truth"] = tmp_path / "truth.csv"
            files["truth"].write_text("\n".join([header, *truth]) + "\n")
        source = write_source(tmp_path / "source.json", **files)
        output = tmp_path / "refinement.json"
        paths = {
            name: write_feedback(
                tmp_path / f"{name}.parquet",
                [(*row[:3], label) for row, label in zip(coded, labels, strict=True)],
            )
            for name, labels in others.items()
        }
        describe_feedback(feedback, split.users, split.items, source, output, others=paths)
        return read_json(output)

    return run


def truth_lines(yes: str = "1", no: str = "0") -> list[str]:
    return [f"{u},{i},{yes if hidden else no}" for u, i, _, _, hidden in ROWS]


def test_counts(describe: Describe) -> None:
    report = describe()
    assert report["ratings"] == 10
    assert report["train_positives"] == 4
    assert report["labels"] == {
        POSITIVE: 2,
        FALSELY_IDENTIFIED: 2,
        CONFIRMED: 4,
        UNDECIDED: 2,
    }
    assert report["reasons"][CONFIRMED] == {"given": 4}
    assert report["by_rating"] == {
        "1": {CONFIRMED: 2},
        "2": {FALSELY_IDENTIFIED: 1, UNDECIDED: 2},
        "3": {CONFIRMED: 2, FALSELY_IDENTIFIED: 1},
        "4": {POSITIVE: 1},
        "5": {POSITIVE: 1},
    }
    assert report["candidates"] == {
        "total": 5,
        "decided": 4,
        "picked": 2,
        "yes_rate": 0.5,
        "users": 2,
        "users_decided": 2,
        "undecided": {"given": 1},
    }
    assert report["candidates_by_rating"] == {
        "2": {"total": 2, "decided": 1, "picked": 1, "yes_rate": 1.0},
        "3": {"total": 3, "decided": 3, "picked": 1, "yes_rate": 1 / 3},
    }
    assert report["truth"] is None
    assert report["other_judges"] == {}


def test_undecided_candidates_are_counted_by_cause(tmp_path: Path) -> None:
    split = write_split(tmp_path, [("a", item, 3) for item in range(6)] + [("a", 6, 5)])
    reasons = ["picked", "missing", "unparseable", "missing", "left_out", "truncated"]
    labels = [FALSELY_IDENTIFIED] + [UNDECIDED] * 5
    rows = [(0, item, 3, label) for item, label in enumerate(labels)] + [(0, 6, 5, POSITIVE)]
    feedback = write_feedback(tmp_path / "feedback.parquet", rows)
    table = pl.read_parquet(feedback).with_columns(reason=pl.Series([*reasons, "rating"]))
    write_table(table.to_arrow(), feedback, FEEDBACK)
    output = tmp_path / "refinement.json"
    describe_feedback(
        feedback, split.users, split.items, write_source(tmp_path / "source.json"), output
    )
    causes = {"left_out": 1, "missing": 2, "truncated": 1, "unparseable": 1}
    assert read_json(output)["candidates"]["undecided"] == causes
    assert read_json(output)["reasons"][UNDECIDED] == causes


def test_other_judges_are_compared_over_what_both_decided(describe: Describe) -> None:
    # The candidates are a-y (yes), a-z (no), b-w (yes), b-x (no) and b-y (undecided).
    mine = [label for *_, label, _ in ROWS]
    opposite = {FALSELY_IDENTIFIED: CONFIRMED, CONFIRMED: FALSELY_IDENTIFIED}
    # Another judge that says yes to a-y and b-y, no to a-z and b-w, and nothing on b-x.
    theirs = dict(zip([row[:2] for row in ROWS], mine, strict=True)) | {
        ("b", "w"): CONFIRMED,
        ("b", "x"): UNDECIDED,
        ("b", "y"): FALSELY_IDENTIFIED,
    }
    found = describe(
        same=mine,
        against=[opposite.get(label, label) for label in mine],
        another=list(theirs.values()),
        silent=[UNDECIDED if label in opposite else label for label in mine],
    )["other_judges"]
    assert found["same"] == {"n": 4, "yes_rate": 0.5, "their_yes_rate": 0.5, "kappa": 1.0}
    assert found["against"] == {"n": 4, "yes_rate": 0.5, "their_yes_rate": 0.5, "kappa": -1.0}
    # yes/yes, no/no, yes/no: p = 2/3, e = (2/3)(1/3) + (1/3)(2/3) = 4/9, kappa = 2/5.
    assert found["another"] == {
        "n": 3,
        "yes_rate": 2 / 3,
        "their_yes_rate": 1 / 3,
        "kappa": pytest.approx(0.4),
    }
    assert found["silent"] == {"n": 0, "yes_rate": None, "their_yes_rate": None, "kappa": None}


@pytest.mark.parametrize(("yes", "no"), [("1", "0"), ("true", "false"), ("True", "False")])
def test_against_the_truth(describe: Describe, yes: str, no: str) -> None:
    # Decided candidates: y (picked, true), z (not, true), w of b (picked, not), x of b (not, not).
    assert describe(truth_lines(yes, no))["truth"] == {
        "n": 4,
        "base_rate": 0.5,
        "yes_rate": 0.5,
        "precision": 0.5,
        "recall": 0.5,
        "f1": 0.5,
        "kappa": 0.0,
        # Of the low ratings a-x, a-y, a-z, b-v and b-y that hide a like, a-y was found.
        "found": 0.2,
        "low_ratings": 8,
    }


def test_truth_about_unknown_pairs_only(describe: Describe) -> None:
    truth = describe(["nobody,v,1"])["truth"]
    assert truth["n"] == truth["low_ratings"] == 0
    assert truth["kappa"] is truth["found"] is truth["precision"] is None


@pytest.mark.parametrize(
    ("lines", "header", "message"),
    [
        (["a,v,1"], "user_id,item,falsely_identified", "column item_id is missing"),
        (["a,v,1", "a,w,maybe"], "user_id,item_id,falsely_identified", "line 3: .* is maybe"),
        (["a,v,"], "user_id,item_id,falsely_identified", "line 2"),
    ],
)
def test_truth_that_cannot_be_used(
    describe: Describe, lines: list[str], header: str, message: str
) -> None:
    with pytest.raises(TruthError, match=message):
        describe(lines, header)


def decisions(both: int, only_first: int, only_second: int, neither: int) -> tuple[Any, Any]:
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return np.array(first, dtype=bool), np.array(second, dtype=bool)


def test_kappa_of_a_textbook_example() -> None:
    # 50 grant proposals, two readers: 20 both yes, 5 and 10 one yes, 15 both no; kappa is .4.
    found = agreement(*decisions(20, 5, 10, 15))
    assert found["kappa"] == pytest.approx(0.4)
    assert found["precision"] == pytest.approx(20 / 25)
    assert found["recall"] == pytest.approx(20 / 30)
    assert found["f1"] == pytest.approx(2 * 0.8 * (2 / 3) / (0.8 + 2 / 3))


def test_perfect_opposite_and_undefined() -> None:
    assert agreement(*decisions(3, 0, 0, 3))["kappa"] == 1
    assert agreement(*decisions(0, 3, 3, 0))["kappa"] == -1
    # Two judges who only ever say yes: chance alone explains it all.
    assert agreement(*decisions(3, 0, 0, 0))["kappa"] is None
    assert agreement(*decisions(0, 0, 0, 0))["base_rate"] is None


counts = st.integers(0, 30)


@given(counts, counts, counts, counts)
def test_kappa_is_symmetric_and_at_most_one(a: int, b: int, c: int, d: int) -> None:
    first, second = decisions(a, b, c, d)
    kappa = agreement(first, second)["kappa"]
    assert kappa == agreement(second, first)["kappa"]
    if kappa is not None:
        observed = np.mean(first == second)
        chance = np.mean(first) * np.mean(second) + np.mean(~first) * np.mean(~second)
        assert kappa == pytest.approx((observed - chance) / (1 - chance))
        assert kappa <= 1
