import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import normalised_adjacency
from torch_geometric.nn import LightGCN
from training_data import data_of

from refine.data import Pairs
from refine.graph import BipartiteGraph

N_USERS, N_ITEMS = 9, 7


@st.composite
def adjacencies(draw: st.DrawFn) -> np.ndarray:
    """Which user has an edge to which item; some nodes are isolated."""
    cells = draw(st.lists(st.booleans(), min_size=N_USERS * N_ITEMS, max_size=N_USERS * N_ITEMS))
    adjacency = np.array(cells).reshape(N_USERS, N_ITEMS)
    adjacency[3], adjacency[:, 5] = False, False
    return adjacency


def edges_of(adjacency: np.ndarray) -> Pairs:
    return data_of(np.where(adjacency, 0, -1)).positives


def pyg(edges: Pairs, layers: int, x: torch.Tensor) -> tuple[LightGCN, torch.Tensor]:
    """PyTorch Geometric's model with our embeddings, and the graph as its edge list."""
    # Its own 1 / (layers + 1) has single precision.
    alpha = torch.full((layers + 1,), 1 / (layers + 1), dtype=torch.float64)
    model = LightGCN(len(x), x.shape[1], layers, alpha).double()
    model.embedding.weight.data.copy_(x)
    users, items = edges.users.long(), edges.items.long() + N_USERS
    return model, torch.stack([torch.cat([users, items]), torch.cat([items, users])])


@given(adjacencies(), st.integers(0, 4))
def test_propagated_embeddings_and_gradients_equal_those_of_pyg(
    adjacency: np.ndarray, layers: int
) -> None:
    edges = edges_of(adjacency)
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(N_USERS + N_ITEMS, 3, dtype=torch.float64, generator=generator)
    towards = torch.rand(x.shape, dtype=torch.float64, generator=generator)
    reference, edge_index = pyg(edges, layers, x)
    expected = reference.get_embedding(edge_index)
    expected.backward(towards)

    x.requires_grad_()
    graph = BipartiteGraph(edges, N_USERS, N_ITEMS, torch.float64)
    embeddings = graph.propagate(x, layers)
    embeddings.backward(towards)

    torch.testing.assert_close(embeddings, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(x.grad, reference.embedding.weight.grad, rtol=0, atol=1e-10)


def test_an_isolated_node_keeps_its_own_share_only() -> None:
    adjacency = np.zeros((N_USERS, N_ITEMS), dtype=bool)
    adjacency[0, 0] = True
    graph = BipartiteGraph(edges_of(adjacency), N_USERS, N_ITEMS, torch.float64)
    x = torch.rand(N_USERS + N_ITEMS, 3, dtype=torch.float64)
    embeddings = graph.propagate(x, 3)
    torch.testing.assert_close(embeddings[1], x[1] / 4)
    torch.testing.assert_close(embeddings[0], (x[0] + x[N_USERS]) / 2)


def test_a_polynomial_is_the_dense_one_and_its_own_gradient() -> None:
    adjacency = np.random.default_rng(0).random((N_USERS, N_ITEMS)) < 0.4
    graph = BipartiteGraph(edges_of(adjacency), N_USERS, N_ITEMS, torch.float64)
    n = N_USERS + N_ITEMS
    dense = graph.multiply(torch.eye(n, dtype=torch.float64))
    normalised = normalised_adjacency((N_USERS, N_ITEMS), edges_of(adjacency))
    np.testing.assert_allclose(dense.numpy(), normalised, atol=1e-15)

    coefficients = [0.0, 0.5, -2.0]
    x = torch.rand(n, 2, dtype=torch.float64, requires_grad=True)
    expected = 0.5 * dense @ x - 2 * dense @ dense @ x
    torch.testing.assert_close(graph.polynomial(x, coefficients), expected)
    assert torch.autograd.gradcheck(lambda x: graph.polynomial(x, coefficients), (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_weights_have_the_type_that_is_propagated(dtype: torch.dtype) -> None:
    graph = BipartiteGraph(edges_of(np.ones((N_USERS, N_ITEMS), bool)), N_USERS, N_ITEMS, dtype)
    assert graph.propagate(torch.ones(graph.n_nodes, 2, dtype=dtype), 2).dtype == dtype
