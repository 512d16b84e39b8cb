"""Answering prompts: finds the judge, lets it answer one shard, checks and writes the answers.

A judge is a function that takes a `Task` and returns one answer for each prompt of the task's
shard, as a table with the columns of `refine.artifacts.ANSWERS`. To add one, write its module
beside this one and name it in `refine.feedback.registry.JUDGES`.
"""

import json
import logging
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import polars as pl

from refine.artifacts import ANSWERED, ANSWERS, read_json, write_table
from refine.feedback.identity import identity
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
    cache: Path,
    probe: Path | None = None,
    min_auc: float | None = None,
) -> None:
    """Lets a judge answer one shard of the prompts.

    The metadata ``judge`` of the answers are JSON: the judge's ``settings``, the ``identity`` among
    them on which the answers depend, and ``facts`` that the judge found out about itself.

    Args:
        prompts: prompts.parquet.
        train: the train ratings, for judges that do not read the prompts' text.
        items: the items' ids, titles and genres.
        like: feedback.parquet of the judge whose coverage and yes rate to copy, for controls.
        output: the answers of this shard, in the order of the prompts.
        judge: the judge's settings; ``kind`` is a key of JUDGES.
        shard: which shard, from 1.
        shards: how many there are. A user's prompts are all in one.
        cache: the folder in which judges may keep answers.
        probe: probe.json of the judge, read where there is a ``min_auc``.
        min_auc: how well the judge has to tell likes from dislikes in the probe, to be asked.

    Raises:
        JudgeError: no such judge, or one that failed its probe, or answers that do not fit the
            prompts.
    """
    if probe is not None and min_auc is not None:
        _require_skill(probe, min_auc)
    task = Task(prompts, train, items, like, cache, judge, shard, shards)
    answers = _load(judge["kind"])(task)
    asked = task.share().select("prompt_id", "candidates")
    if answers["prompt_id"].to_list() != asked["prompt_id"].to_list():
        raise JudgeError(
            f"judge {judge['kind']}: {len(answers)} answers to {len(asked)} prompts, or in another "
            f"order; a judge has to answer each prompt of its shard, in their order"
        )
    about = {"settings": judge, "identity": identity(judge), "facts": task.facts}
    write_table(answers.to_arrow(), output, ANSWERS, {"judge": json.dumps(about)})
    log.info(
        "shard %d of %d: %d prompts, %d answered, %d of %d candidates picked",
        shard,
        shards,
        len(answers),
        answers.filter(status=ANSWERED).height,
        answers["picked"].list.len().sum(),
        asked["candidates"].list.len().sum(),
    )


def _require_skill(probe: Path, min_auc: float) -> None:
    auc = read_json(probe)["auc"]
    if auc is None or auc < min_auc:
        found = "gives no verdicts at all" if auc is None else f"has an AUC of {auc:.3f}"
        raise JudgeError(
            f"{probe}: on ratings that are known, the judge {found}, and probe.min_auc asks for "
            f"{min_auc}; .5 is chance. Take another model, another form or strategy, or change "
            f"probe.min_auc"
        )


def _load(kind: str) -> Callable[[Task], pl.DataFrame]:
    """The judge's function, by name: see `refine.feedback.registry`."""
    if kind not in JUDGES:
        raise JudgeError(
            f"judge kind {kind} answers no prompts here; these do: {', '.join(JUDGES)}"
        )
    module, _, function = JUDGES[kind].partition(":")
    return cast(Callable[[Task], pl.DataFrame], getattr(import_module(module), function))
