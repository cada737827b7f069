"""Pages: interactive HTML files that need no kernel and no internet connection.

page.py    the HTML file: script, style and data of the panels, each once; plotly.js if a figure needs it
panels.py  the data of the panels of runs, as plain values and packed arrays
static/    one script for pages and notebooks: logic.js (numbers), core.js (elements, state, theme), matrix.js, chart.js and
           points.js (drawing), relation.js, stages.js, exits.js, monitor.js and attribution.js (one explorer each);
           page.js or widget.js, appended to this script for a page or a notebook; explorer.css, the style of the explorers;
           page.css, the style of the rest of a page
"""

from __future__ import annotations

from corsd_lib.errors import missing_package

try:
    import plotly.graph_objects  # noqa: F401
except ImportError as error:
    raise missing_package("a page", "plotly", error) from error

from corsd_lib.sharing.pages.page import Panel, write_page
from corsd_lib.sharing.pages.panels import (
    columns_panel,
    curves_panel,
    exits_panel,
    figure_panel,
    has_superclasses,
    relation_panel,
    run_names,
    stages_panel,
    table_panel,
    text_panel,
)

__all__ = [
    "Panel",
    "columns_panel",
    "curves_panel",
    "exits_panel",
    "figure_panel",
    "has_superclasses",
    "relation_panel",
    "run_names",
    "stages_panel",
    "table_panel",
    "text_panel",
    "write_page",
]
