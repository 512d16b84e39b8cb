"""Control judges: what a judge that knows nothing about taste would say.

Each can copy the coverage and the yes rate of another judge (``like``), so that the two differ only
in which candidates they pick. A judge that does not beat its controls has found no signal.
"""

import numpy as np
import polars as pl

from refine.artifacts import RATINGS, read_table
from refine.feedback.hashing import draw_keys, id_keys, uniform
from refine.feedback.tasks import Task


def pick_all(task: Task) -> pl.DataFrame:
    """Picks every candidate."""
    return task.answers(task.candidates().with_columns(picked=True))


def pick_random(task: Task) -> pl.DataFrame:
    """Picks each candidate with the same probability: the yes rate of ``like``, or ``yes_rate``.

    The draw depends on the setting ``seed`` and the ids of user and item alone.
    """
    candidates = task.candidates()
    items = pl.DataFrame(read_table(task.items)).select("item", "item_id")
    ids = candidates.join(items, on="item", how="left", maintain_order="left").select(
        "item_id", user_id=pl.col("prompt_id").str.replace(r"/\d+$", "")
    )
    keys = draw_keys(
        task.settings["seed"], "random", id_keys(ids["user_id"]), id_keys(ids["item_id"])
    )
    picked = pl.Series(uniform(keys) < _yes_rate(task, candidates))
    return task.answers(candidates.with_columns(picked=picked))


def pick_popular(task: Task) -> pl.DataFrame:
    """Picks the most rated candidates, over all users as many as the yes rate gives."""
    candidates = task.candidates()
    counts = pl.DataFrame(read_table(task.train, RATINGS)).group_by("item").agg(popularity=pl.len())
    candidates = candidates.join(counts, on="item", how="left", maintain_order="left")
    asked = candidates["asked"]
    picks = round(_yes_rate(task, candidates) * int(asked.sum()))
    best_first = candidates.with_row_index().filter("asked")
    best_first = best_first.sort("popularity", "item", "user", descending=[True, False, False])
    picked = np.zeros(len(candidates), dtype=np.bool_)
    picked[best_first["index"].head(picks).to_numpy()] = True
    return task.answers(candidates.with_columns(picked=pl.Series(picked)))


def _yes_rate(task: Task, candidates: pl.DataFrame) -> float:
    """Share of picks among what is asked: of the judge to copy, else as configured."""
    if task.like is None:
        return float(task.settings["yes_rate"])
    rate = candidates["picked_by_like"].mean()
    return float(rate) if isinstance(rate, float) else 0.0
