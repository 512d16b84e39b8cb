"""SIGformer: Sign-aware Graph Transformer for Recommendation (Chen et al., SIGIR 2024).

Written from the official code; where it differs from the paper, this says so. A training step of
three layers takes some 140 bytes per pair that walks reach: 0.7 GB with MovieLens 1M and 3 hops.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from refine.data import TrainingData
from refine.graph import row_starts
from refine.models.base import (
    GradientRecommender,
    Hyperparameters,
    Scorer,
    bounded,
    inner_product_scorer,
)
from refine.models.node_pairs import NodePairs, inner_products
from refine.models.signed import UnratedSampler, signed_pairs
from refine.models.spectral import low_eigenvectors
from refine.models.walks import SignedWalks, Walks
from refine.sampling import NegativeSampler

_SCORING_SEED = 0  # of the walks that scores depend on: a model's scores are always the same
_SCALE_DECAY = 0.01


@dataclass(frozen=True)
class SIGformerHyperparameters(Hyperparameters):
    """Hyperparameters of SIGformer; ``batch_size`` means nothing, as every step sees all pairs.

    The official code sets alpha, beta and H per data set, and none for films: these are the best of
    a short search on the validation part of MovieLens 100K.

    Attributes:
        dimension: d, of the embeddings.
        layers: L, of attention.
        hops: H, edges that a random walk goes over.
        eigenvectors: of the Laplacian.
        alpha: weight of the dislikes in the Laplacian; the paper's with the opposite sign.
        beta: weight of the dislikes in the ranking loss. Above 0 a disliked item shall rank above
            what the user has not rated, below 0 it shall rank below; 0 leaves the dislikes out.
        attention_limit: no pair's attention, before it is normalised, exceeds this (the code).
        steps: of an epoch.
    """

    learning_rate: float = bounded(1e-2, exclusiveMinimum=0)
    # At least 2 of both: a single entry is 0 once it is normalised, and would count for nothing.
    dimension: int = bounded(64, minimum=2)
    layers: int = bounded(3, minimum=0)
    hops: int = bounded(2, minimum=1, maximum=12)
    eigenvectors: int = bounded(64, minimum=2)
    alpha: float = bounded(0.4, exclusiveMinimum=-1, exclusiveMaximum=1)
    beta: float = 0.0
    attention_limit: float = bounded(5.0, exclusiveMinimum=0)
    steps: int = bounded(20, minimum=1)


class SIGformer(GradientRecommender):
    """A transformer whose nodes attend to those that random walks over likes and dislikes reach."""

    hyperparameter_type = SIGformerHyperparameters
    hyperparameters: SIGformerHyperparameters

    def __init__(
        self,
        data: TrainingData,
        hyperparameters: SIGformerHyperparameters,
        generator: torch.Generator,
    ) -> None:
        super().__init__(data, hyperparameters, generator)
        self.hyperparameters = hyperparameters
        self.n_users, n_items = data.n_users, data.n_items
        edges = signed_pairs(data)
        self.walks = SignedWalks(edges, self.n_users, n_items, hyperparameters.hops)
        eigenvectors = low_eigenvectors(
            edges, self.n_users, n_items, hyperparameters.alpha, hyperparameters.eigenvectors
        )
        eigenvectors = F.layer_norm(eigenvectors, eigenvectors.shape[1:])
        self.positions = eigenvectors.to(data.device, torch.get_default_dtype())

        weights = torch.where(edges.signs > 0, 1.0, hyperparameters.beta)
        counted = weights != 0
        self.users, self.items = edges.users[counted], edges.items[counted]
        self.weights = weights[counted]
        self.starts = row_starts(self.users, self.n_users + n_items)
        self.unrated = UnratedSampler(data, power=0)

        initial = torch.empty(self.n_users + n_items, hyperparameters.dimension, device=data.device)
        self.embedding = nn.Parameter(initial.normal_(std=0.1, generator=generator))
        self.layers = nn.ModuleList(
            _SignedAttention(self.walks.n_types, hyperparameters.attention_limit, data.device)
            for _ in range(hyperparameters.layers)
        )

    def encode(self, generator: torch.Generator) -> Tensor:
        """Z, the mean of E0 and what each layer makes of the one before it: [nodes, d].

        Args:
            generator: draws the walks, of each layer anew.
        """
        x = total = self.embedding
        for layer in self.layers:
            x = layer(x, self.positions, self.walks.draw(generator))
            total = total + x
        return total / (1 + len(self.layers))

    def batches(self, negatives: NegativeSampler, generator: torch.Generator) -> Iterator[int]:
        """The seeds of the steps of one epoch, each over all pairs; it draws its own negatives."""
        shape = (self.hyperparameters.steps,)
        seeds = torch.randint(2**63 - 1, shape, generator=generator, device=generator.device)
        yield from seeds.tolist()

    def loss(self, batch: int) -> Tensor:
        """Mean over the pairs of -ln sigmoid(w_ui (s_ui - s_uj)), plus the regularisation.

        Item j is drawn from those that u has not rated, and w_ui is 1 for a like and beta for a
        dislike. Regularised are the squared norms of the rows of E0, each as often as it occurs.
        """
        generator = torch.Generator(self.embedding.device).manual_seed(batch)
        drawn = self.unrated.draw(self.users.long(), 1, generator).int()
        nodes = self.n_users + torch.cat([self.items.unsqueeze(1), drawn], dim=1)
        pairs = NodePairs(self.users.repeat_interleave(2), nodes.flatten(), 2 * self.starts)
        z = self.encode(generator)
        scores, unrated_scores = inner_products(z, pairs).view(-1, 2).unbind(1)
        ranking = F.softplus(self.weights * (unrated_scores - scores)).mean()

        n = len(self.users)
        occurs = z.new_zeros(len(z))
        occurs.index_add_(0, torch.cat([self.users, pairs.targets]), z.new_ones(3 * n))
        squares = occurs @ self.embedding.square().sum(1)
        return ranking + self.hyperparameters.regularisation / (2 * n) * squares

    def optimiser(self) -> torch.optim.Optimizer:
        """Adam, with weight decay for the scales of the spectral encoding only."""
        scales = [layer.log_scale for layer in self.layers]
        others = [self.embedding, *(layer.path_scores for layer in self.layers)]
        groups: list[dict[str, Any]] = [
            {"params": others},
            {"params": scales, "weight_decay": _SCALE_DECAY},
        ]
        return torch.optim.Adam(groups, self.hyperparameters.learning_rate, fused=True)

    @torch.no_grad()
    def _final(self) -> Tensor:
        # Drawn on the CPU: then every device scores with the same walks.
        return self.encode(torch.Generator().manual_seed(_SCORING_SEED))

    def scorer(self) -> Scorer:
        """s_ui: inner products of Z, with walks that are always the same."""
        return inner_product_scorer(self._final(), self.n_users)

    def item_embeddings(self) -> Tensor:
        """The items' rows of Z."""
        return self._final()[self.n_users :]


class _SignedAttention(nn.Module):
    """One layer: the mean of two attentions, by content and position, and by path.

    Attributes:
        log_scale: lambda0; the spectral encoding is scaled by its exponential.
        path_scores: phi, the score of each type of path.
    """

    def __init__(self, n_types: int, limit: float, device: torch.device) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros((), device=device))
        self.path_scores = nn.Parameter(torch.zeros(n_types, device=device))
        self.log_limit = math.log(limit)

    def forward(self, x: Tensor, positions: Tensor, walks: Walks) -> Tensor:
        """Sum over the pairs (a, b) of (W1_ab + W2_ab) / 2 y_b: [nodes, d].

        With y = LayerNorm(x), both W are normalised per a and proportional to min(exp(.), limit),
        W1 of y_a . y_b / sqrt(d) + exp(lambda0) Psi_a . Psi_b, and W2 of phi of the pair's type.
        """
        out: Tensor = _Attention.apply(  # type: ignore[no-untyped-call]
            F.layer_norm(x, x.shape[1:]),
            self.log_scale.exp(),
            self.path_scores,
            positions,
            walks,
            self.log_limit,
        )
        return out


class _Attention(Function):
    """The attention with its gradient by hand, which keeps a few numbers per pair and no rows."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        scale: Tensor,
        path_scores: Tensor,
        positions: Tensor,
        walks: Walks,
        log_limit: float,
    ) -> Tensor:
        pairs, types = walks
        nearness = pairs.products(positions, positions)
        scores = pairs.products(y, y).mul_(y.shape[1] ** -0.5).addcmul_(nearness, scale)
        free = scores < log_limit
        weights = scores.clamp_(max=log_limit).exp_()
        weights.masked_fill_(types == len(path_scores), 0)  # the walk no longer counts
        by_content = _normalise(weights, pairs)
        path_weights = F.pad(path_scores.clamp(max=log_limit).exp(), (0, 1))
        by_path = _normalise(path_weights.index_select(0, types), pairs)
        ctx.log_limit = log_limit
        ctx.save_for_backward(y, path_scores, nearness, free, by_content, by_path, types, *pairs)
        return pairs.multiply((by_content + by_path).div_(2), y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # What is called of_x here and below is the gradient of the loss with respect to x.
        y, path_scores, nearness, free, by_content, by_path, types, *pairs = ctx.saved_tensors
        forth = NodePairs(*pairs)
        back, order = forth.reversed()
        gradient = gradient / 2  # as both attentions are halved
        of_y = back.multiply((by_content + by_path).index_select(0, order), gradient)

        of_shares = forth.products(gradient, y)
        of_scores = _normalised_gradient(of_shares, by_content, forth).mul_(free)
        of_scale = of_scores @ nearness
        of_scores *= y.shape[1] ** -0.5
        of_y += forth.multiply(of_scores, y)
        of_y += back.multiply(of_scores.index_select(0, order), y)

        of_paths = _normalised_gradient(of_shares, by_path, forth)
        of_types = path_scores.new_zeros(len(path_scores) + 1).index_add_(0, types, of_paths)[:-1]
        return of_y, of_scale, of_types * (path_scores < ctx.log_limit), None, None, None


def _normalise(weights: Tensor, pairs: NodePairs) -> Tensor:
    """Divides by the sum over the pairs of the same source, if it is not 0; in place."""
    sums = pairs.sums(weights)
    return weights.div_(pairs.spread(sums.masked_fill_(sums == 0, 1)))


def _normalised_gradient(of_shares: Tensor, shares: Tensor, pairs: NodePairs) -> Tensor:
    """The gradient of the logarithms of the weights, as of a softmax, from that of the shares."""
    means = pairs.sums(of_shares * shares)
    return (of_shares - pairs.spread(means)).mul_(shares)
