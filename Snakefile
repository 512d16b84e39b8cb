# The pipeline, as a table of contents. Paths: resources/<dataset>/ holds what was fetched,
# results/<dataset>/ what was made of it, logs/<rule>/ how that went.
from snakemake.utils import min_version

min_version("9.27")


configfile: f"{workflow.basedir}/config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/judges.smk"


wildcard_constraints:
    dataset=one_of(config["datasets"]),
    experiment=one_of(config["experiments"]),
    a=one_of(config["experiments"]),
    b=one_of(config["experiments"]),
    judge=one_of(config["judges"]),
    seed=r"\d+",
    shard=r"\d+",
    shards=r"\d+",


include: "workflow/rules/acquire.smk"
include: "workflow/rules/prepare.smk"
include: "workflow/rules/refine.smk"
include: "workflow/rules/mine.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"


rule all:
    default_target: True
    input:
        "results/demo/metrics.json",
    localrule: True
