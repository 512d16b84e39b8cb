"""Files of tensors with JSON metadata (safetensors): nothing is pickled."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from refine.artifacts import ArtifactError, replacing

_METADATA_KEY = "refine"  # a single key: the format does not fix the order of several


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Writes tensors and JSON metadata as safetensors, whole or not at all."""
    text = json.dumps(metadata, allow_nan=False, sort_keys=True)
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(held, temporary, metadata={_METADATA_KEY: text})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what ``write_tensors`` wrote: tensors on the CPU, and the metadata.

    Raises:
        ArtifactError: the file is no safetensors, or not one of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = (file.metadata() or {}).get(_METADATA_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path}: cannot be read as safetensors: {error}") from error
    if metadata is None:
        raise ArtifactError(f"{path}: lacks this pipeline's metadata")
    return tensors, json.loads(metadata)
