import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from training_data import data_of, random_labels

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks/training.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("training_benchmark", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_benchmark_times_two_ways_to_the_same_gradient(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "COPIED", 2**16)
    monkeypatch.setattr(benchmark, "MATRIX", 64)
    ratings = benchmark.generate_ratings(0, users=60, items=50, ratings=800)
    assert len(ratings) == pytest.approx(800, rel=0.15)
    data = benchmark.training_data(ratings, torch.device("cpu"))
    assert len(data.positives.users) + len(data.confirmed.users) == len(ratings)
    result = benchmark.measure(data, rounds=1, operator="rows", seed=0)
    assert result["gradient_difference"] < 1e-4
    assert result["speedup_step"] > 0
    assert result["speedup_epoch"] > 0
    assert 0 < result["products_ms"] < result["step_ms"]
    assert result["share_propagation"] == pytest.approx(1 / result["step_of_products"])
    assert result["peak_memory_bytes"] > 2**20
    named = {"dataset": "tiny", "machine": "this", "torch": "2"}
    assert f"| ours, whole | {result['step_ms']:.2f} | 1.00 |" in benchmark.table(result | named)


def test_every_candidate_propagates_the_same(benchmark: ModuleType) -> None:
    data = data_of(random_labels(0, 90, 30))  # with rows of more entries than a chunk
    graphs = {
        name: cls(data.positives, data.n_users, data.n_items)
        for name, cls in benchmark.OPERATORS.items()
    }
    assert int(graphs["rows"].row_starts.diff().max()) > benchmark.ChunkedGraph.CHUNK
    x, ones = torch.rand(120, 3), [1.0] * 5
    expected = graphs["rows"].evaluate(x, ones)
    for name, graph in graphs.items():
        torch.testing.assert_close(graph.evaluate(x, ones), expected, msg=name)


def test_the_work_of_a_step_is_counted(benchmark: ModuleType) -> None:
    data = data_of(random_labels(0, 9, 7))
    work = benchmark.work(data)
    entries, nodes = 2 * len(data.positives.users), 16
    assert work["row_bytes"] == 8 * entries * 64 * 4
    assert work["operations"] == 16 * entries * 64 + 12 * nodes * 64 + 10 * 1024 * 64
