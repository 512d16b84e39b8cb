"""A test of a language model on ratings that are known, before the money is spent.

A user who gave 5s and 1s lends one of each. Both leave the lists that show the user's taste and
hide among the candidates, in prompts that are otherwise like those to come. A judge that knows
something picks the 5s more readily than the 1s.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import polars as pl

from refine.artifacts import ANSWER_STATUSES, ANSWERED, write_json
from refine.feedback.hashing import draw_keys, id_keys
from refine.feedback.identity import identity, prompt_settings
from refine.feedback.llm.ask import ask, engine_of
from refine.feedback.llm.cache import AnswerCache
from refine.feedback.llm.costs import cost
from refine.feedback.llm.engine import Engine, Reply, Request, StartEngine
from refine.feedback.llm.measures import Floats, auc, auc_interval, position_bias, yes_rate
from refine.feedback.llm.progress import duration
from refine.feedback.llm.requests import RequestMaker, verdict
from refine.feedback.llm.tables import draw
from refine.feedback.prompts import answer_form, build, gather
from refine.feedback.registry import ENGINES
from refine.feedback.roles import CANDIDATE
from refine.feedback.templates import read_template

log = logging.getLogger("refine.probe")

LIKE = "like"
DISLIKE = "dislike"

_BEST, _WORST = 5, 1

_FEWEST_USERS = 10
"""With fewer an interval would be too wide to say anything, and too narrow to be true."""

_NEAR_CHANCE = 0.55
_OFTEN_YES = 0.8
_OFTEN_FLIPPED = 0.25
_SELDOM_PARSED = 0.98


class ProbeError(ValueError):
    """A judge cannot be tested."""


def probe(
    train: Path,
    users: Path,
    items: Path,
    template: Path,
    output: Path,
    *,
    prompts: dict[str, Any],
    judge: dict[str, Any],
    dataset: str,
    probe: dict[str, Any],
    cache: Path,
) -> None:
    """Hides known ratings among the candidates, and reports how well a judge tells them apart.

    Only prompts that show a hidden rating are asked, each in two orders: as it is, and with its
    candidates reversed. (Where prompts show a single candidate there is one order, and each user is
    asked about one true candidate as well, or their yes rate would not be known.) The score of a
    rating is its log-odds, or else whether it was picked (1 or 0), averaged over the orders.

    Args:
        train: the train ratings.
        users: the users' codes and ids.
        items: the items' codes, ids, titles and genres.
        template: the wording, as for `refine.feedback.prompts.write_prompts`.
        output: probe.json.
        prompts: the settings of the prompts.
        judge: the judge's entry in the config, whole; an LLM's.
        dataset: the title of the dataset.
        probe: settings ``items``, how many ratings to hide, and ``seed``.
        cache: the folder of the answer cache.

    Raises:
        ProbeError: the judge is no LLM, or too few users have ratings to lend.
        EngineError: the model cannot be run or reached.
        CacheError: the model is not the one whose answers are in the cache.
    """
    if judge["kind"] not in ENGINES:
        raise ProbeError(f"a judge of kind {judge['kind']} asks no language model: nothing to test")
    ratings = gather(train, users, items)
    hidden = hide(ratings, probe["items"], probe["seed"])
    wording, settings = read_template(template), prompt_settings(judge)
    lent = ratings.join(hidden, on=("user", "item"), how="left").with_columns(
        role=pl.when(pl.col("kind").is_null()).then("role").otherwise(pl.lit(CANDIDATE))
    )
    lent = lent.join(hidden, on="user", how="semi").drop("kind")
    orders = [
        pl.DataFrame(block).with_columns(reversed=reverse)
        for reverse in (False, True)
        for block in build(
            lent, wording, prompts=prompts, judge=settings, dataset=dataset, reverse=reverse
        )
    ]
    asked = _to_ask(pl.concat(orders), hidden)
    maker = RequestMaker(answer_form(wording, prompts, settings), items)
    requests = list(maker.requests(asked))
    keys = [request.key for request in requests]
    kept = AnswerCache(cache, identity(judge))
    before = kept.lookup(keys).keys()
    engine = _Timed(engine_of(judge["kind"]))
    replies = ask(engine, judge, keys, requests, kept)

    verdicts = _verdicts(asked, requests, replies).join(
        hidden, on=("user", "item"), how="left", maintain_order="left"
    )
    report = {
        "judge": {name: judge[name] for name in ("kind", "model", "revision", "form", "strategy")},
        "facts": kept.facts,
        **_skill(hidden, verdicts, ratings, probe["seed"]),
        "position": position_bias(verdicts),
        **_usable([verdict(replies[one.key], one.choices)[0] for one in requests]),
        "prompts": len(asked),
        "usage": _usage([replies[key] for key in set(keys) - before], engine, judge),
    }
    report["verdict"], report["advice"] = _verdict(report), _advice(report)
    write_json(report, output)
    lines = _lines(report)
    log.info("%s", draw(f"Probe: {output}", lines, [report["verdict"], *report["advice"]]))


def hide(ratings: pl.DataFrame, items: int, seed: int) -> pl.DataFrame:
    """Chooses the ratings to hide: of each user drawn one 5 and one 1.

    Users can be drawn who have a candidate, a 5 to lend besides one to keep, and a 1. The draws
    depend on the seed and on ids alone: what a user would lend, nobody else changes.

    Args:
        ratings: as `refine.feedback.prompts.gather` gives them.
        items: how many ratings to hide; there are fewer where there are too few users.
        seed: of the draws.

    Returns:
        user, item and ``kind`` (LIKE or DISLIKE); sorted by user, a like first.

    Raises:
        ProbeError: there are too few users to learn anything.
    """
    wanted = max(items // 2, 1)
    rating = pl.col("rating")
    able = ratings.group_by("user", "user_id").agg(
        candidates=(pl.col("role") == CANDIDATE).sum(),
        best=(rating == _BEST).sum(),
        worst=(rating == _WORST).sum(),
    )
    able = able.filter(pl.col("candidates") > 0, pl.col("best") > 1, pl.col("worst") > 0)
    if len(able) < min(wanted, _FEWEST_USERS):
        raise ProbeError(
            f"{len(able)} users have two 5s, a 1 and a rating in doubt among their train ratings, "
            f"and a probe needs {min(wanted, _FEWEST_USERS)}. These ratings cannot test a judge: "
            f"set probe.min_auc to null, and compare it with the control judges instead"
        )
    if len(able) < wanted:
        log.warning("%d users can lend ratings, not the %d asked for", len(able), wanted)
    drawn = able.with_columns(order=draw_keys(seed, "probe", id_keys(able["user_id"])))
    drawn = drawn.sort("order", "user").head(wanted)
    of_drawn = ratings.join(drawn, on="user", how="semi").filter(rating.is_in((_BEST, _WORST)))
    ids = id_keys(of_drawn["user_id"]), id_keys(of_drawn["item_id"])
    return (
        of_drawn.with_columns(order=draw_keys(seed, "probe", *ids))
        .sort("user", "rating", "order", "item", descending=[False, True, False, False])
        .unique(("user", "rating"), keep="first", maintain_order=True)
        .select(
            "user",
            "item",
            kind=pl.when(rating == _BEST).then(pl.lit(LIKE)).otherwise(pl.lit(DISLIKE)),
        )
    )


def _to_ask(prompts: pl.DataFrame, hidden: pl.DataFrame) -> pl.DataFrame:
    """The prompts that show a hidden rating, a user's one after another.

    Where prompts show one candidate each, both orders are one, and true candidates, whose yes rate
    is wanted too, are in other prompts: the first of these of each user is asked as well.
    """
    shown = pl.col("candidates").list.len()
    chunks = prompts.select("user", "chunk", item="candidates").explode("item", empty_as_null=False)
    wanted = chunks.join(hidden, on=("user", "item"), how="semi").select("user", "chunk")
    if prompts.select(shown.max()).item() == 1:
        others = chunks.join(hidden, on=("user", "item"), how="anti")
        wanted = pl.concat([wanted, others.group_by("user").agg(pl.col("chunk").min())])
    return (
        prompts.filter((shown > 1) | ~pl.col("reversed"))
        .join(wanted, on=("user", "chunk"), how="semi")
        .sort("user", "chunk", "reversed")
    )


def _verdicts(
    asked: pl.DataFrame, requests: Sequence[Request], replies: dict[str, Reply]
) -> pl.DataFrame:
    """One row a candidate and order: user, item, position, shown, picked, score.

    ``picked`` and ``score`` are null where the prompt has no usable answer.
    """
    rows = []
    pairs = zip(asked.select("user", "candidates").iter_rows(), requests, strict=True)
    for (user, candidates), request in pairs:
        reply = replies[request.key]
        status, places = verdict(reply, request.choices)
        for place, item in enumerate(candidates):
            picked = place in places if status == ANSWERED else None
            score = None if picked is None else reply.log_odds
            if score is None and picked is not None:
                score = float(picked)
            rows.append((user, item, place + 1, len(candidates), picked, score))
    schema = {
        "user": pl.Int32,
        "item": pl.Int32,
        "position": pl.Int32,
        "shown": pl.Int32,
        "picked": pl.Boolean,
        "score": pl.Float64,
    }
    return pl.DataFrame(rows, schema=schema, orient="row")


def _skill(
    hidden: pl.DataFrame, verdicts: pl.DataFrame, ratings: pl.DataFrame, seed: int
) -> dict[str, Any]:
    """How well likes and dislikes are told apart, and how readily the judge says yes."""
    kind = pl.col("kind")
    scores = verdicts.group_by("user", "item").agg(pl.col("score").mean())
    known = hidden.join(scores, on=("user", "item"), how="left", maintain_order="left")
    known = known.join(ratings.select("user", "item", "popularity"), on=("user", "item"))
    known = known.sort("user")

    def of(name: str, column: str) -> Floats:
        values = known.filter(kind=name)[column].cast(pl.Float64)
        return values.fill_null(float("nan")).to_numpy()

    likes, dislikes = of(LIKE, "score"), of(DISLIKE, "score")
    return {
        "users": known["user"].n_unique(),
        "items": {name: known.filter(kind=name).height for name in (LIKE, DISLIKE)},
        "auc": auc(likes, dislikes),
        "auc_interval": auc_interval(likes, dislikes, seed),
        "auc_of_popularity": auc(of(LIKE, "popularity"), of(DISLIKE, "popularity")),
        "yes_rate": {
            "likes": yes_rate(verdicts.filter(kind=LIKE)),
            "dislikes": yes_rate(verdicts.filter(kind=DISLIKE)),
            "candidates": yes_rate(verdicts.filter(kind.is_null())),
        },
    }


def _usable(statuses: Sequence[str]) -> dict[str, Any]:
    """How many prompts have which status, and the share of answers that can be used."""
    counts = Counter(statuses)
    given = len(statuses) - counts["missing"]
    return {
        "statuses": {status: counts[status] for status in ANSWER_STATUSES},
        "parse_rate": counts[ANSWERED] / given if given else None,
    }


class _Timed:
    """Starts an engine, and takes the time.

    Attributes:
        starting: seconds until it was ready; None if it was not started.
        working: seconds from then on.
    """

    def __init__(self, start: StartEngine) -> None:
        self._start = start
        self.starting: float | None = None
        self.working: float | None = None

    @contextmanager
    def __call__(self, settings: dict[str, Any]) -> Iterator[Engine]:
        begin = monotonic()
        with self._start(settings) as engine:
            ready = monotonic()
            self.starting = ready - begin
            yield engine
            self.working = monotonic() - ready


def _usage(fresh: Sequence[Reply], engine: _Timed, judge: dict[str, Any]) -> dict[str, Any]:
    """What was used for the replies that did not come from the cache."""
    read, cached, written = (
        sum(counts) if (counts := [count for count in of_replies if count is not None]) else None
        for of_replies in (
            [reply.prompt_tokens for reply in fresh],
            [reply.cached_tokens for reply in fresh],
            [reply.answer_tokens for reply in fresh],
        )
    )
    computed = None if read is None else read - (cached or 0)
    seconds = engine.working
    total = None if engine.starting is None or seconds is None else engine.starting + seconds

    def rate(tokens: int | None) -> float | None:
        return tokens / seconds if tokens is not None and seconds else None

    return {
        "prompts_asked": len(fresh),
        "prompt_tokens": read,
        "cached_tokens": cached,
        "answer_tokens": written,
        "seconds_to_start": engine.starting,
        "seconds": seconds,
        "computed_tokens_per_second": rate(computed),
        "answer_tokens_per_second": rate(written),
        "cost": cost(judge, seconds=total, computed=computed, cached=cached or 0, written=written),
    }


def _verdict(report: dict[str, Any]) -> str:
    """What the AUC says, in a sentence."""
    value, interval = report["auc"], report["auc_interval"]
    if value is None:
        return "It gave no answer that can be used."
    found = f"AUC {_score(report)}"
    if interval is None or interval[0] <= 0.5 <= interval[1]:
        return f"It cannot be told from a coin: {found}; .5 is chance."
    if value < 0.5:
        return f"It takes dislikes for likes: {found}; .5 is chance."
    return f"It tells likes from dislikes: {found}; .5 is chance."


def _advice(report: dict[str, Any]) -> list[str]:
    """What to try before the judge is asked about everything."""
    value, interval, position = report["auc"], report["auc_interval"], report["position"]
    scores = report["judge"]["strategy"] == "score"
    advice = []
    if value is not None and (value < _NEAR_CHANCE or interval is None or interval[0] <= 0.5):
        other = "" if scores else "strategy: score, "
        advice.append(
            f"A judge near .5 does no better than the control `random`. Try {other}a larger model, "
            f"an instruction-tuned one with form: chat, or more probe.items for a closer look."
        )
    by_popularity = report["auc_of_popularity"]
    if value is not None and by_popularity is not None and value <= by_popularity:
        advice.append(
            f"How often an item is rated tells them apart as well (AUC {by_popularity:.3f}): "
            f"compare the judge with the control `popularity`."
        )
    yes = report["yes_rate"]["candidates"]
    if yes is not None and yes > _OFTEN_YES:
        remedy = (
            "raise labels.threshold above 0."
            if scores
            else "with strategy: score, labels.threshold says how sure a yes has to be."
        )
        advice.append(f"It says yes to {yes:.0%} of the candidates, which says little: {remedy}")
    if position and (position["flipped"] or 0) > _OFTEN_FLIPPED:
        advice.append(
            f"{position['flipped']:.0%} of its verdicts change with the order of the candidates: "
            f"try a smaller prompts.chunk, or strategy: score, which asks about one at a time."
        )
    if report["parse_rate"] is not None and report["parse_rate"] < _SELDOM_PARSED:
        advice.append(
            f"Only {report['parse_rate']:.1%} of its answers can be used: see whether the judge's "
            f"`server` is what the endpoint is, so that answers are held to their form."
        )
    return advice


def _score(report: dict[str, Any]) -> str:
    interval = report["auc_interval"]
    ends = "" if interval is None else f" (95% interval {interval[0]:.3f} to {interval[1]:.3f})"
    return f"{report['auc']:.3f}{ends}"


def _lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    judge, items, usage = report["judge"], report["items"], report["usage"]
    rates = report["yes_rate"]
    lines = [
        (
            "judge",
            f"{judge['kind']}: {judge['model']}, revision {judge['revision']}, {judge['form']}, "
            f"{judge['strategy']}",
        ),
        ("hidden", f"{items[LIKE]} 5s and {items[DISLIKE]} 1s of {report['users']} users"),
        ("prompts", f"{report['prompts']}, {usage['prompts_asked']} of them asked now"),
        ("AUC of 5s against 1s", "-" if report["auc"] is None else _score(report)),
        ("by popularity alone", _number(report["auc_of_popularity"], ".3f")),
        (
            "yes rate",
            f"{_number(rates['likes'], '.0%')} of 5s, {_number(rates['dislikes'], '.0%')} of 1s, "
            f"{_number(rates['candidates'], '.0%')} of the candidates",
        ),
    ]
    if position := report["position"]:
        picked = ", ".join(f"{row['rate']:.0%}" for row in position["pick_rate"])
        lines += [
            ("picked by position", picked),
            ("changed by the order", f"{_number(position['flipped'], '.0%')} of the verdicts"),
        ]
    statuses = ", ".join(f"{count} {status}" for status, count in report["statuses"].items())
    lines.append(("answers", f"{statuses} ({_number(report['parse_rate'], '.1%')} usable)"))
    if usage["prompt_tokens"] is not None:
        lines.append(
            (
                "tokens",
                f"{usage['prompt_tokens']:,} read, {usage['cached_tokens'] or 0:,} of them from "
                f"the prefix cache; {usage['answer_tokens'] or 0:,} written",
            )
        )
    if usage["seconds"] is not None:
        lines += [
            (
                "time",
                f"{duration(usage['seconds'])}, after {duration(usage['seconds_to_start'])} to "
                f"start",
            ),
            (
                "tokens a second",
                f"{_number(usage['computed_tokens_per_second'], ',.0f')} computed, "
                f"{_number(usage['answer_tokens_per_second'], ',.0f')} written",
            ),
        ]
    if usage["cost"] is not None:
        lines.append(("cost", f"{usage['cost']:,.2f}"))
    return lines


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
