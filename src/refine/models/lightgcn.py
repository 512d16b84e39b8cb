"""LightGCN: Simplifying and Powering Graph Convolution Network (He et al., SIGIR 2020).

The propagation is the paper's. Loss, initialisation and number of layers are those of PyTorch
Geometric's LightGCN and of ReFINe, which builds on it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from refine import shards
from refine.data import TrainingData
from refine.graph import BipartiteGraph
from refine.models.adam import Adam
from refine.models.base import (
    GradientRecommender,
    Hyperparameters,
    Scorer,
    bounded,
    inner_product_scorer,
)
from refine.models.bpr import bpr_loss
from refine.sampling import NegativeSampler

_BATCHES_AT_ONCE = 64  # are put together, as one small batch alone costs as much
_PAIRS_AT_ONCE = 2**20  # in all of them, so that memory does not grow with the batches


@dataclass(frozen=True)
class LightGCNHyperparameters(Hyperparameters):
    """Hyperparameters of LightGCN.

    Attributes:
        dimension: of the embeddings.
        layers: K, the number of convolutions.
    """

    dimension: int = bounded(64, minimum=1)
    layers: int = bounded(4, minimum=0)


class LightGCN(GradientRecommender):
    """Embeddings of users and items, smoothed over the graph of positives."""

    hyperparameter_type = LightGCNHyperparameters
    can_be_shared = True
    hyperparameters: LightGCNHyperparameters

    def __init__(
        self,
        data: TrainingData,
        hyperparameters: LightGCNHyperparameters,
        generator: torch.Generator,
    ) -> None:
        super().__init__(data, hyperparameters, generator)
        self.hyperparameters = hyperparameters
        self.positives = data.positives
        self.graph = BipartiteGraph(data.positives, data.n_users, data.n_items)
        initial = torch.empty(self.graph.n_nodes, hyperparameters.dimension, device=data.device)
        nn.init.xavier_uniform_(initial, generator=generator)
        # All processes draw the whole matrix, so that it does not depend on their number.
        self.embedding = nn.Parameter(shards.own_columns(initial))
        shards.save_whole(self)

    def propagated(self) -> Tensor:
        """E = 1 / (K + 1) sum over k of A^k E0: users' rows first; [nodes, own columns]."""
        return self.graph.propagate(self.embedding, self.hyperparameters.layers)

    def batches(self, negatives: NegativeSampler, generator: torch.Generator) -> Iterator[Tensor]:
        """All positives in random order, one negative each.

        Yields:
            The nodes of user, positive and negative: int64 [3, b].
        """
        users, positives = self.positives
        drawn = negatives.draw(users, generator).int()
        order = torch.randperm(len(users), generator=generator, device=users.device)
        first_item = self.graph.n_users
        triples = torch.stack([users, first_item + positives, first_item + drawn])
        size = self.hyperparameters.batch_size
        at_once = max(1, min(_BATCHES_AT_ONCE, _PAIRS_AT_ONCE // size))
        for chunk in torch.split(order, at_once * size):
            yield from torch.split(triples.index_select(1, chunk).long(), size, dim=1)

    def loss(self, batch: Tensor) -> Tensor:
        """Mean of -ln sigmoid(y_ui - y_uj), plus lambda / b times ||E0||^2 of the batch's nodes."""
        powers = self.hyperparameters.layers + 1
        return bpr_loss(
            self.embedding,
            lambda x: self.graph.evaluate(x, [1.0] * powers),
            batch,
            self.hyperparameters.regularisation,
            scale=1 / powers,
        )

    def optimiser(self) -> Adam:
        """Adam."""
        return Adam(self.parameters(), self.hyperparameters.learning_rate)

    @torch.no_grad()
    def scorer(self) -> Scorer:
        """y_ui: inner products of the propagated embeddings."""
        return inner_product_scorer(shards.all_columns(self.propagated()), self.graph.n_users)

    @torch.no_grad()
    def item_embeddings(self) -> Tensor:
        """The items' rows of E."""
        return shards.all_columns(self.propagated()[self.graph.n_users :])
