"""What asking a language model will take, before it is asked."""

import logging
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from refine.artifacts import write_json
from refine.feedback.identity import identity
from refine.feedback.llm.cache import AnswerCache
from refine.feedback.llm.costs import cost
from refine.feedback.llm.progress import duration
from refine.feedback.llm.requests import COLUMNS, RequestMaker, read_form
from refine.feedback.llm.tables import draw
from refine.feedback.parsing import answer_room
from refine.feedback.registry import ENGINES

log = logging.getLogger("refine.plan")

_ROWS_READ_AT_ONCE = 1024

_BLOCK = 16
"""Tokens that vLLM keeps, and finds again, as one, where its ``block_size`` is not set."""

_READ_AS_ONE_WRITTEN = 4
"""Prompt tokens that an engine reads in the time of one answer token, roughly; it matters little,
as answers are short."""

_NO_ROWS = {
    "key": pl.String,
    "user": pl.Int32,
    "candidates": pl.Int64,
    "context_tokens": pl.Int32,
    "tokens": pl.Int32,
    "dropped": pl.Int32,
    "room": pl.Int64,
}


class PlanError(ValueError):
    """There is nothing to plan."""


def plan(
    prompts: Path,
    items: Path,
    output: Path,
    *,
    judge: dict[str, Any],
    cache: Path,
    shards: int,
) -> None:
    """Counts prompts and tokens, estimates time and cost, writes plan.json and logs a table.

    Only prompts without an answer in the cache take anything. Of a user's prompts the first is
    computed whole and the others from their question on, where the engine keeps what it computed.
    (That all users share the instructions is not counted: a little more is saved.)

    Args:
        prompts: prompts.parquet of the judge.
        items: the items' codes, ids, titles and genres.
        output: plan.json.
        judge: the judge's entry in the config, whole; an LLM's.
        cache: the folder of the answer cache.
        shards: how many jobs share the prompts.

    Raises:
        PlanError: the judge is no LLM.
        ArtifactError: the prompts cannot be read.
    """
    if judge["kind"] not in ENGINES:
        raise PlanError(f"a judge of kind {judge['kind']} asks no language model: nothing to plan")
    kept = AnswerCache(cache, identity(judge))
    rows = _read(prompts, items)
    answered = kept.lookup(rows["key"].to_list())
    left = rows.filter(~pl.col("key").is_in(list(answered)))
    length = kept.answer_length()
    left = _with_work(left, judge, length)
    speed = _speed(judge, kept)
    jobs = [
        {"shard": shard + 1, **_work(left.filter(pl.col("user") % shards == shard), speed)}
        for shard in range(shards)
    ]
    cut = rows.filter(pl.col("dropped") > 0).unique("user")
    report: dict[str, Any] = {
        "judge": {
            name: judge[name]
            for name in ("kind", "model", "revision", "form", "strategy", "context")
        },
        "users": rows["user"].n_unique(),
        "candidates": rows["candidates"].sum(),
        "prompts": len(rows),
        "answered": len(rows) - len(left),
        "cut": {"users": len(cut), "entries": cut["dropped"].sum()},
        "longest_prompt": rows["tokens"].max(),
        "to_ask": _work(left, speed),
        "expected_answers": "half of the longest" if length is None else "as long as measured",
        "speed": speed,
        "shards": jobs,
    }
    report["cost"] = _cost(report["to_ask"], judge)
    report["notes"] = _notes(report, judge, output)
    write_json(report, output)
    log.info("%s", draw(f"Plan: {output}", _lines(report), report["notes"]))


def _read(prompts: Path, items: Path) -> pl.DataFrame:
    """One row a prompt, without its texts: ``key`` names it, ``room`` is what its answer may take.

    The texts do not fit in memory together.
    """
    maker = RequestMaker(read_form(prompts), items)
    counts = ["user", "context_tokens", "tokens", "dropped"]
    blocks = [pl.DataFrame(schema=_NO_ROWS)]
    with pq.ParquetFile(prompts) as file:
        for batch in file.iter_batches(_ROWS_READ_AT_ONCE, columns=[*COLUMNS, *counts]):
            # As a table, as polars keeps a batch whole for the sake of any of its columns.
            rows = pl.DataFrame(pa.Table.from_batches([batch]))
            requests = list(maker.requests(rows))
            blocks.append(
                rows.with_columns(
                    pl.col("candidates").list.len().cast(pl.Int64),
                    key=pl.Series([request.key for request in requests], dtype=pl.String),
                    room=pl.Series(
                        [answer_room(request.choices) for request in requests], dtype=pl.Int64
                    ),
                ).select(*_NO_ROWS)
            )
    return pl.concat(blocks)


def _with_work(rows: pl.DataFrame, judge: dict[str, Any], length: float | None) -> pl.DataFrame:
    """Adds ``computed``, the prompt tokens that nothing saves, and ``answer``, those to expect."""
    engine = judge.get("engine", {})
    block = engine.get("block_size") or _BLOCK if judge["kind"] == "vllm" else 1
    again = pl.int_range(pl.len()).over("user") > 0
    saved = pl.when(again & engine.get("enable_prefix_caching", True)).then(
        pl.col("context_tokens") // block * block
    )
    expected = pl.col("room") / 2 if length is None else pl.min_horizontal("room", pl.lit(length))
    return rows.with_columns(
        computed=pl.col("tokens") - saved.otherwise(0),
        answer=pl.when(pl.col("room") > 1).then(expected).otherwise(1.0),
    )


def _speed(judge: dict[str, Any], kept: AnswerCache) -> dict[str, Any]:
    """Tokens a second that one engine reads and writes: as set, else as measured last.

    A score is not written: it is what the reading of a prompt ends with.
    """
    for speed, source in ((judge["speed"], "given"), (kept.speed() or {}, "measured")):
        if speed.get("prompt"):
            writing = None if judge["strategy"] == "score" else speed.get("answer")
            return {"prompt": speed["prompt"], "answer": writing, "source": source}
    return {"prompt": None, "answer": None, "source": None}


def _seconds(computed: int, written: int, speed: dict[str, Any]) -> float | None:
    """How long one engine takes.

    Speeds that are given say what it can do if it does nothing else. Those measured are counts of
    both kinds of tokens over one span of time, so that neither says what it could do; a mix of
    reading and writing unlike the one measured takes a time between that for which either stands.
    """
    reading, writing, source = speed["prompt"], speed["answer"], speed["source"]
    if source is None:
        return None
    if not writing:
        return float(computed / reading)
    if source == "given":
        return float(computed / reading + written / writing)
    weight = _READ_AS_ONE_WRITTEN
    return float((computed + weight * written) / (reading + weight * writing))


def _work(rows: pl.DataFrame, speed: dict[str, Any]) -> dict[str, Any]:
    """What these prompts take; tokens, and what follows from them, are None if none are counted."""
    work: dict[str, Any] = {
        "prompts": len(rows),
        "prompt_tokens": None,
        "answer_tokens": None,
        "seconds": None,
    }
    if rows["tokens"].null_count():
        return work
    total, computed = int(rows["tokens"].sum()), int(rows["computed"].sum())
    work["prompt_tokens"] = {
        "without_reuse": total,
        "with_reuse": computed,
        "saved": (total - computed) / total if total else 0.0,
    }
    answer = round(rows["answer"].sum())
    work["answer_tokens"] = {"expected": answer, "at_most": rows["room"].sum()}
    work["seconds"] = _seconds(computed, answer, speed)
    return work


def _cost(work: dict[str, Any], judge: dict[str, Any]) -> float | None:
    prompt, answer = work["prompt_tokens"], work["answer_tokens"]
    return cost(
        judge,
        seconds=work["seconds"],
        computed=prompt and prompt["with_reuse"],
        cached=prompt and prompt["without_reuse"] - prompt["with_reuse"],
        written=answer and answer["expected"],
    )


def _notes(report: dict[str, Any], judge: dict[str, Any], output: Path) -> list[str]:
    """What is not known, and how it could be."""
    work = report["to_ask"]
    if not work["prompts"]:
        return ["Every prompt has an answer: nothing is left to ask."]
    if work["prompt_tokens"] is None:
        return [
            "No tokens are counted, and no lists are cut: set the judge's `tokenizer` to the model "
            "whose tokenizer counts."
        ]
    notes = []
    if work["seconds"] is None:
        notes.append(
            f"How long it takes is not known: `snakemake {output.with_name('probe.json')}` "
            f"measures it, or set the judge's `speed`."
        )
    if report["cost"] is None and (work["seconds"] is not None or judge["kind"] != "vllm"):
        notes.append("What it costs is not known: set the judge's `price`.")
    return notes


def _lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    judge, work, cut = report["judge"], report["to_ask"], report["cut"]
    lines = [
        (
            "judge",
            f"{judge['kind']}: {judge['model']}, revision {judge['revision']}, {judge['form']}, "
            f"{judge['strategy']}",
        ),
        (
            "prompts",
            f"{report['prompts']:,}, with {report['candidates']:,} candidates of "
            f"{report['users']:,} users",
        ),
        ("answered before", f"{report['answered']:,}"),
        ("left to ask", f"{work['prompts']:,}"),
    ]
    if (tokens := work["prompt_tokens"]) and report["longest_prompt"] is not None:
        lines += [
            ("prompt tokens", f"{tokens['without_reuse']:,}"),
            (
                "with prefix reuse",
                f"{tokens['with_reuse']:,} ({tokens['saved']:.1%} saved)",
            ),
            (
                "answer tokens",
                f"about {work['answer_tokens']['expected']:,}, "
                f"at most {work['answer_tokens']['at_most']:,}",
            ),
            (
                "longest prompt",
                f"{report['longest_prompt']:,} of {judge['context']:,} tokens",
            ),
            (
                "lists cut",
                f"users: {cut['users']:,}, entries left out: {cut['entries']:,}"
                if cut["users"]
                else "none",
            ),
        ]
    if work["seconds"] is not None:
        speed, longest = report["speed"], max(job["seconds"] for job in report["shards"])
        written = f", {speed['answer']:,.0f} written" if speed["answer"] else ""
        lines += [
            ("tokens a second", f"{speed['prompt']:,.0f} read{written} ({speed['source']})"),
            ("time of an engine", duration(work["seconds"])),
        ]
        if len(report["shards"]) > 1:
            lines.append((f"longest of {len(report['shards'])} shards", duration(longest)))
    if report["cost"] is not None:
        lines.append(("cost", f"{report['cost']:,.2f}"))
    return lines
