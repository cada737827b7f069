"""TrainingMonitor: shows a training, with buttons to stop and resume it."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
import torch

from corsd_lib.datasets import ImageData
from corsd_lib.errors import CorsdError, check_choice
from corsd_lib.figures.style import as_scores, exit_names, short_names
from corsd_lib.runs import Run, TrainConfig
from corsd_lib.sharing.pages import Panel
from corsd_lib.sharing.pages.panels import as_codes
from corsd_lib.training import train
from corsd_lib.widgets.host import Chosen, Explorer, checked, with_bytes
from corsd_lib.widgets.monitor_picture import curve_columns, empty_picture, finding, monitor_picture

if TYPE_CHECKING:
    import pandas as pd

_WAITING = "No training yet: call monitor.train(config), or train(config, on_epoch=monitor)."
_STOPPING = (
    "Stop: the current step is finished and the run is saved. Train with the same configuration and resume=True to continue."
)
_BY_HAND = " Ctrl-C, or ■ above the notebook, stops a training in a cell and keeps its run."
SHARE = 0.02  # largest share of the time of a training that drawing may take


class TrainingMonitor(Explorer):
    """Shows a training: accuracy of every exit, terms of the loss, and the relation of the classes; with buttons to stop and
    resume it.

    `monitor.train(config)` trains in the background: the cell ends at once and other cells can be run; `monitor.wait()` returns
    the run. `train(config, on_epoch=monitor)` trains in the cell. In this case the stop button interrupts the kernel like
    Ctrl-C, if the Jupyter server allows it. A stopped run is always saved, and can be resumed with the same result.
    `monitor(run)` shows any run, finished or not. Epochs are skipped if drawing would take more than 2 % of the time of the
    training.

    `exit` (1 = shallowest) and `parts` (names of terms of the loss) choose what is drawn; they can be set and observed. For a
    method without relation networks the relation is the cosine. `status` is a sentence about the progress.
    """

    script = "monitor"
    chosen = ("exit", "parts")

    exit = Chosen(help="the exit whose relation is drawn, 1 = shallowest; None before the first epoch")
    parts = Chosen((), help="names of the terms of the loss that are drawn")

    def __init__(self) -> None:
        self._stop = threading.Event()  # `train` checks it after every step
        self._ended = threading.Event()  # set when the training in the thread has ended
        self._run: Run | None = None
        self._drawn: list[Any] = []  # path, class names, number of exits and columns of the run that is shown
        self._config: TrainConfig | None = None
        self._data_given: ImageData | None = None
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._drawing = threading.RLock()  # a training draws in its thread, a cell in another
        self._took = self._since = 0.0  # duration of the last drawing in seconds, and time when it ended
        self._now: dict[str, Any] = {"status": _WAITING, "running": False, "resumable": False, "kernel": None}
        super().__init__({}, _feed=self._now)
        _after_cells(self._cell_ended)

    def __call__(self, run: Run) -> None:
        """Show the current state of `run` on disk. A call is skipped if drawing would slow down the training by more than
        `SHARE`.
        """
        with self._drawing:
            if self._too_often(run):
                return
            begun = time.monotonic()
            metrics = run.metrics
            if metrics.empty:
                self._tell(status=f"{run.path}: no epoch is finished yet")
                return
            self._show(run, metrics)
            self._since = time.monotonic()
            self._took = self._since - begun

    def _too_often(self, run: Run) -> bool:
        """Whether drawing this epoch would slow down the training by more than `SHARE`.

        Always False for the first epoch shown of a run and for its last epoch.
        """
        new = self._run is None or self._run.path != run.path or run.finished or run.epochs_done == run.config.epochs
        return not new and time.monotonic() - self._since < self._took / SHARE

    def _show(self, run: Run, metrics: pd.DataFrame) -> None:
        newest = max(run.probes)
        snapshot = run.probes[newest]
        lines = [run.path, run.data.class_names, len(snapshot.relations), curve_columns(metrics)]
        kind = "exit" if len(_columns(metrics, "train_top1.")) == len(snapshot.relations) else "stage"
        exits = exit_names(len(snapshot.relations), kind)
        parts = [column.removeprefix("loss.") for column in _columns(metrics, "loss.")]
        begins = self._drawn != lines  # they change with another training, perhaps in the folder of the previous one
        self._run, self._drawn = run, lines
        self._now |= {
            "title": finding(run, metrics),
            "exits": exits,
            "exit_names": exit_names(len(_columns(metrics, "train_top1."))),
            "parts": parts,
            "names": short_names(run.data.class_names),
            "epoch": newest,
            "epochs": run.config.epochs,
            "columns": {name: metrics[name].to_numpy(np.float32) for name in ("epoch", *curve_columns(metrics))},
            "relations": as_codes(torch.stack(snapshot.relations)),
        }
        in_cell = not self.training and not run.finished
        self._now["kernel"] = _kernel_id() if in_cell else None
        if begins:
            self.exit, self.parts = len(exits), tuple(parts)
        if not self._stop.is_set():
            how = "" if self.training or run.finished else _BY_HAND
            self._tell(status=f"{_progress(run, metrics)}{how}")
        else:
            self._tell()

    def _tell(self, **news: Any) -> None:
        """Send new data to the browser, together with all earlier data, so that a page that is opened later gets all of it."""
        with self._drawing:
            self._now = self._now | news
            self._feed = with_bytes(self._now)

    @property
    def status(self) -> str:
        """Sentence about the progress of the training."""
        return self._now["status"]

    def __repr__(self) -> str:
        return f"TrainingMonitor({self._run or 'no epoch yet'})"

    # --- training in the background ---

    def train(self, config: TrainConfig, *, data: ImageData | None = None) -> None:
        """Train `config` in a thread and return immediately; arguments as in `corsd_lib.train`.

        The training draws from torch's global random generator. Cells that use this generator during the training change the
        result of the training. Raises `CorsdError` while another training of this monitor runs. An exception that ends the
        training is shown, and raised by `wait`.
        """
        if self.training:
            raise CorsdError(f"{self._config and self._config.path} is still being trained: stop it first, or wait() for it")
        self._config, self._data_given, self._error = config, data, None
        self._stop.clear()
        self._ended.clear()
        begins = f"{config.method} on {config.data} started: the first epoch of {config.epochs} runs…"
        self._tell(status=begins, running=True, resumable=False, kernel=None)
        self._thread = threading.Thread(target=self._train, args=(config, data), name="training", daemon=True)
        self._thread.start()

    @property
    def training(self) -> bool:
        """Whether a training started by `train` is running."""
        return self._thread is not None and not self._ended.is_set()

    def wait(self, timeout: float | None = None) -> Run:
        """Wait for the end of the training and return the run.

        While the cell waits, the kernel receives no clicks, so the stop button does not work. To stop the training, interrupt
        the cell (Ctrl-C in a terminal): the training is saved and the run is returned.

        Raises `CorsdError` if no training was started, and if it has not ended after `timeout` seconds. An exception that ended
        the training is raised again.
        """
        if self._thread is None or self._config is None:
            raise CorsdError("this monitor has no training: start one with monitor.train(config)")
        try:  # not Thread.join, which after an interrupt reports a running thread as ended (Python 3.11)
            self._ended.wait(timeout)
        except KeyboardInterrupt:
            self._stop.set()
            self._ended.wait()
        if self.training:
            raise CorsdError(f"{self._config.path} is still training after {timeout:g} seconds")
        with self._drawing:  # the training has ended, and its last data may still be on their way
            pass
        if self._error is not None:
            raise self._error
        return Run(self._config.path)

    def stop(self) -> None:
        """Stop the training after the current step and save it, as the button does."""
        if self.training:
            self._stop.set()
            self._tell(status=_STOPPING, running=False)

    def resume(self) -> None:
        """Resume a stopped training, like the button."""
        if self._config is not None and not self.training:
            self.train(replace(self._config, resume=True), data=self._data_given)

    def ask_stop(self) -> None:
        self.stop()

    def ask_resume(self) -> None:
        self.resume()

    def _train(self, config: TrainConfig, data: ImageData | None) -> None:
        try:
            run = train(config, data=data, on_epoch=self, progress=False, stop=self._stop)
        except Exception as error:
            self._error = error
            self._now |= {"status": f"The training ended with an error: {error}"}
        else:
            self._since = 0.0
            if run.epochs_done:
                self(run)
            self._now |= {"status": _end(run), "resumable": not run.finished}
        finally:
            self._stop.clear()  # the request was handled: it must not stop the next training
            with self._drawing:  # `wait` returns only after the last data are sent
                self._ended.set()
                self._tell(running=False)

    def _cell_ended(self, *_: Any) -> None:
        if self._now["kernel"] is not None and self._run is not None:
            run = Run(self._run.path)
            self._since = 0.0
            self(run)  # the last epochs may not have been drawn
            self._tell(kernel=None, status=_progress(run, run.metrics) if run.finished else _end(run, in_cell=True))

    # --- state and files ---

    _valid = checked(*chosen)

    def check(self, name: str, value: Any) -> Any:
        if name == "exit":
            if value is not None:
                check_choice("exit", value, range(1, len(self._now.get("exits", ())) + 1))
            return value
        for part in value:
            check_choice("part of the loss", part, self._now.get("parts", ()))
        return tuple(value)

    def picture(self) -> go.Figure:
        if self._run is None or self.exit is None:
            return empty_picture()
        newest = max(self._run.probes)
        relation = as_scores(self._run.probes[newest].relations[self.exit - 1].numpy())
        return monitor_picture(self._run, self._run.metrics, relation, newest, self.parts)

    def panels(self) -> list[Panel]:
        start = {"exit": self.exit, "parts": list(self.parts)}
        feed = self._now | {"status": "", "running": False, "resumable": False, "kernel": None}  # without paths of this machine
        return [Panel("monitor", "Training curves", {"start": start, "feed": feed})]


def _kernel_id() -> str | None:
    """Id of this kernel on the Jupyter server; None if there is no server."""
    if "ipykernel.kernelapp" not in sys.modules:  # importing it would take over the comms of existing widgets
        return None
    try:
        from ipykernel.connect import get_connection_file

        found = re.fullmatch(r".*kernel-([0-9a-f-]{36})\.json", get_connection_file())
    except Exception:  # no kernel, or a kernel of another kind
        return None
    return found[1] if found else None


def _after_cells(call: Any) -> None:
    """Register `call` to run after each notebook cell; does nothing outside IPython."""
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    if shell is not None:
        shell.events.register("post_run_cell", call)


def _columns(metrics: pd.DataFrame, prefix: str) -> Sequence[str]:
    return [column for column in map(str, metrics) if column.startswith(prefix)]


def _progress(run: Run, metrics: pd.DataFrame) -> str:
    if run.finished:
        return _end(run)
    seconds, left = metrics["seconds"].tail(3).mean(), run.config.epochs - run.epochs_done
    if not left:
        return f"{run.path}: all epochs are finished; evaluating on the test images."
    return f"{run.path}: {seconds:.3g} s an epoch, {left} to go, about {_duration(left * seconds)}."


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _end(run: Run, *, in_cell: bool = False) -> str:
    if not run.finished:
        how = "run the cell again with resume=True in its TrainConfig to continue" if in_cell else "“resume” continues it"
        return f"Stopped in epoch {run.epochs_done + 1} of {run.config.epochs}, saved in {run.path}: {how}."
    top1 = ", ".join(f"exit {k} {value['top1']:.1f} %" for k, value in enumerate((run.test or {}).get("exits", []), 1))
    return f"Finished, in {run.path}. Test accuracy: {top1 or 'not evaluated'}."
