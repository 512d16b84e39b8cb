"""A training that processes share, through the rule: as good as one, and as hard to break."""

import shutil
import signal
from pathlib import Path

import pytest
from pipeline import Pipeline
from test_checkpoints import RULES, configure, log_of, stop_in
from test_kills import contents

from refine.tensors import read_tensors

LONG = {"warmup_epochs": 40, "epochs": 80, "patience": 80}
OFTEN = LONG | {"checkpoint_minutes": 0.002}
SHARED = {"processes": 2}


@pytest.fixture(scope="module")
def shared(finished: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A pipeline whose training two processes have shared, without a break."""
    pipeline = finished.copy(tmp_path_factory.mktemp("shared") / "pipeline")
    configure(pipeline, LONG | SHARED)
    pipeline.run(RULES["train"], configfile="overlay.yaml")
    return pipeline


def test_two_processes_train_the_same_model(
    finished: Pipeline, shared: Pipeline, tmp_path: Path
) -> None:
    alone = finished.copy(tmp_path / "pipeline")
    configure(alone, LONG)
    alone.run(RULES["train"], configfile="overlay.yaml")
    (one, facts), (other, expected) = (
        read_tensors(pipeline.folder / RULES["train"]) for pipeline in (shared, alone)
    )
    assert one["embedding"].shape == other["embedding"].shape
    assert float((one["embedding"] - other["embedding"]).abs().max()) < 1e-5
    assert facts["epoch"] == expected["epoch"]
    assert "epoch 80/80" in log_of(shared, "train").read_text()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_processes_go_on_to_the_same_bytes(
    shared: Pipeline, tmp_path: Path, how: signal.Signals
) -> None:
    pipeline = shared.copy(tmp_path / "pipeline")
    configure(pipeline, OFTEN | SHARED)
    (pipeline.folder / RULES["train"]).unlink()
    checkpoint = pipeline.folder / "checkpoints/train/demo/refine/seed2024.safetensors"
    log = stop_in(pipeline, "train", how, checkpoint, 0)
    assert ("stopped: the next run goes on from" in log) == (how != signal.SIGKILL)
    if how == signal.SIGKILL:
        shutil.rmtree(pipeline.folder / ".snakemake/locks")
    pipeline.run(RULES["train"], configfile="overlay.yaml")
    assert "goes on after epoch" in log_of(pipeline, "train").read_text()
    assert contents(pipeline) == contents(shared)


def test_one_process_goes_on_with_what_two_have_left(shared: Pipeline, tmp_path: Path) -> None:
    pipeline = shared.copy(tmp_path / "pipeline")
    configure(pipeline, OFTEN | SHARED)
    (pipeline.folder / RULES["train"]).unlink()
    checkpoint = pipeline.folder / "checkpoints/train/demo/refine/seed2024.safetensors"
    stop_in(pipeline, "train", signal.SIGTERM, checkpoint, 0)
    configure(pipeline, OFTEN)
    pipeline.run(RULES["train"], configfile="overlay.yaml")
    log = log_of(pipeline, "train").read_text()
    assert "goes on after epoch" in log
    assert "training.processes was 2 and is 1" in log
    (one, facts), (other, expected) = (
        read_tensors(each.folder / RULES["train"]) for each in (pipeline, shared)
    )
    assert float((one["embedding"] - other["embedding"]).abs().max()) < 1e-5
    assert facts["epoch"] == expected["epoch"]


def test_a_failure_is_told_once(finished: Pipeline, tmp_path: Path) -> None:
    pipeline = finished.copy(tmp_path / "pipeline")
    configure(pipeline, LONG | {"processes": 3})
    failed = pipeline.attempt(RULES["train"], configfile="overlay.yaml")
    assert failed.returncode != 0
    log = log_of(pipeline, "warm_up").read_text()
    assert log.count("model.dimension (64) must be a multiple of training.processes (3)") == 1
