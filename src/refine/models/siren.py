"""SiReN: Sign-Aware Recommendation Using Graph Neural Networks (Seo et al., TNNLS 2022).

What users like is propagated over a graph, as in LightGCN; beside it stands a perceptron without a
graph, and attention mixes the two. Dislikes act through the loss alone. Loss and defaults are those
of the last release; its sums are not divided by the size of the batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from refine.data import TrainingData
from refine.graph import BipartiteGraph
from refine.models.adam import Adam
from refine.models.base import Scorer, bounded, inner_product_scorer
from refine.models.fusion import MLP, AttentionFusion
from refine.models.signed import (
    SignedBatch,
    SignedHyperparameters,
    SignedRecommender,
    sign_aware_loss,
    signed_scores,
)


@dataclass(frozen=True)
class SiReNHyperparameters(SignedHyperparameters):
    """Hyperparameters of SiReN; the defaults are the release's for MovieLens 1M.

    Attributes:
        dimension: of the embeddings.
        layers: L, the number of convolutions.
        dislike_factor: c of a disliked pair. 2 puts it above unrated items, if by less than a liked
            one; -1, as in the first release, below them.
    """

    learning_rate: float = bounded(5e-3, exclusiveMinimum=0)
    regularisation: float = bounded(0.05, minimum=0)
    dimension: int = bounded(64, minimum=1)
    layers: int = bounded(4, minimum=0)
    dislike_factor: float = 2.0


class SiReN(SignedRecommender):
    """Embeddings smoothed over the graph of likes, mixed with embeddings without a graph."""

    hyperparameter_type = SiReNHyperparameters
    hyperparameters: SiReNHyperparameters

    def __init__(
        self,
        data: TrainingData,
        hyperparameters: SiReNHyperparameters,
        generator: torch.Generator,
    ) -> None:
        super().__init__(data, hyperparameters, generator)
        self.graph = BipartiteGraph(data.positives, data.n_users, data.n_items)
        n_nodes, dimension = self.graph.n_nodes, hyperparameters.dimension
        self.embedding = nn.Parameter(torch.empty(n_nodes, dimension, device=data.device))
        nn.init.xavier_normal_(self.embedding, generator=generator)
        self.mlp = MLP(n_nodes, dimension, generator)
        self.fusion = AttentionFusion(dimension, generator)

    def fused(self, generator: torch.Generator | None) -> Tensor:
        """Z = alpha_p Z_p + alpha_n Z_n, users' rows first; [nodes, d].

        Args:
            generator: draws the dropout; None: not in training, there is none.
        """
        propagated = self.graph.propagate(self.embedding, self.hyperparameters.layers)
        fused: Tensor = self.fusion(propagated, self.mlp(generator), generator)
        return fused

    def loss(self, batch: SignedBatch) -> Tensor:
        """Sum of -ln sigmoid(c y_ui - y_uj), plus lambda times the squared norms of Z's rows.

        The factor c is 1 for a liked pair; a row counts as often as it occurs in the batch.
        """
        generator = torch.Generator(self.embedding.device).manual_seed(batch.seed)
        scores = signed_scores(self.fused(generator), self.graph.n_users, batch)
        factors = torch.where(batch.signs > 0, 1.0, self.hyperparameters.dislike_factor)
        ranking = sign_aware_loss(scores.rated, scores.negatives, factors)
        return ranking + self.hyperparameters.regularisation * scores.squared_norm

    def optimiser(self) -> Adam:
        """Adam."""
        return Adam(self.parameters(), self.hyperparameters.learning_rate)

    @torch.no_grad()
    def scorer(self) -> Scorer:
        """y_ui: inner products in Z."""
        return inner_product_scorer(self.fused(None), self.graph.n_users)

    @torch.no_grad()
    def item_embeddings(self) -> Tensor:
        """The items' rows of Z."""
        return self.fused(None)[self.graph.n_users :]
