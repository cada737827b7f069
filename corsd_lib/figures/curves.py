"""Training curves."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from corsd_lib.errors import CorsdError
from corsd_lib.figures.style import exit_names, line_style, set_title, template

if TYPE_CHECKING:
    import pandas as pd


def training_curves(runs: Mapping[str, pd.DataFrame], title: str = "", *, dark: bool = False) -> go.Figure:
    """Training accuracy of every exit (%) and every term of the loss over the epochs, one row of panels for each run.

    `runs`: name -> `Run.metrics`. The loss panel shows each term unweighted, as recorded, and "total", their weighted sum, on
    a logarithmic axis. `dark`: colours for a dark page. Raises `CorsdError` if there is no run, and for a run without an epoch.
    """
    from plotly.subplots import make_subplots

    for name, metrics in runs.items():
        if metrics.empty:
            raise CorsdError(f"run {name!r} has no finished epoch")
    if not runs:
        raise CorsdError("training_curves needs at least one run")
    names = [html.escape(name) for name in runs]
    panels = [text for name in names for text in (f"{name}: train accuracy", f"{name}: terms of the loss")]
    figure = make_subplots(
        rows=len(runs), cols=2, subplot_titles=panels, horizontal_spacing=0.11, vertical_spacing=0.4 / (1 + len(runs))
    )
    for row, (name, metrics) in enumerate(runs.items()):
        _add_curves(figure, row, metrics, name)
    figure.update_annotations(font_size=13, yshift=4)
    figure.update_xaxes(title="epoch", rangemode="tozero")
    figure.update_layout(template=template(dark), height=40 + 330 * len(runs), margin={"r": 160})
    set_title(figure, title, 100, below=32)
    return figure


def _add_curves(figure: go.Figure, row: int, metrics: pd.DataFrame, run: str) -> None:
    """Add the accuracy and the loss panel of one run, each with its own legend.

    The legend of the accuracy panel is inside, at the lower right; that of the loss panel is beside it, at the upper right.
    """
    columns = [str(c) for c in metrics.columns]
    exits = [c for c in columns if c.startswith("train_top1.")]
    parts = [c for c in columns if c.startswith("loss.")]
    panels = ((exits, exit_names(len(exits))), (parts, [part.removeprefix("loss.") for part in parts]))
    for panel, (chosen, labels) in enumerate(panels):
        legend = f"legend{2 * row + panel + 1}" if row or panel else "legend"
        for i, (column, label) in enumerate(zip(chosen, labels, strict=True)):
            figure.add_scatter(
                x=metrics["epoch"].to_numpy(),
                y=metrics[column].to_numpy(np.float32),
                name=html.escape(label),
                legend=legend,
                line=line_style(i),
                hovertemplate=f"%{{y:.3g}}<extra>{html.escape(run)}, {html.escape(label)}</extra>",
                row=row + 1,
                col=panel + 1,
            )
        _place_legend(figure, legend, row + 1, panel + 1)
    figure.update_yaxes(title="accuracy (%)", range=[0, 101], row=row + 1, col=1)
    figure.update_yaxes(title="value (total: weighted)", type="log", nticks=8, tickformat="~g", row=row + 1, col=2)


def _place_legend(figure: go.Figure, legend: str, row: int, column: int) -> None:
    (_, right), (low, high) = (getattr(figure.get_subplot(row, column), axis).domain for axis in ("xaxis", "yaxis"))
    place = (
        {"x": right, "xanchor": "right", "y": low, "yanchor": "bottom"}
        if column == 1
        else {"x": right, "y": high, "yanchor": "top"}
    )
    figure.update_layout({legend: {**place, "font": {"size": 11}, "tracegroupgap": 0, "bgcolor": "rgba(0,0,0,0)"}})
