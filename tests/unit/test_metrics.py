"""Ranking metrics against hand-worked lists, a plain oracle, ir_measures and PyG."""

import itertools
import math
from typing import Any

import ir_measures
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ir_measures import RR, P, R, Success, nDCG
from torch_geometric.metrics import (
    LinkPredMRR,
    LinkPredNDCG,
    LinkPredPrecision,
    LinkPredRecall,
)

from refine.evaluation.metrics import (
    gini,
    item_coverage,
    item_exposure,
    list_metrics,
    user_metrics,
)

KS = (1, 3, 5)


def oracle(hits: list[bool], n: int, k: int) -> dict[str, float]:
    """The definitions, spelled out for one user."""
    top = hits[:k]
    ranks = [rank for rank, hit in enumerate(top, start=1) if hit]
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, n) + 1))
    return {
        f"recall@{k}": len(ranks) / n,
        f"precision@{k}": len(ranks) / k,
        f"ndcg@{k}": sum(1 / math.log2(rank + 1) for rank in ranks) / ideal,
        f"mrr@{k}": 1 / ranks[0] if ranks else 0.0,
        f"hit_rate@{k}": float(bool(ranks)),
    }


def test_hand_worked_list() -> None:
    # Ranks 1 and 3 of 4 hit; the user has 3 targets.
    hits = torch.tensor([[True, False, True, False]])
    metrics = {
        name: value.item() for name, value in user_metrics(hits, torch.tensor([3]), [2, 4]).items()
    }
    assert metrics == {
        "recall@2": pytest.approx(1 / 3),
        "recall@4": pytest.approx(2 / 3),
        "ndcg@2": pytest.approx(1 / (1 + 1 / math.log2(3))),
        "ndcg@4": pytest.approx(1.5 / (1 + 1 / math.log2(3) + 0.5)),
        "precision@2": 0.5,
        "precision@4": 0.5,
        "mrr@2": 1.0,
        "mrr@4": 1.0,
        "hit_rate@2": 1.0,
        "hit_rate@4": 1.0,
    }


def test_ideal_gain_is_cut_at_k_but_recall_is_not() -> None:
    metrics = user_metrics(torch.ones(1, 2, dtype=torch.bool), torch.tensor([10]), [2])
    assert metrics["ndcg@2"].item() == 1.0
    assert metrics["recall@2"].item() == pytest.approx(0.2)


@st.composite
def hit_lists(draw: st.DrawFn) -> tuple[list[list[bool]], list[int]]:
    rows = draw(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=8))
    return rows, [max(1, sum(row)) + draw(st.integers(0, 4)) for row in rows]


@given(hit_lists())
def test_metrics_equal_the_plain_definitions(case: tuple[list[list[bool]], list[int]]) -> None:
    rows, n_targets = case
    metrics = user_metrics(torch.tensor(rows), torch.tensor(n_targets), KS)
    for user, (hits, n) in enumerate(zip(rows, n_targets, strict=True)):
        expected: dict[str, float] = {}
        for k in KS:
            expected |= oracle(hits, n, k)
        got = {name: values[user].item() for name, values in metrics.items()}
        assert got == pytest.approx(expected, abs=1e-14)


@given(hit_lists())
def test_published_identities(case: tuple[list[list[bool]], list[int]]) -> None:
    rows, n_targets = case
    metrics = user_metrics(torch.tensor(rows), torch.tensor(n_targets), KS)
    n = torch.tensor(n_targets)
    for k in KS:
        recall, precision = metrics[f"recall@{k}"], metrics[f"precision@{k}"]
        torch.testing.assert_close(recall * n, precision * k)  # both count the hits
        assert bool((metrics[f"hit_rate@{k}"] == (recall > 0)).all())
        assert bool((metrics[f"mrr@{k}"] <= metrics[f"hit_rate@{k}"]).all())
        for name, values in metrics.items():
            assert bool(((values >= 0) & (values <= 1 + 1e-12)).all()), name
    # At k = 1 these are all "is the first item right?".
    for name in ("ndcg", "mrr", "hit_rate"):
        torch.testing.assert_close(metrics[f"{name}@1"], metrics["precision@1"])
    for smaller, larger in itertools.pairwise(KS):
        for name in ("recall", "mrr", "hit_rate"):
            assert bool((metrics[f"{name}@{smaller}"] <= metrics[f"{name}@{larger}"]).all())


@pytest.fixture(scope="module")
def lists() -> tuple[torch.Tensor, list[set[int]]]:
    """40 users' lists of 20 out of 60 items, and 1 to 30 targets of each."""
    generator = torch.Generator().manual_seed(5)
    items = torch.stack([torch.randperm(60, generator=generator)[:20] for _ in range(40)])
    sizes = torch.randint(1, 31, (40,), generator=generator).tolist()
    targets = [set(torch.randperm(60, generator=generator)[:size].tolist()) for size in sizes]
    return items, targets


def _hits(items: torch.Tensor, targets: list[set[int]]) -> torch.Tensor:
    rows = zip(items.tolist(), targets, strict=True)
    return torch.tensor([[item in wanted for item in row] for row, wanted in rows])


def test_metrics_equal_ir_measures(lists: tuple[torch.Tensor, list[set[int]]]) -> None:
    items, targets = lists
    metrics = user_metrics(_hits(items, targets), torch.tensor([len(t) for t in targets]), [5, 20])
    qrels = [
        ir_measures.Qrel(str(user), str(item), 1)
        for user, wanted in enumerate(targets)
        for item in wanted
    ]
    run = [
        ir_measures.ScoredDoc(str(user), str(item), float(-rank))
        for user, row in enumerate(items.tolist())
        for rank, item in enumerate(row)
    ]
    names = {"recall": R, "ndcg": nDCG, "precision": P, "mrr": RR, "hit_rate": Success}
    for k in (5, 20):
        for name, measure in names.items():
            values: list[float] = [math.nan] * len(targets)
            for value in ir_measures.iter_calc([measure @ k], qrels, run):
                values[int(value.query_id)] = value.value
            # trec_eval's C code works in double; its binding rounds nothing.
            torch.testing.assert_close(
                metrics[f"{name}@{k}"], torch.tensor(values, dtype=torch.float64), rtol=0, atol=1e-9
            )


def test_means_equal_pyg(lists: tuple[torch.Tensor, list[set[int]]]) -> None:
    items, targets = lists
    pairs = torch.tensor([(u, i) for u, wanted in enumerate(targets) for i in wanted]).T
    metrics = user_metrics(_hits(items, targets), torch.tensor([len(t) for t in targets]), [20])
    peers: dict[str, Any] = {
        "recall@20": LinkPredRecall,
        "ndcg@20": LinkPredNDCG,
        "precision@20": LinkPredPrecision,
        "mrr@20": LinkPredMRR,
    }
    for name, peer in peers.items():
        metric = peer(k=20)
        metric.update(items, pairs)
        assert metrics[name].mean().item() == pytest.approx(float(metric.compute()), abs=1e-6)


def test_exposure_counts_lists_and_ignores_their_empty_places() -> None:
    items = torch.tensor([[0, 2, -1], [2, -1, -1]])
    assert item_exposure(items, 4).tolist() == [1, 0, 2, 0]


def test_coverage_and_gini_by_hand() -> None:
    # Exposures 0, 0, 1, 2 of four items: sum of (2 i - 5) x_i = 1 * 1 + 3 * 2 = 7, over 4 * 3.
    exposure = torch.tensor([1, 0, 2, 0])
    assert item_coverage(exposure) == 0.5
    assert gini(exposure) == pytest.approx(7 / 12)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30).filter(any))
def test_gini_equals_the_mean_absolute_difference(exposure: list[int]) -> None:
    n, total = len(exposure), sum(exposure)
    differences = sum(abs(a - b) for a in exposure for b in exposure)
    assert gini(torch.tensor(exposure)) == pytest.approx(differences / (2 * n * total), abs=1e-12)


def test_gini_at_its_ends() -> None:
    assert gini(torch.tensor([7, 7, 7])) == 0.0
    assert gini(torch.tensor([0, 0, 0, 9])) == 0.75
    with pytest.raises(ValueError, match="no item is recommended"):
        gini(torch.tensor([0, 0]))


def test_list_metrics_are_named_by_cut_off() -> None:
    items = torch.tensor([[0, 1], [0, 2]])
    assert list_metrics(items, 4, [1, 2]) == {
        "coverage@1": 0.25,
        "coverage@2": 0.75,
        "gini@1": 0.75,
        "gini@2": pytest.approx(gini(torch.tensor([2, 1, 1, 0]))),
    }
