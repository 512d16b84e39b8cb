"""EASE: Embarrassingly Shallow Autoencoders for Sparse Data (Steck, WWW 2019)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from refine.data import TrainingData
from refine.models.base import FittedRecommender, ModelHyperparameters, Scorer, bounded
from refine.models.sparse import SparseMatrix

_STARS = 5
_MOST_BYTES = 15 * 10**9
# Two matrices in float64 and a copy that LAPACK makes; in float32 B, and the best one so far.
_BYTES_A_CELL = 3 * 8 + 2 * 4


@dataclass(frozen=True)
class EASEHyperparameters(ModelHyperparameters):
    """Hyperparameters of EASE.

    Attributes:
        ridge: lambda, the weight of the squared norm of B.
        weights: what a rating of 1, 2, ... 5 stars counts; without them what the labels call
            positive counts 1, and all else 0.
    """

    ridge: float = bounded(300.0, exclusiveMinimum=0)
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights is None:
            return
        if len(self.weights) != _STARS or not all(map(math.isfinite, self.weights)):
            raise ValueError(f"weights must be {_STARS} numbers, not {self.weights}")
        object.__setattr__(self, "weights", tuple(self.weights))  # JSON has lists


class EASE(FittedRecommender):
    """The linear regression of each item on all others: X B close to X, diag(B) = 0.

    X, of users x items, holds 1 for a positive, or a weight for each rating. B is items x items
    and dense, and so is what it is computed from: 15 GB suffice for 21,000 items.
    """

    hyperparameter_type = EASEHyperparameters
    hyperparameters: EASEHyperparameters
    coefficients: Tensor

    def __init__(
        self, data: TrainingData, hyperparameters: EASEHyperparameters, generator: torch.Generator
    ) -> None:
        super().__init__(data, hyperparameters, generator)
        self.hyperparameters = hyperparameters
        n_items = data.n_items
        needed = n_items**2 * _BYTES_A_CELL
        if needed > _MOST_BYTES:
            raise ValueError(
                f"EASE would need {needed / 1e9:.0f} GB of memory for {n_items} items, and "
                f"may use {_MOST_BYTES / 1e9:.0f} GB: raise split.min_positives to have fewer "
                "items, or choose another model"
            )
        self._x = _matrix(data, hyperparameters.weights)
        self.register_buffer("coefficients", torch.zeros(n_items, n_items, device=data.device))

    def fit(self) -> None:
        """B = I - P diag(1 / diag P), where P = (X^T X + lambda I)^-1: equation 8."""
        n_items = len(self.coefficients)
        # What is inverted needs float64; what is counted does not, and counts faster without.
        gram = self._x.values.new_empty(n_items, n_items, dtype=torch.float64)
        for block, rows in self._x.gram():
            gram[block] = rows.to(gram.dtype)
        gram.diagonal().add_(self.hyperparameters.ridge)
        factor = torch.linalg.cholesky(gram)
        del gram
        inverse = torch.cholesky_inverse(factor)
        del factor
        # Column j by its diagonal element, whose own place I makes 0.
        inverse /= -inverse.diagonal().clone()
        inverse.fill_diagonal_(0.0)
        self.coefficients = inverse.to(self.coefficients.dtype)

    def scorer(self) -> Scorer:
        """X B."""
        coefficients = self.coefficients
        return lambda users: self._x.dense(users).to(coefficients.dtype) @ coefficients


def _matrix(data: TrainingData, weights: tuple[float, ...] | None) -> SparseMatrix:
    """X; counts are exact in float32, which is ten times faster, up to 2^24 users."""
    shape = (data.n_users, data.n_items)
    if weights is None:
        counted = torch.float32 if data.n_users < 2**24 else torch.float64
        ones = torch.ones(len(data.positives.users), dtype=counted, device=data.device)
        return SparseMatrix(data.positives, ones, shape)
    of_stars = torch.tensor(weights, dtype=torch.float64, device=data.device)
    return SparseMatrix(data.rated, of_stars[data.ratings.long() - 1], shape)
