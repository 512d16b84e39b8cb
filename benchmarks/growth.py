"""Time and memory of every stage as the ratings grow a hundredfold, up to the Netflix Prize.

Generates ratings of the Netflix Prize's shape and layout (see ``prepare.py``): 480,189 users,
17,770 items and 100,480,507 ratings, and smaller sets of the same density and the same power laws,
whose users and items are as the square root of the ratings. Then runs the pipeline's stages one
after the other, each in a process of its own, with one epoch of warm-up and one of training::

    python benchmarks/growth.py --folder /scratch --json growth.json

The largest set takes about 6 GB of the folder, which are given back at the end.
"""

import argparse
import json
import logging
import math
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from refine import config
from refine.artifacts import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
SEED = 2024
N_RATINGS, N_USERS, N_ITEMS = 100_480_507, 480_189, 17_770
SIZES = (N_RATINGS // 100, N_RATINGS // 10, N_RATINGS)
STEPS = 16
"""Ratings over the batch size, whatever their number, so that an epoch has as many steps."""

Settings = dict[str, dict[str, Any]]

# ---- What is run ----


def shape(n_ratings: int) -> tuple[int, int]:
    """Users and items of a set that is as dense as the Netflix Prize, and in its proportions."""
    scale = math.sqrt(n_ratings / N_RATINGS)
    return round(N_USERS * scale), round(N_ITEMS * scale)


def settings(batch_size: int) -> Settings:
    """The pipeline's own for Netflix 1M, but for all users and items, and two epochs."""
    found = config.settings(config.load(ROOT / "config/config.yaml"), "netflix1m", "refine")
    found["reading"]["require"] = ["title"]
    found["subset"]["users"] = None
    found["training"] |= {"warmup_epochs": 1, "epochs": 2}
    found["model"]["batch_size"] = batch_size
    return found


def generate(folder: Path, n_ratings: int) -> None:
    """The raw files; no stage of the pipeline."""
    import prepare

    n_users, n_items = shape(n_ratings)
    prepare.generate(folder / "raw", n_ratings, SEED, n_users=n_users, n_movies=n_items)


def fetch_ratings(folder: Path, _: Settings) -> None:
    """Copies the raw files and takes their checksums."""
    from refine.datasets.sources import fetch

    files = {
        "ratings": "training_set.tar",
        "items": "movie_titles.txt",
        "genres": "netflix_genres.csv",
    }
    source = {"at": str(folder / "raw"), "files": files, "reader": "netflix-prize"}
    fetch("netflix", [source], folder / "fetched", None)


def read_ratings(folder: Path, settings: Settings) -> None:
    """Raw files -> interactions.parquet and items.parquet."""
    from refine.datasets.readers import read

    read(
        folder / "fetched/source.json",
        folder / "interactions.parquet",
        folder / "items.parquet",
        folder / "reading.json",
        reading=settings["reading"],
        digest=None,
    )


def split_ratings(folder: Path, settings: Settings) -> None:
    """5-core of the positives; train, validation and test."""
    from refine.splits.split import split_dataset

    split_dataset(
        folder / "interactions.parquet",
        folder / "items.parquet",
        folder / "split",
        subset=settings["subset"],
        split=settings["split"],
        published=None,
    )


def label_by_threshold(folder: Path, _: Settings) -> None:
    """Every 3 counts as a like."""
    from refine.feedback.labels import label_by_threshold

    label_by_threshold(folder / "split/train.parquet", folder / "feedback.parquet", at_least=3)


def _data(folder: Path) -> tuple[Path, Path, Path, Path]:
    """What models learn from."""
    split = folder / "split"
    return (
        folder / "feedback.parquet",
        split / "validation.parquet",
        split / "users.parquet",
        split / "items.parquet",
    )


def warm_up(folder: Path, settings: Settings) -> None:
    """One epoch without mined weights, and its validation."""
    from refine.training.warm_up import warm_up

    state = folder / "warmup.safetensors"
    warm_up(*_data(folder), state, settings=settings, seed=SEED, device="cpu")


def mine_similar_items(folder: Path, settings: Settings) -> None:
    """The 300 most similar items of each."""
    from refine.training.mine import mine

    state, similar = folder / "warmup.safetensors", folder / "similar_items.parquet"
    mine(state, *_data(folder), similar, settings=settings)


def train(folder: Path, settings: Settings) -> None:
    """One epoch with re-weighted negatives, and its validation."""
    from refine.training.train import train

    train(
        folder / "warmup.safetensors",
        folder / "similar_items.parquet",
        *_data(folder),
        folder / "model.safetensors",
        folder / "history.parquet",
        settings=settings,
        seed=SEED,
        device="cpu",
    )


def evaluate(folder: Path, settings: Settings) -> None:
    """All items ranked for all users, metrics, and the 20 best items of each user with titles."""
    from refine.evaluation.stage import evaluate

    feedback, validation, users, items = _data(folder)
    evaluate(
        folder / "model.safetensors",
        feedback,
        validation,
        folder / "split/test.parquet",
        users,
        items,
        folder / "split/statistics.json",
        folder / "metrics.json",
        folder / "users.parquet",
        folder / "recommendations.parquet",
        evaluation=settings["evaluation"],
        device="cpu",
    )


STAGES: dict[str, Callable[[Path, Settings], None]] = {
    stage.__name__: stage
    for stage in (
        fetch_ratings,
        read_ratings,
        split_ratings,
        label_by_threshold,
        warm_up,
        mine_similar_items,
        train,
        evaluate,
    )
}
"""In the order in which they run; named like the pipeline's rules."""

# ---- Measuring ----


def run_stage(name: str, folder: Path, threads: int) -> dict[str, float]:
    """Runs one stage in this process: time, of the clock and of the processor, and peak memory."""
    import torch

    torch.set_num_threads(threads)
    # Imports are not measured: they take as long whatever the size.
    import refine.evaluation.stage
    import refine.feedback.labels
    import refine.splits.split
    import refine.training.train
    import refine.training.warm_up  # noqa: F401

    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    STAGES[name](folder, read_json(folder / "settings.json"))
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return {
        "seconds": seconds,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_gib": int(peak.split()[1]) / 2**20,
    }


def _start(*arguments: str) -> str:
    """Runs this very file, and returns what it prints."""
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603


def measure(
    n_ratings: int, batch_size: int, folder: Path, threads: int
) -> Iterator[dict[str, Any]]:
    """Generates ratings and runs all stages on them.

    Args:
        n_ratings: how many.
        batch_size: positives a step of the training.
        folder: for all files; empty.
        threads: of PyTorch.

    Yields:
        The same record after each stage, with the measures of one stage more.
    """
    n_users, n_items = shape(n_ratings)
    record: dict[str, Any] = {"ratings": n_ratings, "users": n_users, "items": n_items}
    record |= {"batch_size": batch_size, "stages": {}}
    (folder / "raw").mkdir(parents=True)
    write_json(settings(batch_size), folder / "settings.json")
    started = time.perf_counter()
    _start("--generate", str(n_ratings), "--folder", str(folder))
    _say(f"{n_ratings:,} ratings generated in {time.perf_counter() - started:.0f} s")
    for name in STAGES:
        _say(f"{n_ratings:,} ratings: {name} ...")
        arguments = ["--stage", name, "--folder", str(folder), "--threads", str(threads)]
        taken = json.loads(_start(*arguments))
        record["stages"][name] = taken
        _say(
            f"{n_ratings:,} ratings: {name} took {taken['seconds']:.1f} s, "
            f"{taken['cpu_seconds']:.1f} s of the processor, {taken['peak_gib']:.2f} GiB"
        )
        if name == "split_ratings":
            record["split"] = read_json(folder / "split/statistics.json")
        yield record
    record["metrics"] = read_json(folder / "metrics.json")["metrics"]
    yield record


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(result: dict[str, Any]) -> str:
    """The measures as a Markdown table, stage by stage.

    Rates and ratios (to the next smaller size) are of the processor's time, which other work on the
    machine lengthens less than the time of the clock.
    """
    sizes = sorted(result["sizes"], key=lambda size: size["ratings"])
    lines = [
        "| stage | ratings | seconds | CPU s | peak GiB | CPU s a million | times the CPU s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in STAGES:
        before = None
        for size in sizes:
            if name not in size["stages"]:
                continue
            taken = size["stages"][name]
            spent = taken["cpu_seconds"]
            more = "" if before is None else f"{spent / before:.1f}"
            cells = [
                f"`{name}`" if before is None else "",
                f"{size['ratings']:,}",
                f"{taken['seconds']:.1f}",
                f"{spent:.1f}",
                f"{taken['peak_gib']:.2f}",
                f"{spent / size['ratings'] * 1e6:.2f}",
                more,
            ]
            lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
            before = spent
    for size in sizes:
        text = (
            f"{size['ratings']:,} ratings, {size['users']:,} users, {size['items']:,} items; "
            f"batches of {size['batch_size']:,}"
        )
        if "split" in size:
            split = size["split"]
            text += f"; in the core {split['ratings']:,}, {split['users']:,} and {split['items']:,}"
        lines += ["", f"{text}."]
    return "\n".join(lines)


def processor() -> str:
    """The name of what runs the stages."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} cores of {names[0]}" if names else platform.machine()


def run(
    sizes: list[int], batch_sizes: list[int], folder: Path | None, threads: int, output: Path | None
) -> dict[str, Any]:
    """Measures all sizes, one after the other; files are deleted after each.

    Args:
        sizes: numbers of ratings.
        batch_sizes: of each.
        folder: where the temporary folders go.
        threads: of PyTorch.
        output: the JSON file that is written anew after each stage, if any.
    """
    result: dict[str, Any] = {"machine": processor(), "threads": threads, "sizes": []}
    for n_ratings, batch_size in zip(sizes, batch_sizes, strict=True):
        result["sizes"].append({})
        with tempfile.TemporaryDirectory(dir=folder) as name:
            for record in measure(n_ratings, batch_size, Path(name), threads):
                result["sizes"][-1] = record
                if output is not None:
                    write_json(result, output)
    return result


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description="Time and memory of every stage, by ratings.")
    parser.add_argument(
        "--ratings",
        type=lambda text: int(float(text)),
        nargs="+",
        default=list(SIZES),
        help="how many, one set after the other; by default %(default)s",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        nargs="+",
        help=f"positives a step, for each set; by default a {STEPS}th of the ratings",
    )
    parser.add_argument("--folder", type=Path, help="where the temporary folders go")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; the pipeline takes one")
    parser.add_argument("--json", type=Path, help="file for the figures, written after each stage")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--generate", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.generate is not None:
        generate(arguments.folder, arguments.generate)
        return
    if arguments.stage:
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
        logging.getLogger("refine").setLevel(logging.INFO)
        print(json.dumps(run_stage(arguments.stage, arguments.folder, arguments.threads)))
        return
    batch_sizes = arguments.batch_size or [max(1, n // STEPS) for n in arguments.ratings]
    if len(batch_sizes) != len(arguments.ratings):
        parser.error("--batch-size needs as many values as --ratings")
    print(
        table(
            run(
                arguments.ratings,
                batch_sizes,
                arguments.folder,
                arguments.threads,
                arguments.json,
            )
        )
    )


if __name__ == "__main__":
    main()
