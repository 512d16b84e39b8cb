"""What holds for every model that the configuration may name."""

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from training_data import planted, settings

from refine.data import Pairs, TrainingData
from refine.models.base import FittedRecommender, GradientRecommender, Recommender, Scorer
from refine.models.catalogue import FITTED, MODELS, TRAINED, module_of
from refine.models.registry import build_model, hyperparameters, load_model, save_model
from refine.models.signed import UnratedSampler, signed_batches, signed_pairs
from refine.sampling import NegativeSampler, SamplingSettings
from refine.training.loop import Trainer
from refine.training.setup import new_trainer, validation_evaluator
from refine.training.state import TrainingState

ROOT = Path(__file__).resolve().parents[2]

N_USERS, N_ITEMS = 150, 90
SMALL: dict[str, dict[str, Any]] = {
    "lightgcn": {"batch_size": 64, "learning_rate": 0.01},
    "bpr-mf": {"batch_size": 64, "learning_rate": 0.01},
    "siren": {"batch_size": 256},
    "pane-gnn": {"batch_size": 256, "learning_rate": 0.005},
    "sigrec": {"batch_size": 64, "learning_rate": 0.01},
    "lsgrec": {"batch_size": 256, "learning_rate": 0.01},
    "sigformer": {"steps": 10},
    "refine++": {"batch_size": 256, "learning_rate": 0.01},
}
"""What learns as much from the little data in as few epochs; the defaults are for real ratings."""


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return planted(seed=3, n_users=N_USERS, n_items=N_ITEMS)


def chosen(name: str) -> dict[str, dict[str, object]]:
    found = settings(training={"epochs": 12, "patience": 12})
    return found | {"model": {"name": name} | SMALL.get(name, {})}


def trained(name: str, data: TrainingData, epochs: int, seed: int = 1) -> Recommender:
    """A model after so many epochs, or one that has been fitted."""
    if name in FITTED:
        model = build_model(chosen(name), data, torch.Generator())
        assert isinstance(model, FittedRecommender)
        model.fit()
        return model
    trainer: Trainer = new_trainer(data, chosen(name), seed)
    trainer.train(until=epochs)
    return trainer.model


def recall(scorer: Scorer, data: TrainingData) -> float:
    return validation_evaluator(data, "rated")(scorer).means()["recall@20"]


def recall_by_chance(data: TrainingData) -> float:
    """Of ten rankings at random, since one of so few users may be a lucky one."""
    generator = torch.Generator().manual_seed(0)

    def guess(users: torch.Tensor) -> torch.Tensor:
        return torch.rand(len(users), data.n_items, generator=generator)

    return sum(recall(guess, data) for _ in range(10)) / 10


def scores(model: Recommender, data: TrainingData) -> torch.Tensor:
    return model.scorer()(torch.arange(data.n_users))


def test_the_catalogue_names_classes_of_the_right_kind(data: TrainingData) -> None:
    assert not TRAINED.keys() & FITTED.keys()
    for name in MODELS:
        model = build_model(chosen(name), data, torch.Generator().manual_seed(0))
        assert isinstance(model, GradientRecommender if name in TRAINED else FittedRecommender)
        assert type(model).__module__ == module_of(name)


def test_what_is_popular_is_better_than_a_guess(data: TrainingData) -> None:
    popularity = recall(trained("popularity", data, 0).scorer(), data)
    assert popularity > recall_by_chance(data) + 0.07


@pytest.mark.parametrize("name", [name for name in MODELS if name != "popularity"])
def test_it_learns(name: str, data: TrainingData) -> None:
    """The items of a user's own group are liked, popular ones a little more: recall tells."""
    popularity = recall(trained("popularity", data, 0).scorer(), data)
    reached = recall(trained(name, data, 12).scorer(), data)
    assert reached > popularity + 0.15
    if name in TRAINED:
        assert reached > recall(trained(name, data, 0).scorer(), data) + 0.15


@pytest.mark.parametrize("name", TRAINED)
def test_a_step_trains_every_parameter(name: str, data: TrainingData) -> None:
    """The optimiser has it, and the loss reaches it: decay alone would move it, too."""
    trainer = new_trainer(data, chosen(name), 1)
    model = trainer.model
    before = {key: tensor.detach().clone() for key, tensor in model.named_parameters()}
    model.loss(next(iter(model.batches(trainer.negatives, trainer.generator)))).backward()
    trainer.optimiser.step()
    for key, parameter in model.named_parameters():
        assert parameter.requires_grad, key
        assert parameter.grad is not None, key
        assert bool(parameter.grad.any()), key
        assert not torch.equal(parameter, before[key]), key


@pytest.mark.parametrize("name", ["siren", "pane-gnn", "lsgrec"])
def test_unrated_items_are_drawn_by_degree_to_the_power_of_three_quarters(
    name: str, data: TrainingData
) -> None:
    model = new_trainer(data, chosen(name), 1).model
    pairs, sampler, generator = signed_pairs(data), UnratedSampler(data, 0.75), torch.Generator()
    expected = next(signed_batches(pairs, sampler, 40, 256, generator.manual_seed(5)))
    uniform = NegativeSampler(data, SamplingSettings(reweight=False))
    found = next(iter(model.batches(uniform, torch.Generator().manual_seed(5))))
    assert torch.equal(found.negatives, expected.negatives)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_seed_gives_the_same_bytes(name: str, data: TrainingData, tmp_path: Path) -> None:
    files = []
    for run, seed in enumerate((1, 1, 2)):
        torch.manual_seed(run)  # of the global generator, which nobody may use
        model = trained(name, data, 2, seed)
        files.append(tmp_path / f"{run}.safetensors")
        save_model(files[-1], name, hyperparameters(chosen(name)), model.state_dict(), {})
    first, again, other = (path.read_bytes() for path in files)
    assert first == again
    assert (first == other) == (name in FITTED)
    loaded = load_model(files[0], data)
    assert torch.equal(scores(loaded, data), scores(trained(name, data, 2), data))
    assert asdict(loaded.hyperparameters) == asdict(hyperparameters(chosen(name)))


@pytest.mark.parametrize("name", TRAINED)
def test_an_epoch_that_was_broken_off_goes_on_to_the_same_bytes(
    name: str, data: TrainingData
) -> None:
    class StopError(Exception):
        pass

    def stop() -> None:
        if steps.pop():
            raise StopError

    unbroken = new_trainer(data, chosen(name), 1)
    unbroken.train(until=3)

    broken = new_trainer(data, chosen(name), 1)
    broken.train(until=1)
    steps = [False] * 100 + [True, False]
    broken.after_step = stop
    with pytest.raises(StopError):
        broken.train(until=3)
    resumed = new_trainer(data, chosen(name), 2)
    resumed.restore(broken.state())
    resumed.train(until=3)
    assert resumed.history == unbroken.history
    for key, value in unbroken.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value)


@pytest.mark.parametrize("name", TRAINED)
def test_a_state_can_be_gone_on_from_twice(name: str, data: TrainingData, tmp_path: Path) -> None:
    def saved(state: TrainingState) -> bytes:
        state.save(tmp_path / "state.safetensors", {})
        return (tmp_path / "state.safetensors").read_bytes()

    trainer = new_trainer(data, chosen(name), 1)
    trainer.train(until=1)
    state = trainer.state()
    before, after = saved(state), []
    for seed in (2, 3):
        resumed = new_trainer(data, chosen(name), seed)
        resumed.restore(state)
        resumed.train(until=2)
        after.append(saved(resumed.state()))
        assert saved(state) == before
    assert after[0] == after[1] != before


@pytest.mark.parametrize("name", [name for name in MODELS if name != "sigformer"])
def test_other_codes_for_users_and_items_change_nothing(name: str, data: TrainingData) -> None:
    """SIGformer's walks are drawn by code: its own test compares means over many of them."""
    users = torch.randperm(N_USERS, generator=torch.Generator().manual_seed(5))
    items = torch.randperm(N_ITEMS, generator=torch.Generator().manual_seed(6))
    renamed = rename(data, users, items)
    model, other = trained(name, data, 1), trained(name, renamed, 0)
    if name in TRAINED:
        other.load_state_dict(
            {key: permute(value, users, items) for key, value in model.state_dict().items()}
        )
    expected, found = scores(model, data), scores(other, renamed)
    torch.testing.assert_close(found[users][:, items], expected, rtol=1e-4, atol=1e-5)


def rename(data: TrainingData, users: torch.Tensor, items: torch.Tensor) -> TrainingData:
    """The same data, with ``users[u]`` the new code of user u."""

    def pairs(old: Pairs) -> tuple[Pairs, torch.Tensor]:
        new = (users[old.users.long()].int(), items[old.items.long()].int())
        order = torch.argsort(new[0].long() * data.n_items + new[1])
        return Pairs(new[0][order], new[1][order]), order

    rated, order = pairs(data.rated)
    return replace(
        data,
        rated=rated,
        ratings=data.ratings[order],
        labels=data.labels[order],
        validation=pairs(data.validation)[0],
    )


def permute(value: torch.Tensor, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """Moves what belongs to a user or an item, told by the length of the axis, to its new code."""
    places = {
        N_USERS: users,
        N_ITEMS: items,
        N_USERS + N_ITEMS: torch.cat([users, N_USERS + items]),
    }
    for axis, length in enumerate(value.shape):
        if length in places:
            value = torch.empty_like(value).index_copy_(axis, places[length], value)
    return value


def test_the_schema_has_the_hyperparameters_of_every_model(data: TrainingData) -> None:
    """The schema is read by every dry run, which does not load PyTorch; the classes decide."""
    definitions = yaml.safe_load((ROOT / "config/schema.yaml").read_text())["$defs"]
    cases = {
        case["if"]["properties"]["name"]["const"]: case["then"]["$ref"].rpartition("/")[2]
        for case in definitions["model"]["allOf"]
    }
    assert cases.keys() == MODELS.keys() == set(definitions["model"]["properties"]["name"]["enum"])
    for name, definition in cases.items():
        properties = dict(definitions[definition]["properties"])
        assert properties.pop("name") is True
        assert definitions[definition]["additionalProperties"] is False
        known = {
            parameter.name: dict(parameter.metadata)
            for parameter in fields(
                type(build_model(chosen(name), data, torch.Generator())).hyperparameter_type
            )
        }
        if name in FITTED and known:
            search = properties.pop("search")
            assert search["additionalProperties"] is False
            assert search["properties"].keys() == known.keys()
        assert properties.keys() == known.keys(), name
        for key, bounds in known.items():
            stated = properties[key]
            if "$ref" in stated:
                stated = definitions[stated["$ref"].rpartition("/")[2]]
            assert {k: v for k, v in stated.items() if "imum" in k} == bounds, (name, key)
