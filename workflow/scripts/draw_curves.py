from pathlib import Path
from typing import TYPE_CHECKING

from refine.logs import job_log
from refine.reporting.curve import draw_curves

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(job):
    stage = job.params.stage
    with job_log(job.log[0]):
        draw_curves(
            dict(zip(stage["seeds"], map(Path, job.input.histories), strict=True)),
            Path(job.output.chart),
            title=stage["title"],
            warmup_epochs=stage["warmup_epochs"],
        )


if __name__ == "__main__":
    main(snakemake)
