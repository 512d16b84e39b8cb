from collections.abc import Iterator

import pytest


@pytest.fixture
def _double() -> Iterator[None]:
    """New tensors have double precision, so that a formula can be told from one that is near."""
    import torch  # here, as most tests need no PyTorch

    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
