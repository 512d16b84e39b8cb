"""The best columns of each row, with ties decided."""

import torch
from torch import Tensor

NO_ITEM = -1
"""Item code of the places of a list that no rankable item is left for."""


class RankingError(ValueError):
    """Scores, masks or targets that no ranking can be made of."""


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best items of each row: the higher score first, then the lower item code.

    The rule also decides which of several tied items make the cut, which ``torch.topk`` leaves
    open. A score of minus infinity marks an item that must not be ranked.

    Args:
        scores: floating point [rows, items].
        k: length of the lists.

    Returns:
        Scores [rows, k] and item codes, int64 [rows, k]; where a row has fewer than k rankable
        items, the rest holds minus infinity and ``NO_ITEM``.

    Raises:
        RankingError: a score is not a number.
    """
    n_items = scores.shape[1]
    # One place more than asked for shows whether the cut goes through a tie.
    values, items = scores.topk(min(k + 1, n_items), dim=1)
    if values.shape[1] and bool(values[:, 0].isnan().any()):  # topk ranks NaN first
        raise RankingError("a score is not a number; has the training diverged?")
    if n_items > k:
        cut = values[:, k - 1]
        tied = ((cut == values[:, k]) & (cut > -torch.inf)).nonzero().squeeze(1)
        if len(tied):
            whole = _sort_descending(scores[tied])
            items[tied] = whole[:, : k + 1]
            values[tied] = scores[tied].gather(1, whole[:, : k + 1])
        values, items = values[:, :k], items[:, :k]
    # Order the ties inside the list: by item, then stably by score.
    items, order = items.sort(dim=1)
    values = values.gather(1, order)
    order = _sort_descending(values)
    items, values = items.gather(1, order), values.gather(1, order)
    items = items.masked_fill(values == -torch.inf, NO_ITEM)
    if n_items < k:
        pad = (0, k - n_items)
        values = torch.nn.functional.pad(values, pad, value=-torch.inf)
        items = torch.nn.functional.pad(items, pad, value=NO_ITEM)
    return values, items


def _sort_descending(values: Tensor) -> Tensor:
    """Stable argsort of each row; adding 0 makes -0.0 the 0.0 that it equals."""
    return (values + 0.0).sort(dim=1, descending=True, stable=True).indices
