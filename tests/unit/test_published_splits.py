"""The published numbers of the real datasets, from every source at hand."""

import csv
from pathlib import Path

import polars as pl
import pytest
import yaml
from dataset_files import READING, Parts, Tables, source_json

from refine.datasets.readers import read
from refine.datasets.sources import fetch

ROOT = Path(__file__).resolve().parents[2]
CONFIG = yaml.safe_load((ROOT / "config/config.yaml").read_text(encoding="utf-8"))


def prepare(dataset, rung, mirror, folder):
    """Fetches one source of the registry, reads and splits it with the dataset's settings."""
    entry = CONFIG["datasets"][dataset]
    fetch(dataset, [rung], folder, str(mirror))
    read(
        folder / "source.json",
        folder / "interactions.parquet",
        folder / "items.parquet",
        folder / "reading.json",
        reading=READING | entry.get("reading", {}),
        digest=entry["digest"],
    )
    return Parts(
        folder / "interactions.parquet",
        folder / "items.parquet",
        folder / "split",
        published=entry["published"]["statistics"],
    )


def released(mirror, path):
    with (mirror / "release" / path).open(encoding="utf-8") as stream:
        return {(int(row[0]), int(row[1])) for row in list(csv.reader(stream))[1:]}


def rung(dataset, ratings):
    """The registry's source at the mirror with this file."""
    return next(
        source
        for source in CONFIG["datasets"][dataset]["sources"]
        if source["at"] == "mirror" and source["files"]["ratings"] == ratings
    )


def check_published(statistics, published):
    """Our numbers at the precision of the published ones."""
    assert published
    for name, value in published.items():
        assert round(statistics[name], 4 if name == "density" else 2) == value, name


@pytest.mark.parametrize("ratings", ["u.data", "ml-100k.inter"])
def test_ml100k(mirror, tmp_path, ratings):
    parts = prepare("ml100k", rung("ml100k", ratings), mirror, tmp_path)
    check_published(
        parts.statistics,
        {
            "users": 938,
            "items": 1008,
            "ratings": 95215,
            "density": 0.1007,
            "negatives_per_positive": 0.75,
            "validation": 5018,
            "test": 10514,
        },
    )
    check_published(parts.statistics, CONFIG["datasets"]["ml100k"]["published"]["statistics"])
    assert parts.pairs("validation") == released(mirror, "ml100k/ML-100K_validation.csv")
    assert parts.pairs("test") == released(mirror, "ml100k/ML-100K_test.csv")
    assert parts.pairs("train") == released(mirror, "ml100k/ML-100K_train_original.csv")


def test_both_sources_of_ml100k_give_the_same_split(mirror, tmp_path):
    digests = set()
    for ratings in ("u.data", "ml-100k.inter"):
        parts = prepare("ml100k", rung("ml100k", ratings), mirror, tmp_path / ratings)
        digests.add(parts.statistics["split_digest"])
    assert len(digests) == 1
    files = [tmp_path / name / "interactions.parquet" for name in ("u.data", "ml-100k.inter")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.fixture(scope="module")
def ml1m(mirror, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ml1m")
    return folder, prepare("ml1m", rung("ml1m", "ml-1m.inter"), mirror, folder)


def test_ml1m(ml1m):
    _, parts = ml1m
    check_published(
        parts.statistics,
        {
            "users": 6034,
            "items": 3125,
            "ratings": 994338,
            "density": 0.0527,
            "negatives_per_positive": 0.73,
            "validation": 54680,
            "test": 112428,
        },
    )
    check_published(parts.statistics, CONFIG["datasets"]["ml1m"]["published"]["statistics"])


def test_original_layout_of_ml1m_gives_the_same(mirror, ml1m, tmp_path):
    """The publisher's file, rebuilt: its own separator, another row order, times beside."""
    inter, theirs = ml1m
    rows = pl.read_parquet(inter / "interactions.parquet").sample(fraction=1, shuffle=True, seed=1)
    folder = tmp_path / "dat"
    folder.mkdir()
    text = rows.select(
        pl.format("{}::{}::{}::978300760", "user_id", "item_id", "rating").str.join("\n")
    ).item()
    (folder / "ratings.dat").write_text(text + "\n")
    (folder / "movies.dat").write_bytes((mirror / "ml1m/movies.dat").read_bytes())
    source = rung("ml1m", "ratings.dat") | {"at": str(folder)}
    ours = prepare("ml1m", source, mirror, tmp_path / "out")
    assert ours.statistics == theirs.statistics
    for part in ("train", "validation", "test"):
        assert ours.coded[part].drop("timestamp").equals(theirs.coded[part].drop("timestamp"))
    items = [folder / "items.parquet" for folder in (inter, tmp_path / "out")]
    assert items[0].read_bytes() == items[1].read_bytes()


def test_netflix_titles_and_genres(mirror, tmp_path):
    """The real titles and genres, with two ratings a movie in the publisher's layout."""
    for name in ("movie_titles.csv", "netflix_genres.csv"):
        (tmp_path / name).write_bytes((mirror / "netflix1m" / name).read_bytes())
    lines = (f"{movie}:\n7,5,2005-01-01\n8,2,2005-01-02\n" for movie in range(1, 17_771))
    (tmp_path / "combined_data_1.txt").write_text("".join(lines))
    files = {
        "ratings": [{"path": "combined_data_1.txt"}],
        "items": {"path": "movie_titles.csv"},
        "genres": {"path": "netflix_genres.csv"},
    }
    tables = Tables(source_json(tmp_path, "netflix-prize", files))
    counts = tables.report["item_file"]
    assert counts["listed"] == 17_770
    assert counts["without_genres"] == 17_770 - 12_279
    assert counts["without_year"] == 7
    assert len(tables.items) == 12_279  # none of the seven undated ones has genres
    titles = dict(tables.items.select("item_id", "title").iter_rows())
    assert titles[2361] == "Sex, Secrets, and Lies"
    assert titles[3] == "Character"
