"""Reduces ratings to their k-core and holds out each user's positives, as published.

The random split draws from NumPy's legacy generator (``RandomState``, whose stream NumPy keeps
fixed for ever) in the order of the ReFINe release, so that it gives the release's own sets.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from refine.artifacts import (
    POSITIVE_RATING,
    RATINGS,
    interactions_schema,
    items_schema,
    read_table,
    write_json,
    write_table,
)
from refine.digest import RatingsDigest
from refine.splits.kcore import k_core

log = logging.getLogger("refine.splits")

PARTS = ("train", "validation", "test")
_TRAIN, _VALIDATION, _TEST = range(len(PARTS))

BATCH_ROWS = 2_000_000


class SplitError(ValueError):
    """The ratings cannot be split as asked; the message says what would help."""


def split_dataset(
    interactions: Path,
    items: Path,
    folder: Path,
    *,
    subset: dict[str, Any],
    split: dict[str, Any],
    published: dict[str, Any] | None,
) -> None:
    """Writes train, validation and test, the tables of codes, and statistics.json.

    In this order: some users are drawn (``subset``); the k-core of the positives is taken, and the
    negatives whose user and item are in it; each user's positives are split, all negatives going
    to train; held-out ratings of items without a train positive are dropped, if so configured.

    Args:
        interactions: interactions.parquet; the random split shuffles its row order.
        items: items.parquet.
        folder: destination.
        subset: settings ``users`` (how many are drawn; None for all) and ``seed``.
        split: settings ``min_positives``, ``method`` (random or temporal), ``validation`` and
            ``test`` (shares of each user's positives), ``drop_cold_items``, ``seed``.
        published: what statistics.json shows beside our numbers, as it is.

    Raises:
        SplitError: too few users to draw from, nothing left, or no timestamps to split by.
    """
    ratings = _read(interactions, subset)
    n_read = len(ratings)
    ratings = _core(ratings, split["min_positives"], interactions)
    user_ids, users = _encode(ratings["user_id"])
    item_ids, item_codes = _encode(ratings["item_id"])
    positive = ratings["rating"].to_numpy() >= POSITIVE_RATING
    part = np.full(len(ratings), _TRAIN, dtype=np.int8)
    part[positive] = hold_out(
        users[positive],
        validation=split["validation"],
        test=split["test"],
        seed=split["seed"],
        timestamps=_timestamps(ratings, interactions)[positive]
        if split["method"] == "temporal"
        else None,
    )
    kept = np.ones(len(ratings), dtype=bool)
    if split["drop_cold_items"]:
        kept = (part == _TRAIN) | np.isin(item_codes, item_codes[positive & (part == _TRAIN)])
    digest = RatingsDigest()
    for index, name in enumerate(PARTS):
        rows = np.flatnonzero(kept & (part == index))
        rows = rows[np.lexsort((item_codes[rows], users[rows]))]
        chosen = ratings[rows]
        # The part goes into the digest as if it were a digit before the rating.
        digest.update(
            chosen["user_id"].to_arrow(),
            chosen["item_id"].to_arrow(),
            chosen["rating"].to_numpy().astype(np.int64) + 10 * index,
        )
        table = pa.table(
            {
                "user": users[rows],
                "item": item_codes[rows],
                "rating": chosen["rating"].to_arrow(),
                "timestamp": chosen["timestamp"].to_arrow(),
            }
        )
        write_table(table, folder / f"{name}.parquet", RATINGS)
    _write_codes(user_ids, item_ids, items, folder)
    n_users, n_items = len(user_ids), len(item_ids)
    statistics = {
        "users": n_users,
        "items": n_items,
        "ratings": len(ratings),
        "density": len(ratings) / (n_users * n_items),
        "positives": int(positive.sum()),
        "negatives": int((~positive).sum()),
        "negatives_per_positive": float((~positive).sum() / positive.sum()),
        "train_positives": int((positive & (part == _TRAIN)).sum()),
        "train_negatives": int((~positive).sum()),
        "validation": int((kept & (part == _VALIDATION)).sum()),
        "test": int((kept & (part == _TEST)).sum()),
        "ratings_outside_core": n_read - len(ratings),
        "dropped_cold": int((~kept).sum()),
        "split_digest": digest.hexdigest(),
    }
    if published:
        statistics["published"] = published
        _log_differences(statistics)
    write_json(statistics, folder / "statistics.json")
    log.info(
        "%d users, %d items, %d ratings; train %d + %d, validation %d, test %d",
        *(statistics[name] for name in ("users", "items", "ratings")),
        *(statistics[name] for name in ("train_positives", "train_negatives")),
        *(statistics[name] for name in ("validation", "test")),
    )


def hold_out(
    users: NDArray[np.integer],
    *,
    validation: float,
    test: float,
    seed: int,
    timestamps: NDArray[np.integer] | None = None,
) -> NDArray[np.int8]:
    """Which positives are held out: of a user's n, floor(test n) for test, then validation.

    Random: one legacy generator permutes the rows of each user, users in ascending order; the
    first of the permutation are test, the next validation (protocol of the ReFINe release).
    Temporal: the latest are test, those before them validation; equal times keep the row order.

    Args:
        users: [n] codes.
        validation: share of a user's rows.
        test: share of a user's rows.
        seed: of the random split.
        timestamps: [n]; makes the split temporal.

    Returns:
        [n] index into ``PARTS``.
    """
    counts = np.bincount(users)
    starts = np.cumsum(counts) - counts
    if timestamps is None:
        order = np.argsort(users, kind="stable")
        random = np.random.RandomState(seed)  # the published stream
        for start, count in zip(
            tqdm(starts, "splitting", unit="user", disable=None), counts, strict=True
        ):
            if count:
                order[start : start + count] = order[start + random.permutation(count)]
    else:
        # Latest first; among equal times the later row counts as later.
        order = np.lexsort((-np.arange(len(users)), -timestamps, users))
    rank = np.arange(len(users)) - np.repeat(starts, counts)
    n_test, n_validation = (_floor_share(counts, share) for share in (test, validation))
    parts = np.empty(len(users), dtype=np.int8)
    parts[order] = np.select(
        [rank < np.repeat(n_test, counts), rank < np.repeat(n_test + n_validation, counts)],
        [_TEST, _VALIDATION],
        _TRAIN,
    )
    return parts


def _floor_share(counts: NDArray[np.integer], share: float) -> NDArray[np.int64]:
    """floor(share n) of the decimal number meant: 0.29 of 100 is 29, though 0.29 * 100 < 29."""
    shares: NDArray[np.int64] = np.floor(counts * share + 1e-9).astype(np.int64)
    return shares


def _read(path: Path, subset: dict[str, Any]) -> pl.DataFrame:
    """The ratings of all users or of those drawn, in file order, batch by batch."""
    with pq.ParquetFile(path) as parquet:
        id_type = parquet.schema_arrow.field("user_id").type
    if subset["users"] is None:
        return pl.DataFrame(read_table(path, interactions_schema(id_type)))
    everybody = pl.scan_parquet(path).select(pl.col("user_id").unique())
    ids = everybody.collect(engine="streaming")["user_id"].sort()
    if len(ids) < subset["users"]:
        raise SplitError(
            f"{path}: there are {len(ids)} users, and `subset.users` asks for {subset['users']}; "
            "lower it, or set it to null to keep all"
        )
    random = np.random.RandomState(subset["seed"])  # the published stream
    drawn = ids[np.sort(random.choice(len(ids), subset["users"], replace=False))].implode()
    with pq.ParquetFile(path) as parquet:
        batches = [
            pl.DataFrame(batch).filter(pl.col("user_id").is_in(drawn))
            for batch in parquet.iter_batches(BATCH_ROWS)
        ]
    log.info("%d of %d users drawn", subset["users"], len(ids))
    return pl.concat(batches)


def _core(ratings: pl.DataFrame, k: int, path: Path) -> pl.DataFrame:
    """The k-core of the positives, and the negatives between its users and items."""
    user_ids, users = _encode(ratings["user_id"])
    item_ids, items = _encode(ratings["item_id"])
    positive = ratings["rating"].to_numpy() >= POSITIVE_RATING
    core = np.flatnonzero(positive)[k_core(users[positive], items[positive], k)]
    if not len(core):
        raise SplitError(
            f"{path}: no user and item have {k} ratings of {POSITIVE_RATING} or more among each "
            "other; lower `split.min_positives`"
        )
    user_stays = np.zeros(len(user_ids), dtype=bool)
    item_stays = np.zeros(len(item_ids), dtype=bool)
    user_stays[users[core]] = True
    item_stays[items[core]] = True
    # A positive between two that stay is in the core: the core is the largest such set.
    return ratings.filter(pl.Series(user_stays[users] & item_stays[items]))


def _encode(ids: pl.Series) -> tuple[pl.Series, NDArray[np.int32]]:
    """The distinct ids in ascending order, and each row's place among them."""
    distinct = ids.unique().sort()
    codes = pc.index_in(ids.to_arrow(), value_set=distinct.to_arrow())
    return distinct, codes.to_numpy()


def _timestamps(ratings: pl.DataFrame, path: Path) -> NDArray[np.int64]:
    missing = ratings["timestamp"].null_count()
    if missing:
        raise SplitError(
            f"{path}: {missing} of {len(ratings)} ratings have no timestamp, which `split.method: "
            "temporal` needs; use a source that has them, or `split.method: random`"
        )
    return ratings["timestamp"].to_numpy()


def _write_codes(user_ids: pl.Series, item_ids: pl.Series, items: Path, folder: Path) -> None:
    """users.parquet and items.parquet: code, id, and what is known of the item."""
    users = pl.DataFrame({"user": np.arange(len(user_ids), dtype=np.int32), "user_id": user_ids})
    write_table(users.to_arrow(), folder / "users.parquet")
    with pq.ParquetFile(items) as parquet:
        schema = items_schema(parquet.schema_arrow.field("item_id").type)
    known = pl.DataFrame(read_table(items, schema))
    coded = pl.DataFrame({"item": np.arange(len(item_ids), dtype=np.int32), "item_id": item_ids})
    coded = coded.join(known, on="item_id", how="left", maintain_order="left")
    unknown = coded.filter(pl.col("title").is_null())
    if len(unknown):
        raise SplitError(
            f"{items}: {len(unknown)} rated items are missing, the first of them "
            f"{unknown['item_id'][0]}; it does not belong to these interactions"
        )
    schema = schema.insert(0, pa.field("item", pa.int32(), nullable=False))
    write_table(coded.to_arrow(), folder / "items.parquet", schema)


def _log_differences(statistics: dict[str, Any]) -> None:
    for name, theirs in statistics["published"].items():
        ours = statistics.get(name)
        if ours is not None and round(ours, 4 if name == "density" else 2) != theirs:
            log.warning("%s is %s, published %s", name, ours, theirs)
