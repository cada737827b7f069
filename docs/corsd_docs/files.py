"""Where the files of the site are, and writing only what has changed, so that Sphinx reads only that again."""

from __future__ import annotations

import tomllib
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
BUILD = DOCS / "_build"
SOURCE = BUILD / "source"  # what Sphinx reads
EXTRA = BUILD / "extra"  # what it copies to the site as it is
HTML = BUILD / "html"


class Writer:
    """Writes files below `folder`; `finish` removes what is left there of an earlier build."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: set[Path] = set()

    def __call__(self, name: str, content: str | bytes) -> None:
        """Write the file `name` unless it has this `content` already."""
        path = self.folder / name
        new = content.encode() if isinstance(content, str) else content
        self.written.add(path)
        if not path.is_file() or path.read_bytes() != new:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(new)

    def finish(self) -> None:
        for path in self.folder.rglob("*"):
            if path.is_file() and path not in self.written:
                path.unlink()


def repository() -> str | None:
    """The address of the repository, from pyproject.toml; None while it has none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    address = project.get("urls", {}).get("Repository")
    return address.removesuffix(".git").rstrip("/") if address else None
