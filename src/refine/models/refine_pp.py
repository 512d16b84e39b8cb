"""ReFINe++: Modeling of Negative Feedback Refined via LLM (Jeong and Cho, IEEE Access 2025).

LightGCN on the graph of likes and dislikes, trained by a sampled softmax that draws a user's
dislikes more often than other items. Two autoencoders compress what each user dislikes, and who
dislikes each item, into codes that the embeddings are to agree with. Graph, loss, sampling and
initialisation are those of the released code.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refine.data import Pairs, TrainingData
from refine.graph import BipartiteGraph, row_starts
from refine.models.autoencoder import Autoencoder, DistinctRows, distinct_rows
from refine.models.base import (
    GradientRecommender,
    Hyperparameters,
    Scorer,
    bounded,
    inner_product_scorer,
)
from refine.models.signed import SignedPairs, signed_pairs
from refine.sampling import NegativeSampler

_ITEMS_A_NEGATIVE = 10


@dataclass(frozen=True)
class ReFINePPHyperparameters(Hyperparameters):
    """Hyperparameters of ReFINe++.

    Attributes:
        regularisation: lambda_1, weight of the squared norm of the embeddings.
        dimension: of the embeddings, and of the codes.
        layers: K, the number of convolutions.
        confirmed_weight: gamma, how much more often a confirmed negative of the user is drawn than
            an item that nothing is known of.
        shared_negatives: as released, all positives of a batch have the negatives of its second
            one; False draws some for each.
        hidden: units of each hidden layer of the autoencoders.
        autoencoder_regularisation: lambda_2, weight of the squared norm of the autoencoders.
    """

    regularisation: float = bounded(1e-7, minimum=0)
    dimension: int = bounded(64, minimum=1)
    layers: int = bounded(4, minimum=0)
    confirmed_weight: float = bounded(1.5, exclusiveMinimum=0)
    shared_negatives: bool = True
    hidden: int = bounded(600, minimum=1)
    autoencoder_regularisation: float = bounded(1e-5, minimum=0)


class Batch(NamedTuple):
    """Likes with their negatives, and dislikes.

    Attributes:
        users: of the likes, int64 [p].
        items: of the likes, int64 [p].
        negatives: int64 [p, n]; [1, n] if the likes share them.
        by_user: the dislikes, as a 0/1 matrix of users x items.
        by_item: its transpose.
    """

    users: Tensor
    items: Tensor
    negatives: Tensor
    by_user: DistinctRows
    by_item: DistinctRows


class ReFINePP(GradientRecommender):
    """Embeddings smoothed over the graph of likes and dislikes, and autoencoders of dislikes."""

    hyperparameter_type = ReFINePPHyperparameters
    hyperparameters: ReFINePPHyperparameters

    def __init__(
        self,
        data: TrainingData,
        hyperparameters: ReFINePPHyperparameters,
        generator: torch.Generator,
    ) -> None:
        super().__init__(data, hyperparameters, generator)
        self.hyperparameters = hyperparameters
        n_users, n_items = data.n_users, data.n_items
        self.pairs = signed_pairs(data)
        self.sampler = SetSampler(self.pairs, n_users, n_items, hyperparameters.confirmed_weight)
        # As released, a dislike connects as a like does.
        self.graph = BipartiteGraph(Pairs(self.pairs.users, self.pairs.items), n_users, n_items)
        embedding = torch.empty(self.graph.n_nodes, hyperparameters.dimension, device=data.device)
        self.embedding = nn.Parameter(nn.init.xavier_uniform_(embedding, generator=generator))
        widths = hyperparameters.hidden, hyperparameters.dimension
        self.of_users = Autoencoder(n_items, *widths, generator)
        self.of_items = Autoencoder(n_users, *widths, generator)

    def propagated(self) -> Tensor:
        """E = 1 / (K + 1) sum over k of A^k E0: users' rows first; [nodes, d]."""
        return self.graph.propagate(self.embedding, self.hyperparameters.layers)

    def batches(self, negatives: NegativeSampler, generator: torch.Generator) -> Iterator[Batch]:
        """All likes and dislikes together in random order."""
        n, device = len(self.pairs.users), self.pairs.users.device
        n_batches = math.ceil(n / self.hyperparameters.batch_size)
        order = torch.randperm(n, generator=generator, device=device)
        users, items = self.pairs.users[order].long(), self.pairs.items[order].long()
        liked = self.pairs.signs[order] > 0
        batches = torch.arange(n, device=device) // self.hyperparameters.batch_size

        n_likes = torch.bincount(batches[liked], minlength=n_batches)
        sizes = n_likes.tolist()
        if self.hyperparameters.shared_negatives:
            # Of the second like of a batch, or of the only one.
            drawing = (n_likes.cumsum(0) - (n_likes - 1).clamp(min=1))[n_likes > 0]
            sets = self.sampler.draw(users[liked][drawing], [min(x, 1) for x in sizes], generator)
        else:
            sets = self.sampler.draw(users[liked], sizes, generator)

        shape = self.graph.n_users, self.graph.n_items
        where, who, what = (codes[~liked] for codes in (batches, users, items))
        yield from map(
            Batch,
            torch.split(users[liked], sizes),
            torch.split(items[liked], sizes),
            sets,
            distinct_rows(where, who, what, n_batches, shape),
            distinct_rows(where, what, who, n_batches, shape[::-1]),
        )

    def loss(self, batch: Batch) -> Tensor:
        """The sum, unweighted, of the following; the squared norms are left to the optimiser.

        - Sampled softmax: the mean over the likes (u, i) of ln(1 + sum over the negatives j of
          exp(y_uj - y_ui)).
        - Reconstruction: the mean binary cross-entropy between all users' dislikes within the
          batch, none for most of them, and what the autoencoder makes of them; likewise all items'.
        - Alignment: the mean square of E - H, of the users and of the items, where H are the
          autoencoders' codes.
        """
        users, items = torch.split(self.propagated(), [self.graph.n_users, self.graph.n_items])
        total = self._sampled_softmax(users, items, batch)
        for embeddings, autoencoder, x in (
            (users, self.of_users, batch.by_user),
            (items, self.of_items, batch.by_item),
        ):
            codes = autoencoder.codes(x)
            alignment = F.mse_loss(embeddings, F.embedding(x.of_row, codes))
            total = total + autoencoder.reconstruction_loss(codes, x) + alignment
        return total

    def _sampled_softmax(self, users: Tensor, items: Tensor, batch: Batch) -> Tensor:
        user_rows, item_rows = F.embedding(batch.users, users), F.embedding(batch.items, items)
        if self.hyperparameters.shared_negatives:
            scores = user_rows @ F.embedding(batch.negatives.flatten(), items).T
        else:
            scores = (user_rows @ items.T).gather(1, batch.negatives)
        margins = scores - torch.linalg.vecdot(user_rows, item_rows).unsqueeze(1)
        # The 1 is exp(0). A batch without likes adds nothing.
        return F.pad(margins, (1, 0)).logsumexp(1).sum() / max(len(batch.users), 1)

    def optimiser(self) -> torch.optim.Optimizer:
        """Adam, on the loss + lambda_1 / 2 ||E0||^2 + lambda_2 / 2 ||autoencoders||^2."""
        parameters = self.hyperparameters
        autoencoders = [*self.of_users.parameters(), *self.of_items.parameters()]
        # The gradient of lambda / 2 w^2 is lambda w, which Adam's weight decay adds in passing.
        return torch.optim.Adam(
            [
                {"params": [self.embedding], "weight_decay": parameters.regularisation},
                {"params": autoencoders, "weight_decay": parameters.autoencoder_regularisation},
            ],
            lr=parameters.learning_rate,
            fused=True,
        )

    @torch.no_grad()
    def scorer(self) -> Scorer:
        """y_ui: inner products of the propagated embeddings."""
        return inner_product_scorer(self.propagated(), self.graph.n_users)

    @torch.no_grad()
    def item_embeddings(self) -> Tensor:
        """The items' rows of E."""
        return self.propagated()[self.graph.n_users :]


class SetSampler:
    """Draws sets of distinct items, a tenth of all, none of which the user likes."""

    def __init__(
        self, pairs: SignedPairs, n_users: int, n_items: int, confirmed_weight: float
    ) -> None:
        """Prepares the weights.

        Args:
            pairs: what users like and dislike.
            n_users: number of users.
            n_items: number of items.
            confirmed_weight: of what a user dislikes; what the user likes weighs 0, others 1.

        Raises:
            ValueError: a user likes too many items.
        """
        users, self._items = pairs.users.long(), pairs.items.long()
        self._shape = n_items, max(n_items // _ITEMS_A_NEGATIVE, 1)
        liked = pairs.signs > 0
        too_many = torch.bincount(users[liked], minlength=n_users) > n_items - self._shape[1]
        if bool(too_many.any()):
            raise ValueError(
                f"user {int(too_many.nonzero()[0])} (code in users.parquet) likes so many items "
                f"that no {self._shape[1]} others are left to be drawn: leave the user out"
            )
        exponents = torch.full(users.shape, 1 / confirmed_weight, dtype=torch.float64)
        self._exponents = exponents.to(users.device).masked_fill_(liked, torch.inf)
        self._starts = row_starts(users, n_users)

    def draw(self, users: Tensor, sizes: list[int], generator: torch.Generator) -> Iterator[Tensor]:
        """Draws a set for each entry of ``users``: item by item, by weight among those left.

        Args:
            users: user codes, int64 [n].
            sizes: for how many users to draw at a time; the sum is n.
            generator: on the device of the data; is used before the first of these times only.

        Yields:
            Item codes, int64 [users of this time, items of a set].
        """
        n_items, n_drawn = self._shape
        seeds = torch.randint(2**63 - 1, (len(sizes),), generator=generator, device=users.device)
        own = torch.Generator(users.device)
        first, counts = self._starts[users], self._starts[users + 1] - self._starts[users]
        times = torch.repeat_interleave(torch.tensor(sizes, device=users.device))
        totals = torch.zeros_like(seeds).index_add_(0, times, counts).tolist()
        for f, c, total, seed in zip(
            torch.split(first, sizes),
            torch.split(counts, sizes),
            totals,
            seeds.tolist(),
            strict=True,
        ):
            # The n largest of the keys u^(1 / weight), u uniform (Efraimidis and Spirakis, 2006).
            own.manual_seed(seed)
            keys = torch.rand(
                len(f), n_items, dtype=torch.float64, generator=own, device=users.device
            )
            rows = torch.repeat_interleave(c, output_size=total)
            known = torch.arange(total, device=users.device) + (f - c.cumsum(0) + c)[rows]
            cells = rows, self._items[known]
            keys[cells] = keys[cells].pow_(self._exponents[known])
            yield keys.topk(n_drawn, dim=1, sorted=False).indices
