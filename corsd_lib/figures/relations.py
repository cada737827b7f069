"""Relations of classes or images as heatmaps, and differences of two relations.

C is the number of classes or images. `order` is applied to rows, columns and names. Groups are marked by lines across the
cells, and clusters by a dendrogram above the heatmap.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from corsd_lib.errors import CorsdError, check_choice
from corsd_lib.figures.marks import boundary_shapes, clustering_shape, group_ticks, leaves_of
from corsd_lib.figures.style import DIVERGING, SCALE, Matrix, as_scores, class_labels, hover_names, set_title, template

UNITS = ("class", "image")
ALL_NAMED = 20  # more names than this do not all fit beside the cells
MOST_NAMES = 30  # largest number of names beside a larger heatmap; the smallest one, 360 pixels, has no room for more
LIMIT = 0.5  # end of the colour scale of a difference; larger ones are rare, and 1 is the largest possible
_USUAL = 80  # pixels for the class names that the default figure size includes
_TREE = 0.14  # height of a dendrogram, relative to that of the heatmap


def relation_heatmap(
    matrix: Matrix,
    names: Sequence[str],
    title: str = "",
    *,
    order: Matrix | None = None,
    groups: Matrix | None = None,
    group_names: Sequence[str] | None = None,
    dendrogram: Matrix | None = None,
    unit: str = "class",
    dark: bool = False,
) -> go.Figure:
    """Heatmap of the relation of classes, or of images (`unit`): row c is the first of a pair, column d the second.

    `matrix` (C, C): floats in [0, 1] (1 = related, NaN is left blank), or uint8 where 255 stands for 1. `names` (C,): names of
    the rows and columns. Colours always span 0 to 1, so that figures can be compared. `order` (C,): `order[i]` is the class of
    row and column i. `groups` (C,): the group id of each row in drawing order, such as its superclass; lines separate the
    groups, and `group_names`, indexed by id, label them. `dendrogram`: the linkage (C - 1, 4) of the rows. It is drawn above
    the heatmap, with 1 - relation as height; without `order` the rows have the order of its leaves. `dark`: colours for a dark
    page. Raises `CorsdError` if shapes, names and order do not match.
    """
    if dendrogram is not None and order is None:
        order = leaves_of(dendrogram, len(names))
    values, labels, full = _ordered(as_scores(matrix), names, order)
    figure = go.Figure(relation_trace(values, labels, full))
    _finish(figure, labels, title, groups, group_names, unit, dark)
    if dendrogram is not None:
        _add_tree(figure, dendrogram, order)
    return figure


def relation_difference(
    matrix: Matrix,
    reference: Matrix,
    names: Sequence[str],
    title: str = "",
    *,
    order: Matrix | None = None,
    groups: Matrix | None = None,
    group_names: Sequence[str] | None = None,
    unit: str = "class",
    limit: float = LIMIT,
    dark: bool = False,
) -> go.Figure:
    """Heatmap of `matrix` minus `reference`; all parameters except `limit` are those of `relation_heatmap`.

    Vermilion: more related than in the reference; blue: less; grey: equally. The colours end at -`limit` and `limit`, so that
    figures can be compared. Larger values have the end colours; the hover text shows the value. The default title states what
    changed. Raises `CorsdError` if shapes and names do not fit.
    """
    first, second = as_scores(matrix), as_scores(reference)
    if first.shape != second.shape:
        raise CorsdError(f"the matrix has shape {first.shape} and the reference {second.shape}; allowed: the same shape")
    values, labels, full = _ordered(first - second, names, order)
    figure = go.Figure(difference_trace(values, labels, limit, full))
    _finish(figure, labels, title or difference_finding(values, labels, unit), groups, group_names, unit, dark)
    return figure


def relation_trace(values: npt.NDArray[np.float32], names: Sequence[str], full: Sequence[str] | None = None) -> go.Heatmap:
    """The heatmap of `relation_heatmap` as a trace, for figures with several traces.

    `names`: escaped, as from `class_labels`; `full`: names in hover texts, as from `hover_names`.
    """
    look = {"zmin": 0, "zmax": 1, "colorscale": SCALE, "colorbar": _colour_bar("relation", ".1f")}
    return _heatmap(values, names, full, "relation %{z:.3f}", look)


def difference_trace(
    values: npt.NDArray[np.float32], names: Sequence[str], limit: float = LIMIT, full: Sequence[str] | None = None
) -> go.Heatmap:
    """The heatmap of `relation_difference` as a trace; `names` and `full` as in `relation_trace`."""
    marks = [limit * part for part in (-1, -0.5, 0, 0.5, 1)]
    text = [f"≤ {marks[0]:g}", *(f"{mark:+g}" if mark else "0" for mark in marks[1:-1]), f"≥ +{limit:g}"]
    bar = {**_colour_bar("difference of relations", ""), "tickvals": marks, "ticktext": text}
    look = {"zmin": -limit, "zmax": limit, "colorscale": DIVERGING, "colorbar": bar}
    return _heatmap(values, names, full, "difference %{z:+.3f}", look)


def square_class_axes(figure: go.Figure, classes: int, *, unit: str = "class", **where: int) -> None:
    """Set category axes of a heatmap: square cells, the first at the top left.

    All names are shown if there are at most 20, else as many as fit. `unit`: "class" or "image", for the titles of the axes.
    `where`: the row and col of a subplot. Raises `CorsdError` for an unknown `unit`.
    """
    check_choice("unit", unit, UNITS)
    # Of more names plotly shows as many as fit, and the others after zooming in.
    many = {"nticks": MOST_NAMES, "tickfont": {"size": 10}}
    ticks: dict[str, Any] = {"dtick": 1} if classes <= ALL_NAMED else many
    of = "class of the {} image" if unit == "class" else "{} image"
    shared = {"type": "category", "constrain": "domain", "showgrid": False, **ticks, **where}
    figure.update_xaxes(title=of.format("second"), **shared)
    x_axis = next(iter(figure.select_xaxes(**where))).plotly_name.replace("axis", "")
    figure.update_yaxes(title=of.format("first"), autorange="reversed", scaleanchor=x_axis, **shared)


class NameRoom(NamedTuple):
    """Layout of the names beside and below the cells: font size, length of the longest name in pixels, and orientation."""

    size: int
    longest: int
    level: bool

    @classmethod
    def of(cls, names: Sequence[str], side: float) -> NameRoom:
        """Layout for the HTML-escaped `names` of rows and columns, if the heatmap is a square of `side` pixels."""
        size = 12 if len(names) <= 12 else 11 if len(names) <= ALL_NAMED else 10
        longest = round(0.58 * size * max(len(html.unescape(name)) for name in names)) + 8
        return cls(size, longest, longest <= side / len(names))

    @property
    def below(self) -> int:
        return self.size + 12 if self.level else self.longest

    def show(self, figure: go.Figure) -> None:
        """Set the font size of the names at both axes. Names below the heatmap are vertical if they would overlap."""
        figure.update_xaxes(tickfont={"size": self.size}, tickangle=0 if self.level else 90)
        figure.update_yaxes(tickfont={"size": self.size})


def difference_finding(values: npt.NDArray[np.float32], names: Sequence[str], unit: str = "class") -> str:
    """Default title of `relation_difference`, as HTML: the mean and the largest change in `values` (C, C). `names`: escaped."""
    if np.isnan(values).all():
        return "No pair has a relation in both"
    row, column = divmod(int(np.nanargmax(np.abs(values))), len(values))
    most = f"most changed: {names[row]} with {names[column]} ({values[row, column]:+z.2f})"
    same = np.eye(len(values), dtype=bool)
    inside, outside = values[same], values[~same]
    if unit == "image" or np.isnan(inside).all() or np.isnan(outside).all():
        return f"Relations differ by {np.nanmean(np.abs(values)):.2f} on average; {most}"
    return f"Relation {np.nanmean(inside):+z.2f} within a class, {np.nanmean(outside):+z.2f} between classes; {most}"


def _ordered(
    values: npt.NDArray[np.float32], names: Sequence[str], order: Matrix | None
) -> tuple[npt.NDArray[np.float32], list[str], list[str]]:
    """Scores (C, C), labels and hover names, permuted by `order`. Raises `CorsdError` if shapes differ or `order` is no
    permutation.
    """
    count = len(names)
    if values.shape != (count, count):
        raise CorsdError(f"relation matrix of shape {values.shape} does not fit {count} class names; allowed: (C, C)")
    labels, full = class_labels(names), hover_names(names)
    if order is None:
        return values, labels, full
    places = np.asarray(order)
    if sorted(places.tolist()) != list(range(count)):
        raise CorsdError(
            f"order of {places.size} entries is not a permutation of {count} classes; allowed: each of 0 to {count - 1} once"
        )
    return values[np.ix_(places, places)], [labels[place] for place in places], [full[place] for place in places]


def _heatmap(
    values: npt.NDArray[np.float32], names: Sequence[str], full: Sequence[str] | None, said: str, look: dict[str, Any]
) -> go.Heatmap:
    cut = full is not None and list(full) != list(names)  # only if needed: a text for every cell takes more bytes
    pair = "%{hovertext}" if cut else "%{y} with %{x}"
    hover = {"hovertemplate": f"{pair}<br>{said}<extra></extra>", "hovertext": pair_texts(full) if full and cut else None}
    return go.Heatmap(z=values, x=list(names), y=list(names), hoverongaps=False, **hover, **look)


def pair_texts(full: Sequence[str]) -> npt.NDArray[np.object_]:
    """Hover texts of all cells (C, C) of a heatmap: the names of both classes."""
    return np.array([[f"{first} with {second}" for second in full] for first in full], object)


def _colour_bar(title: str, form: str) -> dict[str, Any]:
    # The empty line keeps the title away from the numbers: a colour bar has no standoff.
    return {"title": {"text": f"<br>{title}", "side": "right"}, "tickformat": form, "thickness": 14, "outlinewidth": 0}


def _finish(
    figure: go.Figure,
    labels: Sequence[str],
    title: str,
    groups: Matrix | None,
    group_names: Sequence[str] | None,
    unit: str,
    dark: bool,
) -> None:
    """Set size, title and axes of a heatmap, and draw the boundaries and names of its groups."""
    many = len(labels) > ALL_NAMED
    figure.update_layout(template=template(dark), width=720 if many else 560, height=700 if many else 540)
    set_title(figure, title, 84 if many else 64)
    square_class_axes(figure, len(labels), unit=unit)
    room = NameRoom.of(labels, 400)
    room.show(figure)
    figure.layout.width += max(0, room.longest - _USUAL)
    figure.layout.height += max(0, room.below - _USUAL)
    if groups is not None:
        figure.update_layout(shapes=boundary_shapes(groups, len(labels)))
        if group_names is not None:
            ticks = group_ticks(groups, labels, group_names)
            figure.update_xaxes(**ticks, tickangle=90 if len(ticks["ticktext"]) > 6 else 0)
            figure.update_yaxes(**ticks)


def _add_tree(figure: go.Figure, linkage: Matrix, order: Matrix | None) -> None:
    shape, tallest = clustering_shape(linkage, order, _TREE, figure.layout.template.layout.font.color)
    figure.add_shape(shape)
    said = f"clusters: average distance, 1 - relation; top {tallest:.2f}"
    figure.add_annotation(
        x=1,
        y=1.01 + _TREE,
        xref="x domain",
        yref="y domain",
        xanchor="right",
        yanchor="bottom",
        text=said,
        showarrow=False,
        font={"size": 11},
    )
    room = int(_TREE * 0.8 * figure.layout.height) + 18
    figure.update_layout(height=figure.layout.height + room, margin={"t": figure.layout.margin.t + room})
