from pathlib import Path
from typing import TYPE_CHECKING

from refine.logs import job_log
from refine.training.mine import mine

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(job):
    with job_log(job.log[0]):
        mine(
            Path(job.input.state),
            Path(job.input.feedback),
            Path(job.input.validation),
            Path(job.input.users),
            Path(job.input.catalogue),
            Path(job.output.similar_items),
            settings=job.params.stage,
        )


if __name__ == "__main__":
    main(snakemake)
