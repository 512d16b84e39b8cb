"""vLLM's own server, as `vllm serve` starts it."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from refine.feedback.interpreter import engine_python

_PATIENCE = 300.0
"""Seconds that a server may take to start; it takes about 25."""


@contextmanager
def served(model: Path, *, context: int) -> Iterator[str]:
    """Serves a model under the name tiny, and yields the URL of its API."""
    # The name `vllm` is that of another package than the CPU build: its command does not start.
    python = engine_python()
    assert python
    log = model.parent / "server.log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = {
        "model": model,
        "served-model-name": "tiny",
        "host": "127.0.0.1",
        "port": port,
        "dtype": "float32",
        "max-model-len": context,
        "max-num-seqs": 8,
        "kv-cache-memory-bytes": 64 << 20,
        # Random weights would fill JSON with blanks, if they were let.
        "structured-outputs-config": '{"backend": "xgrammar", "disable_any_whitespace": true}',
    }
    options = [f"--{name}={value}" for name, value in arguments.items()]
    flags = ["--enforce-eager", "--enable-prompt-tokens-details", "--trust-request-chat-template"]
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TORCH_COMPILE_DISABLE": "1",  # else the first log-probabilities take 20 s
        "VLLM_NO_USAGE_STATS": "1",
    }
    with log.open("w") as output:
        server = subprocess.Popen(
            [python, "-m", "vllm.entrypoints.openai.api_server", *options, *flags],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_for(server, port, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        # The processes that the server has started are of its group.
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait_for(server: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    ends = time.monotonic() + _PATIENCE
    while server.poll() is None and time.monotonic() < ends:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models") as answer:
                assert [model["id"] for model in json.load(answer)["data"]] == ["tiny"]
                return
        except urllib.error.URLError:
            time.sleep(0.2)
    raise AssertionError(log.read_text())
