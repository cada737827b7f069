"""A run on disk: what was asked for, what happened, the weights, and what the network saw on the way.

    config.json           {"train": TrainConfig, "data": class names and image facts, "provenance": versions, revision, machine,
                          "resumed": those of later processes, where they differ}
    metrics.jsonl         one line an epoch: losses by part, train (and validation) accuracy by exit, learning rate, seconds
    weights.safetensors   network.* and method.* after the last epoch
    checkpoint.safetensors  the same and what else a resume needs: see `corsd_lib.training.checkpoint`
    probe.safetensors     labels and rows of the probe set;  probes/epoch_0007.safetensors  its snapshot after 7 epochs
    test.json             the one evaluation on test, after the last epoch

Every file is written to a neighbour and renamed: a reader, or a run killed at any moment, sees a whole file or the one before.
Tensors are safetensors and everything else is JSON: reading a run never executes anything. Every file has a SHA-256 of its
content, which is checked when it is read: `checksum` in the metadata of safetensors, in a JSON object, and in the last line of
metrics.jsonl. A file without one, of an earlier version or edited by hand, is read as it is; see `corsd_lib.files`.
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
    """What a run remembers of its data: enough to rebuild the network, name every class and know the images again.

    `splits`: of train and validation the number of images, the CRC-32 of their labels, and the CRC-32 of which images they are:
    of the file names, or of the rows where they are no files. A run of an earlier library lacks the last one, or all.
    `unseen_class_names`: the classes that were held out of the training.
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
    """A training on disk, finished or not, read when asked for; `load_run(path)` opens one."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        check_text("run", str(self.path))  # reports and tables name it
        if not os.path.isfile(self.path / "config.json"):  # unlike Path.is_file it is quiet about names no file can have
            raise CorsdError(f"{self.path} holds no run: there is no config.json in it")

    def __repr__(self) -> str:
        c, state = self.config, "finished" if self.finished else f"{self.epochs_done} of {self.config.epochs} epochs"
        return f"Run({str(self.path)!r}: {c.method} on {c.data}, {c.network}, seed {c.seed}, {state})"

    @cached_property
    def _json(self) -> dict[str, Any]:
        return read_config(self.path / "config.json")

    @property
    def raw_config(self) -> dict[str, Any]:
        """The configuration as it was written, every option of the method spelled out; plain values."""
        return self._json["train"]

    @cached_property
    def config(self) -> TrainConfig:
        return TrainConfig.from_dict(self.raw_config, str(self.path / "config.json"))

    @cached_property
    def data(self) -> DataInfo:
        """Class names and image facts."""
        plain: dict[str, Any] = self._json["data"]
        fixed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
        return DataInfo(**fixed)

    @property
    def provenance(self) -> dict[str, Any]:
        """Library version, source revision, package versions and machine of the training."""
        return self._json["provenance"]

    @property
    def resumed(self) -> list[dict[str, Any]]:
        """The same of each process that went on with it elsewhere or with other code, and the epochs done before it."""
        return self._json.get("resumed", [])

    @property
    def metrics(self) -> pd.DataFrame:
        """One row an epoch; columns epoch, step, lr, images, seconds, loss.<part>, train_top1.exit<k>, val_top1.exit<k> (%)."""
        import pandas as pd

        return pd.DataFrame(read_metrics(self.path / "metrics.jsonl"))

    @property
    def epochs_done(self) -> int:
        """Epochs that are finished."""
        lines = read_metrics(self.path / "metrics.jsonl")
        return lines[-1]["epoch"] if lines else 0

    @property
    def finished(self) -> bool:
        """All epochs trained and the last weights written."""
        return (self.path / "weights.safetensors").is_file()

    @property
    def test(self) -> dict[str, Any] | None:
        """The evaluation on the test split after the last epoch, or None before."""
        path = self.path / "test.json"
        return read_test(path) if path.is_file() else None

    @property
    def probes(self) -> Probes:
        """Probe snapshots by epoch, as far as they are written."""
        return Probes(self.path, self.data.num_classes)

    def network(self) -> MultiExitNetwork:
        """The network in eval mode with the newest weights on disk."""
        return self._with_weights("network", self._new_network).eval()

    def method(self) -> Method:
        """The method in eval mode with its relation networks, newest weights on disk."""
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
                with _no_larger(sum(t.numel() for t in tensors.values()), path):
                    module = build()
                load_part(module, tensors, part, path)
                return module
        raise CorsdError(f"{self.path} holds no weights yet: its training was stopped before the first checkpoint")


@contextmanager
def _no_larger(held: int, source: Path) -> Iterator[None]:
    """Raise `CorsdError` when this thread makes modules of far more numbers than a file has, before they take the memory."""
    most, count, mine = 4 * held + 2**24, 0, threading.get_ident()  # timm builds parts that it drops again

    def added(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count
        if parameter is not None and threading.get_ident() == mine:
            count += parameter.numel()
            if count > most:
                raise CorsdError(f"{source} is of another architecture: it holds {held:,} numbers, far fewer than this one has")

    hook = register_module_parameter_registration_hook(added)
    try:
        yield
    finally:
        hook.remove()


def portable_name(name: str) -> str:
    """The name of a data set without the folders of a path: `folder:PATH` and `npz:PATH` keep its last part. Ours."""
    kind, _, path = name.partition(":")
    return f"{kind}:{Path(path).name}" if kind in ("folder", "npz") else name


def load_run(path: str | Path) -> Run:
    """Open a run directory. Raises `CorsdError` when there is none."""
    check_name("run directory", path)
    return Run(path)


def check_run(run: object) -> None:
    """Refuse anything but a run, such as its path."""
    if not isinstance(run, Run):
        raise CorsdError(f"run is {shortened(run)}; allowed: a Run, as `train` and `load_run(path)` return it")


def check_name(what: str, name: object) -> None:
    """Refuse what is neither text nor a path."""
    if not isinstance(name, str | os.PathLike):
        raise CorsdError(f"{what} is {shortened(name)}; allowed: a str or a Path")


def new_network(config: TrainConfig, data: DataInfo) -> MultiExitNetwork:
    """The network of a configuration with the exits its method wants; fresh (or pretrained) weights.

    Raises `CorsdError` for a network that is not known, and for one that memory does not hold.
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
    """Load the tensors named `part`.* into `module`; one `CorsdError` that names the first that does not fit."""
    given = {k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(f"{part}.")}
    wanted = module.state_dict()
    for name in {**wanted, **given}:  # in the order of the module, so that the first difference is the same each time
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
