import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from refine.feedback.llm.measures import auc, auc_interval, position_bias, yes_rate

# Halves and few values, so that there are ties.
SCORES = st.lists(st.integers(-3, 3).map(lambda value: value / 2), min_size=1, max_size=30)


def array(*values: float | None) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values])


def verdicts(*rows: tuple[int, int, int, int, bool | None]) -> pl.DataFrame:
    return pl.DataFrame(
        rows,
        schema={
            "user": pl.Int32,
            "item": pl.Int32,
            "position": pl.Int64,
            "shown": pl.Int64,
            "picked": pl.Boolean,
        },
        orient="row",
    )


@given(SCORES, SCORES)
def test_auc_is_the_mann_whitney_statistic(likes: list[float], dislikes: list[float]) -> None:
    statistic = stats.mannwhitneyu(likes, dislikes).statistic
    assert auc(np.array(likes), np.array(dislikes)) == pytest.approx(
        statistic / (len(likes) * len(dislikes))
    )


def test_auc_of_perfect_reversed_and_equal_scores() -> None:
    assert auc(array(2, 3), array(0, 1)) == 1
    assert auc(array(0, 1), array(2, 3)) == 0
    assert auc(array(1, 1), array(1, 1, 1)) == 0.5
    assert auc(array(np.inf, 0), array(-np.inf, 0)) == pytest.approx(3.5 / 4)


def test_auc_without_a_score_is_of_the_others() -> None:
    assert auc(array(1, None), array(None, 0)) == 1
    assert auc(array(None), array(1)) is None
    assert auc(array(), array(1)) is None


def test_interval_agrees_with_scipy() -> None:
    rng = np.random.default_rng(1)
    likes, dislikes = rng.normal(0.8, 1, 60), rng.normal(0, 1, 60)

    def statistic(drawn: np.ndarray) -> float:
        found = stats.mannwhitneyu(likes[drawn], dislikes[drawn]).statistic
        return float(found) / len(drawn) ** 2

    expected = stats.bootstrap(
        (np.arange(60),),
        statistic,
        vectorized=False,
        method="percentile",
        n_resamples=2000,
        rng=np.random.default_rng(2),
    ).confidence_interval
    found = auc_interval(likes, dislikes, seed=3)
    assert found is not None
    assert found == pytest.approx([expected.low, expected.high], abs=0.02)
    assert auc_interval(likes, dislikes, seed=3) == found


def test_interval_covers_the_true_auc_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(4)
    true = stats.norm.cdf(1 / np.sqrt(2))  # of two normal variables whose means are 1 apart
    covered = 0
    for seed in range(100):
        ends = auc_interval(rng.normal(1, 1, 40), rng.normal(0, 1, 40), seed)
        assert ends is not None
        covered += ends[0] <= true <= ends[1]
    assert 85 <= covered <= 100


def test_users_are_drawn_with_both_their_scores() -> None:
    # Within each user the like wins, and users hardly compare: only a draw of users keeps that.
    level = np.arange(50) * 10.0
    paired = auc_interval(level + 1, level, seed=1)
    assert paired is not None
    assert paired[1] - paired[0] < 0.02
    rng = np.random.default_rng(5)
    mixed = auc_interval(level + 1, rng.permutation(level), seed=1)
    assert mixed is not None
    assert mixed[1] - mixed[0] > 0.1


def test_interval_where_nothing_can_be_said() -> None:
    assert auc_interval(array(1), array(0), seed=1) is None
    assert auc_interval(array(None, None), array(1, 2), seed=1) is None
    assert auc_interval(array(1, 1, 1), array(1, 1, 1), seed=1) == [0.5, 0.5]


def test_yes_rate_is_of_verdicts_alone() -> None:
    assert yes_rate(verdicts((0, 0, 1, 2, True), (0, 1, 2, 2, False), (0, 2, 1, 1, None))) == 0.5
    assert yes_rate(verdicts((0, 0, 1, 2, None))) is None
    assert yes_rate(verdicts()) is None


def test_position_bias_of_a_judge_that_always_picks_the_first() -> None:
    rows = [
        (0, item, position, 3, position == 1)
        for order in ((1, 2, 3), (3, 2, 1))
        for position, item in enumerate(order, 1)
    ]
    assert position_bias(verdicts(*rows)) == {
        "pick_rate": [
            {"position": 1, "verdicts": 2, "rate": 1.0},
            {"position": 2, "verdicts": 2, "rate": 0.0},
            {"position": 3, "verdicts": 2, "rate": 0.0},
        ],
        "flipped": pytest.approx(2 / 3),
        "compared": 3,
    }


def test_position_bias_leaves_out_single_candidates_and_missing_verdicts() -> None:
    assert position_bias(verdicts((0, 1, 1, 1, True))) is None
    found = position_bias(
        verdicts(
            (0, 1, 1, 2, True),
            (0, 2, 2, 2, True),
            (0, 2, 1, 2, None),
            (0, 1, 2, 2, None),
            (1, 1, 1, 1, False),
        )
    )
    assert found is not None
    assert found["flipped"] is None
    assert found["compared"] == 0
    assert [row["verdicts"] for row in found["pick_rate"]] == [1, 1]
