import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from dataset_files import Parts
from hypothesis import given, settings
from hypothesis import strategies as st

from refine.artifacts import RATINGS, interactions_schema, items_schema, read_table, write_table
from refine.splits.split import SplitError, hold_out


def write(folder, rows, times=None, id_type=None):
    """interactions.parquet and items.parquet of (user, item, rating) rows."""
    id_type = id_type or pa.int64()
    users, items, ratings = zip(*rows, strict=True)
    table = pa.table(
        {
            "user_id": pa.array(users, id_type),
            "item_id": pa.array(items, id_type),
            "rating": pa.array(ratings, pa.int8()),
            "timestamp": pa.array(times or [None] * len(rows), pa.int64()),
        }
    )
    write_table(table, folder / "interactions.parquet", interactions_schema(id_type))
    ids = sorted(set(items))
    catalogue = pa.table(
        {
            "item_id": pa.array(ids, id_type),
            "title": [f"Title {item}" for item in ids],
            "year": pa.array([None] * len(ids), pa.int16()),
            "genres": pa.array([["Drama"]] * len(ids)),
        }
    )
    write_table(catalogue, folder / "items.parquet", items_schema(id_type))
    return folder / "interactions.parquet", folder / "items.parquet"


def random_rows(seed, n_users=40, n_items=40, share=0.6):
    random = np.random.default_rng(seed)
    pairs = np.argwhere(random.random((n_users, n_items)) < share)
    random.shuffle(pairs)
    ratings = random.integers(1, 6, len(pairs))
    return [(int(u) * 7, int(i) * 3 + 1, int(r)) for (u, i), r in zip(pairs, ratings, strict=True)]


def published_split(rows, k):
    """The protocol, written as the release describes it: plain loops over plain rows."""
    core = [row for row in rows if row[2] >= 4]
    while True:
        before = len(core)
        for column in (1, 0):
            counts = {}
            for row in core:
                counts[row[column]] = counts.get(row[column], 0) + 1
            core = [row for row in core if counts[row[column]] >= k]
        if len(core) == before:
            break
    users, items = {row[0] for row in core}, {row[1] for row in core}
    negatives = [row for row in rows if row[2] < 4 and row[0] in users and row[1] in items]
    np.random.seed(2024)  # noqa: NPY002 - the legacy stream is the point
    train, validation, test = set(negatives), set(), set()
    for user in sorted(users):
        own = [row for row in core if row[0] == user]
        own = [own[index] for index in np.random.permutation(len(own))]  # noqa: NPY002
        n_test, n_validation = int(0.2 * len(own)), int(0.1 * len(own))
        test.update(own[:n_test])
        validation.update(own[n_test : n_test + n_validation])
        train.update(own[n_test + n_validation :])
    return train, validation, test


@pytest.mark.parametrize("seed", range(4))
def test_random_split_is_the_published_one(tmp_path, seed):
    rows = random_rows(seed)
    parts = Parts(*write(tmp_path, rows), tmp_path / "split")
    train, validation, test = published_split(rows, 5)
    assert set(parts.rows("train")) == train
    assert set(parts.rows("validation")) == validation
    assert set(parts.rows("test")) == test
    assert test
    assert validation


def test_tables_are_coded_and_sorted_as_documented(tmp_path):
    parts = Parts(*write(tmp_path, random_rows(1)), tmp_path / "split")
    assert parts.users["user"].to_list() == list(range(len(parts.users)))
    assert parts.users["user_id"].is_sorted()
    assert parts.items["item"].to_list() == list(range(len(parts.items)))
    assert parts.items["item_id"].is_sorted()
    for part in ("train", "validation", "test"):
        table = read_table(tmp_path / f"split/{part}.parquet", RATINGS)
        assert table.equals(table.sort_by([("user", "ascending"), ("item", "ascending")]))
    sizes = {part: len(coded) for part, coded in parts.coded.items()}
    statistics = parts.statistics
    assert statistics["users"] == len(parts.users)
    assert statistics["items"] == len(parts.items)
    assert statistics["ratings"] == sum(sizes.values())
    assert statistics["density"] == statistics["ratings"] / (len(parts.users) * len(parts.items))
    assert statistics["train_positives"] + statistics["train_negatives"] == sizes["train"]
    assert (statistics["validation"], statistics["test"]) == (sizes["validation"], sizes["test"])
    assert statistics["negatives_per_positive"] == statistics["negatives"] / statistics["positives"]
    assert (parts.coded["test"]["rating"] >= 4).all()


def test_same_input_same_bytes_and_the_seed_matters(tmp_path):
    paths = write(tmp_path, random_rows(2))
    first = Parts(*paths, tmp_path / "a")
    Parts(*paths, tmp_path / "b")
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    other = Parts(*paths, tmp_path / "c", seed=7)
    assert first.statistics["split_digest"] != other.statistics["split_digest"]


def test_text_ids_split_like_numbers_of_the_same_order(tmp_path):
    rows = random_rows(3)
    texts = [(f"u{user:04}", f"i{item:04}", rating) for user, item, rating in rows]
    by_number = Parts(*write(tmp_path / "n", rows), tmp_path / "n/split")
    by_text = Parts(*write(tmp_path / "t", texts, id_type=pa.string()), tmp_path / "t/split")
    for part in ("train", "validation", "test"):
        assert by_number.coded[part].equals(by_text.coded[part])
    assert by_text.users["user_id"].dtype == pl.String


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=60),
    st.sampled_from([0.0, 0.1, 0.25, 0.29]),
    st.sampled_from([0.0, 0.2, 0.5]),
    st.booleans(),
)
def test_shares_are_floors_of_each_users_positives(rows, validation, test, temporal):
    users, times = np.array(rows, dtype=np.int64).reshape(-1, 2).T
    parts = hold_out(
        users, validation=validation, test=test, seed=1, timestamps=times if temporal else None
    )
    for user in np.unique(users):
        own = parts[users == user]
        percent = {1: round(100 * validation), 2: round(100 * test)}
        for part, share in percent.items():
            assert (own == part).sum() == len(own) * share // 100


def test_temporal_holds_out_the_latest(tmp_path):
    users = np.array([0] * 10 + [1] * 10)
    times = np.concatenate([np.arange(10), np.arange(10)[::-1]])
    parts = hold_out(users, validation=0.1, test=0.2, seed=1, timestamps=times)
    assert parts.tolist() == [0] * 7 + [1, 2, 2] + [2, 2, 1] + [0] * 7


def test_temporal_takes_later_rows_at_equal_times():
    parts = hold_out(
        np.zeros(10, int), validation=0.1, test=0.2, seed=1, timestamps=np.zeros(10, int)
    )
    assert parts.tolist() == [0] * 7 + [1, 2, 2]


def test_temporal_split_of_files(tmp_path):
    rows = random_rows(5)
    times = np.random.default_rng(0).permutation(len(rows)).tolist()
    parts = Parts(*write(tmp_path, rows, times), tmp_path / "split", method="temporal")
    for earlier, later in (("train", "validation"), ("validation", "test")):
        positives = parts.coded[earlier].filter(pl.col("rating") >= 4)
        last = positives.group_by("user").agg(last=pl.col("timestamp").max())
        joined = parts.coded[later].join(last, on="user")
        assert len(joined)
        assert (joined["timestamp"] > joined["last"]).all()


def test_temporal_without_timestamps_is_refused(tmp_path):
    with pytest.raises(SplitError, match=r"no timestamp.*split.method: random"):
        Parts(*write(tmp_path, random_rows(1)), tmp_path / "split", method="temporal")


def test_subset_draws_users_as_published(tmp_path):
    rows = random_rows(6)
    parts = Parts(*write(tmp_path, rows), tmp_path / "split", subset={"users": 15}, min_positives=1)
    np.random.seed(2024)  # noqa: NPY002
    drawn = np.random.choice(np.unique([row[0] for row in rows]), 15, replace=False)  # noqa: NPY002
    assert set(parts.users["user_id"]) == set(drawn.tolist())
    expected = published_split([row for row in rows if row[0] in set(drawn)], 1)
    assert set(parts.rows("test")) == expected[2]


def test_subset_larger_than_the_data_is_refused(tmp_path):
    with pytest.raises(SplitError, match=r"there are 40 users.*asks for 41"):
        Parts(*write(tmp_path, random_rows(1)), tmp_path / "split", subset={"users": 41})


def test_cold_items_are_dropped_on_request(tmp_path):
    # Nobody shares an item: whatever is held out has no other positive to be known by.
    rows = [(user, user * 10 + item, 5) for user in range(4) for item in range(10)]
    paths = write(tmp_path, rows)
    kept = Parts(*paths, tmp_path / "kept", min_positives=1)
    dropped = Parts(*paths, tmp_path / "dropped", min_positives=1, drop_cold_items=True)
    assert kept.statistics["test"] == 8
    assert kept.statistics["dropped_cold"] == 0
    assert dropped.statistics["test"] == dropped.statistics["validation"] == 0
    assert dropped.statistics["dropped_cold"] == 12
    assert dropped.statistics["items"] == kept.statistics["items"] == 40
    assert dropped.pairs("train") == kept.pairs("train")


def test_an_empty_core_is_refused(tmp_path):
    rows = [(user, item, 3) for user in range(6) for item in range(6)]
    with pytest.raises(SplitError, match="min_positives"):
        Parts(*write(tmp_path, rows), tmp_path / "split")
    assert not (tmp_path / "split").exists()


def test_items_of_another_dataset_are_refused(tmp_path):
    interactions, _ = write(tmp_path / "a", random_rows(1))
    _, items = write(tmp_path / "b", [(1, 1, 5)])
    with pytest.raises(SplitError, match="rated items are missing"):
        Parts(interactions, items, tmp_path / "split")


def test_published_statistics_stand_beside_ours(tmp_path, caplog):
    paths = write(tmp_path, random_rows(1))
    ours = Parts(*paths, tmp_path / "a").statistics
    published = {"users": 1, "density": round(ours["density"], 4), "test": ours["test"]}
    parts = Parts(*paths, tmp_path / "b", published=published)
    assert parts.statistics["published"] == published
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [f"users is {ours['users']}, published 1"]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_negatives_and_positives_survive_exactly_once(tmp_path_factory, seed):
    folder = tmp_path_factory.mktemp("split")
    rows = random_rows(seed, n_users=15, n_items=15)
    interactions, items = write(folder, rows)
    try:
        parts = Parts(interactions, items, folder / "split", min_positives=3)
    except SplitError:
        return
    together = [row for part in ("train", "validation", "test") for row in parts.rows(part)]
    assert len(together) == len(set(together))
    assert set(together) <= set(rows)
