"""Safe extraction of named members from zip and tar archives.

Nothing but the members asked for is unpacked, each to a path that the caller chose; so names in
the archive never decide where a file goes. Only regular files are accepted, up to a size limit
that is enforced on the bytes that really come out.
"""

import logging
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import IO

from refine.artifacts import replacing

log = logging.getLogger("refine.datasets")

MAX_BYTES = 8 * 2**30
"""A member that unpacks to more than this is refused (the Netflix Prize ratings take 2 GiB)."""

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

BLOCK_BYTES = 2**20


class ArchiveError(RuntimeError):
    """An archive is damaged, lacks a member, or holds one that must not be unpacked."""


def is_archive(name: str) -> bool:
    """Whether a file's name or a URL says that it is an archive."""
    return name.lower().endswith(SUFFIXES)


def extract(archive: Path, members: dict[str, Path]) -> None:
    """Unpacks members of an archive.

    Args:
        archive: a zip or tar file, compressed or not.
        members: name in the archive -> destination.

    Raises:
        ArchiveError: see the class; destinations are whole files or untouched.
    """
    for name in members:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            raise ArchiveError(f"{archive}: {name!r} is no safe name of a member")
    missing = dict(members)
    try:
        for name, size, stream in _entries(archive, members):
            if size > MAX_BYTES:
                raise ArchiveError(_too_large(archive, name))
            _copy(archive, name, stream, missing.pop(name))
            if not missing:
                return
    except (
        tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError,
    ) as error:  # fmt: skip
        raise ArchiveError(f"{archive}: the archive cannot be read: {error}") from error
    raise ArchiveError(f"{archive}: there is no member {', '.join(map(repr, missing))}")


def _entries(archive: Path, wanted: dict[str, Path]) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Name, announced size and content of each wanted member."""
    with archive.open("rb") as stream:
        is_zip = stream.read(2) == b"PK"
    if is_zip:
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                if info.filename not in wanted:
                    continue
                mode = info.external_attr >> 16 & 0o170000
                if info.is_dir() or mode not in (0, 0o100000):
                    raise ArchiveError(f"{archive}: {info.filename!r} is no regular file")
                if info.flag_bits & 1:
                    raise ArchiveError(f"{archive}: {info.filename!r} is encrypted")
                with zipped.open(info) as stream:
                    yield info.filename, info.file_size, stream
        return
    # As a stream: one pass, which may stop early; a seek in a compressed tar starts over.
    with tarfile.open(archive, "r|*") as tarred:
        for member in tarred:
            name = member.name.removeprefix("./")
            if name not in wanted:
                continue
            content = tarred.extractfile(member) if member.isreg() else None
            if content is None:
                raise ArchiveError(f"{archive}: {name!r} is no regular file")
            with closing(content):
                yield name, member.size, content


def _copy(archive: Path, name: str, stream: IO[bytes], destination: Path) -> None:
    with replacing(destination) as temporary, temporary.open("wb") as output:
        written = 0
        while block := stream.read(BLOCK_BYTES):
            written += len(block)
            if written > MAX_BYTES:
                raise ArchiveError(_too_large(archive, name))
            output.write(block)


def _too_large(archive: Path, name: str) -> str:
    return f"{archive}: {name!r} unpacks to more than {MAX_BYTES} bytes; this is no rating data"
