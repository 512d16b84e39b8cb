import numpy as np
import pytest
import torch
from oracles import assert_xavier_normal

from refine.models.fusion import MLP, AttentionFusion, dropout, linear

N_NODES, DIMENSION = 9, 4


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def masks(source: torch.Generator, number: int) -> list[np.ndarray]:
    """The dropout factors that a module is going to draw: 0, or 1 / (1 - 0.5)."""
    kept = [torch.rand(N_NODES, DIMENSION, generator=source) >= 0.5 for _ in range(number)]
    return [2.0 * mask.numpy() for mask in kept]


def test_dropout_keeps_the_mean() -> None:
    x = torch.full((400, 500), 3.0)
    dropped = dropout(x, 0.2, generator())
    assert set(dropped.unique().tolist()) == {0.0, 3.75}
    assert float((dropped == 0).float().mean()) == pytest.approx(0.2, abs=0.004)
    assert torch.equal(dropout(x, 0.2, generator()), dropped)
    assert dropout(x, 0.2, None) is x


def test_a_linear_layer_is_drawn_as_by_pytorch_but_from_the_generator() -> None:
    state = torch.get_rng_state()
    layers = [linear(64, 500, generator(seed)) for seed in (1, 1, 2)]
    assert torch.equal(state, torch.get_rng_state())
    for name, default in torch.nn.Linear(64, 500).named_parameters():
        first, again, other = (layer.get_parameter(name) for layer in layers)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert first.shape == default.shape
        assert 0.98 * 64**-0.5 < first.abs().max().item() <= 64**-0.5
        assert first.std().item() == pytest.approx(default.std().item(), rel=0.1)
    assert linear(3, 2, generator(), bias=False).bias is None


def test_table_and_matrices_of_the_perceptron_are_xavier_normal() -> None:
    state = torch.get_rng_state()
    mlp = MLP(3000, 64, generator())
    assert torch.equal(state, torch.get_rng_state())
    assert_xavier_normal(mlp.embedding)
    for layer in (mlp.first, mlp.second):
        assert_xavier_normal(layer.weight)
        assert 0 < layer.bias.abs().max().item() <= 1 / 8


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("training", [False, True])
def test_the_perceptron_is_the_formula(training: bool) -> None:
    mlp = MLP(N_NODES, DIMENSION, generator())
    e, w1, b1, w2, b2 = (parameter.detach().numpy() for parameter in mlp.parameters())
    d1, d2 = masks(generator(7), 2) if training else (1.0, 1.0)
    expected = np.maximum(e @ w1.T + b1, 0) * d1
    expected = np.maximum(expected @ w2.T + b2, 0) * d2
    found = mlp(generator(7) if training else None)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=1e-14)


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("training", [False, True])
def test_the_fusion_is_softmax_attention(training: bool) -> None:
    fusion = AttentionFusion(DIMENSION, generator())
    w, b, q = (parameter.detach().numpy() for parameter in fusion.parameters())
    views = torch.randn(2, N_NODES, DIMENSION, generator=generator(2))
    factors = masks(generator(7), 2) if training else (1.0, 1.0)
    a = np.stack(
        [(np.tanh(z @ w.T + b) * d) @ q[0] for z, d in zip(views.numpy(), factors, strict=True)]
    )
    alpha = np.exp(a) / np.exp(a).sum(0)
    expected = (alpha[:, :, None] * views.numpy()).sum(0)
    found = fusion(*views, generator(7) if training else None)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=1e-14)


@pytest.mark.usefixtures("_double")
def test_gradients_are_those_of_finite_differences() -> None:
    mlp, fusion = MLP(N_NODES, DIMENSION, generator()), AttentionFusion(DIMENSION, generator(2))
    other = torch.randn(N_NODES, DIMENSION, generator=generator(3))
    parameters = [*mlp.parameters(), *fusion.parameters()]

    def fused(*_: torch.Tensor) -> torch.Tensor:
        source = generator(7)
        return fusion(other, mlp(source), source)

    assert torch.autograd.gradcheck(fused, parameters)
