from pathlib import Path
from typing import TYPE_CHECKING

from refine.feedback.labels import label_answers
from refine.logs import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(job):
    with job_log(job.log[0]):
        label_answers(
            Path(job.input.train),
            Path(job.input.prompts),
            [Path(shard) for shard in job.input.answers],
            Path(job.output.feedback),
            labels=job.params.stage["labels"],
        )


if __name__ == "__main__":
    main(snakemake)
