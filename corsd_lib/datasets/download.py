"""Download large files, with resume and verification, and unpack them safely."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import math
import os
import shutil
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from corsd_lib.datasets.progress import progress_bar
from corsd_lib.errors import CorsdError
from corsd_lib.files import is_locked, locked

_BLOCK = 1 << 20
_UNPACKING = ".unpacking-"
_TIMEOUT = 60  # seconds without any data
_DROPPED = (URLError, http.client.HTTPException, ConnectionError, TimeoutError)


def download(url: str, path: str | Path, digest: str, size: int | None = None, *, tries: int = 5, wait: float = 1.0) -> Path:
    """Download `url` to `path`, unless that file exists, check its `digest`, and return the path.

    `digest`: hexadecimal, 32 digits of MD5 or 64 of SHA-256. The file is written to `<path>.part`, which is resumed after an
    interruption if the server allows it, and renamed after the check. `size`: expected number of bytes. Only one process at a
    time downloads into a folder, others wait. There are up to `tries` connections, with a pause of `wait` seconds before the
    second; the pause doubles before each further one. Raises CorsdError if the server refuses, if all tries fail (the .part
    file remains), and if the content is wrong (the file is renamed to `<path>.corrupt`).
    """
    path = Path(path)
    if path.exists():
        _check_digest(path, path, digest)
        return path
    part = path.with_name(path.name + ".part")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _writing(path), locked(path.parent, wait=math.inf):  # so that two processes do not write the same .part file
        if path.exists():  # another process has downloaded it meanwhile
            _check_digest(path, path, digest)
            return path
        _fetch(url, part, size, tries, wait)
        _check_digest(part, path, digest)
        os.replace(part, path)
    return path


@contextlib.contextmanager
def unpacked(archive: Path) -> Iterator[Path]:
    """Unpack a tar file into a temporary folder beside it, and yield the folder, which is deleted after the context.

    Only one process at a time unpacks in the folder of the archive; others wait. Remains of a killed process are removed. An
    archive with members outside the folder is refused by tarfile's "data" filter (PEP 706). Python 3.11 before 3.11.4 has no
    such filter; then an archive with any member that is not a file or folder inside the folder is refused. Raises CorsdError
    for an archive that is refused. A corrupt archive also raises CorsdError and is renamed to `<archive>.corrupt`.
    """
    with _writing(archive), locked(archive.parent, wait=math.inf), contextlib.ExitStack() as stack:
        if is_locked(archive.parent):  # False on a system without locks, where another process may use the folder
            for left in archive.parent.glob(f"{_UNPACKING}*"):
                shutil.rmtree(left, ignore_errors=True)
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(dir=archive.parent, prefix=_UNPACKING, ignore_cleanup_errors=True)
        )
        try:
            with tarfile.open(archive) as tar:
                members = progress_bar(tar, desc=f"unpacking {archive.name}", unit=" files", delay=1, leave=False)
                if hasattr(tarfile, "data_filter"):
                    tar.extractall(folder, members=members, filter="data")
                else:
                    tar.extractall(folder, members=map(_inside, members))
        except _REFUSED as error:
            raise CorsdError(f"{archive} was not unpacked: {error}") from error
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise _corrupt(archive, archive, f"cannot be unpacked ({error})") from error
        yield Path(folder)


class _OutsideError(Exception):
    """Raised for an archive member that is not a file or folder inside the destination.

    Used only if this version of tarfile has no extraction filters. The filters raise their own error, `tarfile.FilterError`.
    """


_REFUSED: type[Exception] = getattr(tarfile, "FilterError", _OutsideError)


def _inside(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """A member of an archive, with its permissions set to 755 for a folder and 644 for a file.

    Raises `_OutsideError` unless the member is a file or folder whose path is inside the destination folder.
    """
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or not (member.isreg() or member.isdir()):
        raise _OutsideError(f"{member.name!r} is not a file or folder inside")
    member.mode = 0o755 if member.isdir() else 0o644
    return member


def _fetch(url: str, part: Path, size: int | None, tries: int, wait: float) -> None:
    problem = ""
    for attempt in range(tries):
        if attempt:
            time.sleep(wait * 2 ** (attempt - 1))
        try:
            if _fetch_rest(url, part, size):
                return
            problem = "the connection closed early"
        except HTTPError as error:
            problem = f"HTTP {error.code} {error.reason}"
            if error.code < 500 and error.code != HTTPStatus.TOO_MANY_REQUESTS:
                raise CorsdError(f"{url} cannot be downloaded: {problem}") from error
        except _DROPPED as error:
            problem = str(getattr(error, "reason", error)) or type(error).__name__
    kept = f"; {_length(part):,} bytes are kept in {part}, the same call continues from there" if part.exists() else ""
    raise CorsdError(f"{url} cannot be downloaded, {tries} tries failed, the last one with: {problem}{kept}")


def _fetch_rest(url: str, part: Path, size: int | None) -> bool:
    """Append the missing bytes to `part` in one connection. Returns whether the file is complete.

    `size`: expected number of bytes, if known. Raises CorsdError if the server offers a different size.
    """
    have = _length(part)
    if have and have == size:
        return True
    headers = {"User-Agent": "corsd"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with urlopen(Request(url, headers=headers), timeout=_TIMEOUT) as response:
            start, total = _extent(response)
            if size is not None and total not in (None, size):
                raise CorsdError(f"{url} offers {total:,} bytes; expected {size:,}: it is not the right file")
            if start not in (0, have):
                part.unlink(missing_ok=True)
                return False
            _append(response, part, start, total or size)
    except HTTPError as error:
        if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        # The server has no more bytes: `part` is complete, unless it is too long.
        if error.headers.get("Content-Range", "").endswith(f"/{have}"):
            return True
        part.unlink()
        return False
    return total in (None, _length(part)) and size in (None, _length(part))


def _extent(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """Position in the file, in bytes, at which the body of the response starts, and the size of the whole file in bytes.

    The position is 0 if the server ignored the Range header. It is -1 if the Content-Range header cannot be parsed. The size is
    None if the server does not send it.
    """
    length = response.headers.get("Content-Length")
    if response.status != HTTPStatus.PARTIAL_CONTENT:
        return 0, int(length) if length else None
    spread, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    start = spread.partition("-")[0]
    return (int(start) if start.isdigit() else -1), (int(total) if total.isdigit() else None)


def _append(response: http.client.HTTPResponse, part: Path, start: int, total: int | None) -> None:
    with (
        open(part, "ab" if start else "wb") as file,
        progress_bar(desc=part.stem, total=total, initial=start, unit="B", unit_scale=True, unit_divisor=1024) as bar,
    ):
        while block := _read(response):
            file.write(block)
            bar.update(len(block))


def _read(response: http.client.HTTPResponse) -> bytes:
    # Errors of the connection are OSErrors too, but must not be reported as errors of the disk.
    try:
        return response.read1(_BLOCK)
    except OSError as error:
        raise ConnectionError(str(error)) from error


def _check_digest(file: Path, path: Path, digest: str) -> None:
    name = {32: "md5", 64: "sha256"}[len(digest)]
    with open(file, "rb") as stream:
        found = hashlib.file_digest(stream, lambda: hashlib.new(name, usedforsecurity=False)).hexdigest()
    if found != digest:
        raise _corrupt(file, path, f"has {name} {found}, expected {digest}")


def _corrupt(file: Path, path: Path, problem: str) -> CorsdError:
    bad = path.with_name(path.name + ".corrupt")
    os.replace(file, bad)
    return CorsdError(f"{path} {problem}; it is corrupt and now called {bad.name}: download it again")


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn an OSError, such as a full disk, into a CorsdError that names the file."""
    try:
        yield
    except OSError as error:
        raise CorsdError(f"{path} cannot be written: {error}") from error
