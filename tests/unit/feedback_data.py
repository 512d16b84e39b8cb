"""Small splits for the tests of prompts, judges and labels."""

import os
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
from hypothesis import strategies as st

from refine.artifacts import FEEDBACK, RATINGS, write_json, write_table

TEMPLATES = Path(__file__).parents[2] / "config/prompts"
TEMPLATE = TEMPLATES / "numbers.yaml"
PROMPTING = {
    "answer": "numbers",
    "chunk": 5,
    "favourites": "popularity",
    "name_dataset": False,
    "seed": 2024,
}

Rows = list[tuple[int | str, int | str, int]]


@dataclass(frozen=True)
class Split:
    """Paths of one written split."""

    folder: Path

    @property
    def train(self) -> Path:
        return self.folder / "train.parquet"

    @property
    def users(self) -> Path:
        return self.folder / "users.parquet"

    @property
    def items(self) -> Path:
        return self.folder / "items.parquet"

    @property
    def tables(self) -> tuple[Path, Path, Path]:
        return self.train, self.users, self.items


def write_split(
    folder: Path,
    rows: Rows,
    titles: dict[int | str, str] | None = None,
    genres: dict[int | str, list[str]] | None = None,
    more_items: tuple[int | str, ...] = (),
) -> Split:
    """Writes train, users and items from (user_id, item_id, rating) rows."""
    folder.mkdir(parents=True, exist_ok=True)
    split = Split(folder)
    user_ids = sorted({user for user, _, _ in rows})
    item_ids = sorted({item for _, item, _ in rows} | set(more_items))
    users = {user: code for code, user in enumerate(user_ids)}
    items = {item: code for code, item in enumerate(item_ids)}
    coded = sorted((users[user], items[item], rating) for user, item, rating in rows)
    train = pl.DataFrame(coded, schema=["user", "item", "rating"], orient="row")
    write_table(train.with_columns(timestamp=None).to_arrow(), split.train, RATINGS)
    write_table(
        pa.table({"user": pa.array(range(len(users)), pa.int32()), "user_id": user_ids}),
        split.users,
    )
    write_table(
        pa.table(
            {
                "item": pa.array(range(len(items)), pa.int32()),
                "item_id": item_ids,
                "title": [(titles or {}).get(item, f"Title {item}") for item in item_ids],
                "year": pa.array([None] * len(items), pa.int16()),
                "genres": pa.array(
                    [(genres or {}).get(item, ["Drama"]) for item in item_ids],
                    pa.list_(pa.string()),
                ),
            }
        ),
        split.items,
    )
    return split


def write_feedback(path: Path, rows: list[tuple[int, int, int, str]]) -> Path:
    """Writes a feedback table from (user, item, rating, label) codes."""
    table = pl.DataFrame(rows, schema=["user", "item", "rating", "label"], orient="row")
    write_table(table.with_columns(reason=pl.lit("given")).to_arrow(), path, FEEDBACK)
    return path


def write_source(path: Path, **files: Path) -> Path:
    """Writes a source.json that names files by role."""
    found = {role: {"path": os.path.relpath(file, path.parent)} for role, file in files.items()}
    write_json({"files": found}, path)
    return path


def release_split(mirror: Path, folder: Path) -> Split:
    """The published ML-100K train set with the published titles, as a split."""
    rows = pl.read_csv(mirror / "release/ml100k/ML-100K_train_original.csv").rows()
    items = pl.read_csv(
        mirror / "ml100k/ml-100k.item", separator="\t", infer_schema=False, quote_char=None
    )
    titles = {int(item): title for item, title, _, _ in items.rows()}
    genres = {int(item): (kinds or "").split() for item, _, _, kinds in items.rows()}
    return write_split(folder, rows, titles, genres)


def ratings_strategy(max_users: int = 6, max_items: int = 25) -> st.SearchStrategy[Rows]:
    """Ratings of distinct (user, item) pairs, at least one."""
    pairs = st.tuples(st.integers(1, max_users), st.integers(1, max_items))
    return st.dictionaries(pairs, st.integers(1, 5), min_size=1, max_size=80).map(
        lambda found: [(user, item, rating) for (user, item), rating in found.items()]
    )
