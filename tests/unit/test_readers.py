"""Every format, and everything that real files have wrong with them."""

import json
import logging

import polars as pl
import pyarrow.parquet as pq
import pytest
from dataset_files import ITEMS_CSV, Tables, source, source_json, tar_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from refine.artifacts import interactions_schema, items_schema, read_table
from refine.datasets import tables as tables_module
from refine.datasets.formats import ML100K_GENRES
from refine.datasets.tables import DataError

U_DATA = "196\t1\t3\t881250949\n22\t2\t5\t878887116\n196\t267\t4\t0\n"
GENRE_FLAGS = "|".join(str(int(genre in ("Action", "War"))) for genre in ML100K_GENRES)
UNKNOWN_FLAGS = "|".join(str(int(genre == "unknown")) for genre in ML100K_GENRES)
U_ITEM = (
    f"1|Mis\xe9rables, Les (1995)|01-Jan-1995||http://x|{GENRE_FLAGS}\n"
    f"2|Land Before Time (1994) (V)|01-Jan-1994||http://x|{GENRE_FLAGS}\n"
    f"267|unknown||||{UNKNOWN_FLAGS}\n"
)
INTER = (
    "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    "196\t1\t3\t881250949\n22\t2\t5\t878887116\n196\t267\t4.0\t0.0\n"
)
ITEM = (
    "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    "1\tMisérables, Les\t1995\tAction War\n"
    "2\tLand Before Time (1994)\tV\tAction War\n"
    "267\tunkonwn\tunkonwn\tunknown\n"
)
RATINGS = "user_id,item_id,rating\n1,1,5\n1,2,3\n2,2,4\n"

LOOSE = {"require": ["title", "genres"]}


def table(folder, ratings=RATINGS, items=ITEMS_CSV, **options):
    return source(folder, "table", options, ratings=ratings, items=items)


# --- Formats ---


def test_movielens_100k(tmp_path):
    path = source(tmp_path, "movielens-100k", ratings=U_DATA, items=U_ITEM.encode("latin-1"))
    tables = Tables(path, **LOOSE)
    assert tables.interactions.rows() == [
        (196, 1, 3, 881250949),
        (22, 2, 5, 878887116),
        (196, 267, 4, 0),
    ]
    assert tables.items.rows() == [
        (1, "Misérables, Les", 1995, ["Action", "War"]),
        (2, "Land Before Time", 1994, ["Action", "War"]),
        (267, "unknown", None, ["unknown"]),
    ]
    assert tables.report["item_file"]["latin1_rows"] == 1
    read_table(
        tables.interactions_path, interactions_schema(pq.read_schema(tables.items_path)[0].type)
    )
    read_table(tables.items_path, items_schema(pq.read_schema(tables.items_path)[0].type))


def test_recbole_files_give_the_same(tmp_path, caplog):
    ours = Tables(source(tmp_path / "a", "movielens-100k", ratings=U_DATA, items=U_ITEM), **LOOSE)
    theirs = Tables(source(tmp_path / "b", "recbole", ratings=INTER, items=ITEM), **LOOSE)
    assert ours.interactions.equals(theirs.interactions)
    assert ours.report["digest"] == theirs.report["digest"]
    assert theirs.items.rows()[:2] == ours.items.rows()[:2]
    assert theirs.items.row(2) == (267, "unkonwn", None, ["unknown"])
    assert theirs.report["item_file"]["year_not_a_number"] == 2
    assert "item 267 has a year that is no number" in caplog.text


def test_movielens_double_colon(tmp_path):
    path = source(
        tmp_path,
        "movielens",
        ratings="1::1193::5::978300760\n1::2::3::978302109\n",
        items="1193::Amen: A :Love Story (1975)::Drama|War\n2::Caf\xe9 (1999)::Children's\n".encode(
            "latin-1"
        ),
    )
    tables = Tables(path)
    assert tables.interactions.rows() == [(1, 1193, 5, 978300760), (1, 2, 3, 978302109)]
    assert tables.items.rows() == [
        (2, "Café", 1999, ["Children's"]),
        (1193, "Amen: A :Love Story", 1975, ["Drama", "War"]),
    ]


NETFLIX_TITLES = "1,2003,Dinosaur Planet\n2,2004,Sex, Secrets, and Lies\n3,NULL,Undated\n"
NETFLIX_GENRES = "movieId,genres\n1,Documentary|Family\n2,Drama\n3,Drama\n"
MOVIES = {
    1: "1:\n10,3,2005-09-06\n20,5,2005-05-13\n",
    2: "2:\n10,4,2005-10-19\n30,1,2004-08-09\n",
    3: "3:\n30,5,2004-08-09\n",
}


@pytest.mark.parametrize("layout", ["tar", "combined"])
@pytest.mark.parametrize("chunk", [8, 40, 10**6])
def test_netflix_prize(tmp_path, monkeypatch, layout, chunk):
    monkeypatch.setattr(tables_module, "CHUNK_BYTES", chunk)
    monkeypatch.setattr("refine.datasets.formats.CHUNK_BYTES", chunk)
    files = {"items": NETFLIX_TITLES, "genres": NETFLIX_GENRES}
    combined = [MOVIES[1] + MOVIES[2], MOVIES[3]]
    path = source(tmp_path, "netflix-prize", ratings=combined, **files)
    if layout == "tar":
        members = {f"training_set/mv_{n:07}.txt": MOVIES[n].encode() for n in (3, 1, 2)}
        (tmp_path / "training_set.tar").write_bytes(tar_bytes(members))
        record = json.loads(path.read_text())["files"] | {"ratings": {"path": "training_set.tar"}}
        path = source_json(tmp_path, "netflix-prize", record)
    tables = Tables(path)
    days = {"2005-09-06": 1125964800, "2005-05-13": 1115942400, "2005-10-19": 1129680000}
    assert tables.interactions.rows() == [
        (10, 1, 3, days["2005-09-06"]),
        (20, 1, 5, days["2005-05-13"]),
        (10, 2, 4, days["2005-10-19"]),
        (30, 2, 1, 1092009600),
    ]
    assert tables.items.rows() == [
        (1, "Dinosaur Planet", 2003, ["Documentary", "Family"]),
        (2, "Sex, Secrets, and Lies", 2004, ["Drama"]),
    ]
    assert tables.report["dropped"]["item_without_year"] == 1
    assert tables.report["ratings"] == {"read": 5, "kept": 4, "users": 3, "items": 2}


def test_netflix_row_of_a_movie_file_is_named(tmp_path):
    members = {
        "mv_0000001.txt": MOVIES[1].encode(),
        "mv_0000002.txt": b"2:\n10,4,2005-10-19\n30,6,2004-08-09",
    }
    (tmp_path / "training_set.tar").write_bytes(tar_bytes(members))
    source(tmp_path, "netflix-prize", items=NETFLIX_TITLES, genres=NETFLIX_GENRES)
    files = {name: {"path": f"{name}.csv"} for name in ("items", "genres")}
    path = source_json(tmp_path, "netflix-prize", files | {"ratings": {"path": "training_set.tar"}})
    with pytest.raises(DataError, match=r"training_set\.tar, mv_0000002\.txt, row 3: .*'6'"):
        Tables(path)


@pytest.mark.parametrize(
    ("ratings", "message"),
    [
        ("10,3,2005-09-06\n", r"row 1: the item_id is missing"),
        ("x:\n10,3,2005-09-06\n", r"row 1: 'x:' is no movie number"),
        ("1:\n,3,2005-09-06\n", r"row 2: the user_id is missing"),
        ("1:\n\n10,3,2005-09-06\n10,3\n4,4,yesterday\n", r"row 5: the timestamp 'yesterday'"),
    ],
)
def test_netflix_faults(tmp_path, ratings, message):
    path = source(
        tmp_path, "netflix-prize", ratings=ratings, items=NETFLIX_TITLES, genres=NETFLIX_GENRES
    )
    with pytest.raises(DataError, match=message):
        Tables(path)


def test_table_with_a_column_mapping(tmp_path):
    path = source(
        tmp_path,
        "table",
        {
            "separator": ";",
            "genre_separator": ",",
            "round": "up",
            "columns": {
                "user_id": "Reader",
                "item_id": ["Book", "isbn"],
                "rating": "Stars",
                "timestamp": "When",
                "title": "Name",
                "year": "Published",
                "genres": "Shelves",
            },
        },
        ratings='Stars;Note;Reader;Book;When\n4.5;"long; and\n""odd""";ann;X1;2020-01-02 03:04:05\n'
        "3;;bob;007;2020-01-02\n 0.5 ; ; bob ; X1 ;\n",
        items='isbn;Name;Published;Shelves\nX1;"Heat; or so";1995.0;"Crime, Noir,"\n'
        "007;Dr. No (1962);1962-05-01;Spies\n",
    )
    tables = Tables(path)
    assert tables.interactions.rows() == [
        ("ann", "X1", 5, 1577934245),
        ("bob", "007", 3, 1577923200),
        ("bob", "X1", 1, None),
    ]
    assert tables.items.rows() == [
        ("007", "Dr. No", 1962, ["Spies"]),
        ("X1", "Heat; or so", 1995, ["Crime", "Noir"]),
    ]
    assert tables.report["repaired"] == {"rating_rounded": 2, "timestamp_missing": 1}
    assert tables.report["ids"] == "text"


def test_parquet_equals_csv(tmp_path):
    csv = Tables(table(tmp_path / "csv"))
    folder = tmp_path / "parquet"
    folder.mkdir()
    ratings = pl.DataFrame(
        {"user_id": [1.0, 1.0, 2.0], "item_id": [1, 2, 2], "rating": [5.0, 3.0, 4.0]}
    )
    items = pl.DataFrame(
        {
            "item_id": [1, 2],
            "title": ["Heat", "Toy Story"],
            "year": [1995, 1995],
            "genres": [["Action", "Crime"], ["Animation"]],
        }
    )
    ratings.write_parquet(folder / "r.parquet")
    items.write_parquet(folder / "i.parquet")
    files = {"ratings": {"path": "r.parquet"}, "items": {"path": "i.parquet"}}
    parquet = Tables(source_json(folder, "table", files))
    assert csv.interactions.equals(parquet.interactions)
    assert csv.items.equals(parquet.items)
    assert csv.report["digest"] == parquet.report["digest"]


def test_parquet_rows_are_counted_from_one(tmp_path):
    pl.DataFrame({"user_id": [1, 2], "item_id": [1, 1], "rating": [5, 9]}).write_parquet(
        tmp_path / "r.parquet"
    )
    (tmp_path / "i.csv").write_text(ITEMS_CSV)
    files = {"ratings": {"path": "r.parquet"}, "items": {"path": "i.csv"}}
    with pytest.raises(DataError, match=r"r\.parquet, row 2: the rating '9' is not between"):
        Tables(source_json(tmp_path, "table", files))


def test_ratings_alone(tmp_path):
    path = source(tmp_path, "table", ratings=RATINGS)
    with pytest.raises(DataError, match=r"no file of items.*reading\.require: \[\]"):
        Tables(path)
    tables = Tables(path, require=[])
    assert tables.items.rows() == [(1, "1", None, []), (2, "2", None, [])]


# --- What files have wrong with them ---


@pytest.mark.parametrize(
    ("ratings", "message"),
    [
        ("", r"ratings\.csv: the file is empty"),
        ("user_id,item_id,rating\n", r"ratings\.csv: there are no ratings"),
        (
            "userid,item_id,rating\n1,1,5\n",
            r"ratings\.csv: there is no column 'user_id'; it has 'userid', .*columns",
        ),
        ("user_id,rating,rating\n1,1,5\n", r"row 1: column 'rating' appears twice"),
        (RATINGS + ",2,3\n", r"ratings\.csv, row 5: the user_id is missing"),
        (RATINGS + "1,  ,3\n", r"row 5: the item_id is missing"),
        (RATINGS + "1,2,\n", r"row 5: the rating is missing"),
        (RATINGS + "1,2,good\n", r"row 5: the rating 'good' is no number"),
        (RATINGS + "1,2,nan\n", r"row 5: the rating 'nan' is no number"),
        (RATINGS + "1,2,3.5\n", r"row 5: the rating '3\.5' is not whole; set `round: up`"),
        (RATINGS + "1,2,0\n", r"row 5: the rating '0' is not between 1 and 5"),
        (RATINGS + "1,2,6\n", r"row 5: the rating '6' is not between 1 and 5"),
        (RATINGS + "1,2,3,4\n", r"row 5: 4 fields where 3 are expected"),
        (RATINGS + '1,2,"3\n', r"a quote that is not closed"),
        (RATINGS.encode() + b"1,caf\xe9,3\n", r"row 5: byte 0xE9 is not UTF-8.*latin-1"),
    ],
)
def test_refused_with_file_row_and_remedy(tmp_path, ratings, message):
    with pytest.raises(DataError, match=message):
        Tables(table(tmp_path, ratings))
    assert list((tmp_path / "read").glob("*")) == []


def test_rows_are_right_far_into_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tables_module, "CHUNK_BYTES", 100)
    rows = "".join(f"{user},1,5\n" for user in range(1, 101))
    with pytest.raises(DataError, match="row 102: the rating '9'"):
        Tables(table(tmp_path, "user_id,item_id,rating\n" + rows + "7,1,9\n"))


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("", r"items\.csv: the file is empty"),
        ("item_id,title,year,genres\n", r"items\.csv: there are no rows"),
        ("item,title\n1,Heat\n", r"items\.csv: there is no column 'item_id'; it has 'item'"),
        ("item_id,title,year,genres\n,Heat,1995,Drama\n", r"row 2: the item_id is missing"),
        ("item_id,title,year\n1,Heat,1995\n", r"no item has a value for genres.*reading\.require"),
    ],
)
def test_item_files_are_refused(tmp_path, items, message):
    with pytest.raises(DataError, match=message):
        Tables(table(tmp_path, items=items))


def test_a_mapped_column_must_exist(tmp_path):
    with pytest.raises(DataError, match=r"ratings\.csv: there is no column 'when'"):
        Tables(table(tmp_path, columns={"timestamp": "when"}))
    with pytest.raises(DataError, match=r"`columns` maps 'titel'; set 'title'"):
        Tables(table(tmp_path, columns={"titel": "title"}))


def test_unknown_reader_and_missing_file(tmp_path):
    with pytest.raises(
        DataError, match=r"no reader 'movielens_100k'; set `reader` to 'movielens-1"
    ):
        Tables(source(tmp_path, "movielens_100k", ratings=U_DATA))
    path = table(tmp_path)
    (tmp_path / "ratings.csv").unlink()
    with pytest.raises(DataError, match=r"ratings\.csv: the file is gone; delete .*source\.json"):
        Tables(path)


def test_blank_lines_marks_and_line_ends_do_not_matter(tmp_path):
    plain = Tables(table(tmp_path / "a"))
    odd = "\ufeff" + RATINGS.replace("\n", "\r\n").replace("1,2,3", "\r\n 1 , 2 ,3.0") + "\r\n\r\n"
    other = Tables(table(tmp_path / "b", odd, ITEMS_CSV.replace("\n", "\r\n") + "\r\n"))
    assert plain.interactions.equals(other.interactions)
    assert plain.items.equals(other.items)
    assert other.report["dropped"]["blank"] == 3


def test_items_that_lack_something_are_dropped_and_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="refine.datasets")
    items = (
        "item_id,title,year,genres\n1,Heat,1995,Action\n2,,1995,Action\n3,Old,,Action\n"
        "4,None,1990,\n5,Dated (1984),,Drama\n1,Heat again,1995,Action\n6,Unrated,1995,Drama\n"
    )
    ratings = "user_id,item_id,rating\n" + "".join(
        f"{user},{item},4\n" for item in (1, 2, 3, 4, 5, 99) for user in range(item)
    )
    tables = Tables(table(tmp_path, ratings, items))
    assert tables.items.rows() == [(1, "Heat", 1995, ["Action"]), (5, "Dated", 1984, ["Drama"])]
    dropped = {"item_without_title": 2, "item_without_year": 3, "item_without_genres": 4}
    assert tables.report["dropped"] == dropped | {
        "blank": 0,
        "item_not_listed": 99,
        "duplicate": 0,
    }
    assert tables.report["item_file"] == {
        "listed": 6,
        "blank_rows": 0,
        "listed_again": 1,
        "year_not_a_number": 0,
        "latin1_rows": 0,
        "without_title": 1,
        "without_year": 1,
        "without_genres": 1,
    }
    assert "99 item_not_listed" in caplog.text
    everything = Tables(table(tmp_path, ratings, items), require=[])
    assert len(everything.items) == 6
    assert everything.items.row(1) == (2, "2", 1995, ["Action"])


def test_nothing_left_is_refused(tmp_path):
    ratings = "user_id,item_id,rating\n1,99,5\n"
    with pytest.raises(DataError, match=r"no rating is left \(item_not_listed: 1\)"):
        Tables(table(tmp_path, ratings))


DUPLICATES = "user_id,item_id,rating\n1,1,5\n1,2,3\n1,1,2\n2,2,4\n1,1,4\n"


@pytest.mark.parametrize(
    ("policy", "rows"),
    [
        ("last", [(1, 2, 3), (2, 2, 4), (1, 1, 4)]),
        ("first", [(1, 1, 5), (1, 2, 3), (2, 2, 4)]),
    ],
)
@pytest.mark.parametrize("chunk", [30, 10**6])
def test_duplicates(tmp_path, monkeypatch, policy, rows, chunk):
    monkeypatch.setattr(tables_module, "CHUNK_BYTES", chunk)
    tables = Tables(table(tmp_path, DUPLICATES), duplicates=policy)
    assert tables.rows() == rows
    assert tables.report["dropped"]["duplicate"] == 2
    assert tables.report["ratings"]["kept"] == 3


def test_duplicates_refused_with_their_rows(tmp_path):
    with pytest.raises(DataError, match=r"row 2 and .*row 4 and .*row 6: user 1 rates item 1"):
        Tables(table(tmp_path, DUPLICATES), duplicates="refuse")
    Tables(table(tmp_path), duplicates="refuse")


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 2), st.integers(1, 5)), min_size=1, max_size=30
    ),
    st.sampled_from(["last", "first"]),
    st.integers(20, 200),
)
def test_duplicates_equal_a_dictionary(tmp_path_factory, rows, policy, chunk):
    text = "user_id,item_id,rating\n" + "".join("{},{},{}\n".format(*row) for row in rows)
    kept = {}
    for user, item, rating in rows:
        if policy == "last" or (user, item) not in kept:
            kept[user, item] = rating
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables_module, "CHUNK_BYTES", chunk)
        tables = Tables(table(tmp_path_factory.mktemp("d"), text), duplicates=policy)
    assert {(user, item): rating for user, item, rating in tables.rows()} == kept


def test_sorted_order(tmp_path):
    shuffled = "user_id,item_id,rating\n10,2,4\n9,2,1\n10,1,5\n9,1,3\n"
    tables = Tables(table(tmp_path, shuffled), order="sorted")
    assert tables.rows() == [(9, 1, 3), (9, 2, 1), (10, 1, 5), (10, 2, 4)]


@pytest.mark.parametrize("late", ["x7", "007", "+5", "12345678901234567890"])
def test_one_odd_id_makes_all_ids_text(tmp_path, monkeypatch, late):
    monkeypatch.setattr(tables_module, "CHUNK_BYTES", 40)
    rows = "".join(f"{user},1,5\n" for user in range(1, 40))
    tables = Tables(table(tmp_path, f"user_id,item_id,rating\n{rows}{late},2,5\n"))
    assert tables.interactions["user_id"].to_list() == [*map(str, range(1, 40)), late]
    assert tables.interactions["item_id"].dtype == tables.items["item_id"].dtype == pl.String


# --- The digest ---


def test_digest_is_recorded_and_then_checked(tmp_path):
    first = Tables(table(tmp_path))
    recorded = tmp_path / "ratings.digest"
    assert recorded.read_text().strip() == first.report["digest"]
    assert first.report["digest_checked_against"] == "first reading"
    reordered = "rating,user_id,item_id\n4,2,2\n5,1,1\n3,1,2\n"
    assert Tables(table(tmp_path, reordered)).report["digest_checked_against"] == "first reading"
    with pytest.raises(DataError, match=r"at the first reading.*delete .*ratings\.digest"):
        Tables(table(tmp_path, RATINGS + "2,1,1\n"))


def test_digest_of_the_registry(tmp_path):
    digest = Tables(table(tmp_path / "a")).report["digest"]
    tables = Tables(table(tmp_path / "b"), digest=digest)
    assert tables.report["digest_checked_against"] == "registry"
    assert not (tmp_path / "b/ratings.digest").exists()
    with pytest.raises(DataError, match="damaged, cut short or of another version"):
        Tables(table(tmp_path / "c", RATINGS[:-6]), digest=digest)
    assert list((tmp_path / "c/read").glob("*")) == []


def test_digest_is_of_the_ratings_before_items_are_dropped(tmp_path):
    everything = Tables(table(tmp_path / "a"))
    fewer = Tables(table(tmp_path / "b", items="item_id,title,year,genres\n1,Heat,1995,Drama\n"))
    assert fewer.report["ratings"]["kept"] < everything.report["ratings"]["kept"]
    assert fewer.report["digest"] == everything.report["digest"]


def test_same_input_same_bytes(tmp_path):
    for folder in ("a", "b"):
        Tables(table(tmp_path / folder))
    for name in ("interactions.parquet", "items.parquet"):
        first, second = (tmp_path / folder / "read" / name for folder in ("a", "b"))
        assert first.read_bytes() == second.read_bytes()
