import numpy as np
import pytest
import torch
from operations import Operations
from oracles import normalised_adjacency, smoothing
from torch_geometric.nn import LightGCN as PyGLightGCN
from training_data import data_of, planted, random_labels

from refine.data import TrainingData
from refine.evaluation.ranking import RankingEvaluator
from refine.models.adam import Adam
from refine.models.base import Hyperparameters
from refine.models.lightgcn import LightGCN, LightGCNHyperparameters
from refine.models.registry import build_model, hyperparameters, load_model, save_model
from refine.sampling import NegativeSampler, SamplingSettings

N_USERS, N_ITEMS = 14, 11
PARAMETERS = LightGCNHyperparameters(
    batch_size=8, learning_rate=0.01, regularisation=0.3, dimension=5, layers=3
)


def new_model(data: TrainingData, seed: int = 0) -> LightGCN:
    return LightGCN(data, PARAMETERS, torch.Generator().manual_seed(seed))


def small_data() -> TrainingData:
    return data_of(random_labels(1, N_USERS, N_ITEMS))


# Users, positives and negatives repeat, and item 3 is positive in one pair, negative in another.
BATCH = torch.tensor([[0, 1, 1, 4, 9], [3, 0, 3, 5, 7], [6, 3, 3, 6, 10]]) + torch.tensor(
    [[0], [N_USERS], [N_USERS]]
)


@pytest.mark.usefixtures("_double")
def test_loss_and_gradient_equal_those_of_pyg() -> None:
    data = small_data()
    model = new_model(data)
    loss = model.loss(BATCH)
    loss.backward()

    alpha = torch.full((4,), 1 / 4)
    reference = PyGLightGCN(N_USERS + N_ITEMS, 5, 3, alpha)
    reference.embedding.weight.data.copy_(model.embedding.data)
    users, items = data.positives.users.long(), data.positives.items.long() + N_USERS
    edge_index = torch.stack([torch.cat([users, items]), torch.cat([items, users])])
    pairs = torch.cat([BATCH[[0, 1]], BATCH[[0, 2]]], dim=1)
    positive_ranks, negative_ranks = reference(edge_index, pairs).chunk(2)
    expected = reference.recommendation_loss(
        positive_ranks, negative_ranks, node_id=pairs.unique(), lambda_reg=0.3
    )
    expected.backward()

    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        model.embedding.grad, reference.embedding.weight.grad, rtol=0, atol=1e-12
    )


@pytest.mark.usefixtures("_double")
def test_the_loss_is_differentiated_as_a_plain_one() -> None:
    data = small_data()
    model = new_model(data)

    def plain(embedding: torch.Tensor) -> torch.Tensor:
        e = model.graph.propagate(embedding, PARAMETERS.layers)
        users, positives, negatives = e[BATCH]
        margins = (users * (positives - negatives)).sum(1)
        norm = embedding[BATCH.unique()].square().sum()
        return -margins.sigmoid().log().mean() + PARAMETERS.regularisation / 5 * norm

    # Scaled, as by a caller that adds losses up.
    (found,) = torch.autograd.grad(3 * model.loss(BATCH), model.embedding)
    (expected,) = torch.autograd.grad(3 * plain(model.embedding), model.embedding)
    torch.testing.assert_close(model.loss(BATCH), plain(model.embedding), rtol=0, atol=1e-12)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_second_backward_is_an_error_and_not_another_gradient() -> None:
    loss = new_model(small_data()).loss(BATCH)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_no_step_of_an_epoch_waits_for_a_number() -> None:
    data = planted()
    model = new_model(data)
    optimiser = model.optimiser()
    batches = model.batches(
        NegativeSampler(data, SamplingSettings()), torch.Generator().manual_seed(0)
    )
    next(batches)  # which draws the epoch
    with Operations() as operations:
        for batch in batches:
            optimiser.zero_grad()
            model.loss(batch).backward()
            optimiser.step()
    assert {"_fused_adam_", "_embedding_bag_forward_only"} <= operations.names
    operations.assert_that_none_waited()


def reference_gradient(e0: np.ndarray, adjacency: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """The gradient of the loss, derived by hand, with dense matrices."""
    smooth = smoothing(adjacency, PARAMETERS.layers)
    e = smooth @ e0
    gradient = np.zeros_like(e)
    size = batch.shape[1]
    for u, i, j in batch.T:
        slope = -1 / (1 + np.exp(e[u] @ (e[i] - e[j]))) / size
        gradient[u] += slope * (e[i] - e[j])
        gradient[i] += slope * e[u]
        gradient[j] -= slope * e[u]
    gradient = smooth.T @ gradient
    for node in set(batch.flatten().tolist()):
        gradient[node] += 2 * PARAMETERS.regularisation / size * e0[node]
    return gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_our_adam_is_that_of_pytorch(dtype: torch.dtype) -> None:
    start = torch.rand(7, 3, dtype=dtype)
    one, other, idle = (torch.nn.Parameter(start.clone()) for _ in range(3))
    ours = Adam([one, idle], learning_rate=0.01)
    theirs = torch.optim.Adam([other], lr=0.01, fused=True)
    for step in range(6):
        if step == 3:  # a state can be taken up
            state, ours = ours.state_dict(), Adam([one, idle], learning_rate=0.5)
            ours.load_state_dict(state)
        one.grad = torch.rand(7, 3, dtype=dtype) - 0.3
        other.grad = one.grad.clone()
        ours.step()
        theirs.step()
        assert torch.equal(one, other)
    found, expected = ours.state_dict(), theirs.state_dict()
    assert found["state"][0].keys() == expected["state"][0].keys()
    for name, value in expected["state"][0].items():
        assert torch.equal(found["state"][0][name], value)
    assert {k: v for k, v in found["param_groups"][0].items() if k != "params"} == {
        k: v for k, v in expected["param_groups"][0].items() if k != "params"
    }
    assert torch.equal(idle, start)


@pytest.mark.usefixtures("_double")
def test_ten_optimiser_steps_equal_a_plain_loop() -> None:
    data = small_data()
    model = new_model(data)
    negatives = NegativeSampler(data, SamplingSettings())
    generator = torch.Generator().manual_seed(3)
    batches = [batch for _ in range(4) for batch in model.batches(negatives, generator)][:10]
    assert len(batches) == 10

    # Adam as Kingma and Ba (2015) write it.
    adjacency = normalised_adjacency((N_USERS, N_ITEMS), data.positives)
    e0 = model.embedding.detach().numpy().copy()
    mean, variance = np.zeros_like(e0), np.zeros_like(e0)
    for step, batch in enumerate(batches, start=1):
        gradient = reference_gradient(e0, adjacency, batch.numpy())
        mean = 0.9 * mean + 0.1 * gradient
        variance = 0.999 * variance + 0.001 * gradient**2
        corrected = np.sqrt(variance / (1 - 0.999**step)) + 1e-8
        e0 -= PARAMETERS.learning_rate * mean / (1 - 0.9**step) / corrected

    optimiser = model.optimiser()
    for batch in batches:
        optimiser.zero_grad()
        model.loss(batch).backward()
        optimiser.step()
    np.testing.assert_allclose(model.embedding.detach().numpy(), e0, rtol=0, atol=1e-10)


def test_an_epoch_holds_every_positive_once_with_a_negative_of_its_user() -> None:
    data = small_data()
    model = new_model(data)
    negatives = NegativeSampler(data, SamplingSettings())
    generator = torch.Generator().manual_seed(3)
    first, second = (list(model.batches(negatives, generator)) for _ in range(2))
    sizes = [batch.shape[1] for batch in first]
    assert set(sizes[:-1]) == {8}
    assert 0 < sizes[-1] <= 8
    users, positives, drawn = torch.cat(first, dim=1)
    pairs = set(zip(users.tolist(), (positives - N_USERS).tolist(), strict=True))
    liked = set(zip(*(codes.tolist() for codes in data.positives), strict=True))
    assert pairs == liked
    assert len(users) == len(liked)
    assert not liked & set(zip(users.tolist(), (drawn - N_USERS).tolist(), strict=True))
    assert not torch.equal(torch.cat(second, dim=1)[0], users)


def test_the_initial_embeddings_are_xavier_uniform_and_seeded() -> None:
    data = planted()
    parameters = LightGCNHyperparameters(dimension=64)
    first, again, other = (
        LightGCN(data, parameters, torch.Generator().manual_seed(seed)).embedding.detach()
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    bound = (6 / (data.n_users + data.n_items + 64)) ** 0.5
    assert 0.99 * bound < float(first.abs().max()) <= bound
    assert float(first.std()) == pytest.approx(bound / 3**0.5, rel=0.02)


def test_scores_are_inner_products_and_do_not_change_later() -> None:
    data = small_data()
    model = new_model(data)
    score = model.scorer()
    block = torch.tensor([5, 2])
    embeddings = model.propagated().detach()
    expected = embeddings[block] @ embeddings[N_USERS:].T
    assert not score(block).requires_grad
    torch.testing.assert_close(score(block), expected)
    model.embedding.data.add_(1.0)
    torch.testing.assert_close(score(block), expected)
    assert not model.item_embeddings().requires_grad
    assert model.item_embeddings().shape == (N_ITEMS, 5)


def test_training_beats_popularity_and_the_untrained_model() -> None:
    data = planted()
    parameters = LightGCNHyperparameters(batch_size=64, learning_rate=0.01, dimension=16, layers=2)
    generator = torch.Generator().manual_seed(0)
    model = LightGCN(data, parameters, generator)
    evaluate = RankingEvaluator(
        mask=data.rated,
        targets=data.validation,
        n_users=data.n_users,
        n_items=data.n_items,
        ks=[10],
    )
    popularity = torch.bincount(data.positives.items, minlength=data.n_items).float()
    by_popularity = evaluate(lambda users: popularity.expand(len(users), -1))
    untrained = evaluate(model.scorer())

    negatives = NegativeSampler(data, SamplingSettings())
    optimiser = model.optimiser()
    for _ in range(30):
        for batch in model.batches(negatives, generator):
            optimiser.zero_grad()
            model.loss(batch).backward()
            optimiser.step()
    trained = evaluate(model.scorer()).means()["recall@10"]
    assert trained > by_popularity.means()["recall@10"] + 0.15
    assert trained > untrained.means()["recall@10"] + 0.15


def test_a_saved_model_scores_the_same(tmp_path) -> None:
    data = small_data()
    model = new_model(data)
    path = tmp_path / "model.safetensors"
    save_model(path, "lightgcn", PARAMETERS, model.state_dict(), {"seed": 0})
    loaded = load_model(path, data)
    users = torch.arange(N_USERS)
    assert torch.equal(loaded.scorer()(users), model.scorer()(users))
    assert loaded.hyperparameters == PARAMETERS
    first = path.read_bytes()
    save_model(path, "lightgcn", PARAMETERS, model.state_dict(), {"seed": 0})
    assert path.read_bytes() == first

    with pytest.raises(ValueError, match="is no model of these data"):
        load_model(path, data_of(random_labels(1, N_USERS + 1, N_ITEMS)))
    path.write_bytes(first[:100])
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        load_model(path, data)


def test_hyperparameters_come_from_the_model_section() -> None:
    settings = {
        "model": {"name": "lightgcn", "layers": 2, "batch_size": 7, "learning_rate": 0.5},
        "training": {"epochs": 3, "patience": 1},
    }
    found = hyperparameters(settings)
    assert found == LightGCNHyperparameters(batch_size=7, learning_rate=0.5, layers=2)
    model = build_model(settings, small_data(), torch.Generator().manual_seed(0))
    assert model.hyperparameters == found


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name": "lightgnc"}, "no model 'lightgnc'; there are lightgcn"),
        ({"name": "lightgcn", "depth": 3}, "lightgcn has no hyperparameter depth; it has .*layers"),
        ({"name": "lightgcn", "dimension": 0}, "dimension must be within"),
        ({"name": "lightgcn", "learning_rate": 0.0}, "learning_rate must be within"),
        ({"name": "lightgcn", "learning_rate": float("nan")}, "learning_rate must be within"),
    ],
)
def test_impossible_hyperparameters_are_refused(model: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hyperparameters({"model": model, "training": {}})


def test_shared_hyperparameters_have_bounds() -> None:
    with pytest.raises(ValueError, match="regularisation must be within"):
        Hyperparameters(regularisation=-1.0)
