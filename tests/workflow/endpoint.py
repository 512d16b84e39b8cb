"""A language model behind an OpenAI-compatible endpoint, for whole runs: it likes odd numbers."""

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Endpoint(ThreadingHTTPServer):
    """Answers chats on this machine.

    Attributes:
        asked: how often each prompt came.
        say: gives the answer to a prompt.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: Counter[str] = Counter()
        self.say: Callable[[str], str] = odd_numbers
        self.lock = threading.Lock()

    @property
    def judge(self) -> dict[str, Any]:
        """The settings of a judge that asks this endpoint."""
        url = f"http://127.0.0.1:{self.server_port}/v1"
        return {"url": url, "model": "odd", "server": "plain", "retries": 0}

    def handle_error(self, *_: object) -> None:
        """A client that was killed is no news."""


@contextmanager
def serving() -> Iterator[Endpoint]:
    with Endpoint() as endpoint:
        thread = threading.Thread(target=endpoint.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield endpoint
        finally:
            endpoint.shutdown()
            thread.join()


def odd_numbers(prompt: str) -> str:
    """Picks every other candidate of those that are numbered last, so that all have a verdict."""
    numbers = [int(number) for number in re.findall(r"^(\d+)\. ", prompt, re.MULTILINE)]
    shown = numbers[-max(numbers[-1:], default=1) :]
    return ", ".join(str(number) for number in shown if number % 2) or "none"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        with self.server.lock:
            self.server.asked[prompt] += 1
        message = {"role": "assistant", "content": self.server.say(prompt)}
        choice = {"index": 0, "finish_reason": "stop", "message": message, "logprobs": None}
        if body.get("logprobs"):
            choice["logprobs"] = {"content": [{"top_logprobs": _log_odds(prompt)}]}
        usage = {"prompt_tokens": 100, "completion_tokens": 3, "total_tokens": 103}
        answer = json.dumps(
            {"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage}
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


def _log_odds(prompt: str) -> list[dict[str, Any]]:
    """Log-odds between -2 and 2, as even as the prompt's characters make them."""
    odds = sum(map(ord, prompt)) % 401 / 100 - 2
    return [{"token": "yes", "logprob": -1 + odds}, {"token": "no", "logprob": -1.0}]
