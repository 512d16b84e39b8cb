"""Settings as they hold for a dataset: what its entry says lies over what all share.

Standard library only, and no rules: scripts use it for what is no reason to run a stage again and
so does not stand among its parameters, and an edit to `refine.config` must be no reason either.
"""

from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]


def merge(base: Config, overlay: Config) -> dict[str, Any]:
    """A copy of ``base`` with ``overlay`` over it: mappings key by key, other values whole.

    A ``model`` of another name is taken whole, too: hyperparameters are a model's own.
    """
    merged = dict(base)
    for key, value in overlay.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            anew = key == "model" and value.get("name", below.get("name")) != below.get("name")
            merged[key] = value if anew else merge(below, value)
        else:
            merged[key] = value
    return merged


def section_of(config: Config, name: str, dataset: str, experiment: str | None = None) -> Any:
    """A section as it holds for a dataset and, where one is named, an experiment of it.

    An experiment lies over the dataset, and what the dataset says of that experiment over both.
    """
    found: Config = {name: config[name]}
    of_dataset = config["datasets"][dataset]
    overlays = [of_dataset]
    if experiment is not None:
        overlays.append(config["experiments"][experiment])
        overlays.append(of_dataset.get("experiments", {}).get(experiment, {}))
    for overlay in overlays:
        found = merge(found, {name: overlay.get(name, {})})
    return found[name]


def judge_settings(config: Config, dataset: str, judge: str) -> dict[str, Any]:
    """A judge's settings as they hold for a dataset."""
    return merge(
        config["judges"][judge], config["datasets"][dataset].get("judges", {}).get(judge, {})
    )
