"""Random walks on a signed graph, and the signs that they meet (SIGformer, SIGIR 2024)."""

from typing import NamedTuple

import torch
from torch import Tensor

from refine.graph import row_starts
from refine.models.node_pairs import NodePairs
from refine.models.signed import SignedPairs


class Walks(NamedTuple):
    """What a draw of walks has reached, by hops: the pairs of (start, node reached).

    Attributes:
        pairs: as many as edges times hops, whatever was drawn.
        types: which signs were met on the way, 0..n_types - 1, in the order of length, then of the
            signs, dislike before like; n_types where a walk no longer counts: int32 [pairs].
    """

    pairs: NodePairs
    types: Tensor


class SignedWalks:
    """Walks of a few hops on the graph of likes and dislikes, one from each edge and direction.

    A walk goes over its edge a - x_1 first, then from x_h over any edge of x_h, all equally likely,
    to x_h+1. It counts until it closes a cycle, that is until x_h = a, or x_h = x_h' with h' < h.
    """

    def __init__(self, edges: SignedPairs, n_users: int, n_items: int, hops: int) -> None:
        """Lists the edges of each node, once.

        Args:
            edges: likes and dislikes; the nodes are the users, then the items.
            n_users: number of users.
            n_items: number of items.
            hops: H, edges that a walk goes over.
        """
        users, items, signs = edges
        by_item = torch.sort(items, stable=True).indices
        users_nodes, items_nodes = users.int(), items.int() + n_users
        likes = (signs > 0).int()
        self._sources = torch.cat([users_nodes, items_nodes[by_item]])
        self._targets = torch.cat([items_nodes, users_nodes[by_item]])
        self._likes = torch.cat([likes, likes[by_item]])
        starts = row_starts(self._sources, n_users + n_items)
        self._starts, self._degrees = starts[:-1], starts.diff()
        self._pair_sources = self._sources.repeat_interleave(hops)
        self._pair_starts = starts * hops
        self._hops = hops

    @property
    def n_types(self) -> int:
        """Number of sequences of 1 to H signs: 2 + 4 + ... + 2^H."""
        return int(2 ** (self._hops + 1) - 2)

    def draw(self, generator: torch.Generator) -> Walks:
        """Walks once from each edge.

        Args:
            generator: on any device, so that the same walks can be had on all.
        """
        m, device = len(self._sources), self._sources.device
        reached, codes = [self._targets], 2 + self._likes
        types, closed = [codes - 2], torch.zeros(m, dtype=torch.bool, device=device)
        for _ in range(1, self._hops):
            node = reached[-1]
            uniform = torch.rand(
                m, dtype=torch.float64, generator=generator, device=generator.device
            ).to(device)
            # Below the degree, even rounded: for the largest uniform number is 1 - 2^-53.
            nth = uniform.mul_(self._degrees.index_select(0, node)).int()
            edge = nth.add_(self._starts.index_select(0, node))
            node = self._targets.index_select(0, edge)
            codes = 2 * codes + self._likes.index_select(0, edge)
            # Of a bipartite graph, only every second node can be met again.
            for earlier in [self._sources, *reached][-2::-2]:
                closed = closed | (node == earlier)
            reached.append(node)
            types.append(torch.where(closed, self.n_types, codes - 2))
        # Edges are in the order of their source, so that pairs, each beside its edge's, are, too.
        targets = torch.stack(reached, dim=1).flatten()
        pairs = NodePairs(self._pair_sources, targets, self._pair_starts)
        return Walks(pairs, torch.stack(types, dim=1).flatten())
