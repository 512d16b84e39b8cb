"""Embeddings without a graph, and the attention that joins two views of a node.

Both are of SiReN (Seo et al., TNNLS 2022): a dislike says little of how similar two nodes are, so
that what is learnt from dislikes has a table and a perceptron of its own instead of a graph.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_DROPOUT = 0.5


def dropout(x: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """Sets each entry to 0 with probability ``rate``, and divides the others by 1 - ``rate``.

    Args:
        x: floating point.
        rate: below 1.
        generator: on the device of x; None: not in training, x is returned.
    """
    if generator is None:
        return x
    # On CPU, comparing uniform numbers is eight times as fast as PyTorch's bernoulli_.
    kept = torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=generator).ge_(rate)
    return x * kept.div_(1 - rate)


def linear(
    inputs: int, outputs: int, generator: torch.Generator, *, bias: bool = True
) -> nn.Linear:
    """A linear layer on the device of ``generator``, which draws it as PyTorch does by default."""
    # Without skip_init, PyTorch would first draw it from the global generator.
    layer = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        nn.Linear, inputs, outputs, bias=bias, device=generator.device
    )
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -(inputs**-0.5), inputs**-0.5, generator=generator)
    return cast(nn.Linear, layer)


class MLP(nn.Module):
    """Z = D(ReLU(D(ReLU(E W1 + b1)) W2 + b2)), with a table E of all nodes and dropout D."""

    def __init__(self, n_nodes: int, dimension: int, generator: torch.Generator) -> None:
        """Draws the table and the matrices, Xavier-normal, and the biases.

        Args:
            n_nodes: rows of the table.
            dimension: of its rows and of both layers.
            generator: on whose device all will be.
        """
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(n_nodes, dimension, device=generator.device))
        self.first = linear(dimension, dimension, generator)
        self.second = linear(dimension, dimension, generator)
        for matrix in (self.embedding, self.first.weight, self.second.weight):
            nn.init.xavier_normal_(matrix, generator=generator)

    def forward(self, generator: torch.Generator | None) -> Tensor:
        """Z, [nodes, d].

        Args:
            generator: draws the dropout; None: not in training, there is none.
        """
        x: Tensor = self.embedding
        for layer in (self.first, self.second):
            x = dropout(F.relu(layer(x)), _DROPOUT, generator)
        return x


class AttentionFusion(nn.Module):
    """Mixes two views z of each node by softmax attention, a = q D(tanh(W z + b))."""

    def __init__(self, dimension: int, generator: torch.Generator) -> None:
        """Draws W, b and q.

        Args:
            dimension: of both views.
            generator: on whose device all will be.
        """
        super().__init__()
        self.hidden = linear(dimension, dimension, generator)
        self.query = linear(dimension, 1, generator, bias=False)

    def forward(self, first: Tensor, second: Tensor, generator: torch.Generator | None) -> Tensor:
        """alpha_1 z_1 + alpha_2 z_2 of every node, [nodes, d].

        Args:
            first: z_1, [nodes, d].
            second: z_2, [nodes, d].
            generator: draws the dropout; None: not in training, there is none.
        """
        a1, a2 = (
            self.query(dropout(torch.tanh(self.hidden(z)), _DROPOUT, generator))
            for z in (first, second)
        )
        # A softmax of two: alpha_1 = sigmoid(a_1 - a_2), and alpha_2 = 1 - alpha_1.
        return torch.lerp(second, first, torch.sigmoid(a1 - a2))
