"""What a run takes beside training: interpreters, imports, Snakemake, reading and writing.

Makes a target from the raw files in a temporary folder, with two epochs a seed in place of the
configured training, and prints the time of each rule, of the epochs, and of all the rest:

    python benchmarks/overhead.py results/ml100k/metrics.json --mirror FOLDER --times 3

The time of the clock means something on a machine that does nothing else, and once the libraries
are in the cache of files. The processor's time is lengthened less by other work; divided by the
cores it is the least that the clock can show.
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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
SHORT = {"warmup_epochs": 1, "epochs": 2, "patience": 1}


@dataclass
class Spent:
    """Seconds of the clock and of the processor."""

    clock: float
    processor: float


@dataclass
class Rule:
    """The jobs of a rule: seconds of the clock of each, and of them in epochs."""

    name: str
    jobs: list[float]
    epochs: float


@dataclass
class Run:
    """A target made from the raw files, and the same command again, which finds nothing to do."""

    whole: Spent
    again: Spent
    rules: list[Rule]

    def without_epochs(self, cores: int) -> float:
        """Seconds of the clock, had no epoch been trained: as many jobs run at once as cores."""
        return self.whole.clock - sum(rule.epochs for rule in self.rules) / cores


def measured(target: str, mirror: str | None, cores: int) -> Run:
    """Makes the target in a folder of its own."""
    environment = dict(os.environ) | ({"REFINE_MIRROR": mirror} if mirror else {})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        overlay = folder / "short.yaml"
        dataset = Path(target).parts[1]
        overlay.write_text(yaml.safe_dump({"datasets": {dataset: {"training": SHORT}}}))
        command = [sys.executable, "-m", "snakemake", target, "--cores", str(cores)]
        command += ["--quiet", "all", "--configfile", str(overlay), "--directory", str(folder)]
        command += ["--snakefile", str(ROOT / "Snakefile")]
        command += ["--workflow-profile", str(ROOT / "profiles/default")]
        whole, again = (timed(command, environment) for _ in range(2))
        return Run(whole, again, list(rules_in(folder)))


def timed(command: list[str], environment: dict[str, str]) -> Spent:
    """Runs a command, whose output is shown only if it fails."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(  # noqa: S603 - our own pipeline
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    clock, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(done.stdout)
    return Spent(clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def rules_in(folder: Path) -> Iterator[Rule]:
    """The rules that have run, in the order in which their first jobs ended."""
    benchmarks: dict[str, list[Path]] = {}
    written = (folder / "logs/benchmarks").rglob("*.tsv")
    for path in sorted(written, key=lambda path: path.stat().st_mtime_ns):
        benchmarks.setdefault(path.relative_to(folder).parts[2], []).append(path)
    for name, paths in benchmarks.items():
        jobs = [
            float(row["s"])
            for path in paths
            for row in csv.DictReader(path.read_text().splitlines(), delimiter="\t")
        ]
        logs = [path.read_text() for path in (folder / "logs" / name).rglob("*.log")]
        epochs = (float(s) for log in logs for s in re.findall(r"([\d.]+) s an epoch", log))
        yield Rule(name, jobs, sum(epochs))


def main() -> None:
    """Runs, and prints a table of the run that was the shortest."""
    parser = argparse.ArgumentParser(description="The time of a run beside training.")
    parser.add_argument("target", nargs="?", default="results/demo/metrics.json")
    parser.add_argument("--mirror", help="folder with the raw files, for other data than the demo")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--times", type=int, default=1, help="runs, of which the fastest is shown")
    arguments = parser.parse_args()
    cores, runs = arguments.cores, []
    for number in range(1, arguments.times + 1):
        load = os.getloadavg()[0]
        runs.append(measured(arguments.target, arguments.mirror, cores))
        print(
            f"run {number}, begun under a load of {load:.1f}: {runs[-1].without_epochs(cores):.1f} "
            f"s without the epochs; {runs[-1].whole.processor:.1f} s of the processor",
            file=sys.stderr,
        )
    run = min(runs, key=lambda run: run.whole.clock)
    print("| | jobs | seconds a job | of all jobs | of them in epochs |\n|---|---:|---:|---:|---:|")
    for rule in run.rules:
        epochs = f"{rule.epochs:.1f}" if rule.epochs else ""
        total, jobs = sum(rule.jobs), len(rule.jobs)
        print(f"| `{rule.name}` | {jobs} | {total / jobs:.2f} | {total:.1f} | {epochs} |")
    whole, again, rest = run.whole, run.again, run.without_epochs(cores)
    print(f"\n| on {cores} cores | clock | processor |\n|---|---:|---:|")
    print(f"| the run, with two epochs a seed | {whole.clock:.1f} s | {whole.processor:.1f} s |")
    print(f"| **without the epochs** | **{rest:.1f} s** | |")
    print(f"| again, with nothing to do | {again.clock:.1f} s | {again.processor:.1f} s |")


if __name__ == "__main__":
    main()
