"""Whether a judge can run here. Standard library only, as it is asked before any job starts."""

from typing import Any

from refine.feedback.interpreter import engine_python
from refine.feedback.registry import JUDGES

_LABELLERS = ("release", "threshold")

_NO_LLM = (
    "judges that run anywhere: `--config judge=profile` (genres and popularity, no LLM) or "
    "`--config judge=threshold` (every rating of 3 counts as positive)"
)


def unavailable(
    judge: dict[str, Any], dataset: dict[str, Any], *, deployed: bool = False
) -> str | None:
    """Says why a judge cannot run here, and which commands would help; None if it can.

    Args:
        judge: the judge's entry in the config. Where it copies another (``like``), ask about that
            one too.
        dataset: the dataset's entry in the config; ``release`` is where its published labels are.
        deployed: whether each job brings its software, as Snakemake does it with conda.
    """
    kind = judge["kind"]
    if kind == "release" and not dataset.get("release"):
        return f"no labels are published for this dataset (its config has no `release`); {_NO_LLM}"
    if kind == "vllm" and not deployed and engine_python() is None:
        return (
            f"vLLM is not installed. With `--sdm conda` Snakemake installs it (envs/llm.yaml); on "
            f"a machine without a GPU `make llm` does; docs/llm.md has more. Also {_NO_LLM}"
        )
    if kind == "openai" and not judge["model"]:
        return (
            f"its `model` is not set: name it as the endpoint at {judge['url']} does, see "
            f"docs/llm.md. Also {_NO_LLM}"
        )
    if kind in JUDGES or kind in _LABELLERS:
        return None
    return f"`{kind}` is no kind of judge; there are {', '.join((*JUDGES, *_LABELLERS))}"
