"""What the exits of a network are worth."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from corsd_lib.errors import CorsdError
from corsd_lib.figures.style import INK, exit_names, set_title, template


def exit_accuracy_bars(
    accuracy: Mapping[str, Sequence[float]],
    title: str = "",
    *,
    error: Mapping[str, Sequence[float]] | None = None,
    ylabel: str = "test images right (%)",
    dark: bool = False,
) -> go.Figure:
    """Accuracy (%) of every exit, shallow -> deep, a group of bars an exit and a colour a run; bars start at 0.

    `accuracy`: run -> one value an exit; `error`: the same shape, half-widths of intervals in percentage points. Raises
    `CorsdError` when runs have different numbers of exits.
    """
    counts = {name: len(values) for name, values in accuracy.items()}
    if len(set(counts.values())) != 1:
        raise CorsdError(f"exit_accuracy_bars needs runs with the same number of exits; there are {counts}")
    exits = exit_names(next(iter(counts.values())))
    figure = go.Figure()
    for name, values in accuracy.items():
        bars = {"array": np.asarray(error[name], np.float32), "thickness": 1.2, "color": INK[dark]} if error else None
        figure.add_bar(
            x=exits,
            y=np.asarray(values, np.float32),
            error_y=bars,
            name=html.escape(name),
            text=[f"{v:.1f}" for v in values],
            textposition="inside",
            insidetextanchor="middle",
            hovertemplate=f"{html.escape(name)}, %{{x}}<br>%{{y:.2f}} %<extra></extra>",
        )
    figure.update_layout(template=template(dark), width=720, height=400, bargap=0.3, bargroupgap=0.06)
    figure.update_layout(legend={"orientation": "h", "y": -0.12, "yanchor": "top", "x": 0})
    figure.update_yaxes(title=ylabel, range=[0, 102])
    set_title(figure, title, 84)
    return figure
