"""Downloads against a local server that cuts connections, ignores ranges, changes its file or has none."""

import hashlib
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from workingpapers.data import download as module
from workingpapers.data.download import download, downloaded
from workingpapers.errors import UserError, UserRemark

BODY = bytes(range(256)) * 4000  # 1 MB
SHA = hashlib.sha256(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves BODY; the tests set how it misbehaves and read what it was asked."""

    daemon_threads = True

    def __init__(self):
        self.body, self.etag, self.ranges = BODY, '"v1"', True
        self.cuts = []  # after how many bytes each of the next responses breaks off
        self.statuses = []  # statuses of the next responses
        self.requests = []  # (Range, If-Range) of each request
        super().__init__(("127.0.0.1", 0), Handler)

    def url(self, path="/file"):
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        asked, version = self.headers["Range"], self.headers["If-Range"]
        server.requests.append((asked, version))
        status = server.statuses.pop(0) if server.statuses else 200
        if self.path == "/missing":
            status = 404
        if status != 200:
            self.send_error(status)
            return
        start = 0
        if asked and server.ranges and version == server.etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(server.body):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(server.body) - 1}/{len(server.body)}")
        else:
            self.send_response(200)
        data = server.body[start:]
        self.send_header("Content-Length", str(len(data)))
        if server.etag:
            self.send_header("ETag", server.etag)
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts else None
        self.wfile.write(data[:cut])


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKINGPAPERS_CACHE", str(tmp_path))
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def left_over():
    return sorted(p.name for p in downloaded("file").parent.iterdir() if p.suffix != ".lock")


def test_downloaded_once(server):
    for _ in range(2):
        path = download(server.url(), SHA, "file")
        assert path.read_bytes() == BODY
    assert len(server.requests) == 1
    assert left_over() == ["file"]


def test_a_cut_connection_is_resumed_where_it_broke_off(server):
    server.cuts = [300_000, 200_000]
    assert download(server.url(), SHA, "file").read_bytes() == BODY
    assert server.requests == [(None, None), ("bytes=300000-", '"v1"'), ("bytes=500000-", '"v1"')]


def test_a_later_process_resumes_too(server):
    server.cuts = [400_000, *[0] * (module.ATTEMPTS - 1)]
    with pytest.raises(UserError, match=r"closed after 400,000 of 1,024,000 bytes.*the same command goes on"):
        download(server.url(), SHA, "file")
    assert left_over() == ["file.part", "file.part.etag"]
    server.requests.clear()
    assert download(server.url(), SHA, "file").read_bytes() == BODY
    assert server.requests == [("bytes=400000-", '"v1"')]


def test_waits_grow_and_progress_resets_them(server, monkeypatch):
    waits = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    server.cuts = [0, 0, 1000, 0]
    download(server.url(), SHA, "file")
    assert waits == [1, 2, 1, 2]


@pytest.mark.parametrize("etag", ['"v1"', None, 'W/"weak"'])
def test_a_server_that_cannot_resume_starts_again(server, etag):
    server.ranges, server.etag, server.cuts = False, etag, [300_000]
    assert download(server.url(), SHA, "file").read_bytes() == BODY
    assert len(server.requests) == 2
    if etag != '"v1"':
        assert server.requests[1] == (None, None)  # without a strong version we could mix two files


def test_a_file_that_changed_meanwhile_starts_again(server):
    server.cuts, server.body = [300_000, *[0] * module.ATTEMPTS], b"old" * 400_000
    with pytest.raises(UserError):
        download(server.url(), SHA, "file")
    server.cuts, server.body, server.etag = [], BODY, '"v2"'
    assert download(server.url(), SHA, "file").read_bytes() == BODY


def test_a_part_that_is_already_complete(server):
    part = downloaded("file.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(BODY)
    part.with_name("file.part.etag").write_text('"v1"')
    assert download(server.url(), SHA, "file").read_bytes() == BODY


def test_a_wrong_checksum_is_explained_and_deleted(server):
    with pytest.raises(UserError, match=rf"SHA-256 is {SHA} instead of 00.*deleted"):
        download(server.url(), "00" * 32, "file")
    assert left_over() == []


def test_a_file_that_went_bad_in_the_cache_is_fetched_again(server):
    download(server.url(), SHA, "file").write_bytes(b"bad")
    with pytest.warns(UserRemark, match="wrong checksum"):
        assert download(server.url(), SHA, "file").read_bytes() == BODY


def test_a_missing_file_is_not_asked_for_twice(server):
    with pytest.raises(UserError, match=r"/missing cannot be downloaded: HTTP 404 Not Found"):
        download(server.url("/missing"), SHA, "file")
    assert len(server.requests) == 1


def test_a_busy_server_is_asked_again(server):
    server.statuses = [503, 429, 500]
    assert download(server.url(), SHA, "file").read_bytes() == BODY
    assert len(server.requests) == 4


def test_no_connection(server):
    url = server.url()
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match=r"cannot be reached .*offline"):
        download(url, SHA, "file")


def test_a_full_disk_is_named_and_the_part_kept(server, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fsync", full)
        with pytest.raises(UserError, match=r"cache .*downloads is full .*WORKINGPAPERS_CACHE"):
            download(server.url(), SHA, "file")
    assert len(server.requests) == 1
    assert left_over() == ["file.part", "file.part.etag"]


def test_a_file_in_place_of_the_folder(server, tmp_path):
    (tmp_path / "downloads").write_text("")
    with pytest.raises(UserError, match=r"downloads is not writable"):
        download(server.url(), SHA, "file")


def test_two_at_once_fetch_it_once(server):
    server.cuts = [10_000, 20_000]
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(download(server.url(), SHA, "file"))) for _ in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [path.read_bytes() == BODY for path in paths] == [True] * 4
    assert len(server.requests) == 3


def test_a_slow_download_shows_its_progress(server, monkeypatch, capsys):
    monkeypatch.setattr(module, "PATIENCE", 0)
    download(server.url(), SHA, "file")
    captured = capsys.readouterr()
    assert "Downloading file" in captured.err
    assert captured.out == ""
