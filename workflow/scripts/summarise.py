from pathlib import Path
from typing import TYPE_CHECKING

from refine.evaluation.summary import summarise
from refine.logs import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(job):
    with job_log(job.log[0]):
        stage = job.params.stage
        summarise(
            [Path(metrics) for metrics in job.input.metrics],
            Path(job.output.metrics),
            context=stage["context"],
            refinements=dict(zip(stage["judges"], map(Path, job.input.refinements), strict=True)),
            benchmarks={rule: list(map(Path, paths)) for rule, paths in stage["benchmarks"]},
        )


if __name__ == "__main__":
    main(snakemake)
