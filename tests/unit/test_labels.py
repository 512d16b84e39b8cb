from collections import Counter
from math import inf, nan
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from feedback_data import Split, ratings_strategy, write_split
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refine.artifacts import (
    ANSWER_STATUSES,
    ANSWERED,
    ANSWERS,
    CONFIRMED,
    FALSELY_IDENTIFIED,
    FEEDBACK,
    LABELS,
    POSITIVE,
    PROMPTS,
    RATINGS,
    UNDECIDED,
    read_table,
    write_table,
)
from refine.feedback.labels import LabelError, label_answers, label_by_threshold
from refine.feedback.roles import CANDIDATE, assign_roles

quick = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def write_prompts(path: Path, rows: list[tuple[str, int, list[int]]]) -> None:
    """Writes prompts of (prompt_id, user, candidates); labels need nothing else of them."""
    table = pl.DataFrame(
        rows,
        schema={"prompt_id": pl.String, "user": pl.Int32, "candidates": pl.List(pl.Int32)},
        orient="row",
    ).with_columns(
        chunk=1,
        instructions=pl.lit(""),
        context=pl.lit(""),
        question=pl.lit(""),
        context_tokens=pl.lit(None, pl.Int32),
        tokens=pl.lit(None, pl.Int32),
        dropped=0,
    )
    write_table(table.to_arrow(), path, PROMPTS)


def asked(split: Split) -> list[tuple[str, int, list[int]]]:
    """Asks about each user's candidates in two prompts, if there are two; returns the prompts."""
    ids = dict(pl.read_parquet(split.users).rows())
    ratings = assign_roles(pl.DataFrame(read_table(split.train, RATINGS)))
    rows = []
    for user in ids:
        codes = ratings.filter(user=user, role=CANDIDATE)["item"].to_list()
        halves = [codes[1::2], codes[::2]] if len(codes) > 3 else [codes]
        for chunk, part in enumerate(filter(None, halves), start=1):
            rows.append((f"{ids[user]}/{chunk}", user, part))
    write_prompts(split.folder / "prompts.parquet", rows)
    return rows


def write_answers(path: Path, rows: list[dict[str, Any]]) -> Path:
    filled = [{"status": ANSWERED, "picked": [], "left_out": []} | row for row in rows]
    schema = pl.Schema(
        {
            "prompt_id": pl.String,
            "status": pl.String,
            "picked": pl.List(pl.Int32),
            "left_out": pl.List(pl.Int32),
            "scores": pl.List(pl.Float32),
            "text": pl.String,
            "prompt_tokens": pl.Int32,
            "answer_tokens": pl.Int32,
        }
    )
    write_table(pl.DataFrame(filled, schema=schema).to_arrow(), path, ANSWERS)
    return path


def label(
    split: Split,
    answers: list[Path],
    unasked: str = UNDECIDED,
    threshold: float | None = None,
    max_undecided: float = 1,
) -> dict[Any, Any]:
    """(user_id, item_id) -> (label, reason)."""
    output = split.folder / "feedback.parquet"
    prompts = split.folder / "prompts.parquet"
    labels = {"unasked_low_ratings": unasked, "threshold": threshold}
    label_answers(split.train, prompts, answers, output, labels=labels, max_undecided=max_undecided)
    table = pl.DataFrame(read_table(output, FEEDBACK))
    assert table.select("user", "item").equals(table.select("user", "item").sort("user", "item"))
    users = dict(pl.read_parquet(split.users).rows())
    items = dict(pl.read_parquet(split.items).select("item", "item_id").rows())
    return {(users[u], items[i]): (name, why) for u, i, _, name, why in table.rows()}


@pytest.fixture
def split(tmp_path: Path) -> Split:
    generous = [(1, 1, 5), (1, 2, 5), (1, 3, 4), (1, 4, 2), (1, 5, 1), (1, 6, 3), (1, 7, 3)]
    strict = [(2, 1, 1), (2, 2, 1), (2, 3, 4), (2, 4, 2), (2, 5, 3)]
    others = [(user, 1, 3) for user in range(3, 7)]
    return write_split(tmp_path, generous + strict + others)


def test_every_rule(split: Split, tmp_path: Path) -> None:
    asked(split)
    answers = write_answers(
        tmp_path / "answers.parquet",
        [
            {"prompt_id": "1/1", "picked": [5]},
            {"prompt_id": "2/1", "picked": [3], "left_out": [4]},
            {"prompt_id": "3/1", "status": "unparseable"},
            {"prompt_id": "4/1", "status": "truncated"},
            {"prompt_id": "5/1", "status": "missing"},
        ],
    )
    labels = label(split, [answers])
    assert labels[1, 2] == labels[2, 3] == (POSITIVE, "rating")
    assert labels[1, 6] == (FALSELY_IDENTIFIED, "picked")
    assert labels[1, 7] == (CONFIRMED, "not_picked")
    assert labels[1, 4] == (UNDECIDED, "not_asked")
    assert labels[1, 5] == labels[2, 1] == (CONFIRMED, "lowest_rating")
    assert labels[2, 4] == (FALSELY_IDENTIFIED, "picked")
    assert labels[2, 5] == (UNDECIDED, "left_out")
    assert labels[3, 1] == (UNDECIDED, "unparseable")
    assert labels[4, 1] == (UNDECIDED, "truncated")
    # A prompt that nobody answered is like one whose answer says so.
    assert labels[5, 1] == labels[6, 1] == (UNDECIDED, "missing")

    confirmed = label(split, [answers], unasked=CONFIRMED)
    assert confirmed.pop((1, 4)) == (CONFIRMED, "not_asked")
    del labels[1, 4]
    assert confirmed == labels


def test_no_answer_is_ever_a_verdict(split: Split, tmp_path: Path) -> None:
    prompts = asked(split)
    answers = write_answers(
        tmp_path / "answers.parquet",
        # Even if an engine left picks beside its failure.
        [{"prompt_id": name, "status": "truncated", "picked": codes} for name, _, codes in prompts],
    )
    labels = label(split, [answers], unasked=CONFIRMED)
    assert {name for name, why in labels.values() if why == "truncated"} == {UNDECIDED}
    assert FALSELY_IDENTIFIED not in {name for name, _ in labels.values()}


@quick
@given(rows=ratings_strategy(), data=st.data(), shards=st.integers(1, 3))
def test_labels_partition_the_train_ratings(
    tmp_path: Path, rows: list[tuple[int, int, int]], data: st.DataObject, shards: int
) -> None:
    split = write_split(tmp_path, rows)
    answers = [
        {
            "prompt_id": name,
            "status": data.draw(st.sampled_from(ANSWER_STATUSES)),
            "picked": data.draw(st.lists(st.sampled_from(codes))),
            "left_out": data.draw(st.lists(st.sampled_from(codes))),
        }
        for name, _, codes in asked(split)
        if data.draw(st.booleans())
    ]
    together = label(split, [write_answers(tmp_path / "all.parquet", answers)])
    assert set(together) == {(user, item) for user, item, _ in rows}
    assert {name for name, _ in together.values()} <= set(LABELS)
    counts = Counter(name for name, _ in together.values())
    assert counts[POSITIVE] == sum(rating >= 4 for *_, rating in rows)
    assert counts[FALSELY_IDENTIFIED] == sum(
        len(set(answer["picked"]) - set(answer["left_out"]))
        for answer in answers
        if answer["status"] == ANSWERED
    )
    parts = [
        write_answers(tmp_path / f"{shard}.parquet", answers[shard::shards])
        for shard in range(shards)
    ]
    assert label(split, parts) == together


VERDICTS = ("picked", "not_picked")

SCORED = [
    # 1/1 asks about the items 6 and 7, 2/1 about 4 and 5, the others about item 1.
    {"prompt_id": "1/1", "picked": [5], "scores": [0.5, -0.5]},
    {"prompt_id": "2/1", "picked": [3], "left_out": [4], "scores": [2.0, 3.0]},
    {"prompt_id": "3/1", "picked": [0], "scores": [inf]},
    {"prompt_id": "4/1", "scores": [-inf]},
    # Whatever scores stand beside a failure, and without any the judge's picks count.
    {"prompt_id": "5/1", "status": "unparseable", "scores": [9.0]},
    {"prompt_id": "6/1", "picked": [0]},
]


@pytest.mark.parametrize(
    ("threshold", "picked"),
    [
        (None, {(1, 6), (2, 4), (3, 1), (6, 1)}),
        (0, {(1, 6), (2, 4), (3, 1), (6, 1)}),
        (0.5, {(2, 4), (3, 1), (6, 1)}),
        (-0.6, {(1, 6), (1, 7), (2, 4), (3, 1), (6, 1)}),
        (100, {(3, 1), (6, 1)}),
    ],
)
def test_a_threshold_on_scores_decides_in_place_of_the_judge(
    split: Split, tmp_path: Path, threshold: float | None, picked: set[tuple[int, int]]
) -> None:
    asked(split)
    answers = write_answers(tmp_path / "answers.parquet", SCORED)
    labels = label(split, [answers], threshold=threshold)
    assert {pair for pair, (_, why) in labels.items() if why == "picked"} == picked
    # It moves verdicts and nothing else.
    assert labels[2, 5] == (UNDECIDED, "left_out")
    assert labels[5, 1] == (UNDECIDED, "unparseable")
    rest = {pair: found for pair, found in labels.items() if found[1] not in VERDICTS}
    usual = label(split, [answers])
    assert rest == {pair: found for pair, found in usual.items() if found[1] not in VERDICTS}


@quick
@given(rows=ratings_strategy(), data=st.data(), halves=st.integers(-4, 4))
def test_raising_the_threshold_never_adds_a_pick(
    tmp_path: Path, rows: list[tuple[int, int, int]], data: st.DataObject, halves: int
) -> None:
    split = write_split(tmp_path, rows)
    scores = {
        name: data.draw(st.lists(st.floats(-3, 3, width=32), min_size=len(c), max_size=len(c)))
        for name, _, c in asked(split)
    }
    answers = [{"prompt_id": name, "scores": found} for name, found in scores.items()]
    path = write_answers(tmp_path / "answers.parquet", answers)
    picks = []
    for limit in (halves / 2, halves / 2 + 1):
        counts = Counter(why for _, why in label(split, [path], threshold=limit).values())
        assert counts["picked"] == sum(s > limit for found in scores.values() for s in found)
        picks.append(counts["picked"])
    assert picks[1] <= picks[0]


def test_too_many_unusable_answers_are_refused_and_say_what_to_do(
    split: Split, tmp_path: Path
) -> None:
    asked(split)
    # Of 8 candidates: 2 decided, 1 decided and 1 left out, 2 unparseable, 1 truncated, 1 missing.
    rows = [
        {"prompt_id": "1/1"},
        {"prompt_id": "2/1", "left_out": [4]},
        {"prompt_id": "3/1", "status": "unparseable"},
        {"prompt_id": "4/1", "status": "unparseable"},
        {"prompt_id": "5/1", "status": "truncated"},
    ]
    answers = write_answers(tmp_path / "answers.parquet", rows)
    before = answers.read_bytes()
    with pytest.raises(LabelError) as caught:
        label(split, [answers], max_undecided=0.57)
    message = str(caught.value)
    assert "4 of 7 candidates (57.1%) have no usable answer" in message
    assert "(2 unparseable, 1 truncated, 1 missing)" in message
    assert "refine.max_undecided allows 57.0%" in message
    assert f"answers are kept, in {answers}" in message
    for cause in ("Unparseable: ", "Truncated: ", "Missing: "):
        assert cause in message
    assert answers.read_bytes() == before
    assert not (tmp_path / "feedback.parquet").exists()

    labels = label(split, [answers], max_undecided=4 / 7)
    assert Counter(why for _, why in labels.values())["unparseable"] == 2


def test_the_message_about_unusable_answers_has_no_advice_that_does_not_apply(
    split: Split, tmp_path: Path
) -> None:
    asked(split)
    rows = [{"prompt_id": f"{user}/1"} for user in range(1, 6)]
    answers = write_answers(tmp_path / "answers.parquet", rows)
    with pytest.raises(LabelError) as caught:
        label(split, [answers], max_undecided=0)
    assert "(1 missing)" in str(caught.value)
    assert "Truncated" not in str(caught.value)
    assert "Unparseable" not in str(caught.value)


def test_what_a_judge_leaves_out_needs_no_answer(split: Split, tmp_path: Path) -> None:
    everything = [{"prompt_id": name, "left_out": codes} for name, _, codes in asked(split)]
    answers = write_answers(tmp_path / "answers.parquet", everything)
    labels = label(split, [answers], max_undecided=0)
    assert Counter(why for _, why in labels.values())["left_out"] == 8


def test_a_split_without_candidates(tmp_path: Path) -> None:
    split = write_split(tmp_path, [(1, 1, 5), (2, 1, 1)])
    asked(split)
    labels = label(split, [write_answers(tmp_path / "answers.parquet", [])], max_undecided=0)
    assert labels == {(1, 1): (POSITIVE, "rating"), (2, 1): (CONFIRMED, "lowest_rating")}


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([{"prompt_id": "1/1"}, {"prompt_id": "1/1"}], "prompt 1/1 has several answers"),
        ([{"prompt_id": "9/9"}], "does not have, the first to 9/9"),
        ([{"prompt_id": "1/1", "picked": [0]}], "prompt 1/1 names items that are not among"),
        ([{"prompt_id": "1/1", "left_out": [0]}], "prompt 1/1 names items that are not among"),
        ([{"prompt_id": "1/1", "scores": [1.0]}], "1/1 does not have one number a candidate"),
        ([{"prompt_id": "1/1", "scores": [1.0, nan]}], "1/1 does not have one number a candidate"),
    ],
)
def test_answers_that_do_not_fit(
    split: Split, tmp_path: Path, answers: list[dict[str, Any]], message: str
) -> None:
    asked(split)
    with pytest.raises(LabelError, match=message):
        label(split, [write_answers(tmp_path / "answers.parquet", answers)])
    assert not (tmp_path / "feedback.parquet").exists()


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ([[0]], "1 candidates are no low ratings"),  # rated 5
        ([[7]], "1 candidates are no low ratings"),  # not rated
        ([[5], [6, 5]], "item 5 is asked about more than once for user 0"),
    ],
)
def test_prompts_of_another_split(
    split: Split, tmp_path: Path, candidates: list[list[int]], message: str
) -> None:
    rows = [(f"1/{n}", 0, codes) for n, codes in enumerate(candidates)]
    write_prompts(tmp_path / "prompts.parquet", rows)
    with pytest.raises(LabelError, match=message):
        label(split, [write_answers(tmp_path / "answers.parquet", [])])


@pytest.mark.parametrize("at_least", [1, 2, 3, 4])
def test_threshold(split: Split, tmp_path: Path, at_least: int) -> None:
    output = tmp_path / "feedback.parquet"
    label_by_threshold(split.train, output, at_least=at_least)
    for _, _, rating, name, _ in pl.DataFrame(read_table(output, FEEDBACK)).rows():
        if rating >= 4:
            assert name == POSITIVE
        else:
            assert name == (FALSELY_IDENTIFIED if rating >= at_least else CONFIRMED)


@pytest.mark.parametrize("at_least", [0, 5])
def test_no_such_threshold(split: Split, tmp_path: Path, at_least: int) -> None:
    with pytest.raises(LabelError, match=f"{at_least} is no threshold"):
        label_by_threshold(split.train, tmp_path / "feedback.parquet", at_least=at_least)
