r"""A small synthetic dataset with a known truth: which low ratings hide a liking.

Items. Item i has one to three of G genres, g_i in {0, 1}^G, and a character of its own around them,

    v_i = g_i / |g_i| + d_i,    d_i ~ N(0, 0.1^2 I_G),

a popularity p_i proportional to 1 / rank^0.5 under a random ranking, invented title, and year.

Users. User u has a taste w_u ~ N(0, I_G) (an entry a genre; negative: disliked) and a habit
b_u ~ N(0, 0.9^2): generous above 0, strict below. The user's liking of an item is

    a_ui = <w_u, v_i>.

Ratings. The user rates n_u ~ 12 + Poisson(20) items, drawn without replacement with probability
proportional to p_i exp(a_ui): what is popular, and rather what one likes. A rating is the
liking seen through the habit, noise, and now and then a bad evening:

    r_ui = clip(round(3.2 + a_ui + b_u + e_ui - m_ui), 1, 5),
    e_ui ~ N(0, 0.5^2),    m_ui = 1.5 with probability 0.2, else 0.

Truth. A rating of 2 or 3 is *falsely identified* as negative if the user likes the item,
a_ui > 0.4: habit, noise or mood made it low, not taste. Other ratings up to 3 are genuine dislikes.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refine.artifacts import POSITIVE_RATING, replacing

SEED = 2024
N_USERS, N_ITEMS = 360, 200

GENRES = ("Action", "Comedy", "Drama", "Horror", "Romance", "Sci-Fi")

_FIRST = (
    "Amber", "Broken", "Crimson", "Distant", "Electric", "Forgotten", "Golden", "Hollow", "Iron",
    "Last", "Midnight", "Northern", "Paper", "Quiet", "Restless", "Silver", "Velvet", "Winter",
)  # fmt: skip
_SECOND = (
    "Balloon", "Carousel", "Detour", "Empire", "Frontier", "Garden", "Harbour", "Island", "Journey",
    "Kingdom", "Lantern", "Mirror", "Orchard", "Parade", "River", "Station", "Tango", "Voyage",
)  # fmt: skip

_LIKING = 0.4
_START = 1_000_000_000
"""Second (of 2001) in which the first user begins to rate."""


def generate(folder: Path, seed: int = SEED) -> None:
    """Writes ratings.csv, items.csv and truth.csv; the same seed gives the same bytes.

    truth.csv has user_id, item_id and falsely_identified (0 or 1) for every rating up to 3.
    """
    random = np.random.default_rng(seed)
    n_genres = random.integers(1, 4, N_ITEMS)
    ranks = random.random((N_ITEMS, len(GENRES))).argsort(axis=1).argsort(axis=1)
    genres = ranks < n_genres[:, None]  # [items, genres]
    character = genres / np.sqrt(n_genres)[:, None] + random.normal(0, 0.1, genres.shape)
    popularity = 1.0 / random.permutation(np.arange(1, N_ITEMS + 1)) ** 0.5
    years = random.integers(1950, 2021, N_ITEMS)
    names = random.permutation([f"{first} {second}" for first in _FIRST for second in _SECOND])

    taste = random.normal(0, 1, (N_USERS, len(GENRES)))
    habit = random.normal(0, 0.9, N_USERS)
    liking = taste @ character.T  # [users, items]
    n_ratings = 12 + random.poisson(20, N_USERS)

    ratings, truth = [], []
    for user in range(N_USERS):
        chance = popularity * np.exp(liking[user])
        items = random.choice(N_ITEMS, n_ratings[user], replace=False, p=chance / chance.sum())
        noise = random.normal(0, 0.5, len(items)) - 1.5 * (random.random(len(items)) < 0.2)
        stars = np.rint(3.2 + liking[user, items] + habit[user] + noise).clip(1, 5)
        times = _START + 86_400 * user + random.integers(30, 600, len(items)).cumsum()
        for item, rating, time in zip(items, stars.astype(int), times, strict=True):
            ratings.append((user + 1, item + 1, rating, time))
            if rating < POSITIVE_RATING:
                hidden = rating > 1 and liking[user, item] > _LIKING
                truth.append((user + 1, item + 1, int(hidden)))

    folder.mkdir(parents=True, exist_ok=True)
    catalogue = [
        (item + 1, names[item], years[item], "|".join(np.array(GENRES)[genres[item]]))
        for item in range(N_ITEMS)
    ]
    _write(folder / "ratings.csv", ("user_id", "item_id", "rating", "timestamp"), ratings)
    _write(folder / "items.csv", ("item_id", "title", "year", "genres"), catalogue)
    _write(folder / "truth.csv", ("user_id", "item_id", "falsely_identified"), truth)


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
