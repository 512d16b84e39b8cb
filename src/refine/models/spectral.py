"""Where nodes are in a signed graph, by its spectrum (SIGformer, SIGIR 2024)."""

from typing import TypeAlias

import numpy as np
import torch
from scipy.linalg import eigh
from scipy.sparse import csr_array
from scipy.sparse.linalg import eigsh
from torch import Tensor

from refine.models.signed import SignedPairs

Codes: TypeAlias = np.ndarray[tuple[int], np.dtype[np.int32]]

_FEW_NODES = 256  # up to which all eigenvectors are computed at once


def low_eigenvectors(
    edges: SignedPairs, n_users: int, n_items: int, alpha: float, count: int
) -> Tensor:
    """The eigenvectors of the smallest eigenvalues of the signed Laplacian.

    It is L = (L+ + alpha L-) / (1 + alpha), with L+ = I - D^-1/2 A D^-1/2 of the likes and L- that
    of the dislikes; a node without edges has a row of I. Here alpha is that of the official code;
    the paper's is -alpha.

    Args:
        edges: likes and dislikes; the nodes are the users, then the items.
        n_users: number of users.
        n_items: number of items.
        alpha: above -1; positive if dislikes, too, shall keep nodes near each other.
        count: number of eigenvectors; or all of them, if there are fewer.

    Returns:
        float64 [nodes, count]; the largest entry of each is positive. The same whenever called with
        the same number of BLAS threads, which add up in different orders.
    """
    n_nodes = n_users + n_items
    count = min(count, n_nodes)
    users, items, signs = (codes.cpu().numpy() for codes in edges)
    likes, dislikes = (
        _normalised(users[signs == sign], items[signs == sign] + n_users, n_nodes)
        for sign in (1, -1)
    )
    # The smallest eigenvalues of L = I - A are the largest of A.
    adjacency = (likes + alpha * dislikes) / (1 + alpha)
    if n_nodes <= max(_FEW_NODES, 2 * count):
        _, vectors = eigh(adjacency.toarray(), subset_by_index=[n_nodes - count, n_nodes - 1])
    else:
        start = np.random.default_rng(0).uniform(-1, 1, n_nodes)
        _, vectors = eigsh(adjacency, count, which="LA", v0=start)
    largest = np.abs(vectors).argmax(0)
    return torch.from_numpy(vectors * np.sign(vectors[largest, np.arange(count)]))


def _normalised(users: Codes, items: Codes, n_nodes: int) -> csr_array:
    """D^-1/2 A D^-1/2 of the edges between these nodes."""
    sources, targets = np.concatenate([users, items]), np.concatenate([items, users])
    degrees = np.bincount(sources, minlength=n_nodes)
    weights = 1 / np.sqrt(degrees[sources] * degrees[targets])
    return csr_array((weights, (sources, targets)), shape=(n_nodes, n_nodes))
