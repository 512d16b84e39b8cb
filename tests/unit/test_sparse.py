import numpy as np
import pytest
import torch

from refine.data import Pairs
from refine.models import sparse
from refine.models.sparse import SparseMatrix

N_ROWS, N_COLUMNS = 8, 10


def numbers() -> np.ndarray:
    """Random numbers with many zeros, an empty row and an empty column."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N_ROWS, N_COLUMNS)) * (rng.random((N_ROWS, N_COLUMNS)) < 0.4)
    x[3], x[:, 6] = 0, 0
    return x


def sparse_of(x: np.ndarray) -> SparseMatrix:
    entries = Pairs(*(torch.from_numpy(codes.astype(np.int32)) for codes in np.nonzero(x)))
    return SparseMatrix(entries, torch.from_numpy(x[np.nonzero(x)]), x.shape)


def test_rows_are_laid_out_in_any_order() -> None:
    x = numbers()
    for rows in ([0, 1, 2, 3, 4, 5, 6, 7], [5, 3, 0, 5], [3], []):
        found = sparse_of(x).dense(torch.tensor(rows, dtype=torch.int64))
        np.testing.assert_array_equal(found, x[rows])


def test_the_transposed_matrix_and_products() -> None:
    x, rng = numbers(), np.random.default_rng(1)
    transposed = sparse_of(x).transposed()
    assert transposed.shape == (N_COLUMNS, N_ROWS)
    np.testing.assert_array_equal(transposed.dense(torch.arange(N_COLUMNS)), x.T)
    for matrix, dense in ((sparse_of(x), x), (transposed, x.T)):
        factor = rng.normal(size=(dense.shape[1], 3))
        product = matrix.multiply(torch.from_numpy(factor))
        np.testing.assert_allclose(product, dense @ factor, rtol=0, atol=1e-14)


@pytest.mark.parametrize("rows_at_once", [1, 3, N_COLUMNS])
def test_the_gram_matrix_comes_in_blocks(
    monkeypatch: pytest.MonkeyPatch, rows_at_once: int
) -> None:
    x = numbers()
    [(_, whole)] = sparse_of(x).gram()
    monkeypatch.setattr(sparse, "_BLOCK_CELLS", rows_at_once * (N_ROWS + N_COLUMNS))
    blocks, rows = zip(*sparse_of(x).gram(), strict=True)
    assert [len(block) for block in blocks[:-1]] == [rows_at_once] * (len(blocks) - 1)
    assert torch.cat(blocks).tolist() == list(range(N_COLUMNS))
    np.testing.assert_allclose(whole, x.T @ x, rtol=0, atol=1e-14)
    assert torch.equal(torch.cat(rows), whole)
    assert torch.equal(whole, whole.T)


def test_a_matrix_without_entries() -> None:
    empty = sparse_of(np.zeros((2, 3)))
    assert not empty.dense(torch.arange(2)).any()
    assert not empty.multiply(torch.ones(3, 4, dtype=torch.float64)).any()
    assert not torch.cat([rows for _, rows in empty.gram()]).any()
