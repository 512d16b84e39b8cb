import hashlib
import http.server
import threading
import time
from email.utils import formatdate

import pytest

from refine.datasets import download as module
from refine.datasets.download import DownloadError, check_url, download

CONTENT = bytes(range(256)) * 4096
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT at /file; what goes wrong is set by the tests."""

    def __init__(self):
        self.requests = []
        self.cuts = []  # bytes after which the next connections break
        self.failures = []  # (status, headers) of the next answers
        self.ranges = True
        self.etag = '"one"'
        self.content = CONTENT
        super().__init__(("127.0.0.1", 0), Handler)

    def url(self, path="/file"):
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        server.requests.append(dict(self.headers))
        if server.failures:
            status, headers = server.failures.pop(0)
            self.send_response(status)
            for name, value in {"Content-Length": "0", **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            return
        if self.path == "/missing":
            self.send_error(404)
            return
        body, start = server.content, 0
        wanted = self.headers.get("Range")
        fresh = self.headers.get("If-Range") in (None, server.etag)
        if wanted and server.ranges and fresh:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body) - start))
        if server.etag:
            self.send_header("ETag", server.etag)
        self.end_headers()
        if server.cuts:
            self.wfile.write(body[start : start + server.cuts.pop(0)])
            self.close_connection = True
            return
        self.wfile.write(body[start:])


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT", 0.01)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix == ".part")


def test_downloads_whole_file(server, tmp_path):
    download(server.url(), tmp_path / "raw/file", SHA256)
    assert (tmp_path / "raw/file").read_bytes() == CONTENT
    assert leftovers(tmp_path / "raw") == []


@pytest.mark.parametrize("sha256", [SHA256, None])
def test_a_finished_file_is_not_fetched_again(server, tmp_path, sha256):
    for _ in range(2):
        download(server.url(), tmp_path / "file", sha256)
    assert len(server.requests) == 1


def test_a_damaged_file_is_fetched_again(server, tmp_path):
    download(server.url(), tmp_path / "file")
    (tmp_path / "file").write_bytes(b"damaged")
    download(server.url(), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_broken_connections_are_continued(server, tmp_path):
    server.cuts = [100_000, 300_000]
    download(server.url(), tmp_path / "file", SHA256)
    ranges = [request.get("Range") for request in server.requests]
    assert ranges == [None, "bytes=100000-", "bytes=400000-"]
    assert server.requests[1]["If-Range"] == '"one"'
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_later_call_continues_the_partial_file(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    server.cuts = [100_000]
    with pytest.raises(DownloadError, match="file"):
        download(server.url(), tmp_path / "file")
    assert not (tmp_path / "file").exists()
    download(server.url(), tmp_path / "file")
    assert server.requests[-1]["Range"] == "bytes=100000-"
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_whole_partial_file_is_only_finished(server, tmp_path):
    """Killed between the last byte and the rename."""
    download(server.url(), tmp_path / "file")
    (tmp_path / "file").rename(tmp_path / ".file.part")
    record = {"url": server.url(), "validator": '"one"', "size": len(CONTENT)}
    module.write_json(record, tmp_path / ".file.json")
    download(server.url(), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("change", ["etag", "ranges", "size"])
def test_starts_over_when_the_rest_would_not_fit(server, tmp_path, monkeypatch, change):
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    if change == "size":
        server.etag = None
    server.cuts = [100_000]
    with pytest.raises(DownloadError):
        download(server.url(), tmp_path / "file")
    monkeypatch.setattr(module, "ATTEMPTS", 3)
    server.content = CONTENT[::-1]
    if change == "etag":
        server.etag = '"two"'
    elif change == "ranges":
        server.ranges = False
    else:
        server.content += b"longer"
    download(server.url(), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == server.content


def test_a_partial_file_of_another_url_is_not_continued(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    server.cuts = [100_000]
    with pytest.raises(DownloadError):
        download(server.url("/other"), tmp_path / "file")
    download(server.url(), tmp_path / "file")
    assert "Range" not in server.requests[-1]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_busy_servers_are_asked_again(server, tmp_path):
    server.failures = [(503, {}), (429, {"Retry-After": "0"})]
    download(server.url(), tmp_path / "file", SHA256)
    assert len(server.requests) == 3


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_obeyed(server, tmp_path, as_date):
    wait = formatdate(time.time() + 2, usegmt=True) if as_date else "1"
    server.failures = [(503, {"Retry-After": wait})]
    started = time.monotonic()
    download(server.url(), tmp_path / "file")
    assert time.monotonic() - started > 0.9


def test_gives_up_in_the_end_and_names_the_url(server, tmp_path):
    server.failures = [(500, {})] * 10
    with pytest.raises(DownloadError, match=rf"{server.url()}.*500"):
        download(server.url(), tmp_path / "file")
    assert len(server.requests) == module.ATTEMPTS


def test_a_missing_file_is_not_asked_for_again(server, tmp_path):
    with pytest.raises(DownloadError, match="/missing: HTTP status 404"):
        download(server.url("/missing"), tmp_path / "file")
    assert len(server.requests) == 1


def test_a_wrong_file_is_refused_and_not_kept(server, tmp_path):
    with pytest.raises(DownloadError, match=f"{SHA256}, expected 00"):
        download(server.url(), tmp_path / "file", "00" * 32)
    assert not (tmp_path / "file").exists()
    assert leftovers(tmp_path) == []


def test_an_unreachable_host_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT", 0.01)
    with pytest.raises(DownloadError, match=r"https://no-such-host\.invalid/x.*cannot be reached"):
        download("https://no-such-host.invalid/x", tmp_path / "x")


@pytest.mark.parametrize(
    "url", ["http://example.org/x", "ftp://example.org/x", "file:///etc/passwd", "http://[::2]/"]
)
def test_only_https_or_this_machine(url, tmp_path):
    with pytest.raises(DownloadError, match="only https"):
        check_url(url)
    with pytest.raises(DownloadError, match="only https"):
        download(url, tmp_path / "x")


def test_redirects_from_elsewhere_cannot_reach_this_machine(server):
    check_url(server.url(), server.url("/before"))
    with pytest.raises(DownloadError, match="only https"):
        check_url(server.url(), "https://example.org/file")


def test_a_redirect_cannot_leave_https(server, tmp_path):
    server.failures = [(302, {"Location": "http://example.org/file"})]
    with pytest.raises(DownloadError, match=r"http://example\.org/file: only https"):
        download(server.url(), tmp_path / "file")


def test_a_redirect_is_followed(server, tmp_path):
    server.failures = [(302, {"Location": server.url("/elsewhere")})]
    download(server.url(), tmp_path / "file", SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT
