"""Exact weighted sampling of negatives, an epoch at a time, in bounded memory.

Re-Weighted BPR (ReFINe, WWW Companion 2025) draws the negatives of a user with a probability that
depends on what is known of the pair: see ``WeightClass``. The distribution is a row of a table of
users x items. It is laid out for a block of users at a time, as cumulative integer weights: sums of
integers are exact in any order, so that every device and every block size gives the same table, and
one binary search a negative draws from exactly this distribution.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from refine.data import Pairs, TrainingData

_logger = logging.getLogger(__name__)

BLOCK_BYTES = 2**24
"""Memory that one block of the table is laid out in: small enough to stay near the cache."""

CACHE_BYTES = 2**30
"""A whole table up to this size is kept from epoch to epoch."""

_BYTES_A_CELL = 32  # peak while a block is laid out
_CACHED_BYTES_A_CELL = 8
_WEIGHT_BITS = 30  # of the largest weight; a row of a million items then fits a double exactly


class WeightClass(IntEnum):
    """What is known of a (user, item) pair, as far as the sampler is concerned."""

    OTHER = 0
    """Nothing; also a low rating that no judge decided on. Weighs 1."""
    POSITIVE = 1
    """Liked, or falsely identified as disliked. Weighs 0."""
    CONFIRMED = 2
    """A confirmed negative."""
    NEAR_LIKED = 3
    """Among the s items most similar to one that the user likes."""
    NEAR_DISLIKED = 4
    """Among the r items most similar to a confirmed negative of the user."""


@dataclass(frozen=True)
class SamplingSettings:
    """Weights of the classes, and how they become probabilities.

    Attributes:
        reweight: False draws uniformly from what is not positive.
        normalisation: ``sum``: probability proportional to the weight, so that positives are never
            drawn (ReFINe's release); ``softmax``: to its exponential, so that they can be (the
            paper).
        confirmed: weight of a confirmed negative.
        near_disliked: p in the paper.
        near_liked: q in the paper.
    """

    reweight: bool = True
    normalisation: str = "sum"
    confirmed: float = 1.5
    near_disliked: float = 1.5
    near_liked: float = 0.75

    def __post_init__(self) -> None:
        if self.normalisation not in ("sum", "softmax"):
            raise ValueError(
                f"sampling.normalisation must be sum or softmax, not {self.normalisation!r}"
            )
        for name in ("confirmed", "near_disliked", "near_liked"):
            weight = getattr(self, name)
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"sampling.{name} must be a number from 0 on, not {weight}")

    def weights(self) -> Tensor:
        """Weight of each class, float64 [classes]."""
        weights = torch.ones(len(WeightClass), dtype=torch.float64)
        weights[WeightClass.POSITIVE] = 0.0
        if self.reweight:
            weights[WeightClass.CONFIRMED] = self.confirmed
            weights[WeightClass.NEAR_LIKED] = self.near_liked
            weights[WeightClass.NEAR_DISLIKED] = self.near_disliked
        return weights


class _Block(NamedTuple):
    """The users ``start`` to ``stop - 1``, and where their pairs are in the tables of pairs."""

    start: int
    stop: int
    positives: slice
    confirmed: slice


class NegativeSampler:
    """Draws negatives for users, each user's from a distribution over all items."""

    def __init__(
        self,
        data: TrainingData,
        settings: SamplingSettings,
        *,
        block_bytes: int = BLOCK_BYTES,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """Prepares the blocks; similar items count only once ``reweight`` has been called.

        Args:
            data: whose device the negatives are drawn on.
            settings: weights of the classes.
            block_bytes: memory for laying out one block; one user is the smallest block.
            cache_bytes: the table is kept while it takes no more than this.
        """
        self.n_users, self.n_items = data.n_users, data.n_items
        self._positives, self._confirmed = data.positives, data.confirmed
        self._settings = settings
        self._device = data.device
        self._similar: dict[str, Tensor] = {}

        weights = settings.weights()
        self._weigh_one = [int(kind) for kind in WeightClass if weights[kind] == 1]
        self._levels = _integer_weights(weights, settings.normalisation).to(self._device)

        self._cells = max(block_bytes // _BYTES_A_CELL, self.n_items)
        rows = self._cells // self.n_items
        starts = list(range(0, self.n_users, rows))
        self._starts = torch.tensor([*starts, self.n_users], device=self._device)
        positives, confirmed = self._slices(self._positives), self._slices(self._confirmed)
        self._blocks = [
            _Block(start, min(start + rows, self.n_users), *slices)
            for start, *slices in zip(starts, positives, confirmed, strict=True)
        ]
        table_bytes = self.n_users * self.n_items * _CACHED_BYTES_A_CELL
        self._keep = table_bytes <= cache_bytes
        self._tables: dict[int, Tensor] = {}

    def reweight(self, similar_items: Tensor, near_liked: int, near_disliked: int) -> None:
        """Gives the items that are similar to liked and to disliked ones their weights.

        Args:
            similar_items: the most similar items of each item, best first; int64 [items, ranks].
            near_liked: s, how many of them count around an item that the user likes.
            near_disliked: r, around a confirmed negative.
        """
        self.restore(
            {
                "near_liked": similar_items[:, :near_liked],
                "near_disliked": similar_items[:, :near_disliked],
            }
        )

    def state(self) -> dict[str, Tensor]:
        """The similar items that count; empty before ``reweight``."""
        return dict(self._similar)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from the ``state`` of a sampler of the same data and settings."""
        self._similar = {name: items.to(self._device) for name, items in state.items()}
        self._tables.clear()

    def draw(self, users: Tensor, generator: torch.Generator) -> Tensor:
        """Draws one item for each entry of ``users``, with replacement.

        Args:
            users: user codes, ascending; a user as often as items are wanted; integers [n].
            generator: on the device of the data.

        Returns:
            Item codes, int64 [n].

        Raises:
            ValueError: a user has no item that may be drawn.
        """
        uniform = torch.rand(
            len(users), dtype=torch.float64, generator=generator, device=self._device
        )
        items = torch.empty(len(users), dtype=torch.int64, device=self._device)
        bounds = torch.searchsorted(users, self._starts.to(users.dtype)).tolist()
        for block, (first, last) in zip(self._blocks, pairwise(bounds), strict=True):
            if first == last:
                continue
            table = self._table(block)
            ends = table[self.n_items - 1 :: self.n_items]
            totals = ends.diff(prepend=ends.new_zeros(1))
            rows = users[first:last].long() - block.start
            total = totals[rows]
            # The product may round up to the total itself, which belongs to the next row.
            offset = (uniform[first:last] * total).long().minimum(total - 1)
            cells = torch.searchsorted(table, (ends - totals)[rows] + offset, right=True)
            items[first:last] = cells - rows * self.n_items
        return items

    def probabilities(self, user: int) -> Tensor:
        """The distribution that negatives of ``user`` are drawn from, float64 [items]."""
        block = next(block for block in self._blocks if block.start <= user < block.stop)
        levels = self._levels[self._classes(block)[user - block.start].int()].double()
        return levels / levels.sum()

    def classes(self) -> Iterator[Tensor]:
        """The class of every pair, block by block: uint8 [users of the block, items]."""
        return map(self._classes, self._blocks)

    def log_reweighting(self, rated: Pairs) -> None:
        """Logs how much of what the users have not rated carries a similar item's weight.

        Args:
            rated: every pair with a train rating.
        """
        unrated = self.n_users * self.n_items - len(rated.users)
        liked, disliked = 0, 0
        for block, pairs, classes in zip(
            self._blocks, self._slices(rated), self.classes(), strict=True
        ):
            cells = self._block_cells(rated, pairs, block)
            classes.view(-1).index_fill_(0, cells, WeightClass.OTHER)
            liked += int((classes == WeightClass.NEAR_LIKED).sum())
            disliked += int((classes == WeightClass.NEAR_DISLIKED).sum())
        _logger.info(
            "re-weighted: %.1f%% of the unrated pairs are near a disliked item (weight %g), "
            "%.1f%% near a liked one (weight %g)",
            100 * disliked / unrated,
            self._settings.near_disliked,
            100 * liked / unrated,
            self._settings.near_liked,
        )

    def _table(self, block: _Block) -> Tensor:
        """Cumulative integer weights of a block, row after row; int64 [rows x items]."""
        table = self._tables.get(block.start)
        if table is None:
            classes = self._classes(block).view(-1)
            table = self._levels.index_select(0, classes.int()).cumsum(0)
            ends = table[self.n_items - 1 :: self.n_items]
            empty = ends.diff(prepend=ends.new_zeros(1)) == 0
            if bool(empty.any()):
                user = block.start + int(empty.nonzero()[0])
                raise ValueError(
                    f"user {user} (code in users.parquet) likes every item that may be drawn, so "
                    "that no negative is left: leave the user out, or set "
                    "sampling.normalisation to softmax"
                )
            if self._keep:
                self._tables[block.start] = table
        return table

    def _classes(self, block: _Block) -> Tensor:
        """The class of every pair of a block, uint8 [rows, items]."""
        shape = (block.stop - block.start, self.n_items)
        classes = torch.zeros(shape, dtype=torch.uint8, device=self._device)
        cells = classes.view(-1)
        liked = self._block_cells(self._positives, block.positives, block)
        disliked = self._block_cells(self._confirmed, block.confirmed, block)
        cells.index_fill_(0, liked, WeightClass.POSITIVE)
        cells.index_fill_(0, disliked, WeightClass.CONFIRMED)
        if self._similar and self._settings.reweight:
            # As released: first what is near a liked item, then what is near a disliked one, each
            # only where the weight still is exactly 1.
            for pairs, where, name, near in (
                (self._positives, block.positives, "near_liked", WeightClass.NEAR_LIKED),
                (self._confirmed, block.confirmed, "near_disliked", WeightClass.NEAR_DISLIKED),
            ):
                mask = self._near(pairs, where, self._similar[name], block)
                mask &= self._weighs_one(cells)
                cells.masked_fill_(mask, near)
        return classes

    def _weighs_one(self, cells: Tensor) -> Tensor:
        """Whether the weight of each cell's class is exactly 1, bool [cells]."""
        # One comparison a class is several times as fast as looking each cell up.
        first, *others = self._weigh_one
        weighs_one = cells == first
        for kind in others:
            weighs_one |= cells == kind
        return weighs_one

    def _near(self, pairs: Pairs, where: slice, similar: Tensor, block: _Block) -> Tensor:
        """Whether the cells of a block are similar to the item of one of the user's pairs."""
        mask = torch.zeros(
            (block.stop - block.start) * self.n_items, dtype=torch.bool, device=self._device
        )
        if not similar.shape[1]:
            return mask
        at_once = max(1, self._cells // similar.shape[1])
        row_cells = (pairs.users[where].long() - block.start) * self.n_items
        for rows, items in zip(
            torch.split(row_cells, at_once), torch.split(pairs.items[where], at_once), strict=True
        ):
            mask.index_fill_(0, (rows[:, None] + similar[items.long()]).view(-1), True)
        return mask

    def _block_cells(self, pairs: Pairs, where: slice, block: _Block) -> Tensor:
        """Places of the pairs in the flattened block, int64."""
        return (pairs.users[where].long() - block.start) * self.n_items + pairs.items[where]

    def _slices(self, pairs: Pairs) -> list[slice]:
        """Where the pairs of each block are."""
        bounds = torch.searchsorted(pairs.users, self._starts.to(pairs.users.dtype)).tolist()
        return [slice(first, last) for first, last in pairwise(bounds)]


def _integer_weights(weights: Tensor, normalisation: str) -> Tensor:
    """Integers in the proportions of the probabilities, to 2**-29 of the largest.

    The factor is a power of two: weights such as 0, 0.75, 1 and 1.5 keep their exact proportions.

    Raises:
        ValueError: a weight is too small beside the largest.
    """
    if normalisation == "softmax":
        weights = (weights - weights.max()).exp()
    factor = 2.0 ** (_WEIGHT_BITS - math.frexp(float(weights.max()))[1])
    levels = (weights * factor).round().long()
    if bool(((levels == 0) & (weights > 0)).any()):
        raise ValueError("sampling: the largest weight is more than a billion times the smallest")
    return levels
