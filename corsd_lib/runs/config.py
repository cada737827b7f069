"""The configuration of a training."""

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

# Fields that do not affect the result of a training: paths, worker processes and execution.
PLACE_FIELDS = ("out", "resume", "data_root", "workers", "checkpoint_seconds", "cuda_graphs", "deterministic")
PROBE_FIELDS = ("probe_every", "probe_size", "probe_split")  # which snapshots are recorded
_FLOATS = 1e38  # near the float32 maximum; the optimiser computes in float32
_INTEGERS = 2**31  # above what any training needs, below the largest possible size of a tensor
_SEEDS = 2**63  # seeds fit into a signed 64-bit integer
SEEDS = f"whole numbers of at least 0 and below {_SEEDS:,}"
_OF_A_RUN = {"train", "data", "provenance"}  # required keys of the config.json of a run


def setting(default: Any, help: str) -> Any:
    """A field of `TrainConfig` with its help text."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class TrainConfig:
    """Configuration of a training. It is stored with the run, and every field is an option of `corsd train`.

    The metadata of each field has its help text: `{f.name: f.metadata["help"] for f in dataclasses.fields(TrainConfig)}`.
    Raises `CorsdError` for a field with a wrong type or a value that is not allowed.
    """

    data: str = setting("digits", "name of a data set, see `load_dataset`")
    data_root: str | None = setting(None, "folder that holds the data sets; default $CORSD_DATA, else `data`")
    per_class: int | None = setting(None, "labelled training images of each class; all if not given")
    validation_fraction: float = setting(0.0, "fraction of the training images that becomes the validation split, in [0, 1)")
    test_fraction: float | None = setting(
        None, "fraction of each class in the test set, for a folder without a split; 0.2 if not given"
    )
    image_size: int | None = setting(None, "side of the square input images, pixels; that of the data set if not given")
    crop_to_box: bool = setting(False, "crop to the bounding box if the data set has one")
    hold_out_classes: int = setting(
        0, "number of classes that are held out of the training, to evaluate embeddings on unseen classes; 0 for none"
    )
    hold_out: str = setting(
        "random",
        'which classes are held out: "random", "last" (by label), or "superclasses" (whole superclasses, all of the same size)',
    )
    hold_out_seed: int = setting(0, 'seed of the choice of the held-out classes; not used by "last"')
    label_noise: float = setting(
        0.0, "share of the training images with a wrong label, in [0, 1); wrong labels are uniform over the other classes"
    )
    network: str = setting("resnet8", "name of the backbone, see `build_network`")
    width: int | None = setting(None, "channels of the first stage; those of the backbone if not given")
    stem: str = setting(
        "auto",
        '"auto", "small" (3x3), "medium" (3x3 of stride 2) or "large" (7x7 and pooling), for the ImageNet-type backbones',
    )
    pretrained: bool = setting(False, "start from the weights of torchvision (or timm)")
    method: str = setting("corsd", "name of the objective, see `build_method`")
    method_options: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "weights and settings of the method by name; the others have the defaults of the method"},
    )
    epochs: int = setting(
        30,
        'number of epochs: each training image is an anchor once; "triplet" batches have 3 images per anchor, "overlapping" 2',
    )
    batch_size: int = setting(128, "images in a step of one process")
    sampling: str | None = setting(None, '"plain", "balanced", "triplet", "overlapping"; that of the method if not given')
    samples_per_class: int | None = setting(None, "samples of each class in balanced batches; that of the method if not given")
    augmentation: str | None = setting(None, '"none", "crop", "crop_flip", "resized_crop"; that of the data set if not given')
    padding_mode: str = setting("reflect", 'padding before the random crop: "reflect" or "zero"')
    cutout: int = setting(0, "side of the cutout square in pixels, 0 for none")
    lr: float = setting(0.1, "highest learning rate")
    schedule: str = setting("onecycle", '"onecycle", "cosine", "multistep" or "constant"')
    milestones: tuple[float, ...] = setting(
        (0.5, 0.75), 'fractions of the training after which "multistep" divides the learning rate by 10'
    )
    momentum: float = setting(0.9, "momentum of SGD")
    nesterov: bool = setting(False, "use Nesterov's momentum")
    weight_decay: float = setting(5e-4, "weight decay of SGD")
    decay_norm_and_bias: bool = setting(True, "weight decay also for normalisation weights and biases")
    clip_norm: float = setting(0.0, "largest gradient norm; 0 for no clipping")
    accelerator: str = setting(
        "auto", '"auto" (a CUDA GPU if there is one, else the CPU), "cpu", "cuda" or another of Fabric\'s'
    )
    devices: int = setting(1, "number of processes on this host, one device each")
    num_nodes: int = setting(1, "number of hosts; `out` must be a folder that all of them share")
    precision: str = setting("32-true", '"32-true", "bf16-mixed" or "16-mixed"')
    channels_last: bool = setting(False, "channels-last memory format for images and network")
    compile: bool = setting(False, "compile the network with torch.compile")
    cuda_graphs: bool = setting(
        False, "replay each step as a CUDA graph, which is faster for small networks; no effect on a CPU"
    )
    deterministic: bool = setting(
        False,
        "use only deterministic algorithms on a GPU: identical results in every run, but slower; a CPU is always deterministic",
    )
    workers: int = setting(2, "processes that decode streamed images")
    seed: int = setting(0, "seed of weights, batches, augmentation, choice of images and label noise")
    out: str | None = setting(None, "run directory; default runs/<data>-<network>-<method>-s<seed>")
    resume: bool = setting(False, "continue the run in `out` if there is one; without it an existing run is never changed")
    probe_every: int = setting(1, "epochs between probe snapshots; 0 for the first and the last only")
    probe_size: int = setting(1000, "number of probe images, the same for each class and at least two")
    probe_split: str = setting(
        "auto", 'split of the probe images: "train", "validation", "test", or "auto": validation if there is one, else train'
    )
    checkpoint_seconds: float = setting(300.0, "longest time between checkpoints, seconds; every epoch also ends with one")

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(TrainConfig).items():
            _check_type(name, self._normalise(name), hint)
        self._check_values()

    def _normalise(self, name: str) -> object:
        """Normalise a field, and return its value: lists (from JSON) become tuples, and paths become strings."""
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
            raise CorsdError("nesterov = True needs a momentum above 0; it is 0.0")

    @property
    def path(self) -> Path:
        """Path of the run directory."""
        data = self.data.replace(":", "-").replace("/", "_")
        return Path(self.out or f"runs/{data}-{self.network.replace(':', '-')}-{self.method}-s{self.seed}")

    def training_settings(self) -> dict[str, Any]:
        """Settings that affect the result, by name, including every option of the method as `method_options.<name>`."""
        options = asdict(self.build_method().options)
        fields = {k: v for k, v in asdict(self).items() if k not in ("method_options", *PLACE_FIELDS)}
        return {**fields, **{f"method_options.{k}": v for k, v in options.items()}}

    def build_method(self, network: MultiExitNetwork | None = None) -> Method:
        """Create the method of this configuration, attached to `network` if that is given. Raises `CorsdError` for invalid
        options and if there is not enough memory.
        """
        try:
            return build_method(self.method, network=network, **self.method_options)
        except (RuntimeError, MemoryError) as error:
            raise CorsdError(f"method {self.method!r} cannot be built: {first_line(error)}") from error

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "config") -> TrainConfig:
        """Create a configuration from a dict. Raises `CorsdError`, with `source` in the message, for an unknown field or an
        invalid value.
        """
        known = [f.name for f in fields(cls)]
        for name in values:
            check_choice(f"{source}: field", name, known)
        with named(source):
            return cls(**values)

    @classmethod
    def from_file(cls, path: str | Path) -> TrainConfig:
        """Read a configuration from a JSON file: an object of fields, or the `config.json` of a run.

        The fields `out` and `resume` of a run are ignored.

        Raises the same errors as `from_dict`, and `CorsdError` for a file that cannot be read.
        """
        values = read_json(Path(path))
        if isinstance(values, dict) and values.keys() >= _OF_A_RUN and isinstance(values["train"], dict):
            values = {k: v for k, v in values["train"].items() if k not in ("out", "resume")}
        if not isinstance(values, dict):
            raise CorsdError(f"{path} is not a configuration; allowed: a JSON object of fields and values")
        return cls.from_dict(values, str(path))


def differences(before: TrainConfig, now: TrainConfig) -> str:
    """How the settings that affect the result differ, as text such as "lr was 0.1, is 0.2"; "" if none differ.

    At most four settings are named. If more differ, the text ends with the number of the others, such as "and 2 more".
    """
    old, new = before.training_settings(), now.training_settings()
    differing = [k for k in {**old, **new} if old.get(k) != new.get(k)]
    changes = ", ".join(f"{k} was {shortened(old.get(k))}, is {shortened(new.get(k))}" for k in differing[:4])
    return f"{changes}, and {len(differing) - 4} more" if len(differing) > 4 else changes


def _check_type(name: str, value: object, hint: Any) -> None:
    """Raise `CorsdError` unless `value` has one of the types of `hint`; an int is accepted for a float."""
    hints = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    types = [get_origin(h) or h for h in hints]
    if type(value) not in types and not (type(value) is int and float in types):
        allowed = " or ".join("None" if k is type(None) else k.__name__ for k in types)
        raise CorsdError(f"{name} = {shortened(value)} is of type {type(value).__name__}; allowed: {allowed}")


def _check_options(options: Mapping[Any, object]) -> None:
    """Raise `CorsdError` unless `options` maps names to plain values. Whether the options exist is checked by the method."""
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
