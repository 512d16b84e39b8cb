from pathlib import Path

import polars as pl
import pytest
from feedback_data import Split, release_split, write_source, write_split

from refine.artifacts import (
    CONFIRMED,
    FALSELY_IDENTIFIED,
    FEEDBACK,
    POSITIVE,
    UNDECIDED,
    read_table,
)
from refine.feedback.labels import LabelError
from refine.feedback.release import label_from_release

HEADER = "user_id:token,item_id:token,rating:float"
ROWS = [(1, 10, 5), (1, 20, 3), (1, 30, 2), (2, 10, 3), (2, 20, 1), (2, 40, 2), (3, 10, 4)]
PUBLISHED = ["1,10,5.0", "1,20,4.5", "1,30,0.5", "2,10,3.0", "2,20,1.0", "2,40,2", "3,10,4"]


@pytest.fixture
def split(tmp_path: Path) -> Split:
    return write_split(tmp_path, ROWS)


def label(split: Split, lines: list[str], header: str = HEADER) -> pl.DataFrame:
    path, output = split.folder / "labels.csv", split.folder / "feedback.parquet"
    path.write_text("\n".join([header, *lines]) + "\n")
    source = write_source(split.folder / "source.json", labels=path)
    label_from_release(*split.tables, source, output)
    return pl.DataFrame(read_table(output, FEEDBACK))


def test_published_ratings_become_labels(split: Split) -> None:
    # In another order than ours.
    assert label(split, PUBLISHED[::-1]).rows() == [
        (0, 0, 5, POSITIVE, "rating"),
        (0, 1, 3, FALSELY_IDENTIFIED, "published"),
        (0, 2, 2, CONFIRMED, "published"),
        (1, 0, 3, UNDECIDED, "published"),
        (1, 1, 1, CONFIRMED, "lowest_rating"),
        (1, 3, 2, UNDECIDED, "published"),
        (2, 0, 4, POSITIVE, "rating"),
    ]


def test_ids_that_are_text(tmp_path: Path) -> None:
    split = write_split(tmp_path, [("u1", "007", 3)])
    assert label(split, ["u1,007,4.5"])["label"].to_list() == [FALSELY_IDENTIFIED]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({1: "1,20,4.6"}, "line 3: 4.6 is no published rating"),
        ({1: "1,20,high"}, "line 3: high is no published rating"),
        ({1: "1,20,"}, "line 3: .* is no published rating"),
        ({1: "1,20,2.0"}, r"line 3: published rating 2 does not fit the user's own, 3"),
        ({0: "1,10,4.5"}, "line 2: published rating 4.5 does not fit the user's own, 5"),
        ({4: "2,20,0.5"}, "line 6: published rating 0.5 does not fit the user's own, 1"),
        ({1: "1,30,0.5"}, "user 1 has item 30 more than once"),
        ({1: "1,99,4.5"}, "1 train ratings .* have no published label, and 1 labels no train"),
        ({6: ""}, "1 train ratings .* have no published label, and 0 labels no train"),
        ({6: "3,10,4\n3,20,2"}, "0 train ratings .* and 1 labels no train .* item 20 of user 3"),
    ],
)
def test_labels_of_another_split(split: Split, changes: dict[int, str], message: str) -> None:
    lines = [changes.get(index, line) for index, line in enumerate(PUBLISHED)]
    with pytest.raises(LabelError, match=message):
        label(split, [line for line in lines if line])
    assert not (split.folder / "feedback.parquet").exists()


def test_files_that_are_no_labels(split: Split) -> None:
    with pytest.raises(LabelError, match="published labels have user_id:token"):
        label(split, PUBLISHED, header="user,item,rating")
    (split.folder / "labels.csv").unlink()
    source = split.folder / "source.json"
    with pytest.raises(LabelError, match=r"labels\.csv: cannot be read"):
        label_from_release(*split.tables, source, split.folder / "feedback.parquet")


def test_ml100k(mirror: Path, tmp_path: Path) -> None:
    split = release_split(mirror, tmp_path)
    labels = mirror / "release/ml100k/ML-100K_train_augment.csv"
    source = write_source(tmp_path / "source.json", labels=labels)
    label_from_release(*split.tables, source, tmp_path / "feedback.parquet")
    counts = pl.read_parquet(tmp_path / "feedback.parquet").group_by("label", "reason").len()
    assert {(label, reason): n for label, reason, n in counts.rows()} == {
        (POSITIVE, "rating"): 38881,
        (FALSELY_IDENTIFIED, "published"): 14103,
        (CONFIRMED, "published"): 7957,
        (CONFIRMED, "lowest_rating"): 4900,
        (UNDECIDED, "published"): 13842,
    }
