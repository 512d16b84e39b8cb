import pyarrow as pa
import pytest
import torch

from refine.columns import to_column, to_tensor


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64, torch.float32])
def test_numbers_arrive_as_they_are(dtype: torch.dtype) -> None:
    values = torch.tensor([3, -1, 7], dtype=dtype)
    column = to_column(values)
    assert column.to_pylist() == [3, -1, 7]
    assert to_tensor(column).dtype == dtype
    assert torch.equal(to_tensor(column), values)


def test_chunks_slices_and_nothing() -> None:
    chunks = pa.chunked_array([[1, 2], [3]])
    assert to_tensor(chunks).tolist() == [1, 2, 3]
    assert to_tensor(chunks.slice(1, 1)).tolist() == [2]
    assert to_tensor(pa.chunked_array([], pa.int32())).tolist() == []
    assert to_column(torch.arange(6)[::2]).to_pylist() == [0, 2, 4]
    assert to_column(torch.empty(0)).to_pylist() == []


def test_a_tensor_is_a_copy() -> None:
    column = pa.array([1, 2])
    to_tensor(column).zero_()
    assert column.to_pylist() == [1, 2]
