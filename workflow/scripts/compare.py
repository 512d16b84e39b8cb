from pathlib import Path
from typing import TYPE_CHECKING

from refine.evaluation.comparison import compare
from refine.logs import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(job):
    with job_log(job.log[0]):
        compare(
            [Path(users) for users in job.input.a],
            [Path(users) for users in job.input.b],
            Path(job.output.comparison),
            evaluation=job.params.stage["evaluation"],
            names=(job.wildcards.a, job.wildcards.b),
        )


if __name__ == "__main__":
    main(snakemake)
