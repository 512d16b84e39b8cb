"""Sparse matrices whose values come and go while the places stay: attention, mostly.

Nothing here holds a row of embeddings per pair: of p pairs of n nodes in d dimensions, a product
takes p + n d numbers and not p d.
"""

import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from refine.graph import row_starts, weighted_sums


class NodePairs(NamedTuple):
    """Pairs (a, b) of nodes, ascending by source a; a pair may occur more than once.

    With a value per pair this is a sparse matrix, of which a is the row and b the column.

    Attributes:
        sources: a; int32 [p].
        targets: b; int32 [p].
        starts: the first pair of each node, then p; int32 [nodes + 1].
    """

    sources: Tensor
    targets: Tensor
    starts: Tensor

    def products(self, left: Tensor, right: Tensor) -> Tensor:
        """The inner product of row a of ``left`` and row b of ``right``, of each pair: [p].

        Args:
            left: floating point [nodes, d].
            right: floating point [nodes, d].
        """
        # To PyTorch, a matrix has no more values than cells.
        missing = math.ceil(len(self.targets) / len(left)) - len(right)
        if missing > 0:
            right = F.pad(right, (0, 0, 0, missing))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            matrix = torch.sparse_csr_tensor(
                self.starts,
                self.targets,
                left.new_zeros(len(self.targets)),
                (len(left), len(right)),
                check_invariants=False,
            )
        # Its own result, or it would copy the places. Zeros, as even 0 times NaN is NaN.
        torch.sparse.sampled_addmm(matrix, left, right.T, beta=0.0, out=matrix)
        return matrix.values()

    def multiply(self, values: Tensor, x: Tensor) -> Tensor:
        """Sum over the pairs of each a of value times row b of x: [nodes, d]."""
        return weighted_sums(self.starts, self.targets, values, x)

    def sums(self, values: Tensor) -> Tensor:
        """Sum of the values of the pairs of each a: [p] -> [nodes]."""
        return torch.segment_reduce(values, "sum", offsets=self.starts.long())

    def spread(self, x: Tensor) -> Tensor:
        """The entry of a, of each pair: [nodes] -> [p]."""
        return x.index_select(0, self.sources)

    def reversed(self) -> tuple["NodePairs", Tensor]:
        """The pairs (b, a), ascending by b, and which pair each of them was: int64 [p]."""
        sources, order = torch.sort(self.targets, stable=True)
        starts = row_starts(sources, len(self.starts) - 1)
        return NodePairs(sources, self.sources.index_select(0, order), starts), order


def inner_products(x: Tensor, pairs: NodePairs) -> Tensor:
    """The inner product of rows a and b of each pair; [nodes, d] -> [p], differentiable in x."""
    products: Tensor = _InnerProducts.apply(x, pairs)  # type: ignore[no-untyped-call]
    return products


class _InnerProducts(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, pairs: NodePairs) -> Tensor:
        ctx.save_for_backward(x, *pairs)
        return pairs.products(x, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        x, *pairs = ctx.saved_tensors
        forth = NodePairs(*pairs)
        back, order = forth.reversed()
        total = forth.multiply(gradient, x)
        return total.add_(back.multiply(gradient.index_select(0, order), x)), None
