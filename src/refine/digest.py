"""A digest of a ratings table that does not depend on row order, file format or library versions.

Every row is hashed to 64 bits from the canonical text of its ids and its rating; the digest is
taken over the number of rows and two independent sums of the hashes modulo 2^64. It therefore
streams, and two sources of the same ratings give the same digest. It detects damage and wrong
versions; it is no defence against somebody who forges ratings on purpose.
"""

import hashlib
import re
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

WHOLE_NUMBER = r"^(?:0|-?[1-9][0-9]{0,17})$"
"""Ids of this shape are numbers: any int64 in its shortest spelling, up to 18 digits."""

_WHOLE_NUMBER = re.compile(WHOLE_NUMBER)
_USER, _ITEM, _RATING, _LANE = (
    np.uint64(value)
    for value in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93)
)


class RatingsDigest:
    """The digest of a ratings table that arrives in pieces."""

    def __init__(self) -> None:
        self._rows = 0
        self._sums = [0, 0]

    def update(self, user_ids: Any, item_ids: Any, ratings: Any) -> NDArray[np.uint64]:
        """Adds rows.

        Args:
            user_ids: [n] integers or strings (NumPy or Arrow array, or list).
            item_ids: [n] likewise.
            ratings: [n] whole numbers.

        Returns:
            [n] keys of the (user, item) pairs: equal pairs have equal keys, and two different
            pairs share one with probability 2^-64.
        """
        with np.errstate(over="ignore"):
            pairs = _mix(_mix(_hash_ids(user_ids) ^ _USER) + (_hash_ids(item_ids) ^ _ITEM))
            rows = _mix(pairs ^ (np.asarray(ratings).astype(np.int64).view(np.uint64) * _RATING))
            self._rows += len(rows)
            for lane, hashes in enumerate((rows, _mix(rows ^ _LANE))):
                self._sums[lane] = (self._sums[lane] + int(hashes.sum(dtype=np.uint64))) % 2**64
        return pairs

    def hexdigest(self) -> str:
        """The digest so far, 32 hexadecimal digits."""
        words = np.array([self._rows, *self._sums], dtype="<u8")
        return hashlib.blake2b(words.tobytes(), digest_size=16).hexdigest()


def ratings_digest(user_ids: Any, item_ids: Any, ratings: Any) -> str:
    """The digest of a whole ratings table; arguments as for ``RatingsDigest.update``."""
    digest = RatingsDigest()
    digest.update(user_ids, item_ids, ratings)
    return digest.hexdigest()


def _hash_ids(ids: Any) -> NDArray[np.uint64]:
    """[n] hashes; the integer 7 and the text "7" have the same one."""
    if not isinstance(ids, pa.Array | pa.ChunkedArray):
        ids = pa.array(ids)
    if pa.types.is_integer(ids.type):
        return _mix(ids.to_numpy().astype(np.int64, copy=False).view(np.uint64))
    encoded = ids.dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    hashes = np.fromiter((_hash_text(text) for text in encoded.dictionary.to_pylist()), np.uint64)
    places: NDArray[np.int32] = encoded.indices.to_numpy()
    return hashes[places]


def _hash_text(text: str) -> int:
    if _WHOLE_NUMBER.match(text):
        return int(_mix(np.array([int(text)], dtype=np.int64).view(np.uint64))[0])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The SplitMix64 finaliser (Steele, Lea and Flood, OOPSLA 2014): a bijection on 64 bits."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words ^= words >> np.uint64(30)
    words *= np.uint64(0xBF58476D1CE4E5B9)
    words ^= words >> np.uint64(27)
    words *= np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return words
