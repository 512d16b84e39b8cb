from pathlib import Path
from typing import TYPE_CHECKING

from refine.feedback.labels import label_answers
from refine.logs import job_log
from refine.overlays import section_of

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
            max_undecided=section_of(job.config, "refine", job.wildcards.dataset)["max_undecided"],
        )


if __name__ == "__main__":
    main(snakemake)
