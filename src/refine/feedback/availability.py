"""Whether a judge can run here. Standard library only, as it is asked before any job starts."""

from typing import Any

from refine.feedback.registry import JUDGES

_LABELLERS = ("release", "threshold")
_NOT_INSTALLED = ("vllm", "openai")

_REMEDY = (
    "judges that run anywhere: `--config judge=profile` (genres and popularity, no LLM) or "
    "`--config judge=threshold` (every rating of 3 counts as positive)"
)


def unavailable(judge: dict[str, Any], dataset: dict[str, Any]) -> str | None:
    """Says why a judge cannot run here, and which commands would help; None if it can.

    Args:
        judge: the judge's entry in the config, of which ``kind`` is read. Where it copies another
            (``like``), ask about that one too.
        dataset: the dataset's entry in the config; ``release`` is where its published labels are.
    """
    kind = judge["kind"]
    if kind in JUDGES or kind == "threshold":
        return None
    if kind == "release":
        if dataset.get("release"):
            return None
        return f"no labels are published for this dataset (its config has no `release`); {_REMEDY}"
    if kind in _NOT_INSTALLED:
        return f"this version has no LLM engine, so `{kind}` cannot answer; {_REMEDY}"
    known = ", ".join((*JUDGES, *_LABELLERS, *_NOT_INSTALLED))
    return f"`{kind}` is no kind of judge; there are {known}"
