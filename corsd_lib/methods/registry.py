"""Methods by name: those of the library, and plug-ins, which are loaded when a name is not one of the library's.

A plug-in is a module or an entry point. A module adds its method classes to `METHODS`; the environment variable CORSD_METHODS
lists the names of such modules, separated by commas. An entry point belongs to an installed package, is in the group
"corsd.methods", and refers to one method class:

    [project.entry-points."corsd.methods"]
    entropy = "my_package.methods:Entropy"
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from typing import Any

from corsd_lib.errors import CorsdError, check_choice, shortened
from corsd_lib.methods.base import Method
from corsd_lib.methods.classic import Baseline, Byot, DeepSupervision, Probe
from corsd_lib.methods.corsd import Corsd, CorsdRelease
from corsd_lib.methods.ensembling import Bake, Dlb
from corsd_lib.methods.exit_peers import Dist, Dks
from corsd_lib.methods.mixing import Cutmix, CutmixExits, Ips, Mixup
from corsd_lib.methods.peers import CsKd, LabelSmoothing, PsKd, Rkd
from corsd_lib.network import MultiExitNetwork

__all__ = ["METHODS", "build_method", "find_method", "known_methods", "loaded_plugins", "plugin_failures"]

METHODS: dict[str, type[Method]] = {
    m.name: m
    for m in (
        *(Baseline, LabelSmoothing, Mixup, Cutmix, Ips, CsKd, PsKd, Dlb, Bake),  # the plain network
        *(Probe, DeepSupervision, CutmixExits, Byot, Dks, Dist, Rkd, Corsd, CorsdRelease),
    )
}
GROUP = "corsd.methods"


def find_method(name: str) -> type[Method]:
    """Class of the method `name`. If the name is not in `METHODS`, plug-ins are loaded, once in a process.

    Raises `CorsdError` for an unknown name, with the known names and the plug-ins that could not be loaded.
    """
    known = METHODS if isinstance(name, str) and name in METHODS else known_methods()
    try:
        check_choice("method", name, known)
    except CorsdError as error:
        failed = "".join(f"; {source} could not be loaded: {reason}" for source, reason in plugin_failures().items())
        own = "" if os.environ.get("CORSD_METHODS") else "; for your own method, name its module in CORSD_METHODS"
        raise CorsdError(f"{error}{failed}{own}") from error
    return known[name]


def build_method(name: str, *, network: MultiExitNetwork | None = None, **options: Any) -> Method:
    """Create a method by name with its options.

    If `network` is given, the method is also attached to it: this creates the trainable modules of the method. Raises
    `CorsdError` for an unknown name and invalid options.
    """
    method = find_method(name)(**options)
    return method.attach(network) if network is not None else method


def known_methods() -> dict[str, type[Method]]:
    """All methods by name, including those of plug-ins that could be loaded; see `plugin_failures` for the others."""
    _PLUGINS.load()
    return METHODS


def plugin_failures() -> dict[str, str]:
    """The reason for each plug-in that could not be loaded, such as {"module 'my_methods' of CORSD_METHODS": "No module
    ..."}.
    """
    _PLUGINS.load()
    return dict(_PLUGINS.failed)


def loaded_plugins() -> list[str]:
    """Plug-ins that this process has loaded: names of modules, and names of entry points with package and version."""
    return list(_PLUGINS.loaded)


# --- loading ----------------------------------------------------------------------------------------------------------

# A plug-in: its name in errors, its name in the provenance, its module, and the function that adds its methods to METHODS
_Source = tuple[str, str, str, Callable[[], object]]


class _Plugins:
    """Loads the plug-ins once, in one thread, and stores which were loaded and which failed."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.failed: dict[str, str] = {}
        self._begun = False
        self._lock = threading.RLock()  # a plug-in may look up a method while it is imported

    def load(self) -> None:
        with self._lock:
            if self._begun:
                return
            self._begun = True
            for source, label, module, add in _sources():
                try:
                    _add_valid(add)
                except (Exception, SystemExit) as error:  # the other methods must work whatever a plug-in raises
                    self.failed[source] = _reason(error, module)
                else:
                    self.loaded.append(label)


_PLUGINS = _Plugins()


def _sources() -> Iterator[_Source]:
    for module in filter(None, (part.strip() for part in os.environ.get("CORSD_METHODS", "").split(","))):
        yield f"module {module!r} of CORSD_METHODS", module, module, partial(importlib.import_module, module)
    for point in metadata.entry_points(group=GROUP):
        package = f"{point.dist.name} {point.dist.version}" if point.dist else "a package without metadata"
        source = f"entry point {point.name!r} ({point.value}) of {package}"
        yield source, f"{point.name} of {package}", point.module, partial(_add_entry_point, point)


def _add_entry_point(point: metadata.EntryPoint) -> None:
    method_class = point.load()
    if (name := getattr(method_class, "name", None)) != point.name:
        raise CorsdError(
            f"it must be a class whose name is {point.name!r}; it is {shortened(method_class)}, whose name is {name!r}"
        )
    METHODS[point.name] = method_class


def _add_valid(add: Callable[[], object]) -> None:
    """Call `add`, which adds methods to `METHODS`, and check the new entries.

    If an entry is invalid, it is removed; if it replaced an existing one, the existing one is restored. In both cases
    `CorsdError` is raised.
    """
    before, wrong = dict(METHODS), []
    try:
        add()
    finally:
        for name, method_class in before.items():
            if METHODS.get(name) is not method_class:
                wrong.append(f"the name {name!r} is taken: choose another one")
                METHODS[name] = method_class
        for name, method_class in [entry for entry in METHODS.items() if entry[0] not in before]:
            if problem := _problem(name, method_class):
                wrong.append(f"METHODS[{shortened(name)}] {problem}")
                del METHODS[name]
    if wrong:
        raise CorsdError("; ".join(wrong))


def _problem(name: object, method_class: object) -> str:
    """What is wrong with an entry of `METHODS`; "" if nothing."""
    if not (isinstance(method_class, type) and issubclass(method_class, Method)):
        return f"is {shortened(method_class)}; allowed: a subclass of Method"
    if name != method_class.name or not isinstance(name, str):
        own, right = shortened(method_class.name), f"METHODS[{method_class.__name__}.name]"
        return f"is {method_class.__name__}, whose name is {own}; enter it under its name: {right}"
    if method_class.loss_terms is Method.loss_terms and method_class.forward is Method.forward:
        return f"is {method_class.__name__}, which has no terms; allowed: a class that defines loss_terms(self, out, batch)"
    return ""


def _reason(error: BaseException, module: str) -> str:
    """An error in one line: its message, with advice or its type where that helps, such as "KeyError: 'x'". `module`: module of
    the plug-in.
    """
    text = " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError):
        own = error.name is None or f"{module}.".startswith(f"{error.name}.")
        return f"{text} ({'is its folder on PYTHONPATH?' if own else f'it imports {error.name}, which is not installed'})"
    if isinstance(error, SystemExit):
        return f"{f'SystemExit: {text}'.rstrip(' :')} (it ends the process while it is imported; allowed: only definitions)"
    return text if isinstance(error, CorsdError) else f"{type(error).__name__}: {text}"
