"""Imports inside the library go downwards: a module imports only from layers below its own, and no files form a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[1] / "corsd_lib"
LAYERS = (  # modules and packages of corsd_lib, the lowest first
    *("errors", "bundle", "cards", "schema", "files", "readers"),
    *("datasets", "batches"),
    *("layers", "backbones", "network", "losses", "relation", "methods"),
    *("provenance", "runs", "costs", "evaluation", "training"),
    *("analysis", "attribution", "studies", "figures"),
    *("sharing", "widgets"),
    *(
        "bench_explorers",
        "bench_serving",
        "bench",
        "course",
        "_notebooks",
        "walkthrough",
        "cli_course",
        "cli_share",
        "cli",
        "__main__",
    ),
)


def _imported(file: Path) -> Iterator[str]:
    """Dotted names below corsd_lib that a file imports anywhere: also in functions and for type checking."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("corsd_lib."):
            yield node.module.removeprefix("corsd_lib.")


def _upward(library: Path) -> list[str]:
    found = []
    for file in sorted(library.rglob("*.py")):
        layer = file.relative_to(library).with_suffix("").parts[0]
        for name in _imported(file) if layer != "__init__" else ():
            if LAYERS.index(name.partition(".")[0]) > LAYERS.index(layer):
                found.append(f"{file.relative_to(library)} imports corsd_lib.{name}, which is above it")
    return found


def test_imports_go_downwards() -> None:
    assert _upward(LIBRARY) == []


def test_an_upward_import_is_found_wherever_it_stands(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "run.py").write_text("def f() -> None:\n    from corsd_lib.training import train\n")
    (tmp_path / "cli.py").write_text("from corsd_lib.training import train\n")
    assert _upward(tmp_path) == ["runs/run.py imports corsd_lib.training, which is above it"]


def test_no_file_imports_itself_through_others() -> None:
    files = {".".join(f.relative_to(LIBRARY).with_suffix("").parts): f for f in LIBRARY.rglob("*.py") if f.stem != "__init__"}
    graph = {name: [n for n in _imported(file) if n in files] for name, file in files.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"files that import each other: {error.args[1]}")
