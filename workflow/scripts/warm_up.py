from pathlib import Path
from typing import TYPE_CHECKING

from refine.logs import job_log
from refine.training.processes import run
from refine.training.underway import Underway
from refine.training.warm_up import warm_up

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(job):
    with job_log(job.log[0]):
        run(
            warm_up,
            job.config["training"]["processes"],
            Path(job.log[0]),
            feedback=Path(job.input.feedback),
            validation=Path(job.input.validation),
            users=Path(job.input.users),
            items=Path(job.input.catalogue),
            output=Path(job.output.state),
            settings=job.params.stage,
            seed=int(job.wildcards.seed),
            device=job.config["device"],
            leave=Underway.of(
                job.config, job.rule, "{dataset}/{experiment}/seed{seed}".format(**job.wildcards)
            ),
        )


if __name__ == "__main__":
    main(snakemake)
