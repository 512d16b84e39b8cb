from pathlib import Path
from typing import TYPE_CHECKING

from refine.feedback.labels import label_by_threshold
from refine.logs import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(job):
    with job_log(job.log[0]):
        label_by_threshold(
            Path(job.input.train),
            Path(job.output.feedback),
            at_least=job.params.stage["at_least"],
        )


if __name__ == "__main__":
    main(snakemake)
