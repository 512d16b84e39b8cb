from pathlib import Path
from typing import TYPE_CHECKING

from refine.feedback.release import label_from_release
from refine.logs import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(job):
    with job_log(job.log[0]):
        label_from_release(
            Path(job.input.train),
            Path(job.input.users),
            Path(job.input.catalogue),
            Path(job.input.source),
            Path(job.output.feedback),
        )


if __name__ == "__main__":
    main(snakemake)
