"""Connections to the trackers: one class for each tracker, with a method that records the values of an epoch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import numpy as np

from corsd_lib.files import read_json, write_json
from corsd_lib.runs import PLACE_FIELDS, Run, portable_name

__all__ = ["SINKS", "Sink"]

_PROJECT = "corsd_lib"


class Sink(Protocol):
    """An open connection to a tracker. `last`: newest epoch that the tracker has, -1 for none."""

    last: int

    def __init__(self, run: Run) -> None: ...

    def send(self, epoch: int, values: Mapping[str, float], picture: np.ndarray | None) -> None:
        """Record an epoch.

        `values`: metrics by name, {} for epoch 0. `picture`: the class-level relation as an image, uint8 (H, W), or None.
        """

    def save(self) -> None:
        """Write all values that were sent so far."""

    def close(self) -> None:
        """End the connection."""


def _settings(run: Run) -> dict[str, Any]:
    """The configuration without paths of this machine and without other fields that do not affect the result of a training."""
    shown = {name: value for name, value in run.raw_config.items() if name not in PLACE_FIELDS}
    return {**shown, "data": portable_name(run.config.data)}


def _remove(folder: Path, files: str) -> None:
    """Delete the files in `folder` that match the pattern `files`: an earlier process of this training wrote them."""
    for file in folder.glob(files):
        file.unlink()


class _Csv:
    """<run>/logs/csv/metrics.csv: one row for each epoch; the column "step" is the epoch."""

    def __init__(self, run: Run) -> None:
        from lightning_fabric.loggers import CSVLogger

        _remove(run.path / "logs" / "csv", "metrics.csv")
        self.last, self.logger = -1, CSVLogger(run.path / "logs", name="", version="csv")

    def send(self, epoch: int, values: Mapping[str, float], picture: np.ndarray | None) -> None:
        if values:
            self.logger.log_metrics(dict(values), epoch)

    def save(self) -> None:
        self.logger.save()

    def close(self) -> None:
        self.logger.finalize("success")


class _TensorBoard:
    """TensorBoard event files <run>/logs/tensorboard/events.out.tfevents.*; `tensorboard --logdir runs` shows them."""

    def __init__(self, run: Run) -> None:
        from lightning_fabric.loggers import TensorBoardLogger

        _remove(run.path / "logs" / "tensorboard", "events.out.tfevents.*")
        self.last, self.logger = -1, TensorBoardLogger(run.path / "logs", name="", version="tensorboard")

    def send(self, epoch: int, values: Mapping[str, float], picture: np.ndarray | None) -> None:
        self.logger.log_metrics(dict(values), epoch)
        if picture is not None:
            self.logger.experiment.add_image("relation", picture, epoch, dataformats="HW")

    def save(self) -> None:
        self.logger.save()

    def close(self) -> None:
        self.logger.finalize("success")


class _Wandb:
    """A run of the Weights & Biases project corsd_lib. The service ignores a step that it already has, so no epoch is
    recorded twice after a crash.
    """

    def __init__(self, run: Run) -> None:
        import wandb

        self.file, self.wandb = run.path / "logs" / "wandb.json", wandb
        there: dict[str, Any] = read_json(self.file) if self.file.is_file() else {"id": uuid4().hex, "epochs": -1}
        self.id: str = there["id"]
        self.last: int = there["epochs"]
        self.file.parent.mkdir(exist_ok=True)
        self.run = wandb.init(
            project=_PROJECT,
            id=self.id,
            name=run.path.name,
            resume="allow",
            dir=self.file.parent,
            config=_settings(run),
        )

    def send(self, epoch: int, values: Mapping[str, float], picture: np.ndarray | None) -> None:
        images = {} if picture is None else {"relation": self.wandb.Image(picture)}
        self.run.log({**values, **images}, step=epoch)

    def save(self) -> None:
        write_json(self.file, {"id": self.id, "epochs": self.last})

    def close(self) -> None:
        self.run.finish()


class _MLflow:
    """A run of the MLflow experiment corsd_lib at $MLFLOW_TRACKING_URI.

    `last` is read from the server, so that a resumed training sends no epoch twice.
    """

    def __init__(self, run: Run) -> None:
        from mlflow import MlflowClient

        self.client, file = MlflowClient(), run.path / "logs" / "mlflow.json"
        if file.is_file():
            self.id = read_json(file)["id"]
            self.client.update_run(self.id, status="RUNNING")
        else:
            there = self.client.get_experiment_by_name(_PROJECT)
            experiment = there.experiment_id if there else self.client.create_experiment(_PROJECT)
            self.id = self.client.create_run(experiment, run_name=run.path.name).info.run_id
            write_json(file, {"id": self.id})
            for name, value in _settings(run).items():
                self.client.log_param(self.id, name, value)
        self.last = max((metric.step for metric in self.client.get_metric_history(self.id, "epoch")), default=-1)

    def send(self, epoch: int, values: Mapping[str, float], picture: np.ndarray | None) -> None:
        from mlflow.entities import Metric

        if picture is not None:
            self.client.log_image(self.id, picture, artifact_file=f"relation/epoch_{epoch:04d}.png")
        now = int(1000 * time.time())
        self.client.log_batch(self.id, metrics=[Metric(name, value, now, epoch) for name, value in values.items()])

    def save(self) -> None:
        pass

    def close(self) -> None:
        self.client.set_terminated(self.id)


SINKS: dict[str, type[Sink]] = {"csv": _Csv, "tensorboard": _TensorBoard, "wandb": _Wandb, "mlflow": _MLflow}
