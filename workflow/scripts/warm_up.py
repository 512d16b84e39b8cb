from pathlib import Path
from typing import TYPE_CHECKING

from refine.logs import job_log
from refine.training.warm_up import warm_up

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(job):
    with job_log(job.log[0]):
        warm_up(
            Path(job.input.feedback),
            Path(job.input.validation),
            Path(job.input.users),
            Path(job.input.catalogue),
            Path(job.output.state),
            settings=job.params.stage,
            seed=int(job.wildcards.seed),
            device=job.config["device"],
        )


if __name__ == "__main__":
    main(snakemake)
