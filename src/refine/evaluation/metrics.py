"""Ranking metrics of every user at several cut-offs, from the hits of one ranking.

Notation: a user has ``n`` targets (held-out positives), ``hit_r`` is 1 where the item at rank
``r`` is one of them, and ``k`` is the cut-off.

=============  ====================================================================
recall@k       sum of hit_1..k / n
precision@k    sum of hit_1..k / k, also where fewer than k items could be ranked
ndcg@k         sum of hit_r / log2(r + 1) over r <= k, divided by the same sum of a
               ranking that puts the targets first: min(k, n) ones (binary gains,
               Järvelin and Kekäläinen, ACM TOIS 2002)
mrr@k          1 / rank of the first hit, 0 where there is none up to k
hit_rate@k     1 where there is a hit up to k, else 0
=============  ====================================================================

The recall of a user with more than k targets cannot reach 1; its NDCG can.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from refine.evaluation.names import USER_METRICS


def user_metrics(hits: Tensor, n_targets: Tensor, ks: Sequence[int]) -> dict[str, Tensor]:
    """Metrics of each user at each cut-off.

    Args:
        hits: bool [users, ranks]; whether the item at rank 1, 2, ... is a target of the user.
        n_targets: int [users]; targets of each user, at least 1.
        ks: cut-offs, none above the number of ranks.

    Returns:
        ``recall@5`` and so on, metric by metric: float64 [users], each in [0, 1].
    """
    gains = hits.double()
    ranks = torch.arange(1, hits.shape[1] + 1, device=hits.device, dtype=torch.float64)
    discounts = (ranks + 1).log2().reciprocal()
    discounted = gains * discounts
    reciprocal_ranks = gains / ranks
    n_targets = n_targets.to(hits.device)
    # Entry n is the DCG of n hits at the top. The few sums are taken on the host, one by one:
    # a floating-point cumsum is not deterministic on every device.
    ideal = [0.0]
    for discount in discounts.tolist():
        ideal.append(ideal[-1] + discount)
    ideal_gain = torch.tensor(ideal, device=hits.device, dtype=torch.float64)

    metrics: dict[str, dict[int, Tensor]] = {name: {} for name in USER_METRICS}
    for k in ks:
        found = gains[:, :k].sum(1)
        metrics["recall"][k] = found / n_targets
        metrics["ndcg"][k] = discounted[:, :k].sum(1) / ideal_gain[n_targets.clamp(max=k)]
        metrics["precision"][k] = found / k
        metrics["mrr"][k] = reciprocal_ranks[:, :k].amax(1)
        metrics["hit_rate"][k] = (found > 0).double()
    return {f"{name}@{k}": values[k] for name, values in metrics.items() for k in ks}


def item_exposure(items: Tensor, n_items: int) -> Tensor:
    """How many lists each item is in.

    Args:
        items: int64 [users, ranks]; recommended item codes, -1 where a list has ended.
        n_items: number of candidate items.

    Returns:
        int64 [n_items].
    """
    # The empty places are counted in a bin of their own: no host synchronisation to filter them.
    return torch.bincount(items.flatten() + 1, minlength=n_items + 1)[1:]


def item_coverage(exposure: Tensor) -> float:
    """Share of the candidate items that are recommended to at least one user."""
    return int((exposure > 0).sum()) / len(exposure)


def gini(exposure: Tensor) -> float:
    """Gini index of the exposure over all candidate items, those never shown included.

    0: every item is recommended equally often; (n - 1) / n: all recommendations are one item.
    With exposures x_1 <= ... <= x_n: sum of (2 i - n - 1) x_i / (n sum of x_i).

    Raises:
        ValueError: nothing is recommended, so that the index is undefined.
    """
    ascending = exposure.long().sort().values
    n = len(ascending)
    total = int(ascending.sum())
    if not total:
        raise ValueError("no item is recommended to anybody: every item of every user is masked")
    weights = 2 * torch.arange(1, n + 1, device=ascending.device) - n - 1
    return int((weights * ascending).sum()) / (n * total)


def list_metrics(items: Tensor, n_items: int, ks: Sequence[int]) -> dict[str, float]:
    """Metrics of all recommendation lists together at each cut-off: ``coverage@k``, ``gini@k``.

    Args:
        items: int64 [users, ranks]; recommended item codes, -1 where a list has ended.
        n_items: number of candidate items.
        ks: cut-offs, none above the number of ranks.
    """
    exposures = {k: item_exposure(items[:, :k], n_items) for k in ks}
    coverage = {f"coverage@{k}": item_coverage(exposures[k]) for k in ks}
    return coverage | {f"gini@{k}": gini(exposures[k]) for k in ks}
