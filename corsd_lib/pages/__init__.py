"""Pages: one HTML file that answers to clicks without a kernel or a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Panel", "write_page"]


class Panel(NamedTuple):
    """A part of a page: what it is, a name of a function in the page's script, and what that is given, ready for JSON."""

    kind: str
    title: str
    data: dict[str, Any]


def write_page(path: str | Path, panels: Sequence[Panel], title: str = "") -> Path:
    raise NotImplementedError
