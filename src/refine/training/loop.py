"""The training loop: epochs, validation after each, early stopping."""

import copy
import logging
import math
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from itertools import islice
from typing import NoReturn, Protocol

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from refine import shards
from refine.models.base import GradientRecommender, Scorer
from refine.sampling import NegativeSampler
from refine.training.state import Epoch, TrainingState, UnfinishedEpoch

_logger = logging.getLogger(__name__)
_project_logger = logging.getLogger("refine")  # which writes to the terminal, see ``job_log``


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

    Attributes:
        after_step: called after each step; the training may be saved there, or ended by an error.
        after_epoch: called with the number of each epoch, from 1, and what came of it.
        amid_step: whether a step is half done. At any other moment ``state`` is whole, and an
            error may be raised out of ``train`` and the training still be gone on with.
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
        self.after_step: Callable[[], None] = _nothing
        self.after_epoch: Callable[[int, Epoch], None] = _nothing
        self.amid_step = False
        self.optimiser = model.optimiser()
        self.history: list[Epoch] = []
        self.best_epoch = 0
        self.best_weights: dict[str, torch.Tensor] = {}
        self._loss = torch.zeros((), dtype=torch.float64, device=generator.device)
        self._begin_epoch()

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
            before_epoch: called before each epoch, but not before the rest of one.

        Raises:
            TrainingError: the loss is no longer a number.
        """
        last = self.epochs if until is None else min(until, self.epochs)
        hidden = None if shards.is_first() else True  # None: shown on a terminal
        bar = tqdm(total=last, initial=self.epoch, unit="epoch", miniters=0, disable=hidden)
        with bar, nullcontext() if bar.disable else logging_redirect_tqdm([_project_logger]):
            while not self.finished and self.epoch < last:
                started = time.perf_counter()
                if self._steps == 0:
                    before_epoch()
                loss = self._step_through(self.model.batches(self.negatives, self.generator), bar)
                if not math.isfinite(loss):
                    raise TrainingError(
                        f"the loss of epoch {self.epoch + 1} is {loss}: "
                        "lower model.learning_rate, or look for extreme settings"
                    )
                scores = self.validate(self.model.scorer()).means()
                self._end_epoch(Epoch(loss, scores["recall@20"], scores["ndcg@20"]))
                self.after_epoch(self.epoch, self.history[-1])
                self._show(time.perf_counter() - started, bar)

    def _step_through(self, batches: Iterable[object], bar: "tqdm[NoReturn]") -> float:
        """One optimiser step a batch not done yet; the mean loss of all, the one value fetched."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.model.learning_rate(self.epoch + 1)
        for batch in islice(batches, self._steps, None):
            self.amid_step = True
            self.optimiser.zero_grad()
            loss = self.model.loss(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimiser.step()
            self._loss += loss.detach()
            self._steps += 1
            self.amid_step = False
            self.after_step()
            bar.set_description_str(f"epoch {self.epoch + 1}, step {self._steps}", refresh=False)
            bar.update(0)
        return float(self._loss) / max(self._steps, 1)

    def _begin_epoch(self) -> None:
        self._steps = 0
        self._loss.zero_()
        self._before_epoch = self.generator.get_state()

    def _end_epoch(self, epoch: Epoch) -> None:
        self.amid_step = True
        self.history.append(epoch)
        if self.best_epoch == 0 or epoch.recall >= self.best.recall:
            self.best_epoch = self.epoch
            self.best_weights = _copy(self.model.state_dict())
        self._begin_epoch()
        self.amid_step = False

    def _show(self, seconds: float, bar: "tqdm[NoReturn]") -> None:
        """The last epoch, as a line of the log and beside the bar."""
        epoch, left = self.history[-1], self.epochs - self.epoch
        stops_in = min(self.patience - (self.epoch - self.best_epoch), left)
        scores = (
            f"loss {epoch.loss:.4f}  recall@20 {epoch.recall:.4f}  ndcg@20 {epoch.ndcg:.4f}  "
            f"best {self.best.recall:.4f} (epoch {self.best_epoch})  stops in {stops_in}"
        )
        _logger.info(
            "epoch %d/%d  %s  %.2f s an epoch  at most %s left",
            self.epoch,
            self.epochs,
            scores,
            seconds,
            tqdm.format_interval(seconds * left),
        )
        bar.set_postfix_str(scores, refresh=False)
        bar.update()

    def state(self) -> TrainingState:
        """All that the rest of the training depends on."""
        return TrainingState(
            model=_copy(self.model.state_dict()),
            optimiser=copy.deepcopy(self.optimiser.state_dict()),
            generator=self._before_epoch,
            best_weights=self.best_weights,
            best_epoch=self.best_epoch,
            history=list(self.history),
            unfinished=UnfinishedEpoch(self._steps, self._loss.clone(), self.negatives.state())
            if self._steps
            else None,
        )

    def restore(self, state: TrainingState) -> None:
        """Goes on from a state of the same model, data and kind of device."""
        self.model.load_state_dict(state.model)
        # Optimisers, PyTorch's too, go on in the tensors that they are given: the state is kept.
        self.optimiser.load_state_dict(copy.deepcopy(state.optimiser))
        self.generator.set_state(state.generator)
        self.best_weights = state.best_weights
        self.best_epoch = state.best_epoch
        self.history = list(state.history)
        self._begin_epoch()
        if state.unfinished is not None:
            self._steps = state.unfinished.steps
            self._loss.copy_(state.unfinished.loss)
            self.negatives.restore(state.unfinished.negatives)


def _nothing(*_: object) -> None:
    pass


def _copy(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in weights.items()}
