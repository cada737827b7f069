"""The exceptions of the library, and checks of arguments that raise them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import islice
from numbers import Integral
from reprlib import Repr

__all__ = [
    "PROCESSES_PER_CPU",
    "CorsdError",
    "MissingPackage",
    "check_choice",
    "check_processes",
    "enough_memory",
    "first_line",
    "is_whole",
    "missing_package",
    "named",
    "require",
    "shortened",
    "stand_in",
]

PROCESSES_PER_CPU = 8  # largest number of processes per CPU, for processes that mostly wait for files or a GPU
_EXTRA = {  # package -> extra of this library that installs it; for all others it is "notebooks"
    "optuna": "tuning",
    "timm": "timm",
    **dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "deploy"),
    "huggingface_hub": "hub",
    "submitit": "cluster",
    "tensorboard": "tracking",
    "wandb": "wandb",
    "mlflow": "mlflow",
}
_PUBLISHED_AS = {"umap": "umap-learn"}


class CorsdError(ValueError):
    """Invalid input, or a run that cannot continue. The message names the argument, its value and what is allowed."""


def is_whole(value: object, low: int, high: int) -> bool:
    """Whether `value` is an integer of Python or numpy from `low` to `high`; bool is not accepted."""
    return isinstance(value, Integral) and not isinstance(value, bool) and low <= int(value) <= high


class _Short(Repr):
    """`repr` of limited length, including for integers with more than 4,300 digits, for which `repr` raises an error."""

    def repr_int(self, x: int, level: int) -> str:
        if x.bit_length() < 2000:  # 602 digits; the limit of Python can be as low as 640
            return super().repr_int(x, level)
        return f"<{'negative ' if x < 0 else ''}integer of about {x.bit_length() * 0.30103:,.0f} digits>"

    def repr_dict(self, x: dict[object, object], level: int) -> str:
        """`repr` of a dict with the keys in its own order; the base class `Repr` sorts them."""
        if not x or level <= 0:
            return "{...}" if x else "{}"
        shown = [f"{self.repr1(k, level - 1)}: {self.repr1(v, level - 1)}" for k, v in islice(x.items(), self.maxdict)]
        return f"{{{', '.join([*shown, *(['...'] if len(x) > self.maxdict else [])])}}}"


_short = _Short()
_short.maxstring = _short.maxother = _short.maxlong = 80


def shortened(value: object) -> str:
    """`repr` of a value for a message, shortened to about 80 characters."""
    return _short.repr(value)


def check_choice(what: str, value: object, allowed: Iterable[object]) -> None:
    """Raise `CorsdError` unless `value` is one of `allowed`; `what` is its name in the message."""
    choices = list(allowed)
    if value not in choices:
        problem = "known" if isinstance(value, str) else "available"  # a number, such as that of an exit, is not a name
        raise CorsdError(f"{what} {shortened(value)} is not {problem}; allowed: {', '.join(map(str, choices)) or 'none'}")


# Parts of messages of torch
_NO_MEMORY = ("allocate memory", "not enough memory", "out of memory", "Storage size calculation overflowed")


@contextmanager
def enough_memory(what: str, advice: str = "") -> Iterator[None]:
    """Turn out-of-memory errors of Python, numpy and torch inside the context into a `CorsdError`.

    The message begins with `what`, the name of the task, and ends with `advice`.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error).strip().partition("\n")[0]
        if not isinstance(error, MemoryError) and not any(words in text for words in _NO_MEMORY):
            raise
        reason = text.rpartition("DefaultCPUAllocator: ")[2]
        raise CorsdError(f"{what} needs more memory than is available{f' ({reason})' if reason else ''}{advice}") from error


class MissingPackage(ModuleNotFoundError, CorsdError):
    """An optional package is not installed. The message has the command that installs it."""


def missing_package(what: str, package: str, error: ImportError) -> MissingPackage:
    """The `MissingPackage` error for the feature `what`, such as "tuning". `error`: what the import of `package` raised."""
    missing = (error.name or package).partition(".")[0]
    name, extra = _PUBLISHED_AS.get(missing, missing), _EXTRA.get(package, "notebooks")
    why = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
    return MissingPackage(f"{what} needs {name}, which {why}: pip install 'corsd_lib[{extra}]'", name=missing)


def require(what: str, *packages: str) -> None:
    """Raise `MissingPackage` if one of `packages`, which `what` needs, cannot be imported."""
    for package in packages:
        try:
            import_module(package)
        except ImportError as error:
            raise missing_package(what, package, error) from error


def stand_in(name: str, error: MissingPackage) -> type:
    """A placeholder for the public class or function `name`, which needs a missing package. Calling it raises `error`."""

    def refuse(self: object, *arguments: object, **options: object) -> None:
        raise MissingPackage(str(error), name=error.name)

    return type(name, (), {"__init__": refuse, "__doc__": f"Not available: {error}"})


def first_line(error: Exception) -> str:
    """First line of the message of `error`, because torch adds traces below it."""
    return str(error).strip().partition("\n")[0]


@contextmanager
def named(source: object) -> Iterator[None]:
    """Put `source`, such as a file, before the message of a `CorsdError` raised inside the context, unless the message contains
    it.
    """
    try:
        yield
    except MissingPackage:  # its message needs no source
        raise
    except CorsdError as error:
        if str(source) in str(error):
            raise
        raise CorsdError(f"{source}: {error}") from error


def check_processes(what: str, count: int, per_cpu: int = 1) -> None:
    """Raise `CorsdError` if `count` is more than `per_cpu` processes per CPU; `what` names the argument in the message.

    Too many processes use up the memory, and then the operating system kills some of them.
    """
    most = per_cpu * (os.cpu_count() or 1)
    if count > most:
        raise CorsdError(f"{what} = {count} is more than this machine can run; allowed: up to {most}, {per_cpu} per CPU")


def check_text(what: str, *texts: str) -> None:
    """Raise `CorsdError` unless all `texts` can be encoded as UTF-8; `what` is their name in the message.

    If a file name is not valid UTF-8, Python replaces its invalid bytes by surrogates. Surrogates cannot be written to JSON,
    tables or a terminal.
    """
    for text in texts:
        if shown_text(text) != text:
            raise CorsdError(f"{what} {shortened(text)} is not valid UTF-8; rename it")


def shown_text(text: str) -> str:
    """`text` with escapes in place of characters that are not valid UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()
