"""Pages: one HTML file that answers to clicks without a kernel or a network.

page.py    the file: plotly.js, our script and style, and the panels' data, each once
panels.py  what there is to show of runs, as plain values and packed arrays
static/    page.js (the page, text, tables and figures), relation.js, stages.js and exits.js (a panel each), page.css
"""

from __future__ import annotations

from corsd_lib.errors import missing_package

try:
    import plotly.graph_objects  # noqa: F401
except ImportError as error:
    raise missing_package("a page", "plotly", error) from error

from corsd_lib.pages.page import Panel, write_page
from corsd_lib.pages.panels import (
    columns_panel,
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
