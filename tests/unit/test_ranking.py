"""The ranking pass against a slow oracle that sorts Python tuples."""

import time
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from refine.data import Pairs
from refine.evaluation import ranking
from refine.evaluation.ranking import RankingEvaluator
from refine.topk import NO_ITEM, RankingError, top_k

# Few distinct scores, so that ties are the rule; both zeros, which are equal.
SCORES = st.sampled_from([-float("inf"), -1.0, -0.0, 0.0, 1e-30, 1.0, 2.0])


def slow_top_k(row: list[float], k: int) -> list[int]:
    rankable = [(-score, item) for item, score in enumerate(row) if score != -float("inf")]
    items = [item for _, item in sorted(rankable)][:k]
    return items + [NO_ITEM] * (k - len(items))


@st.composite
def matrices(draw: st.DrawFn) -> list[list[float]]:
    n_items = draw(st.integers(1, 12))
    row = st.lists(SCORES, min_size=n_items, max_size=n_items)
    return draw(st.lists(row, min_size=1, max_size=6))


@given(matrices(), st.integers(1, 14), st.sampled_from([torch.float32, torch.float64]))
def test_top_k_follows_the_tie_rule(matrix: list[list[float]], k: int, dtype: torch.dtype) -> None:
    values, items = top_k(torch.tensor(matrix, dtype=dtype), k)
    expected = [slow_top_k(row, k) for row in torch.tensor(matrix, dtype=dtype).tolist()]
    assert items.tolist() == expected
    for row, scores, chosen in zip(matrix, values.tolist(), items.tolist(), strict=True):
        for score, item in zip(scores, chosen, strict=True):
            assert score == (-float("inf") if item == NO_ITEM else pytest.approx(row[item]))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_top_k_of_many_tied_scores(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    generator = torch.Generator().manual_seed(3)
    # 3,000 items with 40 distinct scores: nearly every row is cut in the middle of a tie.
    scores = torch.randint(0, 40, (50, 3000), generator=generator).float()
    _, items = top_k(scores.to(device), 20)
    assert items.tolist() == [slow_top_k(row, 20) for row in scores.tolist()]


def test_top_k_refuses_scores_that_are_not_numbers() -> None:
    with pytest.raises(RankingError, match="diverged"):
        top_k(torch.tensor([[0.0, float("nan"), 1.0]]), 2)


def _pairs(pairs: set[tuple[int, int]]) -> Pairs:
    users, items = zip(*pairs, strict=True) if pairs else ((), ())
    return Pairs(torch.tensor(users, dtype=torch.int32), torch.tensor(items, dtype=torch.int32))


def _lookup(scores: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda users: scores[users]


@st.composite
def worlds(
    draw: st.DrawFn,
) -> tuple[list[list[float]], set[tuple[int, int]], set[tuple[int, int]]]:
    """Scores, masked pairs and (disjoint) targets of up to 6 users and 8 items."""
    n_users, n_items = draw(st.integers(1, 6)), draw(st.integers(1, 8))
    finite = st.sampled_from([-1.0, 0.0, 0.5, 2.0])
    scores = draw(
        st.lists(
            st.lists(finite, min_size=n_items, max_size=n_items), min_size=n_users, max_size=n_users
        )
    )
    cells = [(user, item) for user in range(n_users) for item in range(n_items)]
    kinds = draw(
        st.lists(st.sampled_from("mt--"), min_size=len(cells), max_size=len(cells)).filter(
            lambda kinds: "t" in kinds
        )
    )
    masked = {cell for cell, kind in zip(cells, kinds, strict=True) if kind == "m"}
    targets = {cell for cell, kind in zip(cells, kinds, strict=True) if kind == "t"}
    return scores, masked, targets


@given(worlds(), st.booleans())
def test_evaluator_equals_a_slow_oracle(
    world: tuple[list[list[float]], set[tuple[int, int]], set[tuple[int, int]]], all_users: bool
) -> None:
    scores, masked, targets = world
    n_users, n_items = len(scores), len(scores[0])
    ks = [1, 3, 10]
    evaluator = RankingEvaluator(
        mask=_pairs(masked),
        targets=_pairs(targets),
        n_users=n_users,
        n_items=n_items,
        ks=ks,
        all_users=all_users,
    )
    result = evaluator(_lookup(torch.tensor(scores)))

    with_target = sorted({user for user, _ in targets})
    assert result.users.tolist() == (list(range(n_users)) if all_users else with_target)
    assert result.scored_users.tolist() == with_target
    lists = {}
    for user in result.users.tolist():
        row = [
            -float("inf") if (user, item) in masked else score
            for item, score in enumerate(scores[user])
        ]
        lists[user] = slow_top_k(row, max(ks))
    assert result.items.tolist() == list(lists.values())

    means = result.means()
    for k in ks:
        recalls = []
        for user in with_target:
            wanted = {item for other, item in targets if other == user}
            recalls.append(len(wanted & set(lists[user][:k])) / len(wanted))
        assert means[f"recall@{k}"] == pytest.approx(sum(recalls) / len(recalls), abs=1e-12)
        shown = {item for items in lists.values() for item in items[:k]} - {NO_ITEM}
        if shown:
            assert result.metrics()[f"coverage@{k}"] == len(shown) / n_items


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(37, 50, generator=generator)
    cells = torch.randperm(37 * 50, generator=generator)
    mask, targets = cells[:600], cells[600:800]

    def rank(block_cells: int) -> ranking.Ranking:
        monkeypatch.setitem(ranking._BLOCK_CELLS, "cpu", block_cells)
        return RankingEvaluator(
            mask=Pairs(mask // 50, mask % 50),
            targets=Pairs(targets // 50, targets % 50),
            n_users=37,
            n_items=50,
            ks=[5, 10],
            all_users=True,
        )(_lookup(scores))

    whole = rank(2**20)
    for block_cells in (1, 50, 50 * 7, 50 * 37):
        blocks = rank(block_cells)
        assert torch.equal(blocks.items, whole.items)
        assert blocks.metrics() == whole.metrics()


def test_the_scores_that_a_model_keeps_are_not_masked() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0]])
    evaluator = RankingEvaluator(
        mask=_pairs({(0, 0)}), targets=_pairs({(0, 1)}), n_users=1, n_items=3, ks=[1]
    )
    assert evaluator(lambda users: scores.expand(len(users), -1)).items.tolist() == [[1]]
    assert scores.tolist() == [[3.0, 2.0, 1.0]]


def test_fewer_rankable_items_than_k_never_recommend_a_masked_one() -> None:
    evaluator = RankingEvaluator(
        mask=_pairs({(0, 0), (0, 2)}), targets=_pairs({(0, 3)}), n_users=1, n_items=4, ks=[4]
    )
    result = evaluator(_lookup(torch.tensor([[9.0, 1.0, 9.0, 2.0]])))
    assert result.items.tolist() == [[3, 1, NO_ITEM, NO_ITEM]]
    assert result.means()["precision@4"] == 0.25


def test_an_empty_place_is_not_the_last_item_of_the_user_before() -> None:
    # User 1 has no rankable item; user 0's last item is a target, which is "one before" user 1's
    # first cell.
    evaluator = RankingEvaluator(
        mask=_pairs({(1, 0)}), targets=_pairs({(0, 1), (1, 1)}), n_users=2, n_items=2, ks=[2]
    )
    scores = torch.tensor([[0.0, 1.0], [1.0, -float("inf")]])
    assert evaluator(_lookup(scores)).user_metrics["recall@2"].tolist() == [1.0, 0.0]


def test_longer_lists_than_the_largest_cut_off() -> None:
    evaluator = RankingEvaluator(
        mask=_pairs(set()), targets=_pairs({(0, 0)}), n_users=1, n_items=4, ks=[1], list_length=3
    )
    result = evaluator(_lookup(torch.tensor([[1.0, 4.0, 3.0, 2.0]])))
    assert result.items.tolist() == [[1, 2, 3]]
    assert result.means()["recall@1"] == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": _pairs(set())}, "no user has a held-out positive"),
        ({"targets": _pairs({(0, 9)})}, "item codes must be 0..3"),
        ({"mask": _pairs({(-1, 0)})}, "user codes must be 0..1"),
        ({"mask": _pairs({(0, 1)})}, "1 held-out pairs are masked.*user 0, item 1"),
        ({"ks": []}, "cut-offs"),
        ({"ks": [0, 5]}, "cut-offs"),
    ],
)
def test_unusable_input_is_refused(change: dict[str, object], message: str) -> None:
    settings: dict[str, object] = {
        "mask": _pairs({(0, 0)}),
        "targets": _pairs({(0, 1)}),
        "n_users": 2,
        "n_items": 4,
        "ks": [2],
    }
    with pytest.raises(RankingError, match=message):
        RankingEvaluator(**(settings | change))  # type: ignore[arg-type]


def test_scores_of_the_wrong_shape_are_refused() -> None:
    evaluator = RankingEvaluator(
        mask=_pairs(set()), targets=_pairs({(0, 1)}), n_users=2, n_items=4, ks=[2]
    )
    with pytest.raises(RankingError, match=r"\[1, 4\]"):
        evaluator(lambda users: torch.zeros(len(users), 3))


def test_a_pass_over_ml_100k_is_fast() -> None:
    """About 8 ms on 2 quiet cores; the bound only catches a Python loop over the users."""
    generator = torch.Generator().manual_seed(0)
    cells = torch.randperm(938 * 1008, generator=generator)[:85_000]
    mask, targets = cells[:80_000], cells[80_000:]
    evaluator = RankingEvaluator(
        mask=Pairs(mask // 1008, mask % 1008),
        targets=Pairs(targets // 1008, targets % 1008),
        n_users=938,
        n_items=1008,
        ks=[20],
    )
    scores = torch.randn(938, 1008, generator=generator)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        evaluator(_lookup(scores)).means()
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.2
