"""Starting a training: devices, the lock of the run directory, and the images."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from corsd_lib.datasets import ImageData
from corsd_lib.datasets.arrays import check_class_names
from corsd_lib.datasets.notices import silent
from corsd_lib.errors import CorsdError, check_processes, enough_memory, shortened
from corsd_lib.files import LockedError, locked, make_folder
from corsd_lib.runs import Run, TrainConfig, differences, image_changes, load_data, run_data, unseen_class_names
from corsd_lib.training.determinism import deterministic_algorithms
from corsd_lib.training.stop import stop_request
from corsd_lib.training.trainer import Trainer

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["train"]


def train(
    config: TrainConfig,
    *,
    data: ImageData | None = None,
    on_epoch: Callable[[Run], None] | None = None,
    progress: bool = True,
    stop: threading.Event | None = None,
) -> Run:
    """Train the configuration `config` and return the run on disk. `on_epoch(run)` is called after every epoch.

    Ctrl-C, SIGTERM, or another thread that sets `stop`, ends the training after the current step: a checkpoint is written and
    the unfinished run is returned. The same configuration with `resume=True` continues from the newest checkpoint, even after
    the process was killed; a finished run is returned as it is. A resumed training gives the same final weights as one without
    interruption. They are exactly equal on the same CPU with the same number of threads, and on the same GPU with
    `deterministic=True`. On a GPU without this setting they are approximately equal.

    `data` replaces the images that `config.data` names; functions that need the images of the run later must get the same ones.
    With several devices, each process forms pairs of images within its own batch. `progress` shows a progress bar.

    Raises `CorsdError`

    - for data with one class;
    - if the run directory holds another run or a run on other data, holds any run while `resume` is False, is in use by another
      process (`LockedError`), or is moved or removed during the training;
    - if the checkpoint is damaged or belongs to another training;
    - for an accelerator, a precision or a number of processes that this machine cannot run, and if memory runs out;
    - if the loss is not finite (the last good checkpoint is kept).
    """
    _check_import()
    _check_directory(config)  # every process checks, before the first one writes into the directory
    if (config.path / "test.json").is_file():
        return Run(config.path)
    with enough_memory(f"training {config.path}", _LESS_MEMORY):
        return _fabric(config).launch(lambda fabric: _train(fabric, config, data, on_epoch, progress, stop))


_LESS_MEMORY = "; a smaller batch_size, image_size or width may help, and the run can be resumed (resume=True)"


def _fabric(config: TrainConfig) -> Fabric:
    from lightning_fabric import Fabric
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    if config.precision == "16-mixed" and _accelerator(config.accelerator) == "cpu":  # Fabric would use bf16-mixed instead
        raise CorsdError("precision '16-mixed' does not work on a CPU; allowed: 32-true or bf16-mixed, or a GPU")
    if _accelerator(config.accelerator) == "cpu":  # Fabric checks the number of GPUs itself
        check_processes("devices", config.devices)
    try:
        fabric = Fabric(
            accelerator=_accelerator(config.accelerator),
            devices=config.devices,
            num_nodes=config.num_nodes,
            precision=config.precision,  # type: ignore[arg-type]
            strategy=_data_parallel() if config.devices * config.num_nodes > 1 else "auto",
        )
        _check_launcher(fabric, config)
        return fabric
    except (ValueError, RuntimeError, ImportError, MisconfigurationException) as error:
        asked = ", ".join(
            f"{name} {shortened(getattr(config, name))}" for name in ("accelerator", "devices", "num_nodes", "precision")
        )
        raise CorsdError(f"cannot train with {asked}: {' '.join(str(error).split())}") from error


def _check_launcher(fabric: Fabric, config: TrainConfig) -> None:
    """Raise `ValueError` if torchrun or Slurm has started a number of processes that differs from the configuration."""
    from lightning_fabric.plugins.environments import TorchElasticEnvironment

    environment = getattr(fabric.strategy, "cluster_environment", None)
    if TorchElasticEnvironment.detect():
        environment = TorchElasticEnvironment()  # the strategy for one device has no cluster_environment
    if environment is not None:
        environment.validate_settings(config.devices, config.num_nodes)


def _accelerator(name: str) -> str:
    """Resolve "auto": CUDA if available, else the CPU. Fabric's own "auto" may choose Apple's GPU, which has no float64."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _data_parallel() -> Any:
    from lightning_fabric.strategies import DDPStrategy

    # Without positive pairs in a batch the relation networks get no gradient, and DDP must not wait for it.
    return DDPStrategy(find_unused_parameters=True)


def _train(
    fabric: Fabric,
    config: TrainConfig,
    data: ImageData | None,
    on_epoch: Callable[[Run], None] | None,
    progress: bool,
    stop: threading.Event | None,
) -> Run:
    gpus = [fabric.device] if fabric.device.type == "cuda" else []
    with _lock_in_first_process(fabric, config):
        if not (config.path / "test.json").is_file():  # another process may have finished it meanwhile
            with nullcontext() if fabric.is_global_zero else silent():  # notices about the data come from one process
                data = _images_for(data, config)
            check_class_names(data.name, data.class_names)
            # Random generators and settings of the caller are restored.
            with torch.random.fork_rng(gpus), deterministic_algorithms(config.deterministic):
                trainer = Trainer(fabric, config, data)
                trainer.begin_or_resume()
                with stop_request(stop) as stop:
                    trainer.run(stop, on_epoch, progress)
    fabric.barrier()
    return Run(config.path)


@contextmanager
def _lock_in_first_process(fabric: Fabric, config: TrainConfig) -> Iterator[None]:
    """Lock the run directory in the first process, which then checks the directory again. If that fails, every process raises
    the same error.
    """
    problem: CorsdError | None = None
    with ExitStack() as stack:
        if fabric.is_global_zero:
            try:
                stack.enter_context(_lock_directory(config.path))
                _check_directory(config)
            except CorsdError as error:
                problem = error
        problem = fabric.broadcast(problem)
        if problem is not None:
            raise problem
        yield


def _images_for(data: ImageData | None, config: TrainConfig) -> ImageData:
    """Images to train on: `data`, or those that the configuration names.

    Raises `CorsdError` if the numbers of held-out classes in `data` and in the configuration differ, and if the run directory
    holds a run that was trained on other images.
    """
    if data is not None and len(unseen_class_names(data)) != config.hold_out_classes:
        raise CorsdError(
            f"hold_out_classes = {config.hold_out_classes}, but the data {data.name!r} that is given to train holds out "
            f"{len(unseen_class_names(data))} classes; allowed: the same number in TrainConfig and in load_dataset "
            "(hold_out_classes)"
        )
    if not _has_begun(config.path):
        return data or load_data(config)
    run = Run(config.path)
    if data is not None and data.name != run.data.name:
        raise CorsdError(
            f"{run.path} was started on {run.data.name!r}, not on {data.name!r}; give the same data as at its start"
        )
    if data is not None and (changes := image_changes(data, run.data)):
        raise CorsdError(
            f"{run.path} was started on images that differ from those of {data.name!r} here: {changes}; pass the images that "
            "it was started on (data=...)"
        )
    return run_data(run, data)


@contextmanager
def _lock_directory(folder: Path) -> Iterator[None]:
    """Lock a run directory for this process. Raises `LockedError` if another process trains in it.

    A directory that does not exist is created, and removed again if nothing was written into it.
    """
    made = not os.path.isdir(folder)
    make_folder(folder)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder))
        except LockedError as error:
            raise LockedError(f"{folder} is being trained by another process: wait for it, or stop it") from error
        try:
            yield
        finally:
            if made:
                with suppress(OSError):  # fails if something was written
                    folder.rmdir()


def _check_import() -> None:
    """Raise `CorsdError` in a spawned worker process while it imports the main script: a training must not start there."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise CorsdError(
            "train was called by a worker process, which imports the script that started it: put its code below "
            "`if __name__ == '__main__':`"
        )


def _has_begun(path: Path) -> bool:
    """Whether a run directory holds results of at least one training step; if not, a new training replaces it."""
    files = ("checkpoint.safetensors", "metrics.jsonl", "weights.safetensors", "test.json")
    return any(os.path.isfile(path / name) for name in files)


def _check_directory(config: TrainConfig) -> None:
    """Raise `CorsdError` if the training cannot use its run directory, before anything is computed.

    The directory must not hold a run of another configuration, nor weights or a checkpoint without a config.json. It may hold a
    run of the same configuration only if `resume` is True.
    """
    path = config.path / "config.json"
    if not os.path.isfile(path):  # Path.is_file would raise for a folder without read permission
        for name in ("checkpoint.safetensors", "weights.safetensors"):
            if os.path.isfile(config.path / name):
                raise CorsdError(f"{config.path} holds a {name} but no config.json: choose another folder (out=, --out)")
        return
    begun_with = Run(config.path).config  # `CorsdError` for the config.json of another program
    if not _has_begun(config.path):
        return
    if not config.resume:
        raise CorsdError(
            f"{config.path} already contains a run: resume it (resume=True, --resume), or choose another folder (out=, --out)"
        )
    if changes := differences(begun_with, config):
        raise CorsdError(
            f"{config.path} contains a run of another configuration: {changes}; "
            "remove it or choose another folder (out=, --out)"
        )
