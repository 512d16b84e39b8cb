"""Settings: looking them up, and refusing what is misspelt or contradicts itself.

Needs PyYAML and jsonschema only, since every dry run imports it.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from refine.models.catalogue import FITTED, REWEIGHTED
from refine.overlays import Config, judge_settings, merge, section_of

SHARED_SECTIONS = ("reading", "subset", "split", "prompts", "probe", "refine", "labels")
"""Sections that all experiments of a dataset share: only a dataset may override them."""

EXPERIMENT_SECTIONS = ("model", "training", "mining", "sampling", "evaluation")
"""Sections that a dataset and, after it, an experiment may override."""

COURSE_OF_TRAINING = ("checkpoint_minutes", "processes", "tensorboard")
"""Keys of ``training`` that say how a run goes and not what comes of it: for the run alone."""

CARD_SETTINGS = ("k", "mask", "mask_validation")
"""Keys of ``evaluation`` that two experiments must share for their numbers to stand together."""

RESERVED_FOLDERS = ("split", "compare")
"""Folders of ``results/<dataset>/`` that no judge or experiment may be named after."""

PROMPTED, RELEASED, THRESHOLDED = "prompted", "release", "threshold"

_SET_APART = {
    "model": "model",
    "tokenizer": "model",
    "revision": "revision",
    "tokenizer_revision": "revision",
    "dtype": "dtype",
    "quantization": "quantization",
    "tensor_parallel_size": "tensor_parallel_size",
    "gpu_memory_utilization": "memory_share",
    "max_model_len": "context",
}
"""Arguments of the vLLM engine that a judge has settings for, and what these are called."""


_FAULTS = "The configuration has faults:"


class ConfigError(ValueError):
    """The configuration cannot be used; the text names every fault found."""


def load(*paths: Path) -> dict[str, Any]:
    """Reads YAML files and merges them, later ones over earlier ones."""
    config: dict[str, Any] = {}
    for path in paths:
        config = merge(config, yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    return config


def extended(config: Config) -> dict[str, Any]:
    """The configuration, its judges and experiments with what those they ``extends`` have.

    What has not the shape of a section or an entry is left for ``validate`` to refuse.

    Raises:
        ConfigError: an entry extends one that there is not, or itself.
    """
    sections = {name: config.get(name) for name in ("judges", "experiments")}
    return {**config} | {
        name: _extended(entries, name)
        for name, entries in sections.items()
        if isinstance(entries, Mapping)
    }


def _extended(entries: Config, section: str) -> dict[str, Any]:
    def entry(name: str, above: tuple[str, ...]) -> Any:
        own = entries[name]
        if not isinstance(own, Mapping) or not isinstance(own.get("extends"), str):
            return own
        base, chain, where = own["extends"], (*above, name), f"{section}.{name}.extends"
        if base not in entries:
            kind, nearest = section.removesuffix("s"), _nearest(base, list(entries))
            raise ConfigError(f"{_FAULTS}\n  - {where}: there is no {kind} '{base}'; {nearest}")
        if base in chain:
            circle = " extends ".join([*chain, base])
            raise ConfigError(f"{_FAULTS}\n  - {where}: {circle} is a circle")
        below = entry(base, chain)
        added = {key: value for key, value in own.items() if key != "extends"}
        return merge(below, added) if isinstance(below, Mapping) else added

    return {name: entry(name, ()) for name in entries}


def settings(config: Config, dataset: str, experiment: str | None = None) -> dict[str, Any]:
    """All that decides on results, as it holds for a dataset and, where named, an experiment.

    Nothing is re-weighted for a model that draws its own negatives, whatever ``sampling`` says.
    """
    found = {
        name: section_of(config, name, dataset, experiment)
        for name in SHARED_SECTIONS + EXPERIMENT_SECTIONS
    }
    for key in COURSE_OF_TRAINING:
        del found["training"][key]
    sampling, training = found["sampling"], found["training"]
    sampling["reweight"] = sampling["reweight"] and found["model"]["name"] in REWEIGHTED
    if not sampling["reweight"]:  # then nothing begins where the warm-up ends
        training["warmup_epochs"] = min(training["warmup_epochs"], training["epochs"])
    return found


def judge_of(config: Config, dataset: str, experiment: str) -> str:
    """The judge whose labels an experiment trains on.

    An experiment that names its judge keeps it, or it would no longer be what its name says.
    """
    return str(
        config["experiments"][experiment].get("judge")
        or config["judge"]
        or config["datasets"][dataset]["judge"]
    )


def judge_family(config: Config, judge: str) -> str:
    """How a judge's feedback comes about: PROMPTED, RELEASED or THRESHOLDED."""
    kind = config["judges"][judge]["kind"]
    return kind if kind in (RELEASED, THRESHOLDED) else PROMPTED


def is_fitted(config: Config, experiment: str) -> bool:
    """Whether an experiment's model is computed at once, and not trained by gradient steps."""
    return _model(config, experiment)["name"] in FITTED


def _model(config: Config, experiment: str) -> dict[str, Any]:
    """Section ``model`` of an experiment, without what a dataset may say of it."""
    overlay = {"model": config["experiments"][experiment].get("model", {})}
    return dict(merge({"model": config["model"]}, overlay)["model"])


def seeds_of(config: Config, dataset: str, experiment: str) -> list[int]:
    """The seeds of an experiment's runs: one where it draws nothing at random."""
    seeds = list(config["datasets"][dataset].get("seeds", config["seeds"]))
    return seeds[:1] if is_fitted(config, experiment) else seeds


def compared_experiments(config: Config, dataset: str) -> list[str]:
    """The experiments of a dataset's table: the headline, and those that are listed.

    Raises:
        ConfigError: one of them is evaluated under other rules than the headline.
    """
    headline = config["headline"]
    listed = config["datasets"][dataset].get("comparison", config["comparison"])
    rules = {}
    for name in dict.fromkeys([headline, *listed]):
        evaluation = settings(config, dataset, name)["evaluation"]
        rules[name] = {key: evaluation[key] for key in CARD_SETTINGS}
        for key, value in rules[name].items():
            if value != rules[headline][key]:
                raise ConfigError(
                    f"{dataset}: comparison: {name} and {headline} cannot stand in one table, as "
                    f"their evaluation.{key} is {value} and {rules[headline][key]}; take {name} "
                    "out of `comparison`, or evaluate both alike"
                )
    return list(rules)


def digest(value: Any) -> str:
    """A digest of JSON values that does not depend on the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def validate(config: Config, schema: Config | Path) -> None:
    """Checks a whole configuration.

    Args:
        config: the merged configuration.
        schema: a JSON schema (draft 2020-12), or the YAML file that holds it.

    Raises:
        ConfigError: lists every fault; a misspelt key or name with the nearest known one.
    """
    rules: Config = load(schema) if isinstance(schema, Path) else schema
    # A round trip through JSON makes plain lists and dicts of what a workflow engine may hand in.
    config = json.loads(json.dumps(config))
    errors = sorted(
        Draft202012Validator(rules).iter_errors(config), key=lambda e: list(map(str, e.path))
    )
    faults = [fault for error in errors for fault in _describe(error)]
    # What follows looks names up, so it needs a configuration of the right shape.
    faults = faults or [*_unknown_names(config), *_clashes(config)]
    faults = faults or [
        *_judge_overlays(config, rules),
        *_model_overlays(config, rules),
        *_contradictions(config),
    ]
    if faults:
        raise ConfigError("\n".join([_FAULTS, *(f"  - {f}" for f in faults)]))


def require_warm_up_to_end(config: Config, dataset: str, experiment: str) -> None:
    """Checks an experiment that is to be run; of others it would be a fault that harms nobody.

    Raises:
        ConfigError: the warm-up outlasts the training, so that nothing would be re-weighted.
    """
    training = settings(config, dataset, experiment)["training"]
    if training["warmup_epochs"] > training["epochs"]:
        raise ConfigError(
            f"{dataset}, experiment {experiment}: training.warmup_epochs "
            f"({training['warmup_epochs']}) exceeds training.epochs ({training['epochs']}); "
            f"lower the one or raise the other (the entry of {dataset} may set them)"
        )


def _nearest(name: Any, known: list[str]) -> str:
    matches = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f"did you mean '{matches[0]}'?" if matches else f"known are: {', '.join(sorted(known))}"


def _describe(error: ValidationError) -> Iterator[str]:
    where = ".".join(map(str, error.absolute_path))
    rule: Any = error.validator
    value: Any = error.instance
    schema: Any = error.schema
    if rule == "additionalProperties":
        known = list(schema.get("properties", {}))
        for key in value:
            if key not in known:
                yield f"{f'{where}.' if where else ''}{key}: unknown key; {_nearest(key, known)}"
    elif rule == "enum":
        choices = [str(choice) for choice in schema["enum"]]
        yield f"{where}: {value!r} is none of {', '.join(choices)}; {_nearest(value, choices)}"
    elif rule == "type" and isinstance(value, str):
        yield f"{where}: {error.message} ({_way_out(value)})"
    else:
        yield f"{where or 'the file'}: {error.message}"


def _way_out(text: str) -> str:
    """How to say what arrived as text where something else was meant."""
    if re.fullmatch(r"[-+]?[\d.]+e[-+]?\d+", text, re.IGNORECASE):
        return "YAML takes an exponent only after a point and with a sign: 1.0e-3"
    return (
        "what --config gives in lists or nested is text: write it to a file and pass it with "
        "--configfile"
    )


def _unknown_names(config: Config) -> Iterator[str]:
    for where, name, section in _names_used(config):
        known = list(config[section])
        if name is not None and name not in known:
            kind = section.removesuffix("s")
            yield f"{where}: there is no {kind} '{name}'; {_nearest(name, known)}"


def _names_used(config: Config) -> Iterator[tuple[str, str | None, str]]:
    """Where a judge or an experiment is named, its name, and the section that has to have it."""
    yield "judge", config["judge"], "judges"
    yield "headline", config["headline"], "experiments"
    for experiment in config["comparison"]:
        yield "comparison", experiment, "experiments"
    for judge in config["refine"]["compare_with"]:
        yield "refine.compare_with", judge, "judges"
    for key, entry in config["experiments"].items():
        yield f"experiments.{key}.judge", entry.get("judge"), "judges"
    for key, entry in config["judges"].items():
        yield f"judges.{key}.like", entry.get("like"), "judges"
    for key, entry in config["datasets"].items():
        here = f"datasets.{key}"
        yield f"{here}.judge", entry["judge"], "judges"
        for experiment in entry.get("experiments", {}):
            yield f"{here}.experiments", experiment, "experiments"
        for experiment in entry.get("comparison", []):
            yield f"{here}.comparison", experiment, "experiments"
        for judge in entry.get("scored_judges", []):
            yield f"{here}.scored_judges", judge, "judges"
        for judge in entry.get("refine", {}).get("compare_with", []):
            yield f"{here}.refine.compare_with", judge, "judges"
        for judge, overlay in entry.get("judges", {}).items():
            yield f"{here}.judges", judge, "judges"
            yield f"{here}.judges.{judge}.like", overlay.get("like"), "judges"
        for experiment in entry.get("published", {}).get("metrics", {}):
            yield f"{here}.published.metrics", experiment, "experiments"


def _clashes(config: Config) -> Iterator[str]:
    folders = dict.fromkeys(RESERVED_FOLDERS, "a folder of every dataset")
    for section, kind in (("judges", "a judge"), ("experiments", "an experiment")):
        for name in config[section]:
            if name in folders:
                yield f"{section}.{name}: is the name of {folders[name]} already; choose another"
            folders[name] = kind


def _faults_of(validator: Draft202012Validator, value: Any) -> Iterator[str]:
    for error in validator.iter_errors(value):
        yield from _describe(error)


def _judge_overlays(config: Config, schema: Config) -> Iterator[str]:
    # An overlay says nothing of its judge's kind, on which the known keys depend: so it is
    # checked as merged.
    validator = Draft202012Validator({"$defs": schema["$defs"], "$ref": "#/$defs/judge"})
    for dataset, entry in config["datasets"].items():
        for judge in entry.get("judges", {}):
            for fault in _faults_of(validator, judge_settings(config, dataset, judge)):
                yield f"datasets.{dataset}.judges.{judge}.{fault}"


def _model_overlays(config: Config, schema: Config) -> Iterator[str]:
    # Nor does an overlay have to repeat the name of the model whose hyperparameters it sets.
    validator = Draft202012Validator({"$defs": schema["$defs"], "$ref": "#/$defs/model"})
    for dataset, entry in config["datasets"].items():
        if "name" in entry.get("model", {}):
            yield f"datasets.{dataset}.model.name: an experiment names a model, a dataset may not"
        for fault in _faults_of(validator, section_of(config, "model", dataset)):
            yield f"datasets.{dataset}.model.{fault}"
        for experiment, overlay in entry.get("experiments", {}).items():
            here = f"datasets.{dataset}.experiments.{experiment}.model"
            if "name" in overlay.get("model", {}):
                yield f"{here}.name: the experiment names its model; a dataset may not"
            for fault in _faults_of(validator, section_of(config, "model", dataset, experiment)):
                yield f"{here}.{fault}"
    for experiment in config["experiments"]:
        for fault in _faults_of(validator, _model(config, experiment)):
            yield f"experiments.{experiment}.model.{fault}"


def _judges(config: Config) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each judge's settings stand, and the settings; a dataset's with what they lie over."""
    for judge, entry in config["judges"].items():
        yield f"judges.{judge}", entry
    for dataset, entry in config["datasets"].items():
        for judge in entry.get("judges", {}):
            yield f"datasets.{dataset}.judges.{judge}", judge_settings(config, dataset, judge)


def _faults_of_endpoint(judge: dict[str, Any]) -> Iterator[str]:
    if not re.fullmatch(r"[A-Za-z_]\w*", judge["key"]):
        # Without the value: it may be the key itself.
        yield ".key: the name of an environment variable is meant, never the key"
    if judge["strategy"] == "score" and judge["server"] == "plain":
        yield ".strategy: score needs probabilities, which `server: plain` is not asked for"
    if judge["strategy"] == "score" and judge["server"] == "vllm" and not judge["tokenizer"]:
        yield ".tokenizer: name the model, as `server: vllm` is asked to score tokens by number"


def _contradictions(config: Config) -> Iterator[str]:
    for where, judge in _judges(config):
        if judge["kind"] == "vllm":
            for argument in sorted(judge["engine"].keys() & _SET_APART.keys()):
                yield f"{where}.engine.{argument}: set {where}.{_SET_APART[argument]} in its place"
        elif judge["kind"] == "openai":
            yield from (f"{where}{fault}" for fault in _faults_of_endpoint(judge))
    for dataset in config["datasets"]:
        for judge in config["judges"]:
            chain = [judge]
            while (like := judge_settings(config, dataset, chain[-1]).get("like")) is not None:
                if like in chain:
                    circle = " like ".join([*chain, like])
                    yield f"judges.{judge}.like: {circle} is a circle (dataset {dataset})"
                    break
                chain.append(like)
        split = settings(config, dataset)["split"]
        if split["validation"] + split["test"] >= 1:
            yield f"{dataset}: split.validation and split.test leave nothing to train on"
