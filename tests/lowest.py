"""Print the lowest versions that pyproject.toml allows, as constraints for pip: `python tests/lowest.py`.

The tools of the extras "dev" and "docs" keep their ranges, because a user does not install them. Only the standard library is
needed: `make test-min` runs this in an environment that is still empty.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

TOOLS = ("dev", "docs")
PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def lowest() -> Iterator[str]:
    """One line for each requirement, such as "numpy==1.26"; for the tools their ranges."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    of_users = [text for name in extras if name not in TOOLS for text in extras[name]]
    for requirement in (*project["dependencies"], *of_users):
        name, version = re.fullmatch(r"([\w.-]+)>=([\w.]+).*", requirement).groups()  # type: ignore[union-attr]
        yield f"{name}=={version}"
    for name in TOOLS:
        yield from extras[name]


if __name__ == "__main__":
    print("\n".join(lowest()))
