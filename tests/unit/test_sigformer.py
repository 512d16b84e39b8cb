import numpy as np
import pytest
import torch
from operations import Operations
from training_data import data_of, random_labels

from refine.artifacts import CONFIRMED, LABELS
from refine.data import TrainingData
from refine.models.sigformer import SIGformer, SIGformerHyperparameters
from refine.models.signed import signed_pairs
from refine.models.spectral import low_eigenvectors
from refine.sampling import NegativeSampler, SamplingSettings

N_USERS, N_ITEMS = 8, 10
N_NODES = N_USERS + N_ITEMS
SEED = 7


def small_labels() -> np.ndarray:
    labels = random_labels(1, N_USERS, N_ITEMS)
    labels[2][labels[2] == LABELS.index(CONFIRMED)] = 0  # a user without dislikes
    return labels


def small_data() -> TrainingData:
    return data_of(small_labels())


def new_model(**changes: float) -> SIGformer:
    """A model that has learnt something, so that no parameter is 0 and some scores are cut off."""
    parameters = {"dimension": 5, "layers": 2, "hops": 3, "eigenvectors": 6, "steps": 4}
    parameters |= {"alpha": 0.4, "beta": -0.2, "regularisation": 0.3} | changes
    generator = torch.Generator().manual_seed(0)
    model = SIGformer(small_data(), SIGformerHyperparameters(**parameters), generator)
    with torch.no_grad():
        for layer in model.layers:
            layer.log_scale.normal_(-0.5, 0.3, generator=generator)
            layer.path_scores.normal_(0.5, 1, generator=generator)
    return model


def normalised(x: np.ndarray) -> np.ndarray:
    mean, variance = x.mean(1, keepdims=True), x.var(1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5)


def reference_attention(x, positions, walks, scale, phi, limit) -> np.ndarray:
    """One layer, pair by pair."""
    y = normalised(x)
    met: dict[int, list[tuple[int, float, float]]] = {}
    for a, b, t in zip(*(v.tolist() for v in (*walks.pairs[:2], walks.types)), strict=True):
        if t < len(phi):
            score = y[a] @ y[b] / np.sqrt(y.shape[1]) + np.exp(scale) * positions[a] @ positions[b]
            weights = min(np.exp(score), limit), min(np.exp(phi[t]), limit)
            met.setdefault(a, []).append((b, *weights))
    out = np.zeros_like(x)
    for a, pairs in met.items():
        totals = [sum(pair[k] for pair in pairs) for k in (1, 2)]
        for b, w1, w2 in pairs:
            out[a] += 0.5 * (w1 / totals[0] + w2 / totals[1]) * y[b]
    return out


def reference_encoding(model: SIGformer, generator: torch.Generator) -> np.ndarray:
    x = model.embedding.detach().numpy().astype(np.float64)
    powers = [x]
    for layer in model.layers:
        walks = model.walks.draw(generator)
        x = reference_attention(
            x,
            model.positions.numpy(),
            walks,
            float(layer.log_scale.detach()),
            layer.path_scores.detach().numpy(),
            model.hyperparameters.attention_limit,
        )
        powers.append(x)
    return np.mean(powers, axis=0)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("limit", [5.0, 1.5, 1e9])
@pytest.mark.parametrize("hops", [1, 4])
def test_the_encoding_is_that_of_the_paper(limit: float, hops: int) -> None:
    model = new_model(attention_limit=limit, hops=hops)
    z = model.encode(seeded()).detach()
    np.testing.assert_allclose(z, reference_encoding(model, seeded()), rtol=0, atol=1e-12)
    # The last item has no edge, and no layer gives it anything.
    torch.testing.assert_close(z[-1], model.embedding[-1].detach() / 3, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("_double")
def test_positions_are_normalised_eigenvectors() -> None:
    model = new_model()
    edges = signed_pairs(small_data())
    vectors = low_eigenvectors(edges, N_USERS, N_ITEMS, alpha=0.4, count=6)
    np.testing.assert_allclose(model.positions, normalised(vectors.numpy()), rtol=0, atol=1e-12)
    assert not [name for name in model.state_dict() if "position" in name]


def reference_loss(model: SIGformer, beta: float) -> float:
    data, generator = small_data(), seeded()
    weight = dict.fromkeys(zip(*(c.tolist() for c in data.positives), strict=True), 1.0)
    if beta:
        weight |= dict.fromkeys(zip(*(c.tolist() for c in data.confirmed), strict=True), beta)
    pairs = sorted(weight)
    users = torch.tensor([u for u, _ in pairs])
    drawn = model.unrated.draw(users, 1, generator).squeeze(1).tolist()
    rated = set(zip(*(codes.tolist() for codes in data.rated), strict=True))
    assert not rated & {(u, j) for (u, _), j in zip(pairs, drawn, strict=True)}

    z, e = reference_encoding(model, generator), model.embedding.detach().numpy()
    losses, squares = [], 0.0
    for (u, i), j in zip(pairs, drawn, strict=True):
        rows = [u, N_USERS + i, N_USERS + j]
        margin = z[u] @ (z[rows[1]] - z[rows[2]])
        losses.append(np.log1p(np.exp(-weight[u, i] * margin)))
        squares += (e[rows] ** 2).sum()
    return np.mean(losses) + model.hyperparameters.regularisation * 0.5 * squares / len(pairs)


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("beta", [1.0, 0.0, -0.2])
def test_the_loss_is_that_of_the_paper(beta: float) -> None:
    model = new_model(beta=beta)
    assert float(model.loss(SEED).detach()) == pytest.approx(reference_loss(model, beta), abs=1e-12)
    assert float(model.loss(SEED).detach()) == float(model.loss(SEED).detach())
    assert float(model.loss(SEED + 1).detach()) != float(model.loss(SEED).detach())


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("limit", [5.0, 1.5, 1e9])
def test_the_gradient_is_that_of_finite_differences(limit: float) -> None:
    model = new_model(attention_limit=limit)
    parameters = list(model.parameters())
    assert torch.autograd.gradcheck(lambda *_: model.loss(SEED), parameters, atol=1e-9, rtol=1e-5)
    assert all(bool(slopes.any()) for slopes in torch.autograd.grad(model.loss(SEED), parameters))


@pytest.mark.usefixtures("_double")
def test_some_scores_are_cut_off_and_some_are_not() -> None:
    model = new_model()
    walks, y = (
        model.walks.draw(seeded()),
        torch.from_numpy(normalised(model.embedding.detach().numpy())),
    )
    layer = model.layers[0]
    scores = walks.pairs.products(y, y) / 5**0.5
    scores += layer.log_scale.exp().detach() * walks.pairs.products(
        model.positions, model.positions
    )
    assert 0.05 < float((scores > layer.log_limit).double().mean()) < 0.95
    assert 0.05 < float((layer.path_scores > np.log(1.5)).double().mean()) < 0.95


def test_extreme_scores_do_no_harm() -> None:
    model = new_model()
    with torch.no_grad():
        model.layers[0].log_scale.fill_(6)
        model.layers[1].path_scores.fill_(-200)
    loss = model.loss(SEED)
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
    assert bool(loss.isfinite())


def test_batches_are_seeds_and_take_the_same_from_the_generator_however_many_are_used() -> None:
    model = new_model()
    sampler = NegativeSampler(small_data(), SamplingSettings())
    one, other = seeded(), seeded()
    first = list(model.batches(sampler, one))
    partly = model.batches(sampler, other)
    assert [next(partly), next(partly)] == first[:2]
    assert torch.equal(one.get_state(), other.get_state())
    assert len(set(first)) == 4
    assert not set(first) & set(model.batches(sampler, one))


def test_scores_are_always_the_same_and_do_not_change_later() -> None:
    model = new_model()
    score, users = model.scorer(), torch.tensor([5, 2])
    before = score(users)
    z = model.encode(torch.Generator().manual_seed(0)).detach()
    assert torch.equal(before, z[users] @ z[N_USERS:].T)
    torch.manual_seed(3)
    assert torch.equal(model.scorer()(users), before)
    assert not before.requires_grad

    items = model.item_embeddings()
    assert torch.equal(items, z[N_USERS:])
    assert not items.requires_grad
    model.embedding.data.add_(torch.randn(N_NODES, 5))
    assert torch.equal(score(users), before)
    assert not torch.equal(model.scorer()(users), before)


@pytest.mark.usefixtures("_double")
def test_only_the_scales_decay_as_a_part_of_the_gradient() -> None:
    model = new_model()
    optimiser = model.optimiser()
    scales = {"layers.0.log_scale", "layers.1.log_scale"}
    state = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    for name, parameter in model.named_parameters():
        # Adam's first step is the learning rate in the direction of the gradient, however small.
        step = 0.01 * state[name].sign() if name in scales else 0
        torch.testing.assert_close(parameter.detach(), state[name] - step, rtol=0, atol=1e-6)
    assert len(list(model.parameters())) == sum(len(g["params"]) for g in optimiser.param_groups)
    assert {group["weight_decay"] for group in optimiser.param_groups} == {0, 0.01}


def test_learning_rate_regularisation_and_spectrum_are_the_published_ones() -> None:
    published = SIGformerHyperparameters(learning_rate=1e-2, regularisation=1e-4, eigenvectors=64)
    assert SIGformerHyperparameters() == published
    assert new_model().optimiser().param_groups[0]["lr"] == 1e-2


def test_parameters_begin_as_in_the_official_code() -> None:
    data = data_of(random_labels(1, 60, 70))
    model = SIGformer(data, SIGformerHyperparameters(), torch.Generator().manual_seed(0))
    initial = model.embedding.detach()
    assert float(initial.std()) == pytest.approx(0.1, rel=0.02)
    assert float(initial.mean()) == pytest.approx(0, abs=0.004)
    assert model.state_dict().keys() == {
        "embedding",
        *(f"layers.{k}.{name}" for k in range(3) for name in ("log_scale", "path_scores")),
    }
    for layer in model.layers:
        assert torch.equal(layer.log_scale, torch.zeros(()))
        assert torch.equal(layer.path_scores, torch.zeros(6))


@pytest.mark.usefixtures("_double")
def test_other_codes_for_users_and_items_change_no_mean() -> None:
    """Walks are drawn by code: the same are not drawn again, but they are as probable."""
    generator = torch.Generator().manual_seed(4)
    users, items = (torch.randperm(n, generator=generator) for n in (N_USERS, N_ITEMS))
    nodes = torch.cat([users, N_USERS + items])
    labels = np.empty_like(small_labels())
    labels[np.ix_(users, items)] = small_labels()
    model = new_model()
    renamed = SIGformer(data_of(labels), model.hyperparameters, generator)
    state = model.state_dict()
    renamed.load_state_dict(state | {"embedding": state["embedding"][nodes.argsort()]})
    torch.testing.assert_close(renamed.positions[nodes], model.positions, rtol=0, atol=1e-12)

    with torch.no_grad():
        expected = torch.stack([model.encode(generator) for _ in range(200)])
        found = torch.stack([renamed.encode(generator)[nodes] for _ in range(200)])
    error = ((expected.var(0) + found.var(0)) / 200).sqrt()
    assert bool(((expected.mean(0) - found.mean(0)).abs() <= 5 * error + 1e-12).all())


def test_a_step_holds_a_few_numbers_a_pair_and_no_row() -> None:
    n_users, n_items, dimension = 200, 200, 64
    data = data_of(random_labels(1, n_users, n_items, rated=0.2))
    parameters = SIGformerHyperparameters(dimension=dimension)
    model = SIGformer(data, parameters, torch.Generator().manual_seed(0))
    n_pairs, n_nodes = len(model.walks.draw(seeded()).types), n_users + n_items
    # A row of each node is no more than that; one of each pair, or a matrix of all nodes, would be.
    assert n_nodes * dimension < 4 * n_pairs < n_nodes**2
    with Operations() as operations:
        model.loss(SEED).backward()
    assert n_pairs <= operations.largest < 4 * n_pairs


def test_no_step_waits_for_a_number() -> None:
    model = new_model()
    optimiser = model.optimiser()
    with Operations() as operations:
        model.loss(SEED).backward()
        optimiser.step()
    assert "sparse_sampled_addmm" in " ".join(operations.names)
    operations.assert_that_none_waited()
