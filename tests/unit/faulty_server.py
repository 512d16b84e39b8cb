"""A server on this machine that speaks OpenAI's API as far as it is let."""

import http.server
import json
import socket
import threading
from collections import Counter, defaultdict
from contextlib import contextmanager


class FaultyServer(http.server.ThreadingHTTPServer):
    """Answers each prompt with its own text in reverse, after the faults that are set for it.

    A fault is a function of the handler of a request. Prompts go by what they ask: the last line.

    Attributes:
        faults: what goes wrong at the next attempts at a prompt.
        always: what goes wrong at all later attempts.
        before_answer: called before each answer that goes well.
        attempts: how often each prompt came.
        received: path, headers and body of every request.
        most_at_once: how many requests have been here at the same time.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.faults = defaultdict(list)
        self.always = {}
        self.before_answer = lambda prompt: None
        self.attempts = Counter()
        self.received = []
        self.most_at_once = 0
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self.here = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        pass  # of connections that the other side gave up


@contextmanager
def serving():
    with FaultyServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()


def answer_to(prompt):
    return prompt[::-1]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        prompt = text.splitlines()[-1]
        with server.lock:
            server.here += 1
            server.most_at_once = max(server.most_at_once, server.here)
            server.attempts[prompt] += 1
            server.received.append((self.path, self.headers, body))
            waiting = server.faults[prompt]
            fault = waiting.pop(0) if waiting else server.always.get(prompt)
        try:
            if fault is None:
                server.before_answer(prompt)
                self.answer(200, completion(answer_to(prompt), chat="messages" in body))
            else:
                fault(self)
        finally:
            with server.lock:
                server.here -= 1

    def answer(self, status, body, headers=()):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **dict(headers)}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def completion(text, *, chat=False, finish_reason="stop", logprobs=None):
    """The body of an answer as the API describes it."""
    said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    choice = {"index": 0, "finish_reason": finish_reason, "logprobs": logprobs, **said}
    usage = {
        "prompt_tokens": 30,
        "completion_tokens": 4,
        "total_tokens": 34,
        "prompt_tokens_details": {"cached_tokens": 20},
    }
    return {"id": "1", "object": "completion", "model": "m", "choices": [choice], "usage": usage}


def error(status, message="no", *, headers=(), **fields):
    """Answers with an error in the form of the API."""
    body = {"error": {"message": message, "type": None, "param": None, "code": None, **fields}}
    return lambda handler: handler.answer(status, body, headers)


def broken(body):
    """Answers with success and a body that is none."""
    return lambda handler: handler.answer(200, body)


def cut(handler):
    """Ends the connection in the middle of an answer."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    _hang_up(handler)


def hang_up(handler):
    """Ends the connection without a word."""
    _hang_up(handler)


def sleep(handler):
    """Never answers; the other side has to lose its patience."""
    handler.server.closing.wait()
    handler.close_connection = True


def _hang_up(handler):
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True
