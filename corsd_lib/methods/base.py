"""What every method is: options that are weights, parts by name, and the batch it is given."""

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

__all__ = ["Batch", "Method", "MethodOptions", "allowed_values", "described", "make_options", "option", "sum_of"]

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
    """A field of an options dataclass: its default, what it is in a line, and what is allowed.

    Of a number `low` and `high` are allowed themselves, `above` and `below` are not. Without a lower end a float is at least 0
    and a whole number at least 1. A float is between -1e38 and 1e38. `choices` of a string. A subclass that only sets another
    default keeps the rest. Raises `CorsdError` for a limit that is no number and a choice that is no string.
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
    """Weights every method has."""

    task: float = option(1.0, "weight of the cross-entropy of the deepest exit")
    label_smoothing: float = option(0.0, "share of every label that is spread evenly over the classes", below=1)


class Method(nn.Module):
    """Base of all methods: holds the options, sums the weighted parts; `attach(network)` makes the trainable parts.

    Of a class: `exits` "all" or "deepest", where the network gets exits; `sampling` and `samples_per_class`, the batches where
    a configuration does not say; `detach_exits`, whether shallow exits only watch; `graphs` False where `images` or `terms`
    reads more of a batch than images, labels and draws, or waits for the device; `taught_by_deepest`, the terms in which the
    deepest exit or stage teaches the shallower ones, and which give it no gradient. `check_method` holds a class to what it
    declares.

    A training step calls `draw`, then `images`, then the network, then the method itself. Evaluation and probes call none of
    them: they show the network the images as they are.

    Buffers are part of the weights and keep their shape. What a method remembers of the training for the training alone, in
    whatever shape, goes into a buffer with `persistent=False`: it is in checkpoints, and a resume gets it back.
    """

    name: ClassVar[str] = ""
    Options: ClassVar[type[MethodOptions]] = MethodOptions
    exits: ClassVar[str] = "all"
    sampling: ClassVar[str] = "plain"
    samples_per_class: ClassVar[int] = 4  # of balanced batches
    detach_exits: ClassVar[bool] = False
    graphs: ClassVar[bool] = True
    taught_by_deepest: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = make_options(self.name, self.Options, options)

    def attach(self, network: MultiExitNetwork) -> Method:
        """Create the modules that this method trains beside `network`, sized from what it declares. Returns itself."""
        return self

    def draw(self, batch: Batch) -> dict[str, Tensor]:
        """What this method draws at random for a batch and what it reads of its labels, tensors on their device.

        Kept apart from `images` and `terms`, which then are the same sequence of operations for all batches of a shape: what a
        CUDA graph is.
        """
        return {}

    def images(self, batch: Batch) -> Tensor:
        """What the network sees in a training step, normalised (B, C, H, W): `batch.images`, or a new tensor like it.

        The same sequence of operations for all batches of a shape, on images, labels and what `draw` has drawn (`batch.draws`).
        The accuracy that a training records is that on these images.
        """
        return batch.images

    def terms(self, out: ExitOutputs, batch: Batch) -> dict[str, Tensor]:
        """The parts of the objective by name, unweighted scalars; see `computed` for those that may have weight 0."""
        raise CorsdError(f"method {self.name!r} has no terms: define terms(self, out, batch)")

    def computed(self, parts: Mapping[str, Callable[[], Tensor]]) -> dict[str, Tensor]:
        """The parts by name whose weight is not 0; the functions of the others are not called, so they cost nothing."""
        return {name: part() for name, part in parts.items() if self._weight(name)}

    def forward(self, out: ExitOutputs, batch: Batch) -> dict[str, Tensor]:
        """Exit outputs and batch -> {"total": weighted sum, part: unweighted value, ...}, scalars."""
        parts = checked_terms(self.name, self.terms(out, batch))
        weights = {name: self._weight(name) for name in parts}
        if not any(weights.values()):
            raise CorsdError(
                f"method {self.name!r}: {', '.join(parts) or 'its terms'} all have weight 0: there is nothing to train"
            )
        return {"total": sum_of(weights[name] * parts[name] for name in parts if weights[name]), **parts}

    def _weight(self, part: str) -> float:
        if not hasattr(self.options, part):
            kind = self.Options.__name__
            raise CorsdError(f"method {self.name!r}: its term {part!r} has no weight: add the field `{part}: float` to {kind}")
        return getattr(self.options, part)

    def relation_networks(self) -> nn.ModuleList:
        """Relation networks shallow -> deep, empty for a method that has none."""
        return nn.ModuleList()

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return losses.cross_entropy(logits, labels, self.options.label_smoothing)


def checked_terms(method: str, parts: Any) -> dict[str, Tensor]:
    """What `terms` returned, or a `CorsdError` where it is not scalar tensors by name."""
    if not isinstance(parts, dict):
        raise CorsdError(
            f"method {method!r}: terms returned {shortened(parts)} of type {type(parts).__name__}; "
            "allowed: a dict of scalar tensors by name"
        )
    for name, value in parts.items():
        if not isinstance(name, str):
            raise CorsdError(f"method {method!r}: a term is named {shortened(name)}; allowed: a string")
        if not isinstance(value, Tensor) or value.ndim:
            given = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else shortened(value)
            raise CorsdError(f"method {method!r}: the term {name!r} is {given}: return a scalar tensor")
    return parts


def make_options(method: str, kind: type[MethodOptions], given: dict[str, Any]) -> MethodOptions:
    """The options of a method, those `given` over the defaults, each of the type of its default and in its range."""
    defaults = {f.name: _default(method, f) for f in fields(kind)}
    for key in given:
        check_choice(f"option of method {method!r}:", key, defaults)
    options = {
        key: _checked(f"method {method!r}", key, value, type(defaults[key]), described(kind, key))
        for key, value in {**defaults, **given}.items()  # defaults too: a run stores them, and is opened with them
    }
    return kind(**options)


def _default(method: str, field: Field[Any]) -> Any:
    if field.default is MISSING:
        raise CorsdError(f"method {method!r}: option {field.name} has no default: an option is a number, a bool or a string")
    if type(field.default) not in (bool, int, float, str):
        given = f"the default {shortened(field.default)} of type {type(field.default).__name__}"
        raise CorsdError(f"method {method!r}: option {field.name} has {given}: an option is a number, a bool or a string")
    return field.default


def described(kind: type[MethodOptions], key: str) -> Mapping[str, Any]:
    """What `option` says of the field `key` of the options `kind`, "help" and limits by name; {} where nothing does."""
    for parent in kind.__mro__:  # a subclass that sets another default says no more than that
        found = parent.__dict__.get("__dataclass_fields__", {}).get(key)
        if found is not None and found.metadata:
            return found.metadata
    return MappingProxyType({})


def _checked(method: str, key: str, value: Any, wanted: type[Any], allowed: Mapping[str, Any]) -> Any:
    """`value` in the type `wanted`, or a `CorsdError` that begins with `method`."""
    what = f"{method}: {key} = {shortened(value)}"
    if type(value) is int and abs(value) >= 2**31:
        raise CorsdError(f"{what} must be below {2**31}, which is more than tensors can count")
    if wanted is float and type(value) is int:
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
    """The limits of a number; a float without a lower end is at least 0, a whole number above 0."""
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
    if abs(value) >= 1e38:  # its square must not overflow, nor may it be infinite in a tensor
        raise CorsdError(f"{what} must be between -1e+38 and 1e+38, near which single precision ends")


def allowed_values(kind: type[MethodOptions], key: str) -> str:
    """What the option `key` of the options `kind` may be, such as "a number, at least 0 and below 1"."""
    wanted, allowed = type(getattr(kind, key)), described(kind, key)
    if wanted is bool:
        return "true or false"
    if wanted is str:
        return " or ".join(allowed["choices"]) if "choices" in allowed else "a string"
    limits = " and ".join(f"{_LIMITS[name][0]} {limit}" for name, limit in _limits(wanted, allowed).items())
    return f"{'a number' if wanted is float else 'a whole number'}, {limits}"


def sum_of(terms: Iterable[Tensor]) -> Tensor:
    return sum(terms, start=torch.zeros(()))
