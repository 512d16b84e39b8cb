"""Mines the items that are most similar to each item, in blocks of items."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.nn import functional as F

from refine.artifacts import SIMILAR_ITEMS, ArtifactError, read_table, write_table
from refine.columns import to_column, to_tensor
from refine.topk import top_k

BLOCK_CELLS = 2**22
"""Similarities held at once; items x items are never laid out whole."""


@torch.no_grad()
def mine_similar_items(
    embeddings: Tensor, k: int, similarity: str = "inner_product", block_cells: int = BLOCK_CELLS
) -> tuple[Tensor, Tensor]:
    """Finds the k items that are most similar to each item (ReFINe, WWW Companion 2025).

    Args:
        embeddings: of the items, after propagation; floating point [items, d].
        k: similar items wanted; fewer where there are not as many others.
        similarity: ``inner_product`` (as released) or ``cosine``.
        block_cells: similarities held at once; one item is the smallest block.

    Returns:
        The similar items, most similar first (of equal ones the lower code), the item itself left
        out: int64 [items, k]; and their similarities, floating point [items, k].

    Raises:
        ValueError: ``similarity`` is neither of the two.
    """
    if similarity == "cosine":
        embeddings = F.normalize(embeddings, dim=1)
    elif similarity != "inner_product":
        raise ValueError(f"mining.similarity must be inner_product or cosine, not {similarity!r}")
    n_items = len(embeddings)
    k = min(k, n_items - 1)
    similar, similarities = [], []
    codes = torch.arange(n_items, device=embeddings.device)
    for block in torch.split(codes, max(1, block_cells // n_items)):
        products = embeddings[block] @ embeddings.T
        products.scatter_(1, block[:, None], -torch.inf)
        values, items = top_k(products, k)
        similar.append(items)
        similarities.append(values)
    return torch.cat(similar), torch.cat(similarities)


def write_similar_items(similar: Tensor, similarities: Tensor, path: Path) -> None:
    """Writes the SIMILAR_ITEMS table, one row an item and rank."""
    n_items, k = similar.shape
    table = pa.table(
        {
            "item": to_column(torch.arange(n_items).repeat_interleave(k)),
            "rank": to_column(torch.arange(1, k + 1).repeat(n_items)),
            "similar_item": to_column(similar.flatten()),
            "similarity": to_column(similarities.flatten().float()),
        }
    )
    write_table(table, path, SIMILAR_ITEMS)


def read_similar_items(path: Path, n_items: int) -> Tensor:
    """Reads a SIMILAR_ITEMS table.

    Args:
        path: the table; its rows may be in any order.
        n_items: number of items.

    Returns:
        The similar items of each item, most similar first; int64 [items, ranks].

    Raises:
        ArtifactError: items or ranks are missing or occur twice, or a code is out of range.
    """
    table = read_table(path, SIMILAR_ITEMS)
    order = pc.sort_indices(table, [("item", "ascending"), ("rank", "ascending")])
    items, ranks, similar = (
        to_tensor(table.column(name).take(order)).long()
        for name in ("item", "rank", "similar_item")
    )
    k = len(items) // n_items
    expected_items = torch.arange(n_items).repeat_interleave(k)
    expected_ranks = torch.arange(1, k + 1).repeat(n_items)
    if not (torch.equal(items, expected_items) and torch.equal(ranks, expected_ranks)):
        raise ArtifactError(
            f"{path}: must hold each item 0..{n_items - 1} with the same ranks 1, 2, ..."
        )
    if len(similar) and (int(similar.min()) < 0 or int(similar.max()) >= n_items):
        raise ArtifactError(f"{path}: column similar_item must hold codes 0..{n_items - 1}")
    return similar.view(n_items, k)
