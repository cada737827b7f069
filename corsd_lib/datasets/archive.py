"""Reads .npz files: sizes are checked before anything is decompressed, and nothing is unpickled."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from corsd_lib.errors import CorsdError, shown_text

# Deflate reaches 1000:1 on zeros, but only 2:1 on photographs and about 10:1 on characters: higher ratios are refused.
LARGEST_RATIO = 100
HARMLESS = 256 * 1024**2  # arrays up to this size in bytes may have any ratio


class Archive(NamedTuple):
    """Content of an .npz file.

    `arrays`: name -> array. `others`: names of further arrays in the file, which were not read. `checksums`: name -> verified
    CRC-32 of the array's .npy file in the archive.
    """

    arrays: dict[str, np.ndarray]
    others: tuple[str, ...]
    checksums: dict[str, int]


def read_archive(path: Path, expected: str, wanted: Callable[[str], bool], required: Iterable[str]) -> Archive:
    """Read the arrays of the .npz file `path` whose names satisfy `wanted`; `expected` describes the file in error messages.

    Raises CorsdError for a path that is not a file, a damaged file, a missing array of `required`, an array whose header does
    not match its size, an array above 256 MiB that is compressed more than a hundredfold, and if all arrays together exceed the
    available memory. Sizes are read from headers, without decompressing.
    """
    if not path.exists():
        raise CorsdError(f"{path} does not exist; expected {expected}")
    if not path.is_file():
        raise CorsdError(f"{path} is {'a folder' if path.is_dir() else 'not a regular file'}; expected {expected}")
    try:
        with zipfile.ZipFile(path) as file:
            return _read(path, file, wanted, required)
    except CorsdError:
        raise
    except Exception as error:  # zipfile raises BadZipFile, NotImplementedError, OSError, ValueError, struct.error and more
        if isinstance(error, zipfile.BadZipFile) and _is_single_array(path):
            raise CorsdError(f"{path} contains a single array; expected {expected}") from error
        raise CorsdError(f"{path} is not a readable .npz file: {error}") from error


def _read(path: Path, file: zipfile.ZipFile, wanted: Callable[[str], bool], required: Iterable[str]) -> Archive:
    members = {shown_text(member.filename.removesuffix(".npy")): member for member in file.infolist()}
    missing = [name for name in required if name not in members]
    if missing:
        raise CorsdError(f"{path} lacks {', '.join(missing)}; it contains {', '.join(members) or 'nothing'}")
    chosen = {name: member for name, member in members.items() if wanted(name)}
    # Newer versions of zipfile detect some of these files
    if sum(member.compress_size for member in chosen.values()) > path.stat().st_size:
        raise CorsdError(f"{path} is not a readable .npz file: its arrays overlap, or are beyond its end")
    for name, member in chosen.items():
        with _array_in_errors(path, name):
            _check_member(file, member)
    check_memory(f"{path} expands to", sum(member.file_size for member in chosen.values()))
    arrays = {}
    for name, member in chosen.items():
        with _array_in_errors(path, name), file.open(member) as stream:
            arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
    others = tuple(name for name in members if name not in chosen)
    return Archive(arrays, others, {name: member.CRC for name, member in chosen.items()})


@contextmanager
def _array_in_errors(path: Path, name: str) -> Iterator[None]:
    """Turn any exception inside the context into a CorsdError that names the file and the array."""
    try:
        yield
    except Exception as error:  # zipfile, zlib, lzma, numpy and (for a damaged header) tokenize raise different exceptions
        raise CorsdError(f"{path}: array {name} cannot be read: {error or type(error).__name__}") from error


def _check_member(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Raise ValueError for an array that must not be read from the zip file.

    That is an array of objects, an array whose header does not match its size in the file, or one with a compression ratio
    that is too high.
    """
    with file.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
        length = stream.tell() + math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
        raise ValueError("object arrays are not supported, because they would be unpickled")
    if min(shape, default=0) < 0 or length != member.file_size:
        raise ValueError(f"it declares {dtype} of shape {shape}, which does not fit its {member.file_size:,} bytes")
    if member.file_size > max(HARMLESS, LARGEST_RATIO * member.compress_size):
        sizes = f"from {_gigabytes(member.compress_size)} to {_gigabytes(member.file_size)}"
        raise ValueError(f"it expands {sizes}; allowed: a compression ratio of up to {LARGEST_RATIO}")


def _is_single_array(path: Path) -> bool:
    with open(path, "rb") as stream:
        return stream.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX


def check_memory(what: str, needed: int) -> None:
    """Raise CorsdError, with a message that begins with `what`, if the bytes `needed` exceed the available memory."""
    free = _available_memory()
    if free is not None and needed > free:
        raise CorsdError(f"{what} {_gigabytes(needed)}; available memory: {_gigabytes(free)}")


def _available_memory() -> int | None:
    """Available memory in bytes, without swapping.

    If the system does not report it, the result is the total memory, or None if that is unknown too.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.3g} GB"
