"""Where tensors live, and that they come out the same there every time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def choose_device(setting: str) -> torch.device:
    """The device that ``device`` in the configuration means on this machine.

    Args:
        setting: ``cpu``, ``cuda``, or ``auto`` for a GPU where there is one.

    Raises:
        ValueError: another setting, or ``cuda`` on a machine without a usable GPU.
    """
    if setting not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, not {setting!r}")
    available = torch.cuda.is_available()
    if setting == "cuda" and not available:
        raise ValueError(
            "device is cuda, but PyTorch sees no GPU here: set it to auto or cpu, or "
            "install a CUDA build of PyTorch"
        )
    return torch.device("cuda" if available and setting != "cpu" else "cpu")


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Has a GPU add up in a fixed order; on CPU the operations used always do."""
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # asked for by cuBLAS
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
