# What the rules ask about judges: who answers, with what, and whether anything has to be asked.
from snakemake_interface_executor_plugins.settings import DeploymentMethod

from refine.feedback.availability import unavailable
from refine.feedback.identity import identity, prompt_settings
from refine.feedback.registry import ENGINES, JUDGES, engine_modules, judge_modules
from refine.overlays import judge_settings

# Then each job has the environment that its rule names, whatever is installed here.
CONDA_DEPLOYS = DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method


def judges_of(family):
    """A pattern of the judges whose feedback comes about in the same way."""
    return one_of(j for j in config["judges"] if settings_of.judge_family(config, j) == family)


def llm_judges():
    """A pattern of the judges that ask a language model."""
    return one_of(name for name, judge in config["judges"].items() if judge["kind"] in ENGINES)


def judge_of(wildcards):
    return judge_settings(config, wildcards.dataset, wildcards.judge)


def identity_of_judge(wildcards):
    """The settings on which a judge's answers depend."""
    return identity(judge_of(wildcards))


def prompt_settings_of_judge(wildcards):
    """The settings on which the prompts to a judge depend, beside the section of that name."""
    return prompt_settings(judge_of(wildcards))


def modules_of_judge(wildcards):
    kind = judge_of(wildcards)["kind"]
    return judge_modules(kind) if kind in JUDGES else []


def modules_of_engine(wildcards):
    return engine_modules(judge_of(wildcards)["kind"])


def what_prompts_show(wildcards):
    """The settings of prompts; which file a template is in is told by the input."""
    prompts = settings(wildcards)["prompts"]
    return {name: value for name, value in prompts.items() if name != "templates"}


def title_in_prompts(wildcards):
    """The dataset's title where prompts name it: elsewhere another title changes none of them."""
    named = settings(wildcards)["prompts"]["name_dataset"]
    return dataset_of(wildcards)["title"] if named else ""


def template(wildcards):
    """The template of how a judge is asked; a relative path starts at the Snakefile."""
    prompts = settings(wildcards)["prompts"]
    scores = judge_of(wildcards).get("strategy") == "score"
    return os.path.relpath(ROOT / prompts["templates"]["score" if scores else prompts["answer"]])


def runs_engine(wildcards):
    """Whether a judge computes with a language model of its own, in an environment of its own."""
    return judge_of(wildcards)["kind"] == "vllm"


def gpus_of_judge(wildcards):
    return judge_of(wildcards)["tensor_parallel_size"] if runs_engine(wildcards) else None


def engine_of_judge(wildcards):
    """Limited to one in the default profile: engines that share a GPU fight for its memory."""
    return 1 if runs_engine(wildcards) else None


def memory_of_judge(wildcards):
    return 32000 if runs_engine(wildcards) else 4000


def runtime_of_judge(wildcards):
    return "12h" if judge_of(wildcards)["kind"] in ENGINES else "1h"


def environment_of_judge(wildcards):
    return f"../../envs/{'llm' if runs_engine(wildcards) else 'prepare'}.yaml"


def require_judge(wildcards, output):
    """Stops the whole run, before any job, where a judge is needed that cannot run here."""
    if Path(output.format(**wildcards)).exists():
        return
    judge, dataset = judge_of(wildcards), dataset_of(wildcards)
    if reason := unavailable(judge, dataset, deployed=CONDA_DEPLOYS):
        sys.exit(f"The judge '{wildcards.judge}' cannot run on {wildcards.dataset}: {reason}")


def like(wildcards):
    """The feedback of the judge whose coverage and yes rate this one copies, if any."""
    require_judge(wildcards, "results/{dataset}/{judge}/answers/{shard}-of-{shards}.parquet")
    other = judge_of(wildcards).get("like")
    return f"results/{wildcards.dataset}/{other}/feedback.parquet" if other else []


def release(wildcards):
    require_judge(wildcards, "results/{dataset}/{judge}/feedback.parquet")
    return f"resources/{wildcards.dataset}/release/source.json"


def gated(dataset, judge):
    """Whether a judge is asked only if a probe has shown that it knows enough."""
    gate = settings_of.settings(config, dataset)["probe"]["min_auc"]
    return gate is not None and config["judges"][judge]["kind"] in ENGINES


def gate(wildcards):
    """The probe that a judge has to pass before it is asked, if any."""
    dataset, judge = wildcards.dataset, wildcards.judge
    return f"results/{dataset}/{judge}/probe.json" if gated(dataset, judge) else []


def split_to_probe(wildcards):
    require_judge(wildcards, "results/{dataset}/{judge}/probe.json")
    return f"results/{wildcards.dataset}/split/train.parquet"


def shards_of(wildcards):
    n = settings(wildcards)["refine"]["shards"]
    return [f"{shard}-of-{n}" for shard in range(1, n + 1)]


def answers(wildcards):
    folder = f"results/{wildcards.dataset}/{wildcards.judge}/answers"
    return [f"{folder}/{shard}.parquet" for shard in shards_of(wildcards)]


def answered(wildcards):
    """Changes with what LLMs have answered: a plan tells what is left to ask, and how fast it went."""
    files = sorted(Path(config["answer_cache"]).glob("*/[!.]*"))
    return settings_of.digest(
        [[str(file), file.read_text() if file.suffix == ".json" else None] for file in files]
    )


def compared_judges(wildcards):
    """The judges whose labels a judge's own are compared with.

    None for labels that nobody was asked for, nor for those judges themselves.
    """
    others = settings(wildcards)["refine"]["compare_with"]
    family = settings_of.judge_family(config, wildcards.judge)
    if family != settings_of.PROMPTED or wildcards.judge in others:
        return []
    released = "release" in dataset_of(wildcards)
    return [
        other
        for other in others
        if released or settings_of.judge_family(config, other) != settings_of.RELEASED
    ]


def compared_labels(wildcards):
    folder = f"results/{wildcards.dataset}"
    return [f"{folder}/{judge}/feedback.parquet" for judge in compared_judges(wildcards)]
