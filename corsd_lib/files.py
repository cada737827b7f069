"""Reading and writing JSON and safetensors files: atomic writes, checksums, and locks. Reading never executes code.

The checksum is stored in the file itself, so that both are replaced in one step. It is a SHA-256 of the content. For a
safetensors file the content is header and data. For a JSON file it is the values, not the text: spaces and the order of keys
may change. Earlier versions wrote files without a checksum. Such a file is read without this check.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from corsd_lib.errors import CorsdError
from corsd_lib.schema import parse_json, shortened

__all__ = [
    "LockedError",
    "check_replaceable",
    "is_locked",
    "locked",
    "make_folder",
    "read_json",
    "read_lines",
    "read_tensors",
    "remove_parts",
    "with_checksum",
    "write_atomic",
    "write_between",
    "write_json",
    "write_lines",
    "write_tensors",
]


def write_atomic(path: Path, content: bytes, within: Path | None = None) -> None:
    """Write a file completely or not at all.

    Missing parent folders are created. If `within` is given, this folder must exist, and only folders inside it are created.
    Long jobs use `within` so that a folder that was moved or removed in the meantime is not created again. Raises `CorsdError`
    if the file cannot be written.
    """
    part = path.with_name(f".{path.name}.{uuid4().hex}.part")  # unique, also among machines that share a folder
    try:
        _make_folders(path.parent, within)
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise CorsdError(f"cannot write {path}: {error.strerror or error}") from error


def check_replaceable(path: Path, begins: bytes, kind: str) -> None:
    """Raise `CorsdError` if `path` is an existing file that may not be replaced.

    A file may be replaced if it is empty or begins with the bytes `begins`, in upper or lower case. `kind`: name of what is to
    be written, such as "a report", for the message. Also raises `CorsdError` if `path` has no file name.
    """
    if not path.name:
        raise CorsdError(f"cannot write {kind} to {shortened(str(path))}; allowed: the path of a file")
    if not os.path.isfile(path):  # a pipe would wait for a writer
        return
    with suppress(OSError), open(path, "rb") as file:  # if it cannot be read, the write raises an error with the reason
        if file.read(len(begins)).lower() not in (b"", begins.lower()):
            raise CorsdError(f"{path} exists and is not {kind}; remove it or choose another path")


def make_folder(folder: Path) -> None:
    """Create a folder and its parents if they do not exist. Raises `CorsdError` if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CorsdError(f"cannot write {folder}: {error.strerror or error}") from error


def _make_folders(folder: Path, within: Path | None) -> None:
    """Create a folder and its missing parents. With `within`, only folders inside `within` are created.

    Raises `CorsdError` if `within` does not exist.
    """
    if within is None:
        folder.mkdir(parents=True, exist_ok=True)
        return
    if not within.is_dir():
        raise CorsdError(f"cannot write into {folder}: {within} was moved or removed in the meantime")
    for part in reversed([part for part in (folder, *folder.parents) if within in part.parents]):
        part.mkdir(exist_ok=True)


def write_between(document: Path, mark: str, text: str) -> None:
    """Replace the text between `<!-- mark -->` and `<!-- /mark -->` of a Markdown file.

    Raises `CorsdError` if the file cannot be read or written. Also raises it if a mark is missing, occurs twice or is in the
    wrong order.
    """
    begin, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
    try:
        whole = document.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CorsdError(f"cannot read {document}: {getattr(error, 'strerror', None) or error}") from error
    before, _, rest = whole.partition(begin)
    _, found, after = rest.partition(end)
    if not found or whole.count(begin) > 1 or whole.count(end) > 1:
        raise CorsdError(
            f"{document} must contain {begin.strip()} and, after it, {end}, each once; the table is written between them"
        )
    write_atomic(document, f"{before}{begin}{text}\n{end}{after}".encode())


def remove_parts(folder: Path) -> None:
    """Remove the temporary files that a killed `write_atomic` left in `folder`. No other process may write there."""
    for part in folder.glob(".*.part"):
        if re.fullmatch(r"\..+\.[0-9a-f]{32}\.part", part.name):
            with suppress(OSError):
                part.unlink()


# --- locks ------------------------------------------------------------------------------------------------------------

POLL_SECONDS = 0.1
_descriptors: set[int] = set()  # file descriptors of the locks of this process


class LockedError(CorsdError):
    """Another process has locked a file or folder that this one needs."""


@contextmanager
def locked(path: Path, wait: float = 0.0) -> Iterator[int | None]:
    """Hold a lock on a folder or a file inside the context; a missing file is created. Yields the file descriptor.

    Waits up to `wait` seconds for another process that has the lock. A program that is started with the descriptor as its
    output shares the lock and may keep it after this process has ended. A forked process does not share it. The operating
    system releases the lock when the last process that shares it ends, even if that process is killed.

    On Windows, and on file systems without locks, nothing is locked: concurrent use is not detected. On Windows the descriptor
    of a folder is None. Raises `LockedError` if the lock is not free in time, and `CorsdError` if `path` cannot be opened.
    """
    descriptor = _open(path)
    try:
        if descriptor is not None:
            _lock(descriptor, path, wait)
        yield descriptor
    finally:
        # A forked process does not list the descriptor, because `_unlock_in_child` has closed it.
        if descriptor is not None and descriptor in _descriptors:
            _descriptors.remove(descriptor)
            os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether a process has locked the folder or file `path`; False if it does not exist."""
    try:
        if path.exists():
            with locked(path):
                pass
    except LockedError:
        return True
    return False


def _open(path: Path) -> int | None:
    """Open a folder, or a file for appending, and return the descriptor. A missing file is created.

    The result is None for a folder on Windows, which has no such locks. Raises `CorsdError` if `path` cannot be opened.
    """
    try:
        if path.is_dir():
            descriptor = os.open(path, os.O_RDONLY) if _has_locks() else None
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        raise CorsdError(f"cannot write {path}: {error.strerror or error}") from error
    if descriptor is not None:
        _descriptors.add(descriptor)
    return descriptor


def _has_locks() -> bool:
    try:
        import fcntl  # noqa: F401
    except ImportError:
        return False
    return True


def _lock(descriptor: int, path: Path, wait: float) -> None:
    if not _has_locks():
        return
    import fcntl

    end = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= end:
                raise LockedError(f"{path} is in use by another process: wait for it, or stop it") from error
            time.sleep(POLL_SECONDS)
        except OSError:
            return  # a file system without locks
        else:
            return


def _unlock_in_child() -> None:
    """Close the parent's locks in a forked process, which may run longer than the training that holds them."""
    for descriptor in _descriptors:
        with suppress(OSError):
            os.close(descriptor)
    _descriptors.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock_in_child)


# --- JSON -------------------------------------------------------------------------------------------------------------


def with_checksum(value: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `value` with the field "checksum", which `read_json` checks and removes."""
    return {**value, "checksum": _checksum(value)}


def _checksum(*values: Any, data: bytes | memoryview = b"") -> str:
    """Hexadecimal SHA-256 of JSON values followed by the bytes `data`."""
    plain = (json.dumps(json.loads(json.dumps(value)), sort_keys=True) for value in values)
    found = hashlib.sha256("\n".join(plain).encode())
    found.update(data)
    return found.hexdigest()


def _without_checksum(value: Any, path: Path) -> Any:
    """A JSON value without its field "checksum". Raises `CorsdError` if the checksum is wrong."""
    if not isinstance(value, dict) or "checksum" not in value:
        return value
    content = {k: v for k, v in value.items() if k != "checksum"}
    if value["checksum"] != _checksum(content):
        raise _checksum_error(path, "if you edited it, remove its checksum; else restore a copy")
    return content


def _checksum_error(path: Path, advice: str) -> CorsdError:
    return CorsdError(f"{path} is damaged: its content does not match its checksum; {advice}")


def _json_error(path: Path, error: ValueError, form: str) -> CorsdError:
    """The error for a file that is not valid JSON.

    Such a file was edited or damaged after it was written, because `write_json` writes a file completely or not at all.
    """
    return CorsdError(f"{path} is not valid {form}: {error}; if you edited it, correct this place; else restore a copy")


def write_json(path: Path, value: Any, within: Path | None = None) -> None:
    """Write `value` as JSON, atomically; `within` and errors as in `write_atomic`."""
    write_atomic(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode(), within)


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises `CorsdError` if it is missing, is not JSON or does not match its checksum."""
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CorsdError(f"{path} does not exist") from error
    except OSError as error:
        raise CorsdError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise _json_error(path, error, "JSON") from error
    return _without_checksum(value, path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Records of a JSON-lines file; [] if the file does not exist. Raises `CorsdError` if it is damaged or its checksum is
    wrong.
    """
    if not path.is_file():
        return []
    try:
        records = [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except OSError as error:
        raise CorsdError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise _json_error(path, error, "JSON lines") from error
    if not records or not isinstance(records[-1], dict) or "checksum" not in records[-1]:
        return records
    checksum = records[-1].pop("checksum")
    if checksum != _checksum(*records):
        raise _checksum_error(path, "if you edited it, remove the checksum of its last line; else restore a copy")
    return records


def write_lines(path: Path, records: list[dict[str, Any]], within: Path | None = None) -> None:
    """Write a JSON-lines file atomically; the last line also has the checksum of all lines.

    `within` and errors as in `write_atomic`.
    """
    checksum = _checksum(*records)
    lines = [*records[:-1], *({**last, "checksum": checksum} for last in records[-1:])]
    write_atomic(path, "".join(json.dumps(r) + "\n" for r in lines).encode(), within)


# --- tensors ----------------------------------------------------------------------------------------------------------


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, within: Path | None = None
) -> None:
    """Write tensors and string metadata as safetensors, atomically, with a checksum in the metadata.

    `within` and errors as in `write_atomic`.
    """
    from safetensors.torch import save

    # safetensors accepts no tensors that share memory: copy them.
    own = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    header, data = _parts(save(own))
    # Sorted, because safetensors uses a random order
    header = {"__metadata__": dict(sorted((metadata or {}).items())), **header}
    header["__metadata__"]["checksum"] = _checksum(header, data=data)
    plain = json.dumps(header, separators=(",", ":")).encode()
    plain += b" " * (-len(plain) % 8)  # align the data to 8 bytes
    write_atomic(path, b"".join([len(plain).to_bytes(8, "little"), plain, data]), within)


def _parts(content: bytes) -> tuple[dict[str, Any], memoryview]:
    """Header and data of the content of a safetensors file."""
    begin = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:begin]), memoryview(content)[begin:]


def read_tensors(path: Path, advice: str = "restore a copy") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Raises `CorsdError` if it is missing, damaged or its checksum is wrong.

    `advice`: what to do about a damaged file, the end of the error message.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        # Read in one step: safe_open opens the file twice, and a training may replace it in between.
        content = path.read_bytes()
        tensors = load(content)
    except FileNotFoundError as error:
        raise CorsdError(f"{path} does not exist") from error
    except (SafetensorError, OSError) as error:
        raise CorsdError(f"{path} is not a complete safetensors file: {error}; {advice}") from error
    header, data = _parts(content)
    metadata = header.get("__metadata__", {})
    if (checksum := metadata.pop("checksum", None)) is not None and checksum != _checksum(header, data=data):
        raise _checksum_error(path, advice)
    return tensors, metadata
