"""Stopped anywhere, a run goes on to the same bytes; what is not its checkpoint is refused."""

import logging
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import example, given, settings, strategies
from training_data import planted, write_artifacts
from training_data import settings as configured

import refine
from refine.artifacts import CONFIRMED, FEEDBACK, HISTORY, UNDECIDED, read_table, write_table
from refine.tensors import write_tensors
from refine.training.checkpoint import identity
from refine.training.loop import TrainingError
from refine.training.mine import mine
from refine.training.state import TrainingState
from refine.training.train import train
from refine.training.underway import Underway
from refine.training.warm_up import warm_up

LIBRARY = str(Path(refine.__path__[0]))
STOPPED = 128 + signal.SIGTERM
EXPERIMENTS: dict[str, dict[str, dict[str, object]]] = {
    "mined once": {},
    "mined at each epoch": {"mining": {"refresh": "epoch"}},
    "uniform": {"sampling": {"reweight": False}},
}


@dataclass
class Run:
    """A warm-up and a training in a folder of their own."""

    folder: Path
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)
    seed: int = 5
    minutes: float = 1e6
    tensorboard: Path | None = None
    code: str = "a" * 64
    leaves: bool = True

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.artifacts = write_artifacts(planted(n_users=40, n_items=30), self.folder)

    @property
    def settings(self) -> dict[str, Any]:
        short = {"warmup_epochs": 2, "epochs": 4}
        changes = self.changes | {"training": short | self.changes.get("training", {})}
        return configured(**changes) | {"code": self.code}

    def leave(self, rule: str) -> Underway | None:
        if not self.leaves:
            return None
        return Underway(self.folder / f"{rule}.safetensors", self.minutes, self.tensorboard)

    def warm_up(self) -> None:
        warm_up(
            *self.artifacts,
            self.folder / "warmup",
            settings=self.settings,
            seed=self.seed,
            device="cpu",
            leave=self.leave("warm_up"),
        )

    def train(self) -> None:
        train(
            self.folder / "warmup",
            self.folder / "similar",
            *self.artifacts,
            self.folder / "model",
            self.folder / "history",
            settings=self.settings,
            seed=self.seed,
            device="cpu",
            leave=self.leave("train"),
        )

    def mine(self) -> None:
        mine(
            self.folder / "warmup",
            *self.artifacts,
            self.folder / "similar",
            settings=self.settings,
        )

    def made(self) -> dict[str, str]:
        names = ("warmup", "similar", "model", "history")
        return {name: sha256((self.folder / name).read_bytes()).hexdigest() for name in names}

    def left(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("*.safetensors"))


class Killed(BaseException):
    """What nobody catches."""


def kill() -> None:
    raise Killed


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


class AtLine:
    """Does something at the nth line of the library that is run while SIGTERM is listened to."""

    def __init__(self, line: int, action: Callable[[], None]) -> None:
        self.line, self.action = line, action
        self.lines = 0

    def __call__(self, frame: FrameType, event: str, _: object) -> "AtLine | None":
        if not frame.f_code.co_filename.startswith(LIBRARY):
            return None
        if event == "line" and signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            self.lines += 1
            if self.lines == self.line:
                self.action()
        return self


def lines_of(
    stage: Callable[[], None], line: int = 0, action: Callable[[], None] = terminate
) -> int:
    """Runs a stage, and does something to it at a line; the number of lines that it has run."""
    counter = AtLine(line, action)
    sys.settrace(counter)
    try:
        stage()
    finally:
        sys.settrace(None)
    return counter.lines


@pytest.fixture(scope="module", params=EXPERIMENTS)
def unbroken(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, str], dict[str, int]]:
    """An experiment, what comes of it without a break, and the lines that its stages run."""
    run = Run(tmp_path_factory.mktemp("unbroken"), EXPERIMENTS[request.param])
    lines = {"warm_up": lines_of(run.warm_up)}
    run.mine()
    lines["train"] = lines_of(run.train)
    assert run.left() == []
    return request.param, run.made(), lines


@settings(max_examples=25)
@given(
    rule=strategies.sampled_from(["warm_up", "train"]),
    moments=strategies.lists(
        strategies.tuples(strategies.floats(0, 1), strategies.sampled_from([terminate, kill])),
        min_size=1,
        max_size=3,
    ),
    minutes=strategies.sampled_from([1e-9, 1e-4, 1e6]),
)
@example(rule="train", moments=[(0.0, terminate)], minutes=1e6)
@example(rule="train", moments=[(1.0, terminate)], minutes=1e6)
@example(rule="train", moments=[(1.0, kill)], minutes=1e6)
def test_a_run_that_was_stopped_anywhere_goes_on_to_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory,
    unbroken: tuple[str, dict[str, str], dict[str, int]],
    rule: str,
    moments: list[tuple[float, Callable[[], None]]],
    minutes: float,
) -> None:
    experiment, expected, lines = unbroken
    run = Run(tmp_path_factory.mktemp("stopped"), EXPERIMENTS[experiment], minutes=minutes)
    if rule == "train":
        run.warm_up()
        run.mine()
    for moment, action in moments:
        try:
            lines_of(getattr(run, rule), max(1, round(moment * lines[rule])), action)
        except SystemExit as stop:
            assert stop.code == STOPPED  # noqa: PT017
            assert run.left() == [f"{rule}.safetensors"]
        except Killed:
            # It may have struck while handlers were put back; a process that is killed has none.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    getattr(run, rule)()
    if rule == "warm_up":
        run.mine()
        run.train()
    assert run.made() == expected
    assert run.left() == []


def stopped_in_training(folder: Path, moment: float = 0.5) -> Run:
    """A run whose training was stopped, and has left a checkpoint."""
    run = Run(folder)
    run.warm_up()
    run.mine()
    with pytest.raises(SystemExit):
        lines_of(run.train, round(moment * 1250))
    assert run.left() == ["train.safetensors"]
    return run


def test_a_run_that_goes_on_says_where(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = stopped_in_training(tmp_path)
    with caplog.at_level(logging.INFO, "refine"):
        run.train()
    found = re.findall(r"goes on after epoch (\d+), step (\d+): checkpoint (\S+)", caplog.text)
    assert len(found) == 1
    assert int(found[0][0]) >= 2
    assert found[0][2] == str(tmp_path / "train.safetensors")


@pytest.mark.parametrize("left_by", [1, 2])
def test_another_number_of_processes_goes_on_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, left_by: int
) -> None:
    run = stopped_in_training(tmp_path)
    state, facts = TrainingState.load(tmp_path / "train.safetensors")
    state.save(tmp_path / "train.safetensors", facts | {"processes": left_by})
    with caplog.at_level(logging.INFO, "refine"):
        run.train()
    assert "goes on after epoch" in caplog.text
    warned = "training.processes was 2 and is 1: the numbers will differ" in caplog.text
    assert warned == (left_by == 2)


CHANGES: dict[str, tuple[Callable[[Run], None], str]] = {
    "a parameter": (
        lambda run: run.changes.update(mining={"near_liked": 1}),
        "mining.near_liked was 2 and is 1",
    ),
    "two parameters": (
        lambda run: run.changes.update(mining={"near_liked": 1}, sampling={"confirmed": 2.0}),
        "mining.near_liked was 2 and is 1; sampling.confirmed was 1.5 and is 2.0",
    ),
    "more epochs": (
        lambda run: run.changes.update(training={"epochs": 5}),
        "training.epochs was 4 and is 5",
    ),
    "code": (lambda run: setattr(run, "code", "b" * 64), "code has changed"),
    "labels": (lambda run: relabel(run.artifacts[0]), "feedback.parquet has changed"),
    "damage": (
        lambda run: (run.folder / "train.safetensors").write_bytes(b"half a checkpoint"),
        "cannot be read as safetensors",
    ),
    "another file": (
        lambda run: write_tensors(run.folder / "train.safetensors", {}, {}),
        "is no training state",
    ),
}


def relabel(feedback: Path) -> None:
    columns = read_table(feedback, FEEDBACK).to_pydict()
    columns["label"][columns["label"].index(CONFIRMED)] = UNDECIDED
    write_table(pa.table(columns), feedback, FEEDBACK)


@pytest.mark.parametrize("change", CHANGES)
def test_the_checkpoint_of_another_run_is_refused_and_the_reason_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    alter, reason = CHANGES[change]
    fresh, run = Run(tmp_path / "fresh", leaves=False), stopped_in_training(tmp_path / "run")
    fresh.warm_up()
    fresh.mine()
    for one in (fresh, run):
        alter(one)
    checkpoint = (run.folder / "train.safetensors").read_bytes()
    caplog.clear()
    with caplog.at_level(logging.WARNING, "refine"), pytest.raises(SystemExit):
        lines_of(run.train, 1)
    message, _ = caplog.messages
    assert f"starts anew, as the checkpoint {run.folder}/train.safetensors cannot" in message
    assert reason in message
    assert f"It is kept as {run.folder}/train.refused.safetensors" in message
    assert (run.folder / "train.refused.safetensors").read_bytes() == checkpoint

    fresh.train()
    run.train()
    assert run.made() == fresh.made()
    assert run.left() == []


def test_a_checkpoint_of_another_kind_of_device_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "feedback.parquet"
    path.touch()
    of = [identity({}, [path], 5, torch.device(kind)) for kind in ("cpu", "cuda")]
    assert [name for name in of[0] if of[0][name] != of[1][name]] == ["device"]


def test_a_run_without_a_checkpoint_leaves_none(tmp_path: Path) -> None:
    run = Run(tmp_path, leaves=False)
    run.warm_up()
    assert run.left() == []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_an_ignored_interrupt_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run = Run(tmp_path)
        lines_of(run.warm_up, 100, lambda: signal.raise_signal(signal.SIGINT))
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_leaves_a_checkpoint_too(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(SystemExit) as stop:
        lines_of(run.warm_up, 100, lambda: signal.raise_signal(signal.SIGINT))
    assert stop.value.code == 128 + signal.SIGINT
    assert run.left() == ["warm_up.safetensors"]


# ---- TensorBoard ----


def test_tensorboard_that_is_not_installed_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    run = Run(tmp_path, tensorboard=tmp_path / "board")
    with pytest.raises(TrainingError, match=r"training\.tensorboard is true.*pip install"):
        run.warm_up()
    assert run.left() == []


def test_tensorboard_shows_each_epoch_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = tmp_path / "board"
    run = Run(tmp_path, tensorboard=board)
    run.warm_up()
    run.mine()
    with pytest.raises(SystemExit):
        lines_of(run.train, 900)
    run.train()
    events = EventAccumulator(str(board)).Reload()
    history = read_table(tmp_path / "history", HISTORY).to_pydict()
    for tag, name in (
        ("loss", "loss"),
        ("validation/recall@20", "recall@20"),
        ("validation/ndcg@20", "ndcg@20"),
    ):
        shown = events.Scalars(tag)
        assert [scalar.step for scalar in shown] == history["epoch"]
        assert [scalar.value for scalar in shown] == pytest.approx(history[name])
