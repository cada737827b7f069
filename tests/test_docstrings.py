"""A public function that raises `CorsdError`, itself or in a function that it calls, says so in its docstring."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

LIBRARY = Path(__file__).parents[1] / "corsd_lib"
STATED = re.compile(r"\braise[sd]?\b|\berrors\b", re.IGNORECASE)  # also "Arguments and errors as in ..."
# Their helper never raises, because they call it with arguments that are always valid.
NEVER = ("curve_beside", "exits_data", "relation_picture", "resume", "stage_picture")

Functions = dict[str, ast.FunctionDef]


def _functions(body: list[ast.stmt], prefix: str = "") -> Functions:
    return {prefix + node.name: node for node in body if isinstance(node, ast.FunctionDef)}


def _raises(function: ast.FunctionDef) -> bool:
    return any(isinstance(node, ast.Raise) and "CorsdError(" in ast.unparse(node) for node in ast.walk(function))


def _unstated(library: Path) -> Iterator[str]:
    """Public functions and methods whose docstring, and those of their class and module, do not state the errors."""
    files = {"corsd_lib." + ".".join(f.relative_to(library).with_suffix("").parts): f for f in library.rglob("*.py")}
    trees = {name.removesuffix(".__init__"): ast.parse(file.read_text(encoding="utf-8")) for name, file in files.items()}
    own = {name: _functions(tree.body) for name, tree in trees.items()}
    for module, tree in sorted(trees.items()):
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        below = {a.name: f for node in imports for a in node.names if (f := own.get(node.module or "", {}).get(a.name))}
        for place in (tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))):
            reached = below | own[module] | _functions(place.body, "self.")
            for name, function in _functions(place.body).items():
                text = "".join(ast.get_docstring(node) or "" for node in (tree, place, function))
                called = {ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}
                caught = "except CorsdError" in ast.unparse(function)
                by_helper = not caught and any(_raises(reached[each]) for each in called & reached.keys())
                if (
                    (_raises(function) or by_helper)
                    and ast.get_docstring(function)
                    and name[0] != "_"
                    and name not in NEVER
                    and not STATED.search(text)
                ):
                    yield f"{module}:{function.lineno} {name}"


def test_public_docstrings_state_the_errors() -> None:
    assert list(_unstated(LIBRARY)) == []


def test_an_error_of_a_helper_is_found(tmp_path: Path) -> None:
    helper = 'def _check(x):\n    raise CorsdError("no")\n\n\n'
    (tmp_path / "a.py").write_text(f'{helper}def silent(x):\n    """Doubled."""\n    _check(x)\n')
    (tmp_path / "b.py").write_text(f'{helper}def said(x):\n    """Doubled. Raises `CorsdError` for 1."""\n    _check(x)\n')
    assert list(_unstated(tmp_path)) == ["corsd_lib.a:5 silent"]
