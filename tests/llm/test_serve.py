"""The judge `openai` with a real server of vLLM's, against transformers and the judge `vllm`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from reference import Reference
from test_engine import HOSTILE_TITLES, by_key, prompt
from tiny_model import CHAT_TEMPLATE_WITHOUT_SYSTEM

from refine.feedback.llm.endpoint import connect
from refine.feedback.llm.engine import Engine, EngineError, Reply, Request
from refine.feedback.parsing import ANSWERED, parse

LISTS = [prompt(user, chunk) for user in range(8) for chunk in range(3)]
TITLES = [prompt(user, 1, choices=HOSTILE_TITLES, cue="films") for user in range(8)]
SCORES = [replace(request, choices=None, words=("yes", "no")) for request in LISTS]


def judge(url: str, **changes: Any) -> dict[str, Any]:
    """The judge `openai` of the configuration, for the server of these tests."""
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text(encoding="utf-8"))
    here = {"url": url, "model": "tiny", "server": "vllm", "retries": 0, "concurrency": 4}
    return config["judges"]["openai"] | here | changes


def ask(settings: dict[str, Any], requests: list[Request]) -> dict[str, Reply]:
    with connect(settings) as engine:
        return by_key(engine.ask(requests))


@pytest.mark.parametrize("counted", [True, False], ids=["as tokens", "as text"])
@pytest.mark.parametrize("requests", [LISTS, TITLES], ids=["numbers", "titles"])
def test_lists_of_a_base_model(
    url: str, advised_model: Path, requests: list[Request], counted: bool
) -> None:
    """Greedily, whatever the model's folder advises; prompts may go as tokens or as text."""
    reference = Reference(advised_model)
    tokenizer = str(advised_model) if counted else None
    replies = ask(judge(url, form="base", tokenizer=tokenizer), requests)
    assert len({reply.text for reply in replies.values()}) > 2
    for request in requests:
        reply = replies[request.key]
        assert (reply.text, reply.answer_tokens) == reference.answer(request)
        assert reply.prompt_tokens == len(reference.token_ids(request))
        assert parse(reply.text or "", request.choices or (), truncated=False)[0] == ANSWERED
    assert sum(reply.cached_tokens or 0 for reply in replies.values())


@pytest.mark.parametrize("system_role", [True, False])
def test_lists_of_a_chat_model(url: str, advised_model: Path, system_role: bool) -> None:
    reference = Reference(advised_model, chat=True, thinking=False)
    template = {} if system_role else {"chat_template": CHAT_TEMPLATE_WITHOUT_SYSTEM}
    if not system_role:
        reference.tokenizer.chat_template = CHAT_TEMPLATE_WITHOUT_SYSTEM
    settings = judge(url, form="chat", chat={"thinking": False}, request=template)
    replies = ask(settings, LISTS)
    for request in LISTS:
        reply = replies[request.key]
        assert (reply.text, reply.answer_tokens) == reference.answer(request)
        assert reply.prompt_tokens == len(reference.token_ids(request))


@pytest.mark.parametrize("form", ["base", "chat"])
def test_scores(url: str, advised_model: Path, form: str) -> None:
    reference = Reference(advised_model, chat=form == "chat")
    replies = ask(judge(url, form=form, strategy="score", tokenizer=str(advised_model)), SCORES)
    scores = {key: reply.log_odds for key, reply in replies.items()}
    expected = {request.key: reference.log_odds(request) for request in SCORES}
    assert scores == pytest.approx(expected, abs=1e-4)
    assert {reply.answer_tokens for reply in replies.values()} == {1}


def test_the_same_as_of_the_vllm_judge(url: str, advised_model: Path, engine: Engine) -> None:
    """Token for token: both decode greedily, in float32, the same prompts and weights."""
    scores = [replace(request, key=f"{request.key}?") for request in SCORES]
    offline = by_key(engine.ask(LISTS + scores))
    settings = judge(url, form="base", tokenizer=str(advised_model))
    served = ask(settings, LISTS) | ask(settings | {"strategy": "score"}, scores)
    assert {key: (reply.text, reply.prompt_tokens) for key, reply in served.items()} == {
        key: (reply.text, reply.prompt_tokens) for key, reply in offline.items()
    }
    assert {key: reply.log_odds for key, reply in served.items()} == pytest.approx(
        {key: reply.log_odds for key, reply in offline.items()}, abs=1e-5
    )


def test_a_server_that_keeps_to_json_schemas(url: str) -> None:
    """As OpenAI's does; vLLM knows that, too."""
    replies = ask(judge(url, server="openai", form="chat"), LISTS)
    for request in LISTS:
        reply = replies[request.key]
        assert reply.text
        assert json.loads(reply.text).keys() == {"liked"}
        assert parse(reply.text, request.choices or (), truncated=reply.truncated)[0] == ANSWERED


@pytest.mark.parametrize("form", ["base", "chat"])
def test_a_server_that_lists_the_most_probable_tokens(
    url: str, advised_model: Path, form: str
) -> None:
    """A word that it does not list is no more probable than the last that it does."""
    reference = Reference(advised_model, chat=form == "chat")
    replies = ask(judge(url, server="openai", form=form, strategy="score"), SCORES)
    for request in SCORES:
        log_odds = replies[request.key].log_odds
        exact = reference.log_odds(request)
        assert log_odds is None or log_odds * exact >= 0 or abs(log_odds) < abs(exact)


@pytest.mark.parametrize("form", ["base", "chat"])
def test_a_server_that_is_asked_for_text_alone(url: str, form: str) -> None:
    replies = ask(judge(url, server="plain", form=form), LISTS)
    assert all(reply.text is not None for reply in replies.values())
    assert any(reply.truncated for reply in replies.values())


def test_a_prompt_that_is_too_long_spoils_no_other(url: str) -> None:
    too_long = replace(LISTS[1], context="1 " * 5000)
    with connect(judge(url, form="base")) as engine:
        replies = {reply.key: reply for reply in engine.ask([LISTS[0], too_long, LISTS[2]])}
    assert "maximum context length" in (replies[too_long.key].error or "")
    assert [key for key, reply in replies.items() if reply.error] == [too_long.key]


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"model": "another"}, "check the judge's `model`"),
        ({"url": "/nothing"}, "`url`"),
        ({"request": {"top_p": 7}}, "request: {top_p: null}"),
    ],
)
def test_a_wrong_setting_ends_the_run_with_a_remedy(
    url: str, changes: dict[str, Any], remedy: str
) -> None:
    changes = {name: url + value if name == "url" else value for name, value in changes.items()}
    with pytest.raises(EngineError, match=remedy):
        ask(judge(url) | changes, LISTS)
