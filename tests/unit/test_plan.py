import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refine.artifacts import PROMPTS, ArtifactError, write_table
from refine.feedback.forms import NUMBERS, WORDS, AnswerForm
from refine.feedback.identity import identity
from refine.feedback.llm.cache import AnswerCache
from refine.feedback.llm.engine import Reply
from refine.feedback.llm.plan import PlanError, plan
from refine.feedback.llm.requests import RequestMaker
from refine.feedback.parsing import answer_room, numbers

VLLM: dict[str, Any] = {
    "kind": "vllm",
    "model": "org/model",
    "revision": "main",
    "form": "base",
    "strategy": "select",
    "context": 512,
    "engine": {},
    "tensor_parallel_size": 1,
    "speed": {"prompt": None, "answer": None},
    "price": {"hour": None},
}
OPENAI: dict[str, Any] = {
    "kind": "openai",
    "model": "org/model",
    "revision": None,
    "form": "chat",
    "strategy": "select",
    "context": 512,
    "tokenizer": "org/model",
    "speed": {"prompt": None, "answer": None},
    "price": {"prompt": None, "cached": None, "answer": None},
}

Row = tuple[int, int | None, int | None, int, int]
"""User, tokens before the question, tokens of the question, candidates, dropped entries."""

ROWS: list[Row] = [
    (0, 100, 30, 5, 0),
    (0, 100, 20, 2, 0),
    (2, 40, 30, 5, 7),
    (2, 40, 31, 5, 7),
    (2, 40, 12, 1, 7),
    (3, 300, 10, 1, 0),
]


def write_prompts(path: Path, rows: list[Row], form: AnswerForm | None = None) -> Path:
    table = pa.Table.from_pylist(
        [
            {
                "prompt_id": f"{user}/{place}",
                "user": user,
                "chunk": place,
                "candidates": list(range(candidates)),
                "instructions": "Judge.",
                "context": f"User {user}.",
                "question": f"Question {place}?",
                "context_tokens": before,
                "tokens": None if before is None or question is None else before + question,
                "dropped": dropped,
            }
            for place, (user, before, question, candidates, dropped) in enumerate(rows)
        ],
        PROMPTS,
    )
    metadata = (form or AnswerForm(NUMBERS)).to_metadata()
    write_table(table, path, PROMPTS, metadata)
    return path


def planned(
    folder: Path,
    rows: list[Row] | None = None,
    form: AnswerForm | None = None,
    shards: int = 1,
    judge: dict[str, Any] = VLLM,
    **changes: Any,
) -> dict[str, Any]:
    prompts = write_prompts(folder / "prompts.parquet", ROWS if rows is None else rows, form)
    plan(
        prompts,
        Path("no items"),
        folder / "plan.json",
        judge=judge | changes,
        cache=folder / "cache",
        shards=shards,
    )
    report: dict[str, Any] = json.loads((folder / "plan.json").read_text())
    return report


def keep(folder: Path, places: list[int], answer_tokens: int, judge: dict[str, Any] = VLLM) -> None:
    """Puts answers to some of ROWS into the cache."""
    prompts = write_prompts(folder / "asked.parquet", ROWS)
    requests = list(
        RequestMaker(AnswerForm(NUMBERS), Path("no items")).requests(pl.read_parquet(prompts))
    )
    AnswerCache(folder / "cache", identity(judge)).add(
        Reply(requests[place].key, "1", answer_tokens=answer_tokens) for place in places
    )


def test_prompts_tokens_and_cuts_are_counted(tmp_path: Path) -> None:
    report = planned(tmp_path)
    assert report["prompts"] == 6
    assert report["users"] == 3
    assert report["candidates"] == 19
    assert report["cut"] == {"users": 1, "entries": 7}
    assert report["longest_prompt"] == 310
    assert report["answered"] == 0
    whole = 130 + 120 + 70 + 71 + 52 + 310
    # What stands before the question is found again in blocks of 16: 96 of 100 tokens, 32 of 40.
    again = 96 + 2 * 32
    assert report["to_ask"]["prompt_tokens"] == {
        "without_reuse": whole,
        "with_reuse": whole - again,
        "saved": pytest.approx(again / whole),
    }
    most = sum(answer_room(numbers(candidates)) for *_, candidates, _ in ROWS)
    assert report["to_ask"]["answer_tokens"] == {"expected": round(most / 2), "at_most": most}


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 5), st.integers(1, 200), st.integers(1, 50)), max_size=30
    ),
    block=st.sampled_from([None, 1, 16, 32]),
    shards=st.integers(1, 4),
)
def test_reuse_is_what_a_cache_of_blocks_would_find(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[int, int, int]],
    block: int | None,
    shards: int,
) -> None:
    before = {user: tokens for user, tokens, _ in rows}  # one context a user
    table: list[Row] = [(user, before[user], question, 1, 0) for user, _, question in sorted(rows)]
    size = block or 16
    kept: set[tuple[int, int]] = set()
    computed = 0
    for user, context, question, *_ in table:
        assert context is not None
        assert question is not None
        blocks = {(user, start) for start in range(0, context - size + 1, size)}
        computed += context + question - size * len(blocks & kept)
        kept |= blocks
    engine = {} if block is None else {"block_size": block}
    report = planned(tmp_path_factory.mktemp("plan"), table, engine=engine, shards=shards)
    assert report["to_ask"]["prompt_tokens"]["with_reuse"] == computed
    for part in ("without_reuse", "with_reuse"):
        jobs = [job["prompt_tokens"][part] for job in report["shards"]]
        assert sum(jobs) == report["to_ask"]["prompt_tokens"][part]
    assert [job["prompts"] for job in report["shards"]] == [
        sum(user % shards == shard for user, *_ in table) for shard in range(shards)
    ]


def test_without_a_prefix_cache_nothing_is_saved(tmp_path: Path) -> None:
    tokens = planned(tmp_path, engine={"enable_prefix_caching": False})["to_ask"]["prompt_tokens"]
    assert tokens["with_reuse"] == tokens["without_reuse"]


def test_a_score_is_one_token(tmp_path: Path) -> None:
    report = planned(
        tmp_path,
        [(0, 100, 30, 1, 0)] * 4,
        AnswerForm(WORDS, ("yes", "no")),
        strategy="score",
    )
    assert report["to_ask"]["answer_tokens"] == {"expected": 4, "at_most": 4}


def test_what_was_answered_takes_nothing(tmp_path: Path) -> None:
    keep(tmp_path, [0, 2], answer_tokens=6)
    report = planned(tmp_path)
    assert report["prompts"] == 6
    assert report["answered"] == 2
    assert report["to_ask"]["prompts"] == 4
    # Of each user the first that is left is computed whole.
    assert report["to_ask"]["prompt_tokens"]["with_reuse"] == 120 + 71 + (52 - 32) + 310
    assert report["to_ask"]["answer_tokens"]["expected"] == 4 * 6
    assert report["expected_answers"] == "as long as measured"


def test_when_everything_is_answered_nothing_is_left(tmp_path: Path) -> None:
    keep(tmp_path, list(range(6)), answer_tokens=6)
    report = planned(tmp_path, speed={"prompt": 10, "answer": 10}, price={"hour": 1})
    assert report["to_ask"]["prompts"] == 0
    assert report["to_ask"]["seconds"] == 0
    assert report["cost"] == 0
    assert "nothing is left to ask" in report["notes"][0]


def test_answers_of_another_model_do_not_count(tmp_path: Path) -> None:
    keep(tmp_path, [0, 2], answer_tokens=6, judge=VLLM | {"model": "org/other"})
    assert planned(tmp_path)["answered"] == 0


def test_given_speeds_are_of_reading_and_of_writing_alone(tmp_path: Path) -> None:
    work = planned(tmp_path)["to_ask"]
    read, write = work["prompt_tokens"]["with_reuse"], work["answer_tokens"]["expected"]
    for answer, expected in ((5, read / 10 + write / 5), (None, read / 10)):
        report = planned(tmp_path, speed={"prompt": 10, "answer": answer})
        assert report["speed"] == {"prompt": 10, "answer": answer, "source": "given"}
        assert report["to_ask"]["seconds"] == pytest.approx(expected)
        assert report["shards"][0]["seconds"] == pytest.approx(expected)


def test_the_work_that_was_measured_takes_the_time_that_was_measured(tmp_path: Path) -> None:
    work = planned(tmp_path)["to_ask"]
    read, write = work["prompt_tokens"]["with_reuse"], work["answer_tokens"]["expected"]
    measured = AnswerCache(tmp_path / "cache", identity(VLLM))
    measured.record_speed({"prompt": read / 20, "answer": write / 20})
    assert planned(tmp_path)["to_ask"]["seconds"] == pytest.approx(20)
    # Another mix of reading and writing: between what either of the two would say.
    measured.record_speed({"prompt": read / 20, "answer": write / 50})
    assert 20 < planned(tmp_path)["to_ask"]["seconds"] < 50


def test_scores_take_no_time_to_write(tmp_path: Path) -> None:
    form = AnswerForm(WORDS, ("yes", "no"))
    rows: list[Row] = [(0, 100, 30, 1, 0)] * 2
    cache = AnswerCache(tmp_path / "cache", identity(VLLM | {"strategy": "score"}))
    cache.record_speed({"prompt": 10, "answer": 0.001})
    report = planned(tmp_path, rows, form, strategy="score")
    assert report["to_ask"]["seconds"] == pytest.approx((130 + 34) / 10)


def test_the_speed_measured_last_serves_where_none_is_given(tmp_path: Path) -> None:
    report = planned(tmp_path)
    assert report["to_ask"]["seconds"] is None
    assert str(tmp_path / "probe.json") in " ".join(report["notes"])
    AnswerCache(tmp_path / "cache", identity(VLLM)).record_speed({"prompt": 10, "answer": 0})
    report = planned(tmp_path)
    assert report["speed"] == {"prompt": 10, "answer": 0, "source": "measured"}
    expected = report["to_ask"]["prompt_tokens"]["with_reuse"] / 10
    assert report["to_ask"]["seconds"] == pytest.approx(expected)
    given = planned(tmp_path, speed={"prompt": 20, "answer": None})["to_ask"]["seconds"]
    assert given == pytest.approx(expected / 2)


def test_shards_take_the_time_of_one_engine_together(tmp_path: Path) -> None:
    one = planned(tmp_path, speed={"prompt": 10, "answer": None})
    two = planned(tmp_path, speed={"prompt": 10, "answer": None}, shards=2)
    assert two["to_ask"]["seconds"] == pytest.approx(one["to_ask"]["seconds"])
    assert [(job["shard"], job["prompts"]) for job in two["shards"]] == [(1, 5), (2, 1)]
    assert two["shards"][1]["seconds"] == pytest.approx(310 / 10)


def test_cost_of_gpus(tmp_path: Path) -> None:
    price = {"hour": 3.0}
    report = planned(tmp_path, price=price)
    assert report["cost"] is None
    assert len(report["notes"]) == 1  # not knowing the time, the price is no remedy
    speed = {"prompt": 1.0, "answer": None}
    report = planned(tmp_path, price=price, speed=speed, tensor_parallel_size=2)
    assert report["cost"] == pytest.approx(report["to_ask"]["seconds"] / 3600 * 3.0 * 2)
    report = planned(tmp_path, speed=speed)
    assert report["cost"] is None
    assert "`price`" in report["notes"][0]


def test_cost_of_tokens(tmp_path: Path) -> None:
    def cost(cached: float | None) -> tuple[float, dict[str, Any]]:
        price = {"prompt": 2.0, "cached": cached, "answer": 8.0}
        report = planned(tmp_path, judge=OPENAI, price=price)
        return report["cost"], report["to_ask"]

    found, work = cost(0.5)
    again = 100 + 2 * 40  # an endpoint's blocks are not known
    written = 8.0 * work["answer_tokens"]["expected"]
    assert found == pytest.approx((2.0 * (753 - again) + 0.5 * again + written) / 1e6)
    assert cost(None)[0] == pytest.approx((2.0 * 753 + written) / 1e6)
    assert planned(tmp_path, judge=OPENAI)["cost"] is None


def test_without_a_tokenizer_no_number_is_made_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows: list[Row] = [(0, None, None, 5, 0), (0, None, None, 5, 0)]
    price = {"prompt": 2.0, "cached": 1.0, "answer": 8.0}
    with caplog.at_level("INFO", "refine.plan"):
        report = planned(
            tmp_path,
            rows,
            judge=OPENAI,
            tokenizer=None,
            price=price,
            speed={"prompt": 10, "answer": 10},
        )
    assert report["to_ask"] == {
        "prompts": 2,
        "prompt_tokens": None,
        "answer_tokens": None,
        "seconds": None,
    }
    assert report["cost"] is None
    assert report["longest_prompt"] is None
    assert "`tokenizer`" in report["notes"][0]
    assert "`tokenizer`" in caplog.text


def test_a_table_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [*ROWS, *[(user, 400, 100, 5, 0) for user in range(10, 30)]]
    with caplog.at_level("INFO", "refine.plan"):
        planned(tmp_path, rows, speed={"prompt": 10, "answer": 5}, price={"hour": 36.0}, shards=3)
    flat = " ".join(caplog.text.split())
    for part in (
        "prompts 26, with 119 candidates of 23 users",
        "prompt tokens 10,753",
        "with prefix reuse 10,593 (1.5% saved)",
        "longest prompt 500 of 512 tokens",
        "lists cut users: 1, entries left out: 7",
        "time of an engine 18 min 46 s",
        "cost 11.26",
    ):
        assert part in flat, part


def test_no_prompts_at_all(tmp_path: Path) -> None:
    report = planned(tmp_path, [], shards=2)
    assert report["prompts"] == 0
    assert report["to_ask"]["prompt_tokens"] == {
        "without_reuse": 0,
        "with_reuse": 0,
        "saved": 0,
    }


def test_a_judge_without_a_language_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="profile"):
        planned(tmp_path, kind="profile")


def test_prompts_that_do_not_say_how_to_answer_are_refused(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.parquet", ROWS)
    write_table(pl.read_parquet(prompts).to_arrow(), prompts, PROMPTS)
    with pytest.raises(ArtifactError, match="older version"):
        plan(
            prompts,
            Path("no items"),
            tmp_path / "plan.json",
            judge=VLLM,
            cache=tmp_path / "cache",
            shards=1,
        )
