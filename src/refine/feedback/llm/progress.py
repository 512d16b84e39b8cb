"""How far a language model has come: a bar where a terminal watches, and lines in the log."""

import logging
from collections import Counter
from threading import Event, Thread
from time import monotonic
from typing import Self

from tqdm import tqdm

from refine.feedback.llm.engine import Reply
from refine.feedback.parsing import UNPARSEABLE

log = logging.getLogger("refine.progress")

EVERY = 60.0
"""Seconds between two lines of the log, whether or not an answer came in between."""


class Progress:
    """Counts replies and tells of them; a context, within which the time runs.

    Attributes:
        statuses: how many replies had which status.
        prompt_tokens: tokens of the prompts.
        cached_tokens: how many of them the engine had computed before.
        answer_tokens: tokens of the answers.
    """

    def __init__(self, total: int) -> None:
        """Starts from nothing; ``total`` is how many replies are to come."""
        self.statuses: Counter[str] = Counter()
        self.prompt_tokens = self.cached_tokens = self.answer_tokens = 0
        self._total = total
        self._since = self._until = monotonic()
        self._ended = Event()
        self._teller = Thread(target=self._tell, daemon=True)

    def __enter__(self) -> Self:
        self._since = self._until = monotonic()
        self._bar = tqdm(total=self._total, desc="answers", unit="prompt", disable=None)
        self._teller.start()
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        self._ended.set()
        self._teller.join()
        self._bar.close()
        if failure is not None:
            log.info("stopped: %s", self)

    def count(self, reply: Reply, status: str) -> None:
        """Counts a reply."""
        self.statuses[status] += 1
        self.prompt_tokens += reply.prompt_tokens or 0
        self.cached_tokens += reply.cached_tokens or 0
        self.answer_tokens += reply.answer_tokens or 0
        self._until = monotonic()
        self._bar.set_postfix_str(self._rates(), refresh=False)
        self._bar.update()

    @property
    def replies(self) -> int:
        """How many replies were counted."""
        return self.statuses.total()

    @property
    def seconds(self) -> float:
        """From the start to the latest reply."""
        return self._until - self._since

    def speed(self) -> dict[str, float]:
        """Prompt tokens computed and answer tokens, each by the same seconds.

        Reading and writing share that time, so neither number is what the engine could do if it
        did nothing else.
        """
        seconds = max(self.seconds, 1e-3)
        return {
            "prompt": (self.prompt_tokens - self.cached_tokens) / seconds,
            "answer": self.answer_tokens / seconds,
        }

    def __str__(self) -> str:
        line = f"{self.replies:,} of {self._total:,} prompts answered"
        if not self.replies:
            return f"{line} after {duration(monotonic() - self._since)}"
        to_go = self.seconds / self.replies * (self._total - self.replies)
        return f"{line}, {self._rates()}, {duration(to_go)} to go"

    def _rates(self) -> str:
        speed = self.speed()
        unparseable = self.statuses[UNPARSEABLE] / max(self.replies, 1)
        return (
            f"{speed['prompt']:,.0f} tokens/s read, {speed['answer']:,.0f} written, "
            f"{unparseable:.1%} unparseable"
        )

    def _tell(self) -> None:
        while not self._ended.wait(EVERY):
            log.info("%s", self)


def duration(seconds: float) -> str:
    """A time span in its two largest units, such as 2 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
