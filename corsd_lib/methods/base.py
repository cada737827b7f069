"""Base class of the methods, and the options that every method declares."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from corsd_lib import losses
from corsd_lib.batches import Batch
from corsd_lib.errors import CorsdError, check_choice, shortened
from corsd_lib.network import ExitOutputs, MultiExitNetwork

__all__ = ["Batch", "Method", "MethodOptions", "allowed_values", "make_options", "option", "option_info", "sum_of"]

Value = TypeVar("Value", float, int, bool, str)


def option(
    default: Value,
    help: str = "",
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    choices: Iterable[str] | None = None,
) -> Value:
    """A field of an options dataclass: default, help text in one line, and limits.

    A number may be equal to `low` and `high`, but not to `above` and `below`. Without a lower limit a float must be at least 0
    and an integer at least 1. A float is always above -1e38 and below 1e38, an integer above -2**31 and below 2**31. `choices`:
    the allowed strings. A subclass that overrides only the default keeps help and limits. Raises `CorsdError` for a limit that
    is not a number or a choice that is not a string.
    """
    for name, limit in (("low", low), ("above", above), ("high", high), ("below", below)):
        if limit is not None and type(limit) not in (int, float):
            raise CorsdError(f"option: {name} = {shortened(limit)}; allowed: a number, or None")
    names = None if choices is None else tuple(choices)
    if isinstance(choices, str) or not all(isinstance(name, str) for name in names or ()):
        raise CorsdError(f"option: choices = {shortened(choices)}; allowed: strings, or None")
    allowed = {"low": low, "above": above, "high": high, "below": below, "choices": names}
    return field(default=default, metadata={"help": help, **{k: v for k, v in allowed.items() if v is not None}})


@dataclass(frozen=True)
class MethodOptions:
    """Options that every method has."""

    task: float = option(1.0, "weight of the cross-entropy of the deepest exit")
    label_smoothing: float = option(0.0, "share of each label that is spread uniformly over the classes", below=1)


class Method(nn.Module):
    """Base class of all methods. It holds the options and computes the weighted sum of the terms.

    Class attributes:

    - `name`: used on the command line and in file names;
    - `Options`: the dataclass of the options;
    - `exits`: "all" or "deepest", the stages on which the network gets exits;
    - `sampling` and `samples_per_class`: how batches are sampled, unless the configuration sets these;
    - `detach_exits`: whether gradients of the shallow exits stop before the backbone;
    - `cuda_graphs`: whether `transform_images` and `loss_terms` can be recorded as a CUDA graph. Set it to False if one of
      them waits for the device, or reads fields of a batch other than `images`, `labels`, `sampling` and `random`;
    - `taught_by_deepest`: the terms in which the deepest exit or stage teaches the others. They must not send a gradient to it.

    `check_method` checks that a class does what it declares.

    A training step calls `sample`, `transform_images`, the network, and then the method, in this order. Evaluation and
    probes call none of these; the network gets the original images.

    Persistent buffers are saved with the weights and must keep their shape. Values that only the training needs, such as past
    predictions, are buffers with `persistent=False`: they are stored in checkpoints only, may change their shape, and are
    restored when the training is resumed.
    """

    name: ClassVar[str] = ""
    Options: ClassVar[type[MethodOptions]] = MethodOptions
    exits: ClassVar[str] = "all"
    sampling: ClassVar[str] = "plain"
    samples_per_class: ClassVar[int] = 4  # number of images of each class in balanced batches
    detach_exits: ClassVar[bool] = False
    cuda_graphs: ClassVar[bool] = True
    taught_by_deepest: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = make_options(self.name, self.Options, options)

    def attach(self, network: MultiExitNetwork) -> Method:
        """Create the modules that this method trains beside `network`. Returns the method."""
        return self

    def sample(self, batch: Batch) -> dict[str, Tensor]:
        """Tensors that this method needs for a batch, by name: random ones, and values derived from the labels.

        They are on the device of the labels. They are computed here so that `transform_images` and `loss_terms` run the same
        operations for all batches of a shape and can be recorded as a CUDA graph.
        """
        return {}

    def transform_images(self, batch: Batch) -> Tensor:
        """Input of the network in a training step, normalised (B, C, H, W): `batch.images`, or a new tensor.

        The result may depend only on images, labels and `batch.random`. The operations must be the same for all batches of a
        shape. The training accuracy is measured on the returned images.
        """
        return batch.images

    def loss_terms(self, out: ExitOutputs, batch: Batch) -> dict[str, Tensor]:
        """Unweighted terms of the loss by name, all scalars. Use `active_terms` to skip terms of weight 0.

        The default implementation raises `CorsdError`.
        """
        raise CorsdError(f"method {self.name!r} has no terms: define loss_terms(self, out, batch)")

    def active_terms(self, parts: Mapping[str, Callable[[], Tensor]]) -> dict[str, Tensor]:
        """Compute the terms whose weight is not 0, and return them by name.

        `parts`: name of a term -> function that computes the term. The weight of a term is the option of the same name. Raises
        `CorsdError` if there is no such option.
        """
        return {name: part() for name, part in parts.items() if self._weight(name)}

    def forward(self, out: ExitOutputs, batch: Batch) -> dict[str, Tensor]:
        """The loss "total" (weighted sum) and the unweighted terms by name, all scalars.

        Raises `CorsdError` if `loss_terms` does not return scalar tensors by name, if a term has no option of the same name
        (its weight), and if all weights are 0.
        """
        parts = check_terms(self.name, self.loss_terms(out, batch))
        weights = {name: self._weight(name) for name in parts}
        if not any(weights.values()):
            raise CorsdError(
                f"method {self.name!r}: {', '.join(parts) or 'its terms'} all have weight 0; allowed: one or more above 0"
            )
        return {"total": sum_of(weights[name] * parts[name] for name in parts if weights[name]), **parts}

    def _weight(self, part: str) -> float:
        if not hasattr(self.options, part):
            options_class = self.Options.__name__
            raise CorsdError(
                f"method {self.name!r}: the term {part!r} has no weight: add the field `{part}: float` to {options_class}"
            )
        return getattr(self.options, part)

    def relation_networks(self) -> nn.ModuleList:
        """Relation networks, shallow -> deep; empty for a method without them."""
        return nn.ModuleList()

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return losses.cross_entropy(logits, labels, self.options.label_smoothing)


def check_terms(method: str, parts: Any) -> dict[str, Tensor]:
    """Return `parts`, the result of `loss_terms`.

    Raises `CorsdError` unless it is a dict name -> scalar tensor, without the name "total".
    """
    if not isinstance(parts, dict):
        raise CorsdError(
            f"method {method!r}: loss_terms returned {shortened(parts)} of type {type(parts).__name__}; "
            "allowed: a dict of scalar tensors by name"
        )
    for name, value in parts.items():
        if not isinstance(name, str):
            raise CorsdError(f"method {method!r}: a term is named {shortened(name)}; allowed: a string")
        if name == "total":
            raise CorsdError(
                f"method {method!r}: a term is called 'total', which is the name of the weighted sum: choose another name"
            )
        if not isinstance(value, Tensor) or value.ndim:
            given = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else shortened(value)
            raise CorsdError(f"method {method!r}: the term {name!r} is {given}: return a scalar tensor")
    return parts


def make_options(method: str, options_class: type[MethodOptions], given: dict[str, Any]) -> MethodOptions:
    """The options of a method: the defaults of `options_class`, overridden by `given`.

    Raises `CorsdError` for unknown options and invalid values.
    """
    defaults = {f.name: _default(method, f) for f in fields(options_class)}
    for key in given:
        check_choice(f"option of method {method!r}:", key, defaults)
    options = {
        key: _parse_option(f"method {method!r}", key, value, type(defaults[key]), option_info(options_class, key))
        for key, value in {**defaults, **given}.items()  # defaults are checked too, because a run stores all options
    }
    return options_class(**options)


def _default(method: str, field: Field[Any]) -> Any:
    if field.default is MISSING:
        raise CorsdError(f"method {method!r}: option {field.name} has no default: give it one, a number, a bool or a string")
    if type(field.default) not in (bool, int, float, str):
        given = f"the default {shortened(field.default)} of type {type(field.default).__name__}"
        raise CorsdError(f"method {method!r}: option {field.name} has {given}; allowed: a number, a bool or a string")
    return field.default


def option_info(options_class: type[MethodOptions], key: str) -> Mapping[str, Any]:
    """Help and limits of the field `key` of `options_class`, as they were passed to `option`; {} if there are none."""
    for parent in options_class.__mro__:  # a subclass may override just the default
        found = parent.__dict__.get("__dataclass_fields__", {}).get(key)
        if found is not None and found.metadata:
            return found.metadata
    return MappingProxyType({})


def _parse_option(method: str, key: str, value: Any, wanted: type[Any], allowed: Mapping[str, Any]) -> Any:
    """`value` as type `wanted`, where an int is accepted for a float. Raises `CorsdError` for a wrong type and a value out of
    range.
    """
    what = f"{method}: {key} = {shortened(value)}"
    if wanted is int and type(value) is int and abs(value) >= 2**31:
        raise CorsdError(f"{what} must be above {-(2**31)} and below {2**31}")
    if wanted is float and type(value) is int:
        _check_magnitude(what, value)  # before the conversion, which fails for integers of more than 308 digits
        value = float(value)
    if type(value) is not wanted:
        raise CorsdError(f"{what} must be of type {wanted.__name__}")
    if "choices" in allowed:
        check_choice(f"{method}: {key}", value, allowed["choices"])
    if wanted in (float, int):
        _check_limits(what, value, wanted, allowed)
    return value


_LIMITS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "low": ("at least", operator.ge),
    "above": ("above", operator.gt),
    "high": ("at most", operator.le),
    "below": ("below", operator.lt),
}


def _limits(wanted: type[Any], allowed: Mapping[str, Any]) -> dict[str, Any]:
    """Limits of a numeric option. If the option declares no lower limit, a float must be at least 0 and an integer above 0."""
    lower = {} if allowed.keys() & {"low", "above"} else {"low" if wanted is float else "above": 0}
    return {name: limit for name, limit in {**lower, **allowed}.items() if name in _LIMITS}


def _check_limits(what: str, value: float, wanted: type[Any], allowed: Mapping[str, Any]) -> None:
    for name, limit in _limits(wanted, allowed).items():
        words, holds = _LIMITS[name]
        if not holds(value, limit):
            finite = "finite and " if wanted is float and name == "low" else ""
            raise CorsdError(f"{what} must be {finite}{words} {limit}")
    if not math.isfinite(value):
        raise CorsdError(f"{what} must be finite")
    _check_magnitude(what, value)


def _check_magnitude(what: str, value: float) -> None:
    if abs(value) >= 1e38:
        raise CorsdError(f"{what} must be above -1e+38 and below 1e+38, because larger values may overflow in float32")


def allowed_values(options_class: type[MethodOptions], key: str) -> str:
    """The allowed values of the option `key` as text, such as "a number, at least 0 and below 1"."""
    wanted, allowed = type(getattr(options_class, key)), option_info(options_class, key)
    if wanted is bool:
        return "true or false"
    if wanted is str:
        return " or ".join(allowed["choices"]) if "choices" in allowed else "a string"
    limits = " and ".join(f"{_LIMITS[name][0]} {limit}" for name, limit in _limits(wanted, allowed).items())
    return f"{'a number' if wanted is float else 'a whole number'}, {limits}"


def sum_of(terms: Iterable[Tensor]) -> Tensor:
    return sum(terms, start=torch.zeros(()))
