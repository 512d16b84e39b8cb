"""Answering prompts: finds the judge, lets it answer one shard, checks and writes the answers.

A judge is a function that takes a `Task` and returns one answer for each prompt of the task's
shard, as a table with the columns of `refine.artifacts.ANSWERS`. To add one, write its module
beside this one and name it in `refine.feedback.registry.JUDGES`.
"""

import logging
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import polars as pl

from refine.artifacts import ANSWERED, ANSWERS, write_table
from refine.feedback.registry import JUDGES
from refine.feedback.tasks import Task

log = logging.getLogger("refine.judges")


class JudgeError(RuntimeError):
    """A judge cannot answer, or its answers do not fit the prompts."""


def answer_prompts(
    prompts: Path,
    train: Path,
    items: Path,
    like: Path | None,
    output: Path,
    *,
    judge: dict[str, Any],
    shard: int,
    shards: int,
) -> None:
    """Lets a judge answer one shard of the prompts.

    Args:
        prompts: prompts.parquet.
        train: the train ratings, for judges that do not read the prompts' text.
        items: the items' ids, titles and genres.
        like: feedback.parquet of the judge whose coverage and yes rate to copy, for controls.
        output: the answers of this shard, in the order of the prompts.
        judge: the judge's settings; ``kind`` is a key of JUDGES.
        shard: which shard, from 1.
        shards: how many there are. A user's prompts are all in one.

    Raises:
        JudgeError: no such judge, or answers that do not fit the prompts.
    """
    task = Task(prompts, train, items, like, output, judge, shard, shards)
    answers = _load(judge["kind"])(task)
    asked = task.share().select("prompt_id", "candidates")
    if answers["prompt_id"].to_list() != asked["prompt_id"].to_list():
        raise JudgeError(
            f"judge {judge['kind']}: {len(answers)} answers to {len(asked)} prompts, or in another "
            f"order; a judge has to answer each prompt of its shard, in their order"
        )
    write_table(answers.to_arrow(), output, ANSWERS)
    log.info(
        "shard %d of %d: %d prompts, %d answered, %d of %d candidates picked",
        shard,
        shards,
        len(answers),
        answers.filter(status=ANSWERED).height,
        answers["picked"].list.len().sum(),
        asked["candidates"].list.len().sum(),
    )


def _load(kind: str) -> Callable[[Task], pl.DataFrame]:
    """The judge's function, by name: see `refine.feedback.registry`."""
    if kind not in JUDGES:
        raise JudgeError(
            f"judge kind {kind} answers no prompts here; these do: {', '.join(JUDGES)}"
        )
    module, _, function = JUDGES[kind].partition(":")
    return cast(Callable[[Task], pl.DataFrame], getattr(import_module(module), function))
