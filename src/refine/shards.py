"""One training in several processes: each holds some columns of the embeddings.

What acts on each embedding dimension alone, as propagation over a graph does, needs no other
process; only what sums over the dimensions is added up. Batches are drawn by all processes alike,
from generators in the same state. In a process on its own all of this does nothing.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn


class ShardError(ValueError):
    """A model or a machine that cannot be shared as asked."""


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Takes part in the training of all processes that ``torchrun`` has started.

    Args:
        device: kind of the device that the tensors will be on.

    Raises:
        ShardError: there are fewer GPUs than processes.
    """
    wanted = int(os.environ["LOCAL_WORLD_SIZE"])
    if device == "cuda" and wanted > torch.cuda.device_count():
        raise ShardError(
            f"training.processes is {wanted}, but PyTorch sees {torch.cuda.device_count()} GPUs"
        )
    distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    if device == "cuda":
        torch.cuda.set_device(distributed.get_node_local_rank())
    try:
        yield
    finally:
        distributed.destroy_process_group()


def processes() -> int:
    """How many processes share the training."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that writes files."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def own_columns(whole: Tensor) -> Tensor:
    """This process's columns of a matrix that all processes hold.

    Raises:
        ShardError: the columns cannot be shared equally.
    """
    if processes() == 1:
        return whole
    if whole.shape[1] % processes():
        raise ShardError(
            f"model.dimension ({whole.shape[1]}) must be a multiple of training.processes "
            f"({processes()})"
        )
    return whole.chunk(processes(), dim=1)[distributed.get_rank()].contiguous()


def all_columns(own: Tensor) -> Tensor:
    """The whole matrix, of which each process holds some columns."""
    if processes() == 1:
        return own
    parts = [torch.empty_like(own) for _ in range(processes())]
    distributed.all_gather(parts, own.contiguous())
    return torch.cat(parts, dim=1)


def add_up(*parts: Tensor) -> tuple[Tensor, ...]:
    """The sum over the processes of each tensor, in one message."""
    if processes() == 1:
        return parts
    message = torch.cat([part.flatten() for part in parts])
    distributed.all_reduce(message)
    sums = torch.split(message, [part.numel() for part in parts])
    return tuple(total.view(part.shape) for total, part in zip(sums, parts, strict=True))


def wait() -> None:
    """Until all processes are here."""
    if processes() > 1:
        distributed.barrier()


def agree(*wishes: bool, device: torch.device) -> tuple[bool, ...]:
    """What any process wishes; all have to ask at the same step."""
    if processes() == 1:
        return wishes
    message = torch.tensor(wishes, dtype=torch.uint8, device=device)
    distributed.all_reduce(message, distributed.ReduceOp.MAX)
    return tuple(map(bool, message.tolist()))


def save_whole(model: nn.Module) -> None:
    """Has ``state_dict`` hold all columns of the parameters; what is loaded is cut up again."""
    if processes() == 1:
        return

    def gather(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
        for name, _parameter in model.named_parameters():
            state[prefix + name] = all_columns(state[prefix + name])

    def cut(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
        for name, _parameter in model.named_parameters():
            state[prefix + name] = own_columns(state[prefix + name])

    model.register_state_dict_post_hook(gather)  # type: ignore[no-untyped-call]
    model.register_load_state_dict_pre_hook(cut)  # type: ignore[no-untyped-call]
