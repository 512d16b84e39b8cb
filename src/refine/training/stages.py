"""The stages of training: warm up, mine similar items, train on with re-weighted negatives.

Warm-up and training together are one unbroken run: the warm-up's last state goes on.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import torch

from refine.artifacts import HISTORY, ArtifactError, write_table
from refine.data import TrainingData
from refine.device import choose_device, deterministic
from refine.evaluation.environment import environment
from refine.evaluation.masks import masked_pairs
from refine.evaluation.ranking import RankingEvaluator
from refine.mining import mine_similar_items, read_similar_items, write_similar_items
from refine.models.base import GradientRecommender, Recommender
from refine.models.registry import build_model, restore_model, save_model
from refine.sampling import NegativeSampler, SamplingSettings
from refine.training.loop import Trainer, TrainingError
from refine.training.state import TrainingState

_logger = logging.getLogger(__name__)

Settings: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Sections of the configuration; others than a stage asks for may be there."""


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
    trainer = _trainer(data, settings, seed)
    with deterministic(data.device):
        trainer.train(until=settings["training"]["warmup_epochs"])
    trainer.state().save(output, _facts(trainer, settings, seed))


def mine(
    state: Path,
    feedback: Path,
    validation: Path,
    users: Path,
    items: Path,
    output: Path,
    *,
    settings: Settings,
) -> None:
    """Mines as many similar items of each item as any weight asks for; on the CPU.

    Args:
        state: of the warm-up.
        feedback: FEEDBACK table.
        validation: RATINGS table.
        users: users of the split.
        items: items of the split.
        output: SIMILAR_ITEMS table.
        settings: section ``mining``.
    """
    data = TrainingData.load(feedback, validation, users, items)
    warmed_up, facts = TrainingState.load(state)
    model = restore_model(facts["model"], facts["hyperparameters"], warmed_up.model, data)
    similar, similarities = _mine(model, settings["mining"])
    write_similar_items(similar, similarities, output)
    _logger.info("mined the %d most similar items of each of %d", similar.shape[1], len(similar))


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

    Raises:
        ArtifactError: the state belongs to another model, seed or kind of device.
        ValueError: ``similar_items`` is needed and missing.
    """
    data = TrainingData.load(feedback, validation, users, items).to(choose_device(device))
    trainer = _trainer(data, settings, seed)
    warmed_up, facts = TrainingState.load(state)
    for name, value in _facts(trainer, settings, seed).items():
        if facts.get(name) != value:
            raise ArtifactError(
                f"{state}: was warmed up with {name} {facts.get(name)}, which is now {value}; "
                "delete it and warm up again"
            )
    trainer.restore(warmed_up)

    mining = settings["mining"]
    with deterministic(data.device):
        if not settings["sampling"]["reweight"]:
            trainer.train()
        elif mining["refresh"] == "epoch":
            trainer.train(
                before_epoch=lambda: _reweight(trainer, _mine(trainer.model, mining)[0], mining)
            )
            trainer.negatives.log_reweighting(data.rated)
        elif similar_items is not None:
            _reweight(trainer, read_similar_items(similar_items, data.n_items), mining)
            trainer.negatives.log_reweighting(data.rated)
            trainer.train()
        else:
            raise ValueError("re-weighting needs similar items: none were given")

    _write(trainer, settings, seed, model, history)


def _trainer(data: TrainingData, settings: Settings, seed: int) -> Trainer:
    """A new model before its first epoch; one generator draws it and then its batches."""
    _logger.info(
        "%s on %s (%d threads): %d users, %d items, %d positives, %d confirmed negatives",
        settings["model"]["name"],
        data.device,
        torch.get_num_threads(),
        data.n_users,
        data.n_items,
        len(data.positives.users),
        len(data.confirmed.users),
    )
    generator = torch.Generator(data.device).manual_seed(seed)
    model = build_model(settings, data, generator)
    if not isinstance(model, GradientRecommender):
        raise TrainingError(f"model {settings['model']['name']} is not trained by gradient steps")
    evaluator = RankingEvaluator(
        mask=masked_pairs(data, settings["evaluation"]["mask"], mask_validation=False),
        targets=data.validation,
        n_users=data.n_users,
        n_items=data.n_items,
        ks=[20],
        device=data.device,
    )
    return Trainer(
        model,
        NegativeSampler(data, SamplingSettings(**settings["sampling"])),
        evaluator,
        generator,
        epochs=settings["training"]["epochs"],
        patience=settings["training"]["patience"],
    )


def _mine(model: Recommender, mining: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    k = max(mining["near_liked"], mining["near_disliked"])
    return mine_similar_items(model.item_embeddings(), k, mining["similarity"])


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
    losses, recalls, ndcgs = zip(*trainer.history, strict=True)
    epochs = range(1, trainer.epoch + 1)
    write_table(pa.table([epochs, losses, recalls, ndcgs], names=HISTORY.names), history, HISTORY)


def _facts(trainer: Trainer, settings: Settings, seed: int) -> dict[str, Any]:
    """What a warm-up and the training that goes on from it must have in common."""
    return {
        "model": settings["model"]["name"],
        "hyperparameters": asdict(trainer.model.hyperparameters),
        "seed": seed,
        "device": trainer.generator.device.type,
    }
