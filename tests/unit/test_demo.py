from pathlib import Path

import numpy as np
import polars as pl
import pytest
from dataset_files import Parts, Tables, source_json

from refine.datasets.demo import generate

FILES = {"ratings": {"path": "ratings.csv"}, "items": {"path": "items.csv"}}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    generate(folder)
    tables = Tables(source_json(folder, "table", FILES))
    parts = Parts(tables.interactions_path, tables.items_path, folder / "split")
    return folder, tables, parts


def test_the_seed_decides_every_byte(tmp_path, demo):
    folder, _, _ = demo
    generate(tmp_path / "again")
    generate(tmp_path / "other", 7)
    for name in ("ratings.csv", "items.csv", "truth.csv"):
        content = (folder / name).read_bytes()
        assert (tmp_path / "again" / name).read_bytes() == content
        assert (tmp_path / "other" / name).read_bytes() != content


def test_size_and_shape(demo):
    _, tables, parts = demo
    assert 8_000 < parts.statistics["ratings"] < 12_000
    page = Path(__file__).resolve().parents[2] / "docs/datasets.md"
    assert f"{parts.statistics['ratings']:,}" in page.read_text(encoding="utf-8")
    assert parts.statistics["users"] > 0.8 * tables.report["ratings"]["users"]
    assert parts.statistics["items"] == tables.report["ratings"]["items"] == 200
    assert tables.items["title"].n_unique() == 200
    assert tables.report["repaired"]["timestamp_missing"] == 0
    # Generous and strict users, and both kinds of feedback.
    means = parts.coded["train"].group_by("user").agg(pl.col("rating").mean())["rating"]
    assert 0.05 < (means < 3).mean() < 0.5
    assert 0.4 < parts.statistics["negatives_per_positive"] < 1


def test_truth_covers_exactly_the_low_ratings(demo):
    folder, tables, _ = demo
    truth = pl.read_csv(folder / "truth.csv")
    low = tables.interactions.filter(pl.col("rating") <= 3).select("user_id", "item_id", "rating")
    joined = low.join(truth, on=["user_id", "item_id"], how="full")
    assert joined.null_count().sum_horizontal().item() == 0
    hidden = joined.filter(pl.col("falsely_identified") == 1)
    assert set(hidden["rating"]) == {2, 3}
    share = len(hidden) / len(joined.filter(pl.col("rating") > 1))
    assert 0.3 < share < 0.6


def low_ratings(demo):
    """Candidates with their truth, and each user's affinity to each item's genres."""
    folder, _, parts = demo
    truth = pl.read_csv(folder / "truth.csv").join(parts.users, on="user_id")
    truth = truth.join(parts.items.select("item", "item_id"), on="item_id")
    low = parts.coded["train"].filter(pl.col("rating").is_in([2, 3]))
    low = low.join(truth.select("user", "item", "falsely_identified"), on=["user", "item"])
    genres = parts.items.select("item", "genres").explode("genres")
    genres = genres.with_columns(weight=1.0).pivot("genres", index="item", values="weight")
    genres = genres.sort("item").drop("item").fill_null(0.0).to_numpy()
    genres /= genres.sum(axis=1, keepdims=True)
    train = parts.coded["train"]
    ratings = np.zeros((len(parts.users), len(parts.items)))
    ratings[train["user"], train["item"]] = train["rating"]
    return low, ratings, genres


def test_genre_affinity_tells_hidden_likes_from_dislikes(demo):
    low, ratings, genres = low_ratings(demo)
    liked, disliked = ((ratings >= 4) @ genres, ((ratings > 0) & (ratings <= 2)) @ genres)
    shares = [
        np.log((counts + 0.5) / (counts.sum(axis=1, keepdims=True) + 3))
        for counts in (liked, disliked)
    ]
    affinity = (shares[0] - shares[1]) @ genres.T
    scores = affinity[low["user"], low["item"]]
    truth = low["falsely_identified"].to_numpy() == 1
    picked = scores > np.quantile(scores, 1 - truth.mean())
    assert truth[picked].mean() > truth.mean() + 0.15


def recall(scores, ratings, test, k=20):
    """Mean Recall@k with everything rated in train masked."""
    ranked = np.argsort(-np.where(ratings > 0, -np.inf, scores), axis=1)[:, :k]
    hits = np.take_along_axis(test, ranked, axis=1).sum(axis=1)
    held_out = test.sum(axis=1)
    return (hits[held_out > 0] / held_out[held_out > 0]).mean()


def linear_autoencoder(likes, penalty=20.0):
    """EASE (Steck, WWW 2019)."""
    inverse = np.linalg.inv(likes.T @ likes + penalty * np.eye(likes.shape[1]))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return likes @ weights


def test_recommenders_learn_and_the_truth_helps_them(demo):
    low, ratings, _ = low_ratings(demo)
    held_out = demo[2].coded["test"]
    test = np.zeros(ratings.shape, dtype=bool)
    test[held_out["user"], held_out["item"]] = True
    likes = (ratings >= 4).astype(float)
    popularity = np.tile(likes.sum(axis=0), (len(likes), 1))
    learned = recall(linear_autoencoder(likes), ratings, test)
    assert learned > recall(popularity, ratings, test) + 0.04
    hidden = low.filter(pl.col("falsely_identified") == 1)
    likes[hidden["user"], hidden["item"]] = 1
    assert recall(linear_autoencoder(likes), ratings, test) > learned + 0.015
