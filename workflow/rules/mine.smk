rule mine_similar_items:
    input:
        state="results/{dataset}/{experiment}/seed{seed}/warmup.safetensors",
        feedback=labels_of_experiment,
        validation="results/{dataset}/split/validation.parquet",
        users="results/{dataset}/split/users.parquet",
        catalogue="results/{dataset}/split/items.parquet",
    output:
        similar_items="results/{dataset}/{experiment}/seed{seed}/similar_items.parquet",
    log:
        "logs/mine_similar_items/{dataset}/{experiment}/seed{seed}.log",
    benchmark:
        "logs/benchmarks/mine_similar_items/{dataset}/{experiment}/seed{seed}.tsv"
    conda:
        "../../envs/train.yaml"
    resources:
        mem_mb=4000,
        runtime="1h",
    params:
        stage=stage(
            "mine_similar_items",
            mining=part("mining", "similarity", "near_liked", "near_disliked"),
            modules=modules_of_model,
        ),
    script:
        "../scripts/mine_similar_items.py"
