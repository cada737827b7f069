"""Projections of the embeddings of exits, side by side."""

from __future__ import annotations

import html
from collections.abc import Sequence, Sized
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from corsd_lib.errors import CorsdError, shortened
from corsd_lib.figures import style
from corsd_lib.figures.style import GREY, GRID, PALETTE, SCALE, SYMBOLS, Matrix, hover_name, set_title, short_name, template

_COLUMNS = 4  # panels in a row
_SIDES = {3: 280, 4: 250}  # side of a panel in pixels, by number of columns; else 330
# Largest number of points drawn as SVG. WebGL is faster above it, but a page has only 16 WebGL contexts, and a figure takes
# three.
_MOST_SVG = 8000
_MOST_NAMES = 24  # names that a legend has room for; their looks are all different


def embedding_scatter(
    coordinates: Matrix,
    labels: Matrix,
    class_names: Sequence[str],
    titles: Sequence[str],
    title: str = "",
    *,
    colour_by: Sequence[str] | Matrix | None = None,
    colour_name: str = "",
    order: Sequence[str] | None = None,
    grey: str | None = None,
    captions: Sequence[str] | None = None,
    quality: Sequence[str] | None = None,
    annotate: bool = False,
    dark: bool = False,
) -> go.Figure:
    """Images as points, one panel for each exit, all on the same scale; the axes of a projection have no unit.

    `coordinates` (K, N, 2). `labels` (N,): indices of `class_names`. `titles` (K): texts over the panels. `quality` (K): texts
    under them. `colour_by` (N,): names, each with its own colour and symbol, or numbers on the sequential scale; by default the
    class. `colour_name`: title of the legend. `order`: all names, in the order of the legend. By default classes have the order
    of `class_names`, and other names are sorted. `grey`: a name whose points are drawn pale and grey. `annotate`: write the
    name of each class over the median of its points. `captions` (N,): hover texts, with "\\n" between lines; the class by
    default. Trace k is panel k, and its point i is image i, so that selections can be linked. The other traces are the entries
    of the legend; for more than 24 names there is no legend. Raises
    `CorsdError` if shapes do not fit, and if `order` lacks a name.
    """
    points = np.asarray(coordinates, np.float32)
    if points.ndim != 3 or points.shape[2] != 2:
        raise CorsdError(f"coordinates have shape {points.shape}; allowed: (K, N, 2)")
    count, images = points.shape[:2]
    _check_lengths(images, labels=labels, captions=captions, colour_by=colour_by)
    _check_lengths(count, titles=titles, quality=quality)
    classes = [class_names[label] for label in np.asarray(labels).tolist()]
    hover = ["<br>".join(map(hover_name, text.split("\n"))) for text in (classes if captions is None else captions)]
    figure, trace = _panels([_escaped(text) for text in titles]), go.Scatter if count * images <= _MOST_SVG else go.Scattergl
    for k, panel in enumerate(points):
        x, y = np.ascontiguousarray(panel.T)
        place = {"row": k // _COLUMNS + 1, "col": k % _COLUMNS + 1}
        figure.add_trace(trace(x=x, y=y, mode="markers", text=hover, hovertemplate="%{text}<extra></extra>"), **place)
    names = list(order) if order is not None else list(dict.fromkeys(class_names)) if colour_by is None else None
    look = point_look(classes if colour_by is None else colour_by, names)
    figure.update_traces(marker=look, showlegend=False)
    if "showscale" in look:
        figure.data[0].marker.update(showscale=True, colorbar=_colour_bar(colour_name))
    else:
        figure.add_traces(legend_of(classes if colour_by is None else colour_by, names))
        if grey is not None:
            _grey_out(figure, count, np.asarray(classes if colour_by is None else colour_by) == grey, grey)
    _finish(figure, count, quality, colour_name, title, dark)
    if annotate:
        _name_groups(figure, points, np.asarray(classes), dark)
    return figure


def point_look(colour_by: Sequence[str] | Matrix, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Plotly marker for a scatter trace: the colours and symbols of N points.

    `colour_by` (N,): a name or a number for each point; only names have symbols. `names`: all names in their order; sorted by
    default. There are six colours and six symbols; after 36 names they repeat. Colours are given as numbers on a colour scale,
    because plotly sends numbers to a browser in binary. Raises `CorsdError` if `names` lacks a name.
    """
    values = np.asarray(colour_by)
    if values.dtype.kind not in "UO":
        rim = {"width": 0.5, "color": GREY}  # the ends of the scale are close to a light or a dark background
        return {"size": 6, "color": values.astype(np.float32), "colorscale": SCALE, "showscale": False, "line": rim}
    codes = _codes(values, names)
    colours, steps = codes % len(PALETTE), len(PALETTE)
    scale = [(end / steps, colour) for i, colour in enumerate(PALETTE) for end in (i, i + 1)]
    symbols = [SYMBOLS[code // steps % len(SYMBOLS)] for code in codes.tolist()]
    ends = {"cmin": -0.5, "cmax": steps - 0.5}
    return {"size": 6, "color": colours.astype(np.float32), "colorscale": scale, "symbol": symbols, **ends}


def legend_of(colour_by: Sequence[str] | Matrix, names: Sequence[str] | None = None) -> list[go.Scatter]:
    """Legend of a scatter with `point_look`: one trace without points for each name.

    Returns [] if `colour_by` is numeric or has more than 24 names.
    """
    values = np.asarray(colour_by)
    if values.dtype.kind not in "UO":
        return []
    names = sorted(set(values.tolist())) if names is None else list(names)
    if len(names) > _MOST_NAMES:
        return []
    return [
        go.Scatter(x=[None], y=[None], mode="markers", name=_escaped(short_name(name)), hoverinfo="skip", marker=_look(i))
        for i, name in enumerate(names)
    ]


def _look(i: int) -> dict[str, Any]:
    return {"color": PALETTE[i % len(PALETTE)], "symbol": SYMBOLS[i // len(PALETTE) % len(SYMBOLS)], "size": 8}


def _codes(values: Any, names: Sequence[str] | None) -> Any:
    """Indices (N,) of the values in `names` (default: the sorted values). Raises `CorsdError` if `names` lacks a value."""
    names = sorted(set(values.tolist())) if names is None else names
    index = {name: i for i, name in enumerate(names)}
    unknown = sorted(set(values.tolist()) - set(index))
    if unknown:
        raise CorsdError(f"colour_by contains {shortened(unknown[0])}, which is not in the given order: {', '.join(names)}")
    return np.array([index[value] for value in values.tolist()], np.int64)


def _escaped(text: str) -> str:
    return html.escape(text, quote=False).replace("\n", "<br>")


def _grey_out(figure: go.Figure, count: int, rest: Any, name: str) -> None:
    """Draw some points of the first `count` traces, and the entry `name` of the legend, as pale grey circles.

    `rest`: bool (N,), True for these points.
    """
    for panel in figure.data[:count]:
        look = panel.marker
        colours = [GREY if out else PALETTE[int(code)] for code, out in zip(look.color, rest, strict=True)]
        symbols = ["circle" if out else symbol for symbol, out in zip(look.symbol, rest, strict=True)]
        panel.marker = {"size": 6, "color": colours, "symbol": symbols, "opacity": np.where(rest, 0.25, 1.0)}
    for entry in figure.data[count:]:
        if entry.name == _escaped(short_name(name)):
            entry.marker = {"size": 8, "color": GREY, "symbol": "circle", "opacity": 0.4}


def _check_lengths(wanted: int, **given: Any) -> None:
    for name, values in given.items():
        if isinstance(values, Sized) and len(values) != wanted:
            raise CorsdError(f"{len(values)} {name}; {wanted} are expected, one each")


def _panels(titles: Sequence[str]) -> go.Figure:
    from plotly.subplots import make_subplots

    columns = min(len(titles), _COLUMNS)
    rows = -(-len(titles) // _COLUMNS)
    return make_subplots(
        rows=rows, cols=columns, subplot_titles=titles, horizontal_spacing=0.05 / columns, vertical_spacing=0.16 / rows
    )


def _finish(figure: go.Figure, count: int, quality: Sequence[str] | None, colour_name: str, title: str, dark: bool) -> None:
    """Format a scatter of `count` panels: equal scales without numbers, `quality` below the panels, size, legend and title."""
    columns, rows = min(count, _COLUMNS), -(-count // _COLUMNS)
    bare = {"showticklabels": False, "ticks": "", "showgrid": False, "zeroline": False, "showline": True, "mirror": True}
    figure.update_xaxes(**bare, matches="x", linecolor=GRID)
    figure.update_yaxes(**bare, matches="y", linecolor=GRID)
    figure.update_yaxes(scaleanchor="x", selector={"anchor": "x"})
    for k, text in enumerate(quality or ()):
        figure.update_xaxes(title=_escaped(text), row=k // _COLUMNS + 1, col=k % _COLUMNS + 1)
    side, entries = _SIDES.get(columns, 330), [trace.name for trace in figure.data[count:]]
    legend_width = 60 + 7 * max(map(len, [colour_name, *entries])) if entries else 90
    high = max(90 + (side + 50) * rows, 150 + 20 * len(entries))
    legend = {"title": {"text": _escaped(colour_name)}, "font": {"size": 11}, "tracegroupgap": 0, "y": 1, "yanchor": "top"}
    figure.update_layout(template=template(dark), width=side * columns + legend_width, height=high)
    figure.update_layout(legend={**legend, "itemclick": False, "itemdoubleclick": False})
    figure.update_annotations(font_size=13, yshift=4)
    set_title(figure, title, figure.layout.width // 9, below=28)


def _name_groups(figure: go.Figure, points: Any, classes: Any, dark: bool) -> None:
    """Write the short name of every class at the median of its points, in every panel. Names that would touch are moved apart.

    `points` (K, N, 2): positions in K panels. `classes` (N,): class names of the points. If there are more than 24 names,
    none is moved.
    """
    look = {"showarrow": False, "font": {"size": 13, "color": style.INK[dark]}}
    pixels = 0.85 * _SIDES.get(min(len(points), _COLUMNS), 330) / max(float(np.ptp(points, axis=(0, 1)).max()), 1e-9)
    for k, panel in enumerate(points):
        place = {"row": k // _COLUMNS + 1, "col": k % _COLUMNS + 1}
        names = list(dict.fromkeys(classes.tolist()))
        middles = np.stack([np.median(panel[classes == name], axis=0) for name in names])
        shifts = _moved_apart(middles * pixels + [0, 13], names) - middles * pixels
        for name, (x, y), (right, up) in zip(names, middles.tolist(), shifts.tolist(), strict=True):
            text = _escaped(short_name(name))
            figure.add_annotation(x=x, y=y, xshift=right, yshift=up, text=text, **look, **place)


def _moved_apart(places: npt.NDArray[np.float64], names: Sequence[str]) -> npt.NDArray[np.float64]:
    """Positions (n, 2) of names in pixels, after overlapping names were moved apart.

    If there are more than 24 names, none is moved. The 40 rounds of moves are enough for a dozen names.
    """
    places = places.copy()
    if len(places) > _MOST_NAMES:  # there is no room for so many names, and moving them takes seconds
        return places
    for _ in range(40):
        for a in range(len(places)):
            for b in range(a):
                room = np.array([4 + 4 * (len(short_name(names[a])) + len(short_name(names[b]))), 15])
                gap = places[a] - places[b]
                if (np.abs(gap) < room).all():
                    axis = int(np.argmax(np.abs(gap) / room))  # the shorter way out
                    step = (room[axis] - abs(gap[axis])) / 2 * (1 if gap[axis] >= 0 else -1)
                    places[a, axis] += step
                    places[b, axis] -= step
    return places


def _colour_bar(name: str) -> dict[str, Any]:
    return {"title": {"text": _escaped(name), "side": "right"}, "thickness": 14, "outlinewidth": 0}
