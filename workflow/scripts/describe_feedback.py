from pathlib import Path
from typing import TYPE_CHECKING

from refine.feedback.agreement import describe_feedback
from refine.logs import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(job):
    with job_log(job.log[0]):
        describe_feedback(
            Path(job.input.feedback),
            Path(job.input.users),
            Path(job.input.catalogue),
            Path(job.input.source),
            Path(job.output.refinement),
            others=dict(zip(job.params.stage["others"], map(Path, job.input.others), strict=True)),
        )


if __name__ == "__main__":
    main(snakemake)
