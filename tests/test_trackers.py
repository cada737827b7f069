"""Metrics in a tracker: complete, once each, and without any effect on the training."""

from __future__ import annotations

import copy
import csv
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from corsd_lib import Tracker, cli
from corsd_lib.errors import CorsdError, MissingPackage
from corsd_lib.files import read_json
from corsd_lib.runs import Run, TrainConfig
from corsd_lib.training import train
from corsd_lib.training.sinks import _settings
from corsd_lib.training.trackers import TRACKERS, _picture

Tiny = Callable[..., TrainConfig]


class Killed(Exception):
    """Stands for the end of a process: nothing after it runs."""


def _logged(name: str, config: TrainConfig) -> Run:
    with Tracker(name) as tracker:
        return train(config, progress=False, on_epoch=tracker)


def _killed_after(epoch: int, name: str, config: TrainConfig, sends: bool) -> None:
    """A training that ends after an epoch, before or after the tracker was called, without closing it."""
    tracker = Tracker(name)

    def on_epoch(run: Run) -> None:
        if sends or run.epochs_done < epoch:
            tracker(run)
        if run.epochs_done == epoch:
            raise Killed

    with pytest.raises(Killed):
        train(config, progress=False, on_epoch=on_epoch)


def _rows(run: Run) -> list[dict[str, float]]:
    return run.metrics.drop(columns="step").to_dict("records")


def _csv_rows(run: Run) -> list[dict[str, float]]:
    with open(run.path / "logs/csv/metrics.csv", newline="") as file:
        return [{k: float(v) for k, v in row.items() if k != "step"} for row in csv.DictReader(file)]


def _events(run: Run) -> Any:
    pytest.importorskip("tensorboard", reason="needs tensorboard of the extra tracking")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run.path / "logs/tensorboard"), size_guidance={"images": 0, "scalars": 0}).Reload()


# --- csv ---


@pytest.mark.parametrize("sends", [True, False])
def test_a_csv_file_has_every_epoch_once_also_after_a_resume(sends: bool, tiny: Tiny) -> None:
    config = tiny(epochs=3, validation_fraction=0.2)
    _killed_after(2, "csv", config, sends)
    run = _logged("csv", tiny(epochs=3, validation_fraction=0.2, resume=True))
    assert [row["epoch"] for row in _csv_rows(run)] == [1, 2, 3]
    for row, wanted in zip(_csv_rows(run), _rows(run), strict=True):
        assert row == pytest.approx(wanted) and {"loss.total", "train_top1.exit1", "val_top1.exit3"} <= row.keys()


def test_logging_does_not_change_the_weights(tiny: Tiny) -> None:
    plain = train(tiny("plain", method="corsd", epochs=2), progress=False)
    for name in ("csv", "tensorboard"):
        if name == "tensorboard":
            pytest.importorskip("tensorboard", reason="needs tensorboard of the extra tracking")
        run = _logged(name, tiny(name, method="corsd", epochs=2))
        for file in ("weights.safetensors", "probes/epoch_0002.safetensors"):
            assert (run.path / file).read_bytes() == (plain.path / file).read_bytes()


# --- tensorboard ---


def test_tensorboard_has_every_epoch_once_also_after_a_resume(tiny: Tiny) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard of the extra tracking")
    config = tiny(epochs=6)
    _killed_after(5, "tensorboard", config, sends=True)
    run = _logged("tensorboard", tiny(epochs=6, resume=True))
    events, rows = _events(run), _rows(run)
    assert set(events.Tags()["scalars"]) == set(rows[0])
    for name in rows[0]:
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(row["epoch"], pytest.approx(row[name], rel=1e-5)) for row in rows]
    images = events.Images("relation")
    assert [event.step for event in images] == [0, 5, 6] and images[0].width == 130  # 10 classes of 13 pixels


def test_a_picture_is_black_to_white() -> None:
    picture = _picture(np.array([[0.2, 0.4], [0.6, 1.0]], dtype=np.float32))
    assert picture.shape == (128, 128) and picture.dtype == np.uint8
    assert [picture[0, 0], picture[0, -1], picture[-1, 0], picture[-1, -1]] == [0, 64, 128, 255]
    assert _picture(np.full((200, 200), 0.5, dtype=np.float32)).shape == (200, 200)


# --- services ---


class FakeWandb:
    """Keeps what is logged by run id, and drops steps that a run has, as the service does."""

    def __init__(self) -> None:
        self.logged: dict[str, dict[int, Any]] = {}
        self.settings: list[dict[str, Any]] = []
        self.finished = 0

    def init(self, **settings: Any) -> SimpleNamespace:
        self.settings.append(settings)
        steps = self.logged.setdefault(settings["id"], {})
        return SimpleNamespace(log=lambda values, step: steps.setdefault(step, values), finish=self._finish)

    def _finish(self) -> None:
        self.finished += 1

    def Image(self, picture: np.ndarray) -> tuple[int, ...]:
        return picture.shape


@pytest.mark.parametrize("sends", [True, False])
def test_wandb_continues_the_same_run(sends: bool, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    _killed_after(2, "wandb", tiny(epochs=3), sends)
    run = _logged("wandb", tiny(epochs=3, resume=True))
    (steps,) = fake.logged.values()
    assert list(steps) == [0, 1, 2, 3] and steps[0] == {"relation": (130, 130)} and "relation" in steps[3]
    assert steps[2] == pytest.approx(_rows(run)[1]) and fake.finished == 1
    assert {"method", "epochs"} <= fake.settings[0]["config"].keys() and "out" not in fake.settings[0]["config"]
    assert read_json(run.path / "logs/wandb.json")["epochs"] == 3


@pytest.mark.slow
def test_wandb_writes_without_a_network(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs wandb of the extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = _logged("wandb", tiny(epochs=1))
    (file,) = run.path.glob("logs/wandb/offline-run-*/*.wandb")
    assert b"loss.total" in file.read_bytes()


@pytest.mark.slow
def test_mlflow_continues_the_same_run(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow of the extra mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    _killed_after(2, "mlflow", tiny(epochs=3), sends=True)
    run = _logged("mlflow", tiny(epochs=3, resume=True))
    client = mlflow.MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("corsd_lib").experiment_id])
    history = client.get_metric_history(found.info.run_id, "loss.total")
    assert [(m.step, m.value) for m in history] == [(row["epoch"], pytest.approx(row["loss.total"])) for row in _rows(run)]
    assert found.data.params["method"] == "corsd" and "out" not in found.data.params and found.info.status == "FINISHED"
    assert [f.path for f in client.list_artifacts(found.info.run_id, "relation")] == [
        "relation/epoch_0000.png",
        "relation/epoch_0003.png",
    ]


def test_a_tracker_that_fails_does_not_end_the_training(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, calls = FakeWandb(), []

    def unreachable_at_first(**settings: Any) -> SimpleNamespace:
        calls.append(settings)
        if len(calls) < 3:
            raise ConnectionError("no route\nto the host")
        return FakeWandb.init(fake, **settings)

    monkeypatch.setattr(fake, "init", unreachable_at_first)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.warns(UserWarning, match=r"^logger 'wandb': no route; the training continues$") as warned:
        run = _logged("wandb", tiny(epochs=3))
    assert run.finished and len(warned) == 2
    (steps,) = fake.logged.values()
    assert list(steps) == [0, 1, 2, 3]


def test_what_is_sent_names_no_path(tiny_run: Run) -> None:
    run = copy.copy(tiny_run)
    run.__dict__["config"] = replace(tiny_run.config, data="folder:/home/me/birds", data_root="/data")
    settings = _settings(run)
    assert settings["data"] == "folder:birds" and not {"out", "data_root", "resume"} & settings.keys()


# --- arguments and the command line ---


def test_an_unknown_tracker_is_one_error() -> None:
    with pytest.raises(CorsdError, match="logger 'neptune' is not known; allowed: csv, tensorboard, wandb, mlflow"):
        Tracker("neptune")


@pytest.mark.parametrize("name,extra", [("tensorboard", "tracking"), ("wandb", "wandb"), ("mlflow", "mlflow")])
def test_a_missing_package_is_named_before_the_training(
    name: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackage, match=rf"logger '{name}' needs {name}, .*pip install 'corsd_lib\[{extra}\]'"):
        Tracker(name)
    with pytest.raises(SystemExit):
        cli.main(["train", "--logger", name, "--out", str(tmp_path / "run")])
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "run").exists()


def test_the_command_line_logs_also_a_finished_run(tiny_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ["train", "--config", str(tiny_run.path / "config.json"), "--out", str(out), "--quiet"]
    cli.main(command)
    assert not (out / "logs").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cli.main([*command, "--resume", "--logger", "csv"])
        cli.main([*command, "--resume", "--logger", "csv"])
    assert [row["epoch"] for row in _csv_rows(Run(out))] == [1, 2]


def test_every_tracker_has_its_packages() -> None:
    assert TRACKERS == ("csv", "tensorboard", "wandb", "mlflow")
