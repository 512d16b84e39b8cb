"""Copies of the pipeline for tests to run, edit and break."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("Snakefile", "workflow", "config", "profiles", "envs", "src", "tests/data")

EVERYTHING = (
    "results/demo/metrics.json",
    "results/demo/comparison.parquet",
    "results/demo/compare/lightgcn-vs-refine.json",
    "results/demo/refine/training.svg",
)
"""Targets that need every rule except those of published labels and of language models."""


class Pipeline:
    """A copy of the pipeline in a folder of its own, to run, edit and break.

    Attributes:
        folder: where it is.
        variables: of the environment that it runs in, beside those of the tests.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.variables: dict[str, str] = {}

    def command(self, *arguments: str, configfile: str = "tests/data/fast.yaml") -> list[str]:
        # Targets come first: --configfile takes all that follows it.
        snakemake = [sys.executable, "-m", "snakemake", *arguments, "--cores", "2"]
        return [*snakemake, "--configfile", configfile]

    def environment(self, mirror: Path | None = None) -> dict[str, str]:
        own = ("REFINE_MIRROR", "REFINE_LLM_PYTHON")
        kept = {name: value for name, value in os.environ.items() if name not in own}
        return kept | self.variables | ({"REFINE_MIRROR": str(mirror)} if mirror else {})

    def run(self, *arguments: str, mirror: Path | None = None, **kwargs: str) -> str:
        """What Snakemake prints; the test fails where Snakemake does."""
        done = self.attempt(*arguments, mirror=mirror, **kwargs)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def attempt(
        self, *arguments: str, mirror: Path | None = None, **kwargs: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments, **kwargs),
            cwd=self.folder,
            env=self.environment(mirror),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=600,
        )

    def start(self, *arguments: str, **kwargs: str) -> subprocess.Popen[bytes]:
        """Begins a run, silently; its process leads a group with all jobs, to be signalled."""
        return subprocess.Popen(
            self.command(*arguments, **kwargs),
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def run_until(
        self, moment: Callable[[], bool], *arguments: str, **kwargs: str
    ) -> subprocess.Popen[bytes]:
        """Begins a run, and returns at the given moment; the test fails if that does not come."""
        process = self.start(*arguments, **kwargs)
        deadline = time.monotonic() + 300
        while not moment():
            assert process.poll() is None, "the run ended before its moment came"
            assert time.monotonic() < deadline, "the moment did not come"
            time.sleep(0.0005)
        return process

    def planned(self, *arguments: str, **kwargs: str) -> Counter[str]:
        """The number of jobs of each rule that a dry run announces."""
        text = self.run(*arguments, "--dry-run", **kwargs)
        if "Nothing to be done" in text:
            return Counter()
        table = text.partition("Job stats:")[2].partition("total")[0]
        jobs = Counter({rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", table, re.M)})
        assert jobs, text
        return jobs

    def announced(self, *arguments: str, **kwargs: str) -> dict[str, dict[str, str]]:
        """What a dry run says that a job of each rule asks for."""
        text = self.run(*arguments, "--dry-run", **kwargs)
        jobs = re.findall(r"^(?:local)?rule (\w+):\n((?: {4}.*\n)+)", text, re.M)
        return {
            rule: dict(
                item.split("=", 1)
                for line in block.splitlines()
                if line.startswith("    resources: ")
                for item in line.removeprefix("    resources: ").split(", ")
            )
            | {"threads": _threads(block)}
            for rule, block in jobs
        }

    def copy(self, folder: Path, *, keep_times: bool = True) -> "Pipeline":
        shutil.copytree(
            self.folder, folder, copy_function=shutil.copy2 if keep_times else shutil.copyfile
        )
        return Pipeline(folder)

    def edit(self, path: str, old: str, new: str) -> None:
        file = self.folder / path
        text = file.read_text(encoding="utf-8")
        assert old in text, f"{path} has no {old!r}"
        file.write_text(text.replace(old, new, 1), encoding="utf-8")

    def configure(self, **overlay: object) -> str:
        """Writes a configuration file that lies over the fast one; returns its path."""
        fast = yaml.safe_load((self.folder / "tests/data/fast.yaml").read_text(encoding="utf-8"))
        (self.folder / "overlay.yaml").write_text(yaml.safe_dump(_merge(fast, overlay)))
        return "overlay.yaml"


def _threads(block: str) -> str:
    found = re.search(r"^    threads: (\d+)", block, re.M)
    return found[1] if found else "1"


def _merge(base: object, overlay: object) -> object:
    if not (isinstance(base, dict) and isinstance(overlay, dict)):
        return overlay
    return base | {key: _merge(base.get(key), value) for key, value in overlay.items()}


def copy_of_code(folder: Path, origin: Path = ROOT) -> Pipeline:
    """A pipeline on which nothing has run, in a new folder."""
    for part in PARTS:
        source, target = origin / part, folder / part
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source, target, ignore=ignore)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    return Pipeline(folder)
