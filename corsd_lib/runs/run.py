"""A run on disk: configuration, metrics, weights, probe snapshots and test results.

    config.json           {"train": TrainConfig, "data": DataInfo, "provenance": versions, commit ("revision"), machine,
                          "resumed": provenance of later processes, if it differs}
    metrics.jsonl         one line for each epoch: terms of the loss, training and validation accuracy by exit, learning rate
    weights.safetensors   network.* and method.* after the last epoch
    checkpoint.safetensors  newest weights, and all else that a resume needs: see `corsd_lib.training.checkpoint`
    probe.safetensors     labels and indices of the probe set;  probes/epoch_0007.safetensors  its snapshot after 7 epochs
    test.json             the one evaluation on the test images, after the last epoch

Files are written atomically: after a crash a file has its old or its new content. Tensors are safetensors and everything else
is JSON, so reading a run executes no code. Every file has a SHA-256 of its content, which is checked when it is read:
`checksum` in the metadata of safetensors, in a JSON object, and in the last line of metrics.jsonl; see `corsd_lib.files`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from corsd_lib.cards import Facts, card
from corsd_lib.errors import CorsdError, check_text, first_line, named
from corsd_lib.methods import Method, find_method
from corsd_lib.network import MultiExitNetwork, build_network
from corsd_lib.readers import (
    FLOATS,
    read_checkpoint,
    read_config,
    read_metrics,
    read_test,
    read_weights,
)
from corsd_lib.runs.config import TrainConfig
from corsd_lib.runs.hub import downloaded, is_on_hub
from corsd_lib.runs.snapshots import Probes
from corsd_lib.schema import shortened

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "DataInfo",
    "Run",
    "load_part",
    "load_run",
    "new_network",
    "portable_name",
]


@dataclass(frozen=True)
class DataInfo:
    """Facts about the data of a run that are stored to rebuild the network, name the classes and recognise the images.

    `splits`: a dict with three numbers for "train" and, if there is one, for "validation": the number of images, the CRC-32 of
    the labels, and the CRC-32 of the file names (of the indices if the images are not files). Runs of earlier versions have
    fewer of these numbers, or none. `unseen_class_names`: the classes that were held out of the training.
    """

    name: str
    class_names: tuple[str, ...]
    superclass_names: tuple[str, ...]
    superclass_of_class: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    splits: Mapping[str, Sequence[int]] | None = field(default=None, compare=False)
    unseen_class_names: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def channels(self) -> int:
        return len(self.mean)


M = TypeVar("M", bound=nn.Module)


class Run:
    """A training on disk, finished or not. `load_run(path)` opens one.

    A property reads its file when it is used, and raises `CorsdError` if the file is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        check_text("run", str(self.path))  # the name appears in reports and tables
        if not os.path.isfile(self.path / "config.json"):  # Path.is_file raises for invalid names
            raise CorsdError(f"{self.path} is not a run: it has no config.json")

    def __repr__(self) -> str:
        c, state = self.config, "finished" if self.finished else f"{self.epochs_done} of {self.config.epochs} epochs"
        return f"Run({str(self.path)!r}: {c.method} on {c.data}, {c.network}, seed {c.seed}, {state})"

    def _repr_html_(self) -> str:
        return card("Run", self.path, self._facts)

    def _facts(self) -> Facts:
        """Content of the HTML card: what was trained, and the test results of every exit."""
        c, test, settings = self.config, self.test, [[k, v] for k, v in self.raw_config.items() if v is not None]
        width = f" of width {c.width}" if c.width else ""
        rows = {
            "method": c.method,
            "network": f"{c.network}{width}",
            "data": f"{self.data.name}, {self.data.num_classes} classes",
            "seed": c.seed,
            "epochs": f"{self.epochs_done} of {c.epochs}",
            "snapshots": len(self.probes),
        }
        results = []
        if test is not None:
            lines = [*((f"exit {k}", row) for k, row in enumerate(test["exits"], 1)), ("ensemble", test["ensemble"])]
            results = [[name, *(f"{row[key]:.2f}" for key in ("top1", "calibration_error"))] for name, row in lines]
            results = [[f"on {test['split']}", "top-1 %", "calibration error %"], *results]
        return Facts(rows, [results], {"configuration": [["setting", "value"], *settings]})

    @cached_property
    def _json(self) -> dict[str, Any]:
        return read_config(self.path / "config.json")

    @property
    def raw_config(self) -> dict[str, Any]:
        """Configuration as it is stored, in JSON values, with every option of the method."""
        return self._json["train"]

    @cached_property
    def config(self) -> TrainConfig:
        return TrainConfig.from_dict(self.raw_config, str(self.path / "config.json"))

    @cached_property
    def data(self) -> DataInfo:
        """Class names, image size and other facts about the data."""
        plain: dict[str, Any] = self._json["data"]
        fixed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
        return DataInfo(**fixed)

    @property
    def provenance(self) -> dict[str, Any]:
        """Environment of the training: version and git commit of the library, versions of packages, and machine."""
        return self._json["provenance"]

    @property
    def resumed(self) -> list[dict[str, Any]]:
        """Provenance of each process that resumed the run on another machine or with other code.

        "epochs_done" is the number of epochs that were finished before.
        """
        return self._json.get("resumed", [])

    @property
    def metrics(self) -> pd.DataFrame:
        """Training metrics, one row per finished epoch.

        Columns: epoch; step (total so far); lr; images and seconds (of this epoch); loss.<term> (unweighted mean);
        train_top1.exit<k> and, with a validation split, val_top1.exit<k>, both in %.
        """
        import pandas as pd

        return pd.DataFrame(read_metrics(self.path / "metrics.jsonl"))

    @property
    def epochs_done(self) -> int:
        """Number of finished epochs."""
        lines = read_metrics(self.path / "metrics.jsonl")
        return lines[-1]["epoch"] if lines else 0

    @property
    def finished(self) -> bool:
        """Whether all epochs are trained and the weights are written."""
        return (self.path / "weights.safetensors").is_file()

    @property
    def test(self) -> dict[str, Any] | None:
        """Evaluation on the test split after the last epoch, with the fields of `Evaluation`; None before that."""
        path = self.path / "test.json"
        return read_test(path) if path.is_file() else None

    @property
    def probes(self) -> Probes:
        """Probe snapshots that were written so far: a mapping epoch -> snapshot."""
        return Probes(self.path, self.data.num_classes)

    def network(self) -> MultiExitNetwork:
        """Network in eval mode with the newest weights on disk. Raises `CorsdError` if there are none yet."""
        return self._with_weights("network", self._new_network).eval()

    def method(self) -> Method:
        """Method, with its relation networks, in eval mode with the newest weights on disk. Raises `CorsdError` if there are
        none yet.
        """
        return self._with_weights("method", self._new_method).eval()

    def _new_network(self) -> MultiExitNetwork:
        with named(self.path / "config.json"):
            return new_network(replace(self.config, pretrained=False), self.data)

    def _new_method(self) -> Method:
        network = self._new_network()
        with named(self.path / "config.json"):
            return self.config.build_method(network)

    def _with_weights(self, part: str, build: Callable[[], M]) -> M:
        weights, checkpoint = self.path / "weights.safetensors", self.path / "checkpoint.safetensors"
        for path, read in ((weights, read_weights), (checkpoint, lambda path: read_checkpoint(path)[0])):
            if path.is_file():
                tensors = read(path)
                with _limit_parameters(sum(t.numel() for t in tensors.values()), path):
                    module = build()
                load_part(module, tensors, part, path)
                return module
        raise CorsdError(f"{self.path} has no weights yet: its training was stopped before the first checkpoint")


@contextmanager
def _limit_parameters(stored: int, source: Path) -> Iterator[None]:
    """Inside the context, raise `CorsdError` if this thread creates modules with far more parameters than `stored`.

    `stored`: the number of values in the weights file `source`, which the message names.
    """
    most, count, thread = 4 * stored + 2**24, 0, threading.get_ident()  # with a margin: timm creates modules that it discards

    def added(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count
        if parameter is not None and threading.get_ident() == thread:
            count += parameter.numel()
            if count > most:
                raise CorsdError(
                    f"{source} is of another architecture: it has {stored:,} numbers, far fewer than the network of its config"
                )

    hook = register_module_parameter_registration_hook(added)
    try:
        yield
    finally:
        hook.remove()


def portable_name(name: str) -> str:
    """Name of a data set without folders of this machine: `folder:PATH` and `npz:PATH` keep only the last part of the path."""
    kind, _, path = name.partition(":")
    return f"{kind}:{Path(path).name}" if kind in ("folder", "npz") else name


def load_run(path: str | Path) -> Run:
    """Open a run directory, or a run of the Hugging Face Hub ("hf:OWNER/NAME" or "hf:OWNER/NAME@REVISION", see `runs.hub`).

    Raises `CorsdError` if it is not a run or cannot be downloaded, and `MissingPackage` for a run of the Hub if
    huggingface_hub is not installed.
    """
    check_name("run directory", path)
    if not is_on_hub(path):
        return Run(path)
    with named(path):
        return Run(downloaded(str(path)))


def check_run(run: object) -> None:
    """Raise `CorsdError` unless `run` is a `Run`; a path is not accepted."""
    if not isinstance(run, Run):
        raise CorsdError(f"run is {shortened(run)}; allowed: a Run, as `train` and `load_run(path)` return it")


def check_snapshots(run: Run) -> None:
    """Raise `CorsdError` if `run` has no probe snapshots. Every training writes some, even with `probe_every` = 0."""
    if not run.probes:
        raise CorsdError(
            f"{run.path} has no probe snapshots: the files probes/epoch_*.safetensors are missing; restore them, or train again"
        )


def check_name(what: str, name: object) -> None:
    """Raise `CorsdError` unless `name` is a str or a path. The message begins with `what`."""
    if not isinstance(name, str | os.PathLike):
        raise CorsdError(f"{what} is {shortened(name)}; allowed: a str or a Path")


def new_network(config: TrainConfig, data: DataInfo) -> MultiExitNetwork:
    """A new network for a configuration, with the exits that its method needs, with initial or pretrained weights.

    Raises the errors of `build_network`, and `CorsdError` for an unknown method.
    """
    try:
        return build_network(
            config.network,
            data.num_classes,
            in_channels=data.channels,
            image_size=data.image_size,
            width=config.width,
            stem=config.stem,
            pretrained=config.pretrained,
            exits=find_method(config.method).exits,
        )
    except (RuntimeError, MemoryError) as error:
        asked = f"network {shortened(config.network)} of width {shortened(config.width)} and {data.num_classes} classes"
        raise CorsdError(f"{asked} cannot be built: {first_line(error)}") from error


def load_part(module: nn.Module, tensors: Mapping[str, Tensor], part: str, source: Path) -> None:
    """Load the tensors of one part of a file into `module`.

    `part`: "network", "method" or "relations". The names of its tensors begin with "<part>.". `source`: path of the file.

    Raises `CorsdError` for the first tensor that is missing, unknown or not finite, or has a wrong shape or type.
    """
    given = {k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(f"{part}.")}
    wanted = module.state_dict()
    for name in {**wanted, **given}:  # in the order of the module, so that the message is always the same
        have, want = (tuple(d[name].shape) if name in d else "absent" for d in (given, wanted))
        if have != want:
            grows = "; a buffer whose shape changes must be persistent=False" if name in dict(module.named_buffers()) else ""
            raise CorsdError(
                f"{source} is of another architecture: {part}.{name} is {have} there, {want} in this {part}{grows}"
            )
    for name, value in given.items():
        dtype = wanted[name].dtype
        if value.dtype not in (FLOATS if dtype in FLOATS else (dtype,)):
            raise CorsdError(f"{source}: {part}.{name} is of {value.dtype}; allowed: {dtype}")
        if not value.isfinite().all():
            raise CorsdError(f"{source}: {part}.{name} is not finite")
    module.load_state_dict({k: v.to(wanted[k].dtype) for k, v in given.items()})
