"""What passes between the pipeline and whatever runs a language model. Standard library only."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol


class EngineError(RuntimeError):
    """A language model cannot be run or reached; what it has answered so far is kept."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, and the form that its answer must have.

    Exactly one of ``choices`` and ``words`` is given.

    Attributes:
        key: names the prompt and the form of its answer; a reply carries it back.
        instructions: what to do, the same for all prompts of a run.
        context: what is known of the user, the same for all prompts of a user.
        question: the candidates, and what is asked about them.
        choices: what the answer is a list of: some of these texts, none twice, in their order, as
            `refine.feedback.parsing` writes them.
        words: the word for yes and the word for no, of which the model's log-odds are wanted.
    """

    key: str
    instructions: str
    context: str
    question: str
    choices: tuple[str, ...] | None
    words: tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. With an ``error`` nothing else counts, and the prompt is asked again later.

    Attributes:
        key: of the request.
        text: the answer as the model gave it.
        truncated: whether the answer was cut off at its greatest length.
        log_odds: ln p(yes) - ln p(no), where words were asked about; None where the model gave
            neither word a probability.
        prompt_tokens: tokens of the prompt.
        cached_tokens: how many of them the engine had computed before, where it says so.
        answer_tokens: tokens of the answer.
        error: why this prompt, and this prompt alone, could not be answered.
    """

    key: str
    text: str | None = None
    truncated: bool = False
    log_odds: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    answer_tokens: int | None = None
    error: str | None = None


class Engine(Protocol):
    """A running model.

    Attributes:
        facts: what was found out about it at the start, such as the commit of the weights, the
            version of the engine and the device: JSON values by name.
    """

    facts: dict[str, Any]

    def ask(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """Yields one reply a request, in any order, as soon as each is there.

        Takes requests from the iterable only as fast as it can work on them.

        Raises:
            EngineError: the model cannot go on.
        """


class StartEngine(Protocol):
    """Starts, or connects to, the model that a judge's settings name."""

    def __call__(self, settings: dict[str, Any]) -> AbstractContextManager[Engine]:
        """Everything that was started ends with the context, whatever happens in it.

        Raises:
            EngineError: it cannot be started; the message says what to do.
        """
