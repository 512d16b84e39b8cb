"""A prompt as a model reads it: rendered in its form, cut in two, and turned into token ids.

What stands before the question is the same in all prompts of a user. It is tokenised by itself, so
that an engine computes it once and prompts share its tokens exactly; the count of a prompt is that
of its two parts, and holds for the ids that are sent. Imports transformers and the standard library
only: the worker inside the engine's environment uses this very module.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Self

BASE = "base"
CHAT = "chat"

BREAK = "\n\n"
"""Between the three texts of a prompt."""

_CHARACTERS_AT_ONCE = 1 << 20

_TODAY = datetime(2024, 7, 26)
"""What a chat template that prints the date is told: the same prompt tomorrow as today."""


class TokenizerError(RuntimeError):
    """A model's tokenizer cannot be had, or cannot write prompts of the form asked for."""


class _Frame(NamedTuple):
    """What a chat template puts before, between and after the texts of a prompt."""

    before: str
    between: str
    after: str


class PromptTokenizer:
    """The tokenizer of one model."""

    def __init__(self, tokenizer: Any, name: str) -> None:
        """Takes a tokenizer of transformers; ``name`` is what messages call it."""
        self._tokenizer = tokenizer
        self._name = name
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()
        self._frames: dict[str, _Frame] = {}
        # Some tokenizers also append a token, or put a space before any text: looking at a letter
        # and at a line break shows what is theirs.
        (letter,) = self._encode(["a"])
        self._opening = _before(letter, tokenizer("a")["input_ids"])
        (self._line_break,) = self._encode(["\n"])
        self._added = tuple(tokenizer.get_added_vocab())

    @classmethod
    def load(cls, model: str, revision: str | None) -> Self:
        """Loads the tokenizer of a model.

        Args:
            model: a folder, or a name on the Hugging Face hub.
            revision: branch, tag or commit on the hub; no matter for a folder.

        Raises:
            TokenizerError: it cannot be had; the message says what to do.
        """
        from transformers import AutoTokenizer  # takes seconds

        if Path(model).expanduser().is_dir():
            model, revision = str(Path(model).expanduser()), None
        try:
            # mistral_common, where it is installed, would take over for some models: the engine's
            # environment has it, and both have to read a prompt alike.
            tokenizer = AutoTokenizer.from_pretrained(
                model, revision=revision, mistral_format=False
            )
        except (OSError, ValueError, ImportError) as error:
            raise TokenizerError(
                f"the tokenizer of {model} cannot be loaded. It has to be a folder with the "
                f"model's files, or a name on the Hugging Face hub that can be reached from here "
                f"or was downloaded before (`hf download {model}`); a gated model needs its terms "
                f"accepted and HF_TOKEN set. The cause: {error}"
            ) from error
        return cls(tokenizer, model)

    def pieces(
        self,
        form: str,
        instructions: str,
        context: str,
        question: str,
        chat: Mapping[str, Any],
    ) -> tuple[str, str]:
        """Renders a prompt: what stands before the question, and the question with what follows it.

        Args:
            form: "base", the texts one after the other, or "chat", by the model's chat template:
                a system message with the instructions and a user message with the rest. Where the
                template has no system role, the instructions open the user message.
            instructions: what to do.
            context: what is known of the user.
            question: the candidates, and what is asked about them.
            chat: further arguments of the chat template.

        Raises:
            TokenizerError: the model has no chat template, or one that these texts do not fit.
        """
        frame = _Frame("", BREAK, "") if form == BASE else self._chat_frame(chat)
        prefix = f"{frame.before}{instructions}{frame.between}{context}{BREAK}"
        return prefix, question + frame.after

    def prefix_ids(self, prefix: str, form: str) -> list[int]:
        """The token ids of what stands before the question, the tokenizer's first token included.

        In the chat form no token is added: the template has written them all.
        """
        (ids,) = self._encode([prefix])
        return ids if form == CHAT else self._opening + ids

    def rest_ids(self, rest: str) -> list[int]:
        """The token ids of the question and what follows it, as they are after a line break."""
        (ids,) = self._rests([rest])
        return ids

    def count_prefixes(self, prefixes: Sequence[str], form: str) -> list[int]:
        """The numbers of tokens of many texts, as `prefix_ids` would give them."""
        opening = 0 if form == CHAT else len(self._opening)
        return [opening + len(ids) for ids in self._encode(prefixes)]

    def count_rests(self, rests: Sequence[str]) -> list[int]:
        """The numbers of tokens of many texts, as `rest_ids` would give them."""
        return [len(ids) for ids in self._rests(rests)]

    def word_ids(self, text_before: str, words: tuple[str, str]) -> tuple[int, int]:
        """The one token that each of two answers is, where ``text_before`` asks for it.

        A word follows a space, but nothing at the start of a line or after a token of the chat
        template's own.

        Raises:
            TokenizerError: a word is several tokens, or both are the same.
        """
        before = self.rest_ids(text_before)
        at_start = text_before[-1:].isspace() or text_before.endswith(self._added)
        found = []
        for word in words:
            ids = self.rest_ids(text_before + ("" if at_start else " ") + word)
            if ids[:-1] != before:
                answer = self._tokenizer.convert_ids_to_tokens(ids[len(before) :])
                raise TokenizerError(
                    f"to the tokenizer of {self._name} the answer {word!r} is not one token but "
                    f"{answer}, so its probability cannot be read; name other `words` in the "
                    f"template of strategy score, or take strategy select"
                )
            found.append(ids[-1])
        yes, no = found
        if yes == no:
            raise TokenizerError(
                f"the tokenizer of {self._name} does not tell {words[0]!r} from {words[1]!r}; name "
                f"other `words` in the template of strategy score, or take strategy select"
            )
        return yes, no

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids without any that stand for no text."""
        return [ids for batch in _batches(texts) for ids in self._encode_batch(batch)]

    def _encode_batch(self, texts: list[str]) -> list[list[int]]:
        if self._backend is not None:
            # Twice as fast as what follows, which also finds out where in the text each token is.
            found = self._backend.encode_batch_fast(texts, add_special_tokens=False)
            return [encoding.ids for encoding in found]
        ids: list[list[int]] = self._tokenizer(texts, add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        return ids

    def _rests(self, rests: Iterable[str]) -> list[list[int]]:
        # Alone, "Step" would become " Step" to a SentencePiece model: it begins every text with a
        # space. After a line break, which is where it will stand, it does not.
        rests = list(rests)
        known = len(self._line_break)
        found = self._encode([f"\n{rest}" for rest in rests])
        merged = [place for place, ids in enumerate(found) if ids[:known] != self._line_break]
        for place, ids in zip(
            merged, self._encode([rests[place] for place in merged]), strict=True
        ):
            found[place] = self._line_break + ids
        return [ids[known:] for ids in found]

    def _chat_frame(self, chat: Mapping[str, Any]) -> _Frame:
        """Renders the template once, with marks in place of the texts, and cuts it at the marks."""
        key = json.dumps(chat, sort_keys=True)
        if key not in self._frames:
            self._frames[key] = self._render_frame(chat)
        return self._frames[key]

    def _render_frame(self, chat: Mapping[str, Any]) -> _Frame:
        if not self._tokenizer.chat_template:
            raise TokenizerError(f"{self._name} has no chat template: set the judge's form to base")
        instructions, user = "[instructions]", f"[context]{BREAK}[question]"
        with_system = [
            {"role": "system", "content": instructions},
            {"role": "user", "content": user},
        ]
        without = [{"role": "user", "content": f"{instructions}{BREAK}{user}"}]
        cause = "it changes the text that it is given"
        for messages in (with_system, without):
            try:
                text = self._tokenizer.apply_chat_template(
                    messages,
                    tokenize=False,
                    add_generation_prompt=True,
                    **{"strftime_now": _TODAY.strftime, **chat},
                )
            except Exception as error:  # the template is a program, and may raise anything
                cause = str(error)
                continue
            before, found_instructions, rest = text.partition(instructions)
            between, found_user, after = rest.partition(user)
            if found_instructions and found_user:  # some drop a system message without a word
                return _Frame(before, between, after)
        raise TokenizerError(
            f"the chat template of {self._name} cannot write the prompts ({cause}): check the "
            f"judge's `chat` arguments, or set its form to base"
        )


class PromptEncoder:
    """Turns the prompts of one run, all of one form, into the token ids that are sent."""

    def __init__(self, tokenizer: PromptTokenizer, form: str, chat: Mapping[str, Any]) -> None:
        """Arguments as for `PromptTokenizer.pieces`."""
        self._tokenizer, self._form, self._chat = tokenizer, form, chat
        # A user's prompts follow one another.
        self._prefix_ids = lru_cache(maxsize=16)(tokenizer.prefix_ids)
        self._word_ids: dict[tuple[str, str], tuple[int, int]] = {}

    def prompt_ids(self, instructions: str, context: str, question: str) -> list[int]:
        """The token ids of a whole prompt, as many as were counted.

        Raises:
            TokenizerError: the texts do not fit the form.
        """
        texts = (instructions, context, question)
        prefix, rest = self._tokenizer.pieces(self._form, *texts, self._chat)
        return self._prefix_ids(prefix, self._form) + self._tokenizer.rest_ids(rest)

    def word_ids(
        self, instructions: str, context: str, question: str, words: tuple[str, str]
    ) -> tuple[int, int]:
        """The tokens of two words after a prompt; the same for all, as all end in the same way.

        Raises:
            TokenizerError: a word is several tokens, or both are the same.
        """
        if words not in self._word_ids:
            texts = (instructions, context, question)
            _, rest = self._tokenizer.pieces(self._form, *texts, self._chat)
            self._word_ids[words] = self._tokenizer.word_ids(rest, words)
        return self._word_ids[words]


def _before(part: list[int], whole: list[int]) -> list[int]:
    """What stands in ``whole`` before the first ``part``."""
    for start in range(len(whole) - len(part) + 1):
        if whole[start : start + len(part)] == part:
            return whole[:start]
    return []


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """Cuts a list of texts into lists of about a million characters: a token takes much memory."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _CHARACTERS_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
