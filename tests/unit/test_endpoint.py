import datetime
import logging
import threading
import time
from email.utils import format_datetime

import pytest
from faulty_server import answer_to, broken, cut, error, hang_up, serving, sleep
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from refine.feedback.llm import endpoint as module
from refine.feedback.llm.endpoint import connect
from refine.feedback.llm.engine import EngineError, Reply, Request

KEY = "sk-not-to-be-seen-anywhere"

SETTINGS = {
    "kind": "openai",
    "model": "m",
    "revision": None,
    "server": "plain",
    "form": "base",
    "strategy": "select",
    "context": 8192,
    "tokenizer": None,
    "chat": {},
    "request": {},
    "key": "REFINE_TEST_KEY",
    "concurrency": 4,
    "timeout": 30,
    "retries": 3,
}

TOO_MANY = error(429, "slow down", headers={"Retry-After": "0"})

PASSING = {
    "429": TOO_MANY,
    "429 without a date": error(429),
    "408": error(408),
    "500": error(500),
    "503": error(503, headers={"Retry-After": "0"}),
    "garbage": broken(b"\xff\xfe<html>down for maintenance</html>"),
    "empty": broken(b""),
    "null": broken(None),
    "a list": broken([]),
    "no choices": broken({"choices": []}),
    "no text": broken({"choices": [{"finish_reason": "stop"}]}),
    "a number": broken({"choices": [{"text": 7, "finish_reason": "stop"}]}),
    "an error": broken({"error": {"message": "overloaded"}}),
    "nested too deep": broken(b"[" * 100_000),
    "cut": cut,
    "hung up": hang_up,
}


@pytest.fixture(autouse=True, scope="module")
def no_waiting():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FIRST_WAIT", 0.0)
        patch.delenv(SETTINGS["key"], raising=False)
        yield


@pytest.fixture
def server():
    with serving() as server:
        yield server


def requests_for(prompts):
    return [Request(f"key {p}", "Instructions.", "Context.", p, ("1", "2"), None) for p in prompts]


def ask(server, prompts, **changes):
    """All replies by prompt, and the error that ended the run."""
    with connect({**SETTINGS, "url": server.url, **changes}) as engine:
        return all_of(engine.ask(iter(requests_for(prompts))))


def all_of(replies):
    came, ended = {}, None
    try:
        for reply in replies:
            prompt = reply.key.removeprefix("key ")
            assert prompt not in came
            came[prompt] = reply
    except EngineError as error:
        ended = str(error)
    return came, ended


def answered(prompt):
    return Reply(
        f"key {prompt}", answer_to(prompt), prompt_tokens=30, cached_tokens=20, answer_tokens=4
    )


def test_every_prompt_gets_its_own_answer(server):
    prompts = [f"prompt {number}" for number in range(50)]
    replies, ended = ask(server, prompts)
    assert replies == {prompt: answered(prompt) for prompt in prompts}
    assert ended is None
    assert set(server.attempts.values()) == {1}


def test_nothing_to_ask(server):
    assert ask(server, []) == ({}, None)
    assert not server.received


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_is_tried_again(server, fault):
    server.faults["b"] = [PASSING[fault]] * 3
    replies, ended = ask(server, "abc")
    assert replies == {prompt: answered(prompt) for prompt in "abc"}
    assert ended is None
    assert server.attempts == {"a": 1, "b": 4, "c": 1}


@hypothesis_settings(max_examples=25)
@given(
    faults=st.lists(st.lists(st.sampled_from(sorted(PASSING)), max_size=3), max_size=12),
    concurrency=st.integers(1, 6),
)
def test_nothing_is_lost_or_doubled_whatever_passes(faults, concurrency):
    prompts = [f"prompt {number}" for number in range(len(faults))]
    with serving() as server:
        for prompt, names in zip(prompts, faults, strict=True):
            server.faults[prompt] = [PASSING[name] for name in names]
        replies, ended = ask(server, prompts, concurrency=concurrency)
        assert replies == {prompt: answered(prompt) for prompt in prompts}
        assert ended is None
        assert server.most_at_once <= concurrency
        for prompt, names in zip(prompts, faults, strict=True):
            assert server.attempts[prompt] == len(names) + 1


def test_an_answer_that_does_not_come_is_waited_for_no_longer_than_the_timeout(server):
    server.faults["a"] = [sleep]
    server.always["b"] = sleep
    replies, ended = ask(server, "abc", timeout=0.3, retries=1)
    assert replies["a"] == answered("a")
    assert replies["b"].error == "no answer within 0.3 s"
    assert replies["c"] == answered("c")
    assert ended is None


def test_as_many_requests_at_once_as_allowed_and_no_more(server):
    together = threading.Barrier(4)
    server.before_answer = lambda prompt: together.wait(timeout=60)
    replies, _ = ask(server, [f"prompt {number}" for number in range(16)])
    assert not any(reply.error for reply in replies.values())
    assert server.most_at_once == 4


def test_requests_are_taken_only_as_fast_as_they_are_answered(server):
    taken = 0

    def requests():
        nonlocal taken
        for request in requests_for(f"prompt {number}" for number in range(100)):
            taken += 1
            yield request

    with connect({**SETTINGS, "url": server.url}) as engine:
        for received, _ in enumerate(engine.ask(requests())):
            assert taken <= received + 2 * SETTINGS["concurrency"]
    assert taken == 100


def test_a_run_that_is_given_up_sends_nothing_more(server):
    with connect({**SETTINGS, "url": server.url}) as engine:
        replies = engine.ask(requests_for(f"prompt {number}" for number in range(100)))
        next(replies)
        replies.close()
    assert len(server.received) <= 2 * SETTINGS["concurrency"]


@pytest.mark.parametrize("status", [400, 413, 422])
@pytest.mark.parametrize("param", [None, "messages", "input_tokens", ["body", "prompt"]])
def test_a_prompt_that_is_refused_is_the_only_one_without_an_answer(server, status, param):
    server.always["b"] = error(status, "The prompt\nis too long.", param=param)
    replies, ended = ask(server, "abc")
    assert replies["b"].error == f"the endpoint answers {status}: The prompt is too long."
    assert replies["b"].text is None
    assert (replies["a"], replies["c"], ended) == (answered("a"), answered("c"), None)
    assert server.attempts["b"] == 1


@pytest.mark.parametrize("fault", ["500", "garbage", "no choices", "an error"])
def test_a_prompt_that_always_fails_is_the_only_one_without_an_answer(server, fault):
    server.always["b"] = PASSING[fault]
    replies, ended = ask(server, "abc")
    assert replies["b"].error
    assert (replies["a"], replies["c"], ended) == (answered("a"), answered("c"), None)
    assert server.attempts["b"] == 4


def test_where_prompt_after_prompt_fails_it_is_the_endpoint(server):
    prompts = [f"prompt {number}" for number in range(100)]
    server.always = dict.fromkeys(prompts[10:], error(500, "out of memory"))
    replies, ended = ask(server, prompts, retries=0, concurrency=2)
    assert sorted(prompt for prompt in replies if not replies[prompt].error) == prompts[:10]
    assert "3 prompts in a row have failed" in ended
    assert "out of memory" in ended
    assert len(server.received) < 20


def test_where_prompts_fail_here_and_there_it_is_the_prompts(server):
    prompts = [f"prompt {number}" for number in range(20)]
    server.always = dict.fromkeys(prompts[::2], error(500))
    replies, ended = ask(server, prompts, retries=0, concurrency=1)
    assert [prompt for prompt in prompts if replies[prompt].error] == prompts[::2]
    assert ended is None


@pytest.mark.parametrize(
    ("fault", "attempts", "remedy"),
    [
        (error(401, "bad key"), 1, "environment variable REFINE_TEST_KEY"),
        (error(403, "not yours"), 1, "environment variable REFINE_TEST_KEY"),
        (error(404, "no such model"), 1, "check the judge's `model`"),
        (error(402, "pay first"), 1, "pay first"),
        (error(429, "You are out of it.", code="insufficient_quota"), 1, "no credit left"),
        (error(429, "come back", headers={"Retry-After": "3600"}), 1, "left alone for 3600 s"),
        (TOO_MANY, 4, "lower the judge's `concurrency`"),
        (cut, 4, "cannot be reached"),
        (error(400, "unsupported", param="max_tokens"), 1, "request: {max_tokens: null}"),
    ],
)
def test_what_does_not_pass_ends_the_run_with_a_remedy(server, fault, attempts, remedy):
    server.always["b"] = fault
    replies, ended = ask(server, ["a", "b"], concurrency=1)
    assert replies == {"a": answered("a")}
    assert remedy in ended
    assert server.attempts["b"] == attempts


def test_answers_on_their_way_are_kept_when_the_run_ends(server):
    stopped = threading.Event()
    server.always["b"] = error(401)
    server.before_answer = lambda prompt: stopped.wait()
    with connect({**SETTINGS, "url": server.url, "concurrency": 2}) as engine:
        stop = engine.stop
        engine.stop = lambda: (stop(), stopped.set())
        replies, ended = all_of(engine.ask(requests_for("abcdefgh")))
    assert replies == {"a": answered("a")}
    assert "401" in ended
    assert server.attempts == {"a": 1, "b": 1}


def test_no_server():
    with serving() as server:
        pass
    replies, ended = ask(server, "abc")
    assert not replies
    assert f"{server.url} cannot be reached" in ended
    assert "start the server" in ended


def test_all_wait_as_long_as_the_server_asks(server):
    arrivals = []
    server.before_answer = lambda prompt: arrivals.append(time.monotonic())
    refusals = []

    def refuse(handler):
        refusals.append(time.monotonic())
        error(429, headers={"Retry-After": "0.4"})(handler)

    server.faults["a"] = [refuse]
    replies, _ = ask(server, ["a", "b", "c"], concurrency=1)
    assert len(replies) == 3
    assert min(arrivals) - refusals[0] >= 0.4


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        (None, 0, 0),
        ("soon", 0, 0),
        ("Wed, 99 Foo 2025", 0, 0),
        ("7", 7, 7),
        ("0.25", 0.25, 0.25),
        ("-3", 0, 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
        (format_datetime(datetime.datetime(2124, 1, 1, tzinfo=datetime.UTC), True), 1e9, 1e10),
    ],
)
def test_how_long_a_server_asks_to_wait(value, least, most):
    assert least <= module.retry_after(value) <= most


def test_the_waits_grow(server, monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.04)
    waits = []
    monkeypatch.setattr(module.random, "uniform", lambda low, high: waits.append((low, high)) or 1)
    server.always["a"] = error(500)
    before = time.monotonic()
    replies, _ = ask(server, "a", retries=5)
    assert replies["a"].error
    assert waits == [(0.5, 1)] * 5
    assert time.monotonic() - before >= 0.01 + 0.02 + 0.04 + 0.04 + 0.04


@pytest.mark.parametrize("status", [200, 400, 401, 429, 500])
def test_the_key_is_sent_and_never_shown(server, monkeypatch, caplog, status):
    monkeypatch.setenv(SETTINGS["key"], KEY)
    caplog.set_level(logging.DEBUG)
    # Where messages are shortened, half a key must not be left.
    server.always["a"] = lambda handler: handler.answer(
        status,
        {"error": {"message": f"I got {handler.headers['Authorization']} from you. " * 20}},
    )
    replies, ended = ask(server, "a")
    assert {headers["Authorization"] for _, headers, _ in server.received} == {f"Bearer {KEY}"}
    shown = f"{replies} {ended} {caplog.text}"
    assert "I got Bearer ***" in shown
    assert KEY[:9] not in shown


def test_only_a_server_elsewhere_needs_a_key(server):
    with (
        pytest.raises(EngineError, match=r"api\.example\.org needs a key.*REFINE_TEST_KEY"),
        connect({**SETTINGS, "url": "https://api.example.org/v1"}),
    ):
        pass
    replies, _ = ask(server, "a")
    assert replies == {"a": answered("a")}


def test_a_proxy_is_not_asked_for_this_machine(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    replies, ended = ask(server, "a")
    assert (replies, ended) == ({"a": answered("a")}, None)


def test_a_model_has_to_be_named(server):
    with pytest.raises(EngineError, match="`model`"):
        ask(server, "a", model=None)


def test_base_and_chat_go_to_their_own_places(server):
    ask(server, "a", form="base")
    ask(server, "a", form="chat")
    (base_path, _, base), (chat_path, _, chat) = server.received
    assert (base_path, chat_path) == ("/v1/completions", "/v1/chat/completions")
    assert base["prompt"] == "Instructions.\n\nContext.\n\na"
    assert chat["messages"] == [
        {"role": "system", "content": "Instructions."},
        {"role": "user", "content": "Context.\n\na"},
    ]


@pytest.mark.parametrize(
    "message",
    [
        "System role not supported",
        "Conversation roles must alternate user/assistant/user/assistant/...",
    ],
)
def test_a_chat_template_without_a_system_role(server, message):
    def picky(handler):
        roles = [message["role"] for message in server.received[-1][2]["messages"]]
        if "system" in roles:
            error(400, message)(handler)
        else:
            handler.answer(200, {"choices": [{"message": {"role": "x", "content": "fine"}}]})

    server.always = dict.fromkeys("abcdefgh", picky)
    replies, ended = ask(server, "abcdefgh", form="chat", concurrency=1)
    assert [reply.text for reply in replies.values()] == ["fine"] * 8
    assert ended is None
    assert server.attempts["a"] == 2
    assert {server.attempts[prompt] for prompt in "bcdefgh"} == {1}
    assert server.received[-1][2]["messages"] == [
        {"role": "user", "content": "Instructions.\n\nContext.\n\nh"}
    ]


def test_a_chat_template_without_a_system_role_met_by_many_at_once(server):
    together = threading.Barrier(4)

    def picky(handler):
        together.wait(timeout=60)
        error(400, "System role not supported")(handler)

    for prompt in "abcd":
        server.faults[prompt] = [picky]
    replies, ended = ask(server, "abcd", form="chat")
    assert replies == {prompt: answered(prompt) for prompt in "abcd"}
    assert ended is None
