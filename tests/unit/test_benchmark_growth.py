import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from refine.artifacts import read_json, read_table

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks/growth.py"
RATINGS, BATCH = 6000, 300


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("growth_benchmark", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def small(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """So small that each user would have two ratings, were the shape that of the Netflix Prize.

    Stages run in this process, so that PyTorch is imported once.
    """

    def here(*arguments: str) -> str:
        options = dict(zip(arguments[::2], arguments[1::2], strict=True))
        folder = Path(options["--folder"])
        if "--generate" in options:
            benchmark.generate(folder, int(options["--generate"]))
            return ""
        return json.dumps(benchmark.run_stage(options["--stage"], folder, threads=1))

    monkeypatch.syspath_prepend(BENCHMARK.parent)  # as when it is run
    monkeypatch.setattr(benchmark, "shape", lambda _: (500, 500))
    monkeypatch.setattr(benchmark, "_start", here)
    return benchmark


def test_the_shape_is_that_of_the_netflix_prize(benchmark: ModuleType) -> None:
    assert benchmark.shape(100_480_507) == (480_189, 17_770)
    assert benchmark.shape(1_004_805) == (48_019, 1777)
    assert benchmark.SIZES == (1_004_805, 10_048_050, 100_480_507)


def test_every_stage_is_measured(small: ModuleType, tmp_path: Path) -> None:
    output = tmp_path / "growth.json"
    result = small.run([RATINGS], [BATCH], tmp_path, threads=1, output=output)
    assert read_json(output) == result
    assert [path.name for path in tmp_path.iterdir()] == [output.name]  # the rest is removed
    (size,) = result["sizes"]
    assert list(size["stages"]) == list(small.STAGES)
    for taken in size["stages"].values():
        assert taken["seconds"] > 0
        assert taken["cpu_seconds"] > 0
        assert 0.01 < taken["peak_gib"] < 16
    assert size["ratings"] == RATINGS
    assert size["split"]["ratings"] + size["split"]["ratings_outside_core"] == RATINGS
    assert 0 < size["metrics"]["recall@20"] < 1


def test_the_table_compares_sizes(benchmark: ModuleType) -> None:
    def size(ratings: int, seconds: float) -> dict[str, object]:
        taken = {"seconds": seconds, "cpu_seconds": seconds / 2, "peak_gib": 0.5}
        stages = {"fetch_ratings": taken, "train": taken}
        return {
            "ratings": ratings,
            "users": 9,
            "items": 8,
            "batch_size": ratings // 16,
            "stages": stages,
        }

    # The second size has not come to its other stages yet.
    table = benchmark.table({"sizes": [size(10**7, 24.0), size(10**6, 2.0)]})
    assert table.splitlines()[2:6] == [
        "| `fetch_ratings` | 1,000,000 | 2.0 | 1.0 | 0.50 | 1.00 | |",
        "| | 10,000,000 | 24.0 | 12.0 | 0.50 | 1.20 | 12.0 |",
        "| `train` | 1,000,000 | 2.0 | 1.0 | 0.50 | 1.00 | |",
        "| | 10,000,000 | 24.0 | 12.0 | 0.50 | 1.20 | 12.0 |",
    ]
    assert "10,000,000 ratings, 9 users, 8 items; batches of 625,000." in table


def test_the_same_seed_generates_the_same_ratings(small: ModuleType, tmp_path: Path) -> None:
    contents = []
    for name in ("one", "other"):
        folder = tmp_path / name
        (folder / "raw").mkdir(parents=True)
        small.generate(folder, RATINGS)
        small.fetch_ratings(folder, {})
        small.read_ratings(folder, small.settings(BATCH))
        contents.append((folder / "raw/training_set.tar").read_bytes())
        assert len(read_table(folder / "interactions.parquet")) == RATINGS
    assert contents[0] == contents[1]
