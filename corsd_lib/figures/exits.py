"""Accuracy of exits, and early-exit curves."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from corsd_lib.errors import CorsdError, shortened
from corsd_lib.figures.style import GREY, INK, PALETTE, SYMBOLS, exit_names, line_style, set_title, template

if TYPE_CHECKING:
    import pandas as pd


def exit_accuracy_bars(
    accuracy: Mapping[str, Sequence[float]],
    title: str = "",
    *,
    error: Mapping[str, Sequence[float]] | None = None,
    ylabel: str = "test accuracy (%)",
    dark: bool = False,
) -> go.Figure:
    """Bar chart of the accuracy (%) of every exit, shallow -> deep: a group for each exit, a colour for each run; bars start at
    0.

    `accuracy`: a dict from the name of each run to its values, one for each exit; `error`: half-widths of intervals in
    percentage points, in the same form. `dark`: colours for a dark page. Raises `CorsdError` if runs have different numbers of
    exits.
    """
    exits = _exits_of(accuracy, "exit_accuracy_bars")
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


def exit_accuracy_points(
    accuracy: Mapping[str, Sequence[float]],
    title: str = "",
    *,
    error: Mapping[str, Sequence[float]] | None = None,
    reference: tuple[str, float] | None = None,
    ylabel: str = "test accuracy (%)",
    dark: bool = False,
) -> go.Figure:
    """A marker at the accuracy (%) of every exit, on an axis that starts near the lowest value.

    Differences of a few percentage points are visible. Parameters as in `exit_accuracy_bars`; `reference`: name and accuracy
    (%) of a dotted line, for example that of the plain network. Raises `CorsdError` if runs have different numbers of exits.
    """
    exits = _exits_of(accuracy, "exit_accuracy_points")
    halves = {name: np.asarray(error[name] if error else [0] * len(exits), np.float32) for name in accuracy}
    ends = {name: np.asarray(values, np.float32) + halves[name] for name, values in accuracy.items()}
    figure = go.Figure()
    for i, (name, values) in enumerate(accuracy.items()):
        look = {"color": PALETTE[i % len(PALETTE)], "symbol": SYMBOLS[i % len(SYMBOLS)], "size": 10}
        figure.add_scatter(
            x=exits,
            y=np.asarray(values, np.float32),
            error_y={"array": halves[name], "thickness": 1.5} if error else None,
            name=html.escape(name),
            mode="markers",
            marker=look,
            offsetgroup=f"{i}",
            hovertemplate=f"{html.escape(name)}, %{{x}}<br>%{{y:.2f}} %<extra></extra>",
        )
    for i, (name, values) in enumerate(accuracy.items()):  # values as text above the interval, where no other mark is
        figure.add_scatter(
            x=exits,
            y=ends[name],
            mode="text",
            text=[f"{v:.1f}" for v in values],
            textposition="top center",
            textfont={"size": 11},
            offsetgroup=f"{i}",
            showlegend=False,
            hoverinfo="skip",
        )
    if reference is not None:
        label, value = reference
        line = {"dash": "dot", "width": 1.2, "color": INK[dark]}
        figure.add_hline(y=value, line=line, name=f"{html.escape(label)}, {value:.1f}", showlegend=True)
    figure.update_layout(template=template(dark), width=720, height=400, scattermode="group", scattergap=0.25)
    figure.update_layout(legend={"orientation": "h", "y": -0.12, "yanchor": "top", "x": 0}, showlegend=True)
    lows = [2 * np.asarray(values, np.float32) - ends[name] for name, values in accuracy.items()]
    drawn = [float(v) for line in (*lows, *ends.values()) for v in line] + ([] if reference is None else [reference[1]])
    room = max(0.5, 0.08 * (max(drawn) - min(drawn)))
    figure.update_yaxes(title=ylabel, range=[min(drawn) - room, max(drawn) + room])
    set_title(figure, title, 84)
    return figure


def _exits_of(accuracy: Mapping[str, Sequence[float]], caller: str) -> list[str]:
    """Names of the exits, the same for all runs. Raises `CorsdError` if the runs have different numbers of exits."""
    counts = {name: len(values) for name, values in accuracy.items()}
    if len(set(counts.values())) != 1:
        raise CorsdError(f"{caller} needs runs with the same number of exits; they have {counts}")
    return exit_names(next(iter(counts.values())))


def early_exit_plot(
    curves: pd.DataFrame | Mapping[str, pd.DataFrame],
    title: str = "",
    *,
    deepest_macs: float | None = None,
    threshold: float | Mapping[str, float] | None = None,
    dark: bool = False,
) -> go.Figure:
    """Accuracy (%) against the mean cost of an image with early exit: one point for each threshold, joined by a line
    if there are more than ten.

    `curves`: the table of `early_exit_curve`, or a dict name -> table, for several rules or runs. `deepest_macs`: the cost of
    the plain network; the axis is then in % of this cost, and a ring marks the plain network. `threshold`: the threshold to
    mark in all curves, or a dict name -> threshold. The default title states the change of accuracy and the cost at this
    threshold. Without `threshold` it states the cost of the cheapest threshold that loses at most one percentage point.
    `dark`: colours for a dark page. Raises `CorsdError` if there are no curves, for empty curves and for an unknown threshold.
    """
    by_name = curves if isinstance(curves, Mapping) else {"": curves}
    if not by_name or any(curve.empty for curve in by_name.values()):
        raise CorsdError(
            f"early_exit_plot needs curves with one row or more; they have {[len(c) for c in by_name.values()]} rows"
        )
    thresholds = threshold if isinstance(threshold, Mapping) else dict.fromkeys(by_name, threshold)
    rows = {name: curve.to_dict("records") for name, curve in by_name.items()}
    marked = {name: _row_of(rows[name], value, name) for name, value in thresholds.items() if value is not None}
    cost = _cost_of(by_name, deepest_macs)
    figure = go.Figure([_curve_trace(name, rows[name], cost, i) for i, name in enumerate(rows)])
    stars = [_mark(name, row, cost, list(rows).index(name), dark) for name, row in marked.items()]
    figure.add_traces([star.update(showlegend=star is stars[0]) for star in stars])
    if deepest_macs is not None:
        figure.add_trace(_plain_network(rows))
    _finish_early(figure, cost, len(figure.data) > 1, dark)
    finding = _chosen_finding(marked, cost) if marked else _cheapest_finding(rows, cost)
    set_title(figure, title or html.escape(finding, quote=False), 84)
    return figure


# --- early exit -------------------------------------------------------------------------------------------------------

Row = dict[Any, Any]  # one row of an early-exit curve
_FEW = 10  # with no more thresholds than this a curve is drawn as points


class _Cost(NamedTuple):
    """Format of costs: unit, factor from MACs to that unit, and number of decimals."""

    unit: str
    scale: float
    digits: int

    def text(self, macs: float) -> str:
        return f"{macs * self.scale:.{self.digits}f} {self.unit}"


def _cost_of(curves: Mapping[str, pd.DataFrame], deepest_macs: float | None) -> _Cost:
    if deepest_macs is not None:
        return _Cost("% of the plain network's MACs", 100.0 / deepest_macs, 0)
    most = max(curve["macs"].max() for curve in curves.values())
    return _Cost("billion MACs", 1e-9, 2) if most >= 1e9 else _Cost("million MACs", 1e-6, 2)


def _curve_trace(name: str, rows: Sequence[Row], cost: _Cost, i: int) -> go.Scatter:
    return go.Scatter(
        x=np.array([row["macs"] * cost.scale for row in rows], np.float32),
        y=np.array([row["accuracy"] for row in rows], np.float32),
        name=html.escape(name or "early exit", quote=False),
        # with few thresholds no line: it would suggest costs that no threshold has
        mode="lines+markers" if len(rows) > _FEW else "markers",
        line=line_style(i),
        marker={"size": 5 if len(rows) > _FEW else 10, "symbol": SYMBOLS[i % len(SYMBOLS)]},
        text=[_hover_text(name, row, cost) for row in rows],
        hovertemplate="%{text}<extra></extra>",
    )


def _hover_text(name: str, row: Row, cost: _Cost) -> str:
    """Hover text of a threshold as HTML: accuracy, cost, and share of images that leave at each exit."""
    prefix = "fraction.exit"
    shares = [f"exit {key.removeprefix(prefix)} {100 * value:.0f} %" for key, value in row.items() if key.startswith(prefix)]
    head = f"{html.escape(name, quote=False)}, threshold" if name else "threshold"
    worth = f"{row['accuracy']:.2f} % correct, {cost.text(row['macs'])}"
    return f"{head} {row['threshold']:.3g}<br>{worth}<br>leave: {', '.join(shares)}"


def _row_of(rows: Sequence[Row], threshold: float, name: str) -> Row:
    for row in rows:
        if abs(row["threshold"] - threshold) < 1e-9:
            return row
    values = [row["threshold"] for row in rows]
    curve = f"the curve of {name}" if name else "the curve"
    raise CorsdError(
        f"threshold {shortened(threshold)} is not in {curve}; allowed: its thresholds, {min(values):.4g} to {max(values):.4g}"
    )


def _mark(name: str, row: Row, cost: _Cost, i: int, dark: bool) -> go.Scatter:
    look = {"symbol": "star", "size": 16, "color": PALETTE[i % len(PALETTE)], "line": {"width": 1.2, "color": INK[dark]}}
    hover = f"chosen: {_hover_text(name, row, cost)}<extra></extra>"
    place = {"x": [row["macs"] * cost.scale], "y": [row["accuracy"]]}
    return go.Scatter(**place, mode="markers", marker=look, name="chosen threshold", hovertemplate=hover)


def _plain_network(rows: Mapping[str, Sequence[Row]]) -> go.Scatter:
    """Ring at the accuracy of the deepest exit and 100 % of the cost: the plain network, without shallow exits."""
    heights = sorted({round(curve[0]["accuracy"] + curve[0]["accuracy_drop"], 6) for curve in rows.values()})
    return go.Scatter(
        x=[100.0] * len(heights),
        y=heights,
        mode="markers",
        name="deepest exit alone, at the plain network's cost",
        marker={"symbol": "circle-open", "size": 12, "color": GREY, "line": {"width": 2}},
        hovertemplate="deepest exit alone<br>%{y:.2f} % correct, 100 % of its MACs<extra></extra>",
    )


def _finish_early(figure: go.Figure, cost: _Cost, legend: bool, dark: bool) -> None:
    corner = {"x": 0.99, "xanchor": "right", "y": 0.02, "yanchor": "bottom", "bgcolor": "rgba(0,0,0,0)"}
    figure.update_layout(template=template(dark), width=720, height=440, showlegend=legend, legend=corner)
    figure.update_xaxes(title=f"mean cost of an image ({cost.unit})")
    figure.update_yaxes(title="accuracy (%)")


def _chosen_finding(marked: Mapping[str, Row], cost: _Cost) -> str:
    return "; ".join(
        f"{name or 'Early exit'} at {row['threshold']:.3g}: {_change(row)} at {cost.text(row['macs'])}"
        for name, row in marked.items()
    )


def _change(row: Row) -> str:
    return f"{abs(row['accuracy_drop']):.1f} points {'lost' if row['accuracy_drop'] >= 0 else 'won'}"


def _cheapest_finding(rows: Mapping[str, Sequence[Row]], cost: _Cost) -> str:
    """Default title: for every curve, the lowest cost at which the accuracy is at most one point below the deepest exit."""
    said = []
    for name, curve in rows.items():
        allowed = [row["macs"] for row in curve if row["accuracy_drop"] <= 1]
        said.append(f"{f'{name} ' if name else ''}{f'{min(allowed) * cost.scale:.{cost.digits}f}' if allowed else 'none'}")
    return f"At most one point lost, at a cost of {', '.join(said)} {cost.unit}"
