import numpy as np
import pytest
import torch
from training_data import data_of, random_labels

from refine.models.bpr_mf import MatrixFactorisation, MatrixFactorisationHyperparameters

N_USERS, N_ITEMS = 8, 10
PARAMETERS = MatrixFactorisationHyperparameters(regularisation=0.3, dimension=5)
# User 1 occurs twice, and item 3 is positive in one pair, negative in another.
TRIPLES = [(0, 3, 6), (1, 0, 3), (1, 2, 9), (4, 5, 6)]


def new_model() -> MatrixFactorisation:
    data = data_of(random_labels(1, N_USERS, N_ITEMS))
    return MatrixFactorisation(data, PARAMETERS, torch.Generator().manual_seed(0))


def expected_loss(embedding: np.ndarray) -> float:
    users, items = embedding[:N_USERS], embedding[N_USERS:]
    total, seen = 0.0, set()
    for user, liked, other in TRIPLES:
        margin = users[user] @ items[liked] - users[user] @ items[other]
        total -= np.log(1 / (1 + np.exp(-margin)))
        seen |= {user, N_USERS + liked, N_USERS + other}
    norm = sum(float(embedding[node] @ embedding[node]) for node in seen)
    return (total + PARAMETERS.regularisation * norm) / len(TRIPLES)


@pytest.mark.usefixtures("_double")
def test_the_loss_is_that_of_bpr_and_so_is_its_gradient() -> None:
    model = new_model()
    batch = torch.tensor(TRIPLES).T + torch.tensor([[0], [N_USERS], [N_USERS]])
    loss = model.loss(batch)
    loss.backward()
    embedding = model.embedding.detach().numpy().copy()
    assert loss.item() == pytest.approx(expected_loss(embedding), abs=1e-12)

    gradient, step = np.zeros_like(embedding), 1e-6
    for place in np.ndindex(embedding.shape):
        above, below = embedding.copy(), embedding.copy()
        above[place] += step
        below[place] -= step
        gradient[place] = (expected_loss(above) - expected_loss(below)) / (2 * step)
    np.testing.assert_allclose(model.embedding.grad, gradient, rtol=0, atol=1e-8)


def test_scores_are_inner_products_and_do_not_change_later() -> None:
    model = new_model()
    score, items, block = model.scorer(), model.item_embeddings(), torch.tensor([5, 2])
    users, expected_items = model.embedding.detach().clone().split([N_USERS, N_ITEMS])
    model.embedding.data.add_(1.0)
    torch.testing.assert_close(score(block), users[block] @ expected_items.T)
    assert torch.equal(items, expected_items)
    assert not items.requires_grad
    assert model.state_dict().keys() == {"embedding"}


def test_there_are_no_layers() -> None:
    with pytest.raises(ValueError, match="layers must be within"):
        MatrixFactorisationHyperparameters(layers=1)
