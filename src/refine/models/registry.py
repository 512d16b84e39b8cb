"""The models by name; building them from a configuration, saving and loading them."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refine.artifacts import ArtifactError
from refine.data import TrainingData
from refine.models.base import Hyperparameters, Recommender
from refine.models.lightgcn import LightGCN
from refine.tensors import read_tensors, write_tensors

MODELS: dict[str, type[Recommender]] = {"lightgcn": LightGCN}
"""Every model that ``model.name`` may name."""


def model_class(name: str) -> type[Recommender]:
    """The class of a model.

    Raises:
        ValueError: no model has this name.
    """
    try:
        return MODELS[name]
    except KeyError:
        raise ValueError(f"model.name: no model {name!r}; there are {', '.join(MODELS)}") from None


def hyperparameters(settings: Mapping[str, Mapping[str, Any]]) -> Hyperparameters:
    """The hyperparameters of the configured model.

    Args:
        settings: section ``model`` has its name and its own hyperparameters; section ``training``
            has those that all models share.

    Raises:
        ValueError: no such model, or it has no such hyperparameter, or one is out of bounds.
    """
    own = dict(settings["model"])
    cls = model_class(own.pop("name"))
    known = {field.name for field in fields(cls.hyperparameter_type)}
    unknown = sorted(own.keys() - known)
    if unknown:
        raise ValueError(
            f"model {settings['model']['name']} has no hyperparameter {', '.join(unknown)}; "
            f"it has {', '.join(sorted(known))}"
        )
    shared = {name: value for name, value in settings["training"].items() if name in known}
    return cls.hyperparameter_type(**{**shared, **own})


def build_model(
    settings: Mapping[str, Mapping[str, Any]], data: TrainingData, generator: torch.Generator
) -> Recommender:
    """A new model as configured, on the device of the data.

    Args:
        settings: sections ``model`` and ``training``.
        data: what it will learn from.
        generator: draws the initial parameters; on the same device.
    """
    return model_class(settings["model"]["name"])(data, hyperparameters(settings), generator)


def save_model(
    path: Path,
    name: str,
    hyperparameters: Hyperparameters,
    state: Mapping[str, Tensor],
    facts: Mapping[str, Any],
) -> None:
    """Writes a trained model, whole or not at all.

    Args:
        path: a safetensors file.
        name: of the model.
        hyperparameters: of the model.
        state: its ``state_dict``.
        facts: what else the metadata shall say: seed, best epoch and so on; JSON values.
    """
    metadata = {"model": name, "hyperparameters": asdict(hyperparameters), **facts}
    write_tensors(path, state, metadata)


def load_model(path: Path, data: TrainingData) -> Recommender:
    """A trained model, on the device of the data.

    Args:
        path: as written by ``save_model``.
        data: what it was trained on.

    Raises:
        ArtifactError: no such model, or it was trained on other data.
    """
    tensors, metadata = read_tensors(path)
    try:
        return restore_model(metadata["model"], metadata["hyperparameters"], tensors, data)
    except (KeyError, RuntimeError) as error:
        raise ArtifactError(f"{path}: is no model of these data: {error}") from error


def restore_model(
    name: str, hyperparameters: Mapping[str, Any], state: Mapping[str, Tensor], data: TrainingData
) -> Recommender:
    """A model with given parameters, on the device of the data.

    Args:
        name: of the model.
        hyperparameters: all of them, by name.
        state: its ``state_dict``.
        data: what it was trained on.
    """
    cls = model_class(name)
    generator = torch.Generator(data.device)
    model = cls(data, cls.hyperparameter_type(**hyperparameters), generator)
    model.load_state_dict(state)
    return model
