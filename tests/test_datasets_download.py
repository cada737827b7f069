"""download() against a local server that drops connections, ignores Range or lies; safe unpacking."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import http.server
import io
import os
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from corsd_lib.datasets.download import _OutsideError, download, unpacked
from corsd_lib.errors import CorsdError

CONTENT = bytes(range(256)) * 4096  # 1 MiB
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`; `faults` of the next requests: bytes after which to hang up, or a status."""

    daemon_threads = True
    content = CONTENT
    ranges = True  # honours Range
    length = True  # tells Content-Length

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: list[tuple[str, int]] = []
        self.asked: list[str | None] = []  # the Range of each request
        self.sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/birds.tgz?download=1"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.server.asked.append(wanted)
        fault, value = self.server.faults.pop(0) if self.server.faults else ("", 0)
        content, total, start = self.server.content, len(self.server.content), 0
        if fault == "status":
            self.send_error(value)
            return
        if wanted and self.server.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206 if start < total else 416)
            spread = f"{start}-{total - 1}" if start < total else "*"
            self.send_header("Content-Range", f"bytes {spread}/{total}")
        else:
            self.send_response(200)
        body = content[start:]
        if self.server.length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        body = body[:value] if fault == "drop" else body
        self.server.sent += len(body)
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield running
        running.shutdown()


def fetch(server: Server, path: Path, md5: str = MD5, size: int | None = len(CONTENT), tries: int = 5) -> Path:
    return download(server.url, path, md5, size, tries=tries, wait=0.001)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_two_downloads_of_one_file_at_once_fetch_it_once(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "birds.tgz"
    both = [threading.Thread(target=fetch, args=(server, path)) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert path.read_bytes() == CONTENT and names(tmp_path) == {"birds.tgz"}
    assert server.asked == [None]


@pytest.mark.parametrize("missing", ["module", "locks"])
def test_a_download_goes_on_where_there_are_no_locks(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    if missing == "module":
        monkeypatch.setitem(sys.modules, "fcntl", None)
    else:
        monkeypatch.setattr("fcntl.flock", unknown)
    assert fetch(server, tmp_path / "birds.tgz").read_bytes() == CONTENT and server.asked == [None]


def test_a_whole_download_is_made_once(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down" / "birds.tgz"
    assert fetch(server, path) == path
    assert path.read_bytes() == CONTENT and names(path.parent) == {"birds.tgz"}
    fetch(server, path)
    assert server.asked == [None]


@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_dropped_connection_is_resumed_where_it_broke(server: Server, tmp_path: Path, size: int | None) -> None:
    server.faults = [("drop", 300_001), ("drop", 1), ("drop", 0)]
    path = fetch(server, tmp_path / "birds.tgz", size=size)
    assert path.read_bytes() == CONTENT and names(tmp_path) == {"birds.tgz"}
    assert server.asked == [None, "bytes=300001-", "bytes=300002-", "bytes=300002-"]
    assert server.sent == len(CONTENT)  # no byte twice


@pytest.mark.parametrize("length", [True, False])
def test_a_server_that_ignores_range_starts_over(server: Server, tmp_path: Path, length: bool) -> None:
    server.ranges, server.length = False, length
    server.faults = [("drop", 700_000), ("drop", 300_000)]
    assert fetch(server, tmp_path / "birds.tgz").read_bytes() == CONTENT
    assert server.sent == 1_000_000 + len(CONTENT)


def test_the_next_call_goes_on_from_the_part(server: Server, tmp_path: Path) -> None:
    server.faults = [("drop", 1000), ("drop", 500)]
    with pytest.raises(CorsdError, match=r"2 tries failed.*connection closed early; 1,500 bytes are kept in .*\.part"):
        fetch(server, tmp_path / "birds.tgz", tries=2)
    assert names(tmp_path) == {"birds.tgz.part"}
    assert fetch(server, tmp_path / "birds.tgz", tries=1).read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=1500-"


def test_a_complete_part_needs_no_second_transfer(server: Server, tmp_path: Path) -> None:
    for size, asked in ((len(CONTENT), []), (None, [f"bytes={len(CONTENT)}-"])):
        server.asked, server.sent = [], 0
        (tmp_path / "birds.tgz.part").write_bytes(CONTENT)
        fetch(server, tmp_path / "birds.tgz", size=size).unlink()
        assert (server.asked, server.sent) == (asked, 0)


def test_a_part_longer_than_the_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "birds.tgz.part").write_bytes(CONTENT + b"more")
    assert fetch(server, tmp_path / "birds.tgz").read_bytes() == CONTENT


def test_corrupt_content_is_set_aside_and_named(server: Server, tmp_path: Path) -> None:
    with pytest.raises(CorsdError, match=rf"birds\.tgz has md5 {MD5}, expected {'0' * 32}; it is corrupt"):
        fetch(server, tmp_path / "birds.tgz", md5="0" * 32)
    assert names(tmp_path) == {"birds.tgz.corrupt"}
    assert fetch(server, tmp_path / "birds.tgz").read_bytes() == CONTENT


def test_a_digest_of_64_digits_is_a_sha256(server: Server, tmp_path: Path) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert fetch(server, tmp_path / "birds.tgz", md5=digest).read_bytes() == CONTENT
    with pytest.raises(CorsdError, match=rf"more\.tgz has sha256 {digest}, expected {'0' * 64}; it is corrupt"):
        fetch(server, tmp_path / "more.tgz", md5="0" * 64)


def test_a_part_of_something_else_is_found_out(server: Server, tmp_path: Path) -> None:
    (tmp_path / "birds.tgz.part").write_bytes(b"<html>" * 100)
    with pytest.raises(CorsdError, match=r"it is corrupt and now called birds\.tgz\.corrupt"):
        fetch(server, tmp_path / "birds.tgz")
    assert names(tmp_path) == {"birds.tgz.corrupt"}


def test_a_corrupt_file_that_lies_there_already(server: Server, tmp_path: Path) -> None:
    (tmp_path / "birds.tgz").write_bytes(b"not it")
    with pytest.raises(CorsdError, match="corrupt"):
        fetch(server, tmp_path / "birds.tgz")
    assert names(tmp_path) == {"birds.tgz.corrupt"} and server.asked == []


def test_another_size_is_refused_before_the_transfer(server: Server, tmp_path: Path) -> None:
    with pytest.raises(CorsdError, match="offers 1,048,576 bytes; expected 5: it is not the right file"):
        fetch(server, tmp_path / "birds.tgz", size=5)
    assert names(tmp_path) == set()


def test_a_refusal_is_final_but_an_overload_is_not(server: Server, tmp_path: Path) -> None:
    server.faults = [("status", 404)]
    with pytest.raises(CorsdError, match="cannot be downloaded: HTTP 404 Not Found"):
        fetch(server, tmp_path / "birds.tgz")
    assert len(server.asked) == 1
    server.faults = [("status", 503), ("status", 429)]
    assert fetch(server, tmp_path / "birds.tgz").read_bytes() == CONTENT


def test_nobody_listens(server: Server, tmp_path: Path) -> None:
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(CorsdError, match=r"2 tries failed, the last one with: .*refused"):
        download(url, tmp_path / "birds.tgz", MD5, tries=2, wait=0.001)
    assert names(tmp_path) == set()


def test_a_folder_that_cannot_be_written_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CorsdError, match=r"file/birds\.tgz cannot be written"):
        fetch(server, tmp_path / "file" / "birds.tgz")


# ------------------------------------------------------------------------------------------------- unpacking


def make_tar(path: Path, *members: tuple[str, bytes | None, str]) -> Path:
    """Members are (name, content or None for a symbolic link, where the link points)."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content, target in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, target
            else:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content or b""))
    return path


def test_unpacked_lasts_as_long_as_the_context(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "a.tgz", ("birds/one.txt", b"1", ""), ("two.txt", b"2", ""))
    with unpacked(archive) as folder:
        assert folder.parent == tmp_path  # same file system: a rename moves things out
        assert (folder / "birds" / "one.txt").read_bytes() == b"1" and (folder / "two.txt").exists()
    assert names(tmp_path) == {"a.tgz"}


@pytest.mark.parametrize(
    "member",
    [
        ("../evil.txt", b"x", ""),
        ("birds/../../evil.txt", b"x", ""),
        ("link", None, "/etc/passwd"),
        ("link", None, "../../evil.txt"),
    ],
)
def test_members_that_escape_are_refused(tmp_path: Path, member: tuple[str, bytes | None, str]) -> None:
    inner = tmp_path / "root"
    inner.mkdir()
    archive = make_tar(inner / "a.tgz", ("fine.txt", b"1", ""), member)
    with pytest.raises(CorsdError, match=r"a\.tgz was not unpacked"), unpacked(archive):
        pytest.fail("the context must not be entered")
    assert names(inner) == {"a.tgz"} and names(tmp_path) == {"root"}


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped"])
def test_a_corrupt_archive_is_set_aside_and_named(tmp_path: Path, damage: str) -> None:
    archive = make_tar(tmp_path / "a.tgz", ("birds.txt", " ".join(map(str, range(9999))).encode(), ""))
    whole = bytearray(archive.read_bytes())
    cut = whole[: len(whole) // 2]
    whole[20] ^= 255  # in the description of deflate's codes
    archive.write_bytes({"empty": b"", "text": b"<html>", "cut": cut, "flipped": whole}[damage])
    with pytest.raises(CorsdError, match=r"a\.tgz cannot be unpacked"), unpacked(archive):
        pytest.fail("the context must not be entered")
    assert names(tmp_path) == {"a.tgz.corrupt"}


def test_what_a_killed_process_left_is_removed_and_a_running_one_is_waited_for(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "a.tgz", ("one.txt", b"1", ""))
    (tmp_path / ".unpacking-killed" / "deep").mkdir(parents=True)
    finished: list[str] = []

    def other() -> None:
        with unpacked(archive) as folder:
            finished.append(folder.name)

    with unpacked(archive) as folder:
        assert names(tmp_path) == {"a.tgz", folder.name}
        waiting = threading.Thread(target=other)
        waiting.start()
        waiting.join(0.2)
        assert not finished and (folder / "one.txt").exists()
    waiting.join()
    assert len(finished) == 1 and names(tmp_path) == {"a.tgz"}


def test_without_locks_nothing_is_taken_for_a_leftover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = make_tar(tmp_path / "a.tgz", ("one.txt", b"1", ""))
    (tmp_path / ".unpacking-perhaps-running").mkdir()

    def refused(*_: object) -> None:
        raise OSError("no locks")

    monkeypatch.setattr(fcntl, "flock", refused)
    with unpacked(archive):
        pass
    assert names(tmp_path) == {"a.tgz", ".unpacking-perhaps-running"}


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="every Python 3.12 and newer has the filters of tarfile")
@pytest.mark.parametrize("member", [("../out.txt", b"1", ""), ("/tmp/out.txt", b"1", ""), ("link", None, "/etc")])
def test_members_that_escape_are_refused_before_tarfile_had_filters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, member: tuple[str, bytes | None, str]
) -> None:
    """As in Python 3.11.2."""
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    monkeypatch.setattr("corsd_lib.datasets.download._REFUSED", _OutsideError)
    archive = make_tar(tmp_path / "a.tgz", ("fine.txt", b"1", ""))
    with unpacked(archive) as folder:
        assert (folder / "fine.txt").read_bytes() == b"1"
    archive = make_tar(tmp_path / "b.tgz", ("fine.txt", b"1", ""), member)
    with pytest.raises(CorsdError, match=r"b.tgz was not unpacked: .* is not a file or folder inside"), unpacked(archive):
        pytest.fail("the context must not be entered")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tgz", "b.tgz"]
