"""Random numbers that belong to a key, so that other users, items or shards never change them.

A generator that walks through the data gives every draw a place in one sequence: one more user, and
all later draws differ. Here a draw is a hash of the seed and of the ids it is about. The mixer is
the finaliser of SplitMix64 (Steele, Lea and Flood, 2014); ids of any kind enter by BLAKE2b of their
text, so nothing depends on the versions of numpy or polars.
"""

from hashlib import blake2b

import numpy as np
import polars as pl
from numpy.typing import NDArray

Keys = NDArray[np.uint64]


def id_keys(ids: pl.Series) -> Keys:
    """One 64-bit key an id, from the id's text: whole numbers and their texts have the same key."""
    distinct = ids.unique().sort()
    keys = [_text_key(text) for text in distinct.cast(pl.String).to_list()]
    of_ids: Keys = np.array(keys, dtype=np.uint64)[distinct.search_sorted(ids).to_numpy()]
    return of_ids


def draw_keys(seed: int, purpose: str, *keys: Keys) -> Keys:
    """64 random bits for each row of ``keys``, which are arrays of one length.

    Draws of different seeds or purposes are independent of each other.
    """
    state = np.full(len(keys[0]), _text_key(f"{seed} {purpose}"), dtype=np.uint64)
    for key in keys:
        state = _mix(state ^ key)
    return state


def uniform(keys: Keys) -> NDArray[np.float64]:
    """Numbers uniform on [0, 1), from the upper 53 bits of ``keys``."""
    return (keys >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _text_key(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def _mix(state: Keys) -> Keys:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
