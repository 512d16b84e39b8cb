from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refine.artifacts import SIMILAR_ITEMS, ArtifactError, read_table, write_table
from refine.mining import mine_similar_items, read_similar_items, write_similar_items


def brute_force(embeddings: np.ndarray, k: int, similarity: str) -> list[list[int]]:
    if similarity == "cosine":
        embeddings = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1), 1e-12)[:, None]
    products = embeddings @ embeddings.T
    return [
        sorted((j for j in range(len(row)) if j != i), key=lambda j: (-row[j], j))[:k]
        for i, row in enumerate(products)
    ]


@given(
    # Small whole numbers: products are exact and full of ties.
    vectors=st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=2, max_size=12),
    k=st.integers(1, 5),
    block_cells=st.sampled_from([1, 20, 10**6]),
)
def test_the_most_similar_items_in_blocks_are_those_of_brute_force(
    vectors: list[tuple[int, int]], k: int, block_cells: int
) -> None:
    embeddings = np.array(vectors, dtype=np.float64)
    similar, similarities = mine_similar_items(torch.tensor(embeddings), k, block_cells=block_cells)
    assert similar.tolist() == brute_force(embeddings, k, "inner_product")
    products = embeddings @ embeddings.T
    np.testing.assert_array_equal(
        similarities.numpy(), np.take_along_axis(products, similar.numpy(), axis=1)
    )


def test_cosine_ignores_lengths() -> None:
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(30, 8)) * rng.uniform(0.1, 10, (30, 1))
    similar, similarities = mine_similar_items(torch.tensor(embeddings), 6, "cosine")
    assert similar.tolist() == brute_force(embeddings, 6, "cosine")
    assert similar.tolist() != brute_force(embeddings, 6, "inner_product")
    assert float(similarities.max()) <= 1 + 1e-12


def test_no_gradient_is_kept() -> None:
    embeddings = torch.rand(5, 3, requires_grad=True)
    assert not mine_similar_items(embeddings, 2)[1].requires_grad


def test_an_unknown_similarity_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mining.similarity .* 'euclid'"):
        mine_similar_items(torch.rand(5, 3), 2, "euclid")


def test_the_table_gives_back_what_was_mined(tmp_path: Path) -> None:
    similar, similarities = mine_similar_items(torch.rand(9, 4), 3)
    path = tmp_path / "similar_items.parquet"
    write_similar_items(similar, similarities, path)
    table = read_table(path, SIMILAR_ITEMS)
    assert len(table) == 27
    assert table.slice(3, 3).to_pydict()["item"] == [1, 1, 1]
    assert table.slice(3, 3).to_pydict()["rank"] == [1, 2, 3]
    assert torch.equal(read_similar_items(path, 9), similar)

    shuffled = table.take(np.random.default_rng(0).permutation(27))
    write_table(shuffled, path, SIMILAR_ITEMS)
    assert torch.equal(read_similar_items(path, 9), similar)


@pytest.mark.parametrize(
    ("column", "row", "value"), [("item", 0, 1), ("rank", 4, 3), ("similar_item", 2, 9)]
)
def test_a_broken_table_is_refused(tmp_path: Path, column: str, row: int, value: int) -> None:
    path = tmp_path / "similar_items.parquet"
    write_similar_items(*mine_similar_items(torch.rand(9, 4), 3), path)
    columns = read_table(path).to_pydict()
    columns[column][row] = value
    write_table(pa.table(columns), path, SIMILAR_ITEMS)
    with pytest.raises(ArtifactError, match=str(path)):
        read_similar_items(path, 9)


def test_a_table_of_other_items_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "similar_items.parquet"
    write_similar_items(*mine_similar_items(torch.rand(9, 4), 3), path)
    with pytest.raises(ArtifactError, match=r"each item 0\.\.9"):
        read_similar_items(path, 10)
