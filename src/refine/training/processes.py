"""A stage of training in several processes on this machine, started by ``torchrun``."""

import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from refine import shards
from refine.device import choose_device
from refine.logs import job_log
from refine.training.underway import Underway

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run(stage: Callable[..., None], processes: int, log: Path, **arguments: Any) -> None:
    """Runs a stage here, or in several processes of which each holds a share of the model.

    Args:
        stage: a function of a module, which all processes call alike.
        processes: how many.
        log: that the first of several goes on with.
        **arguments: of the stage, ``device`` among them: paths, JSON values, and an ``Underway``.

    Raises:
        SystemExit: a process failed, and has logged why; or this one was told to stop, and they
            have stopped.
    """
    if processes == 1:
        stage(**arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        order = Path(folder) / "order.json"
        names = [stage.__module__, stage.__name__]
        values = {name: told(value) for name, value in arguments.items()}
        order.write_text(json.dumps({"stage": names, "log": str(log), "arguments": values}))
        torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, "-m", *torchrun, "-m", __name__, str(order)]
        source = str(Path(__file__).resolve().parents[2])
        paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
        # NumPy and SciPy have a BLAS of their own beside PyTorch's.
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        environment = threads | {"PYTHONPATH": os.pathsep.join(paths)}
        with (
            # Its standard input ends with this process, even if that is killed.
            subprocess.Popen(  # noqa: S603
                command, env=os.environ | environment, stdin=subprocess.PIPE
            ) as started,
            _passing_signals_on(started) as got,
        ):
            status = started.wait()
    if got:
        raise SystemExit(128 + got[0])
    if status:
        raise SystemExit(1)


def told(value: Any) -> dict[str, Any]:
    """An argument of a stage as JSON: its kind, and what it is."""
    match value:
        case Path():
            return {"path": str(value)}
        case Underway():
            return {"underway": {f.name: told(getattr(value, f.name)) for f in fields(value)}}
        case _:
            return {"value": value}


def understood(argument: dict[str, Any]) -> Any:
    """What was told."""
    match argument:
        case {"path": path}:
            return Path(path)
        case {"underway": parts}:
            return Underway(**{name: understood(part) for name, part in parts.items()})
        case _:
            return argument["value"]


@contextmanager
def _passing_signals_on(started: "subprocess.Popen[bytes]") -> Iterator[list[int]]:
    got: list[int] = []

    def pass_on(number: int, _: object) -> None:
        if not got:
            started.send_signal(signal.SIGTERM)
        got.append(number)

    before = {number: signal.signal(number, pass_on) for number in _SIGNALS}
    try:
        yield got
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _quiet() -> Iterator[None]:
    """For a process beside the first: what fails in all of them alike is said once."""
    logging.getLogger("refine").setLevel(logging.ERROR)
    try:
        yield
    except Exception as error:
        if type(error).__module__.startswith("refine."):
            raise SystemExit(1) from None
        raise


def _end_with_launcher() -> None:
    os.read(0, 1)  # nothing is ever written
    os._exit(1)


def _work(order: Path) -> None:
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    given = json.loads(order.read_text())
    module, function = given["stage"]
    stage = getattr(importlib.import_module(module), function)
    arguments = {name: understood(value) for name, value in given["arguments"].items()}
    torch.set_num_threads(1)  # results then do not depend on the number of cores
    first = os.environ["RANK"] == "0"
    with (
        job_log(given["log"], append=True) if first else _quiet(),
        shards.joined(choose_device(arguments["device"]).type),
    ):
        stage(**arguments)


if __name__ == "__main__":
    _work(Path(sys.argv[1]))
