"""Engines that do not start, that die, and that are left alone."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
from conftest import ROOT, vllm_judge
from test_engine import prompt
from tiny_model import save_tiny_model

from refine.feedback.interpreter import VARIABLE
from refine.feedback.llm.engine import EngineError
from refine.feedback.llm.vllm import start

ASKS_FOR_EVER = """
import itertools, json, sys, time
from refine.feedback.llm.engine import Request
from refine.feedback.llm.vllm import start

settings, prompt, pause = map(json.loads, sys.argv[1:])
requests = (Request(**prompt | {"key": str(n)}) for n in itertools.count())
with start(settings) as engine:
    for reply in engine.ask(requests):
        print(reply.key, flush=True)
        time.sleep(pause)
"""


@dataclass(frozen=True, order=True)
class Process:
    started: int
    id: int
    parent: int
    group: int


def processes() -> list[Process]:
    """All that have not ended, the oldest first; ids do not tell, for they are used again."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, group, *others = path.read_text().rpartition(") ")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            found.append(Process(int(others[16]), int(path.parent.name), int(parent), int(group)))
    return sorted(found)


def workers(job: int) -> list[int]:
    """The groups that children of a process lead, the latest last."""
    return [one.group for one in processes() if one.parent == job and one.id == one.group]


def members(group: int) -> list[Process]:
    return [process for process in processes() if process.group == group]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def fails(settings: dict[str, object]) -> str:
    """The message of an engine that does not start."""
    with pytest.raises(EngineError) as caught, start(settings):
        pass
    return str(caught.value)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert f"no folder {tmp_path}/typo" in fails(vllm_judge(tmp_path / "typo"))


def test_a_model_that_cannot_be_downloaded_is_named() -> None:
    message = fails(vllm_judge("somebody/some-model"))
    assert "somebody/some-model is not on this machine" in message
    assert "hf download somebody/some-model" in message


def test_a_folder_without_a_model_gives_the_cause(tmp_path: Path) -> None:
    assert str(tmp_path) in fails(vllm_judge(tmp_path))


def test_heads_that_cannot_be_computed_on_cpu_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    """Else the engine starts, and dies at the first prompt."""
    message = fails(vllm_judge(save_tiny_model(tmp_path / "narrow", heads=4)))
    assert "heads" in message
    assert "16 dimensions" in message


def test_vllms_own_error_is_passed_on(tiny_model: Path) -> None:
    message = fails(vllm_judge(tiny_model, context=10_000))
    assert "max_model_len" in message
    assert "8192" in message


def test_words_of_several_tokens_are_refused(tiny_model: Path) -> None:
    request = replace(prompt(1, 1), choices=None, words=("wonderful", "dreadful"))
    with start(vllm_judge(tiny_model)) as engine, pytest.raises(EngineError, match="one token"):
        list(engine.ask([request]))


def test_an_interpreter_that_is_not_there_is_named(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "/nowhere/python")
    assert "/nowhere/python" in fails(vllm_judge(tiny_model))


def test_an_interpreter_without_vllm_says_so(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, sys.executable)
    assert "vllm" in fails(vllm_judge(tiny_model))


@pytest.mark.parametrize("victim", ["worker", "engine"])
def test_an_engine_that_dies_is_reported_and_leaves_nothing(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    """The engine is a process below the worker, or several, unless vLLM is told otherwise."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", str(int(victim == "engine")))
    with start(vllm_judge(tiny_model)) as engine:
        group = workers(os.getpid())[-1]
        below = [process.id for process in members(group) if process.parent == group]
        replies = engine.ask(prompt(user, 1) for user in range(10**4))
        next(replies)
        os.kill(group if victim == "worker" else below[-1], signal.SIGKILL)
        with pytest.raises(EngineError, match="SIGKILL" if victim == "worker" else "EngineDead"):
            for _ in replies:
                pass
        with pytest.raises(EngineError):
            next(engine.ask([prompt(1, 1)]))
    wait_until(lambda: not members(group))


@pytest.mark.parametrize(
    ("several", "moment"),
    [(False, "start"), (False, "answers"), (True, "answers"), (False, "rest")],
)
def test_no_engine_outlives_a_job_that_was_killed(
    tiny_model: Path, several: bool, moment: str
) -> None:
    """Neither one that is at work, nor one that has nothing to do and would wait on."""
    settings, pause = vllm_judge(tiny_model), 10**6 if moment == "rest" else 0
    arguments = [json.dumps(value) for value in (settings, asdict(prompt(1, 1)), pause)]
    job = subprocess.Popen(
        [sys.executable, "-c", ASKS_FOR_EVER, *arguments],
        env=os.environ
        | {"PYTHONPATH": str(ROOT / "src"), "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(several))},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert job.stdout
    if moment == "start":
        wait_until(lambda: workers(job.pid) != [])
    else:
        assert job.stdout.readline() == "0\n"
    (group,) = workers(job.pid)
    try:
        assert len(members(group)) > 2 * several
        job.kill()
        wait_until(lambda: not members(group))
    finally:
        job.wait()
        job.stdout.close()
        if members(group):
            os.killpg(group, signal.SIGKILL)


def test_what_the_engine_prints_is_logged_and_not_shown(
    tiny_model: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG, "refine.engine"), start(vllm_judge(tiny_model)) as engine:
        assert list(engine.ask([prompt(1, 1)]))
    assert any("vLLM" in record.message for record in caplog.records)
    assert {record.levelname for record in caplog.records} == {"DEBUG"}
    assert capfd.readouterr() == ("", "")
