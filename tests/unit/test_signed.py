import itertools

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from training_data import UNRATED, data_of, random_labels

from refine.artifacts import CONFIRMED, FALSELY_IDENTIFIED, LABELS, POSITIVE, UNDECIDED
from refine.data import TrainingData
from refine.models import signed
from refine.models.signed import (
    SignedBatch,
    UnratedSampler,
    sign_aware_loss,
    signed_batches,
    signed_pairs,
    signed_scores,
)

N_USERS, N_ITEMS = 8, 10
LIKED, DISLIKED = LABELS.index(POSITIVE), LABELS.index(CONFIRMED)


def table() -> np.ndarray:
    """Labels: user 2 has no dislikes, user 5 lacks three items only, nobody has rated item 9."""
    labels = random_labels(3, N_USERS, N_ITEMS)
    labels[2] = np.where(labels[2] == DISLIKED, UNRATED, labels[2])
    labels[5] = np.where(np.isin(np.arange(N_ITEMS), (4, 8, 9)), UNRATED, DISLIKED)
    return labels


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def all_batches(data: TrainingData, seed: int = 1, k: int = 3) -> list[SignedBatch]:
    pairs, sampler = signed_pairs(data), UnratedSampler(data, 0.75)
    return list(signed_batches(pairs, sampler, k, 7, generator(seed)))


def test_pairs_are_what_is_liked_and_what_is_disliked_in_order() -> None:
    labels = table()
    expected = [
        (user, item, -1 if LABELS[labels[user, item]] == CONFIRMED else 1)
        for user, item in zip(*np.nonzero(labels != UNRATED), strict=True)
        if LABELS[labels[user, item]] != UNDECIDED
    ]
    pairs = signed_pairs(data_of(labels))
    assert [codes.dtype for codes in pairs] == [torch.int32, torch.int32, torch.int8]
    assert list(zip(*(codes.tolist() for codes in pairs), strict=True)) == expected
    kinds = {LABELS[label] for label in np.unique(labels[labels != UNRATED])}
    assert kinds == {POSITIVE, FALSELY_IDENTIFIED, CONFIRMED, UNDECIDED}


@pytest.mark.parametrize("power", [0.0, 0.75, 3.0])
def test_unrated_items_are_drawn_by_their_degree(power: float) -> None:
    labels = table()
    weights = (labels != UNRATED).sum(0).astype(float) ** power
    sampler = UnratedSampler(data_of(labels), power)
    users = torch.arange(N_USERS).flip(0).repeat_interleave(50)
    drawn = sampler.draw(users, 400, generator())
    assert drawn.shape == (50 * N_USERS, 400)
    assert drawn.dtype == torch.int64
    for user in range(N_USERS):
        counts = np.bincount(drawn[users == user].flatten(), minlength=N_ITEMS)
        expected = np.where(labels[user] == UNRATED, weights, 0)
        possible = expected > 0
        assert not counts[~possible].any()
        expected = expected[possible] / expected.sum() * counts.sum()
        if len(expected) > 1:
            assert chisquare(counts[possible], expected).pvalue > 1e-4


def test_the_share_of_rare_items_is_that_of_the_formula() -> None:
    """An item that one of 3,000 users has rated, beside one that nearly all have."""
    labels = np.full((3000, 3), UNRATED)
    labels[3:, 0], labels[2, 1], labels[:, 2] = LIKED, LIKED, DISLIKED
    sampler = UnratedSampler(data_of(labels), 0.75)
    drawn = sampler.draw(torch.tensor([0, 1]), 500_000, generator())
    share = 1 / (1 + 2997**0.75)
    rare = int((drawn == 1).sum())
    assert abs(rare - share * drawn.numel()) < 4 * (share * drawn.numel()) ** 0.5


@pytest.mark.parametrize("power", [0.0, 0.75])
def test_a_user_who_has_rated_everything_is_named(power: float) -> None:
    labels = table()
    labels[6] = LIKED
    with pytest.raises(ValueError, match=r"user 6 .* has rated every item that may be drawn"):
        UnratedSampler(data_of(labels), power)


def test_an_item_without_ratings_is_drawn_uniformly_but_not_by_degree() -> None:
    labels = table()
    assert (labels[:, -1] == UNRATED).all()
    labels[6, :-1] = LIKED
    drawn = UnratedSampler(data_of(labels), 0.0).draw(torch.tensor([6]), 20, generator())
    assert bool((drawn == N_ITEMS - 1).all())
    with pytest.raises(ValueError, match="user 6 "):
        UnratedSampler(data_of(labels), 0.75)


@pytest.mark.parametrize(("users", "items"), [(1, 2), (6034, 3125), (10**8, 10**6)])
def test_integer_weights_keep_proportions_and_fit(users: int, items: int) -> None:
    weights = torch.arange(items).double().pow(0.75)
    integers = signed._integer_weights(weights, users)
    assert int(integers.sum()) * users < 2**63
    assert bool(((integers == 0) == (weights == 0)).all())
    if items < 10**4:
        error = (integers.double() / integers[-1] - weights / weights[-1]).abs().max()
        assert float(error) < 2**-28


def test_an_epoch_has_every_pair_once_with_unrated_items() -> None:
    data = data_of(table())
    batches = all_batches(data)
    pairs = signed_pairs(data)
    assert [len(batch.users) for batch in batches[:-1]] == [7] * (len(batches) - 1)
    assert 0 < len(batches[-1].users) <= 7
    found = [torch.cat(parts) for parts in list(zip(*batches, strict=True))[:3]]
    assert sorted(zip(*(part.tolist() for part in found), strict=True)) == list(
        zip(*(part.tolist() for part in pairs), strict=True)
    )
    assert found[0].tolist() != sorted(found[0].tolist())
    rated = table() != UNRATED
    for batch in batches:
        assert batch.negatives.shape == (len(batch.users), 3)
        assert not rated[batch.users[:, None], batch.negatives].any()
        assert batch.signs.dtype == torch.get_default_dtype()
        assert batch.users.dtype == batch.items.dtype == batch.negatives.dtype == torch.int64
    assert len({batch.seed for batch in batches}) == len(batches)


@pytest.mark.parametrize("draws_at_once", [1, 7 * 3, 2 * 7 * 3, 10**6])
def test_an_epoch_can_be_drawn_again_from_any_of_its_batches(
    monkeypatch: pytest.MonkeyPatch, draws_at_once: int
) -> None:
    monkeypatch.setattr(signed, "_DRAWS_AT_ONCE", draws_at_once)
    data = data_of(table())
    pairs, sampler = signed_pairs(data), UnratedSampler(data, 0.75)
    whole = all_batches(data)
    states = []
    for taken in (1, 2, len(whole)):
        source = generator()
        batches = list(itertools.islice(signed_batches(pairs, sampler, 3, 7, source), taken))
        states.append(source.get_state())
        for batch, expected in zip(batches, whole, strict=False):
            assert all(map(equal, batch, expected))
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])
    assert not torch.equal(states[0], generator().get_state())


def equal(one: torch.Tensor | int, other: torch.Tensor | int) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def plain_scores(z: torch.Tensor, batch: SignedBatch) -> tuple[torch.Tensor, ...]:
    users, items = z[:N_USERS][batch.users], z[N_USERS:][batch.items]
    negatives = z[N_USERS:][batch.negatives]
    norm = sum(rows.square().sum() for rows in (users, items, negatives))
    return (users * items).sum(1), (users[:, None] * negatives).sum(2), norm


def test_scores_and_their_gradients_are_the_plain_ones() -> None:
    data = data_of(table())
    batch = all_batches(data, k=40)[0]
    z = torch.rand(N_USERS + N_ITEMS, 4, dtype=torch.float64, requires_grad=True)
    weights = [torch.rand(7), torch.rand(7, 40), torch.rand(())]
    found, expected = signed_scores(z, N_USERS, batch), plain_scores(z, batch)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)
    gradients = [
        torch.autograd.grad(sum((p * w).sum() for p, w in zip(parts, weights, strict=True)), z)[0]
        for parts in (found, expected)
    ]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)
    assert torch.autograd.gradcheck(lambda z: signed_scores(z, N_USERS, batch), (z,))


def test_the_sign_aware_loss_is_a_sum_over_all_comparisons() -> None:
    rng = np.random.default_rng(0)
    scores, negatives = rng.normal(size=5), rng.normal(size=(5, 3))
    factors = np.array([1.0, 2.0, 1.0, -1.0, 3.0])
    expected = sum(
        -np.log(1 / (1 + np.exp(-(factors[b] * scores[b] - negatives[b, k]))))
        for b in range(5)
        for k in range(3)
    )
    found = sign_aware_loss(*(torch.from_numpy(x) for x in (scores, negatives, factors)))
    assert float(found) == pytest.approx(expected, rel=1e-12)
