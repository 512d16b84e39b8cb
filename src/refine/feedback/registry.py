"""The judges that answer prompts, by kind, and what runs a language model. Standard library only.

They are named here, not imported, and loaded when they are asked: an edit to one judge then does
not make the answers of another look outdated. What depends on a judge's code has to digest
`judge_modules` beside the code that it imports.
"""

JUDGES = {
    "all": "refine.feedback.controls:pick_all",
    "random": "refine.feedback.controls:pick_random",
    "popularity": "refine.feedback.controls:pick_popular",
    "profile": "refine.feedback.profile:judge_by_profile",
    "vllm": "refine.feedback.llm.judge:judge_by_llm",
    "openai": "refine.feedback.llm.judge:judge_by_llm",
}
"""Module and function of each kind."""

ENGINES = {
    "vllm": "refine.feedback.llm.vllm:start",
    "openai": "refine.feedback.llm.endpoint:connect",
}
"""What runs, or reaches, the language model of a kind: a `refine.feedback.llm.engine.StartEngine`.

The kinds that are named here are the LLM judges.
"""

_PROGRAMS = {"vllm": ["refine.feedback.llm.worker"]}
"""Modules that an engine runs as programs of their own, so that no import shows them."""


def judge_modules(kind: str) -> list[str]:
    """The dotted names of the modules that answer prompts for a kind of judge."""
    return [_module(JUDGES[kind]), *(engine_modules(kind) if kind in ENGINES else [])]


def engine_modules(kind: str) -> list[str]:
    """The dotted names of the modules that run, or reach, the language model of a kind."""
    return [_module(ENGINES[kind]), *_PROGRAMS.get(kind, [])]


def _module(target: str) -> str:
    return target.partition(":")[0]
