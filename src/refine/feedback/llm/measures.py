"""How well a judge's verdicts on known ratings fit them, and what else sways the judge."""

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

CONFIDENCE = 0.95
_RESAMPLES = 5000

Floats = NDArray[np.float64]


def auc(likes: Floats, dislikes: Floats) -> float | None:
    """The share of pairs in which the like has the higher score; a tie counts as half a pair.

    It is the area under the ROC curve, and .5 for scores that know nothing. NaN is no score.

    Returns:
        None where there is no pair.
    """
    won, valid = _pairs(likes, dislikes)
    return float(won.sum() / valid.sum()) if valid.any() else None


def auc_interval(likes: Floats, dislikes: Floats, seed: int) -> list[float] | None:
    """A percentile bootstrap interval of `auc` over users (Efron, 1979).

    Users are what is drawn, each with both of its scores: two verdicts on one user are no
    independent observations.

    Args:
        likes: each user's score of a like, NaN where there is none.
        dislikes: each user's score of a dislike, in the same order.
        seed: of the resampling.

    Returns:
        The ends of the interval that holds CONFIDENCE; None with fewer than two users, or where
        more than a tenth of the resamples have no pair to compare.
    """
    users = len(likes)
    if users < 2:
        return None
    won, valid = _pairs(likes, dislikes)
    # How often each user is drawn: a resample's AUC is then a ratio of two quadratic forms.
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(users, np.full(users, 1 / users), size=_RESAMPLES).astype(np.float64)
    pairs = np.einsum("ru,ru->r", draws @ valid, draws)
    found = pairs > 0
    if found.mean() < 0.9:
        return None
    resampled = np.einsum("ru,ru->r", draws @ won, draws)[found] / pairs[found]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return [float(low), float(high)]


def _pairs(likes: Floats, dislikes: Floats) -> tuple[Floats, Floats]:
    """Of each like and dislike: how far the like won (1, .5 or 0), and whether both have scores."""
    like, dislike = likes[:, np.newaxis], dislikes[np.newaxis, :]
    valid = ~(np.isnan(like) | np.isnan(dislike))
    won = np.where(like > dislike, 1.0, np.where(like == dislike, 0.5, 0.0))
    return won * valid, valid.astype(np.float64)


def yes_rate(verdicts: pl.DataFrame) -> float | None:
    """The share of picks among verdicts; ``picked`` is null where there is no verdict."""
    rate = verdicts["picked"].mean()
    return float(rate) if isinstance(rate, float) else None


def position_bias(verdicts: pl.DataFrame) -> dict[str, Any] | None:
    """Whether it matters where in a prompt a candidate stands.

    As each prompt is asked in both orders, what stands first in one stands last in the other: over
    all prompts, mirrored positions show the same candidates, and only their order differs.

    Args:
        verdicts: ``user``, ``item``, ``position`` (from 1), ``shown`` (candidates in the prompt)
            and ``picked``, null where there is no verdict; a row a candidate and order.

    Returns:
        ``pick_rate`` of each position and of how many verdicts; ``flipped``, the share of the
        candidates with verdicts in both orders whose two verdicts differ, and ``compared``, how
        many they are. None where no prompt shows several candidates.
    """
    several = verdicts.filter(pl.col("shown") > 1)
    if several.is_empty():
        return None
    decided = several.drop_nulls("picked")
    rates = (
        decided.group_by("position")
        .agg(pl.len().alias("verdicts"), rate=pl.col("picked").mean())
        .sort("position")
    )
    both = decided.group_by("user", "item").agg(
        pl.len().alias("orders"), flipped=pl.col("picked").n_unique() > 1
    )
    flipped = both.filter(pl.col("orders") > 1)["flipped"]
    share = flipped.mean()
    return {
        "pick_rate": rates.to_dicts(),
        "flipped": float(share) if isinstance(share, float) else None,
        "compared": len(flipped),
    }
