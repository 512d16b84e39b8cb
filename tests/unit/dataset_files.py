"""Small raw files in the layouts of the publishers, and shortcuts to read and split them."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import polars as pl

from refine.datasets.readers import read
from refine.splits.split import split_dataset

READING = {"require": ["title", "year", "genres"], "duplicates": "last", "order": "file"}
SPLIT = {
    "min_positives": 5,
    "method": "random",
    "validation": 0.1,
    "test": 0.2,
    "drop_cold_items": False,
    "seed": 2024,
}
SUBSET = {"users": None, "seed": 2024}

ITEMS_CSV = "item_id,title,year,genres\n1,Heat,1995,Action|Crime\n2,Toy Story,1995,Animation\n"


def source(
    folder: Path,
    reader: str,
    options: dict[str, Any] | None = None,
    **files: str | bytes | list[str],
) -> Path:
    """Writes ``<role>.csv`` for each role (several where a list is given) and source.json."""
    folder.mkdir(parents=True, exist_ok=True)
    entries: dict[str, Any] = {}
    for role, content in files.items():
        parts = content if isinstance(content, list) else [content]
        names = (
            [f"{role}.csv"] if len(parts) == 1 else [f"{role}{n}.csv" for n in range(len(parts))]
        )
        for name, part in zip(names, parts, strict=True):
            (folder / name).write_bytes(part if isinstance(part, bytes) else part.encode())
        described = [{"path": name} for name in names]
        entries[role] = described if isinstance(content, list) else described[0]
    return source_json(folder, reader, entries, options)


def source_json(
    folder: Path, reader: str, files: dict[str, Any], options: dict[str, Any] | None = None
) -> Path:
    """Writes source.json for files that are there already."""
    path = folder / "source.json"
    record = {"dataset": "test", "at": str(folder), "reader": reader, "files": files}
    path.write_text(json.dumps(record | {"options": options or {}}), encoding="utf-8")
    return path


class Tables:
    """What reading a source gives."""

    def __init__(self, source: Path, digest: str | None = None, **reading: Any) -> None:
        folder = source.parent / "read"
        self.interactions_path = folder / "interactions.parquet"
        self.items_path = folder / "items.parquet"
        read(
            source,
            self.interactions_path,
            self.items_path,
            folder / "reading.json",
            reading={**READING, **reading},
            digest=digest,
        )
        self.interactions = pl.read_parquet(self.interactions_path)
        self.items = pl.read_parquet(self.items_path)
        self.report = json.loads((folder / "reading.json").read_text(encoding="utf-8"))

    def rows(self) -> list[tuple[Any, ...]]:
        return self.interactions.select("user_id", "item_id", "rating").rows()


class Parts:
    """What a split gives, with the original ids."""

    def __init__(
        self,
        interactions: Path,
        items: Path,
        folder: Path,
        subset: dict[str, Any] | None = None,
        published: dict[str, Any] | None = None,
        **split: Any,
    ) -> None:
        split_dataset(
            interactions,
            items,
            folder,
            subset=SUBSET | (subset or {}),
            split=SPLIT | split,
            published=published,
        )
        self.statistics = json.loads((folder / "statistics.json").read_text(encoding="utf-8"))
        self.users = pl.read_parquet(folder / "users.parquet")
        self.items = pl.read_parquet(folder / "items.parquet")
        self.coded = {
            part: pl.read_parquet(folder / f"{part}.parquet")
            for part in ("train", "validation", "test")
        }

    def rows(self, part: str) -> list[tuple[Any, ...]]:
        """(user_id, item_id, rating) of a part."""
        decoded = self.coded[part].join(self.users, on="user").join(self.items, on="item")
        return decoded.select("user_id", "item_id", "rating").rows()

    def pairs(self, part: str) -> set[tuple[Any, Any]]:
        return {(user, item) for user, item, _ in self.rows(part)}


def tar_bytes(members: dict[str, bytes], mode: str = "w") -> bytes:
    """A tar archive of regular files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
