"""The wording of the prompts, which stands in YAML files that anyone may change."""

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import polars as pl
import yaml

_PLACEHOLDERS = {
    "instructions": (),
    "named": ("dataset",),
    "context": ("favourites", "example", "example_answer"),
    "question": ("candidates",),
    "cue": (),
}
"""The texts of a template, and what each may have in braces."""


_PLACEHOLDER = re.compile(r"\{(\w+)\}")


class TemplateError(ValueError):
    """A prompt template cannot be used."""


@dataclass(frozen=True)
class Template:
    """What the texts of a prompt are made of.

    Attributes:
        version: of the wording.
        instructions: what to do; the same in all prompts.
        named: one more sentence of the instructions, for prompts that name the ``{dataset}``.
        context: what is known of the user: ``{favourites}``, ``{example}``, ``{example_answer}``.
        question: what is asked about the ``{candidates}``.
        cue: what a text to be completed ends with; also stands before the verdict on each entry of
            an example, where there are ``words``.
        words: yes and no, where one candidate a prompt is answered by one of them; None where
            those that are liked are picked from a list.
    """

    version: int
    instructions: str
    named: str
    context: str
    question: str
    cue: str
    words: tuple[str, str] | None = None


def read_template(path: Path) -> Template:
    """Reads a template.

    Raises:
        TemplateError: it is no YAML, lacks a text or has an unknown one, or an unknown placeholder.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise TemplateError(f"{path}: the prompt template is not YAML: {error}") from error
    if not isinstance(found, dict):
        raise TemplateError(f"{path}: the prompt template is no mapping of names to texts")
    known = [field.name for field in fields(Template)]
    if unknown := sorted(str(name) for name in found.keys() - set(known)):
        raise TemplateError(f"{path}: unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    version, words = found.get("version"), found.get("words")
    if type(version) is not int:
        raise TemplateError(f"{path}: version has to be a whole number, not {version!r}")
    texts = {name: _text(path, name, found.get(name)) for name in _PLACEHOLDERS}
    if "candidates" not in _names(texts["question"]):
        raise TemplateError(f"{path}: question has no {{candidates}}")
    if words is not None:
        words = _two_words(path, words)
        if "example_answer" in _names(texts["context"]):
            raise TemplateError(
                f"{path}: with words there is no {{example_answer}}: the {{example}} has a verdict "
                f"on each of its entries"
            )
    return Template(version=version, words=words, **texts)


def fill(text: str) -> pl.Expr:
    """The text with the values of columns in place of its placeholders.

    Values are put between the pieces of the text and never searched again, so a title that looks
    like a placeholder stays a title.
    """
    pieces = _PLACEHOLDER.split(text)
    return pl.concat_str(
        [pl.lit(piece) if place % 2 == 0 else pl.col(piece) for place, piece in enumerate(pieces)]
    )


def _names(text: str) -> list[str]:
    return _PLACEHOLDER.findall(text)


def _text(path: Path, name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TemplateError(f"{path}: {name} has to be a text, not {value!r}")
    allowed = _PLACEHOLDERS[name]
    for placeholder in _names(value):
        if placeholder not in allowed:
            listed = ", ".join(f"{{{one}}}" for one in allowed) or "nothing in braces"
            raise TemplateError(f"{path}: {{{placeholder}}} in {name}, which may have {listed}")
    return value.strip()


def _two_words(path: Path, words: Any) -> tuple[str, str]:
    match words:
        case [str(yes), str(no)] if yes != no and len(f"{yes} {no}".split()) == 2:
            return yes, no
    raise TemplateError(
        f'{path}: words has to be two different words in quotation marks, such as ["yes", "no"] '
        f"(without them YAML takes yes for true), not {words!r}"
    )
