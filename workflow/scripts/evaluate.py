from pathlib import Path
from typing import TYPE_CHECKING

from refine.evaluation.stage import evaluate
from refine.logs import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(job):
    with job_log(job.log[0]):
        evaluate(
            Path(job.input.model),
            Path(job.input.feedback),
            Path(job.input.validation),
            Path(job.input.test),
            Path(job.input.users),
            Path(job.input.catalogue),
            Path(job.input.statistics),
            Path(job.output.metrics),
            Path(job.output.users),
            Path(job.output.recommendations),
            evaluation=job.params.stage["evaluation"],
            label=job.params.stage["label"],
            # Asks for no GPU, so it cannot count on one.
            device="cpu" if job.config["device"] == "cpu" else "auto",
        )


if __name__ == "__main__":
    main(snakemake)
