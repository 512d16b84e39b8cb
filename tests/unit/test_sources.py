import functools
import http.server
import json
import threading
import zipfile

import pytest
from dataset_files import ITEMS_CSV, Tables, tar_bytes

from refine.datasets import download as download_module
from refine.datasets.download import sha256_of
from refine.datasets.sources import FetchError, fetch

RATINGS_CSV = "user_id,item_id,rating,timestamp\n1,1,5,10\n1,2,3,11\n2,2,4,12\n"
FILES = {"ratings": "ratings.csv", "items": "items.csv"}
MIRROR = {"at": "mirror", "files": FILES, "reader": "table"}


@pytest.fixture
def place(tmp_path):
    """A mirror folder with one dataset."""
    folder = tmp_path / "mirror/mine"
    folder.mkdir(parents=True)
    (folder / "ratings.csv").write_text(RATINGS_CSV)
    (folder / "items.csv").write_text(ITEMS_CSV)
    return folder.parent


@pytest.fixture
def serve():
    """Serves folders over HTTP on this machine; gives the URL."""
    servers = []

    def start(folder):
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def record_of(folder):
    return json.loads((folder / "source.json").read_text())


def test_mirror_folder(place, tmp_path):
    fetch("mine", [MIRROR | {"separator": ","}], tmp_path / "out", str(place))
    record = record_of(tmp_path / "out")
    ratings = tmp_path / "out" / record["files"]["ratings"]["path"]
    assert ratings == tmp_path / "out/raw/ratings.csv"
    assert ratings.read_text() == RATINGS_CSV
    assert record == {
        "dataset": "mine",
        "at": "mirror",
        "reader": "table",
        "options": {"separator": ","},
        "files": {
            "ratings": {
                "path": "raw/ratings.csv",
                "bytes": len(RATINGS_CSV),
                "sha256": sha256_of(place / "mine/ratings.csv"),
            },
            "items": {
                "path": "raw/items.csv",
                "bytes": len(ITEMS_CSV),
                "sha256": sha256_of(place / "mine/items.csv"),
            },
        },
    }


@pytest.mark.parametrize("slash", ["", "/"])
def test_mirror_url_gives_the_same_as_its_folder(place, serve, tmp_path, slash):
    fetch("mine", [MIRROR], tmp_path / "a", str(place))
    fetch("mine", [MIRROR], tmp_path / "b", serve(place) + slash)
    assert (tmp_path / "a/source.json").read_bytes() == (tmp_path / "b/source.json").read_bytes()


def test_plain_http_to_another_machine_is_refused(tmp_path):
    with pytest.raises(FetchError, match="only https"):
        fetch("mine", [MIRROR], tmp_path / "out", "http://example.org/mirror")


def test_the_first_source_that_works_is_taken(place, tmp_path):
    sources = [
        {"at": "mirror", "files": {"ratings": "u.data", "items": "u.item"}, "reader": "x"},
        {"at": str(tmp_path / "nowhere"), "files": FILES, "reader": "table"},
        {"at": str(place / "mine"), "files": FILES, "reader": "table"},
        MIRROR,
    ]
    fetch("mine", sources, tmp_path / "out", str(place))
    assert record_of(tmp_path / "out")["at"] == str(place / "mine")
    Tables(tmp_path / "out/source.json")


def test_one_error_names_every_source_and_the_mirror(tmp_path, monkeypatch):
    monkeypatch.setattr(download_module, "ATTEMPTS", 1)
    url = "https://no-such-host.invalid/ml-100k.zip"
    archive = {"at": url, "files": {"ratings": "ml-100k/u.data"}, "reader": "movielens-100k"}
    with pytest.raises(FetchError) as failure:
        fetch("mine", [MIRROR, archive], tmp_path / "out", None)
    message = str(failure.value)
    assert "- mirror: ratings.csv is needed from the mirror: no mirror is set" in message
    assert f"- {url}: {url}: the host cannot be reached" in message
    assert "<mirror>/mine/" in message
    assert "`mirror`" in message
    assert "REFINE_MIRROR" in message
    assert "items.csv, ratings.csv, u.data" in message
    assert not (tmp_path / "out/source.json").exists()


def test_wrong_checksum_moves_on_to_the_next_source(place, tmp_path):
    wrong = MIRROR | {"sha256": {"items": "00" * 32}}
    right = MIRROR | {"sha256": {"items": sha256_of(place / "mine/items.csv")}}
    with pytest.raises(FetchError, match="expected 0000"):
        fetch("mine", [wrong], tmp_path / "out", str(place))
    fetch("mine", [wrong, right], tmp_path / "out", str(place))
    assert (tmp_path / "out/raw/items.csv").read_text() == ITEMS_CSV


def zip_of(folder, files):
    with zipfile.ZipFile(folder / "data.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return folder / "data.zip"


def test_archive_on_the_web_and_in_a_folder(tmp_path, serve):
    path = zip_of(tmp_path, {"data/ratings.csv": RATINGS_CSV, "data/items.csv": ITEMS_CSV})
    files = {role: f"data/{name}" for role, name in FILES.items()}
    for number, at in enumerate((str(path), serve(tmp_path) + "/data.zip")):
        source = {"at": at, "files": files, "reader": "table", "sha256": sha256_of(path)}
        fetch("mine", [source], tmp_path / str(number), None)
        assert (tmp_path / str(number) / "raw/ratings.csv").read_text() == RATINGS_CSV
        with pytest.raises(FetchError, match="sha256"):
            fetch("mine", [source | {"sha256": "00" * 32}], tmp_path / str(number), None)


def test_netflix_archive_with_a_tar_inside(tmp_path):
    inner = tar_bytes(
        {
            "training_set/mv_0000002.txt": b"2:\n7,4,2005-09-06\n9,1,2005-09-07\n",
            "training_set/mv_0000001.txt": b"1:\n7,5,2004-01-01\n",
        }
    )
    outer = tar_bytes(
        {
            "download/training_set.tar": inner,
            "download/movie_titles.txt": "1,2003,Caf\xe9, Noir\n2,2004,B\n".encode("latin-1"),
            "download/README": b"",
        },
        "w:gz",
    )
    (tmp_path / "nf_prize_dataset.tar.gz").write_bytes(outer)
    source = {
        "at": str(tmp_path / "nf_prize_dataset.tar.gz"),
        "files": {
            "ratings": "download/training_set.tar",
            "items": "download/movie_titles.txt",
            "genres": "mirror:netflix_genres.csv",
        },
        "reader": "netflix-prize",
    }
    out = tmp_path / "out"
    with pytest.raises(FetchError, match=r"no mirror is set; or put the file at .*raw/netflix_gen"):
        fetch("netflix1m", [source], out, None)
    (out / "raw/netflix_genres.csv").write_text("movieId,genres\n1,Drama|War\n2,Comedy\n")
    fetch("netflix1m", [source], out, None)
    tables = Tables(out / "source.json")
    assert tables.rows() == [(7, 1, 5), (7, 2, 4), (9, 2, 1)]
    assert tables.items.rows() == [
        (1, "Café, Noir", 2003, ["Drama", "War"]),
        (2, "B", 2004, ["Comedy"]),
    ]


def test_labels_without_reader(place, tmp_path):
    folder = place / "release/mine"
    folder.mkdir(parents=True)
    (folder / "labels.csv").write_text("1,2,4.5\n")
    source = {"at": "mirror", "files": {"labels": "labels.csv"}}
    fetch("release/mine", [source], tmp_path / "out", str(place))
    assert record_of(tmp_path / "out")["reader"] is None
    assert record_of(tmp_path / "out")["files"]["labels"]["path"] == "raw/labels.csv"


def test_ratings_in_several_files(place, tmp_path):
    (place / "mine/more.csv").write_text("user_id,item_id,rating\n3,1,4\n")
    files = FILES | {"ratings": ["ratings.csv", "more.csv"]}
    fetch("mine", [MIRROR | {"files": files}], tmp_path / "out", str(place))
    tables = Tables(tmp_path / "out/source.json")
    assert tables.rows() == [(1, 1, 5), (1, 2, 3), (2, 2, 4), (3, 1, 4)]


def test_files_of_the_same_name_are_refused(tmp_path):
    source = {"at": str(tmp_path), "files": {"ratings": "a/x.csv", "items": "b/x.csv"}}
    with pytest.raises(FetchError, match="same name"):
        fetch("mine", [source], tmp_path / "out", None)


def test_generated(tmp_path):
    files = {"ratings": "ratings.csv", "items": "items.csv", "truth": "truth.csv"}
    fetch("demo", [{"at": "generated", "files": files, "reader": "table"}], tmp_path, None)
    Tables(tmp_path / "source.json")
    assert not (tmp_path / "ratings.digest").exists()


def test_a_source_taken_before_is_replaced(place, tmp_path):
    for content in (RATINGS_CSV, RATINGS_CSV + "2,1,1,1\n"):
        (place / "mine/ratings.csv").write_text(content)
        fetch("mine", [MIRROR], tmp_path / "out", str(place))
        assert (tmp_path / "out/raw/ratings.csv").read_text() == content
