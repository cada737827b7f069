"""What every method is: options that are weights, parts by name, and the batch it is given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from corsd_lib import losses
from corsd_lib.batches import Batch
from corsd_lib.errors import CorsdError, check_choice
from corsd_lib.network import ExitOutputs, MultiExitNetwork

__all__ = ["Batch", "Method", "MethodOptions", "make_options", "sum_of"]


@dataclass(frozen=True)
class MethodOptions:
    """Weights every method has. `task`: cross-entropy of the deepest exit; `label_smoothing` in [0, 1) at every exit."""

    task: float = 1.0
    label_smoothing: float = 0.0


class Method(nn.Module):
    """Base of all methods: holds the options, sums the weighted parts; `attach(network)` makes the trainable parts.

    Of a class: `exits` "all" or "deepest", where the network gets exits; `sampling` and `samples_per_class`, the batches where
    a configuration does not say; `detach_exits`, whether shallow exits only watch; `graphs` False where `terms` reads more of
    a batch than images, labels and draws, or waits for the device.

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

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = make_options(self.name, self.Options, options)

    def attach(self, network: MultiExitNetwork) -> Method:
        """Create the modules that this method trains beside `network`, sized from what it declares. Returns itself."""
        return self

    def draw(self, batch: Batch) -> dict[str, Tensor]:
        """What this method draws at random for a batch and what it reads of its labels, tensors on their device.

        Kept apart from `terms`, which then is the same sequence of operations for all batches of a shape: what a CUDA graph is.
        """
        return {}

    def terms(self, out: ExitOutputs, batch: Batch) -> dict[str, Tensor]:
        """The parts of the objective by name, unweighted scalars."""
        raise NotImplementedError

    def forward(self, out: ExitOutputs, batch: Batch) -> dict[str, Tensor]:
        """Exit outputs and batch -> {"total": weighted sum, part: unweighted value, ...}, scalars."""
        parts = self.terms(out, batch)
        weights = {name: self._weight(name) for name in parts}
        if not any(weights.values()):
            raise CorsdError(f"method {self.name!r}: {', '.join(parts)} all have weight 0: there is nothing to train")
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


def make_options(method: str, kind: type[MethodOptions], given: dict[str, Any]) -> MethodOptions:
    """The options of a method, those `given` over the defaults, each of the type of its default and in its range."""
    defaults: dict[str, Any] = asdict(kind())
    for key in given:
        check_choice(f"option of method {method!r}:", key, [f.name for f in fields(kind)])
    options = {
        key: _checked(f"method {method!r}: {key} = {value!r}", key, value, type(defaults[key]))
        for key, value in {**defaults, **given}.items()  # defaults too: a run stores them, and is opened with them
    }
    return kind(**options)


def _checked(what: str, key: str, value: Any, wanted: type[Any]) -> Any:
    """`value` in the type `wanted`, or a `CorsdError` that begins with `what`."""
    if type(value) is int and abs(value) >= 2**31:
        raise CorsdError(f"{what} must be below {2**31}, which is more than tensors can count")
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted:
        raise CorsdError(f"{what} must be of type {wanted.__name__}")
    if wanted is float and not 0 <= value < float("inf"):
        raise CorsdError(f"{what} must be finite and at least 0")
    if (wanted is int and value < 1) or (key.endswith("temperature") and value == 0):
        raise CorsdError(f"{what} must be above 0")
    if key in ("label_smoothing", "class_mean_momentum", "last_share") and value >= 1:
        raise CorsdError(f"{what} must be below 1")
    return value


def sum_of(terms: Iterable[Tensor]) -> Tensor:
    return sum(terms, start=torch.zeros(()))
