"""What language models have answered, kept apart from the results: nothing is asked twice."""

import json
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc

from refine.artifacts import ArtifactError, read_json, read_table, write_table
from refine.feedback.llm.engine import Reply

log = logging.getLogger("refine.cache")

_REPLIES = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("text", pa.string()),
        pa.field("truncated", pa.bool_(), nullable=False),
        pa.field("log_odds", pa.float64()),
        pa.field("prompt_tokens", pa.int32()),
        pa.field("cached_tokens", pa.int32()),
        pa.field("answer_tokens", pa.int32()),
    ]
)

_ANY_REVISION = {"revision": None}


class CacheError(RuntimeError):
    """The model is not the one that has given the answers kept under its name."""


class AnswerCache:
    """The answers of one model with one set of settings, in a folder of their own.

    Processes that answer different shards may use it at once: each part of the answers is a file
    that is written whole, under a name of its own, and never changed.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        """Opens the cache; nothing is written yet.

        Args:
            folder: of all caches.
            identity: everything that the answers depend on but the prompts, as JSON values.
        """
        self._identity = identity
        self._folder = folder / _digest(identity)
        self._folders = [self._folder, *_of_the_same_commit(folder, identity)]

    @property
    def facts(self) -> dict[str, Any]:
        """What the engine said about itself when it was checked last; empty if it never was."""
        for folder in self._folders:
            if record := _read(folder / "model.json"):
                return dict(record["facts"])
        return {}

    def check(self, facts: dict[str, Any]) -> None:
        """Makes sure that the model is the one whose answers are here, and notes what it is.

        Args:
            facts: of the engine that is about to answer.

        Raises:
            CacheError: its weights are of another commit.
        """
        path = self._folder / "model.json"
        if (record := _read(path)) and any(self._folder.glob("*.parquet")):
            before, now = record["facts"].get("commit"), facts.get("commit")
            if None not in (before, now) and before != now:
                model, revision = (self._identity.get(name) for name in ("model", "revision"))
                raise CacheError(
                    f"the answers in {self._folder} are those of commit {before} of {model}, and "
                    f"its revision {revision} is commit {now} now. To go on with the one, set the "
                    f"judge's `revision` to {before}; to ask the other about everything, to {now}, "
                    f"or delete the folder"
                )
            other = [name for name in facts if facts[name] != record["facts"].get(name)]
            if other:
                log.info(
                    "the answers in %s are from %s; those to come from %s",
                    self._folder,
                    {name: record["facts"].get(name) for name in other},
                    {name: facts[name] for name in other},
                )
        _write(path, {"identity": self._identity, "facts": facts})

    def lookup(self, keys: Iterable[str]) -> dict[str, Reply]:
        """The replies to those of the keys that have one; of several, the first that was kept."""
        parts = list(self._parts())
        if not parts:
            return {}
        table = pa.concat_tables(parts)
        wanted = pc.is_in(table["key"], value_set=pa.array(set(keys), pa.string()))
        found: dict[str, Reply] = {}
        for row in table.filter(wanted).to_pylist():
            found.setdefault(row["key"], Reply(**row))
        return found

    def add(self, replies: Iterable[Reply]) -> None:
        """Keeps replies, all but those with an error, in a file that is whole or not there."""
        rows = [
            {name: value for name, value in asdict(reply).items() if name != "error"}
            for reply in replies
            if reply.error is None
        ]
        if rows:
            # The names sort by time.
            path = self._folder / f"{time.time_ns():020d}-{uuid4().hex}.parquet"
            write_table(pa.Table.from_pylist(rows, _REPLIES), path, _REPLIES)

    def record_speed(self, speed: dict[str, float]) -> None:
        """Notes how fast the model was, by what `speed` gives it back under."""
        _write(self._folder / "speed.json", speed)

    def speed(self) -> dict[str, float] | None:
        """How fast the model was when it answered last, None if that was not noted."""
        return next((s for folder in self._folders if (s := _read(folder / "speed.json"))), None)

    def answer_length(self) -> float | None:
        """The mean number of tokens of the answers kept, None where none says how many it has."""
        counts = pa.chunked_array(
            [chunk for part in self._parts() for chunk in part["answer_tokens"].chunks], pa.int32()
        )
        mean = pc.mean(counts).as_py()
        return None if mean is None else float(mean)

    def _parts(self) -> Iterator[pa.Table]:
        for folder in self._folders:
            for path in sorted(folder.glob("*.parquet")):
                try:
                    yield read_table(path, _REPLIES)
                except ArtifactError as error:
                    log.warning("left out, so that its prompts are asked again: %s", error)


def _of_the_same_commit(folder: Path, identity: dict[str, Any]) -> Iterator[Path]:
    """Caches of the same settings under a name for the revision that stood for this very commit.

    Whoever names the commit of `main` instead, as one should, keeps the answers.
    """
    for path in sorted(folder.glob("*/model.json")):
        record = _read(path)
        if (
            record
            and record["identity"] != identity
            and record["identity"] | _ANY_REVISION == identity | _ANY_REVISION
            and record["facts"].get("commit") == identity["revision"] is not None
        ):
            yield path.parent


def _digest(identity: dict[str, Any]) -> str:
    text = json.dumps(identity, sort_keys=True)
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _read(path: Path) -> Any:
    """A JSON file of the cache; None where there is none that can be read."""
    try:
        return read_json(path)
    except (ArtifactError, OSError):
        return None


def _write(path: Path, value: Any) -> None:
    """Writes JSON, whole or not at all, whoever else is writing the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    temporary.write_text(json.dumps(value, indent=2, sort_keys=True), encoding="utf-8")
    temporary.replace(path)
