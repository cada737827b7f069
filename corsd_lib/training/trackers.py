"""Metrics of a training in TensorBoard, Weights & Biases, MLflow or a CSV file.

A tracker reads the run on disk after each epoch and sends what it has not sent yet, so it cannot affect the training. The
"step" of a tracker is the epoch. A resumed training records no epoch twice. `csv` and `tensorboard` then replace their files in
<run>/logs/<tracker>/ and write all epochs again. `wandb` and `mlflow` continue their run; its id is stored in
<run>/logs/<tracker>.json.
"""

from __future__ import annotations

import warnings

import numpy as np

from corsd_lib.errors import check_choice, first_line, require
from corsd_lib.readers import read_metrics
from corsd_lib.runs import Run
from corsd_lib.training.sinks import SINKS, Sink

__all__ = ["TRACKERS", "Tracker"]

TRACKERS = tuple(SINKS)
_PACKAGES = {"csv": (), "tensorboard": ("tensorboard",), "wandb": ("wandb",), "mlflow": ("mlflow",)}
_IMAGE_EVERY = 5  # epochs


class Tracker:
    """Sends the metrics of a training to the tracker `name`, one of `TRACKERS`.

    Pass it to `train` as `on_epoch`, and call `close` at the end, or use it as a context manager.

    For each epoch the tracker gets the terms of the loss, the accuracies of the exits, the learning rate and the duration in
    seconds. It also gets the class-level relation of the deepest exit as a grey image, black for the smallest value and white
    for the largest. This image is sent before the first epoch, after every fifth and after the last, if there is a snapshot. If
    the tracker cannot be reached, a warning is shown and the training continues; missing epochs are sent after the next epoch.
    Raises `CorsdError` for an unknown name, and `MissingPackage` if the package of the tracker is not installed.
    """

    def __init__(self, name: str) -> None:
        check_choice("logger", name, TRACKERS)
        require(f"logger {name!r}", *_PACKAGES[name])
        self.name = name
        self._sink: Sink | None = None

    def __call__(self, run: Run) -> None:
        try:
            if self._sink is None:
                self._sink = SINKS[self.name](run)
            _send(run, self._sink)
        except Exception as error:  # errors of a service, its client or the disk
            self._sink = None  # is opened again after the next epoch
            warnings.warn(f"logger {self.name!r}: {first_line(error)}; the training continues", stacklevel=2)

    def close(self) -> None:
        """End the connection to the tracker."""
        if self._sink is not None:
            self._sink.close()
        self._sink = None

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _send(run: Run, sink: Sink) -> None:
    """Send the epochs of a run that the tracker does not have yet; epoch 0 is the untrained network."""
    rows = {row["epoch"]: row for row in read_metrics(run.path / "metrics.jsonl")}
    probes = run.probes
    for epoch in range(sink.last + 1, max(rows, default=-1) + 1):
        values = {name: float(value) for name, value in rows.get(epoch, {}).items() if name != "step"}
        due = epoch in probes and (epoch % _IMAGE_EVERY == 0 or epoch == run.config.epochs)
        sink.send(epoch, values, _picture(probes[epoch].relations[-1].numpy()) if due else None)
        sink.last = epoch
    sink.save()


def _picture(relation: np.ndarray) -> np.ndarray:
    """A relation (C, C) as a grey image, uint8, with sides of at least 128 pixels."""
    low, high = relation.min(), relation.max()
    grey = (255 * (relation - low) / max(high - low, 1e-12)).round().astype(np.uint8)
    return np.kron(grey, np.ones([max(1, -(-128 // len(grey)))] * 2, dtype=np.uint8))
