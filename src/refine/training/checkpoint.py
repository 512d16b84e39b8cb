"""Checkpoints: a training that is stopped or killed goes on where it was.

A checkpoint is a training state with the identity of its run. It is written every few minutes and
on SIGTERM or SIGINT, and removed when what the run is for has been written.
"""

import hashlib
import logging
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from refine import shards
from refine.artifacts import ArtifactError
from refine.training.loop import Trainer
from refine.training.state import TrainingState

_logger = logging.getLogger(__name__)
_STEPS_BETWEEN_MESSAGES = 16  # where several processes have to agree on a checkpoint
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Checkpoint:
    """The checkpoint of one run."""

    def __init__(self, path: Path, minutes: float, identity: Mapping[str, Any]) -> None:
        """Neither reads nor writes anything yet.

        Args:
            path: a safetensors file that nobody else removes, not even when the job fails.
            minutes: between two checkpoints.
            identity: all that the run depends on, see ``identity``.
        """
        self.path = path
        self.identity = dict(identity)
        self._seconds = 60 * minutes
        self._saved = time.monotonic()
        self._signal: int | None = None
        self._steps = 0

    @property
    def refused(self) -> Path:
        """Where a checkpoint of another run is kept, until this one is finished."""
        return self.path.with_suffix(f".refused{self.path.suffix}")

    def load(self) -> TrainingState | None:
        """The state to go on from, if there is one of this run; another is put aside."""
        if not self.path.exists():
            return None
        try:
            state, of = TrainingState.load(self.path)
        except ArtifactError as error:
            reason = str(error)
        else:
            left_by = of.pop("processes", None)
            reason = "; ".join(_differences(of, self.identity))
            if not reason:
                _logger.info(
                    "goes on after epoch %d, step %d: checkpoint %s",
                    len(state.history),
                    state.unfinished.steps if state.unfinished else 0,
                    self.path,
                )
                if left_by != shards.processes():
                    _logger.warning(
                        "training.processes was %s and is %d: the numbers will differ from those "
                        "of an unbroken run in rounding",
                        left_by,
                        shards.processes(),
                    )
                return state
        shards.wait()  # until all processes have seen it
        if shards.is_first():
            self.path.replace(self.refused)
        _logger.warning(
            "starts anew, as the checkpoint %s cannot be taken up: %s. It is kept as %s until this "
            "run is finished",
            self.path,
            reason,
            self.refused,
        )
        return None

    @contextmanager
    def watch(self, trainer: Trainer) -> Iterator[None]:
        """Saves the training while it goes on, and when the process is told to end.

        Raises:
            SystemExit: a signal came; its status is what a shell gives for the signal.
        """
        over = False

        def stop(number: int, _: object) -> None:
            first, self._signal = self._signal is None, number
            # Several processes stop at the same step.
            if first and not trainer.amid_step and not over and shards.processes() == 1:
                raise SystemExit(128 + number)

        def after_step() -> None:
            self._steps += 1
            if shards.processes() > 1 and self._steps % _STEPS_BETWEEN_MESSAGES:
                return
            due = time.monotonic() - self._saved >= self._seconds
            device = trainer.generator.device
            stopped, due = shards.agree(self._signal is not None, due, device=device)
            if stopped:
                raise SystemExit(128 + (self._signal or signal.SIGTERM))
            if due:
                self.save(trainer)

        before = {number: signal.getsignal(number) for number in _SIGNALS}
        trainer.after_step = after_step
        try:
            for number, handler in before.items():
                # A process in the background may have been told to ignore SIGINT.
                if handler is not signal.SIG_IGN:
                    signal.signal(number, stop)
            yield
            over = True
        except SystemExit:
            self.save(trainer)
            _logger.warning("stopped: the next run goes on from %s", self.path)
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def save(self, trainer: Trainer) -> None:
        """Writes a checkpoint, whole or not at all, in place of the last."""
        state = trainer.state()  # of all processes
        if shards.is_first():
            # Not of the identity: any number of processes may take it up.
            state.save(self.path, self.identity | {"processes": shards.processes()})
        self._saved = time.monotonic()

    def remove(self) -> None:
        """To be called when what the run is for has been written."""
        if shards.is_first():
            for path in (self.path, self.refused):
                path.unlink(missing_ok=True)


def identity(
    settings: Mapping[str, Any], inputs: Iterable[Path], seed: int, device: torch.device
) -> dict[str, Any]:
    """All that the result of a run depends on, as JSON values that can be compared.

    Args:
        settings: what the run is told, a digest of its code among them.
        inputs: the files that it reads.
        seed: of its generator.
        device: that it runs on; of which only the kind counts.
    """
    found = {"seed": seed, "device": device.type, "PyTorch": torch.__version__}
    for path in inputs:
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found | dict(_flat(settings))


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old != new:
            digests = all(isinstance(value, str) and len(value) == 64 for value in (old, new))
            yield f"{name} has changed" if digests else f"{name} was {old} and is {new}"
