"""The course of a training for TensorBoard, written by its own library."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from refine.training.loop import Trainer, TrainingError
from refine.training.state import Epoch


@contextmanager
def tensorboard(trainer: Trainer, folder: Path) -> Iterator[None]:
    """Writes the loss and the validation metrics of each epoch that is trained.

    Args:
        trainer: about to go on from its present epoch; what the folder holds of later ones, from
            a run that was killed or is made anew, is no longer shown.
        folder: one for warm-up and training together, as they are one run.

    Raises:
        TrainingError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TrainingError(
            f"training.tensorboard is true, but TensorBoard cannot be loaded ({error}): "
            "pip install tensorboard, or set it to false"
        ) from error

    def write(number: int, epoch: Epoch) -> None:
        writer.add_scalar("loss", epoch.loss, number)
        writer.add_scalar("validation/recall@20", epoch.recall, number)
        writer.add_scalar("validation/ndcg@20", epoch.ndcg, number)

    with SummaryWriter(str(folder), purge_step=trainer.epoch + 1) as writer:
        trainer.after_epoch = write
        yield
