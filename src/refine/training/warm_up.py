"""The first epochs of a training, before similar items are mined."""

from pathlib import Path

from refine.data import TrainingData
from refine.device import choose_device, deterministic
from refine.training.setup import Settings, new_trainer, run_identity


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
    """
    data = TrainingData.load(feedback, validation, users, items).to(choose_device(device))
    trainer = new_trainer(data, settings, seed)
    with deterministic(data.device):
        trainer.train(until=settings["training"]["warmup_epochs"])
    trainer.state().save(output, run_identity(trainer, settings, seed))
