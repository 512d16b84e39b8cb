import copy
from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest
import torch
from operations import Operations
from oracles import normalised_adjacency, smoothing
from torch import Tensor
from torch.nn import functional as F
from training_data import UNRATED, data_of, planted, random_labels

from refine.artifacts import CONFIRMED, FALSELY_IDENTIFIED, LABELS, POSITIVE, UNDECIDED
from refine.data import TrainingData
from refine.models.autoencoder import Autoencoder, DistinctRows
from refine.models.refine_pp import Batch, ReFINePP, ReFINePPHyperparameters, SetSampler
from refine.models.signed import signed_pairs
from refine.sampling import NegativeSampler, SamplingSettings

N_USERS, N_ITEMS = 9, 31
SMALL = {
    "batch_size": 6,
    "learning_rate": 0.01,
    "regularisation": 0.02,
    "dimension": 3,
    "layers": 2,
    "hidden": 5,
    "autoencoder_regularisation": 0.03,
}
BOTH = pytest.mark.parametrize("shared", [True, False])


def small_data() -> TrainingData:
    """User 2 has no dislike, user 3 nothing at all; item 4 has no edge."""
    labels = random_labels(1, N_USERS, N_ITEMS, rated=0.6)
    labels[2][labels[2] == LABELS.index(CONFIRMED)] = UNRATED
    labels[3] = UNRATED
    labels[:, 4] = UNRATED
    labels[5, 4] = LABELS.index(UNDECIDED)
    return data_of(labels)


def new_model(data: TrainingData, shared: bool, **changes: float) -> ReFINePP:
    parameters = ReFINePPHyperparameters(**{**SMALL, **changes}, shared_negatives=shared)
    return ReFINePP(data, parameters, torch.Generator().manual_seed(0))


def epoch(model: ReFINePP, data: TrainingData, seed: int = 0) -> Iterator[Batch]:
    negatives = NegativeSampler(data, SamplingSettings())
    return model.batches(negatives, torch.Generator().manual_seed(seed))


def matrix(x: DistinctRows, n_columns: int) -> Tensor:
    distinct = torch.zeros(len(x.starts), n_columns)
    distinct[x.places, x.columns] = 1
    return distinct[x.of_row]


def propagation(data: TrainingData, layers: int) -> Tensor:
    """A dislike connects as a like does."""
    shape = data.n_users, data.n_items
    adjacency = normalised_adjacency(shape, data.positives, data.confirmed)
    return torch.from_numpy(smoothing(adjacency, layers))


def autoencoded(model: Autoencoder, x: Tensor) -> tuple[Tensor, Tensor]:
    hidden = torch.relu(x @ model.first_weight + model.first_bias)
    codes = F.linear(hidden, model.to_code.weight, model.to_code.bias)
    hidden = torch.relu(F.linear(codes, model.from_code.weight, model.from_code.bias))
    return codes, torch.sigmoid(F.linear(hidden, model.last.weight, model.last.bias))


def dense_loss(model: ReFINePP, data: TrainingData, batch: Batch) -> Tensor:
    """The released loss, formula by formula, without the squared norms."""
    e = propagation(data, model.hyperparameters.layers) @ model.embedding
    users, items = e[: data.n_users], e[data.n_users :]
    total = torch.zeros(())
    negatives = batch.negatives.expand(len(batch.users), -1)
    for u, i, drawn in zip(batch.users, batch.items, negatives, strict=True):
        ratios = torch.exp(items[drawn] @ users[u] - items[i] @ users[u])
        total = total + torch.log(1 + ratios.sum()) / len(batch.users)
    x = matrix(batch.by_user, data.n_items)
    for z, autoencoder, dislikes in ((users, model.of_users, x), (items, model.of_items, x.T)):
        codes, reconstruction = autoencoded(autoencoder, dislikes)
        surprise = dislikes * reconstruction.log() + (1 - dislikes) * (1 - reconstruction).log()
        total = total - surprise.mean() + (z - codes).square().mean()
    return total


def penalty(model: ReFINePP) -> Tensor:
    autoencoders = [*model.of_users.parameters(), *model.of_items.parameters()]
    squares = sum(parameter.square().sum() for parameter in autoencoders)
    return 0.02 / 2 * model.embedding.square().sum() + 0.03 / 2 * squares


def kinds_of_batches(model: ReFINePP, data: TrainingData) -> list[Batch]:
    """A batch without likes, one without dislikes, one with a single like, and others."""
    found = [batch for seed in range(3) for batch in epoch(model, data, seed)]
    n_likes = [len(batch.users) for batch in found]
    n_dislikes = [len(batch.by_user.columns) for batch in found]
    chosen = {0, 1, n_likes.index(0), n_likes.index(1), n_dislikes.index(0)}
    return [found[place] for place in chosen]


@BOTH
@pytest.mark.usefixtures("_double")
def test_loss_and_gradient_equal_those_of_the_dense_form(shared: bool) -> None:
    data = small_data()
    model = new_model(data, shared, batch_size=3)
    model.embedding.data *= 3  # scores that matter
    parameters = list(model.parameters())
    for batch in kinds_of_batches(model, data):
        loss, expected = model.loss(batch), dense_loss(model, data, batch)
        torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
        found = torch.autograd.grad(loss, parameters)
        for one, other in zip(found, torch.autograd.grad(expected, parameters), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@BOTH
@pytest.mark.usefixtures("_double")
def test_the_gradient_is_a_slope(shared: bool) -> None:
    data = small_data()
    model = new_model(data, shared, batch_size=40)
    batch = next(epoch(model, data))
    parameters = list(model.parameters())
    assert torch.autograd.gradcheck(lambda *_: model.loss(batch), parameters, atol=1e-9, rtol=1e-5)


def test_scores_beyond_the_range_of_exp_have_a_loss() -> None:
    data = small_data()
    model = new_model(data, shared=True)
    model.embedding.data *= 100
    loss = model.loss(next(epoch(model, data)))
    loss.backward()
    assert loss.isfinite()
    assert model.embedding.grad.isfinite().all()


@pytest.mark.usefixtures("_double")
def test_steps_equal_those_of_plain_adam_on_the_penalised_loss() -> None:
    data = small_data()
    model = new_model(data, shared=True)
    reference = copy.deepcopy(model)
    batches = [batch for seed in range(2) for batch in epoch(model, data, seed)]
    ours, theirs = model.optimiser(), torch.optim.Adam(reference.parameters(), lr=0.01)
    for batch in batches:
        for optimiser, loss in (
            (ours, model.loss(batch)),
            (theirs, dense_loss(reference, data, batch) + penalty(reference)),
        ):
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@BOTH
def test_an_epoch_holds_every_like_and_every_dislike_once(shared: bool) -> None:
    data = small_data()
    model = new_model(data, shared)
    first, second = list(epoch(model, data, 1)), list(epoch(model, data, 2))
    n_pairs = len(data.positives.users) + len(data.confirmed.users)
    sizes = [len(batch.users) + int(matrix(batch.by_user, N_ITEMS).sum()) for batch in first]
    assert sizes == [6] * (n_pairs // 6) + [n_pairs % 6]
    likes = torch.stack([torch.cat(codes) for codes in zip(*(b[:2] for b in first), strict=True)])
    assert set(map(tuple, likes.T.tolist())) == set(
        zip(*(codes.tolist() for codes in data.positives), strict=True)
    )
    assert likes.shape[1] == len(data.positives.users)
    dislikes = sum(matrix(batch.by_user, N_ITEMS) for batch in first)
    expected = torch.zeros(N_USERS, N_ITEMS)
    expected[data.confirmed.users.long(), data.confirmed.items.long()] = 1
    assert torch.equal(dislikes, expected)
    for batch in first:
        assert torch.equal(matrix(batch.by_item, N_USERS), matrix(batch.by_user, N_ITEMS).T)
    assert not torch.equal(first[0].users, second[0].users)


@BOTH
def test_negatives_belong_to_each_like_or_all_to_the_second(shared: bool) -> None:
    data = planted()
    model = new_model(data, shared, batch_size=64)
    liked = torch.zeros(data.n_users, data.n_items, dtype=torch.bool)
    liked[data.positives.users.long(), data.positives.items.long()] = True
    liked_by_others = 0
    for batch in epoch(model, data):
        assert batch.negatives.shape == (1 if shared else len(batch.users), data.n_items // 10)
        drawn_for = batch.users[1:2] if shared else batch.users
        assert not liked[drawn_for].gather(1, batch.negatives).any()
        liked_by_others += int(liked[batch.users][:, batch.negatives[0]].sum())
    assert liked_by_others > 0


@BOTH
def test_the_model_draws_its_users_dislikes_by_their_weight(shared: bool) -> None:
    """So heavy that nothing else is drawn before the dislikes of the user are used up."""
    data = planted()
    model = new_model(data, shared, batch_size=64, confirmed_weight=1e12)
    disliked = torch.zeros(data.n_users, data.n_items, dtype=torch.int64)
    disliked[data.confirmed.users.long(), data.confirmed.items.long()] = 1
    n_drawn, all_fit = data.n_items // 10, set()
    for batch in epoch(model, data):
        drawn_for = batch.users[1:2] if shared else batch.users
        found = disliked[drawn_for].gather(1, batch.negatives).sum(1)
        existing = disliked[drawn_for].sum(1)
        assert torch.equal(found, existing.clamp(max=n_drawn))
        all_fit |= set((existing < n_drawn).tolist())
    assert all_fit == {False, True}


def test_the_only_like_of_a_batch_draws_for_itself() -> None:
    data = small_data()
    model = new_model(data, shared=True, batch_size=2)
    asked: list[Tensor] = []

    class Recorder:
        def draw(self, users: Tensor, sizes: list[int], _: torch.Generator) -> Iterator[Tensor]:
            asked.extend(torch.split(users, sizes))
            return iter(torch.split(users.unsqueeze(1), sizes))

    model.sampler = Recorder()  # type: ignore[assignment]
    batches = list(epoch(model, data))
    assert {len(batch.users) for batch in batches} == {0, 1, 2}
    for batch, users in zip(batches, asked, strict=True):
        assert torch.equal(users, batch.users[-1:])


@BOTH
def test_an_epoch_that_is_broken_off_leaves_the_generator_alike(shared: bool) -> None:
    data = small_data()
    model = new_model(data, shared)
    negatives = NegativeSampler(data, SamplingSettings())
    states = []
    for taken in (1, 4, None):
        generator = torch.Generator().manual_seed(3)
        for n, _ in enumerate(model.batches(negatives, generator), start=1):
            if n == taken:
                break
        states.append(generator.get_state())
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


def some_labels() -> np.ndarray:
    """User 0 likes eight of 25 items and dislikes five; of one nobody decided."""
    labels = np.full((3, 25), UNRATED)
    labels[0, :6] = LABELS.index(POSITIVE)
    labels[0, 6:8] = LABELS.index(FALSELY_IDENTIFIED)
    labels[0, 8:13] = LABELS.index(CONFIRMED)
    labels[0, 13] = LABELS.index(UNDECIDED)
    labels[2, 10:20] = LABELS.index(POSITIVE)
    return labels


def test_sets_are_drawn_by_weight_without_replacement() -> None:
    sampler = SetSampler(signed_pairs(data_of(some_labels())), 3, 25, confirmed_weight=4.0)
    n = 30_000
    users = torch.tensor([0, 1, 2]).repeat(n)
    generator = torch.Generator().manual_seed(0)
    sets = torch.cat(list(sampler.draw(users, [n] * 3, generator))).sort(1).values

    weights = np.ones((3, 25))
    weights[0, :8], weights[0, 8:13], weights[2, 10:20] = 0, 4, 0
    for user, own in enumerate(weights):
        total, expected, statistic = own.sum(), 0.0, 0.0
        of_user = sets[users == user]
        found = torch.bincount(of_user[:, 0] * 25 + of_user[:, 1], minlength=625)
        possible = list(combinations(np.flatnonzero(own), 2))
        for a, b in possible:
            p = own[a] / total * own[b] / (total - own[a])
            p += own[b] / total * own[a] / (total - own[b])
            expected += p
            statistic += (float(found[a * 25 + b]) - n * p) ** 2 / (n * p)
        assert expected == pytest.approx(1)
        assert sum(int(found[a * 25 + b]) for a, b in possible) == n
        freedom = len(possible) - 1
        assert abs(statistic - freedom) < 4 * (2 * freedom) ** 0.5


def test_a_user_who_likes_too_much_is_refused() -> None:
    labels = some_labels()
    labels[1, :23] = LABELS.index(POSITIVE)
    signed = signed_pairs(data_of(labels))
    assert SetSampler(signed, 3, 25, 1.5)
    labels[1, 23] = LABELS.index(POSITIVE)
    with pytest.raises(ValueError, match=r"user 1 .* likes so many items that no 2 others"):
        SetSampler(signed_pairs(data_of(labels)), 3, 25, 1.5)


@BOTH
def test_no_step_of_an_epoch_waits_for_a_number(shared: bool) -> None:
    data = planted()
    model = new_model(data, shared, batch_size=64)
    optimiser = model.optimiser()
    batches = epoch(model, data)
    next(batches)  # which prepares the epoch
    with Operations() as operations:
        for batch in batches:
            optimiser.zero_grad()
            model.loss(batch).backward()
            optimiser.step()
    assert "_fused_adam_" in operations.names
    operations.assert_that_none_waited()


@pytest.mark.usefixtures("_double")
def test_scores_are_inner_products_and_do_not_change_later() -> None:
    data = small_data()
    model = new_model(data, shared=True)
    e = propagation(data, 2) @ model.embedding.detach()
    users = torch.tensor([5, 2])
    score = model.scorer()
    model.embedding.data.add_(1.0)
    torch.testing.assert_close(score(users), e[users] @ e[N_USERS:].T)
    assert not score(users).requires_grad
    assert model.item_embeddings().shape == (N_ITEMS, 3)


def test_the_defaults_are_the_released_ones() -> None:
    assert ReFINePPHyperparameters() == ReFINePPHyperparameters(
        batch_size=1024,
        learning_rate=1e-3,
        regularisation=1e-7,
        dimension=64,
        layers=4,
        confirmed_weight=1.5,
        shared_negatives=True,
        hidden=600,
        autoencoder_regularisation=1e-5,
    )
    bound = (6 / (N_USERS + N_ITEMS + 3)) ** 0.5
    embedding = new_model(small_data(), shared=True).embedding.detach()
    assert 0.9 * bound < float(embedding.abs().max()) <= bound
