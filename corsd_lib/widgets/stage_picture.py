"""The view of a stage explorer as a static figure.

K exits (one panel each), N images. The figure has K traces of points, then K traces of rings, then the traces of the legend.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from corsd_lib.figures.embeddings import embedding_scatter
from corsd_lib.figures.style import GREY, PALETTE, SYMBOLS, set_title

Codes = npt.NDArray[np.int64]
Points = npt.NDArray[np.float32]


def stage_picture(
    points: Points,
    codes: Codes,
    groups: Sequence[str],
    *,
    exits: Sequence[str],
    captions: Sequence[str],
    quality: Sequence[str],
    what: str,
    rest: str,
    selection: Sequence[int],
    near: Sequence[Sequence[int]],
    image: int,
    title: str,
) -> go.Figure:
    """A scatter of the points (K, N, 2), one panel for each exit, with lines from an image to its neighbours.

    `image`: index of the image; `near`: K lists of the indices of its neighbours. `codes` (K, N): the index in `groups` of each
    point, which sets its colour and symbol. A point with the code len(groups) is grey; its name in the legend is `rest`. If
    `selection` is not empty, all other points are pale. `quality` (K): a text below each panel. `what`: title of the legend.
    """
    images = len(captions)
    shown: dict[str, Any] = {"colour_by": np.zeros(images), "captions": captions, "quality": quality}
    figure = embedding_scatter(points, np.zeros(images, int), ["image"], exits, "…", **shown)
    figure.update_traces(marker_showscale=False, selected_marker_opacity=1, unselected_marker_opacity=0.12)
    for trace, column in zip(figure.data, codes, strict=True):
        trace.marker.update(_look(column, len(groups)))
        trace.selectedpoints = np.asarray(selection, np.int32) if len(selection) else None
    rings = [_rings(trace, at, image, some) for trace, at, some in zip(figure.data, points, near, strict=True)]
    names = [*groups, *([rest] if bool((codes == len(groups)).any()) else [])]
    legend = [go.Scatter(x=[None], y=[None], mode="markers", name=html.escape(name, quote=False)) for name in names]
    for i, trace in enumerate(legend):
        trace.marker.update(_legend_look(i, len(groups)))
    figure.add_traces([*rings, *legend])
    figure.update_layout(legend={"title": {"text": what, "font": {"size": 13}}})
    set_title(figure, html.escape(title, quote=False), figure.layout.width // 8, below=28)
    return figure


def _rings(trace: go.Scatter, points: Points, image: int, near: Sequence[int]) -> go.Scatter:
    """A large ring around the image, and lines to small rings around its neighbours."""
    spokes = [image, *(place for neighbour in near for place in (neighbour, image))]
    x, y = np.ascontiguousarray(points[spokes].T)
    sizes = np.where(np.array(spokes) == image, 18, 10).astype(np.float32)
    look = {"symbol": "circle-open", "color": GREY, "line": {"width": 2}, "size": sizes}
    where = {"xaxis": trace.xaxis, "yaxis": trace.yaxis, "hoverinfo": "skip", "showlegend": False}
    return go.Scatter(x=x, y=y, mode="lines+markers", line={"width": 1, "color": GREY}, marker=look, **where)


def _look(codes: Codes, groups: int) -> dict[str, Any]:
    """Colours, symbols and sizes of points (N,)."""
    grey, colours = codes == groups, (*PALETTE, GREY)
    symbols = [SYMBOLS[0 if rest else code // len(PALETTE)] for code, rest in zip(codes.tolist(), grey.tolist(), strict=True)]
    return {
        "color": np.where(grey, len(PALETTE), codes % len(PALETTE)).astype(np.float32),
        "colorscale": [(end / len(colours), colour) for i, colour in enumerate(colours) for end in (i, i + 1)],
        "cmin": -0.5,
        "cmax": len(colours) - 0.5,
        "size": np.where(grey, 4, 7).astype(np.float32),
        "symbol": symbols if groups > len(PALETTE) else SYMBOLS[0],
    }


def _legend_look(i: int, groups: int) -> dict[str, Any]:
    if i >= groups:
        return {"color": GREY, "symbol": SYMBOLS[0], "size": 6}
    return {"color": PALETTE[i % len(PALETTE)], "symbol": SYMBOLS[i // len(PALETTE)], "size": 9}
