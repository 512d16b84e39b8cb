import numpy as np
import pytest
import torch
from oracles import normalised_adjacency
from training_data import data_of, random_labels

from refine.models.signed import SignedPairs, signed_pairs
from refine.models.spectral import low_eigenvectors


def some_edges(n_users: int, n_items: int) -> SignedPairs:
    labels = random_labels(5, n_users, n_items, rated=0.2)
    labels[3] = -1  # a user without ratings; the last item has none, either
    return signed_pairs(data_of(labels))


def laplacian(edges: SignedPairs, n_users: int, n_items: int, alpha: float) -> np.ndarray:
    def of_sign(sign: int) -> np.ndarray:
        pairs = edges.users[edges.signs == sign], edges.items[edges.signs == sign]
        return np.eye(n_users + n_items) - normalised_adjacency((n_users, n_items), pairs)

    return (of_sign(1) + alpha * of_sign(-1)) / (1 + alpha)


@pytest.mark.parametrize("alpha", [-0.8, 0.0, 0.4])
@pytest.mark.parametrize(("n_users", "n_items"), [(30, 20), (230, 170)])  # all at once; iteratively
def test_the_vectors_belong_to_the_smallest_eigenvalues(
    n_users: int, n_items: int, alpha: float
) -> None:
    edges = some_edges(n_users, n_items)
    matrix = laplacian(edges, n_users, n_items, alpha)
    values, vectors = np.linalg.eigh(matrix)
    found = low_eigenvectors(edges, n_users, n_items, alpha, 12).numpy()
    assert found.shape == (n_users + n_items, 12)
    np.testing.assert_allclose(found.T @ found, np.eye(12), atol=1e-10)
    np.testing.assert_allclose(
        np.sort((found * (matrix @ found)).sum(0)), values[:12], rtol=0, atol=1e-10
    )
    assert values[12] - values[11] > 1e-6  # so that the space is unique
    expected = vectors[:, :12] @ vectors[:, :12].T
    np.testing.assert_allclose(found @ found.T, expected, rtol=0, atol=1e-7)
    assert (found.max(0) == np.abs(found).max(0)).all()

    again = low_eigenvectors(edges, n_users, n_items, alpha, 12)
    assert torch.equal(again, torch.from_numpy(found))


def test_a_small_graph_has_as_many_vectors_as_nodes() -> None:
    assert low_eigenvectors(some_edges(5, 4), 5, 4, 0.0, 64).shape == (9, 9)
