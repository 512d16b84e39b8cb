"""Every model, as the configuration has it, learns from the ratings of the demo."""

import pytest
import torch
from pipeline import ROOT, Pipeline

from refine.config import extended, load, settings
from refine.data import TrainingData
from refine.models.base import FittedRecommender, Recommender
from refine.models.catalogue import TRAINED
from refine.models.registry import build_model
from refine.training.setup import new_trainer, validation_evaluator

CONFIG = extended(load(ROOT / "config/config.yaml"))
EXPERIMENTS = (
    "lightgcn",
    "bpr-mf",
    "siren",
    "pane-gnn",
    "sigrec",
    "lsgrec",
    "sigformer",
    "refine++",
)
EPOCHS = {"sigformer": 10}
"""40 of the others; one of SIGformer's has 20 steps, theirs about 6."""

OVER_POPULARITY, OVER_UNTRAINED = 0.07, 0.15
"""By how much validation Recall@20 has to be better."""


@pytest.fixture(scope="module")
def data(finished: Pipeline) -> TrainingData:
    folder = finished.folder / "results/demo"
    split = (folder / f"split/{name}.parquet" for name in ("validation", "users", "items"))
    return TrainingData.load(folder / "profile/feedback.parquet", *split)


def recall(model: Recommender, data: TrainingData) -> float:
    return validation_evaluator(data, "rated")(model.scorer()).means()["recall@20"]


def fitted(name: str, data: TrainingData) -> Recommender:
    model = build_model({"model": {"name": name}}, data, torch.Generator())
    assert isinstance(model, FittedRecommender)
    model.fit()
    return model


def test_each_model_is_tried() -> None:
    trained = {settings(CONFIG, "demo", name)["model"]["name"] for name in EXPERIMENTS}
    assert trained == set(TRAINED)


@pytest.mark.parametrize("name", ["item-knn", "ease"])
def test_what_is_computed_at_once_beats_popularity(name: str, data: TrainingData) -> None:
    popularity = recall(fitted("popularity", data), data)
    assert recall(fitted(name, data), data) > popularity + OVER_POPULARITY


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_what_is_trained_beats_popularity_and_its_beginning(
    experiment: str, data: TrainingData
) -> None:
    trainer = new_trainer(data, settings(CONFIG, "demo", experiment), seed=1)
    untrained = recall(trainer.model, data)
    trainer.train(until=EPOCHS.get(experiment, 40))
    reached = recall(trainer.model, data)
    assert reached > recall(fitted("popularity", data), data) + OVER_POPULARITY
    assert reached > untrained + OVER_UNTRAINED
