"""Lets a language model answer the prompts of a shard."""

from collections.abc import Iterator

import polars as pl

from refine.artifacts import ANSWERED, ArtifactError
from refine.feedback.forms import WORDS
from refine.feedback.identity import identity
from refine.feedback.llm.ask import ask, engine_of
from refine.feedback.llm.cache import AnswerCache
from refine.feedback.llm.engine import Reply, Request
from refine.feedback.llm.requests import RequestMaker, read_form, verdict
from refine.feedback.tasks import Task

_TYPES: dict[str, pl.DataType | type[pl.DataType]] = {
    "prompt_id": pl.String,
    "status": pl.String,
    "picked": pl.List(pl.Int32),
    "left_out": pl.List(pl.Int32),
    "scores": pl.List(pl.Float32),
    "text": pl.String,
    "prompt_tokens": pl.Int32,
    "answer_tokens": pl.Int32,
}


def judge_by_llm(task: Task) -> pl.DataFrame:
    """Takes the answers from the cache, and asks the model for those that are missing.

    Raises:
        ArtifactError: the prompts were not written for this judge.
        EngineError: the model cannot be run or reached.
        CacheError: the model is not the one whose answers are in the cache.
    """
    settings = task.settings
    form = read_form(task.prompts)
    if (form.by == WORDS) != (settings["strategy"] == "score"):
        raise ArtifactError(
            f"{task.prompts} asks for {form.by}, which does not suit the judge's strategy "
            f"{settings['strategy']}; delete it and run again"
        )
    maker = RequestMaker(form, task.items)
    cache = AnswerCache(task.cache, identity(settings))
    # The prompts of a large dataset do not fit in memory, their keys do: so they are read twice.
    keys = [request.key for request in _requests(task, maker)]
    replies = ask(engine_of(settings["kind"]), settings, keys, _requests(task, maker), cache)
    task.facts.update(cache.facts)
    return _answers(task.share(), [replies[key] for key in keys], maker)


def _requests(task: Task, maker: RequestMaker) -> Iterator[Request]:
    for block in task.blocks():
        yield from maker.requests(block)


def _answers(share: pl.DataFrame, replies: list[Reply], maker: RequestMaker) -> pl.DataFrame:
    """Puts prompts and their replies, in the same order, together to answers."""
    rows = []
    for (prompt_id, candidates), reply in zip(
        share.select("prompt_id", "candidates").iter_rows(), replies, strict=True
    ):
        status, places = verdict(reply, maker.choices(candidates))
        scored = status == ANSWERED and reply.log_odds is not None
        rows.append(
            {
                "prompt_id": prompt_id,
                "status": status,
                "picked": [candidates[place] for place in places],
                "left_out": [],
                "scores": [reply.log_odds] if scored else None,
                "text": reply.text,
                "prompt_tokens": reply.prompt_tokens,
                "answer_tokens": reply.answer_tokens,
            }
        )

    return pl.DataFrame(rows, schema=_TYPES)
