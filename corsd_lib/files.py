"""Files of a run: JSON and safetensors, written whole or not at all, read without executing anything."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from corsd_lib.errors import CorsdError
from corsd_lib.schema import parse_json

__all__ = [
    "read_json",
    "read_lines",
    "read_tensors",
    "remove_parts",
    "write_atomic",
    "write_between",
    "write_json",
    "write_lines",
    "write_tensors",
]


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f".{path.name}.{uuid4().hex}.part")  # of this call alone, also among machines that share a folder
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise CorsdError(f"cannot write {path}: {error.strerror or error}") from error


def write_between(document: Path, mark: str, text: str) -> None:
    """Put `text` between `<!-- mark -->` and `<!-- /mark -->` of a Markdown file.

    Raises `CorsdError` when there is no such file, and unless each mark is there once, in this order.
    """
    begin, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
    try:
        whole = document.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CorsdError(f"cannot read {document}: {getattr(error, 'strerror', None) or error}") from error
    before, _, rest = whole.partition(begin)
    _, found, after = rest.partition(end)
    if not found or whole.count(begin) > 1 or whole.count(end) > 1:
        raise CorsdError(f"{document} must have one {begin.strip()} and, after it, one {end} to put the table between")
    write_atomic(document, f"{before}{begin}{text}\n{end}{after}".encode())


def remove_parts(folder: Path) -> None:
    """Remove what writers that were killed have left in `folder` and below."""
    for part in folder.glob("**/.*.part"):
        with suppress(OSError):
            part.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically."""
    write_atomic(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file; `CorsdError` when it is missing or damaged."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CorsdError(f"{path} does not exist") from error
    except OSError as error:
        raise CorsdError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise CorsdError(f"{path} is not valid JSON: {error}") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file, [] when there is none; `CorsdError` when it is damaged."""
    if not path.is_file():
        return []
    try:
        return [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except OSError as error:
        raise CorsdError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise CorsdError(f"{path} is not valid JSON lines: {error}") from error


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """Write a JSON-lines file, atomically."""
    write_atomic(path, "".join(json.dumps(r) + "\n" for r in records).encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors and string metadata as safetensors, atomically."""
    from safetensors.torch import save

    # safetensors refuses views that share memory, and a part of a tensor: give each its own.
    own = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    write_atomic(path, save(own, dict(metadata or {})))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; `CorsdError` when it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        # All at once: safe_open opens the name twice, and a training may put a new file there in between.
        content = path.read_bytes()
        tensors = load(content)
    except FileNotFoundError as error:
        raise CorsdError(f"{path} does not exist") from error
    except (SafetensorError, OSError) as error:
        raise CorsdError(f"{path} is not a whole safetensors file: {error}") from error
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return tensors, header.get("__metadata__", {})
