"""An autoencoder of 0/1 matrices most of whose rows are empty, at the cost of the others.

Equal rows have the same code and the same reconstruction. So those of the empty rows are computed
once and weighted by their number, and likewise those of the rows that have the same single entry;
longer rows are not compared. That saves time and changes no result.
"""

from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from refine.models.fusion import linear


class DistinctRows(NamedTuple):
    """A 0/1 matrix X by its distinct rows, the last of which, and no other, is empty.

    Equal rows of two or more entries may be here more than once.

    Attributes:
        of_row: which of the distinct rows each row of X is; int64 [rows of X].
        weights: how many rows of X each distinct one is; floating point [k + 1].
        starts: where the entries of each distinct row begin; int64 [k + 1].
        columns: of the entries, one distinct row after another; int64 [m].
        places: the distinct row that each entry is in; int64 [m].
    """

    of_row: Tensor
    weights: Tensor
    starts: Tensor
    columns: Tensor
    places: Tensor


def distinct_rows(
    matrices: Tensor, rows: Tensor, columns: Tensor, n_matrices: int, shape: tuple[int, int]
) -> Iterator[DistinctRows]:
    """The distinct rows of several matrices, one after another.

    Rows with one entry are compared; those with more are taken to be distinct, as nearly all are.

    Args:
        matrices: number of the matrix that each entry is in, int64 [m].
        rows: of the entries, int64 [m].
        columns: of the entries, int64 [m].
        n_matrices: number of matrices.
        shape: rows and columns of each.
    """
    n_rows, n_columns = shape
    _, row_of, counts = torch.unique(
        matrices * n_rows + rows, return_inverse=True, return_counts=True
    )
    alone = counts[row_of] == 1
    # Rows with one entry go by their column, so that equal ones come together under one name.
    names = matrices * (n_rows + n_columns) + torch.where(alone, n_rows + columns, rows)
    names, order = torch.sort(names, stable=True)
    matrices, rows, columns, alone = (x[order] for x in (matrices, rows, columns, alone))
    first = torch.ones_like(alone)
    first[1:] = names[1:] != names[:-1]
    places = first.cumsum(0) - 1
    # Under one name there are the entries of one row, or one entry that several rows share.
    entries, members = first | ~alone, first | alone

    def bounds(some: Tensor) -> Iterator[tuple[int, int]]:
        sizes = torch.bincount(matrices[some], minlength=n_matrices)
        return pairwise(accumulate(sizes.tolist(), initial=0))

    starts = F.pad(torch.bincount(places[entries]).cumsum(0), (1, 0))
    weights = torch.bincount(places[members]).to(torch.get_default_dtype())
    columns, entry_places = columns[entries], places[entries]
    rows, row_places = rows[members], places[members]
    for (a, b), (c, d), (e, f) in zip(bounds(first), bounds(entries), bounds(members), strict=True):
        of_row = torch.full((n_rows,), b - a, device=rows.device)
        yield DistinctRows(
            of_row.index_copy_(0, rows[e:f], row_places[e:f] - a),
            F.pad(weights[a:b], (0, 1), value=n_rows - (f - e)),
            starts[a : b + 1] - c,
            columns[c:d],
            entry_places[c:d] - a,
        )


class Autoencoder(nn.Module):
    """H = W2 ReLU(W1 X + b1) + b2 and X' = sigmoid(W4 ReLU(W3 H + b3) + b4), row by row."""

    def __init__(
        self, n_columns: int, hidden: int, dimension: int, generator: torch.Generator
    ) -> None:
        """Draws the weights, Xavier-uniform, and the biases, as PyTorch does by default.

        Args:
            n_columns: of X.
            hidden: units of both hidden layers.
            dimension: of the codes H.
            generator: on whose device all will be.
        """
        super().__init__()
        first = linear(n_columns, hidden, generator)
        self.to_code = linear(hidden, dimension, generator)
        self.from_code = linear(dimension, hidden, generator)
        self.last = linear(hidden, n_columns, generator)
        for layer in (first, self.to_code, self.from_code, self.last):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
        # Transposed: a row of X adds up some rows of it.
        self.first_weight = nn.Parameter(first.weight.detach().T.contiguous())
        self.first_bias = first.bias

    def codes(self, x: DistinctRows) -> Tensor:
        """H of the distinct rows of X, [k + 1, d]."""
        sums = F.embedding_bag(x.columns, self.first_weight, x.starts, mode="sum")
        codes: Tensor = self.to_code(F.relu(sums + self.first_bias))
        return codes

    def reconstruction_loss(self, codes: Tensor, x: DistinctRows) -> Tensor:
        """The mean binary cross-entropy of X' and X over all entries of X.

        Args:
            codes: H of the distinct rows of X, [k + 1, d].
            x: X.
        """
        logits = self.last(F.relu(self.from_code(codes)))
        loss: Tensor = _CrossEntropy.apply(logits, x)  # type: ignore[no-untyped-call]
        return loss


class _CrossEntropy(Function):
    """The mean of softplus(logit) - x logit, whose slope is sigmoid(logit) - x."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: DistinctRows) -> Tensor:
        n_columns = logits.shape[1]
        entries = x.places * n_columns + x.columns
        ctx.scale = 1 / (len(x.of_row) * n_columns)
        ctx.slopes = torch.sigmoid(logits)
        ctx.slopes.view(-1)[entries] -= 1
        ctx.slopes *= x.weights.unsqueeze(1)
        total = x.weights @ F.softplus(logits).sum(1)
        total -= x.weights[x.places] @ logits.view(-1)[entries]
        total *= ctx.scale
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.slopes * (gradient * ctx.scale), None
