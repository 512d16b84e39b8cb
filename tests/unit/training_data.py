"""Small training data for the tests of what trains on it."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from refine.artifacts import (
    CONFIRMED,
    FALSELY_IDENTIFIED,
    FEEDBACK,
    LABELS,
    POSITIVE,
    RATINGS,
    UNDECIDED,
    write_table,
)
from refine.data import Pairs, TrainingData

torch.set_num_threads(1)  # such small tensors are only slowed down by more

UNRATED = -1
RATING = {POSITIVE: 5, FALSELY_IDENTIFIED: 3, CONFIRMED: 1, UNDECIDED: 2}

SETTINGS = {
    "model": {
        "name": "lightgcn",
        "dimension": 16,
        "layers": 2,
        "batch_size": 64,
        "learning_rate": 0.01,
    },
    "training": {
        "warmup_epochs": 4,
        "epochs": 9,
        "patience": 50,
    },
    "mining": {
        "refresh": "once",
        "similarity": "inner_product",
        "near_liked": 2,
        "near_disliked": 6,
    },
    "sampling": {
        "reweight": True,
        "normalisation": "sum",
        "confirmed": 1.5,
        "near_disliked": 1.5,
        "near_liked": 0.75,
    },
    "evaluation": {"k": [5, 20], "mask": "rated"},
}


def settings(**changes: dict[str, object]) -> dict[str, dict[str, object]]:
    """The settings above, with changed keys in some sections."""
    return {name: {**section, **changes.get(name, {})} for name, section in SETTINGS.items()}


def data_of(labels: np.ndarray, validation: list[tuple[int, int]] | None = None) -> TrainingData:
    """Training data from a table of users x items of places in LABELS, or UNRATED."""
    users, items = np.nonzero(labels != UNRATED)
    codes = labels[users, items].astype(np.int8)
    held_out = np.array(sorted(validation or []), dtype=np.int32).reshape(-1, 2)
    return TrainingData(
        n_users=labels.shape[0],
        n_items=labels.shape[1],
        rated=_pairs(users, items),
        ratings=torch.tensor([RATING[LABELS[code]] for code in codes], dtype=torch.int8),
        labels=torch.from_numpy(codes),
        validation=_pairs(held_out[:, 0], held_out[:, 1]),
    )


def random_labels(seed: int, n_users: int, n_items: int, rated: float = 0.5) -> np.ndarray:
    """A table of random labels in which every user likes at least one item, but not all."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(LABELS), (n_users, n_items))
    labels[rng.random(labels.shape) >= rated] = UNRATED
    labels[:, 0] = LABELS.index(POSITIVE)
    labels[:, -1] = UNRATED
    return labels


def planted(seed: int = 0, n_users: int = 120, n_items: int = 80, groups: int = 4) -> TrainingData:
    """Users of a group like its items and dislike others'; popular items are liked by all."""
    rng = np.random.default_rng(seed)
    of_user, of_item = np.arange(n_users) % groups, np.arange(n_items) % groups
    same = of_user[:, None] == of_item
    appeal = rng.random(n_items)
    likes = rng.random(same.shape) < np.where(same, 0.5, 0.08) * (0.5 + appeal)
    dislikes = ~likes & (rng.random(same.shape) < np.where(same, 0.02, 0.1))
    held_out = likes & (rng.random(same.shape) < 0.25)
    labels = np.full(same.shape, UNRATED)
    labels[likes & ~held_out] = LABELS.index(POSITIVE)
    labels[dislikes] = LABELS.index(CONFIRMED)
    # Some likes were rated low, and some low ratings nobody decided on.
    labels[(labels == 0) & (rng.random(same.shape) < 0.2)] = LABELS.index(FALSELY_IDENTIFIED)
    labels[(labels == LABELS.index(CONFIRMED)) & (rng.random(same.shape) < 0.2)] = LABELS.index(
        UNDECIDED
    )
    return data_of(labels, list(zip(*np.nonzero(held_out), strict=True)))


def write_artifacts(data: TrainingData, folder: Path) -> list[Path]:
    """Writes the data as the artifacts that stages read: feedback, validation, users, items."""
    paths = [folder / f"{name}.parquet" for name in ("feedback", "validation", "users", "items")]
    users, items = (codes.numpy() for codes in data.rated)
    labels = [LABELS[code] for code in data.labels]
    feedback = {"user": users, "item": items, "rating": data.ratings.numpy()}
    feedback |= {"label": labels, "reason": ["test"] * len(labels)}
    write_table(pa.table(feedback), paths[0], FEEDBACK)
    users, items = (codes.numpy() for codes in data.validation)
    held_out = {"user": users, "item": items, "rating": np.full(len(users), 4, np.int8)}
    held_out["timestamp"] = pa.nulls(len(users), pa.int64())
    write_table(pa.table(held_out), paths[1], RATINGS)
    write_table(pa.table({"user": range(data.n_users)}), paths[2])
    write_table(pa.table({"item": range(data.n_items)}), paths[3])
    return paths


def _pairs(users: np.ndarray, items: np.ndarray) -> Pairs:
    return Pairs(torch.from_numpy(users.astype(np.int32)), torch.from_numpy(items.astype(np.int32)))
