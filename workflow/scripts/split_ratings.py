from pathlib import Path
from typing import TYPE_CHECKING

from refine.logs import job_log
from refine.splits.split import split_dataset

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(job):
    with job_log(job.log[0]):
        split_dataset(
            Path(job.input.interactions),
            Path(job.input.catalogue),
            Path(job.output.train).parent,
            subset=job.params.stage["subset"],
            split=job.params.stage["split"],
            published=job.params.stage["published"],
        )


if __name__ == "__main__":
    main(snakemake)
