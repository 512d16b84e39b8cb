"""Item-based nearest neighbours (Sarwar et al., WWW 2001), on what users like."""

from dataclasses import dataclass

import torch
from torch import Tensor

from refine.data import Pairs, TrainingData
from refine.models.base import FittedRecommender, ModelHyperparameters, Scorer, bounded
from refine.models.sparse import SparseMatrix
from refine.topk import NO_ITEM, top_k


@dataclass(frozen=True)
class ItemKNNHyperparameters(ModelHyperparameters):
    """Hyperparameters of the nearest neighbours.

    Attributes:
        neighbours: k, how many are kept of each item.
        shrinkage: h, which draws the similarity of items that few users like towards 0.
    """

    neighbours: int = bounded(100, minimum=1)
    shrinkage: float = bounded(0.0, minimum=0)


class ItemKNN(FittedRecommender):
    """A user is offered the items whose nearest neighbours, in terms of who likes them, they like.

    With X of users x items, 1 where the user likes the item, the similarity of i and j is
    s_ij = x_i . x_j / (|x_i| |x_j| + h): without h, the cosine of the columns.
    """

    hyperparameter_type = ItemKNNHyperparameters
    hyperparameters: ItemKNNHyperparameters
    neighbours: Tensor
    similarities: Tensor

    def __init__(
        self,
        data: TrainingData,
        hyperparameters: ItemKNNHyperparameters,
        generator: torch.Generator,
    ) -> None:
        super().__init__(data, hyperparameters, generator)
        self.hyperparameters = hyperparameters
        ones = torch.ones(len(data.positives.users), device=data.device)
        self._likes = SparseMatrix(data.positives, ones, (data.n_users, data.n_items))
        shape = (data.n_items, hyperparameters.neighbours)
        neighbours = torch.zeros(shape, dtype=torch.int32, device=data.device)
        self.register_buffer("neighbours", neighbours)
        self.register_buffer("similarities", torch.zeros(shape, device=data.device))

    def fit(self) -> None:
        """Finds the neighbours, in blocks of items; of equally similar ones the lower codes."""
        n_items, k = self.similarities.shape
        likes = torch.bincount(self._likes.columns, minlength=n_items)
        norms = likes.to(self.similarities.dtype).sqrt()
        neighbours, similarities = [], []
        for block, together in self._likes.gram():
            scale = torch.outer(norms[block], norms) + self.hyperparameters.shrinkage
            similar = together / scale.clamp(min=1)  # less only where an item has no likes
            similar.scatter_(1, block[:, None], -torch.inf)
            values, items = top_k(similar, k)
            missing = items == NO_ITEM
            neighbours.append(items.masked_fill(missing, 0).int())
            similarities.append(values.masked_fill(missing, 0.0))
        self.neighbours = torch.cat(neighbours)
        self.similarities = torch.cat(similarities)

    def scorer(self) -> Scorer:
        """Sum of s_ij over the neighbours i of item j that the user likes."""
        n_items, k = self.similarities.shape
        items = torch.arange(n_items, device=self.neighbours.device)
        entries = Pairs(items.repeat_interleave(k), self.neighbours.flatten())
        lists = SparseMatrix(entries, self.similarities.flatten(), (n_items, n_items))
        return lambda users: lists.multiply(self._likes.dense(users).T.contiguous()).T
