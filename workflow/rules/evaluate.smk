rule evaluate:
    input:
        model="results/{dataset}/{experiment}/seed{seed}/model.safetensors",
        feedback=labels_of_experiment,
        validation="results/{dataset}/split/validation.parquet",
        test="results/{dataset}/split/test.parquet",
        users="results/{dataset}/split/users.parquet",
        catalogue="results/{dataset}/split/items.parquet",
        statistics="results/{dataset}/split/statistics.json",
    output:
        metrics="results/{dataset}/{experiment}/seed{seed}/metrics.json",
        users="results/{dataset}/{experiment}/seed{seed}/users.parquet",
        recommendations="results/{dataset}/{experiment}/seed{seed}/recommendations.parquet",
    log:
        "logs/evaluate/{dataset}/{experiment}/seed{seed}.log",
    benchmark:
        "logs/benchmarks/evaluate/{dataset}/{experiment}/seed{seed}.tsv"
    conda:
        "../../envs/train.yaml"
    resources:
        mem_mb=4000,
        runtime="1h",
    params:
        stage=stage(
            "evaluate",
            label=label_of_model,
            evaluation=part("evaluation", "k", "mask", "mask_validation", "recommendations"),
            modules=modules_of_model,
        ),
    script:
        "../scripts/evaluate.py"


rule summarise:
    input:
        metrics=of_seeds("metrics.json"),
        refinements=refinements,
    output:
        metrics="results/{dataset}/{experiment}/metrics.json",
    log:
        "logs/summarise/{dataset}/{experiment}.log",
    benchmark:
        "logs/benchmarks/summarise/{dataset}/{experiment}.tsv"
    conda:
        "../../envs/train.yaml"
    resources:
        mem_mb=1000,
        runtime="10m",
    params:
        stage=stage("summarise", judges=scored_judges, context=context, benchmarks=benchmarks),
    script:
        "../scripts/summarise.py"


use rule summarise as headline with:
    input:
        metrics=of_seeds("metrics.json"),
        refinements=refinements,
    output:
        metrics="results/{dataset}/metrics.json",
    log:
        "logs/headline/{dataset}.log",
    benchmark:
        "logs/benchmarks/headline/{dataset}.tsv"


rule draw_curves:
    input:
        histories=histories,
    output:
        chart="results/{dataset}/{experiment}/training.svg",
    log:
        "logs/draw_curves/{dataset}/{experiment}.log",
    benchmark:
        "logs/benchmarks/draw_curves/{dataset}/{experiment}.tsv"
    conda:
        "../../envs/train.yaml"
    resources:
        mem_mb=1000,
        runtime="10m",
    params:
        stage=stage(
            "draw_curves",
            warmup_epochs=warmup_of,
            seeds=seeds_of,
            title=lambda w: f"{dataset_of(w)['title']}, {w.experiment} ({label_of_model(w)})",
        ),
    script:
        "../scripts/draw_curves.py"


rule compare:
    input:
        a=of_seeds("users.parquet", "a"),
        b=of_seeds("users.parquet", "b"),
    output:
        comparison="results/{dataset}/compare/{a}-vs-{b}.json",
    log:
        "logs/compare/{dataset}/{a}-vs-{b}.log",
    benchmark:
        "logs/benchmarks/compare/{dataset}/{a}-vs-{b}.tsv"
    conda:
        "../../envs/train.yaml"
    resources:
        mem_mb=2000,
        runtime="30m",
    params:
        stage=stage("compare", evaluation=part("evaluation", "bootstrap", "confidence", "seed")),
    script:
        "../scripts/compare.py"


rule tabulate:
    input:
        metrics=of_compared("metrics.json"),
        users=of_runs("users.parquet"),
    output:
        table="results/{dataset}/comparison.parquet",
        page="results/{dataset}/comparison.md",
        chart="results/{dataset}/comparison.svg",
    log:
        "logs/tabulate/{dataset}.log",
    benchmark:
        "logs/benchmarks/tabulate/{dataset}.tsv"
    conda:
        "../../envs/train.yaml"
    resources:
        mem_mb=4000,
        runtime="30m",
    params:
        stage=stage(
            "tabulate",
            evaluation=part("evaluation", "bootstrap", "confidence", "seed"),
            headline=lambda w: config["headline"],
            runs=compared_runs,
            title=lambda w: dataset_of(w)["title"],
        ),
    script:
        "../scripts/tabulate.py"
