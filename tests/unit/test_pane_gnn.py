import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import assert_xavier_normal, smoothing
from test_siren import N_ITEMS, N_USERS, reference_fused, small_data, smoothed
from training_data import planted

from refine.graph import BipartiteGraph
from refine.models.pane_gnn import (
    PANEGNN,
    PANEGNNHyperparameters,
    contrastive_loss,
    thinned_graph,
)
from refine.models.signed import SignedBatch

pytestmark = pytest.mark.usefixtures("_double")

N_NODES = N_USERS + N_ITEMS
PARAMETERS = PANEGNNHyperparameters(
    batch_size=7,
    regularisation=0.3,
    dimension=4,
    layers=3,
    negatives=3,
    temperature=0.4,
    drop_rate=0.5,
)


def new_model(parameters: PANEGNNHyperparameters = PARAMETERS) -> PANEGNN:
    model = PANEGNN(small_data(), parameters, torch.Generator().manual_seed(0))
    for table in (model.interest, model.disinterest):
        table.data.mul_(3)  # so that scores are not all near 0
    return model


def a_batch(model: PANEGNN) -> SignedBatch:
    return next(iter(model.batches(None, torch.Generator().manual_seed(5))))


def dense(graph) -> np.ndarray:
    return graph.multiply(torch.eye(N_NODES)).numpy()


def reference_loss(model: PANEGNN, batch: SignedBatch) -> float:
    smooth = smoothed(small_data().positives)
    z_p = reference_fused(model.state_dict(), "interest", smooth, batch.seed)
    z_n = smoothed(small_data().confirmed) @ model.disinterest.detach().numpy()
    z_thinned = smoothing(dense(model.thinned), 3) @ model.disinterest.detach().numpy()
    b = len(batch.users)
    by_interest = by_disinterest = norms = 0.0
    for u, i, sign, negatives in zip(*(part.tolist() for part in batch[:4]), strict=True):
        liked = sign > 0
        for z in (z_p, z_n):
            norms += z[u] @ z[u] + z[N_USERS + i] @ z[N_USERS + i]
        for j in negatives:
            y_i, y_j = (z_p[u] @ z_p[N_USERS + item] for item in (i, j))
            by_interest += math.log(1 + math.exp(-((1 if liked else 3) * y_i - y_j)))
            y_i, y_j = (z_n[u] @ z_n[N_USERS + item] for item in (i, j))
            by_disinterest += math.log(1 + math.exp(-(y_j - (3 if liked else 1) * y_i)))
            norms += sum(z[N_USERS + j] @ z[N_USERS + j] for z in (z_p, z_n))
    if model.hyperparameters.average_disinterest:
        by_disinterest /= b
    views = [batch.users.numpy(), N_USERS + batch.items.numpy()]
    f = []
    for nodes in views:
        one, other = (
            z[nodes] / np.linalg.norm(z[nodes], axis=1, keepdims=True) for z in (z_n, z_thinned)
        )
        f.append(np.exp(one @ other.T / 0.4))
    contrast = 0.0
    for row in range(b):
        if model.hyperparameters.whole_batch_contrast:
            total = f[0].sum() + f[1].sum()
        else:
            total = f[0][row].sum() + f[1][row].sum()
        contrast += (math.log(total) - math.log(f[0][row, row] + f[1][row, row])) / b
    return by_interest + by_disinterest + 0.3 * norms + contrast


@pytest.mark.parametrize("average_disinterest", [True, False])
@pytest.mark.parametrize("whole_batch_contrast", [True, False])
def test_the_loss_is_the_formula(average_disinterest: bool, whole_batch_contrast: bool) -> None:
    model = new_model(
        replace(
            PARAMETERS,
            average_disinterest=average_disinterest,
            whole_batch_contrast=whole_batch_contrast,
        )
    )
    batch = a_batch(model)
    assert set(batch.signs.tolist()) == {1, -1}
    loss = model.loss(batch)
    assert loss.item() == pytest.approx(reference_loss(model, batch), rel=1e-12)
    assert model.loss(batch).item() == loss.item()
    assert model.loss(batch._replace(seed=batch.seed + 1)).item() != loss.item()


@pytest.mark.parametrize("whole_batch_contrast", [True, False])
def test_gradients_are_those_of_finite_differences(whole_batch_contrast: bool) -> None:
    model = new_model(replace(PARAMETERS, whole_batch_contrast=whole_batch_contrast))
    batch = a_batch(model)
    parameters = list(model.parameters())
    assert torch.autograd.gradcheck(lambda *_: model.loss(batch), parameters, atol=1e-6, rtol=1e-6)
    model.loss(batch).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in parameters)


@pytest.mark.parametrize("whole_batch", [True, False])
def test_the_contrast_does_not_overflow(whole_batch: bool) -> None:
    views = torch.randn(2, 2, 6, 3, generator=torch.Generator().manual_seed(0))
    losses = [
        contrastive_loss(*views.to(dtype), 0.005, whole_batch=whole_batch)
        for dtype in (torch.float32, torch.float64)
    ]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)


def test_the_thinned_graph_weighs_edges_by_what_comes_in() -> None:
    edges = small_data().confirmed
    graph = thinned_graph(edges, N_USERS, N_ITEMS, 0.5, torch.Generator().manual_seed(3))
    kept = torch.rand(2 * len(edges.users), generator=torch.Generator().manual_seed(3)) >= 0.5
    users, items = edges.users.tolist(), [N_USERS + item for item in edges.items.tolist()]
    directions = list(zip(users + items, items + users, strict=True))
    directions = [one for one, keep in zip(directions, kept.tolist(), strict=True) if keep]
    incoming = [sum(target == node for _, target in directions) for node in range(N_NODES)]
    expected = np.zeros((N_NODES, N_NODES))
    for source, target in directions:
        if incoming[source] and incoming[target]:
            expected[target, source] = 1 / math.sqrt(incoming[source] * incoming[target])
    assert any(not incoming[source] for source, _ in directions)
    assert not np.allclose(expected, expected.T)
    np.testing.assert_allclose(dense(graph), expected, rtol=0, atol=1e-15)
    np.testing.assert_allclose(dense(graph.transposed), expected.T, rtol=0, atol=1e-15)
    assert graph.transposed.transposed is graph

    x = torch.randn(N_NODES, 2, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: graph.propagate(x, 3), (x,))


def test_nothing_and_everything_can_be_dropped() -> None:
    edges = small_data().confirmed
    whole, empty = (
        thinned_graph(edges, N_USERS, N_ITEMS, rate, torch.Generator().manual_seed(3))
        for rate in (0.0, 1.0)
    )
    graph = BipartiteGraph(edges, N_USERS, N_ITEMS)
    np.testing.assert_allclose(dense(whole), dense(graph), rtol=0, atol=1e-15)
    assert not dense(empty).any()


def test_each_direction_is_dropped_at_the_rate() -> None:
    users = torch.arange(100).repeat_interleave(100).int()
    edges = type(small_data().confirmed)(users, torch.arange(100).repeat(100).int())
    graph = thinned_graph(edges, 100, 100, 0.8, torch.Generator().manual_seed(3))
    forward = graph.multiply(torch.eye(200))[:100, 100:] > 0
    backward = (graph.multiply(torch.eye(200))[100:, :100] > 0).T
    for kept, share in ((forward, 0.2), (backward, 0.2), (forward & backward, 0.04)):
        assert kept.double().mean().item() == pytest.approx(share, abs=0.015)


def test_what_is_of_too_much_disinterest_is_removed(caplog: pytest.LogCaptureFixture) -> None:
    model = new_model(replace(PARAMETERS, filter_above=0.1))
    state = model.state_dict()
    z_p = reference_fused(state, "interest", smoothed(small_data().positives), None)
    z_n = smoothed(small_data().confirmed) @ state["disinterest"].numpy()
    interest, disinterest = (z[:N_USERS] @ z[N_USERS:].T for z in (z_p, z_n))
    assert 0 < (disinterest > 0.1).sum() < disinterest.size
    expected = np.where(disinterest > 0.1, -np.inf, interest)

    block = torch.tensor([5, 2, 0])
    with caplog.at_level(logging.INFO):
        model.scorer()
        assert caplog.messages == []  # nothing is told of a model that is in training
        model.load_state_dict(state)
        score = model.scorer()
        model.scorer()
    np.testing.assert_allclose(score(block).numpy(), expected[block], rtol=0, atol=1e-12)
    removed = (disinterest > 0.1).sum() / N_USERS
    assert caplog.messages == [
        f"the filter (disinterest above 0.1) removes {removed:.1f} of {N_ITEMS} items a user on "
        "average"
    ]
    assert not score(block).requires_grad
    for table in (model.interest, model.disinterest):
        table.data.mul_(2)
    np.testing.assert_allclose(score(block).numpy(), expected[block], rtol=0, atol=1e-12)


def test_the_filter_can_be_switched_off() -> None:
    model = new_model(replace(PARAMETERS, filter_above=None))
    z = reference_fused(model.state_dict(), "interest", smoothed(small_data().positives), None)
    found = model.scorer()(torch.arange(N_USERS))
    np.testing.assert_allclose(found.numpy(), z[:N_USERS] @ z[N_USERS:].T, rtol=0, atol=1e-12)
    np.testing.assert_allclose(model.item_embeddings().numpy(), z[N_USERS:], rtol=0, atol=1e-12)


def test_tables_are_xavier_normal_users_and_items_apart() -> None:
    data = planted(n_users=300, n_items=60)
    model = PANEGNN(data, PANEGNNHyperparameters(), torch.Generator().manual_seed(0))
    for table in (model.interest, model.disinterest):
        for rows in torch.split(table, [300, 60]):
            assert_xavier_normal(rows)


def test_the_thinned_graph_is_drawn_by_seed_and_restored_with_the_parameters() -> None:
    first, again = new_model(), new_model()
    other = PANEGNN(small_data(), PARAMETERS, torch.Generator().manual_seed(1))
    np.testing.assert_array_equal(dense(first.thinned), dense(again.thinned))
    assert not np.array_equal(dense(first.thinned), dense(other.thinned))
    other.load_state_dict(first.state_dict())
    np.testing.assert_array_equal(dense(first.thinned), dense(other.thinned))
    batch = a_batch(first)
    assert other.loss(batch).item() == first.loss(batch).item()
    trained = {name for name, _ in first.named_parameters()}
    assert set(first.state_dict()) == trained | {"thinning_seed"}


def test_the_defaults_are_those_of_the_release_for_movielens() -> None:
    assert PANEGNNHyperparameters() == PANEGNNHyperparameters(
        batch_size=1024,
        learning_rate=0.0005,
        regularisation=0.05,
        dimension=64,
        layers=4,
        negatives=40,
        temperature=0.8,
        drop_rate=0.8,
        filter_above=0.5,
        average_disinterest=True,
        whole_batch_contrast=True,
    )
