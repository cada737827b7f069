"""Explorers: ipywidgets over runs and figures; no maths.

base.py         what every explorer is: a box in the page's colours, a busy sign, files of what is shown
probe_images.py the images behind a run's snapshots, where the data is
relation.py     RelationExplorer
monitor.py      TrainingMonitor

An explorer reads a `Run` and nothing else: live or from a file, of this machine or of another. Matrices travel to the browser
in binary, 4 bytes a score, never as lists.
"""

from __future__ import annotations

try:
    import anywidget  # noqa: F401  (plotly's FigureWidget stands on it)
    import ipywidgets  # noqa: F401
    import plotly  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"the explorers need {error.name}, which is not installed: pip install 'corsd_lib[notebooks]'", name=error.name
    ) from error

from corsd_lib.widgets.monitor import TrainingMonitor
from corsd_lib.widgets.relation import RelationExplorer

__all__ = ["RelationExplorer", "TrainingMonitor"]
