"""What the training loop and the evaluation ask of a model."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from refine.data import TrainingData
from refine.sampling import NegativeSampler

Scorer: TypeAlias = Callable[[Tensor], Tensor]
"""Scores of all items for some users: int64 [b] -> floating point [b, items]."""


def inner_product_scorer(embeddings: Tensor, n_users: int) -> Scorer:
    """Scores by inner products of a user's and an item's embedding.

    Args:
        embeddings: users' rows first, [nodes, d]; kept, so no later update may change them.
        n_users: number of users.
    """
    users, items = embeddings[:n_users], embeddings[n_users:]
    return lambda block: users[block] @ items.T


class Optimiser(Protocol):
    """What the training loop asks of an optimiser; those of PyTorch can do it.

    Attributes:
        param_groups: the options of each group of parameters, ``lr`` among them.
    """

    param_groups: list[dict[str, Any]]

    def zero_grad(self) -> None:
        """Forgets the gradients."""

    def step(self) -> object:
        """Updates the parameters."""

    def state_dict(self) -> dict[str, Any]:
        """As of an optimiser of PyTorch."""

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Goes on from a state, maybe in the tensors of that state."""


def bounded(default: Any, **bounds: float) -> Any:
    """A hyperparameter with a default and bounds, named as in JSON schema.

    Args:
        default: its value where the configuration gives none.
        **bounds: ``minimum``, ``maximum``, ``exclusiveMinimum``, ``exclusiveMaximum``.
    """
    return field(default=default, metadata=bounds)


@dataclass(frozen=True)
class ModelHyperparameters:
    """What a model can be given: nothing yet; a model adds its own in a subclass."""

    def __post_init__(self) -> None:
        for parameter in fields(self):
            value, bounds = getattr(self, parameter.name), parameter.metadata
            if value is None or not bounds:
                continue
            inside = (
                bounds.get("minimum", -math.inf) <= value <= bounds.get("maximum", math.inf)
                and value > bounds.get("exclusiveMinimum", -math.inf)
                and value < bounds.get("exclusiveMaximum", math.inf)
            )
            if not inside:
                raise ValueError(f"{parameter.name} must be within {dict(bounds)}, not {value}")


@dataclass(frozen=True)
class Hyperparameters(ModelHyperparameters):
    """What every model that is trained by gradient steps can be given.

    Attributes:
        batch_size: training pairs a step.
        learning_rate: of the optimiser.
        regularisation: weight of the squared norm of the parameters in the loss.
    """

    batch_size: int = bounded(1024, minimum=1)
    learning_rate: float = bounded(1e-3, exclusiveMinimum=0)
    regularisation: float = bounded(1e-4, minimum=0)


class Recommender(nn.Module, ABC):
    """Scores every item for every user; the least that the evaluation needs.

    A model is its hyperparameters and what ``state_dict`` holds; what can be computed from the data
    (a graph, say) is rebuilt from the data and kept out of it.

    Attributes:
        hyperparameter_type: what the configuration may set.
        hyperparameters: what it has set.
    """

    hyperparameter_type: ClassVar[type[ModelHyperparameters]] = ModelHyperparameters
    hyperparameters: ModelHyperparameters

    @abstractmethod
    def __init__(
        self, data: TrainingData, hyperparameters: Any, generator: torch.Generator
    ) -> None:
        """Builds the model on the device of the data.

        Args:
            data: what it learns from.
            hyperparameters: an instance of ``hyperparameter_type``.
            generator: draws the initial parameters; on the same device.
        """
        super().__init__()

    @abstractmethod
    def scorer(self) -> Scorer:
        """The scores under the present parameters; a later update does not change them."""

    def item_embeddings(self) -> Tensor:
        """What similar items are mined from, without gradient: floating point [items, d].

        Raises:
            NotImplementedError: the model has none.
        """
        raise NotImplementedError(f"{type(self).__name__} has no item embeddings to mine")


class FittedRecommender(Recommender):
    """A model that is computed from the data at once, without a random draw."""

    @abstractmethod
    def fit(self) -> None:
        """Computes what ``state_dict`` holds."""


class GradientRecommender(Recommender):
    """A model that is trained by gradient steps on batches.

    Attributes:
        can_be_shared: whether several processes can train it, each some columns of its parameters,
            see ``refine.shards``.
    """

    hyperparameter_type: ClassVar[type[Hyperparameters]] = Hyperparameters
    hyperparameters: Hyperparameters
    can_be_shared: ClassVar[bool] = False

    def learning_rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 1: the same in all, unless overridden."""
        return self.hyperparameters.learning_rate

    @abstractmethod
    def batches(self, negatives: NegativeSampler, generator: torch.Generator) -> Iterator[Any]:
        """The batches of one epoch; each goes to ``loss``, and nowhere else.

        An epoch that was broken off is gone on with by making its batches again and passing over
        those that are done: so they depend on the generator alone, and what is random in ``loss``
        comes from a seed that its batch carries.

        Args:
            negatives: draws negatives under the weights of the present stage of training; a model
                with a sampler of its own need not use it.
            generator: the only source of randomness.
        """

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """The differentiable loss of a batch, a scalar."""

    @abstractmethod
    def optimiser(self) -> Optimiser:
        """A new optimiser of the parameters."""
