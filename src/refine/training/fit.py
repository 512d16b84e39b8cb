"""Fits a model that is computed at once; of several settings, keeps the best on validation."""

import itertools
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from refine.data import TrainingData
from refine.device import choose_device, deterministic
from refine.evaluation.environment import environment
from refine.models.base import FittedRecommender
from refine.models.registry import hyperparameters, model_class, save_model
from refine.training.loop import TrainingError
from refine.training.setup import Settings, validation_evaluator

_logger = logging.getLogger(__name__)


def fit(
    feedback: Path,
    validation: Path,
    users: Path,
    items: Path,
    model: Path,
    *,
    settings: Settings,
    seed: int,
    device: str = "auto",
) -> None:
    """Fits each candidate, and writes the one with the best validation Recall@20.

    NDCG@20 decides between equals, and then the order of the search.

    Args:
        feedback: FEEDBACK table.
        validation: RATINGS table.
        users: users of the split.
        items: items of the split.
        model: the fitted model, a safetensors file.
        settings: sections ``model``, where ``search`` may list values of some hyperparameters to
            be tried in all combinations, and ``evaluation``.
        seed: is noted; nothing is drawn.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        TrainingError: the model is trained by gradient steps.
        ValueError: no such model or hyperparameter, or one is out of bounds.
    """
    name = settings["model"]["name"]
    cls = model_class(name)
    if not issubclass(cls, FittedRecommender):
        raise TrainingError(f"model {name} is not computed at once: train it")
    candidates = [hyperparameters({"model": chosen}) for chosen in _combinations(settings["model"])]
    if not candidates:
        raise ValueError("model.search lists no value of a hyperparameter: nothing can be tried")
    data = TrainingData.load(feedback, validation, users, items).to(choose_device(device))
    evaluate = validation_evaluator(data, settings["evaluation"]["mask"])
    generator = torch.Generator(data.device).manual_seed(seed)
    searched: list[dict[str, Any]] = []
    best_scores = (-1.0, -1.0)
    with deterministic(data.device):
        for candidate in candidates:
            started = time.perf_counter()
            fitted = cls(data, candidate, generator)
            fitted.fit()
            means = evaluate(fitted.scorer()).means()
            scores = means["recall@20"], means["ndcg@20"]
            chosen = asdict(candidate)
            searched.append({"hyperparameters": chosen, **_named(scores)})
            _logger.info(
                "%s  validation recall@20 %.4f  ndcg@20 %.4f  %.2f s",
                " ".join([name, *(f"{key}={value}" for key, value in chosen.items())]),
                *scores,
                time.perf_counter() - started,
            )
            if scores > best_scores:
                best, best_scores = fitted, scores
    save_model(
        model,
        name,
        best.hyperparameters,
        best.state_dict(),
        {
            "seed": seed,
            "validation": _named(best_scores),
            "searched": searched,
            "trained_on": environment(data.device),
        },
    )


def _named(scores: tuple[float, float]) -> dict[str, float]:
    return dict(zip(("recall@20", "ndcg@20"), scores, strict=True))


def _combinations(model: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Section ``model`` with each combination of the values that it lists under ``search``."""
    fixed = dict(model)
    search: dict[str, list[Any]] = fixed.pop("search", {})
    for values in itertools.product(*search.values()):
        yield {**fixed, **dict(zip(search, values, strict=True))}
