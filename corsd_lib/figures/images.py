"""Images and attribution maps."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from corsd_lib.errors import CorsdError
from corsd_lib.figures.style import DIVERGING, Matrix, set_title, template

# Width of a strip in pixels; the upper limit is exceeded if tiles would become smaller than _TILES[0].
_NARROWEST, _WIDEST = 560, 900
_TILES = (76, 112)  # smallest and largest height of a tile, an image with the gap below it, in pixels


def image_strip(images: Matrix, titles: Sequence[str], title: str = "", *, columns: int = 10, dark: bool = False) -> go.Figure:
    """Small images in rows of `columns`, with a caption above each.

    The figure is at least 560 pixels wide, so that its title has room.

    `images` uint8 (N, C, H, W), grey (C = 1) or RGB (C = 3); `titles` (N,): the captions; `dark`: colours for a dark page.
    Raises `CorsdError` if the type or shape of images is wrong and for a different number of captions.
    """
    pixels = _pixel_array(images, titles)
    count, _, high, wide = pixels.shape
    rows, gap = -(-count // columns), max(2, -(-high // 3))
    canvas = np.zeros((rows * (high + gap), columns * (wide + gap), 4), np.uint8)  # transparent between the images
    figure = go.Figure()
    for i, (image, text) in enumerate(zip(pixels, titles, strict=True)):
        top, left = i // columns * (high + gap) + gap, i % columns * (wide + gap)
        canvas[top : top + high, left : left + wide, :3] = np.moveaxis(np.broadcast_to(image, (3, high, wide)), 0, -1)
        canvas[top : top + high, left : left + wide, 3] = 255
        figure.add_annotation(x=left + wide / 2 - 0.5, y=top - 0.5, text=html.escape(text), showarrow=False, yanchor="bottom")
    figure.add_image(z=canvas, colormodel="rgba256", hoverinfo="skip")
    shape = columns * max(1, wide / high)
    tile = min(_TILES[1], max(_TILES[0], _WIDEST / shape))  # height of an image and the gap below it
    width = round(max(_NARROWEST, tile * shape))
    side = min(1, tile * shape / width)  # the share of the width that images take, at its left
    figure.update_layout(template=template(dark), width=width, height=round(40 + (tile + 20) * rows), xaxis_domain=[0, side])
    set_title(figure, title, width // 8)
    figure.layout.height += figure.layout.margin.t - 52  # a title of several lines must not take space from the images
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, scaleanchor="x")
    return figure


def image_attribution(
    images: Matrix,
    maps: Matrix,
    titles: Sequence[str],
    title: str = "",
    *,
    unit: str = "contribution to the logit",
    dark: bool = False,
) -> go.Figure:
    """Attribution maps, one row for each image: the image, its map, and the map over the grey image.

    `images` uint8 (n, 1 or 3, H, W); `maps` (n, H, W): signed attributions in the unit of the score, where positive values
    (vermilion) raised the score and negative values (blue) lowered it; `titles` (n,): titles of the rows. All maps have the
    same symmetric colour range. It ends at the 99.5th percentile of all absolute values; larger values have the end colour.
    The default title states, for each image, the smallest share of pixels that contain half of its absolute attribution.
    `unit`: title of the colour bar, which says what the values are. `dark`: colours for a dark page. Raises `CorsdError` if
    shapes do not match or a map is not finite.
    """
    from plotly.subplots import make_subplots

    pixels, values = _pixel_array(images, titles), np.asarray(maps, np.float32)
    if values.shape != (shape := (len(pixels), *pixels.shape[2:])):
        raise CorsdError(f"maps have shape {values.shape} for images of shape {pixels.shape}; allowed: {shape}")
    if not np.isfinite(values).all():
        raise CorsdError("maps have values that are NaN or infinite; allowed: finite values")
    count, _, high, wide = pixels.shape
    heads = [text for name in titles for text in (html.escape(name, quote=False), "attribution", "on the image")]
    figure = make_subplots(
        rows=count,
        cols=3,
        subplot_titles=heads,
        horizontal_spacing=0.02,
        vertical_spacing=0.12 / count,
    )
    for row, (image, values_of) in enumerate(zip(pixels, values, strict=True), start=1):
        _add_row(figure, row, np.moveaxis(np.broadcast_to(image, (3, high, wide)), 0, -1), values_of)
    limit = float(np.percentile(np.abs(values), 99.5)) or float(np.abs(values).max()) or 1.0
    bar = {"title": {"text": html.escape(unit), "side": "right", "font": {"size": 13}}, "thickness": 14, "outlinewidth": 0}
    figure.update_layout(coloraxis={"colorscale": DIVERGING, "cmin": -limit, "cmax": limit, "colorbar": bar})
    figure.update_traces(zmin=-limit, zmax=limit, selector={"name": "over"})
    figure.update_xaxes(visible=False, constrain="domain")
    figure.update_yaxes(visible=False, autorange="reversed", constrain="domain")
    for axis in figure.select_yaxes():
        axis.scaleanchor = axis.anchor
    figure.update_layout(template=template(dark), width=760, height=60 + 240 * count)
    figure.update_annotations(font_size=13)
    set_title(figure, title or _weight_finding(values, titles), 84, below=20)
    return figure


# Opaque where the map is large and transparent where it is zero, so that the image stays visible.
_CLEAR = [
    (0.0, "rgba(69, 150, 200, 1)"),
    (0.35, "rgba(69, 150, 200, 0.35)"),
    (0.5, "rgba(233, 231, 227, 0)"),
    (0.65, "rgba(224, 123, 57, 0.35)"),
    (1.0, "rgba(224, 123, 57, 1)"),
]


def _add_row(figure: go.Figure, row: int, image: npt.NDArray[np.uint8], values: npt.NDArray[np.float32]) -> None:
    grey = np.repeat(image.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
    hover = "row %{y}, column %{x}<br>attribution %{z:+.3g}<extra></extra>"
    figure.add_image(z=image, hovertemplate="row %{y}, column %{x}<extra></extra>", row=row, col=1)
    figure.add_heatmap(z=values, coloraxis="coloraxis", hovertemplate=hover, name="map", row=row, col=2)
    figure.add_image(z=grey, hoverinfo="skip", row=row, col=3)
    over: dict[str, Any] = {"colorscale": _CLEAR, "showscale": False, "name": "over"}
    figure.add_heatmap(z=values, hovertemplate=hover, row=row, col=3, **over)


def _weight_finding(maps: npt.NDArray[np.float32], titles: Sequence[str]) -> str:
    """Default title: for each image, the smallest share of its pixels that contain half of its absolute attribution."""
    said = []
    for name, values in zip(titles, maps, strict=True):
        weight = np.sort(np.abs(values), axis=None)[::-1].cumsum()
        if weight[-1] == 0:
            said.append(f"nothing in {name}")
            continue
        few = int(np.searchsorted(weight, weight[-1] / 2)) + 1
        said.append(f"{100 * few / weight.size:.0f} % of the pixels of {name}")
    return html.escape(f"Half of the attribution lies on {' and '.join(said)}", quote=False)


def _pixel_array(images: Matrix, titles: Sequence[str]) -> npt.NDArray[np.uint8]:
    """`images` as an array (N, 1 or 3, H, W). Raises `CorsdError` unless it is uint8 of that shape and there are N captions."""
    pixels = np.asarray(images)
    if pixels.ndim != 4 or pixels.dtype != np.uint8 or pixels.shape[1] not in (1, 3):
        raise CorsdError(f"images have shape {pixels.shape} and type {pixels.dtype}; allowed: uint8 (N, 1 or 3, H, W)")
    if len(titles) != len(pixels):
        raise CorsdError(f"there are {len(titles)} captions for {len(pixels)} images; expected one for each image")
    return pixels
