"""The heatmap of a relation explorer: cells, names, lines and title of what is shown."""

from __future__ import annotations

import html
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from corsd_lib.analysis.relations import KIND_NAMES
from corsd_lib.figures.marks import boundary_shapes
from corsd_lib.figures.relations import (
    ALL_NAMED,
    MOST_NAMES,
    NameRoom,
    difference_trace,
    pair_texts,
    relation_heatmap,
    relation_trace,
)
from corsd_lib.figures.style import PALETTE, set_title, short_name
from corsd_lib.widgets.base import cell_by_cell
from corsd_lib.widgets.relation_view import Relations, Scores, Shown

_AXIS, _BAR = 38, 105  # pixels: an axis' title and ticks; the colour bar and what stands at it


class RelationFigure:
    """`widget` shows cells of `relations`: trace 0 the cells, sorted columns, trace 1 rings on the diagonal."""

    def __init__(self, relations: Relations, shown: Shown) -> None:
        self._relations = relations
        names = relations.data.class_names
        self.widget = go.FigureWidget(relation_heatmap(shown.values, names).for_each_trace(cell_by_cell))
        look = {"color": PALETTE[1], "symbol": "circle-open", "line": {"width": 2.5}}
        self.widget.add_scatter(x=[], y=[], mode="markers", marker=look, hoverinfo="skip", showlegend=False)
        self.widget.update_layout(modebar_remove=["select2d", "lasso2d"])  # under which no click would arrive
        self._side = 360 if len(names) <= ALL_NAMED else 500
        self._size_axes(shown, relations.names(shown.view, shown.rows))

    def draw(self, shown: Shown, count: int = 0) -> None:
        """Show other cells. Only what differs is sent: another order is another order of the axes' names, not of the cells.

        `count` marked images were asked for.
        """
        names = self._relations.names(shown.view, shown.rows)
        heatmap, n = self.widget.data[0], len(names)
        with self.widget.batch_update():
            if len(heatmap.x) != n**2 or tuple(heatmap.x[:n]) != tuple(names):
                heatmap.update(x=np.tile(names, n), y=np.repeat(names, n))
                if self._relations.cut:
                    heatmap.hovertext = pair_texts(self._relations.hovers(shown.view, shown.rows)).ravel()
                self._size_axes(shown, names)
            heatmap.z = shown.values.ravel()
            self._colour_cells(shown)
            ordered = [names[k] for k in shown.order]
            self.widget.update_xaxes(categoryorder="array", categoryarray=ordered)
            self.widget.update_yaxes(categoryorder="array", categoryarray=ordered)
            self._say(f"{self._subject(shown, count)}\n{self._finding(shown)}")

    def draw_over(self, shown: Shown, pair: tuple[int, int] | None, ringed: Collection[int]) -> None:
        """Lines between groups, a frame around the `pair` of rows, rings around the rows `ringed` on the diagonal."""
        groups = self._relations.groups(shown.view, shown.rows)
        lines = [] if groups is None else boundary_shapes(groups[shown.order], len(shown.rows))
        places = {row: place for place, row in enumerate(shown.ordered)}
        framed = pair is not None and all(row in places for row in pair)
        frames = [_frame(*(places[row] for row in pair))] if pair and framed else []
        names = self._relations.names(shown.view, shown.rows)
        rings = [name for name, row in zip(names, shown.rows.tolist(), strict=True) if row in ringed]
        with self.widget.batch_update():
            self.widget.layout.shapes = (*lines, *frames)
            self.widget.data[1].update(x=rings, y=rings)

    def _size_axes(self, shown: Shown, names: Sequence[str]) -> None:
        """All cells in sight, names as dense as they fit, and the same square whatever stands around it."""
        room = self._room = NameRoom.of(names, self._side)
        room.show(self.widget)
        margin = {"l": room.longest + _AXIS, "b": room.below + _AXIS, "r": _BAR, "autoexpand": False}
        self.widget.update_layout(margin=margin, width=margin["l"] + self._side + _BAR)
        count = len(shown.rows)
        of = "class of the {} image" if shown.view.level == "class" else "{} image"
        ticks = {"dtick": 1, "nticks": None} if count <= ALL_NAMED else {"dtick": None, "nticks": MOST_NAMES}
        ticks["autorange"] = False  # which would make room for rings at the border
        self.widget.update_xaxes(range=[-0.5, count - 0.5], title=of.format("second"), **ticks)
        self.widget.update_yaxes(range=[count - 0.5, -0.5], title=of.format("first"), **ticks)

    def _say(self, text: str) -> None:
        """The title, of which more lines take no room from the cells."""
        above = go.Figure()  # the widget's own layout changes when its batch ends
        set_title(above, text, int((self._room.longest + _AXIS + self._side + _BAR) / 7.8))
        top = above.layout.margin.t
        self.widget.update_layout(title=above.layout.title, margin_t=top)
        self.widget.layout.height = top + self._side + self._room.below + _AXIS

    def _colour_cells(self, shown: Shown) -> None:
        heatmap, difference = self.widget.data[0], shown.view.against is not None
        if (heatmap.zmin < 0) is not difference:
            trace = difference_trace if difference else relation_trace
            look = trace(np.zeros((1, 1), np.float32), [""], full=["…"] if self._relations.cut else None)
            heatmap.update({name: look[name] for name in ("zmin", "zmax", "colorscale", "colorbar", "hovertemplate")})

    def _subject(self, shown: Shown, marked: int) -> str:
        """What is shown, for the title."""
        view, relations = shown.view, self._relations
        exit = relations.mine.exits(view.kind)[view.exit - 1]
        mine = f"{html.escape(relations.run_names[0])}: " if relations.other else ""
        reference = relations.reference(view)
        minus = f" minus {html.escape(reference.name)}" if reference else ""
        scope = [html.escape(short_name(view.superclass))] if view.superclass else []
        if view.level == "image":
            scope.append(
                f"{len(shown.rows)} of {marked or len(relations.mine.labels)} {'marked' if marked else 'probe'} images"
            )
        elif view.superclass:
            scope.append(f"{len(shown.rows)} of {len(relations.data.class_names)} classes")
        return f"{mine}{exit}, epoch {view.epoch}{minus}" + (f"; {', '.join(scope)}" if scope else "")

    def _finding(self, shown: Shown) -> str:
        """What the cells say in a line."""
        classes = self._relations.classes_of(shown.view, shown.rows)
        same = classes[:, None] == classes[None, :]
        form = ".2f" if shown.view.against is None else "+.2f"
        means = [(_mean(shown.values[mask]), where) for mask, where in ((same, "within a class"), (~same, "between classes"))]
        said = [f"{mean:{form}} {where}" for mean, where in means if mean is not None]
        return f"{KIND_NAMES[shown.view.kind]} {', '.join(said)}" if said else "no pair has a relation here"


def _mean(values: Scores) -> float | None:
    """Mean of the numbers, None where there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _frame(row: int, column: int) -> dict[str, Any]:
    """A frame around one cell of the heatmap."""
    line = {"color": PALETTE[1], "width": 3}
    return {"type": "rect", "x0": column - 0.5, "x1": column + 0.5, "y0": row - 0.5, "y1": row + 0.5, "line": line}
