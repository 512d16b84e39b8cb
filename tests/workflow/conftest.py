from pathlib import Path

import pytest
from pipeline import EVERYTHING, Pipeline, copy_of_code


@pytest.fixture
def fresh(tmp_path: Path) -> Pipeline:
    """A pipeline on which nothing has run."""
    return copy_of_code(tmp_path / "pipeline")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A pipeline that has made EVERYTHING without a break. Copy it before changing it."""
    pipeline = copy_of_code(tmp_path_factory.mktemp("finished") / "pipeline")
    pipeline.run(*EVERYTHING)
    return pipeline
