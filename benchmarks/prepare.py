"""Time and peak memory of preparing ratings of the size and layout of the Netflix Prize.

Generates files like the original (one text file a movie, in a tar; 17,770 movies and at full size
480,189 users, with power laws of about the real steepness; titles with commas; genres for the
12,279 most popular movies), then runs each stage of the preparation in a process of its own:

    PYTHONPATH=src python benchmarks/prepare.py 100_000_000 --folder /scratch

The files (about 22 bytes a rating, and as much again for the copy that is fetched) are deleted at
the end.
"""

import argparse
import datetime
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from refine.datasets.readers import read
from refine.datasets.sources import fetch
from refine.splits.split import split_dataset

N_RATINGS, N_USERS, N_MOVIES, N_WITH_GENRES = 100_480_507, 480_189, 17_770, 12_279
HIGHEST_USER_ID = 2_649_429
FIRST_DAY, N_DAYS = datetime.date(1999, 11, 11), 2243
GENRES = ("Action", "Comedy", "Crime", "Documentary", "Drama", "Horror", "Romance", "Sci-Fi")


def generate(
    folder: Path,
    n_ratings: int,
    seed: int = 2024,
    *,
    n_users: int | None = None,
    n_movies: int = N_MOVIES,
) -> None:
    """Writes training_set.tar, movie_titles.txt and netflix_genres.csv, one movie at a time.

    Args:
        folder: where the files go.
        n_ratings: how many, exactly.
        seed: the same seed gives the same files.
        n_users: by default as many for each rating as in the Netflix Prize, 10,000 at least.
        n_movies: fewer than in the Netflix Prize have the same power law.
    """
    random = np.random.default_rng(seed)
    if n_users is None:
        n_users = max(10_000, min(N_USERS, round(N_USERS * n_ratings / N_RATINGS)))
    user_ids = np.sort(random.choice(HIGHEST_USER_ID, n_users, replace=False)) + 1
    activity = random.permutation(1.0 / (np.arange(n_users) + 2000 * n_users / N_USERS) ** 0.9)
    cumulative = np.cumsum(activity / activity.sum())
    shares = np.cumsum(1.0 / (np.arange(n_movies) + 150 * n_movies / N_MOVIES) ** 1.15)
    sizes = np.diff(np.rint(n_ratings * shares / shares[-1]).astype(int), prepend=0)
    sizes = random.permutation(sizes)
    days = pl.date_range(FIRST_DAY, FIRST_DAY + datetime.timedelta(N_DAYS - 1), eager=True).cast(
        pl.String
    )

    with tarfile.open(folder / "training_set.tar", "w") as archive:
        for movie, size in enumerate(sizes, start=1):
            # Distinct users in random order, drawn by their activity.
            users = np.empty(0, dtype=int)
            while len(users) < size:
                drawn = np.searchsorted(cumulative, random.random(size + 8)).clip(max=n_users - 1)
                users = np.union1d(users, drawn)
            users = random.permutation(users)[:size]
            lines = io.BytesIO(f"{movie}:\n".encode())
            lines.seek(0, io.SEEK_END)
            pl.DataFrame(
                {
                    "user": user_ids[users],
                    "rating": random.choice(5, len(users), p=[0.05, 0.10, 0.29, 0.33, 0.23]) + 1,
                    "date": days[random.integers(0, N_DAYS, len(users))],
                }
            ).write_csv(lines, include_header=False)
            member = tarfile.TarInfo(f"training_set/mv_{movie:07d}.txt")
            member.size = lines.tell()
            lines.seek(0)
            archive.addfile(member, lines)

    years = random.integers(1930, 2006, n_movies)
    titles = [
        f"{movie},{year},The Movie, Part {movie}" for movie, year in enumerate(years, start=1)
    ]
    (folder / "movie_titles.txt").write_text("\n".join(titles) + "\n", encoding="latin-1")
    movies = np.sort(np.argsort(-sizes)[:N_WITH_GENRES]) + 1  # the most popular: the hard case
    genres = [f"{movie},{'|'.join(random.choice(GENRES, 2, replace=False))}" for movie in movies]
    (folder / "netflix_genres.csv").write_text(
        "movieId,genres\n" + "\n".join(genres) + "\n", encoding="utf-8"
    )


def fetch_stage(folder: Path) -> None:
    """Copies the files and takes their checksums."""
    files = {
        "ratings": "training_set.tar",
        "items": "movie_titles.txt",
        "genres": "netflix_genres.csv",
    }
    source = {"at": str(folder), "files": files, "reader": "netflix-prize"}
    fetch("netflix1m", [source], folder / "fetched", None)


def read_stage(folder: Path) -> None:
    """Raw files -> interactions.parquet and items.parquet."""
    read(
        folder / "fetched/source.json",
        folder / "interactions.parquet",
        folder / "items.parquet",
        folder / "reading.json",
        reading={"require": ["title", "year", "genres"], "duplicates": "last", "order": "file"},
        digest=None,
    )


def split_stage(folder: Path) -> None:
    """Draws 5,000 users, takes the 5-core, and splits."""
    split_dataset(
        folder / "interactions.parquet",
        folder / "items.parquet",
        folder / "split",
        subset={"users": 5000, "seed": 2024},
        split={
            "min_positives": 5,
            "method": "random",
            "validation": 0.1,
            "test": 0.2,
            "drop_cold_items": True,
            "seed": 2024,
        },
        published=None,
    )


STAGES: dict[str, Callable[[Path], None]] = {
    "fetch": fetch_stage,
    "read": read_stage,
    "split": split_stage,
}


def run_stage(name: str, folder: Path) -> None:
    """Runs one stage in this process and prints its time and peak resident memory as JSON."""
    started = time.perf_counter()
    STAGES[name](folder)
    seconds = time.perf_counter() - started
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    print(json.dumps({"seconds": seconds, "peak_gib": int(peak.split()[1]) / 2**20}))


def main() -> None:
    """Generates, measures, prints a table."""
    parser = argparse.ArgumentParser(description="Time and memory of the preparation.")
    parser.add_argument("ratings", type=int, nargs="?", default=100_000_000)
    parser.add_argument("--folder", type=Path, help="where the temporary folder goes")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        run_stage(arguments.stage, arguments.folder)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        started = time.perf_counter()
        generate(folder, arguments.ratings)
        print(f"generated in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        print("| stage | seconds | peak GiB |\n|---|---|---|")
        for stage in STAGES:
            done = subprocess.run(  # noqa: S603 - this very file
                [sys.executable, __file__, "--stage", stage, "--folder", name],
                check=True,
                stdout=subprocess.PIPE,
            )
            row = json.loads(done.stdout)
            print(f"| {stage} | {row['seconds']:.1f} | {row['peak_gib']:.2f} |", flush=True)
        counts = json.loads((folder / "reading.json").read_text(encoding="utf-8"))["ratings"]
        statistics = json.loads((folder / "split/statistics.json").read_text(encoding="utf-8"))
        print(
            f"\n{counts['read']:,} ratings read, {counts['kept']:,} of them of items with genres; "
            f"after the draw and the core: {statistics['users']:,} users, "
            f"{statistics['items']:,} items, {statistics['ratings']:,} ratings"
        )


if __name__ == "__main__":
    main()
