import json
import logging
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refine.feedback.llm.cache import AnswerCache, CacheError
from refine.feedback.llm.engine import Reply

IDENTITY: dict[str, Any] = {"kind": "vllm", "model": "org/model", "revision": "main", "chat": {}}
OLD, NEW = "a" * 40, "b" * 40

tokens = st.none() | st.integers(0, 2**31 - 1)
replies = st.builds(
    Reply,
    key=st.sampled_from("abcdefgh"),
    text=st.none() | st.text(),
    truncated=st.booleans(),
    log_odds=st.none() | st.floats(allow_nan=False),
    prompt_tokens=tokens,
    cached_tokens=tokens,
    answer_tokens=tokens,
    error=st.none() | st.just("too long"),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(st.lists(replies, max_size=5), max_size=4),
    asked=st.sets(st.sampled_from("abcxyz")),
)
def test_what_was_answered_first_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[Reply]], asked: set[str]
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    expected: dict[str, Reply] = {}
    for part in parts:
        AnswerCache(folder, IDENTITY).add(part)
        for reply in part:
            if reply.error is None:
                expected.setdefault(reply.key, reply)
    found = AnswerCache(folder, IDENTITY).lookup(asked)
    assert found == {key: reply for key, reply in expected.items() if key in asked}


def test_other_settings_have_other_answers(tmp_path: Path) -> None:
    AnswerCache(tmp_path, IDENTITY).add([Reply("k", "1")])
    assert AnswerCache(tmp_path, {**IDENTITY, "chat": {"a": 1}}).lookup(["k"]) == {}
    same = dict(reversed(IDENTITY.items()))
    assert AnswerCache(tmp_path, same).lookup(["k"]) == {"k": Reply("k", "1")}


def test_looking_writes_nothing(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path / "answers", IDENTITY)
    assert cache.lookup(["k"]) == {}
    assert (cache.facts, cache.speed()) == ({}, None)
    cache.add([Reply("k", error="too long")])
    assert not (tmp_path / "answers").exists()


def test_a_part_that_cannot_be_read_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = AnswerCache(tmp_path, IDENTITY)
    cache.add([Reply("a", "1")])
    (part,) = tmp_path.rglob("*.parquet")
    part.with_name("0.parquet").write_bytes(part.read_bytes()[:-9])
    part.with_name("1.parquet").write_bytes(b"")
    # What a process that is killed leaves behind.
    part.with_name(".2.parquet.x.tmp").write_bytes(part.read_bytes())
    with caplog.at_level(logging.WARNING):
        assert cache.lookup(["a"]) == {"a": Reply("a", "1")}
    assert [record.message.count(".parquet") > 0 for record in caplog.records] == [True, True]


def _add_many(folder: Path, writer: int) -> None:
    for part in range(10):
        cache = AnswerCache(folder, IDENTITY)
        cache.check({"commit": OLD})
        cache.add([Reply(f"{writer}-{part}-{n}", str(n)) for n in range(3)])
        cache.record_speed({"prompt": float(writer), "answer": 1.0})


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        for job in [pool.submit(_add_many, tmp_path, writer) for writer in range(3)]:
            job.result()
    keys = [f"{writer}-{part}-{n}" for writer in range(3) for part in range(10) for n in range(3)]
    cache = AnswerCache(tmp_path, IDENTITY)
    assert cache.lookup(keys) == {key: Reply(key, key[-1]) for key in keys}
    assert cache.facts == {"commit": OLD}
    speed = cache.speed()
    assert speed is not None
    assert speed["prompt"] in (0.0, 1.0, 2.0)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_branch_that_has_moved_is_noticed(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path, IDENTITY)
    cache.check({"commit": OLD, "device": "A"})
    cache.add([Reply("k", "1")])
    cache.check({"commit": OLD, "device": "B"})
    assert cache.facts == {"commit": OLD, "device": "B"}
    with pytest.raises(CacheError, match=rf"{OLD}.*main is commit {NEW}.*revision"):
        cache.check({"commit": NEW})
    assert cache.facts["commit"] == OLD
    # An endpoint does not say which commit it serves.
    cache.check({"device": "C"})


def test_a_branch_may_move_before_anything_was_answered(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path, IDENTITY)
    cache.check({"commit": OLD})
    cache.check({"commit": NEW})
    assert cache.facts == {"commit": NEW}


def test_who_names_the_commit_keeps_its_answers(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path, IDENTITY)
    cache.check({"commit": OLD})
    cache.add([Reply("k", "1")])
    cache.record_speed({"prompt": 5.0, "answer": 1.0})
    named = AnswerCache(tmp_path, {**IDENTITY, "revision": OLD})
    assert named.lookup(["k"]) == {"k": Reply("k", "1")}
    assert named.facts == {"commit": OLD}
    assert named.speed() == {"prompt": 5.0, "answer": 1.0}
    named.check({"commit": OLD})
    named.add([Reply("l", "2")])
    assert set(named.lookup(["k", "l"])) == {"k", "l"}
    for other in ({"revision": NEW}, {"revision": OLD, "model": "org/other"}, {"revision": None}):
        assert AnswerCache(tmp_path, {**IDENTITY, **other}).lookup(["k", "l"]) == {}


def test_no_commit_is_not_the_commit_of_no_revision(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path, {**IDENTITY, "revision": "July"})
    cache.check({})
    cache.add([Reply("k", "1")])
    assert AnswerCache(tmp_path, {**IDENTITY, "revision": None}).lookup(["k"]) == {}


def test_the_folder_says_whose_answers_it_holds(tmp_path: Path) -> None:
    AnswerCache(tmp_path, IDENTITY).check({"commit": OLD})
    (path,) = tmp_path.glob("*/model.json")
    assert json.loads(path.read_text()) == {"identity": IDENTITY, "facts": {"commit": OLD}}
