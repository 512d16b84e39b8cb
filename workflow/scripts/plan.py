from pathlib import Path
from typing import TYPE_CHECKING

from refine.feedback.llm.plan import plan
from refine.logs import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(job):
    stage = job.params.stage
    with job_log(job.log[0]):
        plan(
            Path(job.input.prompts),
            Path(job.input.catalogue),
            Path(job.output.plan),
            judge=stage["judge"],
            cache=Path(job.config["answer_cache"]),
            shards=stage["shards"],
        )


if __name__ == "__main__":
    main(snakemake)
