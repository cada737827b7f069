"""Relations as heatmaps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from corsd_lib.errors import CorsdError
from corsd_lib.figures.style import SCALE, Matrix, as_scores, set_title, template, unique_labels


def relation_heatmap(matrix: Matrix, class_names: Sequence[str], title: str = "", *, dark: bool = False) -> go.Figure:
    """Class x class relation as a heatmap, row c = class of the first image, column d = of the second.

    `matrix` (C, C): floats in [0, 1] (1 = related, NaN is left blank), or uint8 where 255 stands for 1. The colour range is
    always 0 to 1, so that two matrices can be compared by eye. Raises `CorsdError` when shape and names do not fit.
    """
    values, names = as_scores(matrix), unique_labels(class_names)
    if values.shape != (len(names), len(names)):
        raise CorsdError(f"relation matrix of shape {values.shape} does not fit {len(names)} class names; (C, C) is wanted")
    figure = go.Figure(relation_trace(values, names))
    figure.update_layout(template=template(dark), width=560, height=540)
    set_title(figure, title, 64)
    square_class_axes(figure, len(names))
    return figure


def relation_trace(values: npt.NDArray[np.float32], names: Sequence[str]) -> go.Heatmap:
    """The heatmap of `relation_heatmap` as a trace, for figures that hold more than one thing; `names` are escaped ones."""
    return go.Heatmap(
        z=values,
        x=list(names),
        y=list(names),
        zmin=0,
        zmax=1,
        colorscale=SCALE,
        colorbar={"title": {"text": "relation", "side": "right"}, "tickformat": ".1f", "thickness": 14, "outlinewidth": 0},
        hovertemplate="%{y} with %{x}<br>relation %{z:.3f}<extra></extra>",
        hoverongaps=False,
    )


def square_class_axes(figure: go.Figure, classes: int, **where: int) -> None:
    """Category axes of a class x class heatmap: square cells, the first class at the top left; up to 20 names all shown."""
    every = {"dtick": 1} if classes <= 20 else {}
    figure.update_xaxes(
        type="category", title="class of the second image", constrain="domain", showgrid=False, **every, **where
    )
    figure.update_yaxes(
        type="category",
        title="class of the first image",
        autorange="reversed",
        scaleanchor=next(iter(figure.select_xaxes(**where))).plotly_name.replace("axis", ""),
        constrain="domain",
        showgrid=False,
        **every,
        **where,
    )
