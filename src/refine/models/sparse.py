"""A sparse matrix and the products that models of co-occurring items are made of."""

from collections.abc import Iterator

import torch
from torch import Tensor

from refine.data import Pairs
from refine.graph import row_starts, weighted_sums

_BLOCK_CELLS = 2**22  # dense numbers held at once


class SparseMatrix:
    """A matrix of users and items in CSR; a pair that it has no entry of is 0.

    Attributes:
        shape: rows and columns.
        rows: int64 [n], ascending.
        columns: int64 [n].
        values: floating point [n].
    """

    def __init__(self, entries: Pairs, values: Tensor, shape: tuple[int, int]) -> None:
        """Builds the matrix.

        Args:
            entries: row and column of each entry, ascending by row.
            values: of the entries, floating point [n].
            shape: rows and columns.
        """
        self.shape = shape
        self.rows, self.columns = entries.users.long(), entries.items.long()
        self.values = values
        self._starts = row_starts(self.rows, shape[0])

    def transposed(self) -> "SparseMatrix":
        """The same with rows and columns exchanged."""
        order = torch.sort(self.columns, stable=True).indices
        entries = Pairs(self.columns[order], self.rows[order])
        return SparseMatrix(entries, self.values[order], self.shape[::-1])

    def dense(self, rows: Tensor) -> Tensor:
        """Some rows, laid out: int64 [b] -> floating point [b, columns]."""
        first, last = self._starts[rows], self._starts[rows + 1]
        counts = last - first
        place = torch.repeat_interleave(counts)
        before = counts.cumsum(0) - counts
        entry = torch.arange(len(place), device=rows.device) + (first - before)[place]
        laid_out = self.values.new_zeros(len(rows), self.shape[1])
        laid_out[place, self.columns[entry]] = self.values[entry]
        return laid_out

    def multiply(self, x: Tensor) -> Tensor:
        """The product with a dense matrix: [columns, d] -> [rows, d]."""
        return weighted_sums(self._starts, self.columns, self.values, x)

    def gram(self) -> Iterator[tuple[Tensor, Tensor]]:
        """X^T X in blocks of rows, each summed up in the order of X's rows, whatever the blocks.

        Yields:
            Which of its rows, int64 [b], and the rows, floating point [b, columns].
        """
        by_column = self.transposed()
        codes = torch.arange(self.shape[1], device=self.columns.device)
        for block in torch.split(codes, max(1, _BLOCK_CELLS // sum(self.shape))):
            yield block, by_column.multiply(by_column.dense(block).T.contiguous()).T
