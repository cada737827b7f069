"""The panels of a `StageExplorer`: what is drawn where, in which colour; nothing of runs.

E epochs, K exits (a panel each), N images. Traces: K of points, K of rings, then the legend.
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

MOST = 2 * len(PALETTE)  # kinds in colour: 6 colours and 2 symbols; more are not told apart
Codes = npt.NDArray[np.int64]
Points = npt.NDArray[np.float32]


class StagePanels:
    """A `figure` of K panels whose points move, change colour and are marked; columns of numbers travel in binary."""

    def __init__(self, coordinates: Points, exits: Sequence[str], captions: Sequence[str]) -> None:
        self.exits = len(exits)
        images = len(captions)
        plain = embedding_scatter(
            coordinates[-1],
            np.zeros(images, int),
            ["image"],
            exits,
            "…",
            colour_by=np.zeros(images),
            captions=captions,
            quality=["…\n…\n…"] * self.exits,
        )
        self.figure = go.FigureWidget(plain)
        self.figure.update_traces(marker_showscale=False, selected_marker_opacity=1, unselected_marker_opacity=0.12)
        look = {"mode": "lines+markers", "hoverinfo": "skip", "showlegend": False}
        look |= {"line": {"width": 1, "color": GREY}, "marker": {"symbol": "circle-open", "color": GREY, "line": {"width": 2}}}
        self.figure.add_traces([go.Scatter(xaxis=p.xaxis, yaxis=p.yaxis, **look) for p in self.points])
        for ring in self.rings:
            ring.update(selected_marker_opacity=1, unselected_marker_opacity=1)
        self.figure.add_traces([go.Scatter(x=[None], y=[None], mode="markers", hoverinfo="skip") for _ in range(MOST + 1)])
        self.figure.update_layout(dragmode="lasso", legend_title_font_size=13)
        self.frame(coordinates)

    @property
    def points(self) -> Sequence[go.Scatter | go.Scattergl]:
        """The trace of every panel; its i-th point is image i."""
        return self.figure.data[: self.exits]

    @property
    def rings(self) -> Sequence[go.Scatter]:
        """Of every panel the trace of the image that is looked at, and its neighbours."""
        return self.figure.data[self.exits : 2 * self.exits]

    def frame(self, coordinates: Points) -> None:
        """Axes that hold the coordinates (E, K, N, 2), so that between epochs only points move."""
        if len(coordinates) == 1:
            self.figure.update_xaxes(autorange=True)
            self.figure.update_yaxes(autorange=True)
            return
        flat = coordinates.reshape(-1, 2)
        low, high = flat.min(0), flat.max(0)
        pad = 0.05 * np.maximum(high - low, 1e-6)
        x, y = np.stack([low - pad, high + pad], 1).tolist()
        self.figure.update_xaxes(range=x)
        self.figure.update_yaxes(range=y)

    def move(self, coordinates: Points) -> None:
        """Points (K, N, 2) to where they are now."""
        for trace, points in zip(self.points, coordinates, strict=True):
            trace.x, trace.y = np.ascontiguousarray(points.T)

    def paint(self, codes: Codes, kinds: Sequence[str], rest: str, what: str) -> None:
        """Points (K, N) in the colour of their kind, code `len(kinds)` small and grey, and the legend below `what`."""
        for trace, column in zip(self.points, codes, strict=True):
            trace.marker.update(_look(column, len(kinds)))
        names = [*kinds, *([rest] if bool((codes == len(kinds)).any()) else [])]
        for i, trace in enumerate(self.figure.data[2 * self.exits :]):
            trace.update(name=html.escape(names[i], quote=False) if i < len(names) else "", showlegend=i < len(names))
            trace.marker.update(_legend_look(i, len(kinds)))
        self.figure.layout.legend.title.text = what

    def mark(self, selection: Sequence[int]) -> None:
        """The same images in every panel; all when none is chosen."""
        for trace in self.points:
            trace.selectedpoints = np.asarray(selection, np.int32) if len(selection) else None

    def ring(self, coordinates: Points, image: int, neighbours: Sequence[Sequence[int]]) -> None:
        """A large ring around the image, and spokes to small ones around its neighbours (K lists) at each exit."""
        for trace, points, near in zip(self.rings, coordinates, neighbours, strict=True):
            spokes = [image, *(place for neighbour in near for place in (neighbour, image))]
            trace.x, trace.y = np.ascontiguousarray(points[spokes].T)
            trace.marker.size = np.where(np.array(spokes) == image, 18, 10).astype(np.float32)

    def tell(self, title: str, quality: Sequence[str]) -> None:
        """The title, and a text under each panel; escaped here."""
        for trace, text in zip(self.points, quality, strict=True):
            axis = self.figure.layout[trace.xaxis.replace("x", "xaxis")]
            axis.title.text = html.escape(text, quote=False).replace("\n", "<br>")
        set_title(self.figure, html.escape(title, quote=False), self.figure.layout.width // 8, below=28)


def _look(codes: Codes, kinds: int) -> dict[str, Any]:
    """Colours, symbols and sizes of points (N,)."""
    grey, colours = codes == kinds, (*PALETTE, GREY)
    symbols = [SYMBOLS[0 if rest else code // len(PALETTE)] for code, rest in zip(codes.tolist(), grey.tolist(), strict=True)]
    return {
        "color": np.where(grey, len(PALETTE), codes % len(PALETTE)).astype(np.float32),
        "colorscale": [(end / len(colours), colour) for i, colour in enumerate(colours) for end in (i, i + 1)],
        "cmin": -0.5,
        "cmax": len(colours) - 0.5,
        "size": np.where(grey, 4, 7).astype(np.float32),
        "symbol": symbols if kinds > len(PALETTE) else SYMBOLS[0],
    }


def _legend_look(i: int, kinds: int) -> dict[str, Any]:
    if i >= kinds:
        return {"color": GREY, "symbol": SYMBOLS[0], "size": 6}
    return {"color": PALETTE[i % len(PALETTE)], "symbol": SYMBOLS[i // len(PALETTE)], "size": 9}
