"""What a run takes beside training: interpreters, imports, Snakemake, reading and writing.

Makes a target from the raw files in a temporary folder, with two epochs a seed in place of the
configured training, and prints the time of each rule:

    python benchmarks/overhead.py results/ml100k/metrics.json --mirror FOLDER

The time of the clock means something on a machine that does nothing else; the processor's time
is lengthened less by other work, and half of it is the least that two cores can do with.
"""

import argparse
import csv
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
SHORT = {"warmup_epochs": 1, "epochs": 2, "patience": 1}


def run(target: str, mirror: str | None, cores: int, folder: Path) -> tuple[float, float]:
    """Makes the target in a folder; seconds of the clock and of the processor."""
    overlay = folder / "short.yaml"
    dataset = Path(target).parts[1]
    overlay.write_text(yaml.safe_dump({"datasets": {dataset: {"training": SHORT}}}))
    command = [sys.executable, "-m", "snakemake", target, "--cores", str(cores), "--quiet", "all"]
    command += ["--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    command += ["--workflow-profile", str(ROOT / "profiles/default")]
    command += ["--configfile", str(overlay)]
    environment = dict(os.environ) | ({"REFINE_MIRROR": mirror} if mirror else {})
    started = time.perf_counter()
    done = subprocess.run(  # noqa: S603 - our own pipeline
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stdout)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime


def main() -> None:
    """Runs, and prints a table."""
    parser = argparse.ArgumentParser(description="The time of a run beside training.")
    parser.add_argument("target", nargs="?", default="results/demo/metrics.json")
    parser.add_argument("--mirror", help="folder with the raw files, for other data than the demo")
    parser.add_argument("--cores", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clock, processor = run(arguments.target, arguments.mirror, arguments.cores, folder)
        print("| rule | jobs | seconds | of them in epochs |\n|---|---:|---:|---:|")
        trained = 0.0
        for rule in sorted((folder / "logs/benchmarks").iterdir()):
            tables = [path.read_text().splitlines() for path in rule.rglob("*.tsv")]
            seconds = [float(row["s"]) for t in tables for row in csv.DictReader(t, delimiter="\t")]
            logs = [path.read_text() for path in (folder / "logs" / rule.name).rglob("*.log")]
            epochs = sum(float(s) for log in logs for s in re.findall(r"([\d.]+) s an epoch", log))
            trained += epochs
            print(f"| {rule.name} | {len(seconds)} | {sum(seconds):.1f} | {epochs:.1f} |")
    cores = arguments.cores
    print(
        f"\n{clock:.1f} s of the clock on {cores} cores, {processor:.1f} s of the processor; "
        f"without the epochs about {clock - trained / cores:.1f} s and {processor - trained:.1f} s"
    )


if __name__ == "__main__":
    main()
