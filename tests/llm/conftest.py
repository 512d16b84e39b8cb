import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from server import served
from tiny_model import save_tiny_model

from refine.feedback.interpreter import engine_python
from refine.feedback.llm.engine import Engine
from refine.feedback.llm.vllm import start

ROOT = Path(__file__).resolve().parents[2]

sys.path.append(str(ROOT / "tests/workflow"))  # for its copies of the pipeline

# No test asks the network for anything.
os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_collection_modifyitems() -> None:
    if engine_python() is None:
        pytest.exit("these tests need vLLM: make llm", returncode=1)


def vllm_judge(model: Path | str, **changes: Any) -> dict[str, Any]:
    """The judge `vllm` of the configuration, small enough for a test."""
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text(encoding="utf-8"))
    small = {"kv_cache_memory_bytes": 64 << 20, "max_num_seqs": 8}
    changes["engine"] = small | changes.get("engine", {})
    return (
        config["judges"]["vllm"]
        | {"model": str(model), "revision": None, "context": 1024}
        | changes
    )


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def advised_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, with such advice on how to generate as most models come with."""
    folder = save_tiny_model(tmp_path_factory.mktemp("advised") / "tiny")
    path = folder / "generation_config.json"
    advice = {"repetition_penalty": 1.8, "temperature": 0.7, "do_sample": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | advice))
    return folder


@pytest.fixture(scope="session")
def url(advised_model: Path) -> Iterator[str]:
    """Where vLLM's server has the advised model."""
    with served(advised_model, context=4096) as url:
        yield url


@pytest.fixture(scope="session")
def engine(tiny_model: Path) -> Iterator[Engine]:
    """vLLM with the tiny model, which completes texts."""
    with start(vllm_judge(tiny_model)) as engine:
        yield engine
