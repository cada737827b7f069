"""Methods: the training objectives, with the modules that they train beside the network.

A method is an `nn.Module` that is called with the outputs of all exits and the batch, and returns the total loss and its terms
by name. The weight of a term is the option of the same name: total = sum of option[name] * term[name]. A term of weight 0 is
neither computed nor reported. To add a method, write an options dataclass and a class with `loss_terms`, and add the class to
`METHODS`, or put both into a plug-in, see `registry`. `check_method` tests whether a class keeps the rules that a training
relies on.
"""

from __future__ import annotations

from corsd_lib.methods.base import Batch, Method, MethodOptions, allowed_values, option, option_info
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
    "find_method",
    "known_methods",
    "loaded_plugins",
    "option",
    "option_info",
    "plugin_failures",
]
