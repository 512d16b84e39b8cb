"""What time and tokens cost, by the prices in a judge's settings."""

from typing import Any


def cost(
    judge: dict[str, Any],
    *,
    seconds: float | None,
    computed: float | None,
    cached: float | None,
    written: float | None,
) -> float | None:
    """In the currency of the prices; None where a price, or what it is of, is not known.

    Args:
        judge: the judge's entry in the config: of `vllm` a GPU has a price an hour, of `openai` a
            million tokens have.
        seconds: how long one engine is busy.
        computed: prompt tokens, those apart that an endpoint has computed before.
        cached: those; without a price of their own they cost as much as the others.
        written: tokens of the answers.
    """
    price = judge["price"]
    if judge["kind"] == "vllm":
        if seconds is None or price["hour"] is None:
            return None
        return float(seconds / 3600 * judge["tensor_parallel_size"] * price["hour"])
    if computed is None or cached is None or written is None:
        return None
    if price["prompt"] is None or price["answer"] is None:
        return None
    price_cached = price["prompt"] if price["cached"] is None else price["cached"]
    millionths = computed * price["prompt"] + cached * price_cached + written * price["answer"]
    return float(millionths / 1e6)
