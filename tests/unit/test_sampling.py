import logging
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from training_data import UNRATED, data_of, random_labels

from refine.artifacts import CONFIRMED, FALSELY_IDENTIFIED, LABELS, POSITIVE, UNDECIDED
from refine.sampling import NegativeSampler, SamplingSettings, WeightClass

LABEL = {label: place for place, label in enumerate(LABELS)}
ONE_USER_A_BLOCK = 1


def random_similar(seed: int, n_items: int, ranks: int) -> np.ndarray:
    """Random similar items, the item itself left out."""
    rng = np.random.default_rng(seed)
    return np.array(
        [rng.permutation(np.delete(np.arange(n_items), item))[:ranks] for item in range(n_items)]
    )


def dense_weights(
    labels: np.ndarray,
    settings: SamplingSettings,
    similar: np.ndarray | None = None,
    near_liked: int = 0,
    near_disliked: int = 0,
) -> np.ndarray:
    """The table of weights, pair by pair, as the release writes it."""
    liked = np.isin(labels, [LABEL[POSITIVE], LABEL[FALSELY_IDENTIFIED]])
    weights = np.ones(labels.shape)
    weights[liked] = 0
    if not settings.reweight:
        return weights
    disliked = labels == LABEL[CONFIRMED]
    weights[disliked] = settings.confirmed
    if similar is not None:
        for pairs, k, weight in (
            (liked, near_liked, settings.near_liked),
            (disliked, near_disliked, settings.near_disliked),
        ):
            near = {(u, j) for u, i in zip(*np.nonzero(pairs), strict=True) for j in similar[i][:k]}
            open_ = [(u, j) for u, j in near if weights[u, j] == 1]
            for u, j in open_:
                weights[u, j] = weight
    return weights


def distribution(weights: np.ndarray, normalisation: str) -> np.ndarray:
    scores = np.exp(weights) if normalisation == "softmax" else weights
    return scores / scores.sum(1, keepdims=True)


weight = st.sampled_from([0.0, 0.25, 0.75, 1.0, 1.5, 3.0])


@given(
    seed=st.integers(0, 2**32 - 1),
    n_users=st.integers(1, 6),
    n_items=st.integers(3, 9),
    settings=st.builds(
        SamplingSettings,
        reweight=st.booleans(),
        normalisation=st.sampled_from(["sum", "softmax"]),
        confirmed=weight,
        near_disliked=weight,
        near_liked=weight,
    ),
    ranks=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    mined=st.booleans(),
    block_bytes=st.sampled_from([ONE_USER_A_BLOCK, 600, 2**20]),
)
def test_the_table_of_blocks_is_the_dense_table(
    seed: int,
    n_users: int,
    n_items: int,
    settings: SamplingSettings,
    ranks: tuple[int, int],
    mined: bool,
    block_bytes: int,
) -> None:
    labels = random_labels(seed, n_users, n_items)
    sampler = NegativeSampler(data_of(labels), settings, block_bytes=block_bytes)
    similar = None
    if mined:
        similar = random_similar(seed, n_items, min(3, n_items - 1))
        sampler.reweight(torch.tensor(similar), *ranks)
    weights = dense_weights(labels, settings, similar, *ranks)
    if settings.normalisation == "sum" and not weights.any(axis=1).all():
        return
    for user, expected in enumerate(distribution(weights, settings.normalisation)):
        np.testing.assert_allclose(sampler.probabilities(user).numpy(), expected, atol=1e-8)


# One user whose row has every class, and undecided items in three of them: items 7 and 8 are near
# what the user dislikes, 4 and 5 near what the user likes (5 also near what is disliked).
LABELS_OF_ONE = np.full((1, 10), UNRATED)
LABELS_OF_ONE[0, [0, 1, 2, 3, 4, 7]] = [
    LABEL[label]
    for label in (POSITIVE, FALSELY_IDENTIFIED, CONFIRMED, UNDECIDED, UNDECIDED, UNDECIDED)
]
SIMILAR = torch.tensor([[4, 5], [4, 5], [7, 8], *[[0, 1]] * 7])
CLASSES = [
    WeightClass.POSITIVE,
    WeightClass.POSITIVE,
    WeightClass.CONFIRMED,
    WeightClass.OTHER,
    WeightClass.NEAR_LIKED,
    WeightClass.NEAR_LIKED,
    WeightClass.OTHER,
    WeightClass.NEAR_DISLIKED,
    WeightClass.NEAR_DISLIKED,
    WeightClass.OTHER,
]
DISTINCT = {"confirmed": 2.0, "near_disliked": 1.5, "near_liked": 0.75}


def one_user(normalisation: str) -> NegativeSampler:
    settings = SamplingSettings(normalisation=normalisation, **DISTINCT)
    sampler = NegativeSampler(data_of(LABELS_OF_ONE), settings)
    sampler.reweight(SIMILAR, 2, 2)
    return sampler


def test_every_class_is_recognised() -> None:
    (classes,) = one_user("sum").classes()
    assert classes.tolist() == [CLASSES]


@pytest.mark.parametrize("normalisation", ["sum", "softmax"])
def test_items_and_classes_are_drawn_as_often_as_they_should(normalisation: str) -> None:
    level = {
        WeightClass.OTHER: 1.0,
        WeightClass.POSITIVE: 0.0,
        WeightClass.CONFIRMED: 2.0,
        WeightClass.NEAR_LIKED: 0.75,
        WeightClass.NEAR_DISLIKED: 1.5,
    }
    weights = np.array([[level[c] for c in CLASSES]])
    expected = distribution(weights, normalisation)[0]
    draws = 400_000
    generator = torch.Generator().manual_seed(7)
    drawn = one_user(normalisation).draw(torch.zeros(draws, dtype=torch.int32), generator)
    counts = np.bincount(drawn.numpy(), minlength=10)

    possible = expected > 0
    assert not counts[~possible].any()
    assert chisquare(counts[possible], draws * expected[possible]).pvalue > 0.01
    for kind in set(CLASSES):
        members = np.array([c == kind for c in CLASSES])
        share = expected[members].sum()
        if share > 0:
            observed = counts[members].sum()
            test = chisquare([observed, draws - observed], [draws * share, draws * (1 - share)])
            assert test.pvalue > 0.01, kind.name


@pytest.mark.parametrize("block_bytes", [ONE_USER_A_BLOCK, 2**20])
def test_every_user_has_a_distribution_of_its_own(block_bytes: int) -> None:
    labels = random_labels(3, 12, 20)
    settings = SamplingSettings(normalisation="sum")
    sampler = NegativeSampler(data_of(labels), settings, block_bytes=block_bytes)
    similar = random_similar(3, 20, 4)
    sampler.reweight(torch.tensor(similar), 2, 4)
    expected = distribution(dense_weights(labels, settings, similar, 2, 4), "sum")
    draws = 20_000
    users = torch.arange(12, dtype=torch.int32).repeat_interleave(draws)
    drawn = sampler.draw(users, torch.Generator().manual_seed(11))
    for user, items in enumerate(drawn.view(12, draws).numpy()):
        counts = np.bincount(items, minlength=20)
        possible = expected[user] > 0
        assert not counts[~possible].any()
        assert chisquare(counts[possible], draws * expected[user][possible]).pvalue > 1e-4


@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.sampled_from([(1, 0), (1, 2**30), (700, 0), (2**26, 2**30)]),
)
def test_draws_do_not_depend_on_blocks_or_cache(seed: int, sizes: tuple[int, int]) -> None:
    labels = random_labels(seed, 7, 8)
    data = data_of(labels)

    def draws(block_bytes: int, cache_bytes: int) -> Iterator[torch.Tensor]:
        settings = SamplingSettings(confirmed=1.1, near_liked=0.3, normalisation="softmax")
        sampler = NegativeSampler(data, settings, block_bytes=block_bytes, cache_bytes=cache_bytes)
        generator = torch.Generator().manual_seed(seed)
        yield sampler.draw(data.positives.users, generator)
        sampler.reweight(torch.tensor(random_similar(seed, 8, 3)), 1, 3)
        yield sampler.draw(data.positives.users, generator)

    for drawn, expected in zip(draws(*sizes), draws(10**9, 10**9), strict=True):
        assert torch.equal(drawn, expected)


@pytest.mark.parametrize("cache_bytes", [0, 8 * 7 * 8 - 1, 8 * 7 * 8])
def test_the_table_is_kept_only_within_its_budget(cache_bytes: int) -> None:
    data = data_of(random_labels(0, 7, 8))
    sampler = NegativeSampler(data, SamplingSettings(), cache_bytes=cache_bytes)
    sampler.draw(data.positives.users, torch.Generator().manual_seed(0))
    kept = sum(table.numel() * table.element_size() for table in sampler._tables.values())
    assert kept == (8 * 7 * 8 if cache_bytes == 8 * 7 * 8 else 0)


def test_the_only_item_left_is_drawn_always() -> None:
    labels = np.full((3, 5), LABEL[POSITIVE])
    labels[[0, 1, 2], [2, 0, 4]] = UNRATED
    sampler = NegativeSampler(data_of(labels), SamplingSettings())
    users = torch.arange(3).repeat_interleave(1000)
    drawn = sampler.draw(users, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, torch.tensor([2, 0, 4]).repeat_interleave(1000))


def test_users_without_draws_are_skipped() -> None:
    labels = random_labels(5, 6, 8)
    sampler = NegativeSampler(data_of(labels), SamplingSettings(), block_bytes=ONE_USER_A_BLOCK)
    users = torch.tensor([1, 1, 4])
    drawn = sampler.draw(users, torch.Generator().manual_seed(0))
    liked = np.isin(labels, [LABEL[POSITIVE], LABEL[FALSELY_IDENTIFIED]])
    assert not liked[users, drawn].any()
    assert len(sampler.draw(users[:0], torch.Generator().manual_seed(0))) == 0


def test_a_user_who_likes_everything_is_an_error() -> None:
    labels = np.full((3, 4), UNRATED)
    labels[1] = LABEL[POSITIVE]
    data = data_of(labels)
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match=r"user 1 .* likes every item"):
        NegativeSampler(data, SamplingSettings()).draw(data.positives.users, generator)
    softmax = NegativeSampler(data, SamplingSettings(normalisation="softmax"))
    assert len(softmax.draw(data.positives.users, generator)) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalisation": "mean"}, "sampling.normalisation must be sum or softmax, not 'mean'"),
        ({"confirmed": -1.0}, "sampling.confirmed"),
        ({"near_liked": float("nan")}, "sampling.near_liked"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingSettings(**changes)  # type: ignore[arg-type]


def test_weights_too_far_apart_are_refused() -> None:
    data = data_of(random_labels(0, 2, 4))
    with pytest.raises(ValueError, match="billion"):
        NegativeSampler(data, SamplingSettings(confirmed=1e-12))


def test_the_share_of_reweighted_pairs_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    sampler = one_user("sum")
    rated = data_of(LABELS_OF_ONE).rated
    with caplog.at_level(logging.INFO, "refine"):
        sampler.log_reweighting(rated)
    # Of the unrated items 5, 6, 8 and 9, one is near a disliked item and one near a liked one.
    assert "25.0% of the unrated pairs are near a disliked item" in caplog.text
    assert "25.0% near a liked one" in caplog.text
