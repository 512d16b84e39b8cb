"""What warm-up and training begin with: the trainer as configured."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeAlias

import torch

from refine import shards
from refine.data import TrainingData
from refine.evaluation.masks import masked_pairs
from refine.evaluation.ranking import RankingEvaluator
from refine.models.base import GradientRecommender
from refine.models.registry import build_model
from refine.sampling import NegativeSampler, SamplingSettings
from refine.training.loop import Trainer, TrainingError

_logger = logging.getLogger(__name__)

Settings: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Sections of the configuration; others than a stage asks for may be there."""


def new_trainer(data: TrainingData, settings: Settings, seed: int) -> Trainer:
    """A new model before its first epoch; one generator draws it and then its batches.

    Args:
        data: on the device to train on.
        settings: sections ``model``, ``training``, ``sampling`` and ``evaluation``.
        seed: of the generator.
    """
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
    if shards.processes() > 1 and not model.can_be_shared:
        raise TrainingError(
            f"model {settings['model']['name']} is trained by one process: set training.processes "
            "to 1"
        )
    return Trainer(
        model,
        NegativeSampler(data, SamplingSettings(**settings["sampling"])),
        validation_evaluator(data, settings["evaluation"]["mask"]),
        generator,
        epochs=settings["training"]["epochs"],
        patience=settings["training"]["patience"],
    )


def validation_evaluator(data: TrainingData, mask: str) -> RankingEvaluator:
    """What epochs and hyperparameters are chosen by: lists of 20 for the validation positives.

    Args:
        data: on the device to rank on.
        mask: the setting ``evaluation.mask``.
    """
    return RankingEvaluator(
        mask=masked_pairs(data, mask, mask_validation=False),
        targets=data.validation,
        n_users=data.n_users,
        n_items=data.n_items,
        ks=[20],
        device=data.device,
    )


def run_identity(trainer: Trainer, settings: Settings, seed: int) -> dict[str, Any]:
    """What a warm-up and the training that goes on from it must have in common."""
    return {
        "model": settings["model"]["name"],
        "hyperparameters": asdict(trainer.model.hyperparameters),
        "seed": seed,
        "device": trainer.generator.device.type,
    }
