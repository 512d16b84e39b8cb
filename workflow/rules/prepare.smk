rule read_ratings:
    input:
        source="resources/{dataset}/source.json",
    output:
        interactions="results/{dataset}/interactions.parquet",
        catalogue="results/{dataset}/items.parquet",
        report="results/{dataset}/reading.json",
    log:
        "logs/read_ratings/{dataset}.log",
    benchmark:
        "logs/benchmarks/read_ratings/{dataset}.tsv"
    localrule: READS_RAW_FILES
    conda:
        "../../envs/prepare.yaml"
    threads: 2
    resources:
        mem_mb=8000,
        runtime="2h",
    params:
        stage=stage("read_ratings", "reading", digest=lambda w: dataset_of(w).get("digest")),
    script:
        "../scripts/read_ratings.py"


rule split_ratings:
    input:
        interactions="results/{dataset}/interactions.parquet",
        catalogue="results/{dataset}/items.parquet",
    output:
        train="results/{dataset}/split/train.parquet",
        validation="results/{dataset}/split/validation.parquet",
        test="results/{dataset}/split/test.parquet",
        users="results/{dataset}/split/users.parquet",
        catalogue="results/{dataset}/split/items.parquet",
        statistics="results/{dataset}/split/statistics.json",
    log:
        "logs/split_ratings/{dataset}.log",
    benchmark:
        "logs/benchmarks/split_ratings/{dataset}.tsv"
    conda:
        "../../envs/prepare.yaml"
    threads: 2
    resources:
        mem_mb=8000,
        runtime="2h",
    params:
        stage=stage(
            "split_ratings",
            "subset",
            "split",
            published=lambda w: dataset_of(w).get("published", {}).get("statistics"),
        ),
    script:
        "../scripts/split_ratings.py"
