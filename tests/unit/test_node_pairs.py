import pytest
import torch
from operations import Operations

from refine.models.node_pairs import NodePairs, inner_products

N = 7
# Node 2 has no pair, (1, 4) occurs twice, and node 5 is no target.
SOURCES = torch.tensor([0, 0, 1, 1, 1, 3, 4, 5, 6, 6], dtype=torch.int32)
TARGETS = torch.tensor([6, 1, 4, 0, 4, 3, 2, 1, 6, 0], dtype=torch.int32)
STARTS = torch.tensor([0, 2, 5, 5, 6, 7, 8, 10], dtype=torch.int32)
PAIRS = NodePairs(SOURCES, TARGETS, STARTS)


@pytest.fixture
def values() -> torch.Tensor:
    return torch.randn(10, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.randn(N, 5, generator=torch.Generator().manual_seed(2))


def dense(values: torch.Tensor) -> torch.Tensor:
    matrix = torch.zeros(N, N)
    for a, b, value in zip(SOURCES.tolist(), TARGETS.tolist(), values, strict=True):
        matrix[a, b] += value
    return matrix


def test_products_are_those_of_dense_matrices(values, rows) -> None:
    others = rows.flip(0).contiguous()
    torch.testing.assert_close(PAIRS.products(rows, others), (rows @ others.T)[SOURCES, TARGETS])
    torch.testing.assert_close(PAIRS.multiply(values, rows), dense(values) @ rows)
    torch.testing.assert_close(PAIRS.sums(values), dense(values).sum(1))
    assert torch.equal(PAIRS.spread(rows[:, 0]), rows[SOURCES, 0])


def test_a_product_leaves_the_pairs_and_earlier_products_alone(rows) -> None:
    first = PAIRS.products(rows, rows)
    kept = first.clone()
    PAIRS.products(-rows, rows + 1)
    assert torch.equal(first, kept)
    assert torch.equal(PAIRS.targets, TARGETS)


def test_reversed_pairs_are_the_transposed_matrix(values, rows) -> None:
    back, order = PAIRS.reversed()
    assert bool((back.sources.diff() >= 0).all())
    assert {tensor.dtype for tensor in back} == {torch.int32}
    assert torch.equal(back.sources, TARGETS[order])
    torch.testing.assert_close(back.multiply(values[order], rows), dense(values).T @ rows)


def test_inner_products_are_differentiated_rightly(rows) -> None:
    x = rows.double().requires_grad_()
    torch.testing.assert_close(
        inner_products(x, PAIRS), (x[SOURCES] * x[TARGETS]).sum(1), rtol=0, atol=1e-12
    )
    assert torch.autograd.gradcheck(lambda x: inner_products(x, PAIRS), x)


def test_pairs_may_repeat_until_they_are_more_than_a_matrix_has_cells() -> None:
    p, n = 1000, 5
    generator = torch.Generator().manual_seed(0)
    sources = torch.randint(n, (p,), generator=generator).sort().values.int()
    starts = torch.searchsorted(sources, torch.arange(n + 1, dtype=torch.int32), out_int32=True)
    pairs = NodePairs(sources, torch.randint(n, (p,), generator=generator).int(), starts)
    x = torch.randn(n, 3, generator=generator)
    torch.testing.assert_close(pairs.products(x, x), (x @ x.T)[sources, pairs.targets])
    assert len(pairs.targets) == p


def test_products_hold_no_row_per_pair() -> None:
    p, n, d = 20_000, 200, 64
    sources = torch.arange(p, dtype=torch.int32) // (p // n)
    starts = torch.arange(n + 1, dtype=torch.int32) * (p // n)
    pairs = NodePairs(sources, torch.arange(p, dtype=torch.int32) % n, starts)
    x = torch.randn(n, d, requires_grad=True)
    with Operations() as operations:
        inner_products(x, pairs).sum().backward()
    assert p <= operations.largest < p * d / 10
