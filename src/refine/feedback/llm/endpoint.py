"""A language model behind an OpenAI-compatible endpoint, such as `vllm serve`, llama.cpp or an API.

What may pass is tried again. What does not, and is the endpoint's fault, ends the run, and a later
run goes on from the answers that are there; what may be the fault of one prompt costs that prompt
alone.
"""

import logging
import os
import random
import re
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import openai

from refine.feedback.llm.dialects import AnswerError, Dialect
from refine.feedback.llm.engine import Engine, EngineError, Reply, Request
from refine.feedback.tokens import BREAK

log = logging.getLogger("refine.endpoint")

FIRST_WAIT = 1.0
"""Seconds before the second attempt; each later wait is twice as long as the one before it."""

LONGEST_WAIT = 60.0
"""Seconds that these waits grow to."""

LONGEST_PAUSE = 600.0
"""Seconds that an endpoint may ask for; where it asks for more, the run ends."""

_LOOPBACK = ("localhost", "127.0.0.1", "::1")

_ONE_PROMPT_REFUSED = (400, 413, 422)
_PASSING = (408, 409, 429)
"""Client errors that are none; so is every server error."""

_ROLE = re.compile(r"\broles?\b", re.IGNORECASE)
"""What a chat template without a system role says when it meets one, in one wording or another."""

_SHOWN = 300
"""Characters of an error's message."""


class _RefusedError(Exception):
    """The endpoint does not want this prompt."""


class _StoppedError(Exception):
    """Nothing is to be sent any more."""


class _FailedError(Exception):
    """An attempt has failed in a way that another may not.

    Attributes:
        pause: seconds for which the endpoint asks to be left alone, by whomever.
        remedy: what to do if it lasts; None where the prompt may be at fault.
    """

    def __init__(self, reason: str, *, pause: float = 0.0, remedy: str | None = None) -> None:
        super().__init__(reason)
        self.pause = pause
        self.remedy = remedy


@contextmanager
def connect(settings: dict[str, Any]) -> Iterator[Engine]:
    """Gets ready to ask the endpoint that a judge's settings name; the first prompt reaches it.

    Args:
        settings: a judge of kind openai, as in the config.

    Raises:
        EngineError: a setting or the key is missing; the message says which.
    """
    host = urlsplit(settings["url"]).hostname
    is_here = host in _LOOPBACK
    key = os.environ.get(settings["key"], "")
    if settings["model"] is None:
        raise EngineError("name the model, as the endpoint calls it, in the judge's `model`")
    if not key and not is_here:
        raise EngineError(
            f"{host} needs a key: put it into the environment variable {settings['key']} (the "
            f"judge's `key` is the name of the variable)"
        )
    with (
        openai.OpenAI(
            base_url=settings["url"],
            api_key=key or "none",
            timeout=settings["timeout"],
            max_retries=0,  # the client would not try again where an answer is broken
            # No proxy stands between a machine and itself.
            http_client=openai.DefaultHttpxClient(trust_env=not is_here),
        ) as client,
        ThreadPoolExecutor(settings["concurrency"]) as pool,
    ):
        endpoint = _Endpoint(settings, client, pool, key)
        try:
            yield endpoint
        finally:
            endpoint.stop()
            pool.shutdown(cancel_futures=True)


class _Endpoint:
    """Keeps as many requests on their way as the judge's ``concurrency`` allows."""

    def __init__(
        self, settings: dict[str, Any], client: openai.OpenAI, pool: ThreadPoolExecutor, key: str
    ) -> None:
        self._settings = settings
        self._client = client
        self._pool = pool
        self._key = key
        self._dialect = Dialect(settings)
        self._takes_system_role = True
        self._pause_ends = 0.0
        self._stopped = threading.Event()
        self.facts = {"engine": "openai", "url": settings["url"]}

    def ask(self, requests: Iterable[Request]) -> Iterator[Reply]:
        unsent = iter(requests)
        sent: dict[Future[Reply], str] = {}
        failed_in_a_row = 0
        level = logging.WARNING
        fatal: EngineError | None = None
        while True:
            # Twice as many as are on their way: no thread waits while the caller looks at a reply.
            while fatal is None and len(sent) < 2 * self._settings["concurrency"]:
                request = next(unsent, None)
                if request is None:
                    break
                body = self._dialect.body(request)  # not in a thread: tokenizers cannot be shared
                sent[self._pool.submit(self._answer, request, body)] = request.key
            if not sent:
                break
            for future in wait(sent, return_when=FIRST_COMPLETED).done:
                key = sent.pop(future)
                try:
                    reply = future.result()
                    failed_in_a_row = 0
                except (_RefusedError, _FailedError) as error:
                    reply = Reply(key, error=str(error))
                    log.log(level, "a prompt stays without an answer: %s", error)
                    level = logging.DEBUG  # the first may show a wrong setting; all are summed up
                    failed_in_a_row += isinstance(error, _FailedError)
                except _StoppedError:
                    continue
                except EngineError as error:
                    fatal = fatal or error
                    continue
                yield reply
                if failed_in_a_row > self._settings["concurrency"] and not fatal:
                    fatal = EngineError(
                        f"{failed_in_a_row} prompts in a row have failed, the last: {reply.error}"
                    )
                    self.stop()
        if fatal:
            raise fatal

    def stop(self) -> None:
        """Sends nothing more; what is on its way still comes back."""
        self._stopped.set()

    def _answer(self, request: Request, body: dict[str, Any]) -> Reply:
        """Asks until there is an answer, or no hope of one. Runs in a thread.

        Raises:
            EngineError: the endpoint cannot go on; all other requests are stopped.
            _StoppedError: another request has found that out.
            _RefusedError: the endpoint does not want this prompt.
            _FailedError: it has failed on this prompt too often.
        """
        try:
            return self._insist(request, body)
        except EngineError:
            self.stop()  # before this thread takes up the next request
            raise

    def _insist(self, request: Request, body: dict[str, Any]) -> Reply:
        """Asks as often as it takes and may."""
        failures = 0
        while True:
            self._wait(self._pause_ends - time.monotonic())
            try:
                return self._attempt(request, body)
            except _FailedError as failure:
                failures += 1
                if failures > self._settings["retries"]:
                    if failure.remedy is None:
                        raise
                    raise EngineError(f"{failure}; {failure.remedy}") from failure
                log.debug("%s; trying again", failure)
                self._pause_ends = max(self._pause_ends, time.monotonic() + failure.pause)
                longest = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (failures - 1))
                # Not all at the same time, if it is the load that they fail for.
                self._wait(longest * random.uniform(0.5, 1))  # noqa: S311

    def _wait(self, seconds: float) -> None:
        if self._stopped.wait(max(0.0, seconds)):
            raise _StoppedError

    def _attempt(self, request: Request, body: dict[str, Any]) -> Reply:
        """Asks once."""
        with_system_role = self._dialect.chats and self._takes_system_role
        if self._dialect.chats and not with_system_role:
            body = without_system_role(body)
        try:
            text = self._client.post(self._dialect.path, cast_to=str, body=body)
            return self._dialect.reply(request, text)
        except AnswerError as error:
            raise _FailedError(self._harmless(str(error))) from error
        except openai.APITimeoutError as error:
            raise _FailedError(f"no answer within {self._settings['timeout']} s") from error
        except openai.APIConnectionError as error:
            cause = self._harmless(str(error.__cause__ or error))
            raise _FailedError(
                f"{self._settings['url']} cannot be reached ({cause})",
                remedy="start the server, or set the judge's `url` to where it listens",
            ) from error
        except openai.APIStatusError as error:
            if with_system_role and error.status_code == 400 and _ROLE.search(_message(error)):
                log.info("the model knows no system role: the instructions go to the user's part")
                self._takes_system_role = False
                return self._attempt(request, body)
            raise self._verdict(error, body) from error

    def _verdict(self, error: openai.APIStatusError, body: dict[str, Any]) -> Exception:
        """What an error response means: for the prompt, for this attempt or for the run."""
        status = error.status_code
        said = f"the endpoint answers {status}: {self._harmless(_message(error))}"
        if "insufficient_quota" in (error.code, error.type):
            return EngineError(f"{said}; there is no credit left, add some and run again")
        if status in _PASSING or status >= 500:
            pause = retry_after(error.response.headers.get("retry-after"))
            if pause > LONGEST_PAUSE:
                return EngineError(f"{said}; it asks to be left alone for {pause:.0f} s")
            remedy = None
            if status == 429:
                remedy = "lower the judge's `concurrency`, or raise its `retries`"
            return _FailedError(said, pause=pause, remedy=remedy)
        if status in _ONE_PROMPT_REFUSED:
            if error.param in [name for name in body if name not in ("messages", "prompt")]:
                return EngineError(
                    f"{said}; the judge's `request` can change this field, or leave it out: "
                    f"`request: {{{error.param}: null}}`"
                )
            return _RefusedError(said)
        if status in (401, 403):
            name = self._settings["key"]
            return EngineError(f"{said}; is the key in the environment variable {name} right?")
        if status == 404:
            return EngineError(
                f"{said}; check the judge's `model`, `form` (base asks /completions, chat "
                f"/chat/completions) and `url` (which mostly ends in /v1)"
            )
        return EngineError(said)

    def _harmless(self, message: str) -> str:
        """A message in one line, not too long, and without the key if someone repeated that."""
        if self._key:
            message = message.replace(self._key, "***")
        line = " ".join(message.split())
        return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."


def without_system_role(body: dict[str, Any]) -> dict[str, Any]:
    """The body of a request to a chat model that hears users only."""
    texts = (message["content"] for message in body["messages"])
    return body | {"messages": [{"role": "user", "content": BREAK.join(texts)}]}


def _message(error: openai.APIStatusError) -> str:
    """The reason that an error response gives, in one of the shapes that servers use."""
    body = error.body
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body
    return str(body or error.response.reason_phrase)


def retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header asks for, as such or by a date; 0 without one."""
    if value is None:
        return 0.0
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(TypeError, ValueError):
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    return 0.0
