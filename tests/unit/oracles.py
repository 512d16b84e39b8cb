"""Dense matrices in place of graphs, and distributions, to compare the package with."""

import numpy as np
import numpy.typing as npt
import pytest
from torch import Tensor

Matrix = npt.NDArray[np.float64]


def normalised_adjacency(shape: tuple[int, int], *edges: tuple[Tensor, Tensor]) -> Matrix:
    """D^-1/2 A D^-1/2, where D are the degrees; a node without an edge has a row of zeros.

    Args:
        shape: number of users and of items; the nodes are the users, then the items.
        edges: codes of users and items.
    """
    n_users, n = shape[0], sum(shape)
    adjacency = np.zeros((n, n))
    for users, items in edges:
        adjacency[users.numpy(), n_users + items.numpy()] = 1
    adjacency += adjacency.T
    degrees = adjacency.sum(1)
    scale = np.divide(1, np.sqrt(degrees), where=degrees > 0, out=np.zeros(n))
    adjacency *= scale[:, None] * scale
    return adjacency


def smoothing(matrix: Matrix, layers: int) -> Matrix:
    """The mean of its powers, from 0 to ``layers``: what LightGCN multiplies embeddings by."""
    mean: Matrix = np.mean([np.linalg.matrix_power(matrix, k) for k in range(layers + 1)], axis=0)
    return mean


def assert_xavier_normal(matrix: Tensor) -> None:
    """Deviation and extremes are those of N(0, 2 / (rows + columns)), not those of a uniform."""
    deviation = (2 / sum(matrix.shape)) ** 0.5
    matrix = matrix.detach()
    assert matrix.std().item() == pytest.approx(deviation, rel=0.05)
    assert matrix.abs().max().item() > 2.5 * deviation  # a uniform one ends at 1.73 of it
