"""What docs/adding-a-model.md quotes is what stands in the project."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/adding-a-model.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(?:python|yaml)[^\n]*\n(.*?)```", TEXT, re.DOTALL)
QUOTED = (
    "src/refine/models/popularity.py",
    "src/refine/models/catalogue.py",
    "config/schema.yaml",
    "config/config.yaml",
    "src/refine/models/item_knn.py",
)


@pytest.mark.parametrize(("file", "block"), [*zip(QUOTED, BLOCKS, strict=True)])
def test_what_is_quoted_is_there(file: str, block: str) -> None:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    missing = [line for line in block.splitlines() if line not in lines]
    assert missing == []


def test_the_shortest_model_is_shown_whole() -> None:
    assert BLOCKS[0] == (ROOT / QUOTED[0]).read_text(encoding="utf-8")


def test_the_files_that_it_names_are_there() -> None:
    for name in re.findall(r"`((?:src|tests|config)/[\w/]+\.\w+)`", TEXT):
        assert (ROOT / name).is_file(), name
    for name in re.findall(r"`(models/\w+\.py|graph\.py)`", TEXT):
        assert (ROOT / "src/refine" / name).is_file(), name
