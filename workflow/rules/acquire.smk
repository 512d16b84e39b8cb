rule fetch_ratings:
    output:
        source="resources/{dataset}/source.json",
    log:
        "logs/fetch_ratings/{dataset}.log",
    benchmark:
        "logs/benchmarks/fetch_ratings/{dataset}.tsv"
    localrule: True
    conda:
        "../../envs/prepare.yaml"
    resources:
        mem_mb=1000,
        runtime="4h",
    params:
        stage=stage("fetch_ratings", sources=lambda w: dataset_of(w)["sources"]),
    script:
        "../scripts/fetch_ratings.py"


rule fetch_release_labels:
    output:
        source="resources/{dataset}/release/source.json",
    log:
        "logs/fetch_release_labels/{dataset}.log",
    benchmark:
        "logs/benchmarks/fetch_release_labels/{dataset}.tsv"
    localrule: True
    conda:
        "../../envs/prepare.yaml"
    resources:
        mem_mb=1000,
        runtime="1h",
    params:
        stage=stage("fetch_release_labels", sources=lambda w: dataset_of(w)["release"]),
    script:
        "../scripts/fetch_release_labels.py"
