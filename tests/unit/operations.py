"""What PyTorch does while a test watches."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = ("_local_scalar_dense", "nonzero", "_unique", "bincount", "masked_select", "equal")
"""Operations that fetch a value from a device, or return a shape that depends on one."""


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the operations that are run while it is entered.

    Attributes:
        names: of all of them.
        largest: how many numbers the largest tensor holds that one has returned.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()
        self.largest = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.names.add(func.overloadpacket.__name__)
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided:
                self.largest = max(self.largest, tensor.numel())
        return out

    def assert_that_none_waited(self) -> None:
        """A step that waits for a device lets it run idle until the next one is prepared."""
        assert not {name for name in self.names if name.startswith(WAITING)}
