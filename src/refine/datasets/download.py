"""Downloads that survive bad networks: retries, resume, checksums, whole files or none."""

import email.utils
import hashlib
import logging
import re
import time
import urllib.parse
from pathlib import Path
from typing import Any

import httpx
import tenacity
from tqdm import tqdm

from refine.artifacts import read_json, write_json

log = logging.getLogger("refine.datasets")

ATTEMPTS = 5
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds before the second attempt, doubled for each further one; and the longest wait."""

TIMEOUT = httpx.Timeout(60.0, connect=15.0)
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP statuses that may pass by waiting."""

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class DownloadError(RuntimeError):
    """A file could not be had; the message names the URL."""


class _TransientError(DownloadError):
    """Worth another attempt, after ``wait`` seconds if the server named a time."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_sha256(path: Path, expected: str | None, origin: str) -> None:
    """Deletes the file and raises if it is not the expected one.

    Raises:
        DownloadError: the digests differ.
    """
    if expected is None:
        return
    found = sha256_of(path)
    if found != expected.lower():
        path.unlink()
        raise DownloadError(
            f"{origin}: the file has sha256 {found}, expected {expected}; "
            "it was damaged on the way or has changed at the source"
        )


def check_url(url: str, start: str | None = None) -> None:
    """Refuses what is not HTTPS; plain HTTP is for a mirror on this very machine.

    Args:
        url: what would be asked for.
        start: where the redirects that led to it began, if they did: from elsewhere none may lead
            to this machine.

    Raises:
        DownloadError: another scheme or host.
    """
    hosts = [urllib.parse.urlsplit(link).hostname for link in (url, start or url)]
    scheme = urllib.parse.urlsplit(url).scheme
    if scheme != "https" and not (scheme == "http" and LOOPBACK.issuperset(hosts)):
        raise DownloadError(f"{url}: only https is allowed (plain http only from localhost)")


def download(url: str, path: Path, sha256: str | None = None) -> None:
    """Downloads ``url`` to ``path``; the file appears whole or not at all.

    A partial file stays beside it as ``.<name>.part`` and is continued by the next call, if the
    server still has the same file. A finished file is not downloaded again.

    Args:
        url: https; http only for localhost.
        path: the destination.
        sha256: of the whole file, where known.

    Raises:
        DownloadError: no luck after several attempts, or the file is not the expected one.
    """
    check_url(url)
    record = path.with_name(f".{path.name}.json")
    if path.exists() and _is_finished(path, record, url, sha256):
        log.info("%s: already here", path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with httpx.Client(
            timeout=TIMEOUT,
            follow_redirects=True,
            event_hooks={"request": [lambda request: check_url(str(request.url), url)]},
        ) as client:
            _retrying(_attempt, client, url, part, record)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise DownloadError(_reason(error, url)) from error
    check_sha256(part, sha256, url)
    write_json({"url": url, "sha256": sha256_of(part)}, record)
    part.replace(path)


def _is_finished(path: Path, record: Path, url: str, sha256: str | None) -> bool:
    if sha256 is not None:
        return sha256_of(path) == sha256.lower()
    known = _read_record(record)
    return known.get("url") == url and known.get("sha256") == sha256_of(path)


def _read_record(record: Path) -> dict[str, Any]:
    """What is known of a file or its part; nothing if the record is absent or unreadable."""
    try:
        known = read_json(record)
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _retrying(attempt: Any, *arguments: Any) -> None:
    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, _TransientError) and error.wait is not None:
            return error.wait
        return min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** (state.attempt_number - 1))

    def announce(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        seconds = state.next_action.sleep if state.next_action else 0.0
        log.warning("%s; trying again in %.0f s", _reason(error, state.args[1]), seconds)

    tenacity.Retrying(
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=wait,
        retry=tenacity.retry_if_exception_type((_TransientError, httpx.TransportError)),
        before_sleep=announce,
        sleep=time.sleep,
        reraise=True,
    )(attempt, *arguments)


def _attempt(client: httpx.Client, url: str, part: Path, record: Path) -> None:
    """Fetches what is missing of the partial file."""
    known = _read_record(record)
    have = part.stat().st_size if part.exists() and known.get("url") == url else 0
    # Compressed transfer would make sizes and offsets meaningless.
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if known.get("validator"):
            headers["If-Range"] = known["validator"]
    with client.stream("GET", url, headers=headers) as response:
        if have and response.status_code in (206, 416):
            start, size = _content_range(response)
            # 416 with our own size: the part is whole, only its check and rename are missing.
            if response.status_code == 416 and size == have == known.get("size"):
                return
            if response.status_code == 416 or start != have or size != known.get("size"):
                part.unlink()
                raise _TransientError(f"{url}: the partial file does not fit; starting over", 0.0)
        elif response.status_code == 200:
            have = 0
            length = response.headers.get("Content-Length")
            size = int(length) if length else None
            write_json({"url": url, "validator": _validator(response), "size": size}, record)
        elif response.status_code in TRANSIENT:
            raise _TransientError(f"{url}: HTTP status {response.status_code}", _wait(response))
        else:
            raise DownloadError(f"{url}: HTTP status {response.status_code}")
        with (
            part.open("ab" if have else "wb") as stream,
            tqdm(
                desc=part.name.removeprefix(".").removesuffix(".part"),
                initial=have,
                total=size,
                unit="B",
                unit_scale=True,
                unit_divisor=1024,
                disable=None,
            ) as bar,
        ):
            for block in response.iter_raw():
                stream.write(block)
                bar.update(len(block))
    got = part.stat().st_size
    if size is not None and got < size:
        raise _TransientError(f"{url}: the connection ended after {got} of {size} bytes")
    if size is not None and got > size:
        part.unlink()
        raise _TransientError(f"{url}: {got} bytes came where {size} were announced")


def _content_range(response: httpx.Response) -> tuple[int | None, int | None]:
    """Offset and total size that a Content-Range header gives, where it does."""
    match = re.fullmatch(
        r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", "")
    )
    if match is None:
        return None, None
    start, size = match.groups()
    return (int(start) if start else None), (int(size) if size != "*" else None)


def _validator(response: httpx.Response) -> str | None:
    """What If-Range may carry: a strong ETag, else the date of the last change."""
    etag: str = response.headers.get("ETag", "")
    if etag and not etag.startswith("W/"):
        return etag
    changed: str | None = response.headers.get("Last-Modified")
    return changed


def _wait(response: httpx.Response) -> float | None:
    """Seconds that Retry-After asks for, given as such or as a date; capped."""
    value = response.headers.get("Retry-After", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return min(LONGEST_WAIT, max(0.0, seconds))


def _reason(error: BaseException | None, url: str) -> str:
    if isinstance(error, httpx.TransportError):
        detail = str(error) or type(error).__name__
        return f"{url}: the host cannot be reached or stopped answering ({detail})"
    return str(error) if isinstance(error, DownloadError) else f"{url}: {error}"
