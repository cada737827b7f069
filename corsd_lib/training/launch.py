"""Starting a training: its devices, the lock of its run directory, its images."""

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
    """Train what `config` says and return the run; `on_epoch(run)` is called after every epoch.

    Ctrl-C (or SIGTERM, or another thread that sets `stop`) finishes the step, saves and returns the unfinished run; the same
    configuration with `resume=True` goes on from there, or from the last checkpoint of a run that was killed, and ends with
    the same weights, bit for bit on the same CPU and number of threads, and on the same GPU with `deterministic=True`, closely
    there without. A finished run is returned as it
    is. With several devices each process forms its pairs within its own batch. `data`: images of your own, in place of those
    that `config.data` names; whoever asks the run for images later has to give them again.

    Raises `CorsdError` for data of one class, when the directory holds another run, or one of other data, or one that is being
    trained right now (`LockedError`), when it is moved or removed meanwhile, when its checkpoint is damaged or not of this
    training, for more processes than this machine can run, and when the loss is no longer finite (the last good checkpoint is
    kept).
    """
    _check_import()
    _check_directory(config)  # in every process, before the first one can have written into it
    if (config.path / "test.json").is_file():
        return Run(config.path)
    with enough_memory(f"training {config.path}", _LESS_MEMORY):
        return _fabric(config).launch(lambda fabric: _train(fabric, config, data, on_epoch, progress, stop))


_LESS_MEMORY = "; a smaller batch_size, image_size or width may help, and what is saved is kept (resume=True)"


def _fabric(config: TrainConfig) -> Fabric:
    from lightning_fabric import Fabric
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    if config.precision == "16-mixed" and _accelerator(config.accelerator) == "cpu":  # Fabric would train bf16-mixed instead
        raise CorsdError("precision '16-mixed' on a CPU; allowed: 32-true or bf16-mixed, or a GPU")
    if _accelerator(config.accelerator) == "cpu":  # of GPUs Fabric knows how many there are
        check_processes("devices", config.devices)
    try:
        return Fabric(
            accelerator=_accelerator(config.accelerator),
            devices=config.devices,
            num_nodes=config.num_nodes,
            precision=config.precision,  # type: ignore[arg-type]
            strategy=_data_parallel() if config.devices * config.num_nodes > 1 else "auto",
        )
    except (ValueError, RuntimeError, ImportError, MisconfigurationException) as error:
        asked = ", ".join(
            f"{name} {shortened(getattr(config, name))}" for name in ("accelerator", "devices", "num_nodes", "precision")
        )
        raise CorsdError(f"cannot train with {asked}: {' '.join(str(error).split())}") from error


def _accelerator(name: str) -> str:
    """What "auto" means: a CUDA GPU if there is one, else the CPU. Fabric would take Apple's, which has no float64."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _data_parallel() -> Any:
    from lightning_fabric.strategies import DDPStrategy

    # A batch without positives leaves relation networks out of the graph: DDP must not wait for their gradients.
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
    with _alone(fabric, config):
        if not (config.path / "test.json").is_file():  # which another process may have written meanwhile
            with nullcontext() if fabric.is_global_zero else silent():  # one process reports what is unusual in the data
                data = _given_or_named(data, config)
            check_class_names(data.name, data.class_names)
            # The caller's random numbers and settings are left as they were.
            with torch.random.fork_rng(gpus), deterministic_algorithms(config.deterministic):
                trainer = Trainer(fabric, config, data)
                with stop_request(stop) as stop:
                    trainer.run(stop, on_epoch, progress)
    fabric.barrier()
    return Run(config.path)


@contextmanager
def _alone(fabric: Fabric, config: TrainConfig) -> Iterator[None]:
    """Lock the run directory for the first process, which looks again at what it holds by now; all raise what it finds."""
    problem: CorsdError | None = None
    with ExitStack() as stack:
        if fabric.is_global_zero:
            try:
                stack.enter_context(_held(config.path))
                _check_directory(config)
            except CorsdError as error:
                problem = error
        problem = fabric.broadcast(problem)
        if problem is not None:
            raise problem
        yield


def _given_or_named(data: ImageData | None, config: TrainConfig) -> ImageData:
    """The images to train on; an unfinished run goes on with those that it began with."""
    if data is not None and len(unseen_class_names(data)) != config.hold_out_classes:
        raise CorsdError(
            f"hold_out_classes = {config.hold_out_classes}, and {data.name!r}, which is given to train, holds out "
            f"{len(unseen_class_names(data))}; allowed: the same, so give load_dataset its hold_out_classes"
        )
    if not _has_begun(config.path):
        return data or load_data(config)
    run = Run(config.path)
    if data is not None and (data.name != run.data.name or image_changes(data, run.data)):
        raise CorsdError(f"{run.path} was begun on {run.data.name!r}, with other classes or images than {data.name!r} has")
    return run_data(run, data)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Lock a run directory, made if need be, for this process."""
    made = not os.path.isdir(folder)
    make_folder(folder)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder))
        except LockedError as error:
            raise LockedError(f"{folder} is being trained right now: wait for that training, or stop it") from error
        try:
            yield
        finally:
            if made:
                with suppress(OSError):  # nothing was written, so nothing is left
                    folder.rmdir()


def _check_import() -> None:
    """Refuse to train in a worker that only imports the script that started it, as where processes are spawned."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise CorsdError(
            "train was called by a worker process, which imports the script that started it: put what the script does below "
            "`if __name__ == '__main__':`"
        )


def _has_begun(path: Path) -> bool:
    """Whether a run directory holds anything that a training took a step for; else a new training takes its place."""
    files = ("checkpoint.safetensors", "metrics.jsonl", "weights.safetensors", "test.json")
    return any(os.path.isfile(path / name) for name in files)


def _check_directory(config: TrainConfig) -> None:
    """Refuse a directory that holds another training, before anything is computed."""
    path = config.path / "config.json"
    if not os.path.isfile(path):  # unlike Path.is_file it is quiet about a folder that must not be read
        for name in ("checkpoint.safetensors", "weights.safetensors"):
            if os.path.isfile(config.path / name):
                raise CorsdError(f"{config.path} holds a {name} but no config.json: choose another out")
        return
    begun_with = Run(config.path).config  # `CorsdError` for the config.json of another program
    if not _has_begun(config.path):
        return
    if not config.resume:
        raise CorsdError(f"{config.path} holds a run already: resume it (resume=True, --resume), or choose another out")
    if changes := differences(begun_with, config):
        raise CorsdError(f"{config.path} holds a run of another configuration: {changes}; remove it or choose another out")
