"""Ranks all items for every user in blocks, and scores the lists against held-out items.

What does not change between two passes (which items are masked, which are targets) is laid out
once, so that the pass after each training epoch costs little more than its matrix product.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refine.data import Pairs
from refine.evaluation.metrics import list_metrics, user_metrics
from refine.models.base import Scorer
from refine.topk import NO_ITEM, RankingError, top_k

_BLOCK_CELLS = {"cpu": 2**20, "cuda": 2**25}  # scores held at once; on CPU they stay near the cache


@dataclass(frozen=True)
class Ranking:
    """The lists of one pass, and what they are worth.

    Attributes:
        users: codes of the ranked users, ascending; int64 [users].
        items: their lists, best first, ``NO_ITEM`` where a list has ended; int64 [users, k].
        scores: the scores of these items; floating point [users, k].
        scored_users: codes of the users with at least one target, ascending; int64 [scored].
        n_targets: their numbers of targets; int64 [scored].
        user_metrics: ``recall@20`` and so on of these users; float64 [scored] each.
        n_items: number of candidate items.
        ks: the cut-offs, ascending.
    """

    users: Tensor
    items: Tensor
    scores: Tensor
    scored_users: Tensor
    n_targets: Tensor
    user_metrics: dict[str, Tensor]
    n_items: int
    ks: tuple[int, ...]

    def means(self) -> dict[str, float]:
        """Each user metric, averaged over the users that have a target."""
        stacked = torch.stack(list(self.user_metrics.values()))
        return dict(zip(self.user_metrics, stacked.mean(1).tolist(), strict=True))

    def metrics(self) -> dict[str, float]:
        """The means, and coverage and Gini over the lists of all ranked users."""
        return self.means() | list_metrics(self.items, self.n_items, self.ks)


class RankingEvaluator:
    """Full ranking of the unmasked items for every user, scored against held-out items.

    Prepare once, call as often as needed::

        evaluator = RankingEvaluator(
            mask=train_pairs, targets=validation_pairs, n_users=938, n_items=1008, ks=[20]
        )
        recall = evaluator(score).means()["recall@20"]
    """

    def __init__(
        self,
        *,
        mask: Pairs,
        targets: Pairs,
        n_users: int,
        n_items: int,
        ks: Sequence[int],
        list_length: int | None = None,
        device: torch.device | str = "cpu",
        all_users: bool = False,
    ) -> None:
        """Lays out masks and targets on the device.

        Args:
            mask: pairs that must not be recommended, in any order.
            targets: held-out pairs to be found, in any order.
            n_users: number of users; codes are 0..n_users - 1.
            n_items: number of items; codes are 0..n_items - 1.
            ks: cut-offs of the metrics.
            list_length: items to keep of each ranking, where more than the largest cut-off.
            device: where scores will be.
            all_users: also ranks the users without a target, which coverage, Gini and
                recommendations need; their rankings enter no mean.

        Raises:
            RankingError: there is no target or no cut-off, a code is out of range, or a target is
                masked.
        """
        self.ks = tuple(sorted(set(ks)))
        if not self.ks or self.ks[0] < 1:
            raise RankingError(f"cut-offs must be whole numbers from 1 on, got {list(ks)}")
        self.n_items = n_items
        self.device = torch.device(device)
        self._length = max(self.ks[-1], list_length or 0)

        target_keys = torch.unique(_keys(targets, n_users, n_items, "targets"))
        mask_keys = torch.unique(_keys(mask, n_users, n_items, "mask"))
        if not len(target_keys):
            raise RankingError(
                "no user has a held-out positive, so there is nothing to score; "
                "are validation and test shares too small for these users?"
            )
        masked_targets = target_keys[torch.isin(target_keys, mask_keys, assume_unique=True)]
        if len(masked_targets):
            user, item = divmod(int(masked_targets[0]), n_items)
            raise RankingError(
                f"{len(masked_targets)} held-out pairs are masked and can never be found, "
                f"the first being user {user}, item {item}; do the sets of the split overlap?"
            )
        scored, n_targets = torch.unique_consecutive(target_keys // n_items, return_counts=True)
        users = torch.arange(n_users) if all_users else scored

        # Masked cells as offsets into the score block of their user.
        mask_users = mask_keys // n_items
        if not all_users:
            mask_keys = mask_keys[torch.isin(mask_users, scored)]
            mask_users = mask_keys // n_items
        cells = torch.searchsorted(users, mask_users) * n_items + mask_keys % n_items
        cells_a_block = _BLOCK_CELLS.get(self.device.type, _BLOCK_CELLS["cuda"])
        self._block_rows = min(max(1, cells_a_block // n_items), len(users))
        starts = torch.arange(0, len(users) + self._block_rows, self._block_rows)
        bounds = torch.searchsorted(cells, starts * n_items).tolist()
        self._blocks = [
            (block.to(self.device), (cells[first:last] - row * n_items).to(self.device))
            for block, row, first, last in zip(
                users.split(self._block_rows), starts.tolist(), bounds, bounds[1:], strict=False
            )
        ]
        self._users = users.to(self.device)
        self._scored = scored.to(self.device)
        self._scored_rows = torch.searchsorted(users, scored).to(self.device)
        self._n_targets = n_targets.to(self.device)
        self._target_keys = target_keys.to(self.device)
        self._buffer: Tensor | None = None

    @torch.no_grad()
    def __call__(self, score: Scorer) -> Ranking:
        """Ranks all items for all users and scores the lists.

        Args:
            score: called with user codes on the device, ascending; what it returns is not changed.

        Raises:
            RankingError: scores of another shape than [users, items], or not numbers.
        """
        values, items = [], []
        for users, masked_cells in self._blocks:
            scores = self._copy(score(users), len(users))
            scores.view(-1).index_fill_(0, masked_cells, -torch.inf)
            block_values, block_items = top_k(scores, self._length)
            values.append(block_values)
            items.append(block_items)
        lists = torch.cat(items)

        scored_lists = lists[self._scored_rows, : self.ks[-1]]
        keys = self._scored[:, None] * self.n_items + scored_lists
        places = torch.searchsorted(self._target_keys, keys)
        found = self._target_keys[places.clamp(max=len(self._target_keys) - 1)] == keys
        hits = found & (scored_lists != NO_ITEM)
        return Ranking(
            users=self._users,
            items=lists,
            scores=torch.cat(values),
            scored_users=self._scored,
            n_targets=self._n_targets,
            user_metrics=user_metrics(hits, self._n_targets, self.ks),
            n_items=self.n_items,
            ks=self.ks,
        )

    def _copy(self, scores: Tensor, rows: int) -> Tensor:
        """The scores in a buffer that may be masked: a model may well return what it keeps."""
        if scores.shape != (rows, self.n_items):
            raise RankingError(
                f"scores must be [{rows}, {self.n_items}] (users, items), got {list(scores.shape)}"
            )
        if self._buffer is None or self._buffer.dtype != scores.dtype:
            self._buffer = torch.empty(
                (self._block_rows, self.n_items), dtype=scores.dtype, device=self.device
            )
        return self._buffer[:rows].copy_(scores)


def _keys(pairs: Pairs, n_users: int, n_items: int, name: str) -> Tensor:
    """One int64 a pair, ascending by user, then item, once sorted."""
    users, items = (codes.to(device="cpu", dtype=torch.int64) for codes in pairs)
    if len(users) != len(items):
        raise RankingError(f"{name}: {len(users)} users beside {len(items)} items")
    for codes, n, kind in ((users, n_users, "user"), (items, n_items, "item")):
        if len(codes) and (int(codes.min()) < 0 or int(codes.max()) >= n):
            raise RankingError(
                f"{name}: {kind} codes must be 0..{n - 1}, "
                f"got {int(codes.min())}..{int(codes.max())}"
            )
    return users * n_items + items
