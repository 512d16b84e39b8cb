"""Graphs of users and items, and the propagation of embeddings over them (LightGCN, SIGIR 2020)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from refine.data import Pairs


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
        # A CSR product is a weighted sum of the rows that each node's neighbours have: on CPU
        # PyTorch's kernel for such sums is 2.6 times as fast as its sparse matrix product (MKL).
        return F.embedding_bag(
            self.columns,
            x,
            self.row_starts,
            mode="sum",
            per_sample_weights=self.weights,
            include_last_offset=True,
        )

    def polynomial(self, x: Tensor, coefficients: Sequence[float]) -> Tensor:
        """Sum over k of coefficients[k] A^k x; differentiable in x, of shape [nodes, d]."""
        product: Tensor = _Polynomial.apply(x, self, coefficients)  # type: ignore[no-untyped-call]
        return product

    def evaluate(self, x: Tensor, coefficients: Sequence[float]) -> Tensor:
        """``polynomial`` without a gradient; coefficients of 1 save a pass over x."""
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
        device = users.device
        degrees = torch.cat(
            [torch.bincount(users, minlength=n_users), torch.bincount(items, minlength=n_items)]
        )
        by_item = torch.sort(items, stable=True).indices
        # The rows of the users, whose neighbours are items, then those of the items.
        columns = torch.cat([items + n_users, users[by_item]])
        scale = degrees.to(torch.float64).rsqrt()
        weights = scale[users.long()] * scale[n_users + items.long()]
        row_starts = torch.cat(
            [torch.zeros(1, dtype=torch.int64, device=device), degrees.cumsum(0)]
        )
        weights = torch.cat([weights, weights[by_item]])
        super().__init__(row_starts, columns, weights.to(dtype or torch.get_default_dtype()))

    @property
    def n_nodes(self) -> int:
        """Users and items together."""
        return self.n_users + self.n_items


class _Polynomial(Function):
    """Its backward is the same polynomial of the transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, graph: Graph, coefficients: Sequence[float]) -> Tensor:
        ctx.graph, ctx.coefficients = graph, coefficients
        return graph.evaluate(x, coefficients)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        total = ctx.graph.transposed.evaluate(gradient.contiguous(), ctx.coefficients)
        return total, None, None
