"""Which Python runs vLLM. Standard library only, as it is asked before any job starts.

vLLM pins PyTorch and many other packages exactly, so that it lives in an environment of its own.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

VARIABLE = "REFINE_LLM_PYTHON"
"""The environment variable that names the interpreter, in place of the search."""

_MADE_BY_MAKE = Path(__file__).resolve().parents[3] / ".venv-llm/bin/python"


def engine_python() -> str | None:
    """The interpreter that has vLLM; None where there is none.

    It is the one that REFINE_LLM_PYTHON names, else this one if vLLM is installed beside it (as in
    the conda environment of LLM judges), else the one that `make llm` has set up.
    """
    if named := os.environ.get(VARIABLE):
        return named
    if find_spec("vllm"):
        return sys.executable
    return str(_MADE_BY_MAKE) if _MADE_BY_MAKE.exists() else None
