"""A reconstruction of SiGRec (Huang et al., Information Processing & Management 60(4), 2023).

Negative Can Be Positive: Signed Graph Neural Networks for Recommendation. We know only what the
abstract says: a positive and a negative encoder give users and items a positive and a negative
embedding each, and a Sign Cosine loss adapts to what kind of negative feedback there is, because
some disliked items rank high. The equations here are ours, so results are not the paper's:

- Encoders: LightGCN on the graph of likes and on that of dislikes, with separate tables. A node's
  embedding z is both halves, joined.
- Loss: the cosine contrastive loss (SimpleX, Mao et al., CIKM 2021) of likes against unrated items,
  and its hinge for dislikes, with a margin of its own: below ``unrated_margin`` it pushes dislikes
  beneath what is unrated, above it it lets them stay above.

The defaults come from 16 settings tried on MovieLens 100K, labelled by its ratings. Their Recall@20
in validation, each of one seed, at the best of at most 100 epochs:

- 4 layers, gamma = .9: .4041, the default; with half the learning rate .4048, but later.
- 4 layers, gamma = .6: .4025; m = .2 .3970.
- 2 layers, gamma = .9: .3993; rho = 1 .3992; 128 dimensions .4009; omega = 3 .3789, and with m = .2
  .3729. The other gamma: 0 .2763, .6 .3963, 1 (dislikes have no part in the loss) .4008.
- 2 layers, gamma = .6: m = .2 .3971, m = .6 .3558; omega = 30 .3088; 1 layer .3961.

Two more seeds of the default reached .4069 and .3995, so most of these are equally good: what the
search shows is that dislikes are not to be pushed beneath what is unrated, and omega and m.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
from refine.models.signed import (
    SignedBatch,
    SignedPairs,
    UnratedSampler,
    signed_batches,
    signed_scores,
)
from refine.sampling import NegativeSampler


@dataclass(frozen=True)
class SiGRecHyperparameters(Hyperparameters):
    """Hyperparameters of the reconstructed SiGRec.

    Attributes:
        batch_size: likes a step; dislikes are spread evenly over the steps.
        dimension: of the joined embeddings, an even number.
        layers: L, the number of convolutions of either encoder.
        negatives: K, how many unrated items are drawn for each like.
        disliked_weight: rho, of the dislikes in the loss.
        disliked_margin: gamma, the cosine that dislikes may have without a loss.
        unrated_weight: omega, of the unrated items in the loss.
        unrated_margin: m, the cosine that unrated items may have without a loss.
    """

    dimension: int = bounded(64, minimum=2)
    layers: int = bounded(4, minimum=0)
    negatives: int = bounded(40, minimum=1)
    disliked_weight: float = bounded(0.5, minimum=0)
    disliked_margin: float = bounded(0.9, minimum=-1, maximum=1)
    unrated_weight: float = bounded(10.0, minimum=0)
    unrated_margin: float = bounded(0.4, minimum=-1, maximum=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dimension % 2:
            raise ValueError(f"dimension must be even, not {self.dimension}")


class SiGRecBatch(NamedTuple):
    """Likes, each with unrated items of its user, and dislikes.

    Attributes:
        likes: b of them.
        dislikes: nodes of user and item, int64 [2, c].
    """

    likes: SignedBatch
    dislikes: Tensor


class SiGRec(GradientRecommender):
    """SiGRec (reconstruction): users and items by the directions that their feedback gives them."""

    hyperparameter_type = SiGRecHyperparameters
    hyperparameters: SiGRecHyperparameters

    def __init__(
        self,
        data: TrainingData,
        hyperparameters: SiGRecHyperparameters,
        generator: torch.Generator,
    ) -> None:
        super().__init__(data, hyperparameters, generator)
        self.hyperparameters = hyperparameters
        signs = torch.ones_like(data.positives.users, dtype=torch.int8)
        self.liked_pairs = SignedPairs(*data.positives, signs)
        self.disliked_pairs = torch.stack(
            [data.confirmed.users, data.n_users + data.confirmed.items]
        )
        self.sampler = UnratedSampler(data, power=0)
        self.likes = BipartiteGraph(data.positives, data.n_users, data.n_items)
        self.dislikes = BipartiteGraph(data.confirmed, data.n_users, data.n_items)
        shape = (self.likes.n_nodes, hyperparameters.dimension // 2)
        self.liking = nn.Parameter(torch.empty(shape, device=data.device))
        self.disliking = nn.Parameter(torch.empty(shape, device=data.device))
        for table in (self.liking, self.disliking):
            nn.init.xavier_uniform_(table, generator=generator)

    def directions(self) -> Tensor:
        """Z / ||Z|| row by row, where Z = [Z+, Z-]; users' rows first, [nodes, d]."""
        layers = self.hyperparameters.layers
        halves = (
            self.likes.propagate(self.liking, layers),
            self.dislikes.propagate(self.disliking, layers),
        )
        return F.normalize(torch.cat(halves, dim=1))

    def batches(
        self, negatives: NegativeSampler, generator: torch.Generator
    ) -> Iterator[SiGRecBatch]:
        """All likes in random order, K unrated items each, and as evenly all dislikes."""
        parameters = self.hyperparameters
        users, items = self.disliked_pairs
        order = torch.randperm(len(users), generator=generator, device=users.device)
        dislikes = torch.stack([users[order], items[order]]).long()
        steps = math.ceil(len(self.liked_pairs.users) / parameters.batch_size)
        likes = signed_batches(
            self.liked_pairs,
            self.sampler,
            parameters.negatives,
            parameters.batch_size,
            generator,
        )
        yield from map(SiGRecBatch, likes, torch.tensor_split(dislikes, steps, dim=1))

    def loss(self, batch: SiGRecBatch) -> Tensor:
        """Sign Cosine loss, plus lambda / (2 b) times ||E0||^2 of the batch's nodes.

        With cosines y, it is the mean of 1 - y_ui over likes, plus rho times the mean of
        max(0, y_uj - gamma) over dislikes, plus omega times the mean of max(0, y_uk - m) over
        unrated items. In the norm, of both tables, a node counts once.
        """
        parameters = self.hyperparameters
        directions = self.directions()
        likes = signed_scores(directions, self.likes.n_users, batch.likes)
        users, items = batch.dislikes
        disliked = torch.linalg.vecdot(
            F.embedding(users, directions), F.embedding(items, directions)
        )
        too_near = F.relu(disliked - parameters.disliked_margin).sum() / max(len(users), 1)
        sign_cosine = (
            (1 - likes.rated).mean()
            + parameters.disliked_weight * too_near
            + parameters.unrated_weight * F.relu(likes.negatives - parameters.unrated_margin).mean()
        )
        return sign_cosine + self._penalty(batch)

    def _penalty(self, batch: SiGRecBatch) -> Tensor:
        likes, n_users = batch.likes, self.likes.n_users
        items = torch.cat([likes.items, likes.negatives.flatten()])
        nodes = torch.cat([likes.users, n_users + items, batch.dislikes.flatten()])
        occurs = self.liking.new_zeros(self.likes.n_nodes).index_fill_(0, nodes, 1.0)
        tables = torch.cat([self.liking, self.disliking], dim=1)
        squared_norm: Tensor = occurs @ torch.linalg.vecdot(tables, tables)
        return self.hyperparameters.regularisation / (2 * len(likes.users)) * squared_norm

    def optimiser(self) -> Adam:
        """Adam."""
        return Adam(self.parameters(), self.hyperparameters.learning_rate)

    @torch.no_grad()
    def scorer(self) -> Scorer:
        """Cosines y_ui."""
        return inner_product_scorer(self.directions(), self.likes.n_users)

    @torch.no_grad()
    def item_embeddings(self) -> Tensor:
        """The items' rows of Z / ||Z||: their inner products are cosines."""
        return self.directions()[self.likes.n_users :]
