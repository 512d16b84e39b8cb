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
        stage=stage(
            "write_prompts",
            prompts=what_prompts_show,
            judge=prompt_settings_of_judge,
            dataset=title_in_prompts,
        ),
    script:
        "../scripts/write_prompts.py"


rule plan:
    input:
        prompts="results/{dataset}/{judge}/prompts.parquet",
        catalogue="results/{dataset}/split/items.parquet",
    output:
        plan="results/{dataset}/{judge}/plan.json",
    log:
        "logs/plan/{dataset}/{judge}.log",
    benchmark:
        "logs/benchmarks/plan/{dataset}/{judge}.tsv"
    wildcard_constraints:
        judge=llm_judges(),
    # Its table is for who waits at the terminal.
    localrule: True
    conda:
        "../../envs/prepare.yaml"
    resources:
        mem_mb=4000,
        runtime="30m",
    params:
        stage=stage("plan", judge=judge_of, shards=lambda w: len(shards_of(w)), answered=answered),
    script:
        "../scripts/plan.py"


rule probe:
    input:
        train=split_to_probe,
        users="results/{dataset}/split/users.parquet",
        catalogue="results/{dataset}/split/items.parquet",
        template=template,
    output:
        probe="results/{dataset}/{judge}/probe.json",
    log:
        "logs/probe/{dataset}/{judge}.log",
    benchmark:
        "logs/benchmarks/probe/{dataset}/{judge}.tsv"
    wildcard_constraints:
        judge=llm_judges(),
    conda:
        environment_of_judge
    resources:
        mem_mb=memory_of_judge,
        runtime="2h",
        gpu=gpus_of_judge,
        engine=engine_of_judge,
    params:
        stage=stage(
            "probe",
            modules=modules_of_engine,
            prompts=what_prompts_show,
            probe=part("probe", "items", "seed"),
            judge=lambda w: prompt_settings_of_judge(w) | identity_of_judge(w),
            dataset=title_in_prompts,
        ),
    script:
        "../scripts/probe.py"


rule answer_prompts:
    input:
        prompts="results/{dataset}/{judge}/prompts.parquet",
        train="results/{dataset}/split/train.parquet",
        catalogue="results/{dataset}/split/items.parquet",
        like=like,
        # The answers do not depend on it: a probe that was repeated asks nobody again.
        probe=ancient(gate),
    output:
        answers="results/{dataset}/{judge}/answers/{shard}-of-{shards}.parquet",
    log:
        "logs/answer_prompts/{dataset}/{judge}/{shard}-of-{shards}.log",
    benchmark:
        "logs/benchmarks/answer_prompts/{dataset}/{judge}/{shard}-of-{shards}.tsv"
    wildcard_constraints:
        judge=judges_of(settings_of.PROMPTED),
    conda:
        environment_of_judge
    resources:
        mem_mb=memory_of_judge,
        runtime=runtime_of_judge,
        gpu=gpus_of_judge,
        engine=engine_of_judge,
    params:
        stage=stage("answer_prompts", modules=modules_of_judge, judge=identity_of_judge),
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
        others=compared_labels,
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
        stage=stage("describe_feedback", others=compared_judges),
    script:
        "../scripts/describe_feedback.py"
