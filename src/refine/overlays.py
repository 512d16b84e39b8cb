"""Settings as they hold for a dataset: what its entry says lies over what all share.

Standard library only, and no rules: scripts use it for what is no reason to run a stage again and
so does not stand among its parameters, and an edit to `refine.config` must be no reason either.
"""

from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]


def merge(base: Config, overlay: Config) -> dict[str, Any]:
    """A copy of ``base`` with ``overlay`` over it: mappings key by key, other values whole."""
    merged = dict(base)
    for key, value in overlay.items():
        below = merged.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(below, value) if both else value  # type: ignore[arg-type]
    return merged


def section_of(config: Config, name: str, dataset: str, experiment: str | None = None) -> Any:
    """A section as it holds for a dataset and, where one is named, an experiment of it."""
    found = merge(config[name], config["datasets"][dataset].get(name, {}))
    if experiment is not None:
        found = merge(found, config["experiments"][experiment].get(name, {}))
    return found


def judge_settings(config: Config, dataset: str, judge: str) -> dict[str, Any]:
    """A judge's settings as they hold for a dataset."""
    return merge(
        config["judges"][judge], config["datasets"][dataset].get("judges", {}).get(judge, {})
    )
