"""LSGRec: Unified Modeling for Positive and Negative Preferences (Liu et al., arXiv 2403.08246).

What a user likes spreads over the graph of likes, as in LightGCN. What a user dislikes is what one
dislike leads to, spread over the graph of likes in turn. Likes alone rank the items; dislikes help
to train them. Loss, initialisation and optimiser are those of the released code.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refine.artifacts import FALSELY_IDENTIFIED, LABELS
from refine.data import TrainingData
from refine.graph import BipartiteGraph
from refine.models.base import Scorer, bounded, inner_product_scorer
from refine.models.signed import (
    SignedBatch,
    SignedHyperparameters,
    SignedRecommender,
    sign_aware_loss,
    signed_scores,
    user_and_item_table,
)

_WEIGHT_DECAY = 0.01
_DROPS_AFTER, _DROP = (20, 200), 0.2  # epochs, and what the learning rate is multiplied by
_OFFSET = 3.5  # between the stars of a dislike and of a like
_FALSELY_IDENTIFIED_STARS = 4.5  # as in the labels that ReFINe released


@dataclass(frozen=True)
class LSGRecHyperparameters(SignedHyperparameters):
    """Hyperparameters of LSGRec; the defaults are the release's for MovieLens 1M.

    Attributes:
        dimension: of the embeddings.
        layers: L, the number of convolutions.
        broadcast_ratings: as released, a predicted rating is compared with every rating of the
            batch; False compares it with that of its own pair alone.
    """

    batch_size: int = bounded(2048, minimum=1)
    learning_rate: float = bounded(5e-4, exclusiveMinimum=0)
    regularisation: float = bounded(5e-5, minimum=0)
    dimension: int = bounded(64, minimum=1)
    layers: int = bounded(2, minimum=1)
    broadcast_ratings: bool = True


class LSGRec(SignedRecommender):
    """Embeddings of what users like and of what they dislike."""

    hyperparameter_type = LSGRecHyperparameters
    hyperparameters: LSGRecHyperparameters

    def __init__(
        self,
        data: TrainingData,
        hyperparameters: LSGRecHyperparameters,
        generator: torch.Generator,
    ) -> None:
        super().__init__(data, hyperparameters, generator)
        self.likes = BipartiteGraph(data.positives, data.n_users, data.n_items)
        self.dislikes = BipartiteGraph(data.confirmed, data.n_users, data.n_items)

        # w = r - offset of each rated pair; its sign is that of the pair's label.
        stars = data.ratings.to(torch.get_default_dtype())
        stars[data.labels == LABELS.index(FALSELY_IDENTIFIED)] = _FALSELY_IDENTIFIED_STARS
        self.ratings = stars - _OFFSET
        self.rated = data.rated.users.long() * data.n_items + data.rated.items

        dimension = hyperparameters.dimension
        self.liking = user_and_item_table(data.n_users, data.n_items, dimension, generator)
        self.disliking = user_and_item_table(data.n_users, data.n_items, dimension, generator)
        # A linear layer, and initialised as PyTorch does it.
        width = 2 * dimension
        self.rating_weights = nn.Parameter(torch.empty(width, device=data.device))
        self.rating_bias = nn.Parameter(torch.empty(1, device=data.device))
        for parameter in (self.rating_weights, self.rating_bias):
            nn.init.uniform_(parameter, -(width**-0.5), width**-0.5, generator=generator)

    def liked(self) -> Tensor:
        """Z_p = (P + A+ P + ... + A+^L P) / (L + 1), users' rows first; [nodes, d]."""
        return self.likes.propagate(self.liking, self.hyperparameters.layers)

    def disliked(self) -> Tensor:
        """Z_q = (Q + q + A+ q + ... + A+^(L-1) q) / (L + 1), where q = A- P; [nodes, d]."""
        layers = self.hyperparameters.layers
        share = 1 / (layers + 1)
        first = self.dislikes.polynomial(self.liking, [0, 1])
        return self.likes.polynomial(first, [share] * layers).add(self.disliking, alpha=share)

    def loss(self, batch: SignedBatch) -> Tensor:
        """The sum, unweighted, of the following for a batch of b pairs.

        - Ranking by Z_p: 1 / b times the sum of -ln sigmoid(c y_ui - y_uj) over the pairs and their
          unrated items j, where c is 1 for a like and 2 for a dislike.
        - Ranking by Z_q, which puts rated items last: of -ln sigmoid(y_uj - c y_ui), where c is 2
          for a like and 1 for a dislike.
        - lambda / 2 times the squared norms of all these rows of Z_p and Z_q.
        - Rating: the squared error of a linear function of a pair's two rows of Z_p.
        - Orthogonality: the mean square of z_p . z_q of the users, and that of the items.
        """
        liking, disliking = self.liked(), self.disliked()
        n_users = self.likes.n_users
        likes = signed_scores(liking, n_users, batch)
        dislikes = signed_scores(disliking, n_users, batch)
        factors = 1.5 - batch.signs / 2
        ranking = sign_aware_loss(likes.rated, likes.negatives, factors) + sign_aware_loss(
            -dislikes.rated, -dislikes.negatives, 3 - factors
        )
        norms = likes.squared_norm + dislikes.squared_norm
        overlaps: Tensor = torch.linalg.vecdot(liking, disliking).square()
        return (
            ranking / len(batch.users)
            + self.hyperparameters.regularisation / 2 * norms
            + self._rating_loss(liking, batch)
            + overlaps[batch.users].mean()
            + overlaps[n_users + batch.items].mean()
        )

    def _rating_loss(self, liking: Tensor, batch: SignedBatch) -> Tensor:
        pairs = batch.users * self.likes.n_items + batch.items
        ratings = self.ratings[torch.searchsorted(self.rated, pairs)]
        # A linear function of two rows is the sum of one of each.
        of_users, of_items = (liking @ self.rating_weights.view(2, -1).T).unbind(1)
        predicted = of_users[batch.users] + of_items[self.likes.n_users + batch.items]
        predicted = predicted + self.rating_bias
        if self.hyperparameters.broadcast_ratings:
            # The mean of (w_a - prediction_c)^2 over all b^2 pairs (a, c): what can be learnt is
            # the mean rating of a batch.
            errors = predicted - ratings.mean()
            return errors.square().mean() + ratings.var(correction=0)
        return F.mse_loss(predicted, ratings)

    def learning_rate(self, epoch: int) -> float:
        """A fifth of it after 20 epochs, and again after 200."""
        drops = sum(epoch > last for last in _DROPS_AFTER)
        return self.hyperparameters.learning_rate * _DROP**drops

    def optimiser(self) -> torch.optim.Optimizer:
        """AdamW, with PyTorch's weight decay."""
        return torch.optim.AdamW(
            self.parameters(), self.learning_rate(1), weight_decay=_WEIGHT_DECAY, fused=True
        )

    @torch.no_grad()
    def scorer(self) -> Scorer:
        """y_ui: inner products in Z_p."""
        return inner_product_scorer(self.liked(), self.likes.n_users)

    @torch.no_grad()
    def item_embeddings(self) -> Tensor:
        """The items' rows of Z_p."""
        return self.liked()[self.likes.n_users :]
