import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refine.digest import RatingsDigest, ratings_digest

ratings = st.lists(
    st.tuples(st.integers(-5, 10**9), st.integers(0, 50), st.integers(1, 5)),
    min_size=1,
    max_size=40,
)


def columns(rows):
    users, items, values = zip(*rows, strict=True)
    return list(users), list(items), list(values)


def test_known_value():
    """Pinned: a registered digest must keep its meaning under every version of the libraries."""
    assert ratings_digest([1, 2], ["a", "7"], [5, 3]) == "9007a55f64db3fe95138fffa0310d8da"


@given(ratings, st.randoms(use_true_random=False))
def test_order_and_spelling_do_not_matter(rows, random):
    users, items, values = columns(rows)
    expected = ratings_digest(users, items, values)
    shuffled = list(rows)
    random.shuffle(shuffled)
    users, items, values = columns(shuffled)
    text = [str(user) for user in users]
    assert ratings_digest(text, np.array(items), np.array(values, dtype=np.int8)) == expected
    assert ratings_digest(pa.array(text), pa.array(items, pa.int32()), values) == expected


@given(ratings, st.integers(1, 39))
def test_pieces_give_the_digest_of_the_whole(rows, cut):
    digest = RatingsDigest()
    for part in (rows[:cut], rows[cut:]):
        if part:
            digest.update(*columns(part))
    assert digest.hexdigest() == ratings_digest(*columns(rows))


@pytest.mark.parametrize(
    ("users", "items", "values"),
    [
        ([1, 2, 3], [4, 5, 6], [1, 2, 4]),  # another rating
        ([1, 2, 3], [4, 6, 5], [1, 2, 3]),  # swapped items
        ([4, 2, 3], [1, 5, 6], [1, 2, 3]),  # user and item exchanged
        ([1, 2], [4, 5], [1, 2]),  # a row less
        ([1, 2, 3, 3], [4, 5, 6, 6], [1, 2, 3, 3]),  # a row twice
        (["1", "02", "3"], [4, 5, 6], [1, 2, 3]),  # 02 is another id than 2
    ],
)
def test_any_difference_shows(users, items, values):
    assert ratings_digest(users, items, values) != ratings_digest([1, 2, 3], [4, 5, 6], [1, 2, 3])


def test_pair_keys_tell_pairs_apart():
    users, items = np.divmod(np.arange(200_000), 450)
    keys = RatingsDigest().update(users, items, np.ones(len(users)))
    assert len(np.unique(keys)) == len(keys)
    again = RatingsDigest().update(users[:3], items[:3], [5, 5, 5])
    assert (again == keys[:3]).all()
