from pathlib import Path
from typing import TYPE_CHECKING

from refine.feedback.llm.probe import probe
from refine.logs import job_log
from refine.overlays import judge_settings

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(job):
    stage, wildcards = job.params.stage, job.wildcards
    with job_log(job.log[0]):
        probe(
            Path(job.input.train),
            Path(job.input.users),
            Path(job.input.catalogue),
            Path(job.input.template),
            Path(job.output.probe),
            prompts=stage["prompts"],
            judge=judge_settings(job.config, wildcards.dataset, wildcards.judge),
            dataset=stage["dataset"],
            probe=stage["probe"],
            cache=Path(job.config["answer_cache"]),
        )


if __name__ == "__main__":
    main(snakemake)
