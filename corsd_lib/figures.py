"""Arrays in, plotly figure out: no computing, no widgets.

One categorical palette and one sequential scale for everything, both safe for colour-blind readers. A title states the finding
and comes from the caller, who has the numbers; axes carry their units. Names from data are escaped: plotly reads HTML tags.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from corsd_lib.errors import CorsdError

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
else:
    try:
        import plotly.graph_objects as go
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"figures need {error.name}, which is not installed: pip install 'corsd_lib[notebooks]'", name=error.name
        ) from error

__all__ = [
    "PALETTE",
    "PLOTLY",
    "SCALE",
    "accuracy_by_method",
    "exit_accuracy_bars",
    "exit_names",
    "gain_by_method",
    "image_strip",
    "relation_heatmap",
    "save_png",
    "template",
    "training_curves",
]

# Okabe and Ito's colours without black and the yellow that vanishes on white: told apart by all common kinds of colour vision.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("solid", "dot", "dash", "dashdot")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "cross")
SCALE = "Viridis"  # sequential, even steps to every eye; low is dark, high is light

PLOTLY = "application/vnd.plotly.v1+json"  # what a figure is called in a notebook's outputs

_INK = {False: "#1f2933", True: "#e4e7eb"}
_PAPER = {False: "#ffffff", True: "#111418"}
_GRID = "rgba(128, 128, 128, 0.25)"
_GREY = "#8a8f98"
_ENDS = ("top1", "top1_low", "top1_high")

Matrix = npt.ArrayLike
Point = tuple[str, float, float, float | None, float | None]  # label, height, mean, ends of the interval


def template(dark: bool = False) -> go.layout.Template:
    """The look of every figure: light by default, `dark` for dark pages."""
    axis = {
        "gridcolor": _GRID,
        "linecolor": _GRID,
        "zerolinecolor": _GRID,
        "automargin": True,
        "title": {"standoff": 8, "font": {"size": 13}},
    }
    return go.layout.Template(
        layout={
            "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": _INK[dark]},
            "paper_bgcolor": _PAPER[dark],
            "plot_bgcolor": _PAPER[dark],
            "colorway": PALETTE,
            "title": {
                "x": 0.01,
                "xref": "container",
                "xanchor": "left",
                "y": 1,
                "yanchor": "top",
                "pad": {"t": 14},
                "font": {"size": 15},
            },
            "xaxis": axis,
            "yaxis": axis,
            "margin": {"l": 10, "r": 10, "t": 40, "b": 10},
            "hoverlabel": {"font": {"family": "system-ui, sans-serif"}},
        }
    )


def exit_names(count: int, what: str = "exit") -> list[str]:
    """Names of `count` exits (or stages), shallow -> deep, as figures and widgets write them."""
    if count == 1:
        return [f"{what} 1 (the only one)"]
    return [f"{what} 1 (shallowest)", *(f"{what} {k}" for k in range(2, count)), f"{what} {count} (deepest)"]


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


def training_curves(runs: Mapping[str, pd.DataFrame], title: str = "", *, dark: bool = False) -> go.Figure:
    """Train accuracy of every exit (%) and every part of the loss over the epochs, one row of panels a run.

    `runs`: name -> `Run.metrics`. The parts are drawn unweighted, as they are recorded, on a logarithmic axis. Raises
    `CorsdError` when there is no run, or one without an epoch.
    """
    from plotly.subplots import make_subplots

    for name, metrics in runs.items():
        if metrics.empty:
            raise CorsdError(f"run {name!r} has no finished epoch: there is nothing to draw")
    if not runs:
        raise CorsdError("training_curves needs at least one run")
    names = [html.escape(name) for name in runs]
    panels = [text for name in names for text in (f"{name}: train accuracy", f"{name}: parts of the loss")]
    figure = make_subplots(
        rows=len(runs), cols=2, subplot_titles=panels, horizontal_spacing=0.11, vertical_spacing=0.4 / (1 + len(runs))
    )
    for row, (name, metrics) in enumerate(runs.items()):
        _add_curves(figure, row, metrics, name)
    figure.update_annotations(font_size=13, yshift=4)
    figure.update_xaxes(title="epoch", rangemode="tozero")
    figure.update_layout(template=template(dark), height=40 + 330 * len(runs), margin={"r": 160})
    set_title(figure, title, 100, below=32)
    return figure


def _add_curves(figure: go.Figure, row: int, metrics: pd.DataFrame, run: str) -> None:
    """Accuracy and loss panels of one run, each with a legend of its own: in the empty corner, and at the right."""
    columns = [str(c) for c in metrics.columns]
    exits = [c for c in columns if c.startswith("train_top1.")]
    parts = [c for c in columns if c.startswith("loss.")]
    panels = ((exits, exit_names(len(exits))), (parts, [part.removeprefix("loss.") for part in parts]))
    for panel, (chosen, labels) in enumerate(panels):
        legend = f"legend{2 * row + panel + 1}" if row or panel else "legend"
        for i, (column, label) in enumerate(zip(chosen, labels, strict=True)):
            figure.add_scatter(
                x=metrics["epoch"].to_numpy(),
                y=metrics[column].to_numpy(np.float32),
                name=html.escape(label),
                legend=legend,
                line=line_style(i),
                hovertemplate=f"%{{y:.3g}}<extra>{html.escape(run)}, {html.escape(label)}</extra>",
                row=row + 1,
                col=panel + 1,
            )
        _place_legend(figure, legend, row + 1, panel + 1)
    figure.update_yaxes(title="images right (%)", range=[0, 101], row=row + 1, col=1)
    figure.update_yaxes(title="unweighted value", type="log", dtick=1, tickformat="~g", row=row + 1, col=2)


def _place_legend(figure: go.Figure, legend: str, row: int, column: int) -> None:
    (_, right), (low, high) = (getattr(figure.get_subplot(row, column), axis).domain for axis in ("xaxis", "yaxis"))
    place = (
        {"x": right, "xanchor": "right", "y": low, "yanchor": "bottom"}
        if column == 1
        else {"x": right, "y": high, "yanchor": "top"}
    )
    figure.update_layout({legend: {**place, "font": {"size": 11}, "tracegroupgap": 0, "bgcolor": "rgba(0,0,0,0)"}})


def line_style(i: int) -> dict[str, Any]:
    """Colour and dash of the `i`-th line of a panel; the colours are used up before a dash is."""
    return {"color": PALETTE[i % len(PALETTE)], "dash": DASHES[i // len(PALETTE) % len(DASHES)], "width": 2}


def exit_accuracy_bars(
    accuracy: Mapping[str, Sequence[float]],
    title: str = "",
    *,
    error: Mapping[str, Sequence[float]] | None = None,
    ylabel: str = "test images right (%)",
    dark: bool = False,
) -> go.Figure:
    """Accuracy (%) of every exit, shallow -> deep, a group of bars an exit and a colour a run; bars start at 0.

    `accuracy`: run -> one value an exit; `error`: the same shape, half-widths of intervals in percentage points. Raises
    `CorsdError` when runs have different numbers of exits.
    """
    counts = {name: len(values) for name, values in accuracy.items()}
    if len(set(counts.values())) != 1:
        raise CorsdError(f"exit_accuracy_bars needs runs with the same number of exits; there are {counts}")
    exits = exit_names(next(iter(counts.values())))
    figure = go.Figure()
    for name, values in accuracy.items():
        bars = {"array": np.asarray(error[name], np.float32), "thickness": 1.2, "color": _INK[dark]} if error else None
        figure.add_bar(
            x=exits,
            y=np.asarray(values, np.float32),
            error_y=bars,
            name=html.escape(name),
            text=[f"{v:.1f}" for v in values],
            textposition="inside",
            insidetextanchor="middle",
            hovertemplate=f"{html.escape(name)}, %{{x}}<br>%{{y:.2f}} %<extra></extra>",
        )
    figure.update_layout(template=template(dark), width=720, height=400, bargap=0.3, bargroupgap=0.06)
    figure.update_layout(legend={"orientation": "h", "y": -0.12, "yanchor": "top", "x": 0})
    figure.update_yaxes(title=ylabel, range=[0, 102])
    set_title(figure, title, 84)
    return figure


def accuracy_by_method(summary: Mapping[str, Any], *, dark: bool = False) -> go.Figure:
    """Test top-1 (%) of every exit of every row of a study with its 95 % interval; the title names the best deepest exit.

    `summary` is what `corsd_lib.tables.summarise` gives. Within a row shallow exits lie above deep ones; the dotted line is the
    baseline's deepest exit. Raises `CorsdError` when there is no row.
    """
    methods = summary["methods"]
    if not methods:
        raise CorsdError("accuracy_by_method needs a row with a record")
    most = max(len(m["top1"]) for m in methods.values())
    figure = go.Figure()
    for back, name in enumerate(reversed(exit_names(most)), 1):  # counted from the deepest exit, which every row has
        points = [
            (f"{m['label']}, {name}", row + 0.15 * (len(m["top1"]) / 2 + 0.5 - back), *(m[k][-back] for k in _ENDS))
            for row, m in enumerate(methods.values())
            if len(m["top1"]) >= back
        ]
        i = (back - 1) % len(PALETTE)
        _add_points(figure, points, "%", name=name, marker={"color": PALETTE[i], "symbol": SYMBOLS[i], "size": 9})
    best, reference = max(methods.values(), key=lambda m: m["top1"][-1]), methods.get(summary["baseline"])
    title = f"{best['label']}'s deepest exit is the most accurate on average: {best['top1'][-1]:.1f} %"
    axis = "test images right (%), mean over seeds and 95 % interval"
    if reference is not None:
        figure.add_vline(x=reference["top1"][-1], line={"dash": "dot", "width": 1, "color": _INK[dark]})
        title += "" if best is reference else f"; {reference['label']}: {reference['top1'][-1]:.1f} %"
        axis += f"; dotted: {html.escape(reference['label'])}"
    figure.update_layout(legend={"traceorder": "reversed", "orientation": "h", "y": 1, "yanchor": "bottom"}, xaxis_title=axis)
    return _with_rows(figure, [m["label"] for m in methods.values()], title, dark)


def gain_by_method(summary: Mapping[str, Any], *, dark: bool = False) -> go.Figure:
    """Gain of every row's deepest exit over the baseline's, points, paired by seed, with its 95 % interval; best on top.

    `summary` is what `corsd_lib.tables.summarise` gives. Rings are single seeds; a row whose interval holds zero is grey. The
    title names the largest gain with an interval above zero. Raises `CorsdError` when no row has a gain.
    """
    methods = sorted((m for m in summary["methods"].values() if m["gain"] is not None), key=lambda m: -m["gain"])
    if not methods:
        raise CorsdError("gain_by_method needs a row that has a seed in common with the baseline")
    reference = summary["methods"][summary["baseline"]]
    figure = go.Figure()
    for row, m in enumerate(methods):
        pairs = [(s, top1[-1], reference["top1_by_seed"].get(s)) for s, top1 in m["top1_by_seed"].items()]
        seeds = [(f"{m['label']}, seed {s}", row + 0.25, a - b[-1], None, None) for s, a, b in pairs if b]
        _add_points(figure, seeds, "points", marker={"symbol": "circle-open", "size": 6, "color": _GREY})
        low, high = m["gain_low"], m["gain_high"]
        colour = _GREY if low is None or low <= 0 <= high else PALETTE[0 if low > 0 else 1]
        _add_points(figure, [(m["label"], row, m["gain"], low, high)], "points", marker={"color": colour, "size": 10})
    figure.add_vline(x=0, line={"width": 1, "color": _INK[dark]})
    figure.update_layout(showlegend=False, xaxis_title="gain (points of test top-1, paired by seed), 95 % interval")
    return _with_rows(figure, [m["label"] for m in methods], _gain_title(methods, reference["label"]), dark)


def _gain_title(methods: Sequence[Mapping[str, Any]], reference: str) -> str:
    """The finding; `methods` from the largest gain down."""
    over = f"over {'the ' if reference[:1].islower() else ''}{reference}"
    if all(m["gain_low"] is None for m in methods):
        return f"One seed a method: gains {over} have no interval yet"
    best = next((m for m in methods if (m["gain_low"] or 0) > 0), None)
    if best is None:
        return f"No method's gain {over} has an interval above zero"
    ends = f"[{best['gain_low']:.1f}, {best['gain_high']:.1f}]"
    return f"{best['label']}'s deepest exit gains {best['gain']:.1f} points {ends} {over}"


def _add_points(figure: go.Figure, points: Sequence[Point], unit: str, **style: Any) -> None:
    """A marker for each point, with a bar from low to high where there is one."""
    _, levels, means, _, highs = zip(*points, strict=True)
    bars = [None if high is None else high - mean for mean, high in zip(means, highs, strict=True)]
    error = {"array": bars, "thickness": 1.6, "width": 4} if any(bars) else None
    ends = ["" if low is None else f" [{low:.2f}, {high:.2f}]" for *_, low, high in points]
    text = [f"{html.escape(p[0])}<br>{p[2]:.2f}{end} {unit}<extra></extra>" for p, end in zip(points, ends, strict=True)]
    figure.add_scatter(x=means, y=levels, error_x=error, mode="markers", hovertemplate=text, **style)


def _with_rows(figure: go.Figure, labels: Sequence[str], title: str, dark: bool) -> go.Figure:
    """The figure with rows of a study from top to bottom, and its title."""
    rows = {"tickvals": list(range(len(labels))), "ticktext": [html.escape(label) for label in labels], "zeroline": False}
    figure.update_layout(template=template(dark), width=860, height=130 + 42 * len(labels), xaxis_zeroline=False)
    figure.update_yaxes(**rows, range=[len(labels) - 0.4, -0.6])
    set_title(figure, html.escape(title, quote=False), 96, below=32)
    return figure


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


def save_png(
    figure: go.Figure, path: str | Path, *, width: int | None = None, height: int | None = None, scale: float = 2
) -> Path:
    """Write a static picture, `width` x `height` in CSS pixels times `scale`; some seconds, a Chromium draws it.

    Raises `CorsdError` when kaleido or a Chromium is missing.
    """
    try:
        figure.write_image(path, format="png", width=width or figure.layout.width or 980, height=height, scale=scale)
    except (ImportError, RuntimeError, ValueError) as error:
        raise CorsdError(
            f"cannot draw {path}: {error}. A static picture needs kaleido (pip install 'corsd_lib[notebooks]') and Chromium"
        ) from error
    return Path(path)


def as_scores(matrix: Matrix) -> npt.NDArray[np.float32]:
    """Scores in [0, 1] as float32, the type that is shipped to a browser in binary; uint8 is read as 255ths."""
    values = np.asarray(matrix)
    scores = values.astype(np.float32)
    return scores / np.float32(255) if values.dtype == np.uint8 else scores


def unique_labels(names: Sequence[str]) -> list[str]:
    """Escaped names, a counter added where one repeats: a category axis would merge equal ones."""
    seen: dict[str, int] = {}
    labels = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        labels.append(html.escape(name if seen[name] == 1 else f"{name} ({seen[name]})", quote=False))
    return labels


def set_title(figure: go.Figure, title: str, width: int, below: int = 8) -> None:
    """A title broken into lines of about `width` characters, which plotly does not do, and the room that it takes."""
    lines = [line for part in title.split("\n") for line in textwrap.wrap(part, width, break_long_words=False)]
    extra = 20 * max(0, len(lines) - 1)
    figure.update_layout(title={"text": "<br>".join(lines), "pad": {"t": 14 + extra}}, margin={"t": 44 + extra + below})
