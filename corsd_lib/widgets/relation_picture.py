"""The view of a relation explorer as a static figure."""

from __future__ import annotations

import html
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from corsd_lib.analysis.relations import KIND_NAMES
from corsd_lib.figures.marks import boundary_shapes
from corsd_lib.figures.relations import ALL_NAMED, NameRoom, relation_difference, relation_heatmap
from corsd_lib.figures.style import INK, PALETTE, set_title, short_name
from corsd_lib.widgets.relation_view import Relations, Scores, Shown

_BESIDE = 105  # width of the colour bar and its labels, in pixels


def relation_picture(
    relations: Relations,
    shown: Shown,
    selection: tuple[int, int] | None,
    images: tuple[int, int] | None,
    marked: Sequence[int] = (),
) -> go.Figure:
    """Heatmap of the cells in display order, with lines between groups, a frame around the pair, and rings around marked
    classes.
    """
    by_class = shown.view.level == "class"
    names = [html.unescape(name) for name in relations.names(shown.view, shown.rows)]
    unit: dict[str, Any] = {"order": shown.order, "unit": shown.view.level}
    title = f"{_subject(relations, shown, len(marked))}\n{_finding(relations, shown)}"
    if shown.view.reference is None:
        figure = relation_heatmap(shown.values, names, **unit)
    else:
        figure = relation_difference(shown.values, np.zeros_like(shown.values), names, **unit)
    side = 360 if len(names) <= ALL_NAMED else 500
    room = NameRoom.of([names[k] for k in shown.order], side)
    room.show(figure)
    width = room.longest + 38 + side + _BESIDE
    groups = relations.groups(shown.view, shown.rows)
    lines = [] if groups is None else boundary_shapes(groups[shown.order], len(names))
    positions = {row: position for position, row in enumerate(shown.ordered)}
    pair = selection if by_class else images
    colour = PALETTE[1] if shown.view.reference is None else INK[False]  # orange is in the colour scale of differences
    place = [positions[row] for row in pair or () if row in positions]
    frames = _frame(place[0], place[1], colour) if len(place) == 2 else ()
    figure.update_layout(shapes=(*lines, *frames), width=width)
    if by_class and marked:
        _ring(figure, [positions[c] for c in _classes_of(relations, marked) if c in positions])
    set_title(figure, title, int(width / 7.8))
    figure.update_layout(height=figure.layout.margin.t + side + room.below + 38)
    return figure


def _classes_of(relations: Relations, marked: Sequence[int]) -> Collection[int]:
    return sorted({int(relations.main.labels[position]) for position in marked})


def _ring(figure: go.Figure, positions: Sequence[int]) -> None:
    """Add a ring on the diagonal of the heatmap at each of `positions`, which are indices of rows."""
    names = figure.data[0].x
    look = {"color": PALETTE[1], "symbol": "circle-open", "line": {"width": 2.5}}
    here = [names[position] for position in positions]
    figure.add_scatter(x=here, y=here, mode="markers", marker=look, hoverinfo="skip", showlegend=False)


def _frame(row: int, column: int, colour: str) -> tuple[dict[str, Any], ...]:
    """A frame around one cell of the heatmap, on a wider white one that separates it from dark cells."""
    cell = {"type": "rect", "x0": column - 0.5, "x1": column + 0.5, "y0": row - 0.5, "y1": row + 0.5}
    return {**cell, "line": {"color": "#fff", "width": 5.5}}, {**cell, "line": {"color": colour, "width": 3}}


def _subject(relations: Relations, shown: Shown, marked: int) -> str:
    """Title text as HTML: what is shown of which run, exit and epoch."""
    view = shown.view
    exit = relations.main.exits(view.kind)[view.exit - 1]
    run_name = html.escape(relations.run_names[0]) if relations.other else ""
    reference = relations.reference(view)
    what = f"{exit}, epoch {view.epoch}"
    if reference and run_name and reference.name.endswith(f": {what}"):  # both have this exit and epoch: named once
        said = f"{run_name} minus {html.escape(reference.name)}"
    else:
        said = f"{run_name}: {what}" if run_name else what
        said += f" minus {html.escape(reference.name)}" if reference else ""
    scope = [html.escape(short_name(view.superclass))] if view.superclass else []
    if view.level == "image":
        scope.append(f"{len(shown.rows)} of {marked or len(relations.main.labels)} {'marked' if marked else 'probe'} images")
    elif view.superclass:
        scope.append(f"{len(shown.rows)} of {len(relations.data.class_names)} classes")
    return said + (f"; {', '.join(scope)}" if scope else "")


def _finding(relations: Relations, shown: Shown) -> str:
    """Second line of the title: mean score within and between classes."""
    classes = relations.classes_of(shown.view, shown.rows)
    same = classes[:, None] == classes[None, :]
    form = ".2f" if shown.view.reference is None else "+.2f"
    means = [(_mean(shown.values[mask]), where) for mask, where in ((same, "within a class"), (~same, "between classes"))]
    said = [f"{mean:{form}} {where}" for mean, where in means if mean is not None]
    return f"{KIND_NAMES[shown.view.kind]} {', '.join(said)}" if said else "no pair has a relation here"


def _mean(values: Scores) -> float | None:
    """Mean of the values that are not NaN; None if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
