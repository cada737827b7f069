"""Shapes over a heatmap: lines between groups, names of groups, and dendrograms.

Coordinates are in cells (cell i from i - 0.5 to i + 0.5), so that shapes keep their position for any size and zoom.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from corsd_lib.errors import CorsdError
from corsd_lib.figures.style import Matrix, short_name

_MOST_GROUP_NAMES = 40
_LONGEST = 26  # characters of a name at an axis


def boundary_shapes(groups: Matrix, count: int) -> list[dict[str, Any]]:
    """Plotly shapes that separate groups in a heatmap: white lines with a dark rim, visible on all colours.

    `groups` (count,): group id of each row, in drawing order. With many groups only the diagonal blocks get frames, because
    lines through the whole heatmap would hide it. The shapes are called "boundaries rim" and "boundaries"; there are none for a
    single group. Raises `CorsdError` unless there are `count` ids.
    """
    edges = _edges(groups, count)
    if len(edges) <= 2:
        return []
    sparse = len(edges) <= 26
    path = _grid(edges) if sparse else _frames(edges)
    widths = (2.2, 0.9) if sparse else (1.6, 0.7)
    looks = (("boundaries rim", "rgba(0, 0, 0, 0.5)", widths[0]), ("boundaries", "#ffffff", widths[1]))
    return [
        {"type": "path", "path": path, "name": name, "line": {"color": colour, "width": width}} for name, colour, width in looks
    ]


def group_ticks(groups: Matrix, labels: Sequence[str], group_names: Sequence[str]) -> dict[str, Any]:
    """Ticks of a category axis with the name of each group at its centre; with many groups some are left out.

    `groups` (count,): ids in drawing order; `labels` (count,): categories of the axis; `group_names`: id -> name. Raises
    `CorsdError` if an id has no name and if `groups` and `labels` differ in length.
    """
    edges = _edges(groups, len(labels))
    middles = [(low + high) // 2 for low, high in itertools.pairwise(edges)]
    shown = middles[:: -(-len(middles) // _MOST_GROUP_NAMES)]
    ids = np.asarray(groups).tolist()
    if not set(ids) <= set(range(len(group_names))):
        raise CorsdError(
            f"groups are numbered {min(ids)} to {max(ids)} and have {len(group_names)} names; allowed: one name for each id"
        )
    text = [html.escape(short_name(group_names[ids[middle]], _LONGEST), quote=False) for middle in shown]
    ticks = {"tickmode": "array", "tickvals": [labels[middle] for middle in shown], "ticktext": text}
    return {**ticks, "tickfont": {"size": 10 if len(shown) > 10 else 12}}


def leaves_of(linkage: Matrix, count: int) -> npt.NDArray[np.int64]:
    """Order of the leaves (count,) of SciPy's `linkage` (count - 1, 4). Raises `CorsdError` if the shape is wrong."""
    steps = _steps(linkage, count)
    clusters = [[leaf] for leaf in range(count)]
    for first, second, *_ in steps:
        clusters.append(clusters[int(first)] + clusters[int(second)])
    return np.asarray(clusters[-1])


def clustering_shape(linkage: Matrix, order: Matrix | None, tall: float, colour: str) -> tuple[dict[str, Any], float]:
    """A dendrogram above a heatmap as a plotly shape, and the distance at the top of the dendrogram.

    `linkage` (count - 1, 4): from SciPy; `order` (count,): order of the columns of the heatmap; `tall`: height of the
    dendrogram divided by that of the heatmap. Leaves are above the centres of their columns; each bar is at the distance of the
    two clusters that it joins. Raises `CorsdError` if branches would cross in this order.
    """
    places = np.asarray(order)
    count = len(places)
    steps = _steps(linkage, count)
    tallest = max(float(steps[:, 2].max()), 1e-9)
    nodes = [(float(place), 0.0, int(place), int(place)) for place in places.argsort()]  # middle, height, first, last column
    parts = []
    for first, second, distance, size in steps:
        (x0, y0, low0, high0), (x1, y1, low1, high1) = nodes[int(first)], nodes[int(second)]
        low, high, y = min(low0, low1), max(high0, high1), float(distance) / tallest
        if high - low + 1 != size:
            raise CorsdError("the order does not fit the dendrogram: branches would cross; use the order of its leaves")
        corners = [(x0, y0), (x0, y), (x1, y), (x1, y1)]
        parts.append("M" + "L".join(f"{x:g},{1.008 + tall * height:.5f}" for x, height in corners))
        nodes.append(((x0 + x1) / 2, y, low, high))
    line = {"color": colour, "width": 1.2 if count <= 40 else 1.0}
    shape = {"type": "path", "path": "".join(parts), "xref": "x", "yref": "y domain", "line": line, "name": "dendrogram"}
    return shape, tallest


def _steps(linkage: Matrix, count: int) -> npt.NDArray[np.float64]:
    steps = np.asarray(linkage, np.float64)
    if steps.shape != (count - 1, 4) or count < 2:
        raise CorsdError(f"the dendrogram has shape {steps.shape} for {count} rows; allowed: (rows - 1, 4), for 2 rows or more")
    return steps


def _edges(groups: Matrix, count: int) -> list[int]:
    """Index of the first cell of every group, followed by `count`."""
    ids = np.asarray(groups)
    if ids.shape != (count,):
        raise CorsdError(f"groups have shape {ids.shape} for {count} rows; allowed: one id for each row, ({count},)")
    return [0, *(np.flatnonzero(ids[1:] != ids[:-1]) + 1).tolist(), count]


def _grid(edges: Sequence[int]) -> str:
    end = edges[-1] - 0.5
    cuts = [edge - 0.5 for edge in edges[1:-1]]
    return "".join(f"M{cut},-0.5L{cut},{end}M-0.5,{cut}L{end},{cut}" for cut in cuts)


def _frames(edges: Sequence[int]) -> str:
    ends = [(low - 0.5, high - 0.5) for low, high in itertools.pairwise(edges)]
    return "".join(f"M{low},{low}L{high},{low}L{high},{high}L{low},{high}Z" for low, high in ends)
