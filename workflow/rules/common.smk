import json
import os
import re
import sys
from pathlib import Path

ROOT = Path(workflow.basedir)
# Snakemake hands this path on to every script, so the library needs no installation.
sys.path.insert(0, str(ROOT / "src"))

from refine import config as settings_of
from refine.models.catalogue import label, module_of
from refine.provenance import code_digest

# Where the library really is: in a pod, only the workflow is copied and the rest comes from the image.
SRC = Path(settings_of.__file__).parents[1]

# Raw files are no outputs, so that a rerun finds what was fetched already. Where files travel
# through a storage provider, the rules that read them have to run where they were fetched.
READS_RAW_FILES = workflow.storage_settings.default_storage_provider is not None

try:
    config |= settings_of.extended(config)
    settings_of.validate(config, SRC.parent / "config/schema.yaml")
except settings_of.ConfigError as error:
    sys.exit(str(error))

# It names all models, of which a stage runs one: another name in it is no reason to run that again.
CATALOGUE = "refine.models.catalogue"

# What a training saves on its way is no output, as those go with a job that fails: nothing carries
# it to and from a pod, so it is kept on the volume that all pods share.
config["shared_folder"] = workflow.storage_settings.default_storage_prefix or "."


def one_of(names):
    """A pattern that matches any of the names, and nothing where there are none."""
    return "|".join(map(re.escape, names)) or "(?!)"


def settings(wildcards):
    """All sections as they hold for what the wildcards name."""
    return settings_of.settings(config, wildcards.dataset, getattr(wildcards, "experiment", None))


def stage(script, *sections, modules=lambda wildcards: [], **values):
    """The only parameter of a rule: all settings that its script reads, and a digest of its code.

    It is one dict because Snakemake compares parameters as a set of values without names, and its
    keys are sorted because their order would count. Left out on purpose, as no reason to run a stage
    again, is what scripts look up in ``config``: where raw files come from, which device trains, how
    an LLM is reached and paid, and the limits that stop a run. ``modules`` gives what the script
    loads by name.
    """

    def params(wildcards):
        found = settings(wildcards)
        chosen = {name: found[name] for name in sections}
        chosen |= {name: value(wildcards) for name, value in values.items()}
        chosen["code"] = code_digest(
            ROOT / f"workflow/scripts/{script}.py", SRC, modules(wildcards), without=[CATALOGUE]
        )
        return json.loads(json.dumps(chosen, sort_keys=True))

    return params


def part(section, *keys):
    """The keys of a section that a script reads, where others are no reason to run it again."""

    return lambda wildcards: {key: settings(wildcards)[section][key] for key in keys}


def dataset_of(wildcards):
    return config["datasets"][wildcards.dataset]


def seeds_of(wildcards):
    return settings_of.seeds_of(config, wildcards.dataset, experiment_of(wildcards))


def experiments_that(fitted):
    """A pattern of the experiments whose model is fitted at once, or of the others."""
    return one_of(
        name for name in config["experiments"] if settings_of.is_fitted(config, name) == fitted
    )


def model_of(wildcards):
    return settings(wildcards)["model"]["name"]


def label_of_model(wildcards):
    return label(model_of(wildcards))


def modules_of_model(wildcards):
    return [module_of(model_of(wildcards))]


def gpu(wildcards):
    """A GPU for each process of a training, unless the configuration says to train without."""
    return None if config["device"] == "cpu" else config["training"]["processes"]


def labels_of_experiment(wildcards):
    try:
        settings_of.require_warm_up_to_end(config, wildcards.dataset, wildcards.experiment)
    except settings_of.ConfigError as error:
        sys.exit(str(error))
    judge = settings_of.judge_of(config, wildcards.dataset, wildcards.experiment)
    return f"results/{wildcards.dataset}/{judge}/feedback.parquet"


def mines(wildcards):
    """Whether an experiment re-weights with items that are mined once, after the warm-up."""
    found = settings_of.settings(config, wildcards.dataset, experiment_of(wildcards))
    return found["sampling"]["reweight"] and found["mining"]["refresh"] == "once"


def warmup_of(wildcards):
    """The last epoch of the warm-up, where anything is re-weighted after it; else None."""
    found = settings(wildcards)
    return found["training"]["warmup_epochs"] if found["sampling"]["reweight"] else None


def similar_items(wildcards):
    path = "results/{dataset}/{experiment}/seed{seed}/similar_items.parquet"
    return path if mines(wildcards) else []


def of_seeds(file, experiment="experiment"):
    """The same file of each seed's run of the experiment that a wildcard names, or the headline."""

    def files(wildcards):
        dataset, name = wildcards.dataset, getattr(wildcards, experiment, config["headline"])
        seeds = settings_of.seeds_of(config, dataset, name)
        return [f"results/{dataset}/{name}/seed{seed}/{file}" for seed in seeds]

    return files


def histories(wildcards):
    """The history of each seed's training of an experiment."""
    if settings_of.is_fitted(config, wildcards.experiment):
        sys.exit(
            f"{wildcards.experiment}: its model is computed at once, so that there is no training "
            f"to draw; what was tried is in logs/fit/{wildcards.dataset}/{wildcards.experiment}/"
        )
    return of_seeds("history.parquet")(wildcards)


def compared_runs(wildcards):
    """The experiments of a dataset's table, in the order of its rows, with their seeds."""
    try:
        names = settings_of.compared_experiments(config, wildcards.dataset)
    except settings_of.ConfigError as error:
        sys.exit(str(error))
    return [(name, settings_of.seeds_of(config, wildcards.dataset, name)) for name in names]


def of_compared(file):
    """The same file of each experiment of a dataset's table."""
    return lambda wildcards: [
        f"results/{wildcards.dataset}/{name}/{file}" for name, _ in compared_runs(wildcards)
    ]


def of_runs(file):
    """The same file of each run of each experiment of a dataset's table."""
    return lambda wildcards: [
        f"results/{wildcards.dataset}/{name}/seed{seed}/{file}"
        for name, seeds in compared_runs(wildcards)
        for seed in seeds
    ]


def experiment_of(wildcards):
    return getattr(wildcards, "experiment", config["headline"])


def scored_judges(wildcards):
    """The judges that an experiment's metrics describe: its own and, beside the headline, others."""
    judges = [settings_of.judge_of(config, wildcards.dataset, experiment_of(wildcards))]
    if not hasattr(wildcards, "experiment"):
        judges += dataset_of(wildcards).get("scored_judges", [])
    return list(dict.fromkeys(judges))


def refinements(wildcards):
    folder = f"results/{wildcards.dataset}"
    return [f"{folder}/{judge}/refinement.json" for judge in scored_judges(wildcards)]


def context(wildcards):
    """What an experiment's metrics say about where they come from."""
    dataset, experiment = wildcards.dataset, experiment_of(wildcards)
    judge = settings_of.judge_of(config, dataset, experiment)
    asked = judge_settings(config, dataset, judge)
    found = settings_of.settings(config, dataset, experiment)
    # These say whether and by how many jobs a judge is asked, which changes no number.
    del found["probe"], found["refine"]
    found["judge"] = prompt_settings(asked) | identity(asked)
    published = dataset_of(wildcards).get("published", {}).get("metrics", {})
    return {
        "dataset": dataset,
        "experiment": experiment,
        "judge": judge,
        "published": published.get(experiment),
        "confidence": found["evaluation"]["confidence"],
        "config_digest": settings_of.digest(found),
        "settings": found,
    }


def benchmarks(wildcards):
    """The benchmark tables of the jobs behind an experiment, rule by rule in the order they run."""
    dataset, experiment = wildcards.dataset, experiment_of(wildcards)
    judge = settings_of.judge_of(config, dataset, experiment)
    runs = [f"{dataset}/{experiment}/seed{seed}" for seed in seeds_of(wildcards)]
    jobs = dict.fromkeys(("fetch_ratings", "read_ratings", "split_ratings"), [dataset])
    family = settings_of.judge_family(config, judge)
    if family == settings_of.PROMPTED:
        jobs["write_prompts"] = jobs["label_answers"] = [f"{dataset}/{judge}"]
        if gated(dataset, judge):
            jobs["probe"] = [f"{dataset}/{judge}"]
        jobs["answer_prompts"] = [f"{dataset}/{judge}/{shard}" for shard in shards_of(wildcards)]
    elif family == settings_of.THRESHOLDED:
        jobs["label_by_threshold"] = [f"{dataset}/{judge}"]
    else:
        jobs["fetch_release_labels"] = [dataset]
        jobs["label_from_release"] = [f"{dataset}/{judge}"]
    if settings_of.is_fitted(config, experiment):
        stages = ("fit", "evaluate")
    elif mines(wildcards):
        stages = ("warm_up", "mine_similar_items", "train", "evaluate")
    else:
        stages = ("warm_up", "train", "evaluate")
    jobs |= dict.fromkeys(stages, runs)
    return [
        (name, [f"logs/benchmarks/{name}/{job}.tsv" for job in each]) for name, each in jobs.items()
    ]
