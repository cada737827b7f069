"""A training as a static figure: accuracy of every exit, terms of the loss, and the relation of an exit."""

from __future__ import annotations

import html
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from corsd_lib.figures.relations import NameRoom, relation_trace, square_class_axes
from corsd_lib.figures.style import class_labels, exit_names, hover_names, line_style, set_title, template
from corsd_lib.runs import Run
from corsd_lib.widgets.relation_view import Scores

if TYPE_CHECKING:
    import pandas as pd

_SIDE, _ROOM = 290, 90  # in pixels: side of the heatmap, and room for the longest name beside it


def monitor_picture(run: Run, metrics: pd.DataFrame, relation: Scores, epoch: int, parts: Collection[str]) -> go.Figure:
    """A static figure of `run`: the accuracies in `metrics`, the terms of the loss named in `parts`, and `relation`.

    `relation` (C, C): the class-level relation after `epoch`.
    """
    figure, names = empty_picture(), run.data.class_names
    heatmap = relation_trace(relation, class_labels(names), hover_names(names)).update(xaxis="x2", yaxis="y2")
    low, high = figure.layout.yaxis2.domain
    heatmap.colorbar.update(y=(low + high) / 2, len=high - low, title={"font": {"size": 13}})
    columns = curve_columns(metrics)
    figure.add_traces([heatmap, *(_curve(column, columns) for column in columns)])
    for line, column in zip(figure.data[1:], columns, strict=True):
        line.x, line.y = (metrics[name].to_numpy(np.float32) for name in ("epoch", column))
        if line.yaxis == "y3":
            line.visible = line.name in parts
    if _columns(metrics, "val_top1."):
        figure.update_yaxes(title="accuracy (%), dotted: validation", row=1, col=1)
    square_class_axes(figure, run.data.num_classes, row=1, col=2)
    fit = _names_fit(class_labels(names))
    shown = {"visible": True, "nticks": 20, "showticklabels": fit, "ticks": "outside" if fit else ""}
    figure.update_layout(xaxis2=shown, yaxis2=shown)
    figure.layout.annotations[0].text = relation_title(relation, epoch)
    set_title(figure, html.escape(finding(run, metrics), quote=False), 110, below=36)
    return figure


def empty_picture() -> go.Figure:
    """A figure without values: accuracy and relation side by side, below them the loss with its legend."""
    from plotly.subplots import make_subplots

    titles = (
        "",
        "the relation is shown after the first epoch",
        "terms of the loss, unweighted; total: their weighted sum",
    )  # the first panel has its legend in place of a title
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
    figure.update_yaxes(title="accuracy (%)", range=[0, 101], row=1, col=1)
    figure.update_yaxes(title="value", type="log", tickformat="~g", row=2, col=1)
    figure.update_xaxes(visible=False, row=1, col=2)
    figure.update_yaxes(visible=False, row=1, col=2)
    clear = {"bgcolor": "rgba(0,0,0,0)", "font": {"size": 12}, "tracegroupgap": 0}
    legend = {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"}
    right, high = figure.layout.xaxis.domain[1], figure.layout.yaxis3.domain[1]
    outside = {"x": right + 0.02, "xanchor": "left", "y": high, "yanchor": "top"}
    figure.update_layout(template=template(), width=960, height=680, legend=legend | clear, legend2=outside | clear)
    set_title(figure, "no epoch yet", 110, below=36)
    return figure


def _names_fit(names: Sequence[str]) -> bool:
    """Whether the class names, escaped as HTML, fit beside the heatmap, which has half the width of the picture."""
    return NameRoom.of(names, _SIDE).longest <= _ROOM


def _columns(metrics: pd.DataFrame, prefix: str) -> list[str]:
    return [column for column in map(str, metrics) if column.startswith(prefix)]


def curve_columns(metrics: pd.DataFrame) -> list[str]:
    """Columns in the order of the traces: train and validation accuracy of the exits, terms of the loss."""
    return [column for prefix in ("train_top1.", "val_top1.", "loss.") for column in _columns(metrics, prefix)]


def _curve(column: str, columns: Sequence[str]) -> go.Scatter:
    """A line trace without data for `column`, one of the `columns` of the metrics.

    A validation curve is dotted and shares the legend entry of the training curve.
    """
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


def finding(run: Run, metrics: pd.DataFrame) -> str:
    """Text with the number of finished epochs, and the accuracy (%) of the deepest and the first exit.

    The accuracy is on validation images if there are any, else on training images.
    """
    kind, images = ("val_top1.", "validation") if _columns(metrics, "val_top1.") else ("train_top1.", "train")
    top1 = [metrics[column].iloc[-1] for column in _columns(metrics, kind)]
    shallow = f"; exit 1 {top1[0]:.1f} %" if len(top1) > 1 else ""
    state = f"{run.config.method}: epoch {run.epochs_done} of {run.config.epochs}"
    return f"{state}, accuracy on the {images} images: exit {len(top1)} {top1[-1]:.1f} %{shallow}"


def relation_title(matrix: Scores, epoch: int) -> str:
    own = np.eye(len(matrix), dtype=bool)
    means = [f"{matrix[of].mean(where=~np.isnan(matrix[of])):.2f}" for of in (own, ~own)]
    return f"relation after epoch {epoch}: {means[0]} within a class, {means[1]} between"
