from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import assert_xavier_normal, normalised_adjacency
from training_data import UNRATED, data_of, planted, random_labels

from refine.artifacts import CONFIRMED, FALSELY_IDENTIFIED, LABELS, POSITIVE, UNDECIDED
from refine.data import Pairs, TrainingData
from refine.models.lsgrec import LSGRec, LSGRecHyperparameters
from refine.models.signed import SignedBatch
from refine.sampling import NegativeSampler, SamplingSettings

N_USERS, N_ITEMS = 8, 10
PARAMETERS = LSGRecHyperparameters(
    batch_size=7, learning_rate=0.01, regularisation=0.3, dimension=3, layers=3, negatives=2
)


def small_data() -> TrainingData:
    labels = random_labels(0, N_USERS, N_ITEMS, rated=0.6)
    labels[3, labels[3] == LABELS.index(CONFIRMED)] = UNRATED  # a user without dislikes
    labels[:, 4] = LABELS.index(POSITIVE)  # an item that nobody dislikes
    labels[:, 5] = LABELS.index(CONFIRMED)  # and one that nobody likes
    data = data_of(labels)
    ratings = np.where(data.labels == LABELS.index(POSITIVE), 4, 1)
    ratings += np.random.default_rng(0).integers(0, 2, len(ratings))
    return replace(data, ratings=torch.from_numpy(ratings.astype(np.int8)))


def new_model(data: TrainingData, **changes: object) -> LSGRec:
    parameters = replace(PARAMETERS, **changes)
    return LSGRec(data, parameters, torch.Generator().manual_seed(0))


def normalised(pairs: Pairs) -> np.ndarray:
    adjacency = normalised_adjacency((N_USERS, N_ITEMS), pairs)
    assert not adjacency.any(1).all()  # some nodes have no edge
    return adjacency


def reference_embeddings(model: LSGRec, data: TrainingData) -> tuple[np.ndarray, np.ndarray]:
    likes, dislikes = normalised(data.positives), normalised(data.confirmed)
    p, q = model.liking.detach().numpy(), model.disliking.detach().numpy()
    layers = model.hyperparameters.layers
    of_likes, of_dislikes = [p], [dislikes @ p]
    for _ in range(layers):
        of_likes.append(likes @ of_likes[-1])
        of_dislikes.append(likes @ of_dislikes[-1])
    return sum(of_likes) / (layers + 1), (q + sum(of_dislikes[:layers])) / (layers + 1)


def some_batch(data: TrainingData) -> tuple[SignedBatch, list[float]]:
    """Likes, also of low ratings, and dislikes, with repeated users and items; and their w."""
    batch, weights = [], []
    for n, row in enumerate([*range(0, len(data.labels), 4), 0, 4]):
        label = LABELS[data.labels[row]]
        if label == UNDECIDED:
            continue
        stars = 4.5 if label == FALSELY_IDENTIFIED else float(data.ratings[row])
        weights.append(stars - 3.5)
        sign = -1 if label == CONFIRMED else 1
        assert np.sign(weights[-1]) == sign
        user, item = (int(codes[row]) for codes in data.rated)
        batch.append((user, item, sign, [(n * n) % N_ITEMS, (3 * n + 1) % N_ITEMS]))
    users, items, signs, negatives = (torch.tensor(column) for column in zip(*batch, strict=True))
    assert {1.0, 0.5, 1.5, -1.5} <= set(weights)
    return SignedBatch(users, items, signs.to(torch.get_default_dtype()), negatives, 0), weights


def reference_loss(model: LSGRec, data: TrainingData) -> float:
    z_p, z_q = reference_embeddings(model, data)
    batch, weights = some_batch(data)
    head = model.rating_weights.detach().numpy()
    b = len(weights)
    loss, predicted = 0.0, []
    for u, i, sign, negatives in zip(*(column.tolist() for column in batch[:4]), strict=True):
        i += N_USERS
        for j in negatives:
            j += N_USERS
            liked = (1 if sign > 0 else 2) * z_p[u] @ z_p[i] - z_p[u] @ z_p[j]
            disliked = z_q[u] @ z_q[j] - (2 if sign > 0 else 1) * z_q[u] @ z_q[i]
            loss += (np.log1p(np.exp(-liked)) + np.log1p(np.exp(-disliked))) / b
        for z in (z_p, z_q):
            rows = [u, i, *(N_USERS + j for j in negatives)]
            loss += PARAMETERS.regularisation / 2 * sum((z[row] ** 2).sum() for row in rows)
        loss += ((z_p[u] @ z_q[u]) ** 2 + (z_p[i] @ z_q[i]) ** 2) / b
        predicted.append(np.concatenate([z_p[u], z_p[i]]) @ head + model.rating_bias.item())
    if model.hyperparameters.broadcast_ratings:
        return loss + np.mean([(w - rho) ** 2 for w in weights for rho in predicted])
    return loss + np.mean([(w - rho) ** 2 for w, rho in zip(weights, predicted, strict=True)])


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("layers", [1, 3])
def test_the_embeddings_are_those_of_dense_matrices(layers: int) -> None:
    data = small_data()
    model = new_model(data, layers=layers)
    z_p, z_q = reference_embeddings(model, data)
    np.testing.assert_allclose(model.liked().detach(), z_p, rtol=0, atol=1e-14)
    np.testing.assert_allclose(model.disliked().detach(), z_q, rtol=0, atol=1e-14)


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("broadcast", [True, False])
def test_the_loss_is_the_sum_of_its_parts(broadcast: bool) -> None:
    data = small_data()
    model = new_model(data, broadcast_ratings=broadcast)
    found = model.loss(some_batch(data)[0])
    np.testing.assert_allclose(found.item(), reference_loss(model, data), rtol=1e-12)


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("broadcast", [True, False])
def test_the_gradient_is_that_of_finite_differences(broadcast: bool) -> None:
    data = small_data()
    model = new_model(data, broadcast_ratings=broadcast)
    batch, _ = some_batch(data)
    parameters = list(model.parameters())
    assert torch.autograd.gradcheck(lambda *_: model.loss(batch), parameters, atol=1e-7, rtol=0)


def test_an_epoch_holds_every_like_and_dislike_once() -> None:
    data = small_data()
    model = new_model(data)
    sampler = NegativeSampler(data, SamplingSettings())
    generator = torch.Generator().manual_seed(3)
    start = generator.get_state()
    epoch = list(model.batches(sampler, generator))
    found = {
        (u, i): s
        for batch in epoch
        for u, i, s in zip(*(column.tolist() for column in batch[:3]), strict=True)
    }
    liked, disliked = (
        dict.fromkeys(zip(*(codes.tolist() for codes in pairs), strict=True), sign)
        for pairs, sign in ((data.positives, 1), (data.confirmed, -1))
    )
    assert found == liked | disliked
    assert sum(len(batch.users) for batch in epoch) == len(found)
    assert {batch.negatives.shape[1] for batch in epoch} == {2}

    after = generator.get_state()
    generator.set_state(start)
    next(model.batches(sampler, generator))
    assert torch.equal(generator.get_state(), after)


def test_the_learning_rate_drops_after_epochs_20_and_200() -> None:
    model = new_model(small_data())
    rates = [model.learning_rate(epoch) for epoch in (1, 20, 21, 200, 201, 500)]
    np.testing.assert_allclose(rates, [0.01, 0.01, 0.002, 0.002, 0.0004, 0.0004])


@pytest.mark.usefixtures("_double")
def test_the_optimiser_decays_weights_apart_from_the_gradient() -> None:
    data = small_data()
    model = new_model(data)
    optimiser = model.optimiser()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    model.loss(some_batch(data)[0]).backward()
    optimiser.step()
    for old, new in zip(before, model.parameters(), strict=True):
        # Adam's first step is the sign of the gradient, but for its epsilon.
        step = new.grad / (new.grad.abs() + 1e-8)
        torch.testing.assert_close(new.detach(), old * (1 - 0.01 * 0.01) - 0.01 * step)


def test_the_defaults_are_those_of_the_release() -> None:
    assert LSGRecHyperparameters() == LSGRecHyperparameters(
        batch_size=2048,
        learning_rate=0.0005,
        regularisation=0.00005,
        dimension=64,
        layers=2,
        negatives=40,
        broadcast_ratings=True,
    )


def test_initial_tables_are_xavier_normal_by_users_and_items() -> None:
    data = planted(n_users=300, n_items=60)
    model = LSGRec(data, LSGRecHyperparameters(), torch.Generator().manual_seed(0))
    assert not torch.equal(model.liking, model.disliking)
    for table in (model.liking, model.disliking):
        for rows in (table[:300], table[300:]):
            assert_xavier_normal(rows)
    head = torch.cat([model.rating_weights, model.rating_bias]).abs()
    assert head.shape == (129,)
    assert 0.08 < float(head.detach().max()) <= 128**-0.5


def test_likes_alone_rank_the_items() -> None:
    data = small_data()
    model = new_model(data)
    score, block = model.scorer(), torch.tensor([5, 2])
    z = model.liked().detach()
    torch.testing.assert_close(score(block), z[block] @ z[N_USERS:].T)
    assert torch.equal(model.item_embeddings(), z[N_USERS:])
    model.liking.data.add_(1.0)
    torch.testing.assert_close(score(block), z[block] @ z[N_USERS:].T)
