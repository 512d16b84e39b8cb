from pathlib import Path
from typing import TYPE_CHECKING

from refine.feedback.judges import answer_prompts
from refine.logs import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(job):
    with job_log(job.log[0]):
        answer_prompts(
            Path(job.input.prompts),
            Path(job.input.train),
            Path(job.input.catalogue),
            Path(job.input.like) if job.input.like else None,
            Path(job.output.answers),
            judge=job.params.stage["judge"],
            shard=int(job.wildcards.shard),
            shards=int(job.wildcards.shards),
        )


if __name__ == "__main__":
    main(snakemake)
