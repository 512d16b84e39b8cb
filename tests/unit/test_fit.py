import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from training_data import planted, write_artifacts

from refine.data import TrainingData
from refine.evaluation.ranking import RankingEvaluator
from refine.models.base import ModelHyperparameters
from refine.models.item_knn import ItemKNN, ItemKNNHyperparameters
from refine.models.registry import load_model
from refine.tensors import read_tensors
from refine.training.fit import fit
from refine.training.loop import TrainingError


def run(folder: Path, model: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Fits on planted data; the model's file and its metadata."""
    path = folder / "model.safetensors"
    settings = {"model": model, "evaluation": {"mask": "rated"}}
    fit(*write_artifacts(planted(), folder), path, settings=settings, seed=7, device="cpu")
    return path, read_tensors(path)[1]


def scores_of(data: TrainingData, hyperparameters: ItemKNNHyperparameters) -> dict[str, float]:
    model = ItemKNN(data, hyperparameters, torch.Generator())
    model.fit()
    evaluate = RankingEvaluator(
        mask=data.rated,
        targets=data.validation,
        n_users=data.n_users,
        n_items=data.n_items,
        ks=[20],
    )
    return evaluate(model.scorer()).means()


def test_the_best_of_all_combinations_is_kept(tmp_path: Path, caplog) -> None:
    search = {"shrinkage": [30.0, 0.0], "neighbours": [1, 15, 3]}
    with caplog.at_level(logging.INFO, "refine.training.fit"):
        path, facts = run(tmp_path, {"name": "item-knn", "search": search})

    data, expected = planted(), []
    for shrinkage in search["shrinkage"]:
        for neighbours in search["neighbours"]:
            scores = scores_of(data, ItemKNNHyperparameters(neighbours, shrinkage))
            chosen = {"neighbours": neighbours, "shrinkage": shrinkage}
            expected.append({"hyperparameters": chosen, **scores})
    wanted = ("hyperparameters", "recall@20", "ndcg@20")
    expected = [{key: each[key] for key in wanted} for each in expected]
    assert facts["searched"] == expected
    best = max(expected, key=lambda each: each["recall@20"])
    assert facts["hyperparameters"] == best["hyperparameters"]
    assert facts["validation"] == {key: best[key] for key in wanted[1:]}
    assert (facts["model"], facts["seed"]) == ("item-knn", 7)
    assert facts["trained_on"]["device"] == "cpu"

    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == len(expected)
    for line, each in zip(lines, expected, strict=True):
        assert line.startswith(
            "item-knn neighbours={neighbours} shrinkage={shrinkage}  ".format(
                **each["hyperparameters"]
            )
        )
        assert f"recall@20 {each['recall@20']:.4f}" in line

    model = ItemKNN(data, ItemKNNHyperparameters(**best["hyperparameters"]), torch.Generator())
    model.fit()
    users = torch.arange(data.n_users)
    assert torch.equal(load_model(path, data).scorer()(users), model.scorer()(users))


def test_ndcg_decides_between_equals_and_then_the_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([(0.1, 0.9), (0.3, 0.1), (0.3, 0.2), (0.3, 0.2), (0.2, 0.8)])

    def means(_: object) -> dict[str, float]:
        return dict(zip(("recall@20", "ndcg@20"), next(scores), strict=True))

    monkeypatch.setattr("refine.evaluation.ranking.Ranking.means", means)
    search = {"ridge": [1.0, 2.0, 3.0, 4.0, 5.0]}
    _, facts = run(tmp_path, {"name": "ease", "search": search})
    assert facts["hyperparameters"]["ridge"] == 3.0
    assert facts["validation"] == {"recall@20": 0.3, "ndcg@20": 0.2}


def test_without_a_search_there_is_one_candidate(tmp_path: Path) -> None:
    path, facts = run(tmp_path, {"name": "popularity"})
    assert [each["hyperparameters"] for each in facts["searched"]] == [{}]
    assert load_model(path, planted()).hyperparameters == ModelHyperparameters()


def test_the_same_file_comes_out_again(tmp_path: Path) -> None:
    weights = [None, [0.0, 0.2, 0.5, 1.0, 1.1]]
    model = {"name": "ease", "ridge": 20.0, "search": {"weights": weights}}
    path, facts = run(tmp_path, model)
    first = path.read_bytes()
    run(tmp_path, model)
    assert path.read_bytes() == first
    assert [each["hyperparameters"]["weights"] for each in facts["searched"]] == weights
    json.dumps(facts)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name": "ease", "search": {"rigde": [1.0]}}, "ease has no hyperparameter rigde"),
        ({"name": "ease", "search": {"ridge": [9.0, -1.0]}}, "ridge must be within"),
        ({"name": "ease", "search": {"ridge": []}}, "model.search lists no value"),
    ],
)
def test_a_search_is_refused_before_anything_is_fitted(
    tmp_path: Path, model: dict[str, Any], message: str, caplog
) -> None:
    with (
        caplog.at_level(logging.INFO, "refine.training.fit"),
        pytest.raises(ValueError, match=message),
    ):
        run(tmp_path, model)
    assert not caplog.records
    assert not (tmp_path / "model.safetensors").exists()


def test_a_model_of_gradient_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="lightgcn is not computed at once"):
        run(tmp_path, {"name": "lightgcn"})
