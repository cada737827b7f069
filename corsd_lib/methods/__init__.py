"""What is optimised: each method says which terms it has, with which weights, and owns the extra modules that it trains.

A method is an `nn.Module` called with the outputs of all exits and the batch; it returns the total and its parts by name. The
weight of a part is the option of the same name, so total = sum over parts of option[name] * part[name]; a part of weight 0
is neither computed nor reported. To add a method: one options dataclass, one class with `terms`, one line in `METHODS`; from
outside, the same in a plug-in (see `registry`). `check_method` says whether a class keeps the rules that a training relies on.
"""

from __future__ import annotations

from corsd_lib.methods.base import Batch, Method, MethodOptions, allowed_values, described, option
from corsd_lib.methods.check import check_method
from corsd_lib.methods.corsd import Corsd, CorsdOptions, LogitRelation
from corsd_lib.methods.registry import METHODS, build_method, find_method, known_methods, loaded_plugins, plugin_failures

__all__ = [
    "METHODS",
    "Batch",
    "Corsd",
    "CorsdOptions",
    "LogitRelation",
    "Method",
    "MethodOptions",
    "allowed_values",
    "build_method",
    "check_method",
    "described",
    "find_method",
    "known_methods",
    "loaded_plugins",
    "option",
    "plugin_failures",
]
