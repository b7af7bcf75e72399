"""Resumable downloads, from a server on this machine."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from pysm_vae.vae.download import DATASETS, DownloadError, download

FILE = DATASETS["gnilc-545"].file


@dataclass
class Behaviour:
    """What the server does, and what it was asked."""

    body: bytes
    etag: str | None = '"one"'
    ranges: bool = True
    cut_after: int | None = None  # close the connection after so many bytes of the body
    length: bool = True  # announce the size
    extra: int = 0  # announce so many bytes more than there are
    status: int | None = None
    content_type: str = "application/fits"
    asked: list[str | None] = field(default_factory=list)
    sent: int = 0


class Handler(http.server.BaseHTTPRequestHandler):
    behaviour: Behaviour

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        how = self.behaviour
        asked = self.headers.get("Range")
        how.asked.append(asked)
        if how.status is not None:
            self.send_error(how.status)
            return
        total = len(how.body)
        start = 0
        condition = self.headers.get("If-Range")
        if how.ranges and asked and (condition is None or condition == how.etag):
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= total:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{total}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        else:
            self.send_response(200)
        self.send_header("Content-Type", how.content_type)
        if how.etag:
            self.send_header("ETag", how.etag)
        if how.length:
            self.send_header("Content-Length", str(total - start + how.extra))
        self.end_headers()
        body = how.body[start:]
        body = body if how.cut_after is None else body[: how.cut_after]
        # Counted first: once the last byte is out, the client may look.
        how.sent += len(body)
        self.wfile.write(body)


@dataclass
class Server:
    url: str
    how: Behaviour


@pytest.fixture
def body(rng) -> bytes:
    return rng.bytes(700_001)


@pytest.fixture
def server(body, monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    how = Behaviour(body)
    handler = type("OneHandler", (Handler,), {"behaviour": how})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield Server(f"http://127.0.0.1:{running.server_address[1]}/map", how)
        running.shutdown()
        thread.join()


def get(server: Server, folder: Path, **options) -> Path:
    return download("gnilc-545", folder, url=server.url, **({"progress": False} | options))


def part_of(folder: Path) -> Path:
    return folder / f"{FILE}.part"


@pytest.fixture
def cut(server, tmp_path) -> int:
    """A transfer that breaks after 300,000 bytes; the server then behaves."""
    server.how.cut_after = 300_000
    with pytest.raises(DownloadError, match="same command resumes"):
        get(server, tmp_path)
    server.how.cut_after = None
    server.how.sent = 0
    assert part_of(tmp_path).stat().st_size == 300_000
    assert not (tmp_path / FILE).exists()
    return 300_000


def test_whole_file(server, tmp_path, body):
    path = get(server, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / FILE
    assert path.read_bytes() == body
    assert os.listdir(path.parent) == [FILE]


def test_progress_bar(server, tmp_path, capfd):
    get(server, tmp_path, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert FILE.partition("_")[0] in err


def test_complete_file_is_not_fetched_again(server, tmp_path):
    get(server, tmp_path)
    get(server, tmp_path)
    assert server.how.asked == [None]


def test_resumes(server, tmp_path, body, cut):
    assert get(server, tmp_path).read_bytes() == body
    assert server.how.asked == [None, f"bytes={cut}-"]
    assert server.how.sent == len(body) - cut
    assert os.listdir(tmp_path) == [FILE]


def test_resumes_without_etag(server, tmp_path, body):
    """The Planck Legacy Archive may name no validator: the total size must then agree."""
    server.how.etag = None
    server.how.cut_after = 300_000
    with pytest.raises(DownloadError, match="300000 of 700001 bytes"):
        get(server, tmp_path)
    server.how.cut_after = None
    server.how.sent = 0
    assert get(server, tmp_path).read_bytes() == body
    assert server.how.sent == len(body) - 300_000


def test_second_break_keeps_more(server, tmp_path, body, cut):
    server.how.cut_after = 100_000
    with pytest.raises(DownloadError, match="400000 of 700001 bytes"):
        get(server, tmp_path)
    server.how.cut_after = None
    assert get(server, tmp_path).read_bytes() == body
    assert server.how.asked == [None, "bytes=300000-", "bytes=400000-"]


def test_server_without_ranges_starts_again(server, tmp_path, body, cut):
    server.how.ranges = False
    assert get(server, tmp_path).read_bytes() == body
    assert server.how.sent == len(body)


def test_changed_file_starts_again(server, tmp_path, body, cut):
    server.how.body = body[::-1]
    server.how.etag = '"two"'
    assert get(server, tmp_path).read_bytes() == body[::-1]


def test_changed_size_without_etag_starts_again(server, tmp_path, body):
    server.how.etag = None
    server.how.cut_after = 300_000
    with pytest.raises(DownloadError, match="resumes"):
        get(server, tmp_path)
    server.how.cut_after = None
    server.how.body = body[::-1] + b"more"
    assert get(server, tmp_path).read_bytes() == body[::-1] + b"more"
    # Asked to go on, found another size, then asked afresh.
    assert server.how.asked == [None, "bytes=300000-", None]


def test_other_address_or_lost_note_starts_again(server, tmp_path, body, cut):
    note = part_of(tmp_path).with_suffix(".part.json")
    assert json.loads(note.read_text())["size"] == len(body)
    note.write_text("{")
    assert get(server, tmp_path).read_bytes() == body
    assert server.how.asked == [None, None]


def test_everything_had_arrived(server, tmp_path, body, cut):
    """Killed between the last byte and the move: the server has nothing left (416)."""
    part_of(tmp_path).write_bytes(body)
    assert get(server, tmp_path).read_bytes() == body
    assert server.how.sent == 0


def test_part_longer_than_the_file_starts_again(server, tmp_path, body, cut):
    part_of(tmp_path).write_bytes(body + b"x")
    assert get(server, tmp_path).read_bytes() == body
    assert server.how.sent == len(body)


def test_announced_size_is_checked(server, tmp_path):
    server.how.extra = 5
    with pytest.raises(DownloadError, match="700001 of 700006 bytes"):
        get(server, tmp_path)
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("whole", [True, False])
def test_no_announced_size(server, tmp_path, whole):
    """Then the FITS headers say whether all is there."""
    source = tmp_path / "source.fits"
    fits.PrimaryHDU(np.arange(50_000.0)).writeto(source)
    server.how.body = source.read_bytes()
    server.how.length = False
    server.how.cut_after = None if whole else 200_000
    if whole:
        assert get(server, tmp_path).read_bytes() == server.how.body
        return
    with pytest.raises(DownloadError, match="not a whole FITS file"):
        get(server, tmp_path)
    assert os.listdir(tmp_path) == ["source.fits"]


def test_not_found(server, tmp_path):
    server.how.status = 404
    with pytest.raises(DownloadError, match=r"404 Not Found.*url="):
        get(server, tmp_path)
    assert os.listdir(tmp_path) == []


def test_not_found_keeps_what_is_there(server, tmp_path, body, cut):
    server.how.status = 503
    with pytest.raises(DownloadError, match="503"):
        get(server, tmp_path)
    server.how.status = None
    assert get(server, tmp_path).read_bytes() == body
    assert server.how.sent == len(body) - cut


def test_web_page_instead_of_a_map(server, tmp_path):
    server.how.content_type = "text/html; charset=utf-8"
    with pytest.raises(DownloadError, match="web page"):
        get(server, tmp_path)
    assert os.listdir(tmp_path) == []


def test_nobody_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    # The discard port: nothing listens there, and no server that this test could have started.
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:9.*resumes"):
        download("gnilc-545", tmp_path, url="http://127.0.0.1:9/map", progress=False)


def test_too_little_space_is_said_before_the_transfer(server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DownloadError, match=r"no space left.*free some space"):
        get(server, tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_disk_fills_up_on_the_way(server, tmp_path):
    part_of(tmp_path).symlink_to("/dev/full")
    with pytest.raises(DownloadError, match=r"no space left.*free some space"):
        get(server, tmp_path)
    assert not (tmp_path / FILE).exists()


def test_arguments(tmp_path):
    with pytest.raises(ValueError, match="gnilc-545"):
        download("gnilc", tmp_path)
    with pytest.raises(ValueError, match="http"):
        download("gnilc-545", tmp_path, url="file:///etc/hostname")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file"):
        download("gnilc-545", tmp_path / "file", url="http://127.0.0.1:9/map")


def test_the_public_address():
    """The official name and archive of the map that the paper trained on."""
    dataset = DATASETS["gnilc-545"]
    assert dataset.url.startswith("https://pla.esac.esa.int/")
    assert dataset.url.endswith(f"MAP_ID={dataset.file}")
