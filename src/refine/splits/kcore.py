"""The k-core of a bipartite graph of ratings."""

import numpy as np
from numpy.typing import NDArray


def k_core(users: NDArray[np.integer], items: NDArray[np.integer], k: int) -> NDArray[np.bool_]:
    """Which rows belong to the largest set where every user and every item has k rows or more.

    The set is unique, whatever the order of removal (Seidman, Social Networks 1983); here users
    and items with too few rows leave in rounds until nobody has to.

    Args:
        users: [n] codes from 0.
        items: [n] codes from 0.
        k: rows that a user or item needs; 0 and 1 keep everything.

    Returns:
        [n] true for the rows that stay.
    """
    kept = np.zeros(len(users), dtype=bool)
    rows = np.arange(len(users))
    while True:
        stays = (np.bincount(users)[users] >= k) & (np.bincount(items)[items] >= k)
        if stays.all():
            kept[rows] = True
            return kept
        rows, users, items = rows[stays], users[stays], items[stays]
