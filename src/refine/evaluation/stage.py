"""Evaluates one trained model on the test set, and writes what it recommends."""

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from refine.artifacts import (
    POSITIVE_RATING,
    RATINGS,
    ArtifactError,
    read_json,
    read_table,
    write_json,
    write_table,
)
from refine.columns import to_column, to_tensor
from refine.data import Pairs, TrainingData
from refine.device import choose_device, deterministic
from refine.evaluation.card import CARD_METADATA, MODEL_METADATA, Card, evaluation_card
from refine.evaluation.environment import environment
from refine.evaluation.masks import masked_pairs
from refine.evaluation.ranking import Ranking, RankingEvaluator
from refine.models.registry import load_model
from refine.tensors import read_tensors
from refine.topk import NO_ITEM

_logger = logging.getLogger("refine.evaluation")


def evaluate(
    model: Path,
    feedback: Path,
    validation: Path,
    test: Path,
    users: Path,
    items: Path,
    statistics: Path,
    metrics: Path,
    per_user: Path,
    recommendations: Path,
    *,
    evaluation: dict[str, Any],
    label: str | None = None,
    device: str = "auto",
) -> None:
    """Ranks all items for every user and scores the lists on the held-out positives.

    Args:
        model: the trained model.
        feedback: labelled train ratings that it was trained on (FEEDBACK).
        validation: validation ratings (RATINGS).
        test: test ratings (RATINGS); those below the positive ones are no targets.
        users: user codes and ids.
        items: item codes, ids and titles.
        statistics: statistics.json of the split, for its digest.
        metrics: the JSON file to write: means over the users, the evaluation card, and what the
            model's file says of its training.
        per_user: the Parquet file to write: the metrics of each user that has a target; its
            metadata holds the card and the model's name.
        recommendations: the Parquet file to write: the best items of each user.
        evaluation: settings ``k``, ``mask``, ``mask_validation`` and ``recommendations``.
        label: how the model is called beside its numbers; as its file calls it, unless given.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ArtifactError: an input breaks its schema.
        RankingError: the test set has no positive, or the scores are not numbers.
    """
    data = TrainingData.load(feedback, validation, users, items).to(choose_device(device))
    _, trained = read_tensors(model)
    evaluator = RankingEvaluator(
        mask=masked_pairs(data, evaluation["mask"], mask_validation=evaluation["mask_validation"]),
        targets=_targets(test),
        n_users=data.n_users,
        n_items=data.n_items,
        ks=evaluation["k"],
        list_length=evaluation["recommendations"],
        device=data.device,
        all_users=True,
    )
    with deterministic(data.device):
        ranking = evaluator(load_model(model, data).scorer())
    card = evaluation_card(
        ranking,
        mask=evaluation["mask"],
        mask_validation=evaluation["mask_validation"],
        n_users=data.n_users,
        split_digest=_split_digest(statistics),
    )
    user_ids = _by_code(users, "user").column("user_id").combine_chunks()
    catalogue = _by_code(items, "item")
    means = ranking.metrics()
    label = label or trained["model"]
    write_table(_per_user(ranking, user_ids, card, label), per_user)
    write_table(
        recommendation_table(ranking, user_ids, catalogue, evaluation["recommendations"]),
        recommendations,
    )
    head = {key: trained.pop(key) for key in ("model", "seed", "epoch") if key in trained}
    head["model"] = label
    results = {"metrics": means, "card": card, "evaluated_on": environment(data.device)}
    write_json(head | results | trained, metrics)
    _logger.info(
        "%d users scored, %d without a held-out positive skipped; recall@%d %.4f, ndcg@%d %.4f",
        card["users_scored"],
        card["users_skipped"],
        ranking.ks[-1],
        means[f"recall@{ranking.ks[-1]}"],
        ranking.ks[-1],
        means[f"ndcg@{ranking.ks[-1]}"],
    )


def _targets(test: Path) -> Pairs:
    table = read_table(test, RATINGS)
    users, items, ratings = (to_tensor(table.column(name)) for name in ("user", "item", "rating"))
    return Pairs(users, items).where(ratings >= POSITIVE_RATING)


def _by_code(path: Path, code: str) -> pa.Table:
    """A table that has one row a code, in their order."""
    table = read_table(path)
    expected = pa.chunked_array([to_column(torch.arange(len(table)))])
    if not table.column(code).cast(pa.int64()).equals(expected):
        raise ArtifactError(f"{path}: column {code} must be 0..{len(table) - 1}, in order")
    return table


def _split_digest(statistics: Path) -> str:
    digest = read_json(statistics).get("split_digest")
    if not isinstance(digest, str):
        raise ArtifactError(f"{statistics}: split_digest is missing; split the ratings again")
    return digest


def _per_user(ranking: Ranking, user_ids: pa.Array, card: Card, model: str) -> pa.Table:
    """The metrics of every user that has a target; card and model in the table's metadata."""
    users = to_column(ranking.scored_users)
    columns = {
        "user": users.cast(pa.int32()),
        "user_id": user_ids.take(users),
        "targets": to_column(ranking.n_targets).cast(pa.int32()),
    }
    columns |= {name: to_column(values) for name, values in ranking.user_metrics.items()}
    metadata = {CARD_METADATA: json.dumps(card).encode(), MODEL_METADATA: model.encode()}
    return pa.table(columns, metadata=metadata)


def recommendation_table(
    ranking: Ranking, user_ids: pa.Array, items: pa.Table, length: int
) -> pa.Table:
    """One row a recommendation: user, user_id, rank, item, item_id, title, score.

    Args:
        ranking: the lists.
        user_ids: the id of each user code.
        items: ``item_id`` and ``title`` of each item code.
        length: rows a user, fewer where a user has fewer rankable items.
    """
    lists = ranking.items[:, :length]
    rows, places = torch.nonzero(lists != NO_ITEM, as_tuple=True)
    users = to_column(ranking.users[rows])
    codes = to_column(lists[rows, places])
    return pa.table(
        {
            "user": users.cast(pa.int32()),
            "user_id": user_ids.take(users),
            "rank": to_column(places + 1).cast(pa.int16()),
            "item": codes.cast(pa.int32()),
            "item_id": items.column("item_id").combine_chunks().take(codes),
            "title": items.column("title").combine_chunks().take(codes),
            "score": to_column(ranking.scores[rows, places].float()),
        }
    )
