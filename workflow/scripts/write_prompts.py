from pathlib import Path
from typing import TYPE_CHECKING

from refine.feedback.prompts import write_prompts
from refine.logs import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(job):
    stage = job.params.stage
    with job_log(job.log[0]):
        write_prompts(
            Path(job.input.train),
            Path(job.input.users),
            Path(job.input.catalogue),
            Path(job.input.template),
            Path(job.output.prompts),
            prompts=stage["prompts"],
            judge=stage["judge"],
            dataset=stage["dataset"],
        )


if __name__ == "__main__":
    main(snakemake)
