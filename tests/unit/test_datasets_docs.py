"""The bring-your-own example of docs/datasets.md works as it stands there."""

import re
from pathlib import Path

import polars as pl
import pytest
import yaml
from dataset_files import READING

from refine.config import extended
from refine.datasets.readers import read
from refine.datasets.sources import fetch

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/datasets.md").read_text(encoding="utf-8")


@pytest.fixture
def example(tmp_path):
    """The example's files, and its configuration with their real place."""
    for name, content in re.findall(r"```csv file=(\S+)\n(.*?)```", TEXT, re.DOTALL):
        (tmp_path / name).write_text(content, encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 1
    return yaml.safe_load(blocks[0].replace("/data/books", str(tmp_path)))


def test_bring_your_own_example(tmp_path, example):
    entry = example["datasets"]["books"]
    out = tmp_path / "out"
    fetch("books", entry["sources"], out, None)
    read(
        out / "source.json",
        out / "interactions.parquet",
        out / "items.parquet",
        out / "reading.json",
        reading=READING | entry["reading"],
        digest=None,
    )
    assert pl.read_parquet(out / "interactions.parquet").rows() == [
        ("ann", "0002005018", 5, 1614816000),
        ("bob", "0374157065", 2, 1614902400),
    ]
    assert pl.read_parquet(out / "items.parquet").rows() == [
        ("0002005018", "Clara Callan", 2001, ["fiction", "historical"]),
        ("0374157065", "Flu", 1999, ["science", "history"]),
    ]


def test_the_example_fits_the_schema(example):
    jsonschema = pytest.importorskip("jsonschema")
    load = lambda name: yaml.safe_load((ROOT / "config" / name).read_text("utf-8"))  # noqa: E731
    config = load("config.yaml")
    config["datasets"] |= example["datasets"]
    jsonschema.validate(extended(config), load("schema.yaml"))


def test_what_the_page_says_of_the_registry():
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text(encoding="utf-8"))
    for name, entry in config["datasets"].items():
        row = next(line for line in TEXT.splitlines() if line.startswith(f"| `{name}` |"))
        if "published" in entry:
            assert f"{entry['published']['statistics']['ratings']:,}" in row
