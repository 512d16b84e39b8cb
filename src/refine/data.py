"""What a model learns from, as tensors: the labelled train ratings and the validation positives."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from refine.artifacts import (
    CONFIRMED,
    FALSELY_IDENTIFIED,
    FEEDBACK,
    LABELS,
    POSITIVE,
    POSITIVE_RATING,
    RATINGS,
    ArtifactError,
    read_table,
)
from refine.columns import to_tensor

_LABELLED = pa.schema([FEEDBACK.field(name) for name in ("user", "item", "rating", "label")])
_RATED = pa.schema([RATINGS.field(name) for name in ("user", "item", "rating")])


class Pairs(NamedTuple):
    """Users and items that belong together: int32 [n] each, ascending by user, then item."""

    users: Tensor
    items: Tensor

    def where(self, mask: Tensor) -> "Pairs":
        """The pairs that ``mask``, bool [n], is true of."""
        return Pairs(self.users[mask], self.items[mask])


@dataclass(frozen=True)
class TrainingData:
    """The labelled train ratings and the validation positives.

    Attributes:
        n_users: number of users; codes are 0..n_users - 1.
        n_items: number of items; codes are 0..n_items - 1.
        rated: the pairs of all train ratings.
        ratings: their ratings, int8 [n].
        labels: their labels, as places in ``artifacts.LABELS``, int8 [n].
        validation: the held-out positives that early stopping looks at.
    """

    n_users: int
    n_items: int
    rated: Pairs
    ratings: Tensor
    labels: Tensor
    validation: Pairs

    @classmethod
    def load(cls, feedback: Path, validation: Path, users: Path, items: Path) -> Self:
        """Reads the artifacts of a split and of a judge.

        Args:
            feedback: FEEDBACK table.
            validation: RATINGS table; its ratings below the positive ones are left out.
            users: one row a user.
            items: one row an item.

        Raises:
            ArtifactError: a table breaks its schema, is not sorted, or has codes out of range.
        """
        n_users, n_items = (pq.read_metadata(path).num_rows for path in (users, items))
        table = read_table(feedback, _LABELLED)
        labels = table.column("label").dictionary_encode().combine_chunks()
        names = labels.dictionary.to_pylist()
        if not set(names) <= set(LABELS):
            raise ArtifactError(f"{feedback}: column label has values other than {LABELS}")
        places = torch.tensor([LABELS.index(name) for name in names], dtype=torch.int8)
        held_out = read_table(validation, _RATED)
        return cls(
            n_users=n_users,
            n_items=n_items,
            rated=_pairs(table, n_users, n_items, feedback),
            ratings=to_tensor(table.column("rating")),
            labels=places[to_tensor(labels.indices)],
            validation=_pairs(held_out, n_users, n_items, validation).where(
                to_tensor(held_out.column("rating")) >= POSITIVE_RATING
            ),
        )

    def to(self, device: torch.device | str) -> Self:
        """The same data on ``device``."""
        return replace(
            self,
            rated=Pairs(*(codes.to(device) for codes in self.rated)),
            ratings=self.ratings.to(device),
            labels=self.labels.to(device),
            validation=Pairs(*(codes.to(device) for codes in self.validation)),
        )

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.labels.device

    def labelled(self, *labels: str) -> Pairs:
        """The pairs that carry one of these labels."""
        wanted = torch.tensor([label in labels for label in LABELS], device=self.device)
        return self.rated.where(wanted[self.labels.int()])

    @cached_property
    def positives(self) -> Pairs:
        """What the users like: positive ratings, and low ones that were falsely identified."""
        return self.labelled(POSITIVE, FALSELY_IDENTIFIED)

    @cached_property
    def confirmed(self) -> Pairs:
        """Confirmed negatives: what the users dislike."""
        return self.labelled(CONFIRMED)


def _pairs(table: pa.Table, n_users: int, n_items: int, path: Path) -> Pairs:
    pairs = Pairs(to_tensor(table.column("user")), to_tensor(table.column("item")))
    for codes, n, name in ((pairs.users, n_users, "user"), (pairs.items, n_items, "item")):
        if len(codes) and (int(codes.min()) < 0 or int(codes.max()) >= n):
            raise ArtifactError(
                f"{path}: column {name} must hold codes 0..{n - 1}, "
                f"not {int(codes.min())}..{int(codes.max())}"
            )
    same_user = pairs.users[1:] == pairs.users[:-1]
    ascending = torch.where(
        same_user, pairs.items[1:] > pairs.items[:-1], pairs.users[1:] > pairs.users[:-1]
    )
    if not bool(ascending.all()):
        row = int(ascending.logical_not().nonzero()[0]) + 1
        raise ArtifactError(
            f"{path}: row {row + 1} breaks the order: one row a (user, item), "
            "ascending by user, then item"
        )
    return pairs
