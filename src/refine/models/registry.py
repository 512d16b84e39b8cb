"""Models as the configuration names them: building them, saving and loading them."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refine.artifacts import ArtifactError
from refine.data import TrainingData
from refine.models.base import ModelHyperparameters, Recommender
from refine.models.catalogue import MODELS
from refine.tensors import read_tensors, write_tensors


def model_class(name: str) -> type[Recommender]:
    """The class of a model.

    Raises:
        ValueError: no model has this name.
    """
    if name not in MODELS:
        raise ValueError(f"model.name: no model {name!r}; there are {', '.join(MODELS)}")
    module, _, cls = MODELS[name].partition(":")
    found: type[Recommender] = getattr(import_module(module), cls)
    return found


def hyperparameters(settings: Mapping[str, Mapping[str, Any]]) -> ModelHyperparameters:
    """The hyperparameters of the configured model; its own defaults for what is not set.

    Args:
        settings: section ``model`` has its name and hyperparameters.

    Raises:
        ValueError: no such model, or it has no such hyperparameter, or one is out of bounds.
    """
    chosen = dict(settings["model"])
    cls = model_class(chosen.pop("name"))
    known = {field.name for field in fields(cls.hyperparameter_type)}
    unknown = sorted(chosen.keys() - known)
    if unknown:
        raise ValueError(
            f"model {settings['model']['name']} has no hyperparameter {', '.join(unknown)}; "
            f"it has {', '.join(sorted(known))}"
        )
    return cls.hyperparameter_type(**chosen)


def build_model(
    settings: Mapping[str, Mapping[str, Any]], data: TrainingData, generator: torch.Generator
) -> Recommender:
    """A new model as configured, on the device of the data.

    Args:
        settings: section ``model``.
        data: what it will learn from.
        generator: draws the initial parameters; on the same device.
    """
    return model_class(settings["model"]["name"])(data, hyperparameters(settings), generator)


def save_model(
    path: Path,
    name: str,
    hyperparameters: ModelHyperparameters,
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
