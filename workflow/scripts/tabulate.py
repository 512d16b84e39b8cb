from pathlib import Path
from typing import TYPE_CHECKING

from refine.logs import job_log
from refine.reporting.comparison import tabulate

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(job):
    with job_log(job.log[0]):
        stage = job.params.stage
        users = iter(map(Path, job.input.users))
        names = [name for name, _ in stage["runs"]]
        tabulate(
            stage["headline"],
            dict(zip(names, map(Path, job.input.metrics), strict=True)),
            {name: [next(users) for _ in seeds] for name, seeds in stage["runs"]},
            Path(job.output.table),
            Path(job.output.page),
            Path(job.output.chart),
            title=stage["title"],
            evaluation=stage["evaluation"],
        )


if __name__ == "__main__":
    main(snakemake)
