"""What a number was computed with: the device and the versions of what computes there."""

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

_PACKAGES = ("refine-pipeline", "torch", "numpy", "pyarrow", "safetensors")


def environment(device: torch.device) -> dict[str, Any]:
    """Kind and name of the device, and the versions of Python and of the packages installed."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {"device": device.type, "device_name": name, "versions": versions}
