"""Popularity: what most users like is recommended to everybody; the least a model has to beat."""

import torch
from torch import Tensor

from refine.data import TrainingData
from refine.models.base import FittedRecommender, ModelHyperparameters, Scorer


class Popularity(FittedRecommender):
    """The number of positives of each item."""

    likes: Tensor

    def __init__(
        self,
        data: TrainingData,
        hyperparameters: ModelHyperparameters,
        generator: torch.Generator,
    ) -> None:
        super().__init__(data, hyperparameters, generator)
        self.hyperparameters = hyperparameters
        self._liked = data.positives.items
        self.register_buffer("likes", torch.zeros(data.n_items, device=data.device))

    def fit(self) -> None:
        """Counts."""
        counts = torch.bincount(self._liked, minlength=len(self.likes))
        self.likes = counts.to(self.likes.dtype)

    def scorer(self) -> Scorer:
        """The same scores for every user."""
        likes = self.likes
        return lambda users: likes.expand(len(users), -1)
