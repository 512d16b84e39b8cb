from pathlib import Path
from typing import TYPE_CHECKING

from refine.logs import job_log
from refine.training.processes import run
from refine.training.train import train
from refine.training.underway import Underway

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(job):
    with job_log(job.log[0]):
        run(
            train,
            job.config["training"]["processes"],
            Path(job.log[0]),
            state=Path(job.input.state),
            similar_items=Path(job.input.similar_items) if job.input.similar_items else None,
            feedback=Path(job.input.feedback),
            validation=Path(job.input.validation),
            users=Path(job.input.users),
            items=Path(job.input.catalogue),
            model=Path(job.output.model),
            history=Path(job.output.history),
            settings=job.params.stage,
            seed=int(job.wildcards.seed),
            device=job.config["device"],
            leave=Underway.of(
                job.config, job.rule, "{dataset}/{experiment}/seed{seed}".format(**job.wildcards)
            ),
        )


if __name__ == "__main__":
    main(snakemake)
