# One thread a run: seeds run side by side, and the sums, hence the bytes, do not depend on how
# many cores a machine has.


rule warm_up:
    input:
        feedback=labels_of_experiment,
        validation="results/{dataset}/split/validation.parquet",
        users="results/{dataset}/split/users.parquet",
        catalogue="results/{dataset}/split/items.parquet",
    output:
        state="results/{dataset}/{experiment}/seed{seed}/warmup.safetensors",
    log:
        "logs/warm_up/{dataset}/{experiment}/seed{seed}.log",
    benchmark:
        "logs/benchmarks/warm_up/{dataset}/{experiment}/seed{seed}.tsv"
    wildcard_constraints:
        experiment=experiments_that(fitted=False),
    conda:
        "../../envs/train.yaml"
    threads: config["training"]["processes"]
    resources:
        mem_mb=8000,
        runtime="4h",
        gpu=gpu,
    params:
        stage=stage(
            "warm_up",
            "model",
            "training",
            "sampling",
            evaluation=part("evaluation", "mask"),
            modules=modules_of_model,
        ),
    script:
        "../scripts/warm_up.py"


rule train:
    input:
        state="results/{dataset}/{experiment}/seed{seed}/warmup.safetensors",
        similar_items=similar_items,
        feedback=labels_of_experiment,
        validation="results/{dataset}/split/validation.parquet",
        users="results/{dataset}/split/users.parquet",
        catalogue="results/{dataset}/split/items.parquet",
    output:
        model="results/{dataset}/{experiment}/seed{seed}/model.safetensors",
        history="results/{dataset}/{experiment}/seed{seed}/history.parquet",
    log:
        "logs/train/{dataset}/{experiment}/seed{seed}.log",
    benchmark:
        "logs/benchmarks/train/{dataset}/{experiment}/seed{seed}.tsv"
    wildcard_constraints:
        experiment=experiments_that(fitted=False),
    conda:
        "../../envs/train.yaml"
    threads: config["training"]["processes"]
    resources:
        mem_mb=8000,
        runtime="12h",
        gpu=gpu,
    params:
        stage=stage(
            "train",
            "model",
            "training",
            "sampling",
            "mining",
            evaluation=part("evaluation", "mask"),
            modules=modules_of_model,
        ),
    script:
        "../scripts/train.py"


rule fit:
    input:
        feedback=labels_of_experiment,
        validation="results/{dataset}/split/validation.parquet",
        users="results/{dataset}/split/users.parquet",
        catalogue="results/{dataset}/split/items.parquet",
    output:
        model="results/{dataset}/{experiment}/seed{seed}/model.safetensors",
    log:
        "logs/fit/{dataset}/{experiment}/seed{seed}.log",
    benchmark:
        "logs/benchmarks/fit/{dataset}/{experiment}/seed{seed}.tsv"
    wildcard_constraints:
        experiment=experiments_that(fitted=True),
    conda:
        "../../envs/train.yaml"
    resources:
        mem_mb=16000,  # EASE: matrices of items x items
        runtime="2h",
    params:
        stage=stage("fit", "model", evaluation=part("evaluation", "mask"), modules=modules_of_model),
    script:
        "../scripts/fit.py"
