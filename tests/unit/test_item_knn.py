import numpy as np
import pytest
import torch
from training_data import UNRATED, data_of, random_labels

from refine.artifacts import CONFIRMED, FALSELY_IDENTIFIED, LABELS, POSITIVE, UNDECIDED
from refine.data import TrainingData
from refine.models import sparse
from refine.models.item_knn import ItemKNN, ItemKNNHyperparameters

N_USERS, N_ITEMS = 8, 10
LIKED = [LABELS.index(POSITIVE), LABELS.index(FALSELY_IDENTIFIED)]


def labels() -> np.ndarray:
    """Random labels; user 2 likes nothing, and nobody likes item 4 or has rated item 9."""
    table = random_labels(3, N_USERS, N_ITEMS, rated=0.8)
    table[2, np.isin(table[2], LIKED)] = LABELS.index(CONFIRMED)
    table[np.isin(table[:, 4], LIKED), 4] = LABELS.index(UNDECIDED)
    assert (table[:, 9] == UNRATED).all()
    return table


def fitted(data: TrainingData, **hyperparameters: float) -> ItemKNN:
    model = ItemKNN(data, ItemKNNHyperparameters(**hyperparameters), torch.Generator())
    model.fit()
    return model


def neighbour_lists(x: np.ndarray, k: int, shrinkage: float) -> list[list[tuple[int, float]]]:
    """The k nearest neighbours of each item and their similarities, one pair after the other."""
    lists = []
    for i in range(x.shape[1]):
        similar = []
        for j in range(x.shape[1]):
            product = np.sqrt(x[:, i].sum()) * np.sqrt(x[:, j].sum()) + shrinkage
            together = float(x[:, i] @ x[:, j])
            similar.append((j, together / product if together else 0.0))
        del similar[i]
        lists.append(sorted(similar, key=lambda pair: (-pair[1], pair[0]))[:k])
    return lists


@pytest.mark.parametrize("k", [1, 3, N_ITEMS - 1, 25])
@pytest.mark.parametrize("shrinkage", [0.0, 0.5, 7.0])
@pytest.mark.parametrize("items_at_once", [3, N_ITEMS])
def test_scores_are_sums_over_the_liked_neighbours(
    monkeypatch: pytest.MonkeyPatch, k: int, shrinkage: float, items_at_once: int
) -> None:
    monkeypatch.setattr(sparse, "_BLOCK_CELLS", items_at_once * (N_USERS + N_ITEMS))
    table = labels()
    x = np.isin(table, LIKED).astype(np.float64)
    # Equal as fractions can differ in the last digit, here as there.
    lists = neighbour_lists(x.astype(np.float32), k, np.float32(shrinkage))
    expected = np.zeros((N_USERS, N_ITEMS))
    for user in range(N_USERS):
        for item in range(N_ITEMS):
            expected[user, item] = sum(s for i, s in lists[item] if x[user, i])

    model = fitted(data_of(table), neighbours=k, shrinkage=shrinkage)
    users = torch.tensor([0, 2, 5])
    np.testing.assert_allclose(model.scorer()(users), expected[users], rtol=0, atol=1e-6)
    assert not model.scorer()(torch.tensor([2])).any()
    assert model.neighbours.dtype == torch.int32
    assert model.neighbours.shape == model.similarities.shape == (N_ITEMS, k)
    real = min(k, N_ITEMS - 1)
    assert model.neighbours[:, :real].tolist() == [[i for i, _ in row] for row in lists]
    assert not model.similarities[:, real:].any()


def test_of_equally_similar_items_the_lower_codes_are_kept() -> None:
    table = np.full((3, 5), LABELS.index(POSITIVE))
    table[0, 4] = LABELS.index(CONFIRMED)
    model = fitted(data_of(table), neighbours=2)
    assert model.neighbours.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1]]
    torch.testing.assert_close(model.similarities[3], torch.ones(2))
    torch.testing.assert_close(model.similarities[4], torch.full((2,), 2 / 6**0.5))
