"""What all figures share: colours, template, names, titles, and static images."""

from __future__ import annotations

import html
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
from PIL import Image

from corsd_lib.errors import CorsdError, require, shortened
from corsd_lib.files import check_replaceable, write_atomic

# Okabe and Ito's colours without black, the colour of text, and yellow, which is hard to see on white: distinct in all common
# kinds of colour vision.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("solid", "dot", "dash", "dashdot")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "cross")
SCALE = "Viridis"  # sequential, perceptually uniform; low is dark, high is light
# Diverging, for differences and signed maps: the palette's blue and vermilion. Zero is a light grey, distinct from both pages.
DIVERGING = ((0.0, "#053d63"), (0.25, "#4596c8"), (0.5, "#e9e7e3"), (0.75, "#e07b39"), (1.0, "#7a3000"))
PLOTLY = "application/vnd.plotly.v1+json"  # MIME type of a figure in the outputs of a notebook
INK = {False: "#1f2933", True: "#e4e7eb"}
PAPER = {False: "#ffffff", True: "#111418"}
GRID = "rgba(128, 128, 128, 0.25)"
LONGEST = 46  # characters of a name that is drawn; the hover text has the whole name
# Plotly's buttons that are removed: all but those to save a picture and to reset the axes. More would cover the title.
NO_BUTTONS = ["zoom2d", "pan2d", "select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"]
GREY = "#6b7078"  # distinct from the palette also for deuteranopes, with a contrast of 3:1 on both pages
Matrix = npt.ArrayLike

DRAW_SECONDS = 180  # time limit of a static picture, which takes a few seconds on an idle machine
_DRAW = """
import json, sys
try:
    import plotly.io
    size, path = sys.argv[1:]
    plotly.io.from_json(sys.stdin.buffer.read().decode()).write_image(path, format="png", **json.loads(size))
except Exception as error:
    sys.exit(" ".join(str(error).split()))
"""


def template(dark: bool = False) -> go.layout.Template:
    """Plotly template of all figures, for light pages or, with `dark`, for dark ones."""
    axis = {
        "gridcolor": GRID,
        "linecolor": GRID,
        "zerolinecolor": GRID,
        "automargin": True,
        "title": {"standoff": 8, "font": {"size": 13}},
    }
    return go.layout.Template(
        layout={
            "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": INK[dark]},
            "paper_bgcolor": PAPER[dark],
            "plot_bgcolor": PAPER[dark],
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
            "modebar": {"remove": NO_BUTTONS, "bgcolor": "rgba(0, 0, 0, 0)"},
        }
    )


def exit_names(count: int, prefix: str = "exit") -> list[str]:
    """Names of `count` exits (or stages, with the `prefix` "stage"), shallow -> deep, in figures and widgets."""
    if count == 1:
        return [f"{prefix} 1 (the only one)"]
    return [f"{prefix} 1 (shallowest)", *(f"{prefix} {k}" for k in range(2, count)), f"{prefix} {count} (deepest)"]


def line_style(i: int) -> dict[str, Any]:
    """Colour and dash of the `i`-th line of a panel; the dash changes once all colours are used."""
    return {"color": PALETTE[i % len(PALETTE)], "dash": DASHES[i // len(PALETTE) % len(DASHES)], "width": 2}


def as_scores(matrix: Matrix) -> npt.NDArray[np.float32]:
    """`matrix` as float32 scores in [0, 1], which plotly sends in binary; uint8 values are divided by 255."""
    values = np.asarray(matrix)
    scores = values.astype(np.float32)
    return scores / np.float32(255) if values.dtype == np.uint8 else scores


def unique_labels(names: Sequence[str]) -> list[str]:
    """Names as escaped HTML, with a counter added to repeated ones, because a category axis would merge them."""
    return [html.escape(label, quote=False) for label in _unique(names)]


def _unique(names: Sequence[str]) -> list[str]:
    given, labels = set(names), dict[str, None]()
    for name in names:
        label, count = name, 1
        while label in labels or (count > 1 and label in given):
            count += 1
            label = f"{name} ({count})"
        labels[label] = None
    return list(labels)


def short_name(name: str, most: int = LONGEST) -> str:
    """`name`, cut to at most `most` characters with an ellipsis."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def short_names(names: Sequence[str]) -> list[str]:
    """Names of classes as they are drawn: shortened by `short_name` and unique, not escaped."""
    return _unique([short_name(name) for name in names])


def class_labels(names: Sequence[str]) -> list[str]:
    """`short_names` as escaped HTML."""
    return unique_labels([short_name(name) for name in names])


def hover_name(name: str) -> str:
    """A whole name for the hover text of a figure: escaped, in lines of 80 characters, because plotly does not wrap text."""
    lines = [name[at : at + 80] for at in range(0, len(name), 80)] or [""]
    return "<br>".join(html.escape(line, quote=False) for line in lines)


def hover_names(names: Sequence[str]) -> list[str]:
    """Names of classes in hover texts: the whole name if `class_labels` shortens it, else the label from `class_labels`."""
    labels = zip(names, class_labels(names), strict=True)
    return [hover_name(name) if len(name) > LONGEST else label for name, label in labels]


def name_html(name: str) -> str:
    """A name as escaped HTML; a long one is cut, with the whole name on hover."""
    if len(name) <= LONGEST:
        return html.escape(name)
    return f'<span title="{html.escape(name)}">{html.escape(short_name(name))}</span>'


def set_title(figure: go.Figure, title: str, width: int, below: int = 8) -> None:
    """Set a title, wrapped into lines of about `width` characters.

    The top margin is set to the height of the title plus `below` pixels.
    """
    lines = [line for part in title.split("\n") for line in textwrap.wrap(part, width, break_long_words=False)]
    extra = 20 * max(0, len(lines) - 1)
    pad = 14 if len(lines) < 2 else 25  # plotly sets several lines 11 pixels higher than one
    figure.update_layout(title={"text": "<br>".join(lines), "pad": {"t": pad}}, margin={"t": 44 + extra + below})


def save_png(
    figure: go.Figure,
    path: str | Path,
    *,
    width: int | None = None,
    height: int | None = None,
    scale: float = 2,
    colors: int | None = None,
    within: Path | None = None,
) -> Path:
    """Write a figure as a PNG of `width` x `height` CSS pixels times `scale`, and return its path. Chromium draws it in a few
    seconds.

    `colors`: largest number of colours in the file, 1 to 256; 256 is enough for lines and text and makes the file about a third
    of the size. `within`: a folder that contains `path` and must exist. Raises `CorsdError` if `colors` is out of range, if
    Chromium is missing or needs more than `DRAW_SECONDS`, if `path` is a file that is not a PNG, and if the file cannot be
    written. Raises `MissingPackage` if kaleido is missing.
    """
    if colors is not None and not 1 <= colors <= 256:
        raise CorsdError(f"colors = {shortened(colors)}; allowed: 1 to 256")
    check_replaceable(Path(path), b"\x89PNG", "a picture")
    require("a static picture", "kaleido")
    size = {"width": width or figure.layout.width or 980, "height": height, "scale": scale}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            picture = _draw(figure.to_json(), size, Path(folder))
        except RuntimeError as error:
            raise CorsdError(f"cannot draw {path}: {error}. A static picture needs Chromium") from error
    write_atomic(Path(path), _with_colors(picture, colors) if colors else picture, within)
    return Path(path)


def _draw(figure: str, size: dict[str, Any], folder: Path) -> bytes:
    """The PNG of a figure that is given as JSON; `folder` is for temporary files. Raises `RuntimeError` with the reason of a
    failure.

    The figure is drawn in a separate process, which can be killed, because kaleido may wait for Chromium forever.
    """
    with open(folder / "said", "wb") as said:  # not a pipe, which a remaining Chromium process would keep open
        command = [sys.executable, "-P", "-c", _DRAW, json.dumps(size), str(folder / "picture.png")]
        # A new session, so that Chromium can be ended together with it
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=said, start_new_session=True)
        try:
            process.communicate(figure.encode(), timeout=DRAW_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"it was not drawn within {DRAW_SECONDS} seconds") from error
        finally:
            _end(process)
    if process.returncode or not (folder / "picture.png").is_file():
        lines = (folder / "said").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"its process ended with status {process.returncode}")
    return (folder / "picture.png").read_bytes()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process, and the processes that it has started, unless it has ended."""
    if process.poll() is None:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()


def _with_colors(picture: bytes, colors: int) -> bytes:
    """A copy of a PNG with at most `colors` colours."""
    small = io.BytesIO()
    with Image.open(io.BytesIO(picture)) as whole:
        whole.convert("RGB").quantize(colors, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()
