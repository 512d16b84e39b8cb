from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from feedback_data import PROMPTING, TEMPLATE, Split, ratings_strategy, write_split
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
    UNDECIDED,
    read_table,
    write_table,
)
from refine.feedback.labels import LabelError, label_answers, label_by_threshold
from refine.feedback.prompts import write_prompts

quick = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def asked(split: Split) -> pl.DataFrame:
    prompts = split.folder / "prompts.parquet"
    write_prompts(*split.tables, TEMPLATE, prompts, prompts=PROMPTING)
    return pl.DataFrame(read_table(prompts, PROMPTS))


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


def label(split: Split, answers: list[Path], unasked: str = UNDECIDED) -> dict[Any, Any]:
    """(user_id, item_id) -> (label, reason)."""
    output = split.folder / "feedback.parquet"
    prompts = split.folder / "prompts.parquet"
    label_answers(split.train, prompts, answers, output, labels={"unasked_low_ratings": unasked})
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
        [
            {"prompt_id": name, "status": "truncated", "picked": codes}
            for name, codes in prompts.select("prompt_id", "candidates").rows()
        ],
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
        for name, codes in asked(split).select("prompt_id", "candidates").rows()
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


def test_a_split_without_candidates(tmp_path: Path) -> None:
    split = write_split(tmp_path, [(1, 1, 5), (2, 1, 1)])
    asked(split)
    labels = label(split, [write_answers(tmp_path / "answers.parquet", [])])
    assert labels == {(1, 1): (POSITIVE, "rating"), (2, 1): (CONFIRMED, "lowest_rating")}


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([{"prompt_id": "1/1"}, {"prompt_id": "1/1"}], "prompt 1/1 has several answers"),
        ([{"prompt_id": "9/9"}], "does not have, the first to 9/9"),
        ([{"prompt_id": "1/1", "picked": [0]}], "prompt 1/1 names items that are not among"),
        ([{"prompt_id": "1/1", "left_out": [0]}], "prompt 1/1 names items that are not among"),
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
    prompts = pl.DataFrame(
        [(f"1/{n}", 0, n, codes, "?", None) for n, codes in enumerate(candidates)],
        schema=PROMPTS.names,
        orient="row",
    )
    write_table(prompts.to_arrow(), tmp_path / "prompts.parquet", PROMPTS)
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
