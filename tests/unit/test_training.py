import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from training_data import data_of, planted, random_labels, settings, write_artifacts

from refine.artifacts import (
    CONFIRMED,
    FALSELY_IDENTIFIED,
    FEEDBACK,
    HISTORY,
    LABELS,
    POSITIVE,
    SIMILAR_ITEMS,
    ArtifactError,
    read_table,
    write_table,
)
from refine.data import TrainingData
from refine.device import choose_device, deterministic
from refine.evaluation.ranking import RankingEvaluator
from refine.mining import mine_similar_items
from refine.models.base import Scorer
from refine.models.lightgcn import LightGCN, LightGCNHyperparameters
from refine.models.registry import hyperparameters, load_model
from refine.sampling import NegativeSampler, SamplingSettings
from refine.tensors import read_tensors
from refine.training.loop import Trainer, TrainingError
from refine.training.mine import mine
from refine.training.state import TrainingState
from refine.training.train import train
from refine.training.warm_up import warm_up

# ---- Data ----


def test_data_come_back_from_their_artifacts(tmp_path: Path) -> None:
    data = planted()
    loaded = TrainingData.load(*write_artifacts(data, tmp_path))
    assert (loaded.n_users, loaded.n_items) == (data.n_users, data.n_items)
    for name in ("rated", "validation", "positives", "confirmed"):
        for found, expected in zip(getattr(loaded, name), getattr(data, name), strict=True):
            assert found.dtype == torch.int32
            assert torch.equal(found, expected)
    assert torch.equal(loaded.ratings, data.ratings)
    assert torch.equal(loaded.labels, data.labels)


def test_positives_and_confirmed_negatives_are_told_by_their_labels() -> None:
    labels = random_labels(0, 6, 7)
    data = data_of(labels)
    likes = np.isin(labels, [LABELS.index(POSITIVE), LABELS.index(FALSELY_IDENTIFIED)])
    for pairs, expected in (
        (data.positives, likes),
        (data.confirmed, labels == LABELS.index(CONFIRMED)),
    ):
        assert [codes.tolist() for codes in pairs] == [c.tolist() for c in np.nonzero(expected)]


@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        ("user", 0, -1, "column user must hold codes 0..119, not -1"),
        ("item", -1, 80, "column item must hold codes 0..79"),
        ("label", 3, "liked", "column label has values other than"),
        ("user", 3, 7, "row 5 breaks the order"),
    ],
)
def test_broken_feedback_is_refused(
    tmp_path: Path, column: str, row: int, value: object, message: str
) -> None:
    paths = write_artifacts(planted(), tmp_path)
    columns = read_table(paths[0], FEEDBACK).to_pydict()
    columns[column][row] = value
    write_table(pa.table(columns), paths[0], FEEDBACK)
    with pytest.raises(ArtifactError, match=message) as raised:
        TrainingData.load(*paths)
    assert str(paths[0]) in str(raised.value)


# ---- Loop ----


@dataclass
class Scores:
    """Validation scores that are decided beforehand."""

    recalls: list[float]

    def __call__(self, score: Scorer) -> "Scores":
        self.now = self.recalls.pop(0)
        return self

    def means(self) -> dict[str, float]:
        return {"recall@20": self.now, "ndcg@20": self.now / 2}


def trainer_of(
    data: TrainingData, recalls: list[float], *, epochs: int = 100, patience: int = 3
) -> Trainer:
    generator = torch.Generator().manual_seed(0)
    parameters = LightGCNHyperparameters(dimension=4, layers=1, batch_size=64)
    return Trainer(
        LightGCN(data, parameters, generator),
        NegativeSampler(data, SamplingSettings()),
        Scores(recalls),
        generator,
        epochs=epochs,
        patience=patience,
    )


@pytest.mark.parametrize(
    ("recalls", "trained", "best"),
    [
        ([0.1, 0.2, 0.1, 0.1, 0.1, 0.9], 5, 2),  # patience ends before the late improvement
        ([0.1, 0.2, 0.1, 0.1, 0.2, 0.1, 0.1, 0.1, 0.9], 8, 5),  # an equal score resets it
        ([0.3, 0.3, 0.3, 0.2, 0.2, 0.2], 6, 3),  # the last of equal epochs is the best
        ([0.0, 0.0, 0.0, 0.1, 0.0, 0.0, 0.0], 7, 4),
    ],
)
def test_early_stopping_waits_from_the_last_best_score(
    recalls: list[float], trained: int, best: int
) -> None:
    trainer = trainer_of(data_of(random_labels(0, 8, 9)), list(recalls))
    weights = []
    while not trainer.finished:
        trainer.train(until=trainer.epoch + 1)
        weights.append(trainer.model.embedding.detach().clone())
    assert (trainer.epoch, trainer.best_epoch) == (trained, best)
    assert trainer.best.recall == max(recalls[:trained])
    assert torch.equal(trainer.best_weights["embedding"], weights[best - 1])
    trainer.train()
    assert trainer.epoch == trained


def test_the_last_epoch_ends_the_training() -> None:
    trainer = trainer_of(data_of(random_labels(0, 8, 9)), [0.1] * 10, epochs=4, patience=9)
    trainer.train()
    assert trainer.epoch == 4


def test_an_epoch_is_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    trainer = trainer_of(data_of(random_labels(0, 8, 9)), [0.5, 0.25, 0.1, 0.1, 0.1])
    with caplog.at_level(logging.INFO, "refine"):
        trainer.train(until=2)
    _, line = caplog.messages
    for part in (
        "epoch 2/100",
        f"loss {trainer.history[1].loss:.4f}",
        "recall@20 0.2500",
        "ndcg@20 0.1250",
        "best 0.5000 (epoch 1)",
        "stops in 2",
        "s an epoch",
        "left",
    ):
        assert part in line


def test_the_loss_of_an_epoch_is_the_mean_over_its_batches() -> None:
    data = data_of(random_labels(0, 8, 9))
    trainer, again = trainer_of(data, [0.5]), trainer_of(data, [0.5])
    trainer.train(until=1)
    losses = []
    for batch in again.model.batches(again.negatives, again.generator):
        again.optimiser.zero_grad()
        loss = again.model.loss(batch)
        loss.backward()
        again.optimiser.step()
        losses.append(float(loss.detach()))
    assert trainer.history[0].loss == pytest.approx(np.mean(losses), rel=1e-12)


def test_a_diverged_training_says_so() -> None:
    trainer = trainer_of(data_of(random_labels(0, 8, 9)), [0.5])
    trainer.model.embedding.data.fill_(float("nan"))
    with pytest.raises(TrainingError, match="loss of epoch 1 is nan: lower"):
        trainer.train()


# ---- State ----


def test_a_state_comes_back_and_goes_on_the_same(tmp_path: Path) -> None:
    data = planted()
    recalls = [0.1, 0.3, 0.2, 0.2, 0.3, 0.1]
    unbroken = trainer_of(data, list(recalls))
    unbroken.train(until=6)

    first = trainer_of(data, recalls[:3])
    first.train(until=3)
    path = tmp_path / "state.safetensors"
    first.state().save(path, {"seed": 0})
    state, facts = TrainingState.load(path)
    assert facts == {"seed": 0}
    second = trainer_of(data, recalls[3:])
    second.restore(state)
    second.train(until=6)

    assert second.history == unbroken.history
    assert second.best_epoch == unbroken.best_epoch
    assert torch.equal(second.model.embedding, unbroken.model.embedding)
    assert torch.equal(second.best_weights["embedding"], unbroken.best_weights["embedding"])
    assert torch.equal(second.generator.get_state(), unbroken.generator.get_state())
    moments, expected = (t.optimiser.state_dict()["state"][0] for t in (second, unbroken))
    assert moments.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(moments[name], tensor), name


def test_a_state_is_not_changed_by_what_is_trained_later() -> None:
    trainer = trainer_of(planted(), [0.1, 0.2])
    trainer.train(until=1)
    state = trainer.state()
    before = {name: tensor.clone() for name, tensor in state.optimiser["state"][0].items()}
    trainer.train(until=2)
    for name, tensor in before.items():
        assert torch.equal(state.optimiser["state"][0][name], tensor), name
    assert len(state.history) == 1


def test_what_is_no_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    path.write_text("no tensors")
    with pytest.raises(ArtifactError, match="cannot be read as safetensors"):
        TrainingState.load(path)


# ---- Stages ----


def run(
    folder: Path, artifacts: list[Path], chosen: dict[str, dict[str, object]], seed: int = 5
) -> dict[str, Path]:
    """Warm-up, mining and training; the files they write."""
    names = ("warmup.safetensors", "similar_items.parquet", "model.safetensors", "history.parquet")
    files = {name.split(".")[0]: folder / name for name in names}
    warm_up(*artifacts, files["warmup"], settings=chosen, seed=seed, device="cpu")
    mine(files["warmup"], *artifacts, files["similar_items"], settings=chosen)
    train(
        files["warmup"],
        files["similar_items"],
        *artifacts,
        files["model"],
        files["history"],
        settings=chosen,
        seed=seed,
        device="cpu",
    )
    return files


def unbroken_run(
    data: TrainingData, chosen: dict[str, dict[str, object]], seed: int = 5
) -> Trainer:
    """The same training in one go, without a file."""
    generator = torch.Generator().manual_seed(seed)
    model = LightGCN(data, hyperparameters(chosen), generator)
    evaluator = RankingEvaluator(
        mask=data.rated,
        targets=data.validation,
        n_users=data.n_users,
        n_items=data.n_items,
        ks=[20],
    )
    negatives = NegativeSampler(data, SamplingSettings(**chosen["sampling"]))
    trainer = Trainer(model, negatives, evaluator, generator, epochs=9, patience=50)
    while not trainer.finished:
        mines = trainer.epoch == 4 if chosen["mining"]["refresh"] == "once" else trainer.epoch >= 4
        if mines and chosen["sampling"]["reweight"]:
            negatives.reweight(mine_similar_items(model.item_embeddings(), 6)[0], 2, 6)
        trainer.train(until=trainer.epoch + 1)
    return trainer


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mining": {"refresh": "epoch"}},
        {"sampling": {"reweight": False}},
        {"sampling": {"normalisation": "softmax"}},
    ],
)
def test_warm_up_and_training_are_one_unbroken_run(
    tmp_path: Path, changes: dict[str, dict[str, object]]
) -> None:
    data, chosen = planted(), settings(**changes)
    files = run(tmp_path, write_artifacts(data, tmp_path), chosen)
    expected = unbroken_run(data, chosen)
    weights, facts = read_tensors(files["model"])
    assert torch.equal(weights["embedding"], expected.best_weights["embedding"])
    assert facts["epoch"] == expected.best_epoch
    assert facts["validation"]["recall@20"] == expected.best.recall
    history = read_table(files["history"], HISTORY)
    assert history.column("epoch").to_pylist() == list(range(1, 10))
    for name, column in zip(HISTORY.names[1:], zip(*expected.history, strict=True), strict=True):
        assert history.column(name).to_pylist() == list(column)


def test_the_settings_make_a_difference() -> None:
    data = planted()
    changed = [
        {},
        {"mining": {"refresh": "epoch"}},
        {"sampling": {"reweight": False}},
        {"sampling": {"normalisation": "softmax"}},
    ]
    finals = [unbroken_run(data, settings(**c)).model.embedding.detach() for c in changed]
    for i, one in enumerate(finals):
        assert not any(torch.equal(one, other) for other in finals[:i])


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    artifacts = write_artifacts(planted(), tmp_path)
    first = run(tmp_path / "first", artifacts, settings())
    again = run(tmp_path / "again", artifacts, settings())
    other = run(tmp_path / "other", artifacts, settings(), seed=6)
    for name, path in first.items():
        assert path.read_bytes() == again[name].read_bytes(), name
        assert path.read_bytes() != other[name].read_bytes(), name


def test_mining_gives_as_many_similar_items_as_any_weight_asks_for(tmp_path: Path) -> None:
    files = run(tmp_path, write_artifacts(planted(), tmp_path), settings())
    table = read_table(files["similar_items"], SIMILAR_ITEMS)
    assert len(table) == 80 * 6


def test_the_trained_model_ranks_as_validated(tmp_path: Path) -> None:
    data = planted()
    files = run(tmp_path, write_artifacts(data, tmp_path), settings())
    evaluator = RankingEvaluator(
        mask=data.rated,
        targets=data.validation,
        n_users=data.n_users,
        n_items=data.n_items,
        ks=[20],
    )
    facts = read_tensors(files["model"])[1]
    ranked = evaluator(load_model(files["model"], data).scorer()).means()
    assert ranked["recall@20"] == facts["validation"]["recall@20"]


def test_a_training_that_stops_within_the_warm_up_keeps_its_best_epoch(tmp_path: Path) -> None:
    chosen = settings(model={"learning_rate": 0.05}, training={"warmup_epochs": 8, "patience": 1})
    files = run(tmp_path, write_artifacts(planted(), tmp_path), chosen)
    history = read_table(files["history"], HISTORY)
    recalls = history.column("recall@20").to_pylist()
    facts = read_tensors(files["model"])[1]
    assert facts["epochs"] == len(history)
    assert facts["validation"]["recall@20"] == max(recalls)


def test_train_positives_may_be_the_only_masked_items(tmp_path: Path) -> None:
    data = planted()
    artifacts = write_artifacts(data, tmp_path)
    chosen = settings(evaluation={"mask": "train_positives"})
    rated = run(tmp_path / "rated", artifacts, settings())
    positives = run(tmp_path / "positives", artifacts, chosen)
    columns = [
        read_table(files["history"], HISTORY).column("recall@20").to_pylist()
        for files in (rated, positives)
    ]
    assert columns[0][0] > columns[1][0]


@pytest.mark.parametrize(
    ("changes", "seed", "message"),
    [
        ({"model": {"dimension": 8}}, 5, "warmed up with hyperparameters"),
        ({"model": {"learning_rate": 0.5}}, 5, "warmed up with hyperparameters"),
        ({}, 6, "warmed up with seed 5, which is now 6"),
    ],
)
def test_the_warm_up_of_another_run_is_refused(
    tmp_path: Path, changes: dict[str, dict[str, object]], seed: int, message: str
) -> None:
    artifacts = write_artifacts(planted(), tmp_path)
    files = run(tmp_path, artifacts, settings())
    with pytest.raises(ArtifactError, match=message):
        train(
            files["warmup"],
            files["similar_items"],
            *artifacts,
            files["model"],
            files["history"],
            settings=settings(**changes),
            seed=seed,
            device="cpu",
        )


def test_missing_similar_items_are_an_error(tmp_path: Path) -> None:
    artifacts = write_artifacts(planted(), tmp_path)
    files = run(tmp_path, artifacts, settings())
    outputs = (tmp_path / "m", tmp_path / "h")
    with pytest.raises(ValueError, match="needs similar items"):
        train(
            files["warmup"], None, *artifacts, *outputs, settings=settings(), seed=5, device="cpu"
        )
    assert not any(path.exists() for path in outputs)


# ---- Device ----


def test_the_device_is_chosen_or_refused() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="auto, cpu or cuda, not 'gpu'"):
        choose_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="sees no GPU"):
            choose_device("cuda")


def test_determinism_is_asked_for_on_a_gpu_only_and_put_back() -> None:
    with deterministic(torch.device("cpu")):
        assert not torch.are_deterministic_algorithms_enabled()
    with deterministic(torch.device("cuda")):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
