"""Pages of the API: the names that api.toml lists, each with its docstring and a link to its source."""

from __future__ import annotations

import inspect
import tomllib
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from importlib import import_module
from typing import Any

from corsd_docs.files import DOCS, Writer
from corsd_docs.methods import class_path, table
from corsd_lib.methods import METHODS


@cache
def groups() -> list[dict[str, Any]]:
    """The groups of api.toml; `names` are paths below `corsd_lib`."""
    return tomllib.loads((DOCS / "api.toml").read_text(encoding="utf-8"))["group"]


def listed() -> list[str]:
    """The full names of api.toml."""
    return [f"corsd_lib.{name}" for group in groups() for name in group["names"]]


def found(path: str) -> Any:
    """The object with a full name, such as "corsd_lib.analysis.scatter"."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


@cache
def linked() -> dict[str, str]:
    """Names in docstrings that become links, and the full names: those with a capital or an underscore, and calls."""
    paths = [*listed(), *map(class_path, METHODS.values())]
    named = {path.rpartition(".")[2]: path for path in paths}
    return {name: path for name, path in named.items() if "_" in name or not name.islower()}


def write_reference(write: Writer) -> None:
    for group in groups():
        paths = [f"corsd_lib.{name}" for name in group["names"]]
        parts = [f"# {group['title']}", group["text"].strip(), _summary(paths), *map(_entry, paths)]
        write(f"api/{group['file']}.md", "\n\n".join(parts) + "\n")


def _summary(paths: list[str]) -> str:
    lines = "\n".join(f"   {path}" for path in paths)
    return f"```{{eval-rst}}\n.. autosummary::\n   :nosignatures:\n\n{lines}\n```"


def _entry(path: str) -> str:
    """The directive that documents an object, and a table of its fields if they have help texts."""
    value = found(path)
    kind = "function"
    if isinstance(value, type):
        kind = "exception" if issubclass(value, BaseException) else "class"
    elif not callable(value) or not inspect.isroutine(value):
        kind = "data"
    explained = _fields(value)
    options = {"class": "\n   :members:", "data": "\n   :no-value:"}.get(kind, "")
    entry = f"```{{eval-rst}}\n.. auto{kind}:: {path}{'(**fields)' if explained else ''}{options}\n```"
    return f"{entry}\n\n{explained}" if explained else entry


def _fields(value: Any) -> str:
    """The fields of a dataclass that have help texts."""
    if not (isinstance(value, type) and is_dataclass(value)):
        return ""
    lines = [
        {"field": f"`{f.name}`", "default": f"`{_default(f)}`", "meaning": f.metadata["help"]}
        for f in fields(value)
        if "help" in f.metadata
    ]
    return table(lines) if lines else ""


def _default(field: Any) -> Any:
    return repr(field.default if field.default is not MISSING else field.default_factory())
