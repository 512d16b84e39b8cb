"""The first epochs of a training, before similar items are mined."""

from pathlib import Path

from refine import shards
from refine.data import TrainingData
from refine.device import choose_device, deterministic
from refine.training.checkpoint import identity
from refine.training.setup import Settings, new_trainer, run_identity
from refine.training.underway import Underway, underway


def warm_up(
    feedback: Path,
    validation: Path,
    users: Path,
    items: Path,
    output: Path,
    *,
    settings: Settings,
    seed: int,
    device: str = "auto",
    leave: Underway | None = None,
) -> None:
    """Trains the first ``training.warmup_epochs`` epochs, without mined weights.

    Args:
        feedback: FEEDBACK table.
        validation: RATINGS table.
        users: users of the split.
        items: items of the split.
        output: the state, a safetensors file.
        settings: sections ``model``, ``training``, ``sampling`` and ``evaluation``.
        seed: of every random draw of the run.
        device: ``auto``, ``cpu`` or ``cuda``.
        leave: while the run goes on; nothing by default.

    Raises:
        SystemExit: the run was told to stop, and has left a checkpoint.
    """
    data = TrainingData.load(feedback, validation, users, items).to(choose_device(device))
    trainer = new_trainer(data, settings, seed)
    read = (feedback, validation, users, items)
    run = identity(settings, read, seed, data.device)
    with deterministic(data.device), underway(trainer, leave, run):
        trainer.train(until=settings["training"]["warmup_epochs"])
        warmed_up = trainer.state()  # of all processes
        if shards.is_first():
            warmed_up.save(output, run_identity(trainer, settings, seed))
