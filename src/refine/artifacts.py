"""The tables that pass between stages: their schemas, checked reading, atomic writing.

Needs pyarrow and the standard library only, so that the trainer can use it in a bare image.
"""

import glob
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

POSITIVE_RATING = 4
"""Ratings at or above this are positive, the rest negative (ReFINe, section 3)."""

POSITIVE = "positive"
FALSELY_IDENTIFIED = "falsely_identified"
CONFIRMED = "confirmed"
UNDECIDED = "undecided"
LABELS = (POSITIVE, FALSELY_IDENTIFIED, CONFIRMED, UNDECIDED)


class ArtifactError(ValueError):
    """An artifact does not have the schema that its reader expects."""


def _schema(**fields: pa.DataType) -> pa.Schema:
    """A schema whose fields may hold nulls only where their name ends in ``_or_null``."""
    return pa.schema(
        [
            pa.field(name.removesuffix("_or_null"), type_, nullable=name.endswith("_or_null"))
            for name, type_ in fields.items()
        ]
    )


RATINGS = _schema(user=pa.int32(), item=pa.int32(), rating=pa.int8(), timestamp_or_null=pa.int64())
"""Integer-coded ratings: train, validation and test; sorted by user, then item."""

PROMPTS = _schema(
    prompt_id=pa.string(),
    user=pa.int32(),
    chunk=pa.int32(),
    candidates=pa.list_(pa.int32()),
    instructions=pa.string(),
    context=pa.string(),
    question=pa.string(),
    context_tokens_or_null=pa.int32(),
    tokens_or_null=pa.int32(),
    dropped=pa.int32(),
)
"""One question to a judge: which of these items (codes, in the order shown) may the user like?

``instructions`` are the same for all, ``context`` for all prompts of a user; an engine reads both
once. Tokens are counted where the judge has a tokenizer: ``tokens`` of the whole prompt as the
engine gets it, ``context_tokens`` of what stands before the question. ``dropped`` is how many
entries of the user's lists were left out to make the prompt fit.
"""

ANSWERS = _schema(
    prompt_id=pa.string(),
    status=pa.string(),
    picked=pa.list_(pa.int32()),
    left_out=pa.list_(pa.int32()),
    scores_or_null=pa.list_(pa.float32()),
    text_or_null=pa.string(),
    prompt_tokens_or_null=pa.int32(),
    answer_tokens_or_null=pa.int32(),
)
"""One answer: the items picked among the prompt's candidates, or a status that says why none is.

``status`` is one of ANSWER_STATUSES; ``scores`` holds one number a candidate, in the prompt's
order, where the judge has any: log-odds of a like. ``left_out`` holds the candidates on which an
answered prompt gives no verdict, usually none: a control that copies another judge's coverage
leaves out what that judge did.
"""

ANSWERED = "answered"
ANSWER_STATUSES = (ANSWERED, "unparseable", "truncated", "missing")

FEEDBACK = _schema(
    user=pa.int32(), item=pa.int32(), rating=pa.int8(), label=pa.string(), reason=pa.string()
)
"""Every train rating with its label (one of LABELS) and why; sorted by user, then item."""

SIMILAR_ITEMS = _schema(
    item=pa.int32(), rank=pa.int16(), similar_item=pa.int32(), similarity=pa.float32()
)
"""The most similar items of each item, rank 1 first, the item itself left out."""

HISTORY = pa.schema(
    [
        pa.field("epoch", pa.int32(), nullable=False),
        pa.field("loss", pa.float64(), nullable=False),
        pa.field("recall@20", pa.float64(), nullable=False),
        pa.field("ndcg@20", pa.float64(), nullable=False),
    ]
)
"""One epoch: mean batch loss, and the validation metrics after it."""

COMPARISON = pa.schema(
    [
        pa.field("experiment", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("judge", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("seeds", pa.int32(), nullable=False),
        pa.field("mean", pa.float64(), nullable=False),
        pa.field("sd", pa.float64()),
        pa.field("published", pa.float64()),
        pa.field("from_published", pa.float64()),
        pa.field("from_headline", pa.float64(), nullable=False),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("p", pa.float64()),
        pa.field("p_adjusted", pa.float64()),
        pa.field("seeds_low", pa.float64()),
        pa.field("seeds_high", pa.float64()),
        pa.field("seconds", pa.float64()),
    ]
)
"""One experiment's mean of a metric over its seeds: its distance from the published value and from
the headline experiment, with intervals over users and over seeds and p-values of the latter, and
the seconds of one run."""


def interactions_schema(id_type: pa.DataType) -> pa.Schema:
    """Schema of interactions.parquet; int64 ids where each is a whole number, else text."""
    return _schema(user_id=id_type, item_id=id_type, rating=pa.int8(), timestamp_or_null=pa.int64())


def items_schema(id_type: pa.DataType) -> pa.Schema:
    """Schema of items.parquet: titles without their year; a list of genres may be empty."""
    return _schema(
        item_id=id_type,
        title=pa.string(),
        year_or_null=pa.int16(),
        genres=pa.list_(pa.string()),
    )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` and renames it into place on success.

    A reader, or a restart after a kill, therefore sees the whole file or none. What a killed
    process left of ``path`` is removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        stale.unlink(missing_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    temporary.chmod(0o644)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_table(
    table: pa.Table,
    path: Path,
    schema: pa.Schema | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a Parquet file, whole or not at all.

    Args:
        table: the rows; its columns are selected and cast to ``schema`` where one is given.
        path: the destination.
        schema: one of this module's schemas.
        metadata: texts by name, kept in the file's schema.

    Raises:
        ArtifactError: a column is missing, cannot be cast, or holds nulls that it must not.
    """
    if schema is not None:
        table = _conform(table, schema, path, table.column_names)
    if metadata:
        table = table.replace_schema_metadata(dict(metadata))
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_table(path: Path, schema: pa.Schema | None = None) -> pa.Table:
    """Reads a Parquet file, of it only the columns of ``schema``, and checks them against it.

    Raises:
        ArtifactError: the file is no Parquet, or lacks a column, or has one of another type.
    """
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            wanted = names if schema is None else [name for name in schema.names if name in names]
            table = file.read(columns=wanted)
    except (pa.ArrowInvalid, OSError) as error:
        raise ArtifactError(f"{path}: cannot be read as Parquet: {error}") from error
    return table if schema is None else _conform(table, schema, path, names)


def _conform(table: pa.Table, schema: pa.Schema, path: Path, names: list[str]) -> pa.Table:
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise ArtifactError(
            f"{path}: column {', '.join(missing)} is missing; it has {', '.join(names)}"
        )
    table = table.select(schema.names)
    for field in schema:
        nulls = table.column(field.name).null_count
        if nulls and not field.nullable:
            raise ArtifactError(f"{path}: column {field.name} has {nulls} missing values")
    try:
        return table.cast(schema).replace_schema_metadata(None)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise ArtifactError(f"{path}: {error}") from error


def write_json(value: Any, path: Path) -> None:
    """Writes indented JSON, whole or not at all; NaN is refused."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        ArtifactError: the file is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ArtifactError(f"{path}: not valid JSON: {error}") from error
