"""A trial, trained in a process of its own that tells how it does after every epoch."""

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

WAIT_SECONDS = 0.5  # between two looks at a run directory that another process has
Curves = list[list[float]]  # validation top-1 (%) after each epoch, a list a seed, all but the last of them complete


class _Pruned(Exception):
    """The trial is not worth another epoch."""


class _LastEpoch(Exception):
    """Ends a training where it would be evaluated on test."""


def objective(curves: Curves) -> list[float]:
    """The value (%) of a trial after each of its epochs: mean over the seeds that are done and the one in training."""
    return [fmean([*(done[-1] for done in curves[:k]), value]) for k, curve in enumerate(curves) for value in curve]


def start_trial(configs: list[TrainConfig], place: Mapping[str, str]) -> tuple[BaseProcess, Connection]:
    """Start `train_trial` in a process with the environment `place`; the process, and the pipe to it."""
    # A fork of this process might inherit a thread in the middle of its work, so fork one that has only imported things.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(method)
    context.set_forkserver_preload([__name__, "lightning_fabric", "sklearn.datasets"])  # and what a training imports late
    pipe, theirs = context.Pipe()
    process = context.Process(target=train_trial, args=(theirs, configs, dict(place)))
    process.start()
    theirs.close()  # so that the pipe ends when the process does
    return process, pipe


def train_trial(pipe: Connection, configs: list[TrainConfig], place: Mapping[str, str]) -> None:
    """Train `configs` one after the other, none of them evaluated on test, until they are done or no longer wanted.

    Sends ("epoch", curves so far) after each epoch and receives whether to go on, and ("locked", reason) as long as it waits
    for another process that trains there; at last ("complete", curves), ("pruned", None), ("stopped", None) after a signal, or
    ("failed", reason).
    """
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C in the terminal reaches the first process alone, which lets this one save
    os.environ.update(place)
    torch.set_num_threads(int(place["OMP_NUM_THREADS"]))  # the variable was read when torch was imported

    def hear(curves: Curves) -> None:
        pipe.send(("epoch", curves))
        if not pipe.recv():
            raise _Pruned

    def wait(error: LockedError) -> None:
        pipe.send(("locked", str(error)))
        time.sleep(WAIT_SECONDS)

    with suppress(EOFError, ConnectionError):  # the first process is no more; the next one will take up what is saved
        pipe.send(_outcome(configs, hear, wait))


def _outcome(
    configs: list[TrainConfig], hear: Callable[[Curves], None], wait: Callable[[LockedError], None]
) -> tuple[str, Any]:
    curves: Curves = []
    try:
        for config in configs:
            curves.append(_curve_when_free(config, lambda curve: hear([*curves, curve]), wait))
            if len(curves[-1]) < config.epochs:
                return "stopped", None
    except _Pruned:
        return "pruned", None
    except (EOFError, ConnectionError):
        raise
    except CorsdError as error:
        return "failed", str(error)
    except Exception as error:  # such as too little memory: not the end of the search
        return "failed", f"{type(error).__name__}: {error}"
    return "complete", curves


def _curve_when_free(
    config: TrainConfig, hear: Callable[[list[float]], None], wait: Callable[[LockedError], None]
) -> list[float]:
    """`validation_curve`, as soon as no other process trains there."""
    while True:
        try:
            return validation_curve(config, hear)
        except LockedError as error:
            wait(error)


def validation_curve(config: TrainConfig, hear: Callable[[list[float]], None]) -> list[float]:
    """Train `config` without the evaluation on test: top-1 (%) of the deepest exit on validation, epoch by epoch.

    `hear` is given the curve so far after every epoch. It stays shorter than `config.epochs` if the training was stopped.
    """

    def after_epoch(run: Run) -> None:
        hear(_curve(config))
        if run.epochs_done == config.epochs:
            raise _LastEpoch

    if len(_curve(config)) < config.epochs:
        with suppress(_LastEpoch):
            train(config, on_epoch=after_epoch, progress=False)
    return _curve(config)


def _curve(config: TrainConfig) -> list[float]:
    lines = read_metrics(config.path / "metrics.jsonl")
    return [[value for name, value in line.items() if name.startswith("val_top1.")][-1] for line in lines]
