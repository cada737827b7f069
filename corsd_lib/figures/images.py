"""Images, and what was seen in them."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from corsd_lib.errors import CorsdError
from corsd_lib.figures.style import Matrix, set_title, template


def image_strip(images: Matrix, titles: Sequence[str], title: str = "", *, columns: int = 10, dark: bool = False) -> go.Figure:
    """Small images side by side, row by row, a caption over each. `images` uint8 (N, C, H, W), grey (C = 1) or RGB (C = 3)."""
    pixels = np.asarray(images)
    if pixels.ndim != 4 or pixels.dtype != np.uint8 or pixels.shape[1] not in (1, 3):
        raise CorsdError(f"images of shape {pixels.shape} and type {pixels.dtype}; allowed: uint8 (N, 1 or 3, H, W)")
    if len(titles) != len(pixels):
        raise CorsdError(f"{len(titles)} captions for {len(pixels)} images; one each is wanted")
    count, _, high, wide = pixels.shape
    rows, gap = -(-count // columns), max(2, high // 4)
    canvas = np.zeros((rows * (high + gap), columns * (wide + gap), 4), np.uint8)  # transparent between the images
    figure = go.Figure()
    for i, (image, text) in enumerate(zip(pixels, titles, strict=True)):
        top, left = i // columns * (high + gap) + gap, i % columns * (wide + gap)
        canvas[top : top + high, left : left + wide, :3] = np.moveaxis(np.broadcast_to(image, (3, high, wide)), 0, -1)
        canvas[top : top + high, left : left + wide, 3] = 255
        figure.add_annotation(x=left + wide / 2 - 0.5, y=top - 0.5, text=html.escape(text), showarrow=False, yanchor="bottom")
    figure.add_image(z=canvas, colormodel="rgba256", hoverinfo="skip")
    figure.update_layout(template=template(dark), width=76 * columns, height=40 + 96 * rows)
    set_title(figure, title, 8 * columns)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, scaleanchor="x")
    return figure
