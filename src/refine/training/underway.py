"""What a run does beside training: it keeps a checkpoint, and shows how it goes."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from refine import shards
from refine.training.board import tensorboard
from refine.training.checkpoint import Checkpoint
from refine.training.loop import Trainer


@dataclass(frozen=True)
class Underway:
    """What is to be left while a run goes on; none of it changes what comes of the run.

    Attributes:
        checkpoint: the file to go on from; it must outlive a failed job.
        minutes: between two checkpoints.
        tensorboard: the folder to write the course to, if any.
    """

    checkpoint: Path
    minutes: float
    tensorboard: Path | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any], rule: str, run: str) -> Self:
        """As configured.

        Args:
            config: the whole configuration, and ``shared_folder``, which all machines see.
            rule: that trains.
            run: ``<dataset>/<experiment>/seed<k>``.
        """
        folder, training = Path(config["shared_folder"]), config["training"]
        return cls(
            folder / "checkpoints" / rule / f"{run}.safetensors",
            training["checkpoint_minutes"],
            folder / "logs/tensorboard" / run if training["tensorboard"] else None,
        )


@contextmanager
def underway(
    trainer: Trainer, settings: Underway | None, identity: Mapping[str, Any]
) -> Iterator[None]:
    """Takes the run's checkpoint up, keeps one while the run goes on, and removes it at the end.

    Args:
        trainer: ready to begin; without a checkpoint it is left as it is.
        settings: None for a run that leaves nothing.
        identity: all that the run depends on.

    Raises:
        SystemExit: SIGTERM or SIGINT came; a checkpoint has been written.
    """
    if settings is None:
        yield
        return
    checkpoint = Checkpoint(settings.checkpoint, settings.minutes, identity)
    if (state := checkpoint.load()) is not None:
        trainer.restore(state)
    with ExitStack() as stack:
        if settings.tensorboard is not None and shards.is_first():
            stack.enter_context(tensorboard(trainer, settings.tensorboard))
        stack.enter_context(checkpoint.watch(trainer))
        yield
    checkpoint.remove()
