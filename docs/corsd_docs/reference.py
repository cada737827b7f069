"""Pages of the API: the names that api.toml lists, each with its docstring and a link to its source."""

from __future__ import annotations

import inspect
import tomllib
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from importlib import import_module
from typing import Any

from corsd_docs.docstrings import as_markdown
from corsd_docs.files import DOCS, Writer
from corsd_docs.methods import class_path, table
from corsd_lib.methods import METHODS


@cache
def settings() -> dict[str, Any]:
    """The contents of api.toml; names are paths below `corsd_lib`."""
    return tomllib.loads((DOCS / "api.toml").read_text(encoding="utf-8"))


def groups() -> list[dict[str, Any]]:
    """The pages of the API: file, title, text, names, and members of classes if not all."""
    return settings()["group"]


def listed() -> list[str]:
    """The full names of api.toml."""
    return [f"corsd_lib.{name}" for group in groups() for name in group["names"]]


def found(path: str) -> Any:
    """The object with a full name, such as "corsd_lib.analysis.scatter"."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


@cache
def by_name() -> dict[str, str]:
    """The full names of all documented objects, by their last part."""
    return {path.rpartition(".")[2]: path for path in [*listed(), *map(class_path, METHODS.values())]}


def linked() -> dict[str, str]:
    """Names in docstrings that become links, and the full names: those with a capital or an underscore."""
    return {name: path for name, path in by_name().items() if "_" in name or not name.islower()}


def documented(path: str) -> str:
    """The full name under which an object or a member of a class is documented, from one with another prefix."""
    *_, owner, name = path.split(".")
    paths = by_name()
    return f"{paths[owner]}.{name}" if owner in paths else paths.get(name, path)


def write_reference(write: Writer) -> None:
    for group in groups():
        paths = [f"corsd_lib.{name}" for name in group["names"]]
        entries = [_entry(path, group.get("members", "")) for path in paths]
        parts = [f"# {group['title']}", group["text"].strip(), _summary(paths), *entries]
        write(f"api/{group['file']}.md", "\n\n".join(parts) + "\n")


def _summary(paths: list[str]) -> str:
    """A list of the objects with their purposes, which link to their entries."""
    return "\n".join(f"- {{py:obj}}`~{path}`: {_purpose(path)}" for path in paths)


def _purpose(path: str) -> str:
    """The text of a constant, or the first paragraph of a docstring, as Markdown."""
    text = _constant(path) or (inspect.getdoc(found(path)) or "").partition("\n\n")[0]
    return as_markdown(text)


def _constant(path: str) -> str | None:
    return settings()["constants"].get(path.removeprefix("corsd_lib."))


def _entry(path: str, members: str) -> str:
    """The directive that documents an object, with these members of a class, or all that have a docstring; and its fields."""
    value = found(path)
    if text := _constant(path):
        return f"```{{eval-rst}}\n.. py:data:: {path}\n\n   {text}\n```"
    kind = "function"
    if isinstance(value, type):
        kind = "exception" if issubclass(value, BaseException) else "class"
    explained = _fields(value)
    members = f"\n   :members: {members}" if kind == "class" else ""
    signature = "(**fields)" if explained or _made_by_factory(value) else ""
    entry = f"```{{eval-rst}}\n.. auto{kind}:: {path}{signature}{members}\n```"
    return f"{entry}\n\n{explained}" if explained else entry


def _made_by_factory(value: Any) -> bool:
    """Whether a class has fields whose default has no text in a signature."""
    return is_dataclass(value) and any(f.default_factory is not MISSING for f in fields(value))


def _fields(value: Any) -> str:
    """The fields of a dataclass that have help texts."""
    if not (isinstance(value, type) and is_dataclass(value)):
        return ""
    lines = [
        {"field": f"`{f.name}`", "default": f"`{_default(f)}`", "meaning": as_markdown(f.metadata["help"])}
        for f in fields(value)
        if "help" in f.metadata
    ]
    return table(lines) if lines else ""


def _default(field: Any) -> Any:
    return repr(field.default if field.default is not MISSING else field.default_factory())
