import io
import tarfile
import zipfile

import pytest
from dataset_files import tar_bytes

from refine.datasets import archives
from refine.datasets.archives import ArchiveError, extract, is_archive

FILES = {"data/u.data": b"1\t2\t3\t4\n" * 1000, "data/u.item": b"x" * 10, "other": b"no"}


def zip_bytes(files=FILES):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tar_with(member):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(member)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.zip", zip_bytes()),
        ("a.tar", tar_bytes(FILES)),
        ("a.tar.gz", tar_bytes(FILES, "w:gz")),
        ("a.tar.xz", tar_bytes(FILES, "w:xz")),
        ("a.tar.gz", tar_bytes({f"./{name}": content for name, content in FILES.items()}, "w:gz")),
    ],
)
def test_extracts_what_is_asked_for_and_nothing_else(tmp_path, name, content):
    assert is_archive(f"https://example.org/{name}")
    (tmp_path / name).write_bytes(content)
    wanted = {"data/u.item": tmp_path / "out/items", "data/u.data": tmp_path / "out/ratings"}
    extract(tmp_path / name, wanted)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"items", "ratings"}
    for member, path in wanted.items():
        assert path.read_bytes() == FILES[member]


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "a\\..\\evil"])
def test_unsafe_names_are_refused(tmp_path, name):
    (tmp_path / "a.tar").write_bytes(tar_bytes({name: b"evil"}))
    with pytest.raises(ArchiveError, match="no safe name"):
        extract(tmp_path / "a.tar", {name: tmp_path / "out"})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
)
def test_only_regular_files_come_out_of_a_tar(tmp_path, kind):
    member = tarfile.TarInfo("u.data")
    member.type = kind
    member.linkname = "/etc/passwd"
    (tmp_path / "a.tar").write_bytes(tar_with(member))
    with pytest.raises(ArchiveError, match="no regular file"):
        extract(tmp_path / "a.tar", {"u.data": tmp_path / "out"})
    assert not (tmp_path / "out").exists()


def test_a_link_in_a_zip_is_refused(tmp_path):
    info = zipfile.ZipInfo("u.data")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(ArchiveError, match="no regular file"):
        extract(tmp_path / "a.zip", {"u.data": tmp_path / "out"})


@pytest.mark.parametrize("content", [zip_bytes(), tar_bytes(FILES, "w:gz")])
def test_a_bomb_is_stopped(tmp_path, monkeypatch, content):
    monkeypatch.setattr(archives, "MAX_BYTES", 5000)
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ArchiveError, match="more than 5000 bytes"):
        extract(tmp_path / "a", {"data/u.data": tmp_path / "out"})
    assert not (tmp_path / "out").exists()


def test_a_zip_that_lies_about_its_size_is_stopped(tmp_path, monkeypatch):
    content = zip_bytes()
    size = len(FILES["data/u.data"]).to_bytes(4, "little")
    assert content.count(size) >= 2
    (tmp_path / "a.zip").write_bytes(content.replace(size, (10).to_bytes(4, "little")))
    with pytest.raises(ArchiveError):
        extract(tmp_path / "a.zip", {"data/u.data": tmp_path / "out"})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [zip_bytes(), tar_bytes(FILES, "w:gz")])
def test_a_cut_archive_is_an_error(tmp_path, content):
    (tmp_path / "a").write_bytes(content[: len(content) // 2])
    with pytest.raises(ArchiveError, match=r"cannot be read|no member"):
        extract(tmp_path / "a", {"data/u.data": tmp_path / "out"})
    assert not (tmp_path / "out").exists()


def test_a_missing_member_is_named(tmp_path):
    (tmp_path / "a.zip").write_bytes(zip_bytes())
    with pytest.raises(ArchiveError, match=r"no member 'data/u\.dat'"):
        extract(tmp_path / "a.zip", {"data/u.dat": tmp_path / "out"})
