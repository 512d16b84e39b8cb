import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import assert_xavier_normal, normalised_adjacency, smoothing
from training_data import UNRATED, data_of, random_labels

from refine.artifacts import CONFIRMED, LABELS
from refine.data import Pairs, TrainingData
from refine.models.signed import SignedBatch
from refine.models.siren import SiReN, SiReNHyperparameters

pytestmark = pytest.mark.usefixtures("_double")

N_USERS, N_ITEMS = 8, 10
PARAMETERS = SiReNHyperparameters(
    batch_size=7, regularisation=0.3, dimension=4, layers=3, negatives=3
)


def small_data() -> TrainingData:
    """User 2 has no dislikes, item 3 no likes, and item 9 no ratings."""
    labels = random_labels(3, N_USERS, N_ITEMS)
    labels[2] = np.where(labels[2] == LABELS.index(CONFIRMED), UNRATED, labels[2])
    labels[:, 3] = np.where(labels[:, 3] == LABELS.index(CONFIRMED), labels[:, 3], UNRATED)
    labels[4, 3] = LABELS.index(CONFIRMED)
    return data_of(labels)


def new_model(parameters: SiReNHyperparameters = PARAMETERS) -> SiReN:
    model = SiReN(small_data(), parameters, torch.Generator().manual_seed(0))
    model.embedding.data.mul_(3)  # so that scores are not all near 0
    return model


def a_batch(model: SiReN) -> SignedBatch:
    return next(iter(model.batches(None, torch.Generator().manual_seed(5))))


def smoothed(edges: Pairs) -> np.ndarray:
    """What embeddings are multiplied by in three layers."""
    return smoothing(normalised_adjacency((N_USERS, N_ITEMS), edges), 3)


def reference_fused(
    state: dict[str, torch.Tensor], table: str, smooth: np.ndarray, seed: int | None
) -> np.ndarray:
    """Z of SiReN; without dropout if there is no seed."""
    p = {name: tensor.numpy() for name, tensor in state.items()}
    shape = p[table].shape
    if seed is None:
        d = np.ones((4, *shape))
    else:
        generator = torch.Generator().manual_seed(seed)
        d = [2.0 * (torch.rand(shape, generator=generator) >= 0.5).numpy() for _ in range(4)]
    z_p = smooth @ p[table]
    z_n = p["mlp.embedding"]
    for layer, mask in zip(("first", "second"), d[:2], strict=True):
        z_n = z_n @ p[f"mlp.{layer}.weight"].T + p[f"mlp.{layer}.bias"]
        z_n = np.maximum(z_n, 0) * mask
    a = [
        (np.tanh(z @ p["fusion.hidden.weight"].T + p["fusion.hidden.bias"]) * mask)
        @ p["fusion.query.weight"][0]
        for z, mask in zip((z_p, z_n), d[2:], strict=True)
    ]
    alpha = np.exp(a) / np.exp(a).sum(0)
    return alpha[0][:, None] * z_p + alpha[1][:, None] * z_n


def reference_loss(model: SiReN, batch: SignedBatch) -> float:
    smooth = smoothed(small_data().positives)
    z = reference_fused(model.state_dict(), "embedding", smooth, batch.seed)
    loss = 0.0
    for u, i, sign, negatives in zip(*(part.tolist() for part in batch[:4]), strict=True):
        z_u, z_i = z[u], z[N_USERS + i]
        c = 1 if sign > 0 else model.hyperparameters.dislike_factor
        loss += 0.3 * (z_u @ z_u + z_i @ z_i)
        for j in negatives:
            z_j = z[N_USERS + j]
            loss -= math.log(1 / (1 + math.exp(-(c * z_u @ z_i - z_u @ z_j))))
            loss += 0.3 * z_j @ z_j
    return loss


@pytest.mark.parametrize("dislike_factor", [2.0, -1.0])
def test_the_loss_is_the_formula(dislike_factor: float) -> None:
    model = new_model(replace(PARAMETERS, dislike_factor=dislike_factor))
    batch = a_batch(model)
    assert set(batch.signs.tolist()) == {1, -1}
    loss = model.loss(batch)
    assert loss.item() == pytest.approx(reference_loss(model, batch), rel=1e-12)
    assert model.loss(batch).item() == loss.item()
    assert model.loss(batch._replace(seed=batch.seed + 1)).item() != loss.item()


def test_gradients_are_those_of_finite_differences() -> None:
    model = new_model()
    batch = a_batch(model)
    parameters = list(model.parameters())
    assert torch.autograd.gradcheck(lambda *_: model.loss(batch), parameters, atol=1e-6, rtol=1e-6)


def test_scores_are_inner_products_without_dropout() -> None:
    model = new_model()
    smooth = smoothed(small_data().positives)
    z = reference_fused(model.state_dict(), "embedding", smooth, None)
    block = torch.tensor([5, 2])
    score = model.scorer()
    expected = z[block] @ z[N_USERS:].T
    np.testing.assert_allclose(score(block).numpy(), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(model.item_embeddings().numpy(), z[N_USERS:], rtol=0, atol=1e-12)
    model.embedding.data.add_(1.0)
    np.testing.assert_allclose(score(block).numpy(), expected, rtol=0, atol=1e-12)


def test_the_defaults_are_those_of_the_release() -> None:
    assert SiReNHyperparameters() == SiReNHyperparameters(
        batch_size=1024,
        learning_rate=0.005,
        regularisation=0.05,
        dimension=64,
        layers=4,
        negatives=40,
        dislike_factor=2.0,
    )
    assert new_model().optimiser().param_groups[0]["lr"] == 0.005


def test_the_embeddings_are_xavier_normal_and_all_parameters_are_trained() -> None:
    data = small_data()
    wide = SiReN(data, SiReNHyperparameters(dimension=2000), torch.Generator().manual_seed(0))
    assert_xavier_normal(wide.embedding)
    model = new_model()
    assert {name for name, _ in model.named_parameters()} == set(model.state_dict())
    model.loss(a_batch(model)).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
