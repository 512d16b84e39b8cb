"""What the models of signed graphs share: rated pairs, unrated items, a sign-aware ranking loss.

The signed graph is E, the union of what users like (E+) and what they dislike (E-). SiReN (Seo et
al., TNNLS 2022) trains on every pair of E against items that the user has not rated, popular ones
above all; PANE-GNN and LSGRec do as well.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from refine.data import TrainingData
from refine.graph import row_starts, weighted_sums
from refine.models.base import GradientRecommender, Hyperparameters, bounded
from refine.sampling import NegativeSampler

_DEGREE_POWER = 0.75  # unrated items are drawn by their degree to this power
_DRAWS_AT_ONCE = 2**20  # bounds the memory that unrated items are drawn in
_WEIGHT_BITS = 30  # of the largest weight, where the sums of weights leave room for them


class SignedPairs(NamedTuple):
    """E: what users like and what they dislike, ascending by user, then item.

    Attributes:
        users: int32 [n].
        items: int32 [n].
        signs: 1 if liked, -1 if disliked; int8 [n].
    """

    users: Tensor
    items: Tensor
    signs: Tensor


def signed_pairs(data: TrainingData) -> SignedPairs:
    """The positives and the confirmed negatives together; what nobody decided on is in neither."""
    users, items = (torch.cat(codes) for codes in zip(data.positives, data.confirmed, strict=True))
    signs = torch.ones(len(users), dtype=torch.int8, device=data.device)
    signs[len(data.positives.users) :] = -1
    order = torch.argsort(users.long() * data.n_items + items)
    return SignedPairs(users[order], items[order], signs[order])


class UnratedSampler:
    """Draws items that a user has not rated, p(item) proportional to degree(item)^power.

    Nothing is drawn in vain. Put a user's unrated items one after another, each as long as its
    weight: a uniform number is a point on this line. The rated items to the left of it are found by
    one binary search; adding their weights gives the point on the line of all items, where a second
    search finds the item. Weights are integers, so that sums of them are exact on every device.
    Redrawing what has been rated would be faster on a CPU, but without end for a user who has rated
    nearly everything, and each round would wait for a GPU.
    """

    def __init__(self, data: TrainingData, power: float) -> None:
        """Prepares the lines of all users.

        Args:
            data: whose ratings, of any label, count.
            power: 0 draws uniformly.

        Raises:
            ValueError: a user has no item that may be drawn.
        """
        users, items = (codes.long() for codes in data.rated)
        degrees = torch.bincount(items, minlength=data.n_items)
        weights = _integer_weights(degrees.double().pow(power), data.n_users)
        ends = weights.cumsum(0)
        rated = weights[items]
        rated_before = torch.cat([rated.new_zeros(1), rated.cumsum(0)])  # of all users
        rated_so_far = rated_before[row_starts(users, data.n_users)]

        self._ends = ends
        self._totals = ends[-1] - rated_so_far.diff()
        # Per rated pair, the place of its item on the line of the unrated; users' lines are joined.
        starts = (ends - weights)[items] - (rated_before[:-1] - rated_so_far[users])
        self._line_starts = ends[-1] * torch.arange(data.n_users, device=data.device)
        self._rated = self._line_starts[users] + starts
        self._rated_before, self._rated_so_far = rated_before, rated_so_far
        empty = (self._totals == 0).nonzero()
        if len(empty):
            raise ValueError(
                f"user {int(empty[0])} (code in users.parquet) has rated every item that may be "
                "drawn, so that no unrated one is left: leave the user out"
            )

    def draw(self, users: Tensor, k: int, generator: torch.Generator) -> Tensor:
        """Draws k items for each entry of ``users``, with replacement.

        Args:
            users: user codes, int64 [n].
            k: items for each.
            generator: on the device of the data.

        Returns:
            Item codes, int64 [n, k].
        """
        uniform = torch.rand(
            len(users), k, dtype=torch.float64, generator=generator, device=users.device
        )
        total = self._totals[users].unsqueeze(1)
        # The product may round up to the total itself.
        points = (uniform * total).long().minimum(total - 1)
        on_the_left = torch.searchsorted(
            self._rated, points + self._line_starts[users].unsqueeze(1), right=True
        )
        points += self._rated_before[on_the_left] - self._rated_so_far[users].unsqueeze(1)
        return torch.searchsorted(self._ends, points, right=True)


def _integer_weights(weights: Tensor, n_users: int) -> Tensor:
    """Integers in the proportions of the weights, to 2**-29 of the largest.

    Coarser if need be: their sum times ``n_users`` has to be an int64.
    """
    largest = min(2.0**_WEIGHT_BITS, 2.0**61 / n_users / len(weights))
    factor = 2.0 ** math.floor(math.log2(largest / float(weights.max())))
    return (weights * factor).ceil().long()  # up: what may be drawn at all stays so


class SignedBatch(NamedTuple):
    """Rated pairs and unrated items.

    Attributes:
        users: codes, int64 [b].
        items: codes, not numbers of nodes; int64 [b].
        signs: 1 if liked, -1 if disliked; floating point [b].
        negatives: codes of items that the user has not rated; int64 [b, k].
        seed: for what is random in the loss.
    """

    users: Tensor
    items: Tensor
    signs: Tensor
    negatives: Tensor
    seed: int


def signed_batches(
    pairs: SignedPairs,
    sampler: UnratedSampler,
    k: int,
    batch_size: int,
    generator: torch.Generator,
) -> Iterator[SignedBatch]:
    """One epoch: all pairs in random order, each with k unrated items.

    Args:
        pairs: E.
        sampler: draws the unrated items.
        k: unrated items a pair.
        batch_size: pairs a batch; the last one may have fewer.
        generator: is used before the first batch only, however many are taken.
    """
    device, n = pairs.users.device, len(pairs.users)
    order = torch.randperm(n, generator=generator, device=device)
    n_batches = math.ceil(n / batch_size)
    own_seed, *seeds = torch.randint(
        2**63 - 1, (n_batches + 1,), generator=generator, device=device
    ).tolist()
    own = torch.Generator(device).manual_seed(own_seed)
    at_once = batch_size * max(1, _DRAWS_AT_ONCE // (batch_size * k))
    for first in range(0, n, at_once):
        chunk = order[first : first + at_once]
        users, items = pairs.users[chunk].long(), pairs.items[chunk].long()
        signs = pairs.signs[chunk].to(torch.get_default_dtype())
        negatives = sampler.draw(users, k, own)
        for start in range(0, len(chunk), batch_size):
            some = slice(start, start + batch_size)
            yield SignedBatch(
                users[some],
                items[some],
                signs[some],
                negatives[some],
                seeds[(first + start) // batch_size],
            )


@dataclass(frozen=True)
class SignedHyperparameters(Hyperparameters):
    """Hyperparameters of every ``SignedRecommender``.

    Attributes:
        negatives: how many unrated items are drawn for each rated one.
    """

    negatives: int = bounded(40, minimum=1)


class SignedRecommender(GradientRecommender):
    """A model that is trained as SiReN is: on every like and dislike, against unrated items."""

    hyperparameters: SignedHyperparameters

    def __init__(
        self, data: TrainingData, hyperparameters: SignedHyperparameters, generator: torch.Generator
    ) -> None:
        super().__init__(data, hyperparameters, generator)
        self.hyperparameters = hyperparameters
        self._pairs = signed_pairs(data)
        self._unrated = UnratedSampler(data, _DEGREE_POWER)

    def batches(
        self, negatives: NegativeSampler, generator: torch.Generator
    ) -> Iterator[SignedBatch]:
        """All likes and dislikes in random order, each with unrated items."""
        k, batch_size = self.hyperparameters.negatives, self.hyperparameters.batch_size
        return signed_batches(self._pairs, self._unrated, k, batch_size, generator)


def user_and_item_table(
    n_users: int, n_items: int, dimension: int, generator: torch.Generator
) -> nn.Parameter:
    """Embeddings of users and items, Xavier-normal as two tables would be; users' rows first."""
    table = torch.empty(n_users + n_items, dimension, device=generator.device)
    for rows in torch.split(table, [n_users, n_items]):
        nn.init.xavier_normal_(rows, generator=generator)
    return nn.Parameter(table)


class SignedScores(NamedTuple):
    """A batch as one matrix of embeddings sees it; differentiable.

    Attributes:
        rated: y_ui of the rated pairs, [b].
        negatives: y_uj of the unrated items, [b, k].
        squared_norm: of the rows of all users, items and negatives; each counts as often as it
            occurs. A scalar.
    """

    rated: Tensor
    negatives: Tensor
    squared_norm: Tensor


def signed_scores(embeddings: Tensor, n_users: int, batch: SignedBatch) -> SignedScores:
    """Inner products of users and items, and their norms.

    Args:
        embeddings: users' rows first, [nodes, d].
        n_users: number of users.
        batch: k unrated items a pair.
    """
    items = torch.cat([batch.items.unsqueeze(1), batch.negatives], dim=1)
    scores, squared_norm = _Scores.apply(  # type: ignore[no-untyped-call]
        embeddings, n_users, batch.users, items
    )
    return SignedScores(scores[:, 0], scores[:, 1:], squared_norm)


def sign_aware_loss(scores: Tensor, negative_scores: Tensor, factors: Tensor) -> Tensor:
    """Sum over b and k of -ln sigmoid(factor_b s_b - s_bk).

    Args:
        scores: s_b of the rated pairs, [b].
        negative_scores: s_bk of the unrated ones, [b, k].
        factors: how far a pair is to be above them, by its sign; [b].
    """
    return F.softplus(negative_scores - (factors * scores).unsqueeze(1)).sum()


class _Scores(Function):
    """Some inner products of users and items, and the squared norm of all rows that they took.

    With 40 unrated items a pair, a batch has several times as many rows as there are nodes. The
    gradient of a node is a weighted sum of rows; PyTorch's own way would be to lay out a gradient
    of each row first, which takes about ten times as long.
    """

    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, n_users: int, users: Tensor, items: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(embeddings, users, items)
        ctx.n_users = n_users
        of_users, of_items = embeddings[:n_users], embeddings[n_users:]
        user_rows = of_users.index_select(0, users)
        item_rows = of_items.index_select(0, items.flatten()).view(*items.shape, -1)
        scores = item_rows.mul_(user_rows.unsqueeze(1)).sum(2)
        norms = torch.linalg.vecdot(embeddings, embeddings)
        return scores, norms[users].sum() + norms[n_users:][items].sum()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: Tensor, norm_gradient: Tensor
    ) -> tuple[Tensor, None, None, None]:
        embeddings, users, items = ctx.saved_tensors
        of_users, of_items = embeddings[: ctx.n_users], embeddings[ctx.n_users :]
        b, k = items.shape
        weights, codes = gradient.flatten(), items.flatten()

        # What each pair gives its user's row: it has its items side by side.
        starts = torch.arange(0, b * k + 1, k, device=items.device)
        of_pairs = weighted_sums(starts, codes, weights, of_items)
        user_gradient = torch.zeros_like(of_users).index_add_(0, users, of_pairs)

        # What each item's row is given by the pairs' users: sorting puts them side by side.
        codes, order = codes.sort(stable=True)
        starts = row_starts(codes, len(of_items))
        user_rows = of_users.index_select(0, users)
        item_gradient = weighted_sums(starts, order // k, weights[order], user_rows)

        total = torch.cat([user_gradient, item_gradient])
        once = torch.ones_like(weights[:b])
        users_occur = torch.zeros_like(of_users[:, 0]).index_add_(0, users, once)
        occurs = torch.cat([users_occur, starts.diff().to(total.dtype)])
        total.addcmul_(embeddings, (2 * norm_gradient * occurs).unsqueeze(1))
        return total, None, None, None
