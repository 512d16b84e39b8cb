"""The state of a training run after any step, as a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from refine.artifacts import ArtifactError
from refine.tensors import read_tensors, write_tensors


class Epoch(NamedTuple):
    """One epoch: its mean batch loss, and validation Recall@20 and NDCG@20 after it."""

    loss: float
    recall: float
    ndcg: float


class UnfinishedEpoch(NamedTuple):
    """What is done of an epoch.

    Attributes:
        steps: number of optimiser steps.
        loss: the sum of their losses, a float64 scalar.
        negatives: state of the sampler, empty without mined weights.
    """

    steps: int
    loss: Tensor
    negatives: dict[str, Tensor]


@dataclass(frozen=True)
class TrainingState:
    """All that the rest of a training run depends on, its settings apart.

    Attributes:
        model: ``state_dict`` of the model.
        optimiser: ``state_dict`` of its optimiser.
        generator: state of the generator of batches and negatives after the last finished epoch;
            from it, the batches of an unfinished one come out the same again.
        best_weights: ``state_dict`` of the model after its best epoch; empty before the first.
        best_epoch: counted from 1; 0 before the first.
        history: the finished epochs.
        unfinished: the one that has begun, if any.
    """

    model: dict[str, Tensor]
    optimiser: dict[str, Any]
    generator: Tensor
    best_weights: dict[str, Tensor]
    best_epoch: int
    history: list[Epoch]
    unfinished: UnfinishedEpoch | None = None

    def save(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Writes the state, whole or not at all.

        Args:
            path: a safetensors file.
            facts: what the run was given (settings, seed, device); JSON values.
        """
        tensors = {f"model.{name}": tensor for name, tensor in self.model.items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best_weights.items()}
        tensors["generator"] = self.generator
        # Per-parameter state: tensors go to the tensors, anything else to the metadata.
        scalars: dict[str, dict[str, Any]] = {}
        for index, values in self.optimiser["state"].items():
            for name, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"optimiser.{index}.{name}"] = value
                else:
                    scalars.setdefault(str(index), {})[name] = value
        metadata = {
            "facts": dict(facts),
            "optimiser": {"scalars": scalars, "param_groups": self.optimiser["param_groups"]},
            "best_epoch": self.best_epoch,
            "history": self.history,
        }
        if self.unfinished is not None:
            metadata["steps"] = self.unfinished.steps
            tensors["loss"] = self.unfinished.loss
            tensors |= {f"negatives.{name}": t for name, t in self.unfinished.negatives.items()}
        write_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: Path) -> tuple["TrainingState", dict[str, Any]]:
        """Reads a state, on the CPU, and the facts that it was saved with.

        Raises:
            ArtifactError: the file is no such state.
        """
        tensors, metadata = read_tensors(path)
        if "generator" not in tensors or "history" not in metadata:
            raise ArtifactError(f"{path}: is no training state")
        optimiser = metadata["optimiser"]
        values: dict[int, dict[str, Any]] = {
            int(index): dict(scalars) for index, scalars in optimiser["scalars"].items()
        }
        for key, tensor in _below("optimiser", tensors).items():
            index, name = key.split(".", 1)
            values.setdefault(int(index), {})[name] = tensor
        unfinished = None
        if "steps" in metadata:
            negatives = _below("negatives", tensors)
            unfinished = UnfinishedEpoch(metadata["steps"], tensors["loss"], negatives)
        state = cls(
            model=_below("model", tensors),
            optimiser={"state": values, "param_groups": optimiser["param_groups"]},
            generator=tensors["generator"],
            best_weights=_below("best", tensors),
            best_epoch=metadata["best_epoch"],
            history=[Epoch(*epoch) for epoch in metadata["history"]],
            unfinished=unfinished,
        )
        return state, metadata["facts"]


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix`` and a dot, without it."""
    return {
        name.removeprefix(f"{prefix}."): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{prefix}.")
    }
