from pathlib import Path
from typing import TYPE_CHECKING

from refine.feedback.judges import answer_prompts
from refine.logs import job_log
from refine.overlays import judge_settings, section_of

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(job):
    config, wildcards = job.config, job.wildcards
    with job_log(job.log[0]):
        answer_prompts(
            Path(job.input.prompts),
            Path(job.input.train),
            Path(job.input.catalogue),
            Path(job.input.like) if job.input.like else None,
            Path(job.output.answers),
            judge=judge_settings(config, wildcards.dataset, wildcards.judge),
            shard=int(wildcards.shard),
            shards=int(wildcards.shards),
            cache=Path(config["answer_cache"]),
            probe=Path(job.input.probe) if job.input.probe else None,
            min_auc=section_of(config, "probe", wildcards.dataset)["min_auc"],
        )


if __name__ == "__main__":
    main(snakemake)
