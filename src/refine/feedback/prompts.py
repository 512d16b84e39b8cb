"""The questions to a judge: three lists a user, cut into prompts of a few candidates each.

Step 1 shows the user's favourites, step 2 a worked example with its answer, step 3 the candidates
(ReFINe, section 3). Train ratings are the only ratings that this module ever sees.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from refine.artifacts import POSITIVE_RATING, PROMPTS, RATINGS, read_table, replacing
from refine.feedback.forms import TITLES, WORDS, AnswerForm
from refine.feedback.hashing import draw_keys, id_keys
from refine.feedback.parsing import NOTHING, answer_room, numbers
from refine.feedback.roles import CANDIDATE, EXAMPLE, FAVOURITE, assign_roles
from refine.feedback.templates import Template, TemplateError, fill, read_template
from refine.feedback.titles import item_line, quoted_title
from refine.feedback.tokens import BASE, PromptTokenizer

log = logging.getLogger("refine.prompts")

Counts = NDArray[np.int32]

_RATINGS_AT_ONCE = 50_000
_ROWS_AT_ONCE = 1024
_DICTIONARY = 1 << 27


class PromptError(ValueError):
    """A prompt does not fit into the model's context, whatever is left out of it."""


def write_prompts(
    train: Path,
    users: Path,
    items: Path,
    template: Path,
    output: Path,
    *,
    prompts: dict[str, Any],
    judge: dict[str, Any],
    dataset: str,
) -> None:
    """Writes the prompts of all users; users without a candidate have none.

    Args:
        train: the train ratings.
        users: the users' codes and ids.
        items: the items' codes, ids, titles and genres.
        template: the wording, see `refine.feedback.templates`.
        output: prompts.parquet, sorted by user, then chunk. Chunks count from 1.
        prompts: settings ``answer``, ``chunk``, ``favourites``, ``name_dataset`` and ``seed``.
        judge: of an LLM its ``form``, ``strategy``, ``context``, ``chat``, ``tokenizer`` and
            ``revision``; else empty.
        dataset: the title of the dataset.

    Raises:
        TemplateError: the template cannot be used.
        TokenizerError: the model's tokenizer cannot be had, or does not fit the form.
        PromptError: a user's prompt does not fit into the context.
    """
    wording = read_template(template)
    form = answer_form(wording, prompts, judge)
    ratings = gather(train, users, items)
    blocks = build(ratings, wording, prompts=prompts, judge=judge, dataset=dataset)
    asked, shortened, tokens = 0, 0, 0
    candidates = ratings.filter(role=CANDIDATE)
    with (
        replacing(output) as temporary,
        # A dictionary keeps a user's context once for all the prompts of a row group.
        pq.ParquetWriter(
            temporary,
            PROMPTS.with_metadata(form.to_metadata()),
            compression="zstd",
            dictionary_pagesize_limit=_DICTIONARY,
        ) as writer,
        tqdm(total=len(candidates), desc="prompts", unit="candidate", disable=None) as bar,
    ):
        for block in blocks:
            writer.write_table(block)
            rows = pl.DataFrame(block.select(["candidates", "tokens", "dropped"]))
            asked += len(rows)
            shortened += rows.filter(pl.col("dropped") > 0).height
            tokens += int(rows["tokens"].sum())
            bar.update(int(rows["candidates"].list.len().sum()))
    log.info(
        "%d prompts with %d candidates for %d users, of %d",
        asked,
        len(candidates),
        candidates["user"].n_unique(),
        ratings["user"].n_unique(),
    )
    if judge.get("tokenizer"):
        log.info(
            "%d tokens; in %d prompts the user's lists were cut to fit into %d tokens",
            tokens,
            shortened,
            judge["context"],
        )


def answer_form(template: Template, prompts: dict[str, Any], judge: dict[str, Any]) -> AnswerForm:
    """How the prompts want to be answered.

    Raises:
        TemplateError: the judge scores and the template has no words for it, or the reverse.
    """
    strategy = judge.get("strategy", "select")
    if strategy == "score" and template.words is None:
        raise TemplateError("strategy score needs a template with words for yes and no")
    if strategy != "score" and template.words is not None:
        raise TemplateError("a template with words for yes and no is for strategy score")
    return AnswerForm.of(prompts, strategy, template.words)


def gather(train: Path, users: Path, items: Path) -> pl.DataFrame:
    """The train ratings with all that prompts are made of.

    Returns:
        One row a rating: user, item, rating, timestamp, ``role`` (see `refine.feedback.roles`),
        ``popularity`` (train ratings of the item), user_id, item_id, and the item as it is shown,
        ``title`` (in quotes) and ``line`` (title and genres).
    """
    shown = pl.DataFrame(read_table(items)).select(
        "item", "item_id", title=quoted_title(), line=item_line()
    )
    return (
        assign_roles(pl.DataFrame(read_table(train, RATINGS)))
        .with_columns(popularity=pl.len().over("item"))
        .join(pl.DataFrame(read_table(users)).select("user", "user_id"), on="user")
        .join(shown, on="item")
        .sort("user", "item")
    )


def build(
    ratings: pl.DataFrame,
    template: Template,
    *,
    prompts: dict[str, Any],
    judge: dict[str, Any],
    dataset: str,
    reverse: bool = False,
) -> Iterator[pa.Table]:
    """Makes the prompts, some users at a time.

    The example and the candidates are shuffled by draws that depend on the seed, the user's id and
    the item's id alone: another user, or another user's ratings, change no example and no chunk.
    Favourites come by popularity in train, most rated first, then by item; or are shuffled too.

    Where the longest of a user's prompts, with room for its answer, does not fit into the context,
    the user's three lists (the favourites, and what the example has of likes and of dislikes) are
    cut to one length, the greatest that fits. Each keeps its most rated entries, then those that
    come first by item: what many have rated is what a model knows best. All prompts of the user
    then show the same lists. Candidates are never left out.

    Args:
        ratings: as `gather` gives them. Whoever changes a ``role`` changes what is asked.
        template: the wording; its ``words`` go with the strategy ``score``.
        prompts: as for `write_prompts`.
        judge: as for `write_prompts`.
        dataset: the title of the dataset.
        reverse: whether the candidates of each prompt are shown in the reverse order.

    Yields:
        Tables with the columns of PROMPTS, in order.

    Raises:
        TemplateError: the template has no words and the strategy needs them, or the reverse.
        TokenizerError: the model's tokenizer cannot be had, or does not fit the form.
        PromptError: a user's prompt does not fit into the context.
    """
    builder = _Builder(template, prompts, judge, dataset, reverse)
    for block in _blocks(ratings):
        # Each prompt of a user repeats the user's context: few rows, so that memory stays bounded.
        for rows in builder.prompts(block).iter_slices(_ROWS_AT_ONCE):
            yield rows.select(PROMPTS.names).to_arrow().cast(PROMPTS)


def _blocks(ratings: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Cuts the ratings between users; those of users without a candidate are left out."""
    asked = ratings.filter(role=CANDIDATE).select("user").unique()
    ratings = ratings.join(asked, on="user", how="semi").sort("user", "item")
    start = 0
    for length in (
        ratings.group_by("user", maintain_order=True)
        .len("ratings")
        .group_by(pl.col("ratings").cum_sum() // _RATINGS_AT_ONCE, maintain_order=True)
        .agg(total=pl.col("ratings").sum())["total"]
    ):
        yield ratings.slice(start, length)
        start += length


class _Builder:
    """Makes the prompts of as many users as it is given, all by the same settings."""

    def __init__(
        self,
        template: Template,
        prompts: dict[str, Any],
        judge: dict[str, Any],
        dataset: str,
        reverse: bool,
    ) -> None:
        self._template = template
        self._answered_by = answer_form(template, prompts, judge).by
        self._chunk = 1 if self._answered_by == WORDS else prompts["chunk"]
        self._by_popularity = prompts["favourites"] == "popularity"
        self._seed = prompts["seed"]
        self._reverse = reverse
        self._instructions = template.instructions
        if prompts["name_dataset"]:
            self._instructions += " " + template.named.replace("{dataset}", dataset)
        self._form = judge.get("form", BASE)
        self._chat = judge.get("chat", {})
        self._limit: int = judge.get("context", 0)
        self._tokenizer = None
        if judge.get("tokenizer"):
            self._tokenizer = PromptTokenizer.load(judge["tokenizer"], judge["revision"])

    def prompts(self, ratings: pl.DataFrame) -> pl.DataFrame:
        """The prompts of the users whose ratings, all of them, are given."""
        questions = self._questions(ratings)
        contexts = self._contexts(self._lists(ratings), questions)
        return questions.join(contexts, on="user", maintain_order="left").with_columns(
            instructions=pl.lit(self._instructions),
            tokens=pl.col("context_tokens") + pl.col("question_tokens"),
        )

    def _questions(self, ratings: pl.DataFrame) -> pl.DataFrame:
        """One row a prompt, without what is known of the user.

        Beside columns of PROMPTS it has user_id, question_tokens, and ``answer_room``: how many
        tokens the answer may take.
        """
        listed = self._shuffled(ratings.filter(role=CANDIDATE)).with_columns(
            chunk=(pl.int_range(pl.len()).over("user") // self._chunk + 1).cast(pl.Int32)
        )
        if self._reverse:
            listed = listed.reverse().sort("user", "chunk", maintain_order=True)
        entry = pl.col("line") if self._answered_by == WORDS else self._entry()
        question = self._template.question
        if self._form == BASE:
            question += "\n" + self._template.cue
        questions = (
            listed.group_by("user", "user_id", "chunk", maintain_order=True)
            .agg("item", titles="title", candidates=entry.str.join("\n"))
            .with_columns(prompt_id=pl.format("{}/{}", "user_id", "chunk"), question=fill(question))
            .with_columns(candidates="item")
        )
        return questions.with_columns(
            question_tokens=self._question_tokens(questions["question"]),
            answer_room=self._answer_rooms(questions["titles"]),
        ).drop("item", "titles")

    def _answer_rooms(self, titles: pl.Series) -> pl.Series:
        """How many tokens the answer may take, of prompts with these titles."""
        if self._answered_by == TITLES:
            rooms = [answer_room(choices) for choices in titles.to_list()]
            return pl.Series(rooms, dtype=pl.Int32)
        sizes = titles.list.len()
        by_size = {
            size: answer_room(None if self._answered_by == WORDS else numbers(size))
            for size in sizes.unique()
        }
        return sizes.replace_strict(by_size, return_dtype=pl.Int32)

    def _lists(self, ratings: pl.DataFrame) -> pl.DataFrame:
        """The favourites and the example of each user, each in the order in which it is shown.

        ``rank`` is an entry's place by popularity among the user's favourites, among the example's
        likes or among its dislikes.
        """
        ranked = (
            ratings.filter(pl.col("role") != CANDIDATE)
            .with_columns(liked=pl.col("rating") >= POSITIVE_RATING)
            .sort("user", "popularity", "item", descending=[False, True, False])
            .with_columns(rank=pl.int_range(1, pl.len() + 1).over("user", "role", "liked"))
        )
        favourites = ranked.filter(role=FAVOURITE)
        if not self._by_popularity:
            favourites = self._shuffled(favourites)
        example = self._shuffled(ranked.filter(role=EXAMPLE))
        columns = ("user", "role", "liked", "rank", "title", "line")
        return pl.concat([favourites.select(columns), example.select(columns)])

    def _contexts(self, lists: pl.DataFrame, questions: pl.DataFrame) -> pl.DataFrame:
        """What is known of each user, as much of it as fits.

        Columns are user, context, context_tokens and ``dropped``, the entries left out.
        """
        users = (
            questions.group_by("user", "user_id", maintain_order=True)
            .agg(need=(pl.col("question_tokens") + pl.col("answer_room")).max())
            .join(
                lists.group_by("user").agg(length=pl.max("rank")),
                on="user",
                how="left",
                maintain_order="left",
            )
            .with_columns(pl.col("length").fill_null(0))
        )
        whole = self._written(lists, users)
        if self._tokenizer is None:
            return whole
        users = users.with_columns(whole["context_tokens"], room=self._limit - pl.col("need"))
        too_long = users.filter(pl.col("context_tokens") > pl.col("room"))
        if too_long.is_empty():
            return whole
        cut = self._written(lists, self._longest_that_fit(lists, too_long))
        return pl.concat([whole.join(cut, on="user", how="anti"), cut])

    def _longest_that_fit(self, lists: pl.DataFrame, users: pl.DataFrame) -> pl.DataFrame:
        """Finds the greatest ``length`` of each user's lists with which a prompt fits.

        Tokens grow all but evenly with the length. The next guess is therefore where the straight
        line between the greatest length known to fit, and the smallest known not to, meets what
        there is room for; mostly four or five guesses do.

        Args:
            lists: as `_lists` gives them.
            users: user, user_id, room for the context, and the ``length`` and the
                ``context_tokens`` of lists that do not fit.

        Raises:
            PromptError: a prompt does not fit even without the lists.
        """
        room = users["room"].to_numpy()
        fits, fails = np.zeros_like(room), users["length"].to_numpy(writable=True)
        fits_tokens = self._context_tokens(lists, users, fits)
        fails_tokens = users["context_tokens"].to_numpy(writable=True)
        if (fits_tokens > room).any():
            raise self._misfit(
                users.filter(fits_tokens > room), int((fits_tokens - room).max()) + self._limit
            )
        while len(unsure := np.flatnonzero(fails - fits > 1)):
            low, high = fits[unsure], fails[unsure]
            free = room[unsure] - fits_tokens[unsure]
            share = free / (fails_tokens[unsure] - fits_tokens[unsure])
            guess = np.clip(low + ((high - low) * share).astype(low.dtype), low + 1, high - 1)
            tokens = self._context_tokens(lists, users[unsure], guess)
            fit = tokens <= room[unsure]
            fits[unsure[fit]], fits_tokens[unsure[fit]] = guess[fit], tokens[fit]
            fails[unsure[~fit]], fails_tokens[unsure[~fit]] = guess[~fit], tokens[~fit]
        return users.with_columns(length=fits)

    def _context_tokens(self, lists: pl.DataFrame, users: pl.DataFrame, length: Counts) -> Counts:
        written = self._written(lists, users.with_columns(length=length))
        return written["context_tokens"].to_numpy(writable=True)

    def _misfit(self, users: pl.DataFrame, tokens: int) -> PromptError:
        others = f" and {len(users) - 1} more" if len(users) > 1 else ""
        fewer = ", or lower prompts.chunk" if self._chunk > 1 else ""
        return PromptError(
            f"user {users['user_id'][0]}{others}: even without the user's favourites and example, "
            f"a prompt with its answer takes {tokens} tokens, and the judge's context is "
            f"{self._limit}: raise `context`{fewer}"
        )

    def _written(self, lists: pl.DataFrame, users: pl.DataFrame) -> pl.DataFrame:
        """Writes what is known of users, of each list the ``length`` most rated entries.

        Args:
            lists: as `_lists` gives them.
            users: user and length.

        Returns:
            A row a user, in order: user, context, context_tokens, dropped.
        """
        words = self._template.words
        liked = pl.col("liked")
        if words is None:
            entry = self._entry()
        else:
            verdict = pl.when(liked).then(pl.lit(words[0])).otherwise(pl.lit(words[1]))
            entry = pl.format("{}\n{} {}", "line", pl.lit(self._template.cue), verdict)
        name = pl.col("title") if self._answered_by == TITLES else _number().cast(pl.String)

        users = users.select("user", "length")
        entries = lists.join(users, on="user", maintain_order="left")
        kept = pl.col("rank") <= pl.col("length")
        shown = entries.filter(kept)
        of_users = (
            shown.filter(role=FAVOURITE)
            .group_by("user", maintain_order=True)
            .agg(favourites=("- " + pl.col("line")).str.join("\n")),
            shown.filter(role=EXAMPLE)
            .group_by("user", maintain_order=True)
            .agg(example=entry.str.join("\n"), example_answer=name.filter(liked).str.join(", ")),
            entries.group_by("user").agg(dropped=(~kept).sum()),
        )
        for table in of_users:
            users = users.join(table, on="user", how="left", maintain_order="left")
        texts = pl.col("favourites", "example", "example_answer")
        users = users.with_columns(
            texts.replace("", None).fill_null(NOTHING), pl.col("dropped").fill_null(0)
        ).select("user", "dropped", context=fill(self._template.context))
        return users.with_columns(context_tokens=self._prefix_tokens(users["context"]))

    def _prefix_tokens(self, contexts: pl.Series) -> pl.Series:
        """Tokens of what stands before the question, with these contexts; nulls if not counted."""
        tokenizer = self._tokenizer
        if tokenizer is None:
            return pl.repeat(None, len(contexts), dtype=pl.Int32, eager=True)
        prefixes = [
            tokenizer.pieces(self._form, self._instructions, context, "", self._chat)[0]
            for context in contexts
        ]
        return pl.Series(tokenizer.count_prefixes(prefixes, self._form), dtype=pl.Int32)

    def _question_tokens(self, questions: pl.Series) -> pl.Series:
        """Tokens of these questions with what follows them; nulls if not counted."""
        tokenizer = self._tokenizer
        if tokenizer is None:
            return pl.repeat(None, len(questions), dtype=pl.Int32, eager=True)
        rests = [
            tokenizer.pieces(self._form, self._instructions, "", question, self._chat)[1]
            for question in questions
        ]
        return pl.Series(tokenizer.count_rests(rests), dtype=pl.Int32)

    def _entry(self) -> pl.Expr:
        """An entry of a list from which some are picked, within one group."""
        if self._answered_by == TITLES:
            return "- " + pl.col("line")
        return pl.format("{}. {}", _number(), "line")

    def _shuffled(self, ratings: pl.DataFrame) -> pl.DataFrame:
        """Sorted by user, and within a user in a random order that depends on seed and ids alone.

        Sorting by independent random keys is a uniform shuffle, whatever the order before it.
        """
        ids = id_keys(ratings["user_id"]), id_keys(ratings["item_id"])
        keys = draw_keys(self._seed, "order", *ids)
        return ratings.with_columns(order=keys).sort("user", "order", "item")


def _number() -> pl.Expr:
    """The place of an entry within its group, from 1."""
    return pl.int_range(1, pl.len() + 1)
