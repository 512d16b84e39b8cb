from pathlib import Path
from typing import TYPE_CHECKING

from refine.logs import job_log
from refine.training.fit import fit

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(job):
    with job_log(job.log[0]):
        fit(
            Path(job.input.feedback),
            Path(job.input.validation),
            Path(job.input.users),
            Path(job.input.catalogue),
            Path(job.output.model),
            settings=job.params.stage,
            seed=int(job.wildcards.seed),
            # Asks for no GPU, so it cannot count on one.
            device="cpu" if job.config["device"] == "cpu" else "auto",
        )


if __name__ == "__main__":
    main(snakemake)
