"""Graphs of users and items, and the propagation of embeddings over them (LightGCN, SIGIR 2020)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from refine.data import Pairs


def row_starts(sorted_rows: Tensor, n_rows: int) -> Tensor:
    """Where each row of a sparse matrix starts among its entries, and the end: [n_rows + 1].

    Args:
        sorted_rows: the row of each entry, ascending; int32 or int64, and so is what is returned.
        n_rows: number of rows.
    """
    # Unlike a count of each row, a search does not have to wait for a GPU.
    rows = torch.arange(n_rows + 1, dtype=sorted_rows.dtype, device=sorted_rows.device)
    return torch.searchsorted(sorted_rows, rows, out_int32=sorted_rows.dtype == torch.int32)


def weighted_sums(starts: Tensor, columns: Tensor, weights: Tensor, x: Tensor) -> Tensor:
    """The product of a sparse matrix, in CSR, and a dense one: [rows, d].

    Args:
        starts: where each row starts in the next two, and the end; integers [rows + 1].
        columns: of the entries, integers of the same type [entries].
        weights: the entries, floating point [entries].
        x: [columns, d].
    """
    # It is a sum, for each row, of weighted rows of x: on CPU PyTorch's kernel for such sums is 2.6
    # to 4 times as fast as its sparse matrix product (MKL).
    return F.embedding_bag(
        columns, x, starts, mode="sum", per_sample_weights=weights, include_last_offset=True
    )


class Graph:
    """A sparse matrix A of nodes x nodes, in CSR."""

    def __init__(
        self,
        row_starts: Tensor,
        columns: Tensor,
        weights: Tensor,
        transposed: "Graph | None" = None,
    ) -> None:
        """Takes the matrix as it is.

        Args:
            row_starts: where each row starts in the other two, and the end; int64 [nodes + 1].
            columns: node numbers, integers [entries].
            weights: the entries, floating point [entries].
            transposed: the transpose of A; None: A is symmetric.
        """
        index_type = torch.int32 if len(columns) < 2**31 else torch.int64
        self.row_starts = row_starts.to(index_type)
        self.columns = columns.to(index_type)
        self.weights = weights
        self._transposed = transposed
        if transposed is not None:
            transposed._transposed = self

    @property
    def transposed(self) -> "Graph":
        """The transpose of A, which a backward pass multiplies by; A itself if symmetric."""
        return self._transposed or self

    def multiply(self, x: Tensor) -> Tensor:
        """A x, for x of shape [nodes, d]; not differentiable: see ``polynomial``."""
        return weighted_sums(self.row_starts, self.columns, self.weights, x)

    def polynomial(self, x: Tensor, coefficients: Sequence[float]) -> Tensor:
        """Sum over k of coefficients[k] A^k x; differentiable in x, of shape [nodes, d].

        A tensor of its own, even where it equals x: what is scored by shall not change in training.
        """
        product: Tensor = _Polynomial.apply(x, self, coefficients)  # type: ignore[no-untyped-call]
        return product

    def evaluate(self, x: Tensor, coefficients: Sequence[float]) -> Tensor:
        """``polynomial`` without a gradient; coefficients of 1 save a pass over x; [1] gives x."""
        # Horner, A (A (c_2 x) + c_1 x) + c_0 x: one running tensor instead of every power.
        total = x if coefficients[-1] == 1 else x * coefficients[-1]
        for coefficient in reversed(coefficients[:-1]):
            total = self.multiply(total).add_(x, alpha=coefficient)
        return total

    def propagate(self, x: Tensor, layers: int) -> Tensor:
        """The mean of x and its ``layers`` convolutions A x, A^2 x, ...; differentiable in x."""
        return self.polynomial(x, [1 / (layers + 1)] * (layers + 1))


class BipartiteGraph(Graph):
    """The symmetrically normalised adjacency matrix A of users and items, in CSR.

    Nodes 0..n_users - 1 are the users, the items follow. An edge (u, i) weighs
    1 / sqrt(degree(u) degree(i)); a node without edges has an empty row.
    """

    def __init__(
        self, edges: Pairs, n_users: int, n_items: int, dtype: torch.dtype | None = None
    ) -> None:
        """Builds the matrix, once.

        Args:
            edges: distinct pairs, ascending by user, then item.
            n_users: number of users.
            n_items: number of items.
            dtype: of the weights and of what is propagated; by default PyTorch's default.
        """
        self.n_users = n_users
        self.n_items = n_items
        users, items = edges
        degrees = torch.cat(
            [torch.bincount(users, minlength=n_users), torch.bincount(items, minlength=n_items)]
        )
        by_item = torch.sort(items, stable=True).indices
        # The rows of the users, whose neighbours are items, then those of the items.
        columns = torch.cat([items + n_users, users[by_item]])
        scale = degrees.to(torch.float64).rsqrt()
        weights = scale[users.long()] * scale[n_users + items.long()]
        weights = torch.cat([weights, weights[by_item]]).to(dtype or torch.get_default_dtype())
        super().__init__(F.pad(degrees.cumsum(0), (1, 0)), columns, weights)

    @property
    def n_nodes(self) -> int:
        """Users and items together."""
        return self.n_users + self.n_items


class _Polynomial(Function):
    """Its backward is the same polynomial of the transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, graph: Graph, coefficients: Sequence[float]) -> Tensor:
        ctx.graph, ctx.coefficients = graph, coefficients
        total = graph.evaluate(x, coefficients)
        return total.clone() if total is x else total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        total = ctx.graph.transposed.evaluate(gradient.contiguous(), ctx.coefficients)
        return total, None, None
