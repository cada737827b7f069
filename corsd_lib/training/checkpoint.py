"""Checkpoint of a training: all that a resume needs.

The file is checked when it is read. It has these tensors and metadata:

network.* method.*        weights and buffers, as in weights.safetensors
optimizer.<i>.<name>      state of the optimiser for its i-th parameter
memory.*                  buffers of the method that are not part of its weights, such as past predictions
totals.*                  sums of the current epoch, float64; none between epochs
random.cpu random.cuda    states of torch's random generators
metadata "position"       epoch, step, seconds, state of the gradient scaler, and type and shape of every tensor above
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from corsd_lib.backbones import SequentialBackbone
from corsd_lib.errors import CorsdError, shortened
from corsd_lib.files import write_tensors
from corsd_lib.methods import Method
from corsd_lib.network import MultiExitNetwork
from corsd_lib.readers import CHECKPOINT_ADVICE, read_checkpoint
from corsd_lib.runs import load_part
from corsd_lib.schema import parse_json

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Checkpoint", "Position"]

_NAMES = re.compile(r"(network|method|memory|totals)\..+|optimizer\.(0|[1-9][0-9]{0,8})\.\w+|random\.(cpu|cuda)")
_SECONDS = 1e10  # largest duration of an epoch, as in metrics.jsonl


@dataclass(frozen=True)
class Position:
    """Progress of a training: `epoch` epochs and `step` steps of the next one are done; these steps took `seconds`."""

    epoch: int
    step: int
    seconds: float = 0.0


class Checkpoint:
    """The checkpoint file `path` and the parts of a training whose state it stores. Only the first process writes it."""

    def __init__(
        self, path: Path, fabric: Fabric, network: MultiExitNetwork, method: Method, optimizer: torch.optim.Optimizer
    ) -> None:
        self.path, self.fabric = path, fabric
        self.network, self.method, self.optimizer = network, method, optimizer

    def weights(self) -> dict[str, Tensor]:
        """State of network and method by name: the content of weights.safetensors."""
        parts: dict[str, nn.Module] = {"network": self.network, "method": self.method}
        return {f"{name}.{k}": v for name, part in parts.items() for k, v in part.state_dict().items()}

    def write(self, position: Position, totals: Mapping[str, Tensor]) -> None:
        """Write the checkpoint. `totals`: sums of the current epoch by name, {} between epochs."""
        tensors = {
            **self.weights(),
            **self._optimizer_state(),
            **{f"totals.{k}": v for k, v in totals.items()},
            **{f"memory.{k}": v for k, v in self._memory().items()},
            "random.cpu": torch.get_rng_state(),
        }
        if self.fabric.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.fabric.device)
        header = {
            "epoch": position.epoch,
            "step": position.step,
            "seconds": position.seconds,
            "precision": self.fabric.strategy.precision.state_dict(),
            "tensors": {k: _kind(v) for k, v in tensors.items()},
        }
        write_tensors(self.path, tensors, {"position": json.dumps(header, sort_keys=True)}, within=self.path.parent)

    def restore(
        self, epochs: int, steps: int, images: Callable[[Position], int], same_start: bool
    ) -> tuple[Position, dict[str, Tensor]]:
        """Restore the state from the file, and return the position and the sums of the current epoch.

        The training has `epochs` epochs of `steps` steps each. Network and method must be newly created. `images(position)` is
        the number of images in the finished steps of the current epoch. `same_start`: whether network and method now have the
        same initial weights as at the start of the training. Another version of torch may sample other weights. If True,
        parameters without a momentum buffer must still have their initial values. Raises `CorsdError` if the file is damaged,
        or has a value that this training cannot have written.
        """
        tensors, metadata = read_checkpoint(self.path)
        header = self._header(metadata)
        position = self._position(header, epochs, steps)
        self._check_names(tensors, header.get("tensors"))
        totals = self._totals(_part(tensors, "totals"), position, images)
        if same_start:
            self._check_momenta(tensors)
        self._check_steps(tensors, position.epoch * steps + position.step)
        load_part(self.network, tensors, "network", self.path)
        load_part(self.method, tensors, "method", self.path)
        self._check_weights(tensors)
        self._restore_optimizer(_part(tensors, "optimizer"))
        self._restore_memory(tensors)
        self._restore_precision(header.get("precision"))
        self._restore_random(tensors)
        return position, totals

    # --- content ---

    def _memory(self) -> dict[str, Tensor]:
        """Buffers of the method, by name, that are not part of its weights."""
        weights = self.method.state_dict()
        return {k: v for k, v in self.method.named_buffers() if k not in weights}

    def _optimizer_state(self) -> dict[str, Tensor]:
        state = self.optimizer.state_dict()["state"]
        return {f"optimizer.{i}.{k}": v for i, entry in state.items() for k, v in entry.items() if v is not None}

    # --- checks ---

    def _mismatch(self, what: str) -> CorsdError:
        return CorsdError(f"{self.path} is not a checkpoint of this training: {what}; {CHECKPOINT_ADVICE}")

    def _header(self, metadata: Mapping[str, str]) -> dict[str, Any]:
        """Parsed JSON of the metadata field "position". Raises `CorsdError` if it is missing or not a JSON object."""
        if "position" not in metadata:
            raise CorsdError(f"{self.path} is not a checkpoint: its metadata has no position; {CHECKPOINT_ADVICE}")
        try:
            header = parse_json(metadata["position"])
        except ValueError as error:
            raise self._mismatch(f"its position is not valid JSON ({error})") from error
        if not isinstance(header, dict):
            raise self._mismatch(f"its position is {shortened(header)}; allowed: a JSON object")
        return header

    def _position(self, header: Mapping[str, Any], epochs: int, steps: int) -> Position:
        epoch, step, seconds = header.get("epoch"), header.get("step"), header.get("seconds", 0.0)
        if type(epoch) is not int or not 0 <= epoch <= epochs:
            raise self._mismatch(f"epoch = {shortened(epoch)}; allowed: a whole number from 0 to {epochs}")
        low, high = int(epoch == 0), steps - 1 if epoch < epochs else 0  # the first checkpoint is written after a step
        if type(step) is not int or not low <= step <= high:
            raise self._mismatch(f"step = {shortened(step)} after epoch {epoch}; allowed: a whole number from {low} to {high}")
        if type(seconds) not in (int, float) or not 0 <= seconds <= _SECONDS:
            raise self._mismatch(
                f"seconds = {shortened(seconds)}; allowed: a finite number of at least 0, at most {_SECONDS:g}"
            )
        return Position(epoch, step, seconds)

    def _check_names(self, tensors: Mapping[str, Tensor], listed: object) -> None:
        """Check names, types and shapes of the tensors against the list in the header; earlier versions wrote no list."""
        for name in tensors:
            if not _NAMES.fullmatch(name):
                raise self._mismatch(f"it has {shortened(name)[1:-1]}, which this training does not have")
        if listed is None:
            if self._momentum() and not _part(tensors, "optimizer"):
                raise self._missing("optimizer.0.momentum_buffer")
            return
        if not isinstance(listed, dict):
            raise self._mismatch(f"its list of tensors is {shortened(listed)}; allowed: a JSON object")
        for name in {**listed, **tensors}:
            was, now = listed.get(name, "absent"), _kind(tensors[name]) if name in tensors else "absent"
            if was != now:
                raise self._missing(name) if now == "absent" else self._mismatch(f"{name} was {was}, is {now}")

    def _missing(self, name: str) -> CorsdError:
        return CorsdError(
            f"{self.path} lacks {name}: it is incomplete, of another method or of an older version; {CHECKPOINT_ADVICE}"
        )

    def _check_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise `CorsdError` unless the weights have the dtypes of this training.

        `load_part` does not check dtypes, because an exported run has other ones.
        """
        for name, value in self.weights().items():
            if tensors[name].dtype != value.dtype:
                raise self._mismatch(f"{name} is of type {tensors[name].dtype}; allowed: {value.dtype}")

    def _momentum(self) -> bool:
        return any(group["momentum"] for group in self.optimizer.param_groups)

    def _check_momenta(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise `CorsdError` if a parameter without a momentum buffer differs from its initial value.

        Such a parameter was trained, so its buffer is missing from the checkpoint.
        """
        if not self._momentum():
            return
        names = {id(p): f"{part}.{k}" for part in ("network", "method") for k, p in getattr(self, part).named_parameters()}
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for i, parameter in enumerate(parameters):
            now, buffer = tensors.get(names[id(parameter)]), f"optimizer.{i}.momentum_buffer"
            if now is None or now.shape != parameter.shape or buffer in tensors or not parameter.requires_grad:
                continue
            if not torch.allclose(now.to(parameter), parameter, rtol=1e-3, atol=1e-5):  # rounding differs between processors
                raise self._missing(f"{buffer}, although {names[id(parameter)]} was trained")

    def _check_steps(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Raise `CorsdError` unless the batch counter of the first normalisation layer grew by `steps`.

        Growth by 0 is also accepted, because inputs with one value per channel are not counted. Methods of plug-ins are not
        checked, because they may run the network more often.
        """
        ours = type(self.method).__module__.startswith("corsd_lib.")
        counter = "backbone.stem.norm.num_batches_tracked"
        made, now = self.network.state_dict().get(counter), tensors.get(f"network.{counter}")
        if not (ours and isinstance(self.network.backbone, SequentialBackbone)) or made is None or now is None:
            return
        if now.numel() == 1 and now.item() - made.item() not in (0, steps):
            raise self._mismatch(f"network.{counter} = {now.item()} after {steps} steps; allowed: {made.item() + steps}")

    def _restore_optimizer(self, given: Mapping[str, Tensor]) -> None:
        """Restore the optimiser. Only parameters that have had a gradient have a state."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        names = ("momentum_buffer",) if self._momentum() else ()
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in given.items():
            index, _, name = key.partition(".")
            if name not in names or int(index) >= len(parameters):
                raise self._mismatch(f"it has optimizer.{key}, which this training does not have")
            self._check_like(f"optimizer.{key}", value, parameters[int(index)])
            state.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})

    def _check_like(self, name: str, value: Tensor, other: Tensor) -> None:
        if _kind(value) != _kind(other):
            raise self._mismatch(f"{name} is {_kind(value)}; allowed: {_kind(other)}")
        if not value.isfinite().all():
            raise self._mismatch(f"{name} is not finite")

    def _restore_memory(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the buffers of the method; their shapes may differ from those of a new method."""
        wanted = self._memory()
        for key in _part(tensors, "memory"):
            if key not in wanted:
                raise self._mismatch(f"this method has no memory.{key}")
        for key in wanted:
            if f"memory.{key}" not in tensors:
                raise self._missing(f"memory.{key}")
            parent, _, buffer = key.rpartition(".")
            setattr(self.method.get_submodule(parent), buffer, tensors[f"memory.{key}"].to(self.fabric.device))

    def _restore_precision(self, given: object) -> None:
        """Restore the state of the gradient scaler; it is {} unless the precision is "16-mixed"."""
        precision = self.fabric.strategy.precision
        if problem := _scaler_problem(given, precision.state_dict()):
            raise self._mismatch(problem)
        assert isinstance(given, dict)
        precision.load_state_dict(given)

    def _restore_random(self, tensors: Mapping[str, Tensor]) -> None:
        if "random.cpu" not in tensors:
            raise self._missing("random.cpu")
        self._check_like("random.cpu", tensors["random.cpu"], torch.get_rng_state())
        try:
            torch.set_rng_state(tensors["random.cpu"])
            if "random.cuda" in tensors and self.fabric.device.type == "cuda":
                torch.cuda.set_rng_state(tensors["random.cuda"], self.fabric.device)
        except (RuntimeError, TypeError) as error:
            raise self._mismatch(f"random.cpu or random.cuda is not a state of a random generator ({error})") from error

    def _totals(self, sums: dict[str, Tensor], position: Position, images: Callable[[Position], int]) -> dict[str, Tensor]:
        """Checked sums of the current epoch on the device. Only the first process has the values; those of other processes are
        0.
        """
        if bool(sums) != bool(position.step) or (sums and not {"images", "loss.total"} <= sums.keys()):
            raise self._mismatch(
                f"it has totals of {', '.join(sorted(sums)) or 'nothing'} after {position.step} steps of an epoch; "
                "allowed: none after 0 steps, else images, loss.total and others"
            )
        for name, value in sums.items():
            self._check_like(f"totals.{name}", value, torch.zeros((), dtype=torch.float64))
        if sums:
            self._check_sums({name: value.item() for name, value in sums.items()}, images(position))
        is_first = self.fabric.is_global_zero
        return {k: (v if is_first else torch.zeros_like(v)).to(self.fabric.device) for k, v in sums.items()}

    def _check_sums(self, sums: Mapping[str, float], images: int) -> None:
        if sums["images"] != images:
            raise self._mismatch(
                f"totals.images = {sums['images']:g}; allowed: {images}, the number of images in the steps that it has done"
            )
        exits = [f"train_top1.exit{k}" for k in range(1, len(self.network.exits) + 1)]
        for name in exits:
            if name not in sums:
                raise self._missing(f"totals.{name}")
            if not 0 <= sums[name] <= 100 * images:
                raise self._mismatch(f"totals.{name} = {sums[name]:g}; allowed: 0 to {100 * images}")
        for name in sums:
            if name not in ("images", *exits) and not name.startswith("loss."):
                raise self._mismatch(f"it has totals.{shortened(name)[1:-1]}, which this training does not have")


def _kind(tensor: Tensor) -> str:
    """Type and shape, such as "float32 [16, 3]"."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _part(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(f"{part}.")}


def _scaler_problem(given: object, now: Mapping[str, Any]) -> str:
    """What is wrong with the stored state of a gradient scaler whose current state is `now`; "" if nothing."""
    if not isinstance(given, dict) or given.keys() != now.keys():
        return f"precision = {shortened(given)}; allowed: {', '.join(now) or 'an empty object'}"
    for name, value in given.items():
        low = 0 if name.startswith("_") else 1e-45  # a count may be 0, a factor must not
        if type(value) not in (int, float) or not low <= value < 1e38:
            return (
                f"precision: {name} = {shortened(value)}; allowed: a finite number {'of at least' if low == 0 else 'above'} 0"
            )
    return ""
