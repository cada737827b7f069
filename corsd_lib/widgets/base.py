"""What every explorer is: a box in the page's colours with one main figure, a busy sign, and files of what is shown."""

from __future__ import annotations

import html
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ipywidgets as ipw
import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from corsd_lib.figures.style import PLOTLY, save_png
from corsd_lib.pages import Panel, write_page

# Of plotly's buttons over a figure: none that sends it to plotly's servers, none that takes room from the title.
BUTTONS = {
    "displaylogo": False,
    "showSendToCloud": False,
    "modeBarButtonsToRemove": ["zoomIn2d", "zoomOut2d", "autoScale2d"],
}
Scores = npt.NDArray[np.float32]

# The page's own colours: figures turn dark with JupyterLab, and stay dark on light where there is no such theme.
_INK = "var(--jp-ui-font-color1, #1f2933)"
_ARROW = (  # ipywidgets draws its own in black, whatever the theme
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 18 18'>"
    "<path d='M5 7l4 4 4-4' fill='none' stroke='%23c8ccd2' stroke-width='1.6'/></svg>"
)
_STYLE = f"""<style>
.corsd .js-plotly-plot .main-svg, .corsd .js-plotly-plot .svg-container {{ background: transparent !important; }}
.corsd .js-plotly-plot .bglayer .bg, .corsd .js-plotly-plot .legend .bg {{ fill: transparent !important; }}
.corsd .js-plotly-plot :is(.infolayer, .xaxislayer-above, .yaxislayer-above) text {{ fill: {_INK} !important; }}
.corsd .modebar-group {{ background: transparent !important; }}
.corsd .modebar-btn path {{ fill: {_INK} !important; }}
.corsd :is(p, figcaption) {{ color: {_INK}; }}
.corsd table {{ border-collapse: collapse; font-size: 13px; line-height: 1.5; color: {_INK}; }}
.corsd caption {{ caption-side: top; text-align: left; padding: 6px 0; color: {_INK}; }}
.corsd th, .corsd td {{ padding: 3px 10px; text-align: right; border-bottom: 1px solid var(--jp-border-color2, #ccc); }}
.corsd th:first-child {{ text-align: left; }}
.corsd {{ position: relative; }}
.corsd .corsd-busy {{ position: absolute; top: 4px; right: 12px; z-index: 5; display: inline-flex; gap: 8px;
  align-items: center; padding: 2px 10px; border-radius: 6px; color: {_INK}; background: var(--jp-layout-color2, #f0f2f5); }}
.corsd .corsd-busy::before {{ content: ""; width: 14px; height: 14px; border-radius: 50%; border: 2px solid {_INK};
  border-top-color: transparent; animation: corsd-turn 0.8s linear infinite; }}
[data-jp-theme-light="false"] .corsd select {{ background-image: url("data:image/svg+xml,{_ARROW}"); }}
@keyframes corsd-turn {{ to {{ transform: rotate(360deg); }} }}
</style>"""


class Explorer(ipw.VBox):
    """A box around one main figure, in the page's colours. A saved notebook, where no kernel answers, still has the figure."""

    figure: go.FigureWidget

    def __init__(self, figure: go.FigureWidget, children: Sequence[ipw.Widget]) -> None:
        self.figure, self._displayed = figure, False
        figure._config = BUTTONS
        self._rest: tuple[str, Callable[[], None]] | None = None
        self._drawing_rest = threading.RLock()
        self._busy = ipw.HTML()
        super().__init__([ipw.HTML(_STYLE), self._busy, *children])
        self.add_class("corsd")

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        # A change made before the figure is drawn is a message to a script that may not be loaded yet. plotly sends the whole
        # state again when a figure itself is displayed; inside a box nobody asks it to.
        self.figure._repr_mimebundle_()
        if self._displayed:
            _renew_models(self)
        self._displayed = True
        if self._rest is not None:
            threading.Thread(target=self.complete, daemon=True).start()
        return {**super()._repr_mimebundle_(**options), PLOTLY: {**json.loads(self.picture().to_json()), "config": BUTTONS}}

    def _leave(self, what: str, draw: Callable[[], None]) -> None:
        """The first view does not wait for `draw`, which takes its time because of `what`."""
        self._rest = what, draw

    def complete(self) -> None:
        """Draw what the first view did not wait for; once the explorer is displayed, and on any change, this goes by itself."""
        with self._drawing_rest:
            if self._rest is None:
                return
            (what, draw), self._rest = self._rest, None
            with self.busy(what):
                draw()

    def picture(self) -> go.Figure:
        """The figure as it is now, without the widget."""
        return go.Figure(self.figure).for_each_trace(as_matrix, {"type": "heatmap"})

    def save_png(self, path: str | Path, **options: Any) -> Path:
        """Write the figure as it is now as a static picture; options and errors as of `corsd_lib.figures.save_png`."""
        return save_png(self.picture(), path, **options)

    def to_html(self, path: str | Path) -> Path:
        """Write one HTML file that answers as the explorer does, without kernel or network, and begins as it is now."""
        return write_page(path, self.panels())

    def panels(self) -> list[Panel]:
        """What `to_html` writes."""
        raise NotImplementedError

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """A turning sign and `what` is being done, as long as it takes."""
        self._busy.value = f'<span class="corsd-busy" role="status">{html.escape(what)}…</span>'
        try:
            yield
        finally:
            self._busy.value = ""


def _renew_models(box: ipw.Box) -> None:
    """A new model in the browser for every figure in a box that is displayed again.

    When a cell runs again its old output goes, but plotly's script still sends changes to the plot that was in it, fails, and
    with that the new plot gets none. The old model takes its listeners along.
    """
    for child in box.children:
        if isinstance(child, go.FigureWidget):
            child._repr_mimebundle_()  # all that changed since the last model was made
            old, child.comm, child._model_id = child.comm, None, None
            child.open()
            box.send_state("children")
            old.close()
        elif isinstance(child, ipw.Box):
            _renew_models(child)


def cell_by_cell(heatmap: go.Heatmap) -> go.Heatmap:
    """The same heatmap as three columns, x, y and z of every cell, row by row.

    A FigureWidget sends columns in binary, 4 bytes a score. A matrix it sends as lists of numbers, five times as long, without
    NaN; and one that is packed by hand comes back from the browser, unpacked to megabytes, after every change.
    """
    rows, columns = np.asarray(heatmap.y), np.asarray(heatmap.x)
    x, y = np.tile(columns, len(rows)), np.repeat(rows, len(columns))
    texts = None if heatmap.hovertext is None else np.asarray(heatmap.hovertext, object).ravel()
    return heatmap.update(x=x, y=y, z=np.asarray(heatmap.z).ravel(), hovertext=texts)


def as_matrix(heatmap: go.Heatmap) -> go.Heatmap:
    """What `cell_by_cell` was made from; better for files, where the names of the cells would weigh more than the scores."""
    columns, rows = (list(dict.fromkeys(names)) for names in (heatmap.x, heatmap.y))
    shape = len(rows), len(columns)
    texts = None if heatmap.hovertext is None else np.asarray(heatmap.hovertext, object).reshape(shape)
    return heatmap.update(x=columns, y=rows, z=np.asarray(heatmap.z).reshape(shape), hovertext=texts)
