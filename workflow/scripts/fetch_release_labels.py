import os
from pathlib import Path
from typing import TYPE_CHECKING

from refine.datasets.sources import fetch
from refine.logs import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(job):
    with job_log(job.log[0]):
        fetch(
            f"release/{job.wildcards.dataset}",
            job.params.stage["sources"],
            Path(job.output.source).parent,
            job.config["mirror"] or os.environ.get("REFINE_MIRROR"),
        )


if __name__ == "__main__":
    main(snakemake)
