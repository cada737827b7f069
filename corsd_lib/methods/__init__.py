"""What is optimised: each method says which terms it has, with which weights, and owns the extra modules that it trains.

A method is an `nn.Module` called with the outputs of all exits and the batch; it returns the total and its parts by name. The
weight of a part is the option of the same name, so total = sum over parts of option[name] * part[name]; a part of weight 0 is
still reported, and trains nothing. To add a method: one options dataclass, one class with `terms`, one line in `METHODS`; from
outside, the same in a module that the environment variable CORSD_METHODS names.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from corsd_lib.errors import CorsdError, check_choice
from corsd_lib.methods.base import Batch, Method, MethodOptions
from corsd_lib.methods.classic import Baseline, Byot, DeepSupervision, Probe
from corsd_lib.methods.corsd import Corsd, CorsdOptions, CorsdRelease, LogitRelation
from corsd_lib.methods.peers import CsKd, LabelSmoothing, PsKd, Rkd
from corsd_lib.network import MultiExitNetwork

__all__ = [
    "METHODS",
    "Batch",
    "Corsd",
    "CorsdOptions",
    "LogitRelation",
    "Method",
    "MethodOptions",
    "build_method",
]

METHODS: dict[str, type[Method]] = {
    m.name: m for m in (Baseline, LabelSmoothing, CsKd, PsKd, Probe, DeepSupervision, Byot, Rkd, Corsd, CorsdRelease)
}


def _add_others() -> None:
    """Import the modules that $CORSD_METHODS names, by commas; each adds to `METHODS`. Processes of a study do so too."""
    for module in filter(None, os.environ.get("CORSD_METHODS", "").split(",")):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise CorsdError(f"CORSD_METHODS: cannot import {module!r}: {error}; is its folder on PYTHONPATH?") from error


def build_method(name: str, *, network: MultiExitNetwork | None = None, **options: Any) -> Method:
    """A method by name with its weights and settings; with `network` its trainable parts are made too (`attach`).

    Raises `CorsdError` for an unknown name or option, naming what is allowed.
    """
    check_choice("method", name, METHODS)
    method = METHODS[name](**options)
    return method.attach(network) if network is not None else method


_add_others()
