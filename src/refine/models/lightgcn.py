"""LightGCN: Simplifying and Powering Graph Convolution Network (He et al., SIGIR 2020).

The propagation is the paper's. Loss, initialisation and number of layers are those of PyTorch
Geometric's LightGCN and of ReFINe, which builds on it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refine.data import TrainingData
from refine.graph import BipartiteGraph
from refine.models.base import GradientRecommender, Hyperparameters, Scorer, bounded
from refine.sampling import NegativeSampler


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
        self.embedding = nn.Parameter(
            torch.empty(self.graph.n_nodes, hyperparameters.dimension, device=data.device)
        )
        nn.init.xavier_uniform_(self.embedding, generator=generator)

    def propagated(self) -> Tensor:
        """E = 1 / (K + 1) sum over k of A^k E0: users' rows first; [nodes, d]."""
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
        for batch in torch.split(order, self.hyperparameters.batch_size):
            yield triples.index_select(1, batch).long()

    def loss(self, batch: Tensor) -> Tensor:
        """Mean of -ln sigmoid(y_ui - y_uj), plus lambda / b times ||E0||^2 of the batch's nodes."""
        nodes = batch.flatten()
        users, positives, negatives = (
            self.propagated().index_select(0, nodes).view(*batch.shape, -1)
        )
        margins = (users * (positives - negatives)).sum(1)
        # Each node counts once, however often it occurs.
        occurs = self.embedding.new_zeros(self.graph.n_nodes).index_fill_(0, nodes, 1.0)
        squared_norm = occurs @ self.embedding.square().sum(1)
        weight = self.hyperparameters.regularisation / batch.shape[1]
        return F.softplus(-margins).mean() + weight * squared_norm

    def optimiser(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(
            self.parameters(), lr=self.hyperparameters.learning_rate, fused=True
        )

    @torch.no_grad()
    def scorer(self) -> Scorer:
        """y_ui: inner products of the propagated embeddings."""
        embeddings, n_users = self.propagated(), self.graph.n_users
        users, items = embeddings[:n_users], embeddings[n_users:]
        return lambda block: users[block] @ items.T

    @torch.no_grad()
    def item_embeddings(self) -> Tensor:
        """The items' rows of E."""
        return self.propagated()[self.graph.n_users :]
