import json
import math

import pytest
from faulty_server import completion
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from refine.feedback.llm.dialects import AnswerError, Dialect
from refine.feedback.llm.engine import EngineError, Reply, Request
from refine.feedback.parsing import answer_room, json_schema, pattern
from refine.feedback.tokens import PromptTokenizer

SETTINGS = {
    "model": "m",
    "server": "openai",
    "form": "chat",
    "strategy": "select",
    "tokenizer": None,
    "chat": {},
    "request": {},
}
CHOICES = ("1", "2", "3")
WORDS = ("yes", "no")
SELECT = Request("k", "Be a judge.", "They like this.", "And this? Answer:", CHOICES, None)
SCORE = Request("k", "Be a judge.", "They like this.", "And this? Answer:", None, WORDS)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The folder of a byte-level tokenizer to which both words are one token, spaced or not."""
    tokens = Tokenizer(BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokens.train_from_iterator(["yes no yes no", "They like this."] * 9, trainer)
    tokens.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokens.token_to_id("<s>"))]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokens, bos_token="<s>")  # noqa: S106
    fast.chat_template = (
        "{% for m in messages %}[{{ m.role }}]\n{{ m.content }}\n{% endfor %}[assistant]\n\n"
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    fast.save_pretrained(folder)
    return str(folder)


def dialect(**changes):
    return Dialect(SETTINGS | changes)


def read(answer, request=SELECT, **changes):
    return dialect(**changes).reply(request, json.dumps(answer))


def weighed(pairs, *, chat=True, text="yes"):
    """An answer of one token, with the log-probabilities of some tokens in its place."""
    if chat:
        listed = [{"token": token, "logprob": weight} for token, weight in pairs]
        logprobs = {"content": [{"token": text, "logprob": -1, "top_logprobs": listed}]}
    else:
        logprobs = {"tokens": [text], "top_logprobs": [dict(pairs)]}
    return completion(text, chat=chat, finish_reason="length", logprobs=logprobs)


# --- What is sent.

CHAT_PROMPT = {
    "messages": [
        {"role": "system", "content": "Be a judge."},
        {"role": "user", "content": "They like this.\n\nAnd this? Answer:"},
    ]
}
BASE_PROMPT = {"prompt": "Be a judge.\n\nThey like this.\n\nAnd this? Answer:"}
ROOM = {"max_tokens": answer_room(CHOICES)}
PATTERN = {
    "structured_outputs": {"regex": pattern(CHOICES)},
    "stop": ["\n"],
    "repetition_penalty": 1.0,
}
SCHEMA = {
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "liked", "strict": True, "schema": json_schema(CHOICES)},
    }
}


@pytest.mark.parametrize(
    ("server", "form", "expected"),
    [
        ("vllm", "base", BASE_PROMPT | ROOM | PATTERN),
        ("vllm", "chat", CHAT_PROMPT | ROOM | PATTERN),
        ("openai", "base", BASE_PROMPT | ROOM),
        ("openai", "chat", CHAT_PROMPT | SCHEMA),
        ("plain", "base", BASE_PROMPT | ROOM),
        ("plain", "chat", CHAT_PROMPT | ROOM),
    ],
)
def test_what_is_sent_to_have_candidates_picked(server, form, expected):
    body = dialect(server=server, form=form).body(SELECT)
    room = body.pop("max_completion_tokens", None)
    assert (room is not None) == (expected.keys() >= SCHEMA.keys())
    assert body == {"model": "m", "temperature": 0} | expected


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("base", BASE_PROMPT | {"max_tokens": 1, "logprobs": 5}),
        ("chat", CHAT_PROMPT | {"max_completion_tokens": 1, "logprobs": True, "top_logprobs": 20}),
    ],
)
def test_what_is_sent_to_openai_to_have_a_candidate_scored(form, expected):
    body = dialect(strategy="score", form=form).body(SCORE)
    assert body == {"model": "m", "temperature": 0} | expected


@pytest.mark.parametrize(("form", "spelt"), [("base", "Ġ"), ("chat", "")])
def test_what_is_sent_to_vllm_to_have_a_candidate_scored(tokenizer, form, spelt):
    body = dialect(server="vllm", strategy="score", form=form, tokenizer=tokenizer).body(SCORE)
    vocabulary = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    words = vocabulary.convert_ids_to_tokens(list(body["logprob_token_ids"]))
    assert words == [f"{spelt}yes", f"{spelt}no"]
    assert body["max_tokens"] == 1
    assert body["return_tokens_as_token_ids"] is True
    assert body["logprobs"]


def test_vllm_gets_the_tokens_that_were_counted(tokenizer):
    body = dialect(server="vllm", form="base", tokenizer=tokenizer).body(SELECT)
    counter = PromptTokenizer.load(tokenizer, None)
    prefix, rest = counter.pieces("base", SELECT.instructions, SELECT.context, SELECT.question, {})
    assert body["prompt"] == counter.prefix_ids(prefix, "base") + counter.rest_ids(rest)
    whole = PreTrainedTokenizerFast.from_pretrained(tokenizer).decode(body["prompt"])
    assert whole == "<s>" + BASE_PROMPT["prompt"]


def test_arguments_of_the_chat_template_go_along():
    chat = {"enable_thinking": False}
    assert dialect(chat=chat).body(SELECT)["chat_template_kwargs"] == chat
    assert "chat_template_kwargs" not in dialect(chat=chat, form="base").body(SELECT)


def test_fields_of_the_request_can_be_added_changed_and_left_out():
    extra = {"reasoning_effort": "low", "max_completion_tokens": 2000, "temperature": None}
    body = dialect(request=extra).body(SELECT)
    assert body["reasoning_effort"] == "low"
    assert body["max_completion_tokens"] == 2000
    assert "temperature" not in body


@pytest.mark.parametrize(
    ("choices", "style"),
    [(CHOICES, {}), (CHOICES, {"indent": 4}), (('"Ünïcödé ☃"', '"B"'), {"indent": 2})],
)
def test_there_is_room_for_json_however_it_is_written(choices, style):
    request = Request("k", "a", "b", "c", choices, None)
    schema = json_schema(choices)
    everything = schema["properties"]["liked"]["items"]["enum"]
    longest = json.dumps({"liked": everything}, ensure_ascii=False, **style)
    assert dialect().body(request)["max_completion_tokens"] > len(longest.encode())


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [({"server": "plain"}, "`server` to `vllm` or `openai`"), ({"server": "vllm"}, "`tokenizer`")],
)
def test_scores_that_a_server_cannot_give(changes, remedy):
    with pytest.raises(EngineError, match=remedy):
        dialect(strategy="score", **changes)


def test_a_tokenizer_that_cannot_be_had(tmp_path):
    with pytest.raises(EngineError, match="cannot be loaded"):
        dialect(server="vllm", form="base", tokenizer=str(tmp_path))


def test_words_that_are_several_tokens(tokenizer):
    judge = dialect(server="vllm", strategy="score", tokenizer=tokenizer)
    with pytest.raises(EngineError, match="not one token"):
        judge.body(Request("k", "a", "b", "c", None, ("indubitably", "no")))


# --- What is read.


@pytest.mark.parametrize("form", ["base", "chat"])
@pytest.mark.parametrize("finish_reason", ["stop", "length"])
def test_an_answer_is_read(form, finish_reason):
    answer = completion("1, 3", chat=form == "chat", finish_reason=finish_reason)
    assert read(answer, form=form) == Reply(
        "k",
        "1, 3",
        truncated=finish_reason == "length",
        prompt_tokens=30,
        cached_tokens=20,
        answer_tokens=4,
    )


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": "many"}, {"prompt_tokens": None}])
def test_a_server_need_not_count(usage):
    assert read(completion("1", chat=True) | {"usage": usage}) == Reply("k", "1")


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": None, "refusal": "I must not judge."}, "I must not judge."),
        ({"content": None}, ""),
        ({}, ""),
    ],
)
def test_a_message_without_content(message, text):
    answer = {"choices": [{"finish_reason": "stop", "message": {"role": "assistant"} | message}]}
    assert read(answer).text == text


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    ["choices", "message", "role", "content", "text", "logprobs", "usage"]
                ),
                inner,
            )
        ),
    ),
    st.sampled_from(["base", "chat"]),
    st.sampled_from([SELECT, SCORE]),
)
def test_whatever_comes_is_an_answer_or_none(answer, form, request):
    try:
        reply = read(answer, request, form=form)
    except AnswerError:
        return
    except EngineError:
        assert request is SCORE
        return
    assert isinstance(reply.text, str)


@pytest.mark.parametrize("text", ["", "<html>", '{"choices": [', "NaN", '{"choices": Infinity}'])
def test_what_is_no_json(text):
    with pytest.raises(AnswerError):
        dialect().reply(SELECT, text)


@pytest.mark.parametrize("form", ["base", "chat"])
def test_log_odds_of_listed_words(form):
    pairs = [("yes", math.log(0.5)), ("no", math.log(0.125)), ("maybe", math.log(0.01))]
    reply = read(weighed(pairs, chat=form == "chat"), SCORE, form=form)
    assert reply.log_odds == pytest.approx(math.log(4))
    assert reply.text == "yes"
    assert not reply.truncated


@pytest.mark.parametrize(
    ("listed", "odds"),
    [
        ({"Yes": 0.3, " yes": 0.2, "YES": 0.1, "no": 0.2}, 3),
        ({"yes": 0.6, "perhaps": 0.2, "never": 0.1}, 6),
        ({"perhaps": 0.6, "No": 0.3, "never": 0.1}, 1 / 3),
        ({"yesterday": 0.5, "yes": 0.25, "nope": 0.2, "no": 0.05}, 5),
    ],
)
def test_words_in_any_case_and_the_bound_of_one_that_is_not_listed(listed, odds):
    pairs = [(token, math.log(share)) for token, share in listed.items()]
    assert read(weighed(pairs), SCORE).log_odds == pytest.approx(math.log(odds))


@pytest.mark.parametrize("weight", [math.nan, -math.inf])
def test_a_probability_that_is_no_number(weight):
    with pytest.raises(AnswerError):
        read(weighed([("yes", weight), ("no", -1.0)]), SCORE)


def test_neither_word_is_listed():
    assert read(weighed([("perhaps", -0.1)]), SCORE).log_odds is None


def test_an_answer_without_a_token_has_no_odds():
    reply = read(completion("", chat=True, logprobs={"content": []}), SCORE)
    assert (reply.text, reply.log_odds) == ("", None)


@pytest.mark.parametrize("form", ["base", "chat"])
def test_a_server_that_keeps_its_probabilities(form):
    with pytest.raises(EngineError, match="without the probabilities"):
        read(completion("yes", chat=form == "chat"), SCORE, form=form)


@pytest.mark.parametrize("form", ["base", "chat"])
@pytest.mark.parametrize(
    ("weights", "log_odds"),
    [((-1.5, -4.0), 2.5), ((-4.0, -1.5), -2.5), ((-9999.0, -9999.0), None), ((-2, -9999.0), None)],
)
def test_log_odds_of_tokens_by_number(tokenizer, form, weights, log_odds):
    chat = form == "chat"
    judge = dialect(server="vllm", strategy="score", form=form, tokenizer=tokenizer)
    names = [f"token_id:{number}" for number in judge.body(SCORE)["logprob_token_ids"]]
    sampled = ("token_id:0", -0.1)
    answer = weighed([sampled, *zip(names, weights, strict=True)], chat=chat)
    assert judge.reply(SCORE, json.dumps(answer)).log_odds == log_odds
    with pytest.raises(EngineError, match="`server` names its kind"):
        judge.reply(SCORE, json.dumps(weighed([sampled], chat=chat)))
