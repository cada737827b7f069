"""Reliability diagrams."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from corsd_lib.errors import CorsdError
from corsd_lib.figures.style import GREY, INK, PALETTE, PAPER, set_title, template

if TYPE_CHECKING:
    import pandas as pd


def reliability_diagram(bins: pd.DataFrame | Mapping[str, pd.DataFrame], title: str = "", *, dark: bool = False) -> go.Figure:
    """Accuracy against confidence (%) in one panel for each exit, and below each panel the share of images in every bin (%).

    `bins`: the table of `calibration_bins`, or a dict from the name of each exit to its table. On the dotted diagonal
    confidence equals accuracy; hatched bars show the gap between the two. The default title states the mean gap of the first
    and the last panel. `dark`: colours for a dark page. Raises `CorsdError` if there is no table and for a table without
    images.
    """
    from plotly.subplots import make_subplots

    tables = bins if isinstance(bins, Mapping) else {"": bins}
    filled = {name: table[table["images"] > 0] for name, table in tables.items()}
    if not filled or any(table.empty for table in filled.values()):
        raise CorsdError("reliability_diagram needs a table with images in its bins for every exit")
    count = len(filled)
    figure = make_subplots(
        rows=2,
        cols=count,
        subplot_titles=[html.escape(name, quote=False) for name in filled],
        shared_xaxes=True,
        row_heights=[0.78, 0.22],
        vertical_spacing=0.05,
        horizontal_spacing=0.1 / count,
    )
    for column, table in enumerate(filled.values(), start=1):
        _add_panel(figure, column, table, dark)
    _finish(figure, max(_shares(table).max() for table in filled.values()), dark)
    wide = 150 + 280 * count
    figure.update_layout(width=wide, height=480)
    set_title(figure, title or html.escape(_finding(filled), quote=False), wide // 9, below=24)
    return figure


def _shares(table: pd.DataFrame) -> Any:
    return (100.0 * table["images"] / table["images"].sum()).to_numpy(np.float32)


def _add_panel(figure: go.Figure, column: int, table: pd.DataFrame, dark: bool) -> None:
    hover = "confidence %{customdata[0]:.0f} to %{customdata[1]:.0f} %, %{customdata[2]} images<br>"
    hover += "mean confidence %{customdata[3]:.1f} %, accuracy %{customdata[4]:.1f} %<extra></extra>"
    columns = [table[name].to_numpy() for name in ("low", "high", "images", "confidence", "accuracy")]
    low, high, _, confidence, accuracy = columns
    shared = {"x": (low + high) / 2, "width": high - low, "customdata": np.column_stack(columns), "hovertemplate": hover}
    edge = {"width": 1, "color": PAPER[dark]}
    hatched = {"color": "rgba(0,0,0,0)", "line": {"width": 1.2, "color": PALETTE[1]}}
    pattern = {"shape": "/", "fgcolor": PALETTE[1], "size": 5, "solidity": 0.35}
    first, upper = column == 1, {"row": 1, "col": column}
    figure.add_bar(y=accuracy, name="accuracy", marker={"color": PALETTE[0], "line": edge}, showlegend=first, **shared, **upper)
    gap = {
        "base": np.minimum(accuracy, confidence),
        "y": np.abs(accuracy - confidence),
        "marker": {**hatched, "pattern": pattern},
    }
    figure.add_bar(name="gap to the mean confidence", showlegend=first, **gap, **shared, **upper)
    line = {"dash": "dot", "width": 1.8, "color": INK[dark]}
    diagonal = {"x": [0, 100], "y": [0, 100], "mode": "lines", "line": line, "hoverinfo": "skip"}
    figure.add_scatter(name="honest", showlegend=first, **diagonal, **upper)
    figure.add_bar(y=_shares(table), marker={"color": GREY, "line": edge}, showlegend=False, **shared, row=2, col=column)


def _finish(figure: go.Figure, most: float, dark: bool) -> None:
    figure.update_layout(template=template(dark), bargap=0, barmode="overlay", margin_b=70)
    figure.update_layout(legend={"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"})
    figure.update_xaxes(range=[0, 100], tickvals=[0, 20, 40, 60, 80, 100])
    figure.update_xaxes(title="confidence (%)", row=2)
    figure.update_yaxes(range=[0, 101], row=1)
    figure.update_yaxes(range=[0, 1.05 * float(most)], row=2)
    figure.update_yaxes(title="accuracy (%)", row=1, col=1)
    figure.update_yaxes(title="images (%)", row=2, col=1)
    figure.update_annotations(font_size=13, yshift=4)


def _finding(tables: Mapping[str, pd.DataFrame]) -> str:
    """Default title: the mean gap in the first panel and that in the last panel.

    The title also has "overconfident" or "underconfident" if the same word holds for all panels.
    """
    gaps, sides = [], set()
    for name, table in tables.items():
        difference, weight = table["confidence"] - table["accuracy"], table["images"] / table["images"].sum()
        gaps.append(f"{(difference.abs() * weight).sum():.1f} points{f' at {name}' if name else ''}")
        sides.add("over" if (difference * weight).sum() > 0 else "under")
    side = f": {sides.pop()}confident" if len(sides) == 1 else ""
    return f"Confidence is off by {' and '.join(dict.fromkeys([gaps[0], gaps[-1]]))} on average{side}"
