"""The offline vLLM engine, in a process and a Python environment of its own.

Requests go to `refine.feedback.llm.worker` and replies come back as lines of JSON over pipes; what
the engine prints goes to the logger ``refine.engine``. The worker and the engine's processes are a
group of their own, and end with this process even if that is killed: its end closes the pipe.
"""

import json
import logging
import os
import re
import signal
import subprocess
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import IO, Any, cast

from refine.feedback.interpreter import VARIABLE, engine_python
from refine.feedback.llm.engine import Engine, EngineError, Reply, Request

log = logging.getLogger("refine.engine")

_SOURCE = Path(__file__).resolve().parents[3]
_PATIENCE = 30.0
"""Seconds that the worker gets to end in good order; it needs half of them at most."""

_ERROR = re.compile(r"\b(\w+(?:Error|Exception)\b: .*)")


@contextmanager
def start(settings: dict[str, Any]) -> Iterator[Engine]:
    """Starts vLLM with the model that a judge's settings name.

    Args:
        settings: a judge of kind vllm, as in the config.

    Raises:
        EngineError: there is no vLLM here, or it cannot run this model; the message says why.
    """
    python = engine_python()
    if python is None:
        raise EngineError(
            "vLLM is not installed: let Snakemake do it (`--sdm conda`), run `make llm` on a "
            f"machine without a GPU, or name the interpreter that has it in {VARIABLE}"
        )
    worker = _Worker(python)
    try:
        yield _VllmEngine(worker, settings)
    finally:
        worker.end()


class _VllmEngine:
    """Keeps the worker busy: twice as many requests as it computes at a time are on their way."""

    facts: dict[str, Any]

    def __init__(self, worker: "_Worker", settings: dict[str, Any]) -> None:
        self._worker = worker
        worker.send(settings)
        ready = worker.receive()
        self.facts = ready["facts"]
        self._window: int = ready["window"]
        self._asked = 0

    def ask(self, requests: Iterable[Request]) -> Iterator[Reply]:
        waiting = iter(requests)
        keys: dict[int, str] = {}
        while True:
            for request in islice(waiting, self._window - len(keys)):
                keys[self._asked] = request.key
                self._worker.send({"id": self._asked, **asdict(request)})
                self._asked += 1
            if not keys:
                return
            reply = self._worker.receive()
            # A reply may be to an earlier call that was given up before its end.
            key = keys.pop(reply.pop("id"), None)
            if key is not None:
                yield Reply(key, **reply)


class _Worker:
    """The process that runs the engine."""

    def __init__(self, python: str) -> None:
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the user's own interpreter
                # -P: no module in the working directory may stand in for an installed one.
                [python, "-P", "-m", "refine.feedback.llm.worker"],
                env={**os.environ, "PYTHONPATH": str(_SOURCE)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            raise EngineError(f"cannot run {python}, which should have vLLM: {error}") from error
        self._requests = cast(IO[str], self._process.stdin)
        self._replies: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self._errors: deque[str] = deque(maxlen=3)
        self._last: deque[str] = deque(maxlen=5)
        # Both pipes are always read, so that neither process ever waits for the other to do so.
        self._reader = _thread(self._read_replies, self._process.stdout)
        self._logger = _thread(self._read_log, self._process.stderr)

    def send(self, message: Any) -> None:
        """Sends a line.

        Raises:
            EngineError: the worker has ended.
        """
        try:
            self._requests.write(json.dumps(message) + "\n")
            self._requests.flush()
        except (BrokenPipeError, ValueError):  # ValueError: we have closed it
            while True:
                self.receive()  # which says why, after the last replies

    def receive(self) -> dict[str, Any]:
        """The next line from the worker.

        Raises:
            EngineError: the worker has ended, or cannot go on.
        """
        reply = self._replies.get()
        if reply is None:
            self._replies.put(None)
            raise EngineError(self._last_words())
        if "fatal" in reply:
            raise EngineError(reply["fatal"])
        return reply

    def end(self) -> None:
        """Ends the worker and all processes that it has started."""
        if self._process.returncode is not None:
            return
        with suppress(BrokenPipeError):
            self._requests.close()  # bids it end
        self._reader.join(_PATIENCE)
        # A worker that has died holds its id until it is waited for: the group is the right one.
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join()
        self._logger.join()

    def _read_replies(self, pipe: IO[str]) -> None:
        # The last line of a worker that was killed may be half a line.
        with pipe, suppress(ValueError):
            for line in pipe:
                self._replies.put(json.loads(line))
        self._replies.put(None)

    def _read_log(self, pipe: IO[str]) -> None:
        with pipe:
            for line in map(str.rstrip, pipe):
                log.debug("%s", line)
                self._last.append(line)
                found = _ERROR.search(line)
                if found and found[1] not in self._errors:
                    self._errors.append(found[1])

    def _last_words(self) -> str:
        self.end()
        code = self._process.returncode
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        why = "\n  ".join(self._errors or self._last)
        return (
            f"vLLM has ended ({how}); its messages are in this job's log, among the last:\n  {why}"
        )


def _thread(target: Any, pipe: IO[str] | None) -> Thread:
    thread = Thread(target=target, args=(pipe,), daemon=True)
    thread.start()
    return thread
