import numpy as np
import pytest
import torch
from training_data import data_of, random_labels

from refine.artifacts import FALSELY_IDENTIFIED, LABELS, POSITIVE
from refine.data import Pairs, TrainingData
from refine.models import sparse
from refine.models.ease import EASE, EASEHyperparameters

N_USERS, N_ITEMS = 8, 10
WEIGHTS = (0.2, -0.4, 0.7, 1.0, 1.2)


def small_data() -> TrainingData:
    return data_of(random_labels(1, N_USERS, N_ITEMS, rated=0.7))


def matrix(data: TrainingData, weights: tuple[float, ...] | None) -> np.ndarray:
    x = np.zeros((N_USERS, N_ITEMS))
    columns = (*data.rated, data.ratings, data.labels)
    for user, item, stars, label in zip(*(c.tolist() for c in columns), strict=True):
        if weights is None:
            x[user, item] = LABELS[label] in (POSITIVE, FALSELY_IDENTIFIED)
        else:
            x[user, item] = weights[stars - 1]
    return x


def regressions(x: np.ndarray, ridge: float) -> np.ndarray:
    """Each item's ridge regression on the others, one at a time."""
    b = np.zeros((x.shape[1],) * 2)
    for j in range(x.shape[1]):
        others = [i for i in range(x.shape[1]) if i != j]
        rest = x[:, others]
        normal = rest.T @ rest + ridge * np.eye(len(others))
        b[others, j] = np.linalg.solve(normal, rest.T @ x[:, j])
    return b


@pytest.mark.parametrize("ridge", [0.1, 20.0])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("items_at_once", [3, N_ITEMS])
def test_each_item_is_regressed_on_the_others(
    monkeypatch: pytest.MonkeyPatch,
    ridge: float,
    weights: tuple[float, ...] | None,
    items_at_once: int,
) -> None:
    monkeypatch.setattr(sparse, "_BLOCK_CELLS", items_at_once * (N_USERS + N_ITEMS))
    data = small_data()
    model = EASE(data, EASEHyperparameters(ridge, weights), torch.Generator())
    model.fit()
    x = matrix(data, weights)
    b = regressions(x, ridge)
    [(name, coefficients)] = model.state_dict().items()
    assert (name, coefficients.dtype) == ("coefficients", torch.float32)
    np.testing.assert_allclose(coefficients, b, rtol=1e-6, atol=1e-7)
    assert not coefficients.diagonal().any()
    users = torch.tensor([1, 6])
    np.testing.assert_allclose(model.scorer()(users), (x @ b)[users], rtol=0, atol=1e-5)


def test_ratings_count_whatever_their_labels() -> None:
    labels = random_labels(1, N_USERS, N_ITEMS)
    data = data_of(labels)
    relabelled = TrainingData(
        data.n_users,
        data.n_items,
        data.rated,
        data.ratings,
        data.labels.flip(0),
        data.validation,
    )
    first, second = (
        EASE(each, EASEHyperparameters(weights=WEIGHTS), torch.Generator())
        for each in (data, relabelled)
    )
    for model in (first, second):
        model.fit()
    assert first.coefficients.any()
    assert torch.equal(first.coefficients, second.coefficients)


def test_weights_read_from_a_file_are_the_same_hyperparameters() -> None:
    assert EASEHyperparameters(weights=list(WEIGHTS)) == EASEHyperparameters(weights=WEIGHTS)


@pytest.mark.parametrize("weights", [(1.0,) * 4, (1.0,) * 6, (0.0, 0.0, 0.0, 1.0, np.inf)])
def test_weights_are_five_numbers(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="weights must be 5 numbers"):
        EASEHyperparameters(weights=weights)


def test_a_catalogue_that_is_too_large_is_refused_before_anything_is_allocated() -> None:
    none = Pairs(*(torch.zeros(0, dtype=torch.int32) for _ in range(2)))
    empty = torch.zeros(0, dtype=torch.int8)
    data = TrainingData(4, 1_000_000, none, empty, empty, none)
    with pytest.raises(ValueError, match="32000 GB of memory for 1000000 items"):
        EASE(data, EASEHyperparameters(), torch.Generator())
