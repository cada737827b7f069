"""A trial: a training in a separate process, which reports its validation accuracy after every epoch."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from statistics import fmean
from typing import Any

import torch

from corsd_lib.errors import CorsdError
from corsd_lib.files import LockedError
from corsd_lib.readers import read_metrics
from corsd_lib.runs import Run, TrainConfig
from corsd_lib.training import train

__all__ = ["objective", "start_trial", "train_trial", "validation_curve"]

WAIT_SECONDS = 0.5  # seconds between two checks of a run directory that another process has locked
Curves = list[list[float]]  # for each seed a list of validation top-1 (%) by epoch; all lists but the last are complete


class _Pruned(Exception):
    """Raised to end the training of a pruned trial."""


class _LastEpoch(Exception):
    """Raised after the last epoch, to end the training before the evaluation on the test images."""


def objective(curves: Curves) -> list[float]:
    """Value (%) of a trial after each epoch of its trainings, which are run one seed after the other.

    `curves`: for each seed, the validation top-1 (%) after each epoch. The value is a mean over seeds: the final
    accuracy of each finished seed, and the current accuracy of the seed in training.
    """
    return [fmean([*(done[-1] for done in curves[:k]), value]) for k, curve in enumerate(curves) for value in curve]


def start_trial(configs: list[TrainConfig], environment: Mapping[str, str]) -> tuple[BaseProcess, Connection]:
    """Start `train_trial` in a new process with these environment variables; return the process and the pipe to it."""
    # Forking this process while a thread holds a lock could deadlock the child, so processes are forked from a clean server.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(method)
    context.set_forkserver_preload([__name__, "lightning_fabric", "sklearn.datasets"])  # modules that a training imports late
    pipe, child_pipe = context.Pipe()
    process = context.Process(target=train_trial, args=(child_pipe, configs, dict(environment)))
    process.start()
    child_pipe.close()  # so that the pipe ends when the process does
    return process, pipe


def train_trial(pipe: Connection, configs: list[TrainConfig], environment: Mapping[str, str]) -> None:
    """Train `configs` one after the other, without evaluation on the test images, until all are done or the trial is pruned.

    The messages sent through `pipe` are:

    - ("epoch", curves so far) after each epoch. The reply is True to continue, or False to prune the trial.
    - ("locked", reason), repeatedly, while another process trains in the run directory.
    - One last message: ("complete", curves); ("pruned", None); ("stopped", None) after a signal; ("unwritable", reason) if a
      file cannot be written or read; or ("failed", reason).
    """
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C in the terminal reaches only the main process, which asks this one to save
    os.environ.update(environment)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))  # torch read the variable when it was imported

    def report(curves: Curves) -> None:
        pipe.send(("epoch", curves))
        if not pipe.recv():
            raise _Pruned

    def wait(error: LockedError) -> None:
        pipe.send(("locked", str(error)))
        time.sleep(WAIT_SECONDS)

    with suppress(EOFError, ConnectionError):  # the main process has ended; the next search resumes from the checkpoint
        pipe.send(_outcome(configs, report, wait))


def _outcome(
    configs: list[TrainConfig], report: Callable[[Curves], None], wait: Callable[[LockedError], None]
) -> tuple[str, Any]:
    curves: Curves = []
    try:
        for config in configs:
            curves.append(_curve_when_unlocked(config, lambda curve: report([*curves, curve]), wait))
            if len(curves[-1]) < config.epochs:
                return "stopped", None
    except _Pruned:
        return "pruned", None
    except (EOFError, ConnectionError):
        raise
    except CorsdError as error:
        return "unwritable" if _is_file_error(error) else "failed", str(error)
    except Exception as error:  # such as out of memory: the search continues
        return "failed", f"{type(error).__name__}: {error}"
    return "complete", curves


def _is_file_error(error: BaseException | None) -> bool:
    """Whether `error` was caused by the file system, for example by a full disk, and not by the settings of the trial."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__
    return error is not None


def _curve_when_unlocked(
    config: TrainConfig, report: Callable[[list[float]], None], wait: Callable[[LockedError], None]
) -> list[float]:
    """The result of `validation_curve`, which is called as soon as no other process trains in the run directory."""
    while True:
        try:
            return validation_curve(config, report)
        except LockedError as error:
            wait(error)


def validation_curve(config: TrainConfig, report: Callable[[list[float]], None]) -> list[float]:
    """Train `config` without the evaluation on the test images; return the validation top-1 (%) of the deepest exit after each
    epoch.

    `report` is called with the curve so far after every epoch. The curve is shorter than `config.epochs` if the training was
    stopped.
    """

    def after_epoch(run: Run) -> None:
        report(_curve(config))
        if run.epochs_done == config.epochs:
            raise _LastEpoch

    if len(_curve(config)) < config.epochs:
        with suppress(_LastEpoch):
            train(config, on_epoch=after_epoch, progress=False)
    return _curve(config)


def _curve(config: TrainConfig) -> list[float]:
    lines = read_metrics(config.path / "metrics.jsonl")
    return [[value for name, value in line.items() if name.startswith("val_top1.")][-1] for line in lines]
