from pathlib import Path
from typing import TYPE_CHECKING

from refine.datasets.readers import read
from refine.logs import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(job):
    with job_log(job.log[0]):
        read(
            Path(job.input.source),
            Path(job.output.interactions),
            Path(job.output.catalogue),
            Path(job.output.report),
            reading=job.params.stage["reading"],
            digest=job.params.stage["digest"],
        )


if __name__ == "__main__":
    main(snakemake)
