from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import normalised_adjacency, smoothing
from scipy.stats import chisquare
from training_data import UNRATED, data_of, random_labels

from refine.artifacts import CONFIRMED, LABELS, POSITIVE
from refine.data import Pairs, TrainingData
from refine.models.signed import SignedBatch
from refine.models.sigrec import SiGRec, SiGRecBatch, SiGRecHyperparameters
from refine.sampling import NegativeSampler, SamplingSettings

N_USERS, N_ITEMS = 8, 10
PARAMETERS = SiGRecHyperparameters(
    batch_size=6,
    learning_rate=0.01,
    regularisation=0.3,
    dimension=6,
    layers=3,
    negatives=2,
    disliked_weight=0.7,
    disliked_margin=0.2,
    unrated_weight=1.3,
    unrated_margin=-0.1,
)


def small_data() -> TrainingData:
    labels = random_labels(0, N_USERS, N_ITEMS, rated=0.6)
    labels[3, labels[3] == LABELS.index(CONFIRMED)] = UNRATED  # a user without dislikes
    labels[:, 4] = LABELS.index(POSITIVE)  # an item that nobody dislikes
    labels[:, 5] = LABELS.index(CONFIRMED)  # and one that nobody likes
    return data_of(labels)


def new_model(data: TrainingData, **changes: object) -> SiGRec:
    parameters = replace(PARAMETERS, **changes)
    return SiGRec(data, parameters, torch.Generator().manual_seed(0))


def propagated(pairs: Pairs, table: np.ndarray, layers: int) -> np.ndarray:
    adjacency = normalised_adjacency((N_USERS, N_ITEMS), pairs)
    assert not adjacency.any(1).all()  # some nodes have no edge
    return smoothing(adjacency, layers) @ table


def reference_embeddings(model: SiGRec, data: TrainingData) -> np.ndarray:
    halves = [
        propagated(pairs, table.detach().numpy(), model.hyperparameters.layers)
        for pairs, table in ((data.positives, model.liking), (data.confirmed, model.disliking))
    ]
    return np.hstack(halves)


def some_batch() -> SiGRecBatch:
    """Users and items repeat, within the likes and between likes and dislikes."""
    likes = SignedBatch(
        users=torch.tensor([0, 3, 3, 6]),
        items=torch.tensor([4, 0, 4, 1]),
        signs=torch.ones(4),
        negatives=torch.tensor([[9, 9], [7, 1], [5, 2], [2, 9]]),
        seed=0,
    )
    dislikes = torch.tensor([[0, 6, 7], [5, 5, 2]]) + torch.tensor([[0], [N_USERS]])
    return SiGRecBatch(likes, dislikes)


def reference_loss(model: SiGRec, data: TrainingData) -> float:
    z = reference_embeddings(model, data)
    batch, p = some_batch(), model.hyperparameters

    def cosine(user: int, item: int) -> float:
        a, b = z[user], z[N_USERS + item]
        return a @ b / np.sqrt(a @ a) / np.sqrt(b @ b)

    likes = list(zip(batch.likes.users.tolist(), batch.likes.items.tolist(), strict=True))
    unrated = [
        (user, item)
        for (user, _), items in zip(likes, batch.likes.negatives.tolist(), strict=True)
        for item in items
    ]
    dislikes = [(user, node - N_USERS) for user, node in batch.dislikes.T.tolist()]
    loss = np.mean([1 - cosine(*pair) for pair in likes])
    loss += p.disliked_weight * np.mean(
        [max(0, cosine(*pair) - p.disliked_margin) for pair in dislikes]
    )
    loss += p.unrated_weight * np.mean(
        [max(0, cosine(*pair) - p.unrated_margin) for pair in unrated]
    )
    pairs = likes + unrated + dislikes
    nodes = {user for user, _ in pairs} | {N_USERS + item for _, item in pairs}
    tables = np.hstack([model.liking.detach().numpy(), model.disliking.detach().numpy()])
    return loss + p.regularisation / 2 / len(likes) * sum((tables[n] ** 2).sum() for n in nodes)


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("layers", [0, 3])
def test_both_halves_are_those_of_dense_matrices(layers: int) -> None:
    data = small_data()
    model = new_model(data, layers=layers)
    z = reference_embeddings(model, data)
    expected = z / np.linalg.norm(z, axis=1, keepdims=True)
    np.testing.assert_allclose(model.directions().detach(), expected, rtol=0, atol=1e-14)


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("margin", [-0.5, 0.2, 1.0])
def test_the_loss_is_that_of_the_formula(margin: float) -> None:
    data = small_data()
    model = new_model(data, disliked_margin=margin)
    expected = reference_loss(model, data)
    np.testing.assert_allclose(model.loss(some_batch()).item(), expected, rtol=1e-12)


@pytest.mark.usefixtures("_double")
def test_the_gradient_is_that_of_finite_differences() -> None:
    model, batch = new_model(small_data()), some_batch()
    parameters = list(model.parameters())
    assert torch.autograd.gradcheck(lambda *_: model.loss(batch), parameters, atol=1e-7, rtol=0)


def test_the_margins_say_which_dislikes_and_unrated_items_count() -> None:
    batch = some_batch()

    def loss(**changes: float) -> float:
        return new_model(small_data(), **changes).loss(batch).item()

    ignored = loss(disliked_weight=0.0, unrated_weight=0.0)
    assert loss(disliked_margin=1.0, unrated_margin=1.0) == pytest.approx(ignored, abs=1e-6)
    assert loss(disliked_margin=-1.0, unrated_weight=0.0) > ignored
    assert loss(unrated_margin=-1.0, disliked_weight=0.0) > ignored


def test_nothing_needs_to_be_disliked() -> None:
    labels = random_labels(0, N_USERS, N_ITEMS)
    labels[labels == LABELS.index(CONFIRMED)] = UNRATED
    data = data_of(labels)
    model, sampler = new_model(data), NegativeSampler(data, SamplingSettings())
    for batch in model.batches(sampler, torch.Generator().manual_seed(0)):
        assert batch.dislikes.shape == (2, 0)
        loss = model.loss(batch)
        loss.backward()
        assert bool(loss.isfinite())
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters())


def test_an_epoch_holds_every_like_and_dislike_once() -> None:
    data = small_data()
    model = new_model(data)
    sampler = NegativeSampler(data, SamplingSettings())
    generator = torch.Generator().manual_seed(3)
    start = generator.get_state()
    epoch = list(model.batches(sampler, generator))

    likes = torch.cat([torch.stack(batch.likes[:2]) for batch in epoch], dim=1)
    dislikes = torch.cat([batch.dislikes for batch in epoch], dim=1)
    dislikes[1] -= N_USERS
    for found, pairs in ((likes, data.positives), (dislikes, data.confirmed)):
        expected = torch.stack(pairs).T.tolist()
        assert found.T.tolist() != expected
        assert sorted(found.T.tolist()) == expected
    assert [len(batch.likes.users) for batch in epoch[:-1]] == [6] * (len(epoch) - 1)
    sizes = [batch.dislikes.shape[1] for batch in epoch]
    assert max(sizes) - min(sizes) <= 1

    after = generator.get_state()
    generator.set_state(start)
    next(model.batches(sampler, generator))
    assert torch.equal(generator.get_state(), after)


def test_unrated_items_are_drawn_uniformly() -> None:
    data = small_data()
    model = new_model(data, negatives=3000)
    counts = np.zeros((N_USERS, N_ITEMS), dtype=np.int64)
    sampler = NegativeSampler(data, SamplingSettings())
    for batch in model.batches(sampler, torch.Generator().manual_seed(0)):
        for user, items in zip(batch.likes.users, batch.likes.negatives, strict=True):
            counts[user] += np.bincount(items, minlength=N_ITEMS)
    rated = np.zeros((N_USERS, N_ITEMS), dtype=bool)
    rated[data.rated.users, data.rated.items] = True
    assert not counts[rated].any()
    for of_user, not_rated in zip(counts, ~rated, strict=True):
        assert not_rated.sum() == 1 or chisquare(of_user[not_rated]).pvalue > 1e-3


def test_scores_are_cosines_and_do_not_change_later() -> None:
    data = small_data()
    model = new_model(data)
    score, block = model.scorer(), torch.tensor([5, 2])
    z = model.directions().detach()
    expected = torch.cosine_similarity(z[block].unsqueeze(1), z[N_USERS:].unsqueeze(0), dim=2)
    torch.testing.assert_close(score(block), expected)
    items = model.item_embeddings()
    torch.testing.assert_close(items.norm(dim=1), torch.ones(N_ITEMS))
    model.liking.data.add_(1.0)
    torch.testing.assert_close(score(block), expected)


def test_both_halves_are_as_wide() -> None:
    with pytest.raises(ValueError, match="dimension must be even, not 7"):
        replace(PARAMETERS, dimension=7)
