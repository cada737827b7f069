"""The monitor of a training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from explorers import EPOCHS, shown, small_run

from corsd_lib import Run, TrainingMonitor


@pytest.fixture(scope="module", params=["corsd", "baseline"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small_run(tmp_path_factory.mktemp("runs") / request.param, request.param)


@pytest.fixture(scope="module")
def corsd(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small_run(tmp_path_factory.mktemp("runs") / "corsd", "corsd")


def test_monitor_grows_while_a_training_runs(tmp_path: Path) -> None:
    monitor, seen = TrainingMonitor(), []

    def watch(run: Run) -> None:
        monitor(run)
        seen.append((len(monitor.figure.data[1].x), shown(monitor).copy()))

    run = small_run(tmp_path / "run", "corsd", on_epoch=watch)
    assert [points for points, _ in seen] == [1, 2, 3]
    for epoch, (_, matrix) in enumerate(seen, 1):
        np.testing.assert_array_equal(matrix, run.probes[epoch].relations[-1].numpy())
    for k, line in enumerate(monitor.figure.data[1:], 1):
        np.testing.assert_allclose(line.y, run.metrics[f"train_top1.exit{k}"], rtol=1e-6)
        assert line.y.dtype == np.float32
    assert "epoch 3 of 3" in monitor.figure.layout.title.text


def test_monitor_shows_a_finished_run_and_then_another_kind(run: Run, corsd: Run) -> None:
    monitor = TrainingMonitor()
    monitor(corsd)
    monitor(run)
    assert [line.name for line in monitor.figure.data[1:]] == (
        ["exit 1 (the only one)"] if run.config.method == "baseline" else ["exit 1 (shallowest)", "exit 2", "exit 3 (deepest)"]
    )
    np.testing.assert_array_equal(shown(monitor), run.probes[EPOCHS].relations[-1].numpy())
    assert len(monitor.figure.data[1].x) == EPOCHS


def test_monitor_before_the_first_epoch_is_empty_but_stands() -> None:
    monitor = TrainingMonitor()
    assert monitor.figure.data == () and "no epoch yet" in monitor.figure.layout.title.text
