import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import CHATML, KINDS, NO_SYSTEM, SILENT, make_tokenizer, write_tokenizer
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from refine.feedback import tokens
from refine.feedback.tokens import PromptTokenizer, TokenizerError

INSTRUCTIONS = "You judge which titles a person liked."
CONTEXT = 'Step 1. The favourites:\n- "Title 1" <Drama>\n- "Amélie №1" <Sci-Fi>'
QUESTION = 'Step 3.\n1. "Title 7" <Drama>\nAnswer with their numbers.'

kinds = pytest.mark.parametrize("kind", KINDS)
texts = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1).map(str.strip)


def wrap(kind: str, chat_template: str | None = None) -> PromptTokenizer:
    return PromptTokenizer(make_tokenizer(kind, chat_template), "tiny")


@kinds
def test_a_base_prompt_is_the_three_texts_as_any_text_is_tokenised(kind: str) -> None:
    question = QUESTION + "\nAnswer:"
    prefix, rest = wrap(kind).pieces("base", INSTRUCTIONS, CONTEXT, question, {})
    assert prefix + rest == f"{INSTRUCTIONS}\n\n{CONTEXT}\n\n{question}"
    assert rest == question
    ids = wrap(kind).prefix_ids(prefix, "base") + wrap(kind).rest_ids(rest)
    assert ids == make_tokenizer(kind)(prefix + rest)["input_ids"]
    assert ids.count(make_tokenizer(kind).bos_token_id) == 1


@kinds
@pytest.mark.parametrize(
    ("template", "messages"),
    [
        (
            CHATML,
            [
                {"role": "system", "content": INSTRUCTIONS},
                {"role": "user", "content": f"{CONTEXT}\n\n{QUESTION}"},
            ],
        ),
        *(
            (template, [{"role": "user", "content": f"{INSTRUCTIONS}\n\n{CONTEXT}\n\n{QUESTION}"}])
            for template in (NO_SYSTEM, SILENT)
        ),
    ],
    ids=["system", "no system role", "system messages dropped"],
)
def test_a_chat_is_what_transformers_makes_of_the_messages(
    kind: str, template: str, messages: list[dict[str, str]]
) -> None:
    ours = wrap(kind, template)
    prefix, rest = ours.pieces("chat", INSTRUCTIONS, CONTEXT, QUESTION, {})
    assert prefix.endswith(f"{CONTEXT}\n\n")
    assert rest.startswith(QUESTION)
    expected = make_tokenizer(kind, template).apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    assert ours.prefix_ids(prefix, "chat") + ours.rest_ids(rest) == expected


@kinds
@settings(max_examples=50, deadline=None)
@given(context=texts.filter(bool), question=texts.filter(bool))
def test_token_ids_say_what_the_texts_say(kind: str, context: str, question: str) -> None:
    ours = wrap(kind)
    prefix, rest = ours.pieces("base", INSTRUCTIONS, context, question, {})
    bos, *ids = ours.prefix_ids(prefix, "base") + ours.rest_ids(rest)
    assert bos == make_tokenizer(kind).bos_token_id
    assert make_tokenizer(kind).decode(ids) == prefix + rest


@kinds
def test_counts_are_those_of_the_ids(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_CHARACTERS_AT_ONCE", 100)
    ours = wrap(kind)
    many = [CONTEXT[:length] for length in range(len(CONTEXT))]
    for form in ("base", "chat"):
        counts = ours.count_prefixes(many, form)
        assert counts == [len(ours.prefix_ids(text, form)) for text in many]
    assert ours.count_rests(many) == [len(ours.rest_ids(text)) for text in many]
    assert ours.count_prefixes([], "base") == ours.count_rests([]) == []


class InPython:
    """A tokenizer of transformers without the backend that the fast path takes."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self._tokenizer(*args, **kwargs)

    def get_added_vocab(self) -> dict[str, int]:
        return self._tokenizer.get_added_vocab()


@kinds
def test_tokenizers_written_in_python_give_the_same_ids(kind: str) -> None:
    slow, fast = PromptTokenizer(InPython(make_tokenizer(kind)), "slow"), wrap(kind)
    assert slow.prefix_ids(CONTEXT, "base") == fast.prefix_ids(CONTEXT, "base")
    assert slow.rest_ids(QUESTION) == fast.rest_ids(QUESTION)


def test_a_question_whose_start_melts_into_the_line_break_is_tokenised_alone() -> None:
    vocab = {"<s>": 0, "\n": 1, "a": 2, "b": 3, "\na": 4}
    made = Tokenizer(models.BPE(vocab, [("\n", "a")]))
    ours = PromptTokenizer(PreTrainedTokenizerFast(tokenizer_object=made), "melting")
    assert ours.rest_ids("ab") == [2, 3]
    assert ours.rest_ids("ba") == [3, 2]
    assert ours.count_rests(["ab", "b", "a"]) == [2, 1, 1]


def test_arguments_reach_the_chat_template() -> None:
    template = "{{ '(fast)' if quick else '(slow)' }}" + CHATML
    ours = wrap("byte-level", template)
    rendered = [
        ours.pieces("chat", INSTRUCTIONS, CONTEXT, QUESTION, {"quick": quick})[0][:6]
        for quick in (True, False, True)
    ]
    assert rendered == ["(fast)", "(slow)", "(fast)"]


def test_a_template_that_prints_the_date_writes_the_same_prompt_on_any_day() -> None:
    ours = wrap("byte-level", "{{ strftime_now('%d %b %Y') }}\n" + CHATML)
    prefix, _ = ours.pieces("chat", INSTRUCTIONS, CONTEXT, QUESTION, {})
    assert prefix.startswith("26 Jul 2024\n")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "tiny has no chat template: set the judge's form to base"),
        ("{{ raise_exception('not today') }}", "cannot write the prompts .not today."),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "changes the text"),
    ],
)
def test_models_that_cannot_chat(template: str | None, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        wrap("byte-level", template).pieces("chat", INSTRUCTIONS, CONTEXT, QUESTION, {})


@pytest.mark.parametrize(
    ("kind", "before", "expected"),
    [
        ("byte-level", "Title 7\nAnswer:", ["Ġyes", "Ġno"]),
        ("sentencepiece", "Title 7\nAnswer:", ["▁yes", "▁no"]),
        ("byte-level", "Title 7<|im_end|>\n<|im_start|>assistant\n", ["yes", "no"]),
        ("byte-level", "Title 7<|im_end|>", ["yes", "no"]),
        ("sentencepiece", "Title 7 [/INST]", ["▁yes", "▁no"]),
    ],
)
def test_the_token_of_each_word(kind: str, before: str, expected: list[str]) -> None:
    found = wrap(kind).word_ids(before, ("yes", "no"))
    assert make_tokenizer(kind).convert_ids_to_tokens(list(found)) == expected


@kinds
def test_words_of_several_tokens(kind: str) -> None:
    with pytest.raises(TokenizerError, match=r"'unlikely' is not one token but .*strategy select"):
        wrap(kind).word_ids("Answer:", ("yes", "unlikely"))


def test_words_that_are_one_token_to_the_model() -> None:
    vocab = {"<unk>": 0, "\n": 1, ":": 2, " ": 3}
    made = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", fuse_unk=True))  # noqa: S106
    ours = PromptTokenizer(PreTrainedTokenizerFast(tokenizer_object=made), "blind")
    with pytest.raises(TokenizerError, match="does not tell 'yes' from 'no'"):
        ours.word_ids(":\n", ("yes", "no"))


@kinds
def test_loading_a_folder(kind: str, tmp_path: Path) -> None:
    loaded = PromptTokenizer.load(write_tokenizer(tmp_path, kind, CHATML), "no matter")
    for form in ("base", "chat"):
        pieces = loaded.pieces(form, INSTRUCTIONS, CONTEXT, QUESTION, {})
        assert pieces == wrap(kind, CHATML).pieces(form, INSTRUCTIONS, CONTEXT, QUESTION, {})
        assert loaded.prefix_ids(pieces[0], form) == wrap(kind).prefix_ids(pieces[0], form)
        assert loaded.rest_ids(pieces[1]) == wrap(kind).rest_ids(pieces[1])


@pytest.mark.parametrize("name", [".", "/no/such/folder"])
def test_tokenizers_that_cannot_be_had(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TokenizerError, match="has to be a folder with the model's files, or a"):
        PromptTokenizer.load(name, None)


def test_the_engine_needs_none_of_our_packages_to_count() -> None:
    source = Path(tokens.__file__).parents[2]
    hidden = "import sys; sys.modules.update(dict.fromkeys(['polars', 'pyarrow', 'yaml', 'numpy']))"
    program = f"{hidden}; sys.path.insert(0, {str(source)!r}); import refine.feedback.tokens"
    subprocess.run([sys.executable, "-c", program], check=True)
