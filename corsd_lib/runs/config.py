"""What is asked of a training: its configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from os import PathLike, fspath
from pathlib import Path
from types import UnionType
from typing import Any, TypeGuard, get_args, get_origin, get_type_hints

from corsd_lib.datasets import HOLD_OUT
from corsd_lib.errors import CorsdError, check_choice, check_text, first_line, named
from corsd_lib.files import read_json
from corsd_lib.methods import Method, build_method, find_method
from corsd_lib.network import MultiExitNetwork
from corsd_lib.schema import shortened

__all__ = ["PLACE_FIELDS", "PROBE_FIELDS", "SEEDS", "TrainConfig", "differences", "is_seed"]

# Fields of a configuration that say where and how a training runs, not what it comes to.
PLACE_FIELDS = ("out", "resume", "data_root", "workers", "checkpoint_seconds", "cuda_graphs", "deterministic")

PROBE_FIELDS = ("probe_every", "probe_size", "probe_split")  # what is recorded of it on the way

_FLOATS = 1e38  # near the largest number of single precision, in which the optimiser computes

_INTEGERS = 2**31  # above all that a training can want, below what tensors can count

_SEEDS = 2**63  # above those that random generators and files take

SEEDS = f"whole numbers of at least 0 and below {_SEEDS:,}"

_OF_A_RUN = {"train", "data", "provenance"}  # the parts of its config.json


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training; stored whole with the run and an option each of `corsd train`.

    Attributes:
        data: name of a data set, see `load_dataset`.
        data_root: folder that holds the data sets; default $CORSD_DATA, else `data`.
        per_class: labelled training images a class; all when not given.
        validation_fraction: share of train kept apart for tuning, in [0, 1).
        test_fraction: share of each class that is the test set of a folder of classes without a split; 0.2 when not given.
        image_size: side of the square the network sees, pixels; the data set's own when not given.
        crop_to_box: crop to the bounding box where the data set has one.
        hold_out_classes: classes that are not trained on, kept to evaluate embeddings on classes never seen; 0 for none.
        hold_out: which these are: "random", "last" (in the order of labels), or "superclasses" (whole ones, of equal size).
        hold_out_seed: of the draw of these classes; "last" draws none.
        label_noise: share of the training images whose label is wrong, in [0, 1): drawn evenly from the other classes.
        network: name of the backbone, see `build_network`.
        width: channels of the first stage; the backbone's own when not given.
        stem: "auto", "small" (3x3), "medium" (3x3 of stride 2) or "large" (7x7 and pooling), for the ImageNet-type backbones.
        pretrained: start from torchvision's (or timm's) weights.
        method: name of the objective, see `build_method`.
        method_options: its weights and settings by name; the rest keep the method's defaults.
        epochs: passes over the training rows, each an anchor once; "triplet" batches pass 3 images an anchor, "overlapping" 2.
        batch_size: images a step and process.
        sampling: "plain", "balanced", "triplet", "overlapping", or the method's own when not given.
        samples_per_class: K of balanced batches, or the method's own when not given.
        augmentation: "none", "crop", "crop_flip", "resized_crop", or the data set's own when not given.
        padding_mode: "reflect" or "zero", of the pad-crop.
        cutout: side of the cutout square in pixels, 0 for none.
        lr: highest learning rate.
        schedule: "onecycle", "cosine", "multistep" or "constant".
        milestones: shares of the training after which "multistep" divides the learning rate by 10.
        momentum: of SGD.
        nesterov: Nesterov's momentum.
        weight_decay: of SGD.
        decay_norm_and_bias: weight decay on normalisation weights and biases too.
        clip_norm: largest gradient norm, 0 for no clipping.
        accelerator: "auto" (a CUDA GPU if there is one, else the CPU), "cpu", "cuda" or another of Fabric's.
        devices: number of processes on this host, one device each.
        num_nodes: number of hosts; `out` must be a folder that all of them share.
        precision: "32-true", "bf16-mixed" or "16-mixed".
        channels_last: memory format of images and network.
        compile: run the network through torch.compile.
        cuda_graphs: replay each step as one launch on a GPU, which is faster for small networks; elsewhere without effect.
        deterministic: on a GPU, use deterministic algorithms only: the same bits each time, more slowly. A CPU always does.
        workers: decoding processes of streamed data sets.
        seed: of weights, batches, augmentation, choice of images and label noise.
        out: run directory; default runs/<data>-<network>-<method>-s<seed>.
        resume: go on with the run in `out` if there is one; without it an existing run is never touched.
        probe_every: epochs between probe snapshots, 0 for none but the first and the last.
        probe_size: images of the probe set, as many of each class and at least two.
        probe_split: where they are from: "train", "validation", "test", or "auto": validation if there is one, else train.
        checkpoint_seconds: longest time between checkpoints within an epoch; there is one at the end of each epoch too.
    """

    data: str = "digits"
    data_root: str | None = None
    per_class: int | None = None
    validation_fraction: float = 0.0
    test_fraction: float | None = None
    image_size: int | None = None
    crop_to_box: bool = False
    hold_out_classes: int = 0
    hold_out: str = "random"
    hold_out_seed: int = 0
    label_noise: float = 0.0
    network: str = "resnet8"
    width: int | None = None
    stem: str = "auto"
    pretrained: bool = False
    method: str = "corsd"
    method_options: dict[str, Any] = field(default_factory=dict)
    epochs: int = 30
    batch_size: int = 128
    sampling: str | None = None
    samples_per_class: int | None = None
    augmentation: str | None = None
    padding_mode: str = "reflect"
    cutout: int = 0
    lr: float = 0.1
    schedule: str = "onecycle"
    milestones: tuple[float, ...] = (0.5, 0.75)
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    decay_norm_and_bias: bool = True
    clip_norm: float = 0.0
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    precision: str = "32-true"
    channels_last: bool = False
    compile: bool = False
    cuda_graphs: bool = False
    deterministic: bool = False
    workers: int = 2
    seed: int = 0
    out: str | None = None
    resume: bool = False
    probe_every: int = 1
    probe_size: int = 1000
    probe_split: str = "auto"
    checkpoint_seconds: float = 300.0

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(TrainConfig).items():
            _check_type(name, self._normalised(name), hint)
        self._check_values()

    def _normalised(self, name: str) -> object:
        """The value of a field, made a tuple where it is a list (as JSON has it) and a string where it is a path."""
        value = getattr(self, name)
        if isinstance(value, list | PathLike):
            value = tuple(value) if isinstance(value, list) else fspath(value)
            object.__setattr__(self, name, value)
        return value

    def _check_values(self) -> None:
        _check_options(self.method_options)
        for name, value in (*asdict(self).items(), *self.method_options.items()):
            check_text(name, *([value] if isinstance(value, str) else []))
        for name, value in asdict(self).items():
            if type(value) is int and name != "seed" and value > 0:
                _check_range(name, value, low=0, high=_INTEGERS)
        for name in ("out", "data_root"):
            if getattr(self, name) == "":
                raise CorsdError(f"{name} is ''; allowed: the path of a folder, or None")
        find_method(self.method)
        check_choice("schedule", self.schedule, ("onecycle", "cosine", "multistep", "constant"))
        check_choice("probe_split", self.probe_split, ("auto", "train", "validation", "test"))
        check_choice("hold_out", self.hold_out, HOLD_OUT)
        check_choice("padding_mode", self.padding_mode, ("reflect", "zero"))
        check_choice("precision", self.precision, ("32-true", "bf16-mixed", "16-mixed"))
        for name in ("epochs", "batch_size", "devices", "num_nodes"):
            _check_range(name, getattr(self, name), low=0, open_low=True)
        _check_range("lr", self.lr, low=0, high=_FLOATS, open_low=True)
        _check_range("weight_decay", self.weight_decay, low=0, high=_FLOATS)
        _check_range("seed", self.seed, low=0, high=_SEEDS)
        for name in ("hold_out_classes", "hold_out_seed", "cutout", "clip_norm", "workers"):
            _check_range(name, getattr(self, name), low=0)
        for name in ("probe_every", "probe_size", "checkpoint_seconds"):
            _check_range(name, getattr(self, name), low=0)
        for name in ("validation_fraction", "label_noise", "momentum"):
            _check_range(name, getattr(self, name), low=0, high=1)
        if self.test_fraction is not None:
            _check_range("test_fraction", self.test_fraction, low=0, high=1, open_low=True)
        for share in self.milestones:
            _check_type("a milestone", share, float)
            _check_range("a milestone", share, low=0, high=1)
        if self.samples_per_class is not None:
            _check_range("samples_per_class", self.samples_per_class, low=0, open_low=True)
        if self.nesterov and not self.momentum:
            raise CorsdError("nesterov = True wants a momentum above 0; it is 0.0")

    @property
    def path(self) -> Path:
        """The run directory."""
        data = self.data.replace(":", "-").replace("/", "_")
        return Path(self.out or f"runs/{data}-{self.network.replace(':', '-')}-{self.method}-s{self.seed}")

    def decisive(self) -> dict[str, Any]:
        """All that decides what the training comes to, options of the method spelled out as `method_options.<name>`."""
        options = asdict(self.build_method().options)
        fields = {k: v for k, v in asdict(self).items() if k not in ("method_options", *PLACE_FIELDS)}
        return {**fields, **{f"method_options.{k}": v for k, v in options.items()}}

    def build_method(self, network: MultiExitNetwork | None = None) -> Method:
        """The method of this configuration. Raises `CorsdError` for unknown options, and for one that memory does not hold."""
        try:
            return build_method(self.method, network=network, **self.method_options)
        except (RuntimeError, MemoryError) as error:
            raise CorsdError(f"method {self.method!r} cannot be built: {first_line(error)}") from error

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "config") -> TrainConfig:
        """A configuration from plain values; raises `CorsdError` naming `source` and an unknown field or a bad value."""
        known = [f.name for f in fields(cls)]
        for name in values:
            check_choice(f"{source}: field", name, known)
        with named(source):
            return cls(**values)

    @classmethod
    def from_file(cls, path: str | Path) -> TrainConfig:
        """A configuration from a JSON file: plain fields, or a run's `config.json`, then without its `out` and `resume`."""
        values = read_json(Path(path))
        if isinstance(values, dict) and values.keys() >= _OF_A_RUN and isinstance(values["train"], dict):
            values = {k: v for k, v in values["train"].items() if k not in ("out", "resume")}
        if not isinstance(values, dict):
            raise CorsdError(f"{path} holds no configuration: an object of fields and values is wanted")
        return cls.from_dict(values, str(path))


def differences(before: TrainConfig, now: TrainConfig) -> str:
    """What decides a training and is not the same in both, such as "lr was 0.1, is 0.2"; "" where there is nothing."""
    old, new = before.decisive(), now.decisive()
    differing = [k for k in {**old, **new} if old.get(k) != new.get(k)]
    changes = ", ".join(f"{k} was {shortened(old.get(k))}, is {shortened(new.get(k))}" for k in differing[:4])
    return f"{changes}, and {len(differing) - 4} more" if len(differing) > 4 else changes


def _check_type(name: str, value: object, hint: Any) -> None:
    """Raise `CorsdError` unless `value` is of one of the types of `hint`; a whole number will do for a float."""
    hints = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    kinds = [get_origin(h) or h for h in hints]
    if type(value) not in kinds and not (type(value) is int and float in kinds):
        allowed = " or ".join("None" if k is type(None) else k.__name__ for k in kinds)
        raise CorsdError(f"{name} = {shortened(value)} is of type {type(value).__name__}; allowed: {allowed}")


def _check_options(options: Mapping[Any, object]) -> None:
    """Raise `CorsdError` unless `options` are plain values by name; which of them a method has is for the method to say."""
    for name, value in options.items():
        if type(name) is not str:
            raise CorsdError(f"method_options: the name {shortened(name)} is of type {type(name).__name__}; allowed: str")
        if type(value) not in (bool, int, float, str):
            kind = type(value).__name__
            given = f"{shortened(name)[1:-1]} = {shortened(value)}"
            raise CorsdError(f"method_options: {given} is of type {kind}; allowed: bool, int, float or str")


def _check_range(name: str, value: float, low: float, high: float = math.inf, open_low: bool = False) -> None:
    inside = (low < value if open_low else low <= value) and value < high
    if not inside:
        least = "above" if open_low else "at least"
        below = f" and below {high:,}" if type(high) is int or type(value) is float else ""
        raise CorsdError(f"{name} = {shortened(value)} must be {least} {low:g}{below}")


def is_seed(value: object) -> TypeGuard[int]:
    """Whether a value is one of `SEEDS`."""
    return type(value) is int and 0 <= value < _SEEDS
