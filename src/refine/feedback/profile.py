"""The `profile` judge: is a candidate more like what its user likes, or like what they dislike?

A naive Bayes classifier a user, without LLM and without draws, on the evidence that the prompts
show: likes are the ratings 4 and 5, dislikes the ratings that are low beyond doubt. Two features
speak for or against a candidate i:

    score(u, i) = sum over genres g of w(i, g) ln( liked(u, g) / disliked(u, g) )
                + (a - b) / v * (x(i) - (a + b) / 2)

w(i, g) is 1 over the number of i's genres, for each of them: many genres do not make a title surer.
liked(u, g) is the share of genre g in the user's likes, each weighing 1, disliked(u, g) that in the
dislikes. x(i) = ln(1 + train ratings of i) is popularity, a and b are its means over the user's
likes and dislikes, and v is its variance within the two classes over all users: the second term is
the log-ratio of two normal densities.

Users have few ratings. Each share and mean is therefore drawn towards that of all users' likes (or
dislikes), which weighs as much as SMOOTHING ratings. The prior is even: a candidate is picked if
its score is above 0.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from refine.artifacts import POSITIVE_RATING, RATINGS, read_table
from refine.feedback.roles import CANDIDATE, assign_roles
from refine.feedback.tasks import Task

SMOOTHING = 30.0

Floats = NDArray[np.float64]
Codes = NDArray[np.int32]


def judge_by_profile(task: Task) -> pl.DataFrame:
    """Scores each candidate against its user's likes and dislikes, and picks those above 0."""
    ratings = assign_roles(pl.DataFrame(read_table(task.train, RATINGS)))
    items = pl.DataFrame(read_table(task.items)).sort("item")
    counts = np.bincount(ratings["item"].to_numpy(), minlength=len(items))
    popularity = np.log1p(counts)
    genres = _genre_weights(items["genres"])

    evidence = ratings.filter(pl.col("role") != CANDIDATE)
    n_users = int(ratings["user"].to_numpy().max(initial=-1)) + 1
    liked, disliked = (
        _taste(
            evidence.filter((pl.col("rating") >= POSITIVE_RATING) == like),
            n_users,
            genres,
            popularity,
        )
        for like in (True, False)
    )
    variance = _pooled([liked.deviations, disliked.deviations])

    candidates = task.candidates()
    user, item = candidates["user"].to_numpy(), candidates["item"].to_numpy()
    by_genre = np.einsum("ng,ng->n", np.log(liked.shares / disliked.shares)[user], genres[item])
    difference = liked.popularity - disliked.popularity
    middle = (liked.popularity + disliked.popularity) / 2
    by_popularity = difference[user] * (popularity[item] - middle[user]) / variance
    score = pl.Series("score", (by_genre + by_popularity).astype(np.float32))
    return task.answers(candidates.with_columns(score).with_columns(picked=pl.col("score") > 0))


@dataclass(frozen=True)
class _Taste:
    """What users' likes (or dislikes) have in common.

    Attributes:
        shares: smoothed share of each genre, [users, genres]; rows sum to 1.
        popularity: smoothed mean popularity, [users].
        deviations: of each rating's popularity from the mean of all, [ratings].
    """

    shares: Floats
    popularity: Floats
    deviations: Floats


def _taste(ratings: pl.DataFrame, n_users: int, genres: Floats, popularity: Floats) -> _Taste:
    user, item = ratings["user"].to_numpy(), ratings["item"].to_numpy()
    weights = _sums(user, n_users, genres[item].T)
    # One rating more of every genre, or a genre that nobody dislikes would have a share of 0.
    overall = (weights.sum(axis=0) + 1) / (weights.sum() + genres.shape[1])
    shares = (weights + SMOOTHING * overall) / (weights.sum(axis=1, keepdims=True) + SMOOTHING)

    values = popularity[item]
    mean = values.mean() if len(values) else popularity.mean()
    total = _sums(user, n_users, values[np.newaxis])[:, 0]
    means = (total + SMOOTHING * mean) / (np.bincount(user, minlength=n_users) + SMOOTHING)
    return _Taste(shares, means, values - mean)


def _sums(user: Codes, n_users: int, columns: Floats) -> Floats:
    """Sums of each column [ratings] over the ratings of each user, [users, columns]."""
    sums = [np.bincount(user, weights=column, minlength=n_users) for column in columns]
    return np.stack(sums, axis=1) if sums else np.zeros((n_users, 0))


def _pooled(deviations: list[Floats]) -> float:
    """Variance within the classes, which weigh the same; 1 where nothing varies."""
    variances = [float(np.mean(values**2)) for values in deviations if len(values)]
    return (sum(variances) / len(variances) if variances else 0.0) or 1.0


def _genre_weights(genres: pl.Series) -> Floats:
    """w(i, g): 1 over the item's number of genres for each of them, else 0; [items, genres]."""
    names = {name: code for code, name in enumerate(genres.explode().drop_nulls().unique().sort())}
    weights = np.zeros((len(genres), len(names)))
    for item, listed in enumerate(genres.to_list()):
        own = [names[name] for name in dict.fromkeys(listed or ())]
        weights[item, own] = 1 / max(len(own), 1)
    return weights
