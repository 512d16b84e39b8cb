"""Asks a language model what it was never asked before, and keeps what it answers."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from time import monotonic
from typing import Any, Self, cast

from refine.feedback.llm.cache import AnswerCache
from refine.feedback.llm.engine import Reply, Request, StartEngine
from refine.feedback.llm.progress import Progress, duration
from refine.feedback.llm.requests import verdict
from refine.feedback.parsing import TRUNCATED, UNPARSEABLE
from refine.feedback.registry import ENGINES

log = logging.getLogger("refine.ask")

KEPT_AT_ONCE = 256
"""How many replies at most are not yet on disk, and would be lost if the process were killed."""

KEPT_EVERY = 30.0
"""Seconds after which the next reply takes all that came before it to disk."""

_ERRORS_SHOWN = 3


def engine_of(kind: str) -> StartEngine:
    """What starts, or reaches, the model of a kind of judge, by name: see the registry."""
    module, _, function = ENGINES[kind].partition(":")
    return cast(StartEngine, getattr(import_module(module), function))


def ask(
    start: StartEngine,
    settings: dict[str, Any],
    keys: Sequence[str],
    requests: Iterable[Request],
    cache: AnswerCache,
) -> dict[str, Reply]:
    """Has requests answered: from the cache where it can, else by an engine.

    The engine is started only if something is missing. Its replies are kept as they come, so that
    after a failure or a kill the same call goes on from there.

    Args:
        start: starts the engine.
        settings: of the judge: what to start the engine with.
        keys: of all requests.
        requests: read once, and only if something is missing, as fast as the engine takes them.
            Those that share what stands before the question should follow one another.
        cache: of the answers.

    Returns:
        A reply for each key. One with an ``error`` is asked again by the next call.

    Raises:
        EngineError: the engine cannot start, or cannot go on.
        CacheError: the model is not the one whose answers are in the cache.
    """
    replies = cache.lookup(keys)
    missing = set(keys) - replies.keys()
    log.info("%d of %d prompts were answered before", len(replies), len(replies) + len(missing))
    if not missing:
        return replies
    log.info("starting the engine")
    with start(settings) as engine:
        cache.check(engine.facts)
        facts = ", ".join(f"{name} {value}" for name, value in engine.facts.items())
        log.info("the engine is ready: %s", facts)
        pending: dict[str, Request] = {}
        with Progress(len(missing)) as progress, _Keeper(cache) as keeper:
            for reply in map(_as_text, engine.ask(_only(missing, requests, pending))):
                status, _ = verdict(reply, pending.pop(reply.key).choices)
                progress.count(reply, status)
                keeper.keep(reply)
                replies[reply.key] = reply
    if progress.prompt_tokens:
        cache.record_speed(progress.speed())
    for key in missing - replies.keys():
        replies[key] = Reply(key, error="the engine gave no answer")
    errors = Counter(error for key in missing if (error := replies[key].error))
    _sum_up(progress, errors)
    return replies


class _Keeper:
    """Takes replies to disk: many at once, but none much later than it came."""

    def __init__(self, cache: AnswerCache) -> None:
        self._cache = cache
        self._held: list[Reply] = []
        self._kept_at = monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()

    def keep(self, reply: Reply) -> None:
        self._held.append(reply)
        if len(self._held) >= KEPT_AT_ONCE or monotonic() - self._kept_at >= KEPT_EVERY:
            self._flush()

    def _flush(self) -> None:
        self._cache.add(self._held)
        self._held.clear()
        self._kept_at = monotonic()


def _only(
    missing: set[str], requests: Iterable[Request], pending: dict[str, Request]
) -> Iterator[Request]:
    """Passes on what is missing, each once, and notes it in ``pending``."""
    left = set(missing)
    for request in requests:
        if request.key in left:
            left.remove(request.key)
            pending[request.key] = request
            yield request


def _as_text(reply: Reply) -> Reply:
    """The reply without the halves of characters that JSON can hold and a table cannot."""
    if reply.text is None:
        return reply
    return replace(reply, text=reply.text.encode(errors="replace").decode())


def _sum_up(progress: Progress, errors: Counter[str]) -> None:
    statuses, prompt_tokens = progress.statuses, progress.prompt_tokens
    log.info(
        "%d prompts in %s: %d unparseable, %d truncated, %d without an answer; %s tokens read, "
        "%.0f%% of them from the prefix cache, %s written",
        progress.replies,
        duration(progress.seconds),
        statuses[UNPARSEABLE],
        statuses[TRUNCATED],
        errors.total(),
        f"{prompt_tokens:,}",
        100 * progress.cached_tokens / max(prompt_tokens, 1),
        f"{progress.answer_tokens:,}",
    )
    for error, prompts in errors.most_common(_ERRORS_SHOWN):
        log.warning("%d prompts have no answer: %s", prompts, error)
