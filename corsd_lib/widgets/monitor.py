"""A training as it goes, and its end by a button."""

from __future__ import annotations

import html
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ipywidgets as ipw
import numpy as np
import plotly.graph_objects as go

from corsd_lib.datasets import ImageData
from corsd_lib.errors import CorsdError, check_choice
from corsd_lib.figures.relations import relation_trace, square_class_axes
from corsd_lib.figures.style import as_scores, class_labels, exit_names, hover_names, line_style, set_title, template
from corsd_lib.pages import Panel, figure_panel
from corsd_lib.runs import Run, TrainConfig
from corsd_lib.training import train
from corsd_lib.widgets.base import Explorer, Scores, cell_by_cell

if TYPE_CHECKING:
    import pandas as pd

_WAITING = "Nothing trains yet: <code>monitor.train(config)</code>, or <code>train(config, on_epoch=monitor)</code>."
_STOPPING = (
    "Stop: the step is finished, everything is saved. The same configuration with <code>resume=True</code> goes on from there."
)
_BY_HAND = " Ctrl-C, or ■ above the notebook, stops a training in a cell and keeps its run."


class TrainingMonitor(Explorer):
    """Watches a training: accuracy of every exit, parts of the loss, and a relation as it forms; and stops it.

    `monitor.train(config)` trains in the background: the cell ends at once, the notebook stays free, the buttons stop the
    training and let it go on; `monitor.wait()` gives the run. `train(config, on_epoch=monitor)` trains in the cell, which no
    click can reach: Ctrl-C, or the notebook's ■, stops that one. Either way a stopped run is saved and resumes bit for bit.
    `monitor(run)` shows any run as far as it is, a finished one too.

    `exit` (1 = shallowest) and `parts` (names of parts of the loss) choose what is drawn and can be set. The relation of a
    method without relation networks is the cosine.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()  # `train` looks at it after every step
        self._ended = threading.Event()  # of the training in the thread
        self._run: Run | None = None
        self._drawn: list[Any] = []  # what the traces are of
        self._relations: list[Scores] = []
        self._config: TrainConfig | None = None
        self._data: ImageData | None = None
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._drawing = threading.RLock()  # a training draws in its thread, a control in another
        self.stop_button = ipw.Button(description="stop", icon="stop", disabled=True, tooltip="finish the step, save, and end")
        self.resume_button = ipw.Button(description="go on", icon="play", disabled=True, tooltip="resume what was stopped")
        self.exit_choice = ipw.Dropdown(description="relation of", disabled=True)
        self.part_choice = ipw.SelectMultiple(description="loss parts", rows=4, disabled=True)
        self.status = ipw.HTML(_WAITING)
        figure = go.FigureWidget(_empty_figure())
        buttons = ipw.VBox([ipw.HBox([self.stop_button, self.resume_button]), self.exit_choice])
        controls = ipw.HBox([buttons, self.part_choice], layout={"flex_flow": "row wrap"})
        super().__init__(figure, [controls, self.status, figure])
        self.stop_button.on_click(lambda _: self._stop_clicked())
        self.resume_button.on_click(lambda _: self._resume_clicked())
        self.exit_choice.observe(lambda _: self._draw_relation(), "value")
        self.part_choice.observe(lambda _: self._show_parts(), "value")

    def __call__(self, run: Run) -> None:
        """Show `run` as it now is on disk."""
        with self._drawing:
            probes, metrics = run.probes, run.metrics
            if metrics.empty:
                self.status.value = html.escape(f"{run.path}: no epoch is finished yet")
                return
            self._newest = max(probes)
            self._relations = [as_scores(matrix.numpy()) for matrix in probes[self._newest].relations]
            traces = [run.path, run.data.class_names, len(self._relations), _curve_columns(metrics)]
            if self._drawn != traces:  # the folder may be the same: another training took it over
                self._begin(run, metrics)
            self._run, self._drawn = run, traces
            with self.figure.batch_update():
                for line, column in zip(self.figure.data[1:], _curve_columns(metrics), strict=True):
                    line.x, line.y = (metrics[name].to_numpy(np.float32) for name in ("epoch", column))
                set_title(self.figure, html.escape(_finding(run, metrics), quote=False), 110, below=36)
            self._draw_relation()
            if not self._stop.is_set():
                how = "" if self.training or run.finished else _BY_HAND
                self.status.value = html.escape(f"{_progress(run, metrics)}{how}")

    def __repr__(self) -> str:
        return f"TrainingMonitor({self._run or 'no epoch yet'})"

    def panels(self) -> list[Panel]:
        return [figure_panel(self.picture())]

    # --- training in the background ---

    def train(self, config: TrainConfig, *, data: ImageData | None = None) -> None:
        """Train `config` in a thread and return at once; arguments as of `corsd_lib.train`.

        Cells that draw from torch's global random numbers meanwhile change what the training draws. Raises `CorsdError` when
        a training of this monitor goes on; errors of the training are shown, and raised by `wait`.
        """
        if self.training:
            raise CorsdError(f"{self._config and self._config.path} is still training here: stop it first, or wait() for it")
        self._config, self._data, self._error = config, data, None
        self._stop.clear()
        self._ended.clear()
        self.stop_button.disabled, self.resume_button.disabled = False, True
        self.status.value = html.escape(f"{config.method} on {config.data} begins: the first epoch of {config.epochs} runs…")
        self._thread = threading.Thread(target=self._train, args=(config, data), name="training", daemon=True)
        self._thread.start()

    @property
    def training(self) -> bool:
        """Whether a training that `train` began goes on."""
        return self._thread is not None and not self._ended.is_set()

    def wait(self, timeout: float | None = None) -> Run:
        """The run of `train`, once that has ended; Ctrl-C stops the training, saves it and returns the run.

        A cell that waits keeps clicks from the kernel: press stop before, or Ctrl-C (the notebook's ■) here.

        Raises `CorsdError` when nothing was begun, when it takes more than `timeout` seconds, and what the training raised.
        """
        if self._thread is None or self._config is None:
            raise CorsdError("this monitor trains nothing: begin with monitor.train(config)")
        try:  # not Thread.join: interrupted, it takes a thread that runs for one that has ended (Python 3.11)
            self._ended.wait(timeout)
        except KeyboardInterrupt:
            self._stop.set()
            self._ended.wait()
        if self.training:
            raise CorsdError(f"{self._config.path} is still training after {timeout:g} seconds")
        if self._error is not None:
            raise self._error
        return Run(self._config.path)

    def _train(self, config: TrainConfig, data: ImageData | None) -> None:
        try:
            run = train(config, data=data, on_epoch=self, progress=False, stop=self._stop)
        except Exception as error:
            self._error = error
            self.status.value = f'<span role="alert">The training ended with an error: {html.escape(str(error))}</span>'
        else:
            if run.epochs_done:
                self(run)
            self.status.value = html.escape(_end(run))
            self.resume_button.disabled = run.finished
        finally:
            self._stop.clear()  # it was heard: the next training, here or in a cell, is told of anew
            self.stop_button.disabled = True
            self._ended.set()

    def _stop_clicked(self) -> None:
        self._stop.set()
        self.stop_button.disabled = True
        self.status.value = _STOPPING

    def _resume_clicked(self) -> None:
        if self._config is not None and not self.training:
            self.train(replace(self._config, resume=True), data=self._data)

    # --- what is drawn ---

    @property
    def exit(self) -> int | None:
        """The exit whose relation is drawn, 1 = shallowest; None before the first epoch."""
        return self.exit_choice.value

    @exit.setter
    def exit(self, number: int) -> None:
        check_choice("exit", number, [value for _, value in self.exit_choice.options])
        self.exit_choice.value = number

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts of the loss that are drawn."""
        return self.part_choice.value

    @parts.setter
    def parts(self, names: Sequence[str]) -> None:
        for name in names:
            check_choice("part of the loss", name, self.part_choice.options)
        self.part_choice.value = tuple(names)

    def _begin(self, run: Run, metrics: pd.DataFrame) -> None:
        """Traces and controls for the classes, exits and losses of `run`, in place of those of another one."""
        names = run.data.class_names
        heatmap = relation_trace(self._relations[-1], class_labels(names), hover_names(names)).update(xaxis="x2", yaxis="y2")
        low, high = self.figure.layout.yaxis2.domain
        heatmap.colorbar.update(y=(low + high) / 2, len=high - low, title={"font": {"size": 13}})
        self.figure.data = ()
        self.figure.add_traces([cell_by_cell(heatmap), *_curves(_curve_columns(metrics))])
        square_class_axes(self.figure, run.data.num_classes, row=1, col=2)  # plotly.js wants traces before their axes
        self.figure.update_layout(
            xaxis2={"visible": True, "nticks": 20}, yaxis2={"visible": True, "nticks": 20}
        )  # half a figure: room for half the names
        kind = "exit" if len(_columns(metrics, "train_top1.")) == len(self._relations) else "stage"
        exits = exit_names(len(self._relations), kind)
        self.exit_choice.options = [(name, k) for k, name in enumerate(exits, 1)]
        self.exit_choice.value = len(exits)
        parts = [column.removeprefix("loss.") for column in _columns(metrics, "loss.")]
        self.part_choice.options, self.part_choice.value = parts, tuple(parts)
        self.exit_choice.disabled = self.part_choice.disabled = False

    def _draw_relation(self) -> None:
        with self._drawing:
            if self.exit is None or self.exit > len(self._relations):
                return  # a list that is being filled
            matrix = self._relations[self.exit - 1]
            with self.figure.batch_update():
                self.figure.data[0].z = matrix.ravel()
                self.figure.layout.annotations[0].text = _relation_title(matrix, self._newest)

    def _show_parts(self) -> None:
        with self._drawing, self.figure.batch_update():
            for line in self.figure.data[1:]:
                if line.yaxis == "y3":
                    line.visible = line.name in self.parts


def _empty_figure() -> go.Figure:
    """Accuracy and relation side by side, the loss below, its legend beside it."""
    from plotly.subplots import make_subplots

    titles = (
        "",
        "the relation comes here after the first epoch",
        "parts of the loss, unweighted",
    )  # the first panel has its legend there
    figure = make_subplots(
        rows=2,
        cols=2,
        specs=[[{}, {}], [{}, None]],
        subplot_titles=titles,
        column_widths=[0.54, 0.46],
        row_heights=[0.62, 0.38],
        horizontal_spacing=0.14,
        vertical_spacing=0.15,
    )
    figure.update_annotations(font_size=13, yshift=4)
    figure.update_xaxes(title="epoch", rangemode="tozero", col=1)
    figure.update_yaxes(title="images right (%), dotted: validation", range=[0, 101], row=1, col=1)
    figure.update_yaxes(title="value", type="log", tickformat="~g", row=2, col=1)
    figure.update_xaxes(visible=False, row=1, col=2)
    figure.update_yaxes(visible=False, row=1, col=2)
    clear = {"bgcolor": "rgba(0,0,0,0)", "font": {"size": 12}, "tracegroupgap": 0}
    legend = {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"}
    right, high = figure.layout.xaxis.domain[1], figure.layout.yaxis3.domain[1]
    beside = {"x": right + 0.02, "xanchor": "left", "y": high, "yanchor": "top"}
    figure.update_layout(template=template(), width=960, height=680, legend=legend | clear, legend2=beside | clear)
    set_title(figure, "no epoch yet", 110, below=36)
    return figure


def _columns(metrics: pd.DataFrame, prefix: str) -> list[str]:
    return [column for column in map(str, metrics) if column.startswith(prefix)]


def _curve_columns(metrics: pd.DataFrame) -> list[str]:
    """Columns in the order of the traces: train and validation accuracy of the exits, parts of the loss."""
    return [column for prefix in ("train_top1.", "val_top1.", "loss.") for column in _columns(metrics, prefix)]


def _curves(columns: Sequence[str]) -> list[go.Scatter]:
    return [_curve(column, columns) for column in columns]


def _curve(column: str, columns: Sequence[str]) -> go.Scatter:
    """An empty line for a column, in its panel; validation is dotted, and comes and goes with its exit's train line."""
    kind, _, name = column.partition(".")
    same = [c for c in columns if c.startswith(f"{kind}.")]
    place = same.index(column)
    line: dict[str, Any] = line_style(place)
    if kind == "loss":
        hover = f"%{{y:.3g}}<extra>{html.escape(name)}</extra>"
        return go.Scatter(name=name, mode="lines", line=line, legend="legend2", xaxis="x3", yaxis="y3", hovertemplate=hover)
    label, validation = exit_names(len(same))[place], kind == "val_top1"
    return go.Scatter(
        name=label,
        mode="lines",
        line=line | ({"dash": "dot"} if validation else {}),
        legendgroup=label,
        showlegend=not validation,
        hovertemplate=f"%{{y:.1f}} %<extra>{label}, {'validation' if validation else 'train'}</extra>",
        xaxis="x",
        yaxis="y",
    )


def _finding(run: Run, metrics: pd.DataFrame) -> str:
    """How far it is, and what that is worth: on validation where there is one."""
    kind, images = ("val_top1.", "validation") if _columns(metrics, "val_top1.") else ("train_top1.", "train")
    right = [metrics[column].iloc[-1] for column in _columns(metrics, kind)]
    shallow = f", exit 1 on {right[0]:.1f} %" if len(right) > 1 else ""
    state = f"{run.config.method}: epoch {run.epochs_done} of {run.config.epochs}"
    return f"{state}, exit {len(right)} is right on {right[-1]:.1f} % of the {images} images{shallow}"


def _relation_title(matrix: Scores, epoch: int) -> str:
    own = np.eye(len(matrix), dtype=bool)
    means = [f"{matrix[of].mean(where=~np.isnan(matrix[of])):.2f}" for of in (own, ~own)]
    return f"relation after epoch {epoch}: {means[0]} within a class, {means[1]} between"


def _progress(run: Run, metrics: pd.DataFrame) -> str:
    if run.finished:
        return _end(run)
    seconds, left = metrics["seconds"].tail(3).mean(), run.config.epochs - run.epochs_done
    if not left:
        return f"{run.path}: all epochs are done, the test images come last."
    return f"{run.path}: {seconds:.3g} s an epoch, {left} to go, about {_duration(left * seconds)}."


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _end(run: Run) -> str:
    if not run.finished:
        return f"Stopped in epoch {run.epochs_done + 1} of {run.config.epochs}, saved in {run.path}: “go on” resumes it."
    right = ", ".join(f"exit {k} {value['top1']:.1f} %" for k, value in enumerate((run.test or {}).get("exits", []), 1))
    return f"Finished, in {run.path}. Test images right: {right or 'not evaluated'}."
