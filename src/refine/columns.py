"""Columns of Arrow tables as tensors, and back; without pandas.

Most conversions of pyarrow, ``pa.array`` and ``to_numpy`` among them, import pandas where it is
installed, and so do filters by expressions and ``pq.read_table``. For a stage that takes a second
that is a good part of its time.
"""

import pyarrow as pa
from torch import Tensor
from torch.utils.dlpack import from_dlpack


def to_tensor(column: pa.ChunkedArray | pa.Array) -> Tensor:
    """A column of numbers, none of them missing."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return from_dlpack(whole).clone()


def to_column(values: Tensor) -> pa.Array:
    """A vector of numbers, on any device."""
    numbers = values.detach().cpu().contiguous().numpy()
    kind = pa.from_numpy_dtype(numbers.dtype)
    return pa.Array.from_buffers(kind, len(numbers), [None, pa.py_buffer(numbers)])
