"""Training from the warm-up on, with re-weighted negatives, until early stopping.

Warm-up and training together are one unbroken run: the warm-up's last state goes on.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from refine import shards
from refine.artifacts import HISTORY, ArtifactError, write_table
from refine.columns import to_column
from refine.data import TrainingData
from refine.device import choose_device, deterministic
from refine.evaluation.environment import environment
from refine.mining import read_similar_items
from refine.models.registry import save_model
from refine.training.checkpoint import identity
from refine.training.loop import Trainer, TrainingError
from refine.training.mine import mine_items
from refine.training.setup import Settings, new_trainer, run_identity
from refine.training.state import TrainingState
from refine.training.underway import Underway, underway

_logger = logging.getLogger(__name__)


def train(
    state: Path,
    similar_items: Path | None,
    feedback: Path,
    validation: Path,
    users: Path,
    items: Path,
    model: Path,
    history: Path,
    *,
    settings: Settings,
    seed: int,
    device: str = "auto",
    leave: Underway | None = None,
) -> None:
    """Trains from the warm-up until early stopping, and writes the best epoch's model.

    Args:
        state: of the warm-up.
        similar_items: SIMILAR_ITEMS table; needed only where ``sampling.reweight`` is on and
            ``mining.refresh`` is ``once``.
        feedback: FEEDBACK table.
        validation: RATINGS table.
        users: users of the split.
        items: items of the split.
        model: the trained model, a safetensors file.
        history: HISTORY table.
        settings: sections ``model``, ``training``, ``sampling``, ``mining`` and ``evaluation``.
        seed: that of the warm-up.
        device: ``auto``, ``cpu`` or ``cuda``; of the same kind as for the warm-up.
        leave: while the run goes on; nothing by default.

    Raises:
        ArtifactError: the state belongs to another model, seed or kind of device.
        SystemExit: the run was told to stop, and has left a checkpoint.
        ValueError: ``similar_items`` is needed and missing.
    """
    data = TrainingData.load(feedback, validation, users, items).to(choose_device(device))
    trainer = new_trainer(data, settings, seed)
    warmed_up, facts = TrainingState.load(state)
    for name, value in run_identity(trainer, settings, seed).items():
        if facts.get(name) != value:
            raise ArtifactError(
                f"{state}: was warmed up with {name} {facts.get(name)}, which is now {value}; "
                "delete it and warm up again"
            )
    trainer.restore(warmed_up)

    mining = settings["mining"]
    read = (state, similar_items, feedback, validation, users, items)
    run = identity(settings, filter(None, read), seed, data.device)
    with deterministic(data.device), underway(trainer, leave, run):
        if not settings["sampling"]["reweight"]:
            trainer.train()
        elif mining["refresh"] == "epoch":
            trainer.train(before_epoch=lambda: _mine_anew(trainer, mining))
            trainer.negatives.log_reweighting(data.rated)
        elif similar_items is not None:
            _reweight(trainer, read_similar_items(similar_items, data.n_items), mining)
            trainer.negatives.log_reweighting(data.rated)
            trainer.train()
        else:
            raise ValueError("re-weighting needs similar items: none were given")
        if shards.is_first():
            _write(trainer, settings, seed, model, history)


def _mine_anew(trainer: Trainer, mining: Mapping[str, Any]) -> None:
    _reweight(trainer, mine_items(trainer.model, mining)[0], mining)


def _reweight(trainer: Trainer, similar: torch.Tensor, mining: Mapping[str, Any]) -> None:
    trainer.negatives.reweight(similar, mining["near_liked"], mining["near_disliked"])


def _write(trainer: Trainer, settings: Settings, seed: int, model: Path, history: Path) -> None:
    """Writes the best epoch's model, and the history of all epochs."""
    if not trainer.history:
        raise TrainingError("training.epochs is 0: there is no trained model")
    best = trainer.best
    _logger.info("best epoch: %d, validation recall@20 %.4f", trainer.best_epoch, best.recall)
    save_model(
        model,
        settings["model"]["name"],
        trainer.model.hyperparameters,
        trainer.best_weights,
        {
            "seed": seed,
            "epoch": trainer.best_epoch,
            "epochs": trainer.epoch,
            "validation": {"recall@20": best.recall, "ndcg@20": best.ndcg},
            "trained_on": environment(trainer.generator.device),
        },
    )
    epochs = torch.arange(1, trainer.epoch + 1)
    scores = torch.tensor(trainer.history, dtype=torch.float64).unbind(1)
    columns = [to_column(values) for values in (epochs, *scores)]
    write_table(pa.table(columns, names=HISTORY.names), history, HISTORY)
