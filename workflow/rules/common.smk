import json
import os
import re
import sys
from pathlib import Path

ROOT = Path(workflow.basedir)
# Snakemake hands this path on to every script, so the library needs no installation.
sys.path.insert(0, str(ROOT / "src"))

from refine import config as settings_of
from refine.feedback.availability import unavailable
from refine.feedback.registry import JUDGES, judge_module
from refine.provenance import code_digest

# Where the library really is: in a pod, only the workflow is copied and the rest comes from the image.
SRC = Path(settings_of.__file__).parents[1]

# Raw files are no outputs, so that a rerun finds what was fetched already. Where files travel
# through a storage provider, the rules that read them have to run where they were fetched.
READS_RAW_FILES = workflow.storage_settings.default_storage_provider is not None

try:
    settings_of.validate(config, SRC.parent / "config/schema.yaml")
except settings_of.ConfigError as error:
    sys.exit(str(error))

# What a training saves on its way is no output, as those go with a job that fails: nothing carries
# it to and from a pod, so it is kept on the volume that all pods share.
config["shared_folder"] = workflow.storage_settings.default_storage_prefix or "."


def one_of(names):
    """A pattern that matches any of the names, and nothing where there are none."""
    return "|".join(map(re.escape, names)) or "(?!)"


def judges_of(family):
    """A pattern of the judges whose feedback comes about in the same way."""
    return one_of(j for j in config["judges"] if settings_of.judge_family(config, j) == family)


def settings(wildcards):
    """All sections as they hold for what the wildcards name."""
    return settings_of.settings(config, wildcards.dataset, getattr(wildcards, "experiment", None))


def stage(script, *sections, modules=lambda wildcards: [], **values):
    """The only parameter of a rule: all settings that its script reads, and a digest of its code.

    It is one dict because Snakemake compares parameters as a set of values without names, and its
    keys are sorted because their order would count. Where raw files come from and which device
    trains is left out on purpose: neither is a reason to run a stage again. ``modules`` gives what
    the script loads by name.
    """

    def params(wildcards):
        found = settings(wildcards)
        chosen = {name: found[name] for name in sections}
        chosen |= {name: value(wildcards) for name, value in values.items()}
        chosen["code"] = code_digest(
            ROOT / f"workflow/scripts/{script}.py", SRC, modules(wildcards)
        )
        return json.loads(json.dumps(chosen, sort_keys=True))

    return params


def part(section, *keys):
    """The keys of a section that a script reads, where others are no reason to run it again."""

    return lambda wildcards: {key: settings(wildcards)[section][key] for key in keys}


def dataset_of(wildcards):
    return config["datasets"][wildcards.dataset]


def judge_of(wildcards):
    return settings_of.judge_settings(config, wildcards.dataset, wildcards.judge)


def judge_modules(wildcards):
    kind = judge_of(wildcards)["kind"]
    return [judge_module(kind)] if kind in JUDGES else []


def seeds_of(wildcards):
    return settings_of.seeds_of(config, wildcards.dataset)


def gpu(wildcards):
    """A GPU for each process of a training, unless the configuration says to train without."""
    return None if config["device"] == "cpu" else config["training"]["processes"]


def gpu_of_judge(wildcards):
    return 1 if judge_of(wildcards)["kind"] == "vllm" else None


def template(wildcards):
    """The prompt template; a relative path starts at the Snakefile."""
    return os.path.relpath(ROOT / settings(wildcards)["prompts"]["template"])


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


def similar_items(wildcards):
    path = "results/{dataset}/{experiment}/seed{seed}/similar_items.parquet"
    return path if mines(wildcards) else []


def require_judge(wildcards, output):
    """Stops the whole run, before any job, where a judge is needed that cannot run here."""
    if Path(output.format(**wildcards)).exists():
        return
    if reason := unavailable(judge_of(wildcards), dataset_of(wildcards)):
        sys.exit(f"The judge '{wildcards.judge}' cannot run on {wildcards.dataset}: {reason}")


def like(wildcards):
    """The feedback of the judge whose coverage and yes rate this one copies, if any."""
    require_judge(wildcards, "results/{dataset}/{judge}/answers/{shard}-of-{shards}.parquet")
    other = judge_of(wildcards).get("like")
    return f"results/{wildcards.dataset}/{other}/feedback.parquet" if other else []


def shards_of(wildcards):
    n = settings(wildcards)["refine"]["shards"]
    return [f"{shard}-of-{n}" for shard in range(1, n + 1)]


def answers(wildcards):
    folder = f"results/{wildcards.dataset}/{wildcards.judge}/answers"
    return [f"{folder}/{shard}.parquet" for shard in shards_of(wildcards)]


def release(wildcards):
    require_judge(wildcards, "results/{dataset}/{judge}/feedback.parquet")
    return f"resources/{wildcards.dataset}/release/source.json"


def of_seeds(file, experiment="experiment"):
    """The same file of each seed's run of the experiment that a wildcard names, or the headline."""

    def files(wildcards):
        folder = f"results/{wildcards.dataset}/{getattr(wildcards, experiment, config['headline'])}"
        return [f"{folder}/seed{seed}/{file}" for seed in seeds_of(wildcards)]

    return files


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
    found = settings_of.settings(config, dataset, experiment)
    found["judge"] = settings_of.judge_settings(config, dataset, judge)
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
        jobs["answer_prompts"] = [f"{dataset}/{judge}/{shard}" for shard in shards_of(wildcards)]
    elif family == settings_of.THRESHOLDED:
        jobs["label_by_threshold"] = [f"{dataset}/{judge}"]
    else:
        jobs["fetch_release_labels"] = [dataset]
        jobs["label_from_release"] = [f"{dataset}/{judge}"]
    jobs |= dict.fromkeys(("warm_up", "mine_similar_items", "train", "evaluate"), runs)
    if not mines(wildcards):
        del jobs["mine_similar_items"]
    return [
        (name, [f"logs/benchmarks/{name}/{job}.tsv" for job in each]) for name, each in jobs.items()
    ]
