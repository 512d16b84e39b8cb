import importlib.util
from pathlib import Path

import torch

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks/training.py"


def test_the_benchmark_times_two_ways_to_the_same_gradient() -> None:
    spec = importlib.util.spec_from_file_location("training_benchmark", BENCHMARK)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    ratings = benchmark.generate_ratings(0, users=60, items=50)
    data = benchmark.training_data(ratings, torch.device("cpu"))
    assert len(data.positives.users) + len(data.confirmed.users) == len(ratings)
    result = benchmark.measure(data, rounds=1, reference_steps=1, seed=0)
    assert result["gradient_difference"] < 1e-4
    assert result["speedup_step"] > 0
    assert 0 < result["propagation_ms"] < result["step_ms"]
