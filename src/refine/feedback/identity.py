"""What of a judge's settings its answers, and its prompts, depend on. Standard library only.

The rest, such as how many GPUs share the work, may change without anything being asked again.
"""

from typing import Any

from refine.feedback.registry import ENGINES

ASKING = 1
"""The version of how models are asked: to be raised where prompts are put to them in another way,
or answers held to another form, so that what was answered before is asked again.
"""

_NO_MATTER = frozenset(
    {
        "concurrency",
        # How long a prompt may be decides what is in it: that much is seen in the prompt.
        "context",
        "key",
        "memory_share",
        "price",
        "retries",
        "speed",
        "tensor_parallel_size",
        "timeout",
        "url",
    }
)

_NO_MATTER_TO_VLLM = frozenset(
    {
        "async_scheduling",
        "block_size",
        "compilation_config",
        "cpu_offload_gb",
        "data_parallel_size",
        "disable_custom_all_reduce",
        "disable_log_stats",
        "distributed_executor_backend",
        "download_dir",
        "enable_chunked_prefill",
        "enable_prefix_caching",
        "enforce_eager",
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "max_model_len",
        "max_num_batched_tokens",
        "max_num_seqs",
        "max_parallel_loading_workers",
        "num_gpu_blocks_override",
        "pipeline_parallel_size",
        "swap_space",
        "tensor_parallel_size",
    }
)
"""Arguments of the engine that change how fast it is and how much memory it takes.

In half precision they may tip a choice between two all but equal tokens, as a batch of another size
does too; that is no reason to ask everything again.
"""


def identity(judge: dict[str, Any]) -> dict[str, Any]:
    """The settings on which a judge's answers depend: all that matter of an LLM's, else all.

    With an LLM's goes the version of how it is asked. How others judge is in their code.

    Args:
        judge: the judge's entry in the config.
    """
    if judge["kind"] not in ENGINES:
        return dict(judge)
    matter = {name: value for name, value in judge.items() if name not in _NO_MATTER}
    if "engine" in matter:
        matter["engine"] = {
            name: value
            for name, value in matter["engine"].items()
            if name not in _NO_MATTER_TO_VLLM
        }
    return matter | {"asking": ASKING}


def prompt_settings(judge: dict[str, Any]) -> dict[str, Any]:
    """What the wording and the length of the prompts depend on; nothing but for LLMs.

    Args:
        judge: the judge's entry in the config.

    Returns:
        kind, form, strategy, context, chat, and which tokenizer counts: its model (None where there
        is none) and the revision of that.
    """
    kind = judge["kind"]
    if kind not in ENGINES:
        return {}
    shared = {name: judge[name] for name in ("kind", "form", "strategy", "context", "chat")}
    if kind == "vllm":
        return shared | {"tokenizer": judge["model"], "revision": judge["revision"]}
    # An endpoint's revision is any text, no revision of the tokenizer's repository.
    return shared | {"tokenizer": judge["tokenizer"], "revision": None}
