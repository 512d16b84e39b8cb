"""How prompts want to be answered; a file of prompts says so itself. Standard library only."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

NUMBERS = "numbers"
TITLES = "titles"
WORDS = "words"

_KEY = b"answer"


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """What the answers to a set of prompts are made of.

    Attributes:
        by: NUMBERS of candidates, their TITLES, or one of two WORDS about a single candidate.
        words: the word for yes and the word for no, with WORDS.
    """

    by: str
    words: tuple[str, str] | None = None

    @classmethod
    def of(cls, prompts: dict[str, Any], strategy: str, words: tuple[str, str] | None) -> Self:
        """The form that the settings ask for.

        Args:
            prompts: the settings of the prompts, of which ``answer`` is read.
            strategy: the judge's, select or score.
            words: those of the template, which count where the judge scores.
        """
        return cls(WORDS, words) if strategy == "score" else cls(prompts["answer"])

    def to_metadata(self) -> dict[str, str]:
        """The form as metadata of a Parquet file."""
        return {_KEY.decode(): json.dumps(asdict(self))}

    @classmethod
    def from_metadata(cls, metadata: Mapping[bytes, bytes] | None) -> Self | None:
        """The form that a Parquet file's metadata name, None where they name none."""
        text = (metadata or {}).get(_KEY)
        if text is None:
            return None
        found = json.loads(text)
        return cls(found["by"], tuple(found["words"]) if found["words"] else None)
