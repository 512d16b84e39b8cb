from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from training_data import data_of, random_labels

from refine.data import TrainingData
from refine.models.signed import signed_pairs
from refine.models.walks import SignedWalks

N_USERS, N_ITEMS = 8, 10


def small_data() -> TrainingData:
    return data_of(random_labels(1, N_USERS, N_ITEMS))


def new_walks(hops: int) -> SignedWalks:
    return SignedWalks(signed_pairs(small_data()), N_USERS, N_ITEMS, hops)


def signs() -> dict[tuple[int, int], int]:
    """1 or 0 of each edge, in both directions."""
    data = small_data()
    found = {}
    for pairs, sign in ((data.positives, 1), (data.confirmed, 0)):
        for u, i in zip(pairs.users.tolist(), pairs.items.tolist(), strict=True):
            found[u, N_USERS + i] = found[N_USERS + i, u] = sign
    return found


@pytest.mark.parametrize("hops", [1, 2, 5])
def test_walks_follow_edges_and_are_typed_by_their_signs_until_they_close_a_cycle(
    hops: int,
) -> None:
    sign_of = signs()
    walks = new_walks(hops)
    pairs, types = walks.draw(torch.Generator().manual_seed(0))
    sources = pairs.sources.view(-1, hops).tolist()
    reached, types = pairs.targets.view(-1, hops).tolist(), types.view(-1, hops).tolist()
    assert [(a[0], x[0]) for a, x in zip(sources, reached, strict=True)] == sorted(sign_of)

    # All sequences of signs, short ones first, then in lexicographic order.
    sequences = [f"{i:0{h}b}" for h in range(1, hops + 1) for i in range(2**h)]
    assert walks.n_types == len(sequences)
    closed = 0
    for (a, *others), nodes, found in zip(sources, reached, types, strict=True):
        assert set(others) <= {a}
        path, met = [a], ""
        for node, type_ in zip(nodes, found, strict=True):
            met += str(sign_of[path[-1], node])
            path.append(node)
            if len(set(path)) < len(path):
                assert type_ == len(sequences)
                closed += 1
            else:
                assert type_ == sequences.index(met)
    assert (closed > 0) == (hops > 1)


def test_pairs_begin_where_their_source_does() -> None:
    pairs, types = new_walks(3).draw(torch.Generator().manual_seed(0))
    assert bool((pairs.sources.diff() >= 0).all())
    counts = torch.bincount(pairs.sources, minlength=N_USERS + N_ITEMS)
    assert torch.equal(pairs.starts.diff().long(), counts)
    assert int(pairs.starts[0]) == 0
    assert {tensor.dtype for tensor in (*pairs, types)} == {torch.int32}
    assert int(counts[-1]) == 0  # the last item has no edge


def test_every_step_takes_each_edge_of_a_node_equally_often() -> None:
    sign_of = signs()
    walks, generator = new_walks(3), torch.Generator().manual_seed(2)
    steps: Counter[tuple[int, int]] = Counter()
    for _ in range(200):
        pairs, _ = walks.draw(generator)
        nodes = pairs.targets.view(-1, 3)
        for h in (0, 1):
            steps.update(map(tuple, nodes[:, h : h + 2].tolist()))
    assert set(steps) == set(sign_of)
    for node in range(N_USERS + N_ITEMS):
        counts = [steps[edge] for edge in sign_of if edge[0] == node]
        if len(counts) > 1:
            assert min(counts) > 50
            assert chisquare(counts).pvalue > 1e-4


def test_a_second_step_does_not_depend_on_the_first() -> None:
    """From an edge's start, a node two hops away is met as often as a product of chances says."""
    degrees = Counter(a for a, _ in signs())
    walks, generator = new_walks(3), torch.Generator().manual_seed(3)
    edge = next(i for i, (a, b) in enumerate(sorted(signs())) if degrees[b] > 2)
    ends: Counter[tuple[int, int]] = Counter()
    draws = 2000
    for _ in range(draws):
        pairs, _ = walks.draw(generator)
        _, second, third = pairs.targets.view(-1, 3)[edge].tolist()
        ends[second, third] += 1
    first = sorted(signs())[edge][1]
    paths = [(x, y) for (b, x) in signs() if b == first for (c, y) in signs() if c == x]
    expected = [draws / degrees[first] / degrees[x] for x, _ in paths]
    assert sum(expected) == pytest.approx(draws)
    assert chisquare([ends[path] for path in paths], expected).pvalue > 1e-4


def test_walks_depend_on_the_generator_alone() -> None:
    walks = new_walks(4)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    (one, types), (same, same_types), (other, _) = (walks.draw(g) for g in generators)
    assert torch.equal(one.targets, same.targets)
    assert torch.equal(types, same_types)
    assert not torch.equal(one.targets, other.targets)
    again, _ = walks.draw(generators[0])
    assert not torch.equal(one.targets, again.targets)
    assert np.array_equal(one.targets.view(-1, 4)[:, 0], again.targets.view(-1, 4)[:, 0])
