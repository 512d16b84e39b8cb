import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How busy the machine is must not decide whether a test passes.
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


@pytest.fixture(scope="session")
def mirror() -> Path:
    """The folder with real raw files, as the setting of the same name describes it."""
    folder = os.environ.get("REFINE_MIRROR")
    if not folder:
        pytest.skip(
            "needs real ratings: set REFINE_MIRROR to a folder with them (docs/datasets.md)"
        )
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"REFINE_MIRROR={folder} is no folder")
    return path
