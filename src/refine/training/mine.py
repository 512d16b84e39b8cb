"""Mines similar items from the embeddings that the warm-up has reached."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from refine.data import TrainingData
from refine.mining import mine_similar_items, write_similar_items
from refine.models.base import Recommender
from refine.models.registry import restore_model
from refine.training.state import TrainingState

_logger = logging.getLogger(__name__)


def mine(
    state: Path,
    feedback: Path,
    validation: Path,
    users: Path,
    items: Path,
    output: Path,
    *,
    settings: Mapping[str, Mapping[str, Any]],
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
    similar, similarities = mine_items(model, settings["mining"])
    write_similar_items(similar, similarities, output)
    _logger.info("mined the %d most similar items of each of %d", similar.shape[1], len(similar))


def mine_items(model: Recommender, mining: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """As many similar items of each item as any weight asks for, and their similarities.

    Args:
        model: whose item embeddings are compared, as they are now.
        mining: the section of the configuration.
    """
    k = max(mining["near_liked"], mining["near_disliked"])
    return mine_similar_items(model.item_embeddings(), k, mining["similarity"])
