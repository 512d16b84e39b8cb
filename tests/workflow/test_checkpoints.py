"""A training that is preempted or killed at any moment goes on, and to the same bytes."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from pipeline import Pipeline
from test_kills import RUN, contents

RULES = {"warm_up": f"{RUN}/warmup.safetensors", "train": f"{RUN}/model.safetensors"}
LONG = {"warmup_epochs": 160, "epochs": 320, "patience": 320}  # 1.6 s each on a free core
OFTEN = LONG | {"checkpoint_minutes": 0.002}


@pytest.fixture(scope="module")
def unbroken(finished: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A pipeline that has trained for longer than those of other tests, without a break."""
    pipeline = finished.copy(tmp_path_factory.mktemp("unbroken") / "pipeline")
    configure(pipeline, LONG)
    pipeline.run(RULES["train"], configfile="overlay.yaml")
    return pipeline


def configure(pipeline: Pipeline, training: dict[str, object], **model: object) -> None:
    longer = {key: training[key] for key in LONG}
    pipeline.configure(training=training, datasets={"demo": {"training": longer, "model": model}})


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_training_that_is_stopped_again_and_again_gives_the_same_bytes(
    unbroken: Pipeline, tmp_path: Path, rule: str, how: signal.Signals
) -> None:
    pipeline = unbroken.copy(tmp_path / "pipeline")
    configure(pipeline, OFTEN)
    for path in (pipeline.folder / RUN).iterdir():
        if path.suffix == ".safetensors" and (rule == "warm_up" or path.stem == "model"):
            path.unlink()
    checkpoint = pipeline.folder / f"checkpoints/{rule}/demo/refine/seed2024.safetensors"
    for stops in range(2):
        log = stop_in(pipeline, rule, how, checkpoint, random.uniform(0, 0.2))  # noqa: S311
        assert checkpoint.exists()
        assert not (pipeline.folder / RULES[rule]).exists()
        assert ("goes on after epoch" in log) == (stops > 0)
        assert ("stopped: the next run goes on from" in log) == (how != signal.SIGKILL)
        if how == signal.SIGKILL:
            shutil.rmtree(pipeline.folder / ".snakemake/locks")
    pipeline.run(RULES["train"], configfile="overlay.yaml")
    assert "goes on after epoch" in log_of(pipeline, rule).read_text()
    assert contents(pipeline) == contents(unbroken)
    assert not [path for path in (pipeline.folder / "checkpoints").rglob("*") if path.is_file()]


def test_after_a_change_the_training_starts_anew_and_says_why(
    unbroken: Pipeline, tmp_path: Path
) -> None:
    pipeline = unbroken.copy(tmp_path / "pipeline")
    configure(pipeline, OFTEN)
    (pipeline.folder / RULES["warm_up"]).unlink()
    checkpoint = pipeline.folder / "checkpoints/warm_up/demo/refine/seed2024.safetensors"
    stop_in(pipeline, "warm_up", signal.SIGTERM, checkpoint, 0)
    fresh = unbroken.copy(tmp_path / "fresh")
    for one in (pipeline, fresh):
        configure(one, OFTEN, learning_rate=0.002)
        one.run(RULES["warm_up"], configfile="overlay.yaml")
    log = log_of(pipeline, "warm_up").read_text()
    assert "cannot be taken up: model.learning_rate was 0.005 and is 0.002. It is kept" in log
    made = [(one.folder / RULES["warm_up"]).read_bytes() for one in (pipeline, fresh)]
    assert made[0] == made[1]


def stop_in(
    pipeline: Pipeline, rule: str, how: signal.Signals, checkpoint: Path, after: float
) -> str:
    """Signals Snakemake and its job, as a cluster does, once there is a new checkpoint.

    Returns:
        The job's log.
    """
    before, log = written(checkpoint), log_of(pipeline, rule)
    log.unlink(missing_ok=True)
    process = pipeline.run_until(
        lambda: log.exists() and written(checkpoint) > before,
        RULES[rule],
        configfile="overlay.yaml",
    )
    time.sleep(after)
    os.killpg(process.pid, how)
    assert process.wait(timeout=60) != 0
    return log.read_text()


def written(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def log_of(pipeline: Pipeline, rule: str) -> Path:
    return pipeline.folder / f"logs/{rule}/demo/refine/seed2024.log"
