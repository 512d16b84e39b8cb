"""Where raw files come from: a ladder of sources, tried in order.

A source (a rung) says where its files are (``at``) and how they are called (``files``, by role):

==================================  ==============================================================
``at``                              file of a role
==================================  ==============================================================
``mirror``                          ``<mirror>/<dataset>/<name>``, a folder or URL of the user's
``generated``                       written by the demo's generator
``https://.../x.zip`` (or tar)      a member of that archive
``https://.../`` (a prefix)         ``<prefix><name>``
a path                              a file in that folder, or a member of that archive
==================================  ==============================================================

Whatever the rung, a name may also be ``mirror:<name>`` or a whole ``https://`` URL, for a file that
comes from elsewhere. A name ``mirror:<name>`` is also taken from the folder of raw files, where the
user may have put it.
"""

import logging
import shutil
import urllib.parse
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from refine.artifacts import replacing, write_json
from refine.datasets import archives, demo
from refine.datasets.download import DownloadError, check_sha256, check_url, download, sha256_of

log = logging.getLogger("refine.datasets")


_OWN_KEYS = {"at", "files", "reader", "sha256"}


class FetchError(RuntimeError):
    """No source could be used; the message says why for each."""


def fetch(dataset: str, sources: list[dict[str, Any]], folder: Path, mirror: str | None) -> None:
    """Brings a dataset's raw files to ``folder/raw`` and describes them in ``folder/source.json``.

    Args:
        dataset: its name, which is also its folder below the mirror.
        sources: the rungs, first choice first; keys ``at``, ``files``, ``sha256`` (of the archive,
            or by role), ``reader``; all others are options of the reader.
        folder: destination.
        mirror: folder or URL prefix for the rungs at ``mirror``; None if there is none.

    Raises:
        FetchError: no rung worked; the message has a line for each, and how to use ``mirror``.
    """
    failures = []
    for source in sources:
        try:
            paths = _Rung(dataset, source, folder / "raw", mirror).fetch()
        except (FetchError, DownloadError, archives.ArchiveError, OSError) as error:
            failures.append(f"  - {source['at']}: {error}")
            log.info("%s: not from %s: %s", dataset, source["at"], error)
            continue
        record = {
            "dataset": dataset,
            "at": source["at"],
            "reader": source.get("reader"),
            "options": {key: source[key] for key in sorted(source.keys() - _OWN_KEYS)},
            "files": {
                role: [_describe(path, folder) for path in parts]
                if isinstance(source["files"][role], list)
                else _describe(parts[0], folder)
                for role, parts in paths.items()
            },
        }
        write_json(record, folder / "source.json")
        log.info("%s: fetched from %s", dataset, source["at"])
        return
    names = {_last(name) for source in sources for name in _names(source)}
    raise FetchError(
        f"{dataset}: no source could be used:\n" + "\n".join(failures) + "\n"
        f"To use files that you have, put them (as above: {', '.join(sorted(names))}) into a "
        f"folder <mirror>/{dataset}/ and name <mirror>, a folder or https URL, in the "
        "configuration as `mirror`, or in the environment as REFINE_MIRROR."
    )


class _Rung:
    """One source of one dataset."""

    def __init__(
        self, dataset: str, source: Mapping[str, Any], raw: Path, mirror: str | None
    ) -> None:
        self.dataset, self.source, self.raw, self.mirror = dataset, source, raw, mirror
        self.at: str = source["at"]

    def fetch(self) -> dict[str, list[Path]]:
        """Brings the files and returns their paths by role."""
        wanted: dict[str, list[str]] = {
            role: names if isinstance(names, list) else [names]
            for role, names in self.source["files"].items()
        }
        paths = {role: [self.raw / _last(name) for name in wanted[role]] for role in wanted}
        taken = [path.name for parts in paths.values() for path in parts]
        if len(set(taken)) < len(taken):
            raise FetchError(f"two of its files have the same name: {', '.join(sorted(taken))}")
        self.raw.mkdir(parents=True, exist_ok=True)
        members: dict[str, Path] = {}
        for role, names in wanted.items():
            for name, path in zip(names, paths[role], strict=True):
                if self.at == "generated":
                    continue
                if name.startswith("mirror:"):
                    self._from_mirror(name.removeprefix("mirror:"), path, self._sha256(role))
                elif name.startswith("https:"):
                    download(name, path, self._sha256(role))
                elif self.at == "mirror":
                    self._from_mirror(name, path, self._sha256(role), placed=False)
                elif archives.is_archive(self.at):
                    members[name] = path
                else:
                    _bring(_join(self.at, name), path, self._sha256(role))
        if self.at == "generated":
            demo.generate(self.raw)
        elif members:
            archives.extract(self._archive(), members)
        for role, parts in paths.items():
            for path in parts:
                check_sha256(path, self._sha256(role), str(path))
        return paths

    def _sha256(self, role: str) -> str | None:
        known = self.source.get("sha256")
        return known.get(role) if isinstance(known, dict) else None

    def _archive(self) -> Path:
        known = self.source.get("sha256")
        sha256 = known if isinstance(known, str) else None
        if not _is_url(self.at):
            path = Path(self.at)
            if sha256 is not None and sha256_of(path) != sha256:
                raise FetchError(f"{path}: the archive has another sha256 than {sha256}")
            return path
        path = self.raw / _last(self.at)
        download(self.at, path, sha256)
        return path

    def _from_mirror(self, name: str, path: Path, sha256: str | None, placed: bool = True) -> None:
        """From the mirror, or, if ``placed``, as the user put it among the raw files."""
        try:
            if self.mirror is None:
                raise FetchError("no mirror is set")
            _bring(_join(self.mirror, f"{self.dataset}/{name}"), path, sha256)
        except (FetchError, DownloadError, OSError) as error:
            if placed and path.is_file():
                log.info("%s: using %s as it is", self.dataset, path)
                return
            where = f"; or put the file at {path}" if placed else ""
            raise FetchError(f"{name} is needed from the mirror: {error}{where}") from error


def _bring(origin: str, path: Path, sha256: str | None) -> None:
    """Downloads a URL or copies a file."""
    if _is_url(origin):
        check_url(origin)
        download(origin, path, sha256)
        return
    if not Path(origin).is_file():
        raise FetchError(f"there is no file {origin}")
    with replacing(path) as temporary:
        shutil.copyfile(origin, temporary)


def _join(place: str, name: str) -> str:
    if _is_url(place):
        return place.rstrip("/") + "/" + urllib.parse.quote(name)
    return str(Path(place).expanduser() / name)


def _is_url(place: str) -> bool:
    return "://" in place


def _last(name: str) -> str:
    """The file name that a member, URL or path ends with."""
    path = urllib.parse.urlsplit(name).path if _is_url(name) else name.removeprefix("mirror:")
    return PurePosixPath(path).name


def _names(source: Mapping[str, Any]) -> list[str]:
    return [
        name
        for names in source["files"].values()
        for name in (names if isinstance(names, list) else [names])
    ]


def _describe(path: Path, folder: Path) -> dict[str, Any]:
    return {
        "path": path.relative_to(folder).as_posix(),
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
    }
