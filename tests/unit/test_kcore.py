import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from refine.splits.kcore import k_core


def peel_one_by_one(rows, k):
    """The slow way: as long as somebody has too few rows, remove one such user or item."""
    alive = set(range(len(rows)))
    while True:
        degree = {}
        for index in alive:
            user, item = rows[index]
            degree.setdefault(("user", user), set()).add(index)
            degree.setdefault(("item", item), set()).add(index)
        weak = next((rows_of for rows_of in degree.values() if len(rows_of) < k), None)
        if weak is None:
            return alive
        alive -= weak


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=70, unique=True),
    st.integers(0, 4),
)
def test_equals_peeling_one_by_one(rows, k):
    users, items = np.array(rows, dtype=np.int32).reshape(-1, 2).T
    kept = k_core(users, items, k)
    assert kept.shape == (len(rows),)
    assert set(np.flatnonzero(kept)) == peel_one_by_one(rows, k)


def test_removal_cascades():
    # A 3 x 3 block, and a chain that hangs on it and must fall link by link.
    block = [(user, item) for user in range(3) for item in range(3)]
    chain = [(0, 3), (3, 3), (3, 4), (4, 4)]
    users, items = np.array(block + chain).T
    assert k_core(users, items, 2).tolist() == [True] * 9 + [False] * 4
