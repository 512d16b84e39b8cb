"""Trains the demo, alone or as one of several processes; the first writes what came of it.

Arguments: dtype, epochs, output file.
"""

import os
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from training_data import data_of, settings

from refine import shards
from refine.artifacts import CONFIRMED, LABELS, POSITIVE
from refine.data import TrainingData
from refine.datasets import demo
from refine.training.setup import new_trainer


def demo_data() -> TrainingData:
    """The demo's ratings: 4 and 5 liked, the others not; every tenth like is held out."""
    with tempfile.TemporaryDirectory() as folder:
        demo.generate(Path(folder))
        path = Path(folder) / "ratings.csv"
        users, items, stars = np.loadtxt(path, delimiter=",", skiprows=1, usecols=(0, 1, 2)).T
    labels = np.full((int(users.max()), int(items.max())), -1)
    likes = stars >= 4
    places = users.astype(int) - 1, items.astype(int) - 1
    labels[places] = np.where(likes, LABELS.index(POSITIVE), LABELS.index(CONFIRMED))
    held_out = np.flatnonzero(likes)[::10]
    labels[places[0][held_out], places[1][held_out]] = -1
    return data_of(labels, list(zip(*(codes[held_out] for codes in places), strict=True)))


def counted() -> SimpleNamespace:
    """The numbers that go into each kind of message from now on."""
    sent = SimpleNamespace(all_reduce=[], all_gather=[])
    reduce, gather = torch.distributed.all_reduce, torch.distributed.all_gather

    def all_reduce(tensor: torch.Tensor, *arguments: object) -> None:
        sent.all_reduce.append(tensor.numel())
        reduce(tensor, *arguments)

    def all_gather(parts: list[torch.Tensor], tensor: torch.Tensor) -> None:
        sent.all_gather.append(tensor.numel())
        gather(parts, tensor)

    torch.distributed.all_reduce, torch.distributed.all_gather = all_reduce, all_gather
    return sent


def main(dtype: str, epochs: str, output: str) -> None:
    torch.set_default_dtype(getattr(torch, dtype))
    chosen = settings(model={"batch_size": 512, "learning_rate": 0.005})
    with shards.joined("cpu") if "RANK" in os.environ else nullcontext():
        trainer = new_trainer(demo_data(), chosen, seed=3)
        sent = counted()
        trainer.train(until=int(epochs) - 1)
        # Saved and taken up again, as by a run that was stopped.
        state = trainer.state()
        trainer = new_trainer(demo_data(), chosen, seed=4)
        trainer.restore(state)
        trainer.train(until=int(epochs))
        state = trainer.state()
        if shards.is_first():
            result = {
                "losses": [epoch.loss for epoch in trainer.history],
                "recalls": [epoch.recall for epoch in trainer.history],
                "embedding": state.model["embedding"],
                "best": state.best_weights["embedding"],
                "moments": state.optimiser["state"][0]["exp_avg_sq"],
                "sent": vars(sent),
            }
            torch.save(result, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
