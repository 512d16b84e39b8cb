"""The training loop: epochs, validation after each, early stopping."""

import copy
import logging
import math
import time
from collections.abc import Callable, Iterable
from typing import Protocol

import torch

from refine.models.base import GradientRecommender, Scorer
from refine.sampling import NegativeSampler
from refine.training.state import Epoch, TrainingState

_logger = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """Training cannot go on."""


class Validation(Protocol):
    """What a ranking of the validation positives is worth."""

    def means(self) -> dict[str, float]:
        """Metrics by name, ``recall@20`` and ``ndcg@20`` among them."""


class Trainer:
    """Trains a model epoch by epoch, and remembers its best epoch.

    Early stopping as released: the best epoch is the last one whose validation Recall@20 no earlier
    one exceeds (an equal score counts as an improvement), and training ends ``patience`` epochs
    after it.
    """

    def __init__(
        self,
        model: GradientRecommender,
        negatives: NegativeSampler,
        validate: Callable[[Scorer], Validation],
        generator: torch.Generator,
        *,
        epochs: int,
        patience: int,
    ) -> None:
        """Starts before the first epoch.

        Args:
            model: to be trained.
            negatives: whose weights may be changed between epochs.
            validate: ranks the validation positives.
            generator: the source of randomness of batches and negatives.
            epochs: to train at most.
            patience: epochs to wait for one as good as the best.
        """
        self.model = model
        self.negatives = negatives
        self.validate = validate
        self.generator = generator
        self.epochs = epochs
        self.patience = patience
        self.optimiser = model.optimiser()
        self.history: list[Epoch] = []
        self.best_epoch = 0
        self.best_weights: dict[str, torch.Tensor] = {}

    @property
    def epoch(self) -> int:
        """Epochs trained so far."""
        return len(self.history)

    @property
    def best(self) -> Epoch:
        """The best epoch so far."""
        return self.history[self.best_epoch - 1]

    @property
    def finished(self) -> bool:
        """Whether the last epoch is over, or the best one is too long ago."""
        return self.epoch >= self.epochs or self.epoch - self.best_epoch >= self.patience

    def train(
        self, until: int | None = None, before_epoch: Callable[[], None] = lambda: None
    ) -> None:
        """Trains until the end, or only until epoch ``until``.

        Args:
            until: the last epoch to train, counted from 1.
            before_epoch: called before each epoch.

        Raises:
            TrainingError: the loss is no longer a number.
        """
        while not self.finished and (until is None or self.epoch < until):
            started = time.perf_counter()
            before_epoch()
            loss = self._step_through(self.model.batches(self.negatives, self.generator))
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss of epoch {self.epoch + 1} is {loss}: "
                    "lower training.learning_rate, or look for extreme settings"
                )
            scores = self.validate(self.model.scorer()).means()
            epoch = Epoch(loss, scores["recall@20"], scores["ndcg@20"])
            self.history.append(epoch)
            if self.best_epoch == 0 or epoch.recall >= self.best.recall:
                self.best_epoch = self.epoch
                self.best_weights = _copy(self.model.state_dict())
            self._log(time.perf_counter() - started)

    def _step_through(self, batches: Iterable[object]) -> float:
        """One optimiser step a batch; returns their mean loss, the only value fetched."""
        total, steps = torch.zeros((), dtype=torch.float64), 0
        for batch in batches:
            self.optimiser.zero_grad()
            loss = self.model.loss(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimiser.step()
            total = total.to(loss.device) + loss.detach()
            steps += 1
        return float(total) / max(steps, 1)

    def _log(self, seconds: float) -> None:
        epoch, waited = self.history[-1], self.epoch - self.best_epoch
        left = self.epochs - self.epoch
        _logger.info(
            "epoch %d/%d  loss %.4f  recall@20 %.4f  ndcg@20 %.4f  best %.4f (epoch %d)  "
            "stops in %d  %.2f s an epoch  at most %s left",
            self.epoch,
            self.epochs,
            epoch.loss,
            epoch.recall,
            epoch.ndcg,
            self.best.recall,
            self.best_epoch,
            min(self.patience - waited, left),
            seconds,
            _duration(seconds * left),
        )

    def state(self) -> TrainingState:
        """All that the rest of the training depends on."""
        return TrainingState(
            model=_copy(self.model.state_dict()),
            optimiser=copy.deepcopy(self.optimiser.state_dict()),
            generator=self.generator.get_state(),
            best_weights=self.best_weights,
            best_epoch=self.best_epoch,
            history=list(self.history),
        )

    def restore(self, state: TrainingState) -> None:
        """Goes on from a state of the same model, data and device."""
        self.model.load_state_dict(state.model)
        self.optimiser.load_state_dict(state.optimiser)
        self.generator.set_state(state.generator)
        self.best_weights = state.best_weights
        self.best_epoch = state.best_epoch
        self.history = list(state.history)


def _copy(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in weights.items()}


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
