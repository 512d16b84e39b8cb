rule write_prompts:
    input:
        train="results/{dataset}/split/train.parquet",
        users="results/{dataset}/split/users.parquet",
        catalogue="results/{dataset}/split/items.parquet",
        template=template,
    output:
        prompts="results/{dataset}/{judge}/prompts.parquet",
    log:
        "logs/write_prompts/{dataset}/{judge}.log",
    benchmark:
        "logs/benchmarks/write_prompts/{dataset}/{judge}.tsv"
    wildcard_constraints:
        judge=judges_of(settings_of.PROMPTED),
    conda:
        "../../envs/prepare.yaml"
    resources:
        mem_mb=4000,
        runtime="1h",
    params:
        stage=stage("write_prompts", "prompts"),
    script:
        "../scripts/write_prompts.py"


rule answer_prompts:
    input:
        prompts="results/{dataset}/{judge}/prompts.parquet",
        train="results/{dataset}/split/train.parquet",
        catalogue="results/{dataset}/split/items.parquet",
        like=like,
    output:
        answers="results/{dataset}/{judge}/answers/{shard}-of-{shards}.parquet",
    log:
        "logs/answer_prompts/{dataset}/{judge}/{shard}-of-{shards}.log",
    benchmark:
        "logs/benchmarks/answer_prompts/{dataset}/{judge}/{shard}-of-{shards}.tsv"
    wildcard_constraints:
        judge=judges_of(settings_of.PROMPTED),
    conda:
        lambda w: f"../../envs/{'llm' if gpu_of_judge(w) else 'prepare'}.yaml"
    resources:
        mem_mb=lambda w: 32000 if gpu_of_judge(w) else 2000,
        runtime=lambda w: "12h" if gpu_of_judge(w) else "1h",
        gpu=gpu_of_judge,
        # Limited to one in the default profile: engines that share a GPU fight for its memory.
        engine=gpu_of_judge,
    params:
        stage=stage("answer_prompts", modules=judge_modules, judge=judge_of),
    script:
        "../scripts/answer_prompts.py"


rule label_answers:
    input:
        train="results/{dataset}/split/train.parquet",
        prompts="results/{dataset}/{judge}/prompts.parquet",
        answers=answers,
    output:
        feedback="results/{dataset}/{judge}/feedback.parquet",
    log:
        "logs/label_answers/{dataset}/{judge}.log",
    benchmark:
        "logs/benchmarks/label_answers/{dataset}/{judge}.tsv"
    wildcard_constraints:
        judge=judges_of(settings_of.PROMPTED),
    conda:
        "../../envs/prepare.yaml"
    resources:
        mem_mb=4000,
        runtime="30m",
    params:
        stage=stage("label_answers", "labels"),
    script:
        "../scripts/label_answers.py"


rule label_by_threshold:
    input:
        train="results/{dataset}/split/train.parquet",
    output:
        feedback="results/{dataset}/{judge}/feedback.parquet",
    log:
        "logs/label_by_threshold/{dataset}/{judge}.log",
    benchmark:
        "logs/benchmarks/label_by_threshold/{dataset}/{judge}.tsv"
    wildcard_constraints:
        judge=judges_of(settings_of.THRESHOLDED),
    conda:
        "../../envs/prepare.yaml"
    resources:
        mem_mb=2000,
        runtime="30m",
    params:
        stage=stage("label_by_threshold", at_least=lambda w: judge_of(w)["at_least"]),
    script:
        "../scripts/label_by_threshold.py"


rule label_from_release:
    input:
        train="results/{dataset}/split/train.parquet",
        users="results/{dataset}/split/users.parquet",
        catalogue="results/{dataset}/split/items.parquet",
        source=release,
    output:
        feedback="results/{dataset}/{judge}/feedback.parquet",
    log:
        "logs/label_from_release/{dataset}/{judge}.log",
    benchmark:
        "logs/benchmarks/label_from_release/{dataset}/{judge}.tsv"
    wildcard_constraints:
        judge=judges_of(settings_of.RELEASED),
    localrule: READS_RAW_FILES
    conda:
        "../../envs/prepare.yaml"
    resources:
        mem_mb=2000,
        runtime="30m",
    params:
        stage=stage("label_from_release"),
    script:
        "../scripts/label_from_release.py"


rule describe_feedback:
    input:
        feedback="results/{dataset}/{judge}/feedback.parquet",
        users="results/{dataset}/split/users.parquet",
        catalogue="results/{dataset}/split/items.parquet",
        source="resources/{dataset}/source.json",
    output:
        refinement="results/{dataset}/{judge}/refinement.json",
    log:
        "logs/describe_feedback/{dataset}/{judge}.log",
    benchmark:
        "logs/benchmarks/describe_feedback/{dataset}/{judge}.tsv"
    localrule: READS_RAW_FILES
    conda:
        "../../envs/prepare.yaml"
    resources:
        mem_mb=2000,
        runtime="30m",
    params:
        stage=stage("describe_feedback"),
    script:
        "../scripts/describe_feedback.py"
