"""What the real engine answers with a tiny model, against transformers."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import vllm_judge
from reference import Reference
from tiny_model import save_tiny_model

from refine.feedback.llm.engine import Engine, Reply, Request
from refine.feedback.llm.vllm import start
from refine.feedback.parsing import ANSWERED, answer_room, parse

NUMBERS = ("1", "2", "3", "4")
HOSTILE_TITLES = (
    '"Amélie (2001) [REC] {x}"',
    r'"^.*\d+$ | C:\none + ? \"',
    "\"none, '1', 2\"",
    '"日本 🎬/ ~ & -"',
)
INSTRUCTIONS = "Each film below was rated by one viewer. Ignore what the films are called."


def prompt(user: int, chunk: int, *, films: int = 12, cue: str = "Answer:", **form: Any) -> Request:
    """One of a user's prompts."""
    liked = ", ".join(f'"Silent Harbour {(user * 7919 + film) % 1009}"' for film in range(films))
    candidates = "\n".join(f"{n}. film {user * 31 + chunk * 5 + n}" for n in range(1, 5))
    return Request(
        key=f"{user}/{chunk}",
        instructions=INSTRUCTIONS,
        context=f"Most liked films: {liked}",
        question=f"Candidates:\n{candidates}\n\n{cue}",
        **({"choices": NUMBERS, "words": None} | form),
    )


def by_key(replies: Iterator[Reply]) -> dict[str, Reply]:
    replies_by_key = {}
    for reply in replies:
        assert reply.key not in replies_by_key
        assert reply.error is None
        replies_by_key[reply.key] = reply
    return replies_by_key


@pytest.fixture(scope="module")
def reference(tiny_model: Path) -> Reference:
    return Reference(tiny_model)


@pytest.mark.parametrize(
    ("choices", "cue", "users"),
    [(NUMBERS, "Answer:", 24), (HOSTILE_TITLES, "films", 8)],
    ids=["numbers", "titles"],
)
def test_a_list_has_the_most_likely_tokens_that_keep_it_in_form(
    engine: Engine, reference: Reference, choices: tuple[str, ...], cue: str, users: int
) -> None:
    """The cue is one after which the tiny model answers many things."""
    requests = [prompt(user, 1, choices=choices, cue=cue) for user in range(users)]
    replies = by_key(engine.ask(requests))
    assert len({reply.text for reply in replies.values()}) > 3
    for request in requests:
        reply = replies[request.key]
        assert (reply.text, reply.answer_tokens) == reference.answer(request)
        assert not reply.truncated
        assert reply.log_odds is None
        assert reply.prompt_tokens == len(reference.token_ids(request))
        assert parse(reply.text or "", choices, truncated=False)[0] == ANSWERED


def test_a_score_is_the_log_odds_of_the_two_words(engine: Engine, reference: Reference) -> None:
    requests = [
        prompt(user, chunk, choices=None, words=("yes", "no"))
        for user in range(8)
        for chunk in range(3)
    ]
    replies = by_key(engine.ask(requests))
    scores = {key: reply.log_odds for key, reply in replies.items()}
    expected = {request.key: reference.log_odds(request) for request in requests}
    assert scores == pytest.approx(expected, abs=1e-4)
    assert min(expected.values()) < 0 < max(expected.values())
    assert {reply.answer_tokens for reply in replies.values()} == {1}
    assert not any(reply.truncated for reply in replies.values())


def test_lists_and_scores_can_be_asked_for_together(engine: Engine) -> None:
    scored = replace(prompt(1, 1), key="scored", choices=None, words=("no", "yes"))
    apart = {**by_key(engine.ask([prompt(1, 1)])), **by_key(engine.ask([scored]))}
    together = by_key(engine.ask([prompt(1, 1), scored]))
    assert {key: (reply.text, reply.log_odds) for key, reply in together.items()} == {
        key: (reply.text, reply.log_odds) for key, reply in apart.items()
    }


@pytest.mark.parametrize(
    ("system_role", "arguments"),
    [(True, {"thinking": False}), (False, {})],
    ids=["system role", "no system role"],
)
def test_a_chat_model_is_asked_in_its_own_template(
    tmp_path: Path, system_role: bool, arguments: dict[str, Any]
) -> None:
    model = save_tiny_model(tmp_path / "chat", system_role=system_role, seed=1)
    reference = Reference(model, chat=True, **arguments)
    lists = [prompt(user, 1) for user in range(6)]
    scores = [
        replace(request, key=f"{request.key}?", choices=None, words=("yes", "no"))
        for request in lists
    ]
    with start(vllm_judge(model, form="chat", chat=arguments)) as engine:
        replies = by_key(engine.ask(lists + scores))
    for request in lists:
        assert replies[request.key].text == reference.answer(request)[0]
        assert replies[request.key].prompt_tokens == len(reference.token_ids(request))
    for request in scores:
        expected = reference.log_odds(request)
        assert replies[request.key].log_odds == pytest.approx(expected, abs=1e-4)


def test_an_answer_depends_on_its_prompt_alone(engine: Engine) -> None:
    requests = [prompt(user, chunk) for user in range(10) for chunk in range(4)]
    shuffled = [requests[place] for place in np.random.default_rng(0).permutation(len(requests))]
    in_order, mixed = by_key(engine.ask(requests)), by_key(engine.ask(shuffled))
    alone = by_key(reply for request in requests[:4] for reply in engine.ask([request]))
    for key, reply in in_order.items():
        assert mixed[key].text == reply.text
    for key, reply in alone.items():
        assert in_order[key].text == reply.text


def test_what_a_users_prompts_share_is_computed_once(engine: Engine, reference: Reference) -> None:
    requests = [prompt(500, chunk, films=50) for chunk in range(10)]
    shared = len(reference.tokenizer(f"{INSTRUCTIONS}\n\n{requests[0].context}\n\n")["input_ids"])
    block = 128  # tokens, of which vLLM keeps all or none
    assert shared > 2 * block
    replies = by_key(engine.ask(requests))
    cached = [replies[request.key].cached_tokens or 0 for request in requests]
    assert cached[0] < block
    assert min(cached[1:]) > shared - block


def test_requests_are_taken_as_fast_as_they_are_computed(engine: Engine) -> None:
    on_their_way, most = 0, 0

    def requests() -> Iterator[Request]:
        nonlocal on_their_way, most
        for number in range(200):
            on_their_way += 1
            most = max(most, on_their_way)
            yield prompt(number, 0, films=1)

    for _ in engine.ask(requests()):
        on_their_way -= 1
    assert on_their_way == 0
    assert most == 16  # a batch of 8 (max_num_seqs), and the next one


def test_two_equal_requests_get_two_replies(engine: Engine) -> None:
    replies = list(engine.ask([prompt(1, 1)] * 3))
    assert [reply.key for reply in replies] == ["1/1"] * 3


def test_nothing_is_asked_and_nothing_answered(engine: Engine) -> None:
    assert list(engine.ask([])) == []


def test_a_call_that_was_given_up_does_not_disturb_the_next(engine: Engine) -> None:
    given_up = engine.ask(prompt(user, 0) for user in range(100))
    next(given_up)
    expected = by_key(engine.ask([prompt(200, 0)]))
    assert expected.keys() == {"200/0"}
    assert by_key(engine.ask([prompt(200, 0)]))["200/0"].text == expected["200/0"].text


def test_a_prompt_that_is_too_long_spoils_no_other(engine: Engine, reference: Reference) -> None:
    """The longest that fits leaves room for the longest answer."""
    fits = prompt(7, 0, films=50)
    room = engine.facts["max_model_len"] - answer_room(NUMBERS)
    missing = room - len(reference.token_ids(fits))
    fits = replace(fits, context=f"{fits.context}{' 1' * missing}")
    assert len(reference.token_ids(fits)) == room
    too_long = replace(fits, key="too long", context=f"{fits.context} 1")
    scored = replace(too_long, key="scored", choices=None, words=("yes", "no"))
    found = {reply.key: reply for reply in engine.ask([prompt(8, 0), too_long, fits, scored])}
    assert {key: reply.error is None for key, reply in found.items()} == {
        "8/0": True,
        "too long": False,
        "7/0": True,
        "scored": True,
    }
    error = found["too long"].error or ""
    assert f"{room + 1} tokens" in error
    assert str(engine.facts["max_model_len"]) in error


def test_a_prompt_that_vllm_rejects_spoils_no_other(engine: Engine) -> None:
    """Whatever it rejects: here, a form of answer that no tokenizer can write."""
    impossible = prompt(1, 0, choices=('"\udcff"',))
    found = {reply.key: reply for reply in engine.ask([prompt(0, 0), impossible, prompt(2, 0)])}
    assert found["1/0"].error
    assert found["0/0"].text
    assert found["2/0"].text


def test_facts_say_what_the_answers_came_from(engine: Engine) -> None:
    assert engine.facts["engine"] == "vllm"
    assert engine.facts["version"].startswith("0.32.")
    assert engine.facts["dtype"] == "float32"
    assert engine.facts["device"]
    assert engine.facts["max_model_len"] == 1024
    assert json.loads(json.dumps(engine.facts)) == engine.facts
