"""Answers that are lists: their form, and how they are read. Standard library only.

Everything that keeps a model's answers in form, or makes sense of what it said, follows from the
choices of a prompt: the numbers of its candidates, or their titles in double quotes. Where two
candidates are shown under one title, that title picks both: nothing tells them apart.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

ANSWERED = "answered"
UNPARSEABLE = "unparseable"
TRUNCATED = "truncated"
MISSING = "missing"

NOTHING = "none"
"""The answer that picks nothing."""

LIKED = "liked"
"""The only property of an answer in JSON."""

_SEPARATOR = ", "
_LINE_ENDS = "\n\n"
"""What may follow an answer: models end a paragraph with a single token of two line breaks."""

_ITEM = r'"[^"\n]*"|\d+'
_BETWEEN = r"\s*(?:,\s*and\b|,\s*&|,|;|\band\b|&)\s*"
_LIST = re.compile(rf"(?:{_ITEM})(?:{_BETWEEN}(?:{_ITEM}))*", re.IGNORECASE)
_LEAD = re.compile(r"\A\s*(?:```(?:json)?\s*|answer\s*:\s*)*", re.IGNORECASE)
_SPECIAL = re.compile(r"[\\.^$*+?{}\[\]()|]")


def numbers(candidates: int) -> tuple[str, ...]:
    """The choices of a prompt whose candidates are answered by number: 1, 2, 3, ..."""
    return tuple(map(str, range(1, candidates + 1)))


def pattern(choices: Sequence[str]) -> str:
    """A regular expression of the answers that are in form.

    An answer is the word none, or some of the choices in their order, none twice. A space may
    precede it, as most models write one after the cue. Line breaks may follow: a model that
    completes text ends its answer with them and hardly ever with the token that ends a text, so
    that without them it would rather go on with the list than end it.

    The length grows with the square of the number of choices. Nothing but literal text, groups,
    ``|`` and ``?`` is used, which every engine of constrained decoding knows.
    """
    texts = [_SPECIAL.sub(r"\\\g<0>", choice) for choice in dict.fromkeys(choices)]
    lists = [
        first + "".join(f"({_SEPARATOR}{later})?" for later in texts[place + 1 :])
        for place, first in enumerate(texts)
    ]
    ends = "".join(f"{line_break}?" for line_break in _LINE_ENDS)
    return f" ?({'|'.join([NOTHING, *lists])}){ends}"


def json_schema(choices: Sequence[str]) -> dict[str, Any]:
    """The JSON schema of an answer, for servers that keep to schemas and not to patterns.

    It cannot forbid repetitions, as no server knows ``uniqueItems``.
    """
    values = _json_values(choices)
    liked = {
        "type": "array",
        "items": {
            "type": "integer" if isinstance(values[0], int) else "string",
            "enum": values,
        },
        "maxItems": len(values),
    }
    return {
        "type": "object",
        "properties": {LIKED: liked},
        "required": [LIKED],
        "additionalProperties": False,
    }


def answer_room(choices: Sequence[str] | None) -> int:
    """How many tokens the longest answer in form can take, under any tokenizer.

    Every token stands for a byte at least, but for the one that ends the text. Where the answer is
    one of two words (``choices`` is None), it is one token.
    """
    if choices is None:
        return 1
    listed = _SEPARATOR.join(dict.fromkeys(choices))
    as_json = json.dumps({LIKED: _json_values(choices)}, ensure_ascii=False)
    forms = (f" {listed}{_LINE_ENDS}", f" {NOTHING}{_LINE_ENDS}", as_json)
    return max(len(form.encode()) for form in forms) + 1


def parse(text: str, choices: Sequence[str], *, truncated: bool) -> tuple[str, list[int]]:
    """Reads an answer.

    Its first line that is not blank counts, or the JSON value that begins there. Around a list may
    be brackets, a period, the word "Answer:" or a code fence; "and" may stand for a comma; and a
    choice that is repeated counts once. Of any other answer, be it with a number out of range or
    with prose, nothing is taken, since one cannot know which part of it was meant.

    Args:
        text: what the model said.
        choices: one a candidate, in the order of the prompt.
        truncated: whether the answer was cut off. A line that has ended, and JSON that has, are
            complete all the same.

    Returns:
        ANSWERED, UNPARSEABLE or TRUNCATED, and the places of the picked candidates, from 0,
        ascending.
    """
    text = _LEAD.sub("", text)
    if (listed := _read_json(text, quoted=choices[0].startswith('"'))) is not None:
        return _places(listed, choices)
    line, line_break, _ = text.partition("\n")
    if truncated and (not line_break or text.startswith("{")):
        return TRUNCATED, []
    line = line.strip("()[]{}*. \t\r")
    if line.lower() == NOTHING:
        return ANSWERED, []
    if not _LIST.fullmatch(line):
        return UNPARSEABLE, []
    return _places(re.findall(_ITEM, line), choices)


def _places(listed: Iterable[str], choices: Sequence[str]) -> tuple[str, list[int]]:
    """Where the listed choices stand; a single one that is none of them spoils the answer."""
    places = defaultdict(list)
    for place, choice in enumerate(choices):
        places[choice].append(place)
    picked: set[int] = set()
    for choice in listed:
        if choice not in places:
            return UNPARSEABLE, []
        picked.update(places[choice])
    return ANSWERED, sorted(picked)


def _json_values(choices: Sequence[str]) -> list[int] | list[str]:
    """The choices as they stand in JSON, none twice: numbers, or titles without their quotes."""
    distinct = list(dict.fromkeys(choices))
    if distinct[0].startswith('"'):
        return [choice[1:-1] for choice in distinct]
    return [int(choice) for choice in distinct]


def _read_json(text: str, *, quoted: bool) -> list[str] | None:
    """The entries of a JSON list, or of an object's ``liked``, written as choices are.

    None where the text does not begin with either; what follows the value does not matter.
    """
    if not text.startswith(("{", "[")):
        return None
    try:
        value, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        value = value.get(LIKED)
    if not isinstance(value, list):
        return None
    texts = [entry if isinstance(entry, str) else json.dumps(entry) for entry in value]
    return [f'"{text}"' if quoted and not text.startswith('"') else text for text in texts]
