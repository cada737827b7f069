"""A training as it goes."""

from __future__ import annotations

import html

import numpy as np
import plotly.graph_objects as go

from corsd_lib.figures.relations import relation_trace, square_class_axes
from corsd_lib.figures.style import as_scores, exit_names, line_style, set_title, template, unique_labels
from corsd_lib.runs import Run
from corsd_lib.widgets.base import Explorer, Scores, cell_by_cell


class TrainingMonitor(Explorer):
    """Watches a training, `train(config, on_epoch=monitor)`: accuracy of every exit, and the deepest relation as it forms.

    `monitor(run)` shows any run as far as it is, a finished one too. The relation of a method without relation networks is the
    cosine.
    """

    def __init__(self) -> None:
        from plotly.subplots import make_subplots

        titles = ("train accuracy", "relation of the deepest exit")
        figure = make_subplots(rows=1, cols=2, subplot_titles=titles, column_widths=[0.55, 0.45], horizontal_spacing=0.14)
        figure.update_annotations(font_size=13, yshift=4)
        figure.update_xaxes(title="epoch", rangemode="tozero", row=1, col=1)
        figure.update_yaxes(title="images right (%)", range=[0, 101], row=1, col=1)
        place = {"x": figure.layout.xaxis.domain[1], "xanchor": "right", "y": 0, "yanchor": "bottom"}
        figure.update_layout(template=template(), width=960, height=400, legend={**place, "bgcolor": "rgba(0,0,0,0)"})
        set_title(figure, "no epoch yet", 100, below=24)
        self._run: Run | None = None
        figure = go.FigureWidget(figure)
        super().__init__(figure, [figure])

    def __call__(self, run: Run) -> None:
        """Show `run` as it now is on disk."""
        probes, metrics = run.probes, run.metrics
        newest = as_scores(probes[max(probes)].relations[-1].numpy())
        if self._run is None or self._run.path != run.path:
            self._begin(run, newest)
        with self.figure.batch_update():
            heatmap, *lines = self.figure.data
            heatmap.z = newest.ravel()
            for line, column in zip(lines, _exit_columns(run), strict=True):
                line.x, line.y = metrics["epoch"].to_numpy(np.float32), metrics[column].to_numpy(np.float32)
            state = f"{run.config.method}: epoch {run.epochs_done} of {run.config.epochs}"
            self.figure.layout.title.text = html.escape(state)
        self._run = run

    def __repr__(self) -> str:
        return f"TrainingMonitor({self._run or 'no epoch yet'})"

    def _begin(self, run: Run, matrix: Scores) -> None:
        """Traces for the classes and exits of `run`, in place of those of another one."""
        heatmap = relation_trace(matrix, unique_labels(run.data.class_names)).update(xaxis="x2", yaxis="y2")
        names = exit_names(len(_exit_columns(run)))
        lines = [go.Scatter(name=name, mode="lines", line=line_style(k)) for k, name in enumerate(names)]
        self.figure.data = ()
        self.figure.add_traces([cell_by_cell(heatmap), *lines])
        square_class_axes(self.figure, run.data.num_classes, row=1, col=2)  # plotly.js wants traces before their axes


def _exit_columns(run: Run) -> list[str]:
    return [column for column in map(str, run.metrics) if column.startswith("train_top1.")]
