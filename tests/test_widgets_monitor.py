"""The monitor of a training: what it draws, and its buttons, in this process and in a real kernel."""

from __future__ import annotations

import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from explorers import EPOCHS, small_run
from tiny import TINY

from corsd_lib import Run, TrainConfig, TrainingMonitor, load_run, train
from corsd_lib.errors import CorsdError
from corsd_lib.files import read_json, read_tensors, write_json
from corsd_lib.widgets.monitor_picture import _names_fit


@pytest.fixture(scope="module", params=["corsd", "baseline"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small_run(tmp_path_factory.mktemp("runs") / request.param, request.param)


@pytest.fixture(scope="module")
def corsd(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small_run(tmp_path_factory.mktemp("runs") / "corsd", "corsd")


def lines(monitor: TrainingMonitor) -> dict[tuple[str, str], Any]:
    """(panel, name) -> line of the picture; validation lines share their exit's name and are dotted."""
    panel = {"y": "accuracy", "y3": "loss"}
    traces = monitor.picture().data[1:]
    dotted = {trace.name: trace for trace in traces if trace.line.dash == "dot" and trace.yaxis == "y"}
    found = {(panel[t.yaxis], t.name): t for t in traces if t not in dotted.values()}
    return found | {("validation", name): trace for name, trace in dotted.items()}


def shown(monitor: TrainingMonitor) -> np.ndarray:
    """The relation that the browser draws."""
    packed = monitor._feed["relations"]
    codes = np.frombuffer(packed["bytes"], packed["dtype"]).reshape(packed["shape"])[monitor.exit - 1]
    return np.where(codes > 254, np.nan, codes / np.float32(254))


def sent_column(monitor: TrainingMonitor, name: str) -> np.ndarray:
    return np.frombuffer(monitor._feed["columns"][name]["bytes"], np.float32)


@pytest.fixture
def every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """No epoch is left out, however little time a training takes."""
    monkeypatch.setattr("corsd_lib.widgets.monitor.SHARE", 1e9)


# --- what is drawn ---


def test_monitor_grows_while_a_training_runs(tmp_path: Path, every_epoch: None) -> None:
    monitor, seen = TrainingMonitor(), []

    def watch(run: Run) -> None:
        monitor(run)
        seen.append((len(sent_column(monitor, "epoch")), shown(monitor)))

    run = small_run(tmp_path / "run", "corsd", on_epoch=watch)
    assert [points for points, _ in seen] == [1, 2, 3]
    for epoch, (_, matrix) in enumerate(seen, 1):
        np.testing.assert_allclose(matrix, run.probes[epoch].relations[-1].numpy(), atol=0.002)
    assert monitor._feed["title"].startswith("corsd: epoch 3 of 3, accuracy on the train images: exit 3 ")


def test_an_epoch_is_left_out_where_drawing_would_take_too_long_but_never_the_last(tmp_path: Path) -> None:
    monitor, seen = TrainingMonitor(), []

    def watch(run: Run) -> None:
        monitor(run)
        seen.append(len(sent_column(monitor, "epoch")))
        monitor._took = 1000.0

    small_run(tmp_path / "run", "corsd", on_epoch=watch)
    assert seen == [1, 1, 3]


def test_every_column_of_the_metrics_is_a_line(run: Run) -> None:
    monitor = TrainingMonitor()
    monitor(run)
    exits = len(run.probes[EPOCHS].logits)
    names = ["exit 1 (the only one)"] if exits == 1 else ["exit 1 (shallowest)", "exit 2", "exit 3 (deepest)"]
    accuracy = {("accuracy", name): f"train_top1.exit{k}" for k, name in enumerate(names, 1)}
    loss = {("loss", c.removeprefix("loss.")): c for c in run.metrics if c.startswith("loss.")}
    drawn = lines(monitor)
    assert drawn.keys() == (accuracy | loss).keys() and len(loss) > 1
    for key, column in (accuracy | loss).items():
        np.testing.assert_allclose(sent_column(monitor, column), run.metrics[column], rtol=1e-6)
        np.testing.assert_allclose(drawn[key].y, run.metrics[column], rtol=1e-6)
        np.testing.assert_array_equal(drawn[key].x, [1, 2, 3])
    deepest = run.metrics[f"train_top1.exit{exits}"].iloc[-1]
    title = monitor._feed["title"]
    assert f"accuracy on the train images: exit {exits} {deepest:.1f} %" in title
    assert ("; exit 1 " in title) == (exits > 1)
    assert monitor.picture().layout.yaxis.title.text == "accuracy (%)"


@pytest.mark.parametrize(
    ("names", "fit"), [(["dog", "owl"], True), (["fish"] * 100, True), (["dog", "an owl with a long name"], False)]
)
def test_names_are_at_the_relation_where_they_have_room(names: list[str], fit: bool) -> None:
    assert _names_fit(names) == fit


def test_validation_is_dotted_in_its_exits_colour_and_is_what_the_title_tells(tiny_run: Run) -> None:
    monitor = TrainingMonitor()
    monitor(tiny_run)
    drawn = lines(monitor)
    for k, name in enumerate(("exit 1 (shallowest)", "exit 2", "exit 3 (deepest)"), 1):
        validation, accuracy = drawn["validation", name], drawn["accuracy", name]
        np.testing.assert_allclose(validation.y, tiny_run.metrics[f"val_top1.exit{k}"], rtol=1e-6)
        assert validation.line.color == accuracy.line.color and validation.legendgroup == accuracy.legendgroup
    assert "accuracy on the validation images: exit 3 " in monitor._feed["title"]
    assert monitor.picture().layout.yaxis.title.text == "accuracy (%), dotted: validation"


def test_the_relation_of_any_exit_is_drawn_and_named_with_its_epoch(corsd: Run) -> None:
    monitor = TrainingMonitor()
    monitor(corsd)
    assert monitor.exit == 3
    monitor.set_state({"exit": 1})  # as a browser does
    matrix = corsd.probes[EPOCHS].relations[0].numpy()
    assert monitor.exit == 1
    np.testing.assert_allclose(shown(monitor), matrix, atol=0.002)
    within, between = np.diag(matrix).mean(), matrix[~np.eye(10, dtype=bool)].mean()
    assert monitor.picture().layout.annotations[0].text == (
        f"relation after epoch 3: {within:.2f} within a class, {between:.2f} between"
    )
    monitor(corsd)  # an update keeps what was chosen
    assert monitor.exit == 1
    np.testing.assert_allclose(shown(monitor), matrix, atol=0.002)
    with pytest.raises(CorsdError, match=r"exit 4.*1, 2, 3"):
        monitor.exit = 4
    assert monitor.exit == 1


def test_parts_of_the_loss_are_chosen_by_name(corsd: Run) -> None:
    monitor = TrainingMonitor()
    monitor(corsd)
    every = tuple(c.removeprefix("loss.") for c in corsd.metrics if c.startswith("loss."))
    assert monitor.parts == tuple(monitor._feed["parts"]) == every
    monitor.set_state({"parts": [every[0], every[2]]})
    assert monitor.parts == (every[0], every[2])
    visible = [name for (panel, name), line in lines(monitor).items() if panel == "loss" and line.visible]
    assert visible == list(monitor.parts)
    assert all(line.visible in (None, True) for (panel, _), line in lines(monitor).items() if panel != "loss")
    monitor.parts = ["total"]
    with pytest.raises(CorsdError, match=r"part of the loss 'exit'.*total"):
        monitor.parts = ["exit"]
    assert monitor.parts == ("total",)


def test_monitor_shows_a_finished_run_and_then_another_kind(run: Run, corsd: Run) -> None:
    monitor = TrainingMonitor()
    monitor(corsd)
    monitor(run)
    np.testing.assert_allclose(shown(monitor), run.probes[EPOCHS].relations[-1].numpy(), atol=0.002)
    assert len(monitor.picture().data) == 1 + sum(c.startswith(("train_top1", "loss")) for c in run.metrics)
    assert run.test is not None
    top1 = run.test["exits"][-1]["top1"]
    assert f"exit {len(run.test['exits'])} {top1:.1f} %" in monitor.status and not monitor._feed["running"]


def test_the_page_holds_what_is_shown_and_no_path(corsd: Run, tmp_path: Path) -> None:
    monitor = TrainingMonitor()
    monitor(corsd)
    (panel,) = monitor.panels()
    assert panel.kind == "monitor" and panel.data["start"] == {"exit": 3, "parts": list(monitor.parts)}
    text = monitor.to_html(tmp_path / "page.html").read_text()
    assert str(corsd.path) not in text and "KINDS.monitor" in text


def test_a_snapshot_older_than_the_epoch_keeps_its_number(tmp_path: Path, every_epoch: None) -> None:
    config = TrainConfig(**{**TINY, "epochs": 3}, probe_every=2, out=str(tmp_path / "run"))
    monitor, titles = TrainingMonitor(), []

    def watch(run: Run) -> None:
        monitor(run)
        titles.append(monitor._feed["epoch"])

    train(config, on_epoch=watch, progress=False)
    assert titles == [0, 2, 3]


def test_a_run_without_an_epoch_is_said_to_have_none(corsd: Run, tmp_path: Path) -> None:
    path = shutil.copytree(corsd.path, tmp_path / "run")
    (path / "metrics.jsonl").unlink()
    monitor = TrainingMonitor()
    monitor(load_run(path))
    assert monitor.picture().data == () and "no epoch is finished yet" in monitor.status


def test_another_training_in_the_same_folder_is_drawn_anew(tmp_path: Path) -> None:
    monitor = TrainingMonitor()
    monitor(small_run(tmp_path / "run", "corsd"))
    lines_before = len(monitor.picture().data)
    shutil.rmtree(tmp_path / "run")
    monitor(small_run(tmp_path / "run", "baseline"))
    assert len(monitor.picture().data) < lines_before and len(monitor._feed["exits"]) == monitor.exit == 1


def test_monitor_before_the_first_epoch_is_empty_but_stands() -> None:
    monitor = TrainingMonitor()
    assert monitor.picture().data == () and "no epoch yet" in monitor.picture().layout.title.text
    assert monitor.exit is None and monitor.parts == () and "monitor.train(config)" in monitor.status
    with pytest.raises(CorsdError, match=r"has no training"):
        monitor.wait()


# --- training, stop and resume ---


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(**TINY, validation_fraction=0.2, out=str(tmp_path / "run"))


def assert_same_weights(run: Run, other: Run) -> None:
    first, second = (read_tensors(r.path / "weights.safetensors")[0] for r in (run, other))
    assert first.keys() == second.keys() and all(first[k].equal(second[k]) for k in first)


def hold_at_step(monkeypatch: pytest.MonkeyPatch, step: int) -> tuple[threading.Event, threading.Event]:
    """Two events: set when that step has begun; what it then waits for."""
    from corsd_lib.training import Trainer

    begun, go = threading.Event(), threading.Event()
    plain = Trainer._step

    def held(self: Trainer, batch: Any) -> Any:
        if self._steps_done() + 1 == step:
            begun.set()
            assert go.wait(300)
        return plain(self, batch)

    monkeypatch.setattr(Trainer, "_step", held)
    return begun, go


def main_thread_waits() -> bool:
    """Whether the main thread is in `TrainingMonitor.wait`, blocked by an event."""
    frames = [frame for frame, _ in traceback.walk_stack(sys._current_frames()[threading.main_thread().ident or 0])]
    in_wait = any(frame.f_code is TrainingMonitor.wait.__code__ for frame in frames)
    return in_wait and frames[0].f_code.co_filename == threading.__file__


def test_a_training_in_the_background_is_stopped_by_a_click_and_goes_on_by_another(
    config: TrainConfig, tiny_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = TrainingMonitor()
    begun, go = hold_at_step(monkeypatch, 5)
    monitor.train(config)
    assert begun.wait(300) and monitor.training
    assert monitor._feed["running"] and "s an epoch, 1 to go" in monitor.status
    with pytest.raises(CorsdError, match=r"still being trained"):
        monitor.train(config)
    with pytest.raises(CorsdError, match=r"still training after 0.01 seconds"):
        monitor.wait(0.01)
    monitor.ask_stop()
    assert not monitor._feed["running"] and "resume=True" in monitor.status
    go.set()
    run = monitor.wait(300)
    assert (run.epochs_done, run.finished, monitor.training) == (1, False, False)
    assert "Stopped in epoch 2 of 2" in monitor.status and monitor._feed["resumable"]
    monitor.ask_resume()
    run = monitor.wait(300)
    assert run.finished and "Finished" in monitor.status
    assert not monitor._feed["running"] and not monitor._feed["resumable"]
    assert_same_weights(run, tiny_run)
    assert len(sent_column(monitor, "epoch")) == 2


def test_whoever_waits_finds_the_last_data(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = TrainingMonitor()
    tell = monitor._tell

    def slow(**news: Any) -> None:
        if news == {"running": False}:
            time.sleep(0.3)
        tell(**news)

    monkeypatch.setattr(monitor, "_tell", slow)
    monitor.train(config)
    assert monitor.wait(300).finished and not monitor._feed["running"]


def test_a_training_in_the_cell_says_what_stops_it(config: TrainConfig, every_epoch: None) -> None:
    monitor, seen = TrainingMonitor(), []

    def watch(run: Run) -> None:
        monitor(run)
        seen.append((monitor._feed["running"], monitor.status))

    train(config, on_epoch=watch, progress=False)
    assert all(not running and "Ctrl-C" in text for running, text in seen) and len(seen) == 2
    assert "1 to go" in seen[0][1] and "all epochs are finished" in seen[1][1]


def test_ctrl_c_while_waiting_stops_the_training_and_gives_its_run(
    config: TrainConfig, tiny_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = TrainingMonitor()
    begun, go = hold_at_step(monkeypatch, 4)
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored
    try:
        monitor.train(config)
        assert begun.wait(300)

        def interrupt() -> None:
            while not main_thread_waits():
                time.sleep(0.001)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # as the terminal does
            if monitor._stop.wait(300):
                go.set()

        threading.Thread(target=interrupt).start()
        run = monitor.wait(120)
    finally:
        signal.signal(signal.SIGINT, usual)
    assert not run.finished and run.epochs_done == 1
    monkeypatch.undo()
    assert_same_weights(train(replace(config, resume=True), progress=False), tiny_run)


def test_an_error_of_a_training_is_shown_and_raised(config: TrainConfig) -> None:
    write_json(Path(config.out or "") / "config.json", {"not": "<b>ours</b>"})
    monitor = TrainingMonitor()
    monitor.train(config)
    with pytest.raises(CorsdError, match="is not the configuration of a run"):
        monitor.wait(300)
    assert "ended with an error" in monitor.status and "is not the configuration of a run" in monitor.status
    assert not monitor.training and not monitor._feed["running"]


def test_data_of_ones_own_reaches_the_training_and_its_resume(
    config: TrainConfig, tiny_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from corsd_lib.runs import load_data

    data, given = load_data(config), []
    monkeypatch.setattr("corsd_lib.widgets.monitor.train", lambda c, **options: given.append(options["data"]) or no_run(c))

    def no_run(config: TrainConfig) -> Run:
        write_json(config.path / "config.json", read_json(tiny_run.path / "config.json"))
        return load_run(config.path)

    monitor = TrainingMonitor()
    monitor.train(config, data=data)
    monitor.wait(300)
    monitor.resume()
    monitor.wait(300)
    assert given == [data, data]


# --- in a real kernel ---

SETUP = """
from corsd_lib import TrainConfig, TrainingMonitor, train
monitor = TrainingMonitor()
def config(out):
    return TrainConfig(per_class=5, width=4, epochs=5000, batch_size=16, lr=0.05, probe_size=20, probe_every=0, out=out)
"""


class Kernel:
    """A kernel and a front end that sends it cells and clicks."""

    def __init__(self) -> None:
        from jupyter_client.manager import start_new_kernel

        self.manager, self.client = start_new_kernel(startup_timeout=300)

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    def run(self, code: str) -> str:
        """What a cell prints."""
        printed: list[str] = []

        def hook(message: dict[str, Any]) -> None:
            printed.append(message["content"].get("text", "") or "\n".join(message["content"].get("traceback", [])))

        reply = self.client.execute_interactive(code, timeout=300, output_hook=hook)
        assert reply["content"]["status"] == "ok", printed
        return "".join(printed)

    def click(self, monitor: str) -> None:
        """What a browser sends for a click on the stop button of this model."""
        question = {"question": "a/1", "what": "stop", "given": {}}
        click = {"comm_id": monitor, "data": {"method": "custom", "content": question}}
        self.client.shell_channel.send(self.client.session.msg("comm_msg", click))

    def wait_for_epoch(self, path: Path) -> None:
        """Until the page is told how long an epoch of the training in `path` takes."""
        end = time.monotonic() + 300
        while time.monotonic() < end:
            message = self.client.get_iopub_msg(timeout=300)
            state = message["content"].get("data", {}).get("state", {}) if message["msg_type"] == "comm_msg" else {}
            if f"{path}: " in str(state.get("_feed", {}).get("status", "")):
                return
        raise AssertionError("the page was not told within five minutes")


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    try:
        kernel.run(SETUP)
        yield kernel
    finally:
        kernel.close()


def assert_stopped_and_resumable(path: Path) -> None:
    run, stop = load_run(path), threading.Event()
    done = run.epochs_done
    assert 0 < done < 5000 and not run.finished
    again = train(replace(run.config, resume=True), on_epoch=lambda run: stop.set(), progress=False, stop=stop)
    assert again.epochs_done == done + 1  # stopped again, after the step in which it was asked to


@pytest.mark.slow
def test_a_click_stops_a_training_behind_the_cells(kernel: Kernel, tmp_path: Path) -> None:
    kernel.client.execute(f"monitor.train(config({str(tmp_path)!r}))", silent=True)
    kernel.wait_for_epoch(tmp_path)  # sent by the training's thread, with no cell at work
    kernel.click(kernel.run("print(monitor.model_id)").strip())
    assert "Stopped in epoch" in kernel.run("run = monitor.wait(300); print(monitor.status)")
    assert_stopped_and_resumable(tmp_path)


@pytest.mark.slow
def test_the_interrupt_of_the_notebook_stops_a_training_in_a_cell(kernel: Kernel, tmp_path: Path) -> None:
    cell = kernel.client.execute(f"run = train(config({str(tmp_path)!r}), on_epoch=monitor, progress=False)")
    kernel.wait_for_epoch(tmp_path)
    kernel.manager.interrupt_kernel()
    reply = kernel.client.get_shell_msg(timeout=300)
    while reply["parent_header"].get("msg_id") != cell:
        reply = kernel.client.get_shell_msg(timeout=300)
    assert reply["content"]["status"] == "ok"
    assert_stopped_and_resumable(tmp_path)
