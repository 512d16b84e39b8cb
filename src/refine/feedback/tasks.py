"""What a judge is given, and the form in which judges that look at single candidates answer."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from refine.artifacts import (
    ANSWERED,
    CONFIRMED,
    FALSELY_IDENTIFIED,
    FEEDBACK,
    PROMPTS,
    read_table,
)

_QUESTIONS = pa.schema([PROMPTS.field(name) for name in ("prompt_id", "user", "candidates")])

_ROWS_READ_AT_ONCE = 1024


@dataclass(frozen=True)
class Task:
    """One shard of the prompts, and everything that a judge may need to answer it.

    Attributes:
        prompts: prompts.parquet, all shards of it.
        train: the train ratings.
        items: the items' codes, ids, titles and genres.
        like: feedback.parquet of the judge whose coverage and yes rate a control copies.
        cache: the folder in which judges may keep answers, across runs and datasets.
        settings: the judge's entry in the config.
        shard: which shard to answer, from 1.
        shards: how many there are.
        facts: what the judge finds out about itself and wants kept with its answers, as JSON values
            by name.
    """

    prompts: Path
    train: Path
    items: Path
    like: Path | None
    cache: Path
    settings: dict[str, Any]
    shard: int
    shards: int
    facts: dict[str, Any] = field(default_factory=dict)

    def share(self) -> pl.DataFrame:
        """The prompts of this shard without their text: prompt_id, user, candidates."""
        return pl.DataFrame(read_table(self.prompts, _QUESTIONS)).filter(self._mine())

    def blocks(self) -> Iterator[pl.DataFrame]:
        """The prompts of this shard with their text, in order, a few at a time."""
        with pq.ParquetFile(self.prompts) as file:
            for batch in file.iter_batches(_ROWS_READ_AT_ONCE):
                yield pl.DataFrame(batch).filter(self._mine())

    def candidates(self) -> pl.DataFrame:
        """The candidates of all shards, in order: prompt_id, user, item, asked, picked_by_like.

        ``asked`` is false where the judge in ``like`` has no verdict; without one, all are asked.
        ``picked_by_like`` is that judge's verdict, null where it has none.
        """
        rows = (
            pl.DataFrame(read_table(self.prompts, _QUESTIONS))
            .explode("candidates", empty_as_null=False)
            .rename({"candidates": "item"})
        )
        if self.like is None:
            return rows.with_columns(asked=True, picked_by_like=pl.lit(None, pl.Boolean))
        verdicts = (
            pl.DataFrame(read_table(self.like, FEEDBACK))
            .filter(pl.col("label").is_in((FALSELY_IDENTIFIED, CONFIRMED)))
            .select("user", "item", picked_by_like=pl.col("label") == FALSELY_IDENTIFIED)
        )
        rows = rows.join(verdicts, on=("user", "item"), how="left", maintain_order="left")
        return rows.with_columns(asked=pl.col("picked_by_like").is_not_null())

    def answers(self, candidates: pl.DataFrame) -> pl.DataFrame:
        """Puts verdicts on single candidates together to the answers of this shard.

        A candidate that was not asked about is left out, whatever its verdict.

        Args:
            candidates: `candidates` with one more column, ``picked`` (bool), and ``score``
                (float32) where the judge has scores.
        """
        scored = "score" in candidates.columns
        return (
            candidates.filter(self._mine())
            .group_by("prompt_id", maintain_order=True)
            .agg(
                picked=pl.col("item").filter(pl.col("asked") & pl.col("picked")),
                left_out=pl.col("item").filter(~pl.col("asked")),
                scores=pl.col("score") if scored else pl.lit(None, pl.List(pl.Float32)),
            )
            .with_columns(
                status=pl.lit(ANSWERED),
                text=pl.lit(None, pl.String),
                prompt_tokens=pl.lit(None, pl.Int32),
                answer_tokens=pl.lit(None, pl.Int32),
            )
        )

    def _mine(self) -> pl.Expr:
        return pl.col("user") % self.shards == self.shard - 1
