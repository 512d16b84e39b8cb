"""The evaluation stage on a small split with a real model: every number rebuilt by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from refine.artifacts import (
    CONFIRMED,
    FEEDBACK,
    LABELS,
    POSITIVE,
    RATINGS,
    UNDECIDED,
    ArtifactError,
    read_json,
    write_json,
    write_table,
)
from refine.data import TrainingData
from refine.evaluation.comparison import compare
from refine.evaluation.masks import masked_pairs
from refine.evaluation.stage import evaluate
from refine.models.registry import build_model, hyperparameters, load_model, save_model

N_USERS, N_ITEMS = 12, 30
SETTINGS: dict[str, dict[str, Any]] = {
    "model": {"name": "lightgcn", "dimension": 8, "layers": 2, "learning_rate": 0.01},
}
EVALUATION = {"k": [5, 10], "mask": "rated", "mask_validation": False, "recommendations": 12}
INPUTS = ("model", "feedback", "validation", "test", "users", "items", "statistics")
OUTPUTS = ("metrics", "per_user", "recommendations")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A random split, and an untrained model of it. The last user has no test positive."""
    suffix = dict.fromkeys(("metrics", "statistics"), "json") | {"model": "safetensors"}
    paths = {name: tmp_path / f"{name}.{suffix.get(name, 'parquet')}" for name in INPUTS + OUTPUTS}
    rng = np.random.default_rng(7)
    rows: dict[str, list[tuple[int, int, int]]] = {"train": [], "validation": [], "test": []}
    for user in range(N_USERS):
        items = rng.permutation(N_ITEMS).tolist()
        rows["train"] += [(user, item, int(rng.integers(1, 6))) for item in items[:12]]
        rows["train"][-1] = (*rows["train"][-1][:2], 5)  # somebody must like something
        rows["validation"] += [(user, item, 5) for item in items[12:14]]
        if user < N_USERS - 1:
            rows["test"] += [(user, item, 4) for item in items[14:18]]
        rows["test"].append((user, items[18], 2))  # no target
    for name in ("validation", "test"):
        users, items, ratings = zip(*sorted(rows[name]), strict=True)
        table = {"user": users, "item": items, "rating": ratings}
        times = pa.nulls(len(users), pa.int64())
        write_table(pa.table(table | {"timestamp": times}), paths[name], RATINGS)
    users, items, ratings = zip(*sorted(rows["train"]), strict=True)
    labels = [POSITIVE if r >= 4 else CONFIRMED if r == 1 else UNDECIDED for r in ratings]
    table = {"user": users, "item": items, "rating": ratings, "label": labels, "reason": labels}
    write_table(pa.table(table), paths["feedback"], FEEDBACK)
    write_table(
        pa.table({"user": range(N_USERS), "user_id": [f"u{u}" for u in range(N_USERS)]}),
        paths["users"],
    )
    catalogue = {
        "item": range(N_ITEMS),
        "item_id": [100 + item for item in range(N_ITEMS)],
        "title": [f"Film {item}" for item in range(N_ITEMS)],
    }
    write_table(pa.table(catalogue), paths["items"])
    write_json({"split_digest": "d1"}, paths["statistics"])

    data = _data(paths)
    model = build_model(SETTINGS, data, torch.Generator().manual_seed(3))
    facts = {"seed": 2024, "epoch": 17}
    save_model(paths["model"], "lightgcn", hyperparameters(SETTINGS), model.state_dict(), facts)
    return paths


def _data(paths: dict[str, Path]) -> TrainingData:
    return TrainingData.load(*(paths[n] for n in ("feedback", "validation", "users", "items")))


def _evaluate(paths: dict[str, Path], **changes: Any) -> dict[str, Any]:
    evaluate(
        *(paths[name] for name in INPUTS + OUTPUTS), evaluation=EVALUATION | changes, device="cpu"
    )
    metrics: dict[str, Any] = read_json(paths["metrics"])
    return metrics


def _pairs(path: Path, keep: Callable[[int], bool]) -> set[tuple[int, int]]:
    rows = pq.read_table(path).to_pylist()
    return {(row["user"], row["item"]) for row in rows if keep(row["rating"])}


@pytest.mark.parametrize("mask", ["rated", "train_positives"])
@pytest.mark.parametrize("mask_validation", [False, True])
def test_lists_and_metrics_equal_a_plain_loop(
    files: dict[str, Path], mask: str, mask_validation: bool
) -> None:
    metrics = _evaluate(files, mask=mask, mask_validation=mask_validation)
    masked = _pairs(files["feedback"], lambda rating: mask == "rated" or rating >= 4)
    if mask_validation:
        masked |= _pairs(files["validation"], lambda _: True)
    targets = _pairs(files["test"], lambda rating: rating >= 4)

    data = _data(files)
    scores = load_model(files["model"], data).scorer()(torch.arange(N_USERS)).tolist()
    recalls = {}
    expected = []
    for user in range(N_USERS):
        rankable = [item for item in range(N_ITEMS) if (user, item) not in masked]
        best = sorted(rankable, key=lambda item: (-scores[user][item], item))[:12]
        expected += [(user, rank, item) for rank, item in enumerate(best, start=1)]
        wanted = {item for other, item in targets if other == user}
        if wanted:
            recalls[user] = len(wanted & set(best[:10])) / len(wanted)

    rows = pq.read_table(files["recommendations"]).to_pylist()
    assert [(row["user"], row["rank"], row["item"]) for row in rows] == expected
    for row in rows:
        assert row["user_id"] == f"u{row['user']}"
        assert row["item_id"] == 100 + row["item"]
        assert row["title"] == f"Film {row['item']}"
        assert row["score"] == pytest.approx(scores[row["user"]][row["item"]])

    per_user = pq.read_table(files["per_user"]).to_pylist()
    assert {row["user"]: row["recall@10"] for row in per_user} == pytest.approx(recalls)
    assert {row["targets"] for row in per_user} == {4}
    assert [row["user_id"] for row in per_user] == [f"u{user}" for user in range(N_USERS - 1)]
    assert metrics["metrics"]["recall@10"] == pytest.approx(sum(recalls.values()) / len(recalls))
    assert metrics["card"]["mask"] == mask
    assert metrics["card"]["mask_validation"] is mask_validation
    assert metrics["card"]["users_scored"] == N_USERS - 1
    assert metrics["card"]["users_skipped"] == 1
    assert metrics["card"]["split_digest"] == "d1"
    top_10 = {item for _, rank, item in expected if rank <= 10}
    assert metrics["metrics"]["coverage@10"] == pytest.approx(len(top_10) / N_ITEMS)


def test_metrics_say_what_was_evaluated(files: dict[str, Path]) -> None:
    metrics = _evaluate(files)
    assert list(metrics)[:4] == ["model", "seed", "epoch", "metrics"]
    assert (metrics["model"], metrics["seed"], metrics["epoch"]) == ("lightgcn", 2024, 17)
    assert metrics["evaluated_on"]["device"] == "cpu"
    assert metrics["evaluated_on"]["versions"]["torch"] == torch.__version__
    card = json.loads(pq.read_schema(files["per_user"]).metadata[b"card"])
    assert card == metrics["card"]


def test_outputs_repeat_byte_by_byte(files: dict[str, Path]) -> None:
    _evaluate(files)
    before = {name: files[name].read_bytes() for name in OUTPUTS}
    _evaluate(files)
    assert {name: files[name].read_bytes() for name in OUTPUTS} == before


def test_labels_do_not_change_the_candidates(files: dict[str, Path]) -> None:
    """Two judges' experiments are ranked over the same items, whatever the judges decided."""
    data = _data(files)
    table = pq.read_table(files["feedback"])
    flipped = pa.array([LABELS[place % len(LABELS)] for place in range(len(table))])
    write_table(table.set_column(3, "label", flipped), files["feedback"], FEEDBACK)
    for mask in ("rated", "train_positives"):
        before, after = (masked_pairs(d, mask, mask_validation=True) for d in (data, _data(files)))
        assert all(torch.equal(b, a) for b, a in zip(before, after, strict=True))


def test_an_evaluation_equals_itself(files: dict[str, Path], tmp_path: Path) -> None:
    _evaluate(files)
    output = tmp_path / "compare.json"
    settings = {"bootstrap": 200, "confidence": 0.95, "seed": 1}
    compare([files["per_user"]], [files["per_user"]], output, evaluation=settings)
    result = read_json(output)
    assert result["users"] == N_USERS - 1
    assert result["metrics"]["ndcg@10"]["difference"] == 0.0


def test_what_is_missing_is_named(files: dict[str, Path]) -> None:
    write_json({}, files["statistics"])
    with pytest.raises(ArtifactError, match=r"statistics\.json: split_digest is missing"):
        _evaluate(files)
    with pytest.raises(ValueError, match="no policy 'everything'; there are rated"):
        _evaluate(files, mask="everything")
    assert not any(files[name].exists() for name in OUTPUTS)


def test_codes_out_of_order_are_refused(files: dict[str, Path]) -> None:
    table = pq.read_table(files["items"])
    write_table(table.take(pa.array([1, 0, *range(2, N_ITEMS)])), files["items"])
    with pytest.raises(ArtifactError, match=r"items\.parquet: column item must be 0\.\.29"):
        _evaluate(files)
