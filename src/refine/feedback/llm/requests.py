"""From a prompt to a request, and from its reply to a verdict."""

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from math import isnan
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from refine.artifacts import ArtifactError, read_table
from refine.feedback.forms import TITLES, AnswerForm
from refine.feedback.llm.engine import Reply, Request
from refine.feedback.parsing import ANSWERED, MISSING, UNPARSEABLE, numbers, parse
from refine.feedback.titles import quoted_title

COLUMNS = ("candidates", "instructions", "context", "question")
"""The columns of PROMPTS that a request is made of."""


def read_form(prompts: Path) -> AnswerForm:
    """How the prompts of a file want to be answered.

    Raises:
        ArtifactError: the file does not say so.
    """
    form = AnswerForm.from_metadata(pq.read_schema(prompts).metadata)
    if form is None:
        raise ArtifactError(
            f"{prompts} does not say how its prompts want to be answered: it is of an older "
            f"version; delete it and run again"
        )
    return form


class RequestMaker:
    """Makes requests of prompts that all want to be answered in one form."""

    def __init__(self, form: AnswerForm, items: Path) -> None:
        """Reads the items' titles, where they are what is answered.

        Args:
            form: of the answers.
            items: the items' codes, ids, titles and genres.
        """
        self._form = form
        self._titles: Mapping[int, str] = {}
        if form.by == TITLES:
            titled = pl.DataFrame(read_table(items)).select("item", quoted_title())
            self._titles = dict(titled.iter_rows())

    def choices(self, candidates: Sequence[int]) -> tuple[str, ...] | None:
        """What stands for each candidate in an answer; None where words do."""
        if self._form.words:
            return None
        if self._form.by == TITLES:
            return tuple(self._titles[item] for item in candidates)
        return numbers(len(candidates))

    def requests(self, prompts: pl.DataFrame) -> Iterator[Request]:
        """Makes a request of each prompt, of whose columns COLUMNS are read."""
        words = self._form.words
        for candidates, instructions, context, question in prompts.select(COLUMNS).iter_rows():
            texts, choices = (instructions, context, question), self.choices(candidates)
            yield Request(request_key(*texts, choices, words), *texts, choices, words)


def request_key(
    instructions: str,
    context: str,
    question: str,
    choices: tuple[str, ...] | None,
    words: tuple[str, str] | None,
) -> str:
    """Names a prompt and the form of its answer: a digest, different where any of them is."""
    digest = blake2b(digest_size=16)
    for part in (instructions, context, question, json.dumps([choices, words])):
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def verdict(reply: Reply, choices: Sequence[str] | None) -> tuple[str, list[int]]:
    """What a reply says of the candidates.

    Args:
        reply: to a request.
        choices: of the request; None where it asked about words.

    Returns:
        One of ANSWER_STATUSES, and the places of the picked candidates, from 0, ascending. A
        candidate whose log-odds are known is picked if they are above 0.
    """
    if reply.error is not None:
        return MISSING, []
    if choices is not None:
        return parse(reply.text or "", choices, truncated=reply.truncated)
    if reply.log_odds is None or isnan(reply.log_odds):
        return UNPARSEABLE, []
    return ANSWERED, [0] if reply.log_odds > 0 else []
