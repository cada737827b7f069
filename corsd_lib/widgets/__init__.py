"""Explorers: widgets over runs; no maths.

host.py           what an explorer is: an anywidget around the script of the pages, its state, data and answers
relation.py       RelationExplorer; relation_view.py what it shows, pair.py what is behind a cell, relation_picture.py a figure
stages.py         StageExplorer; stage_facts.py its words, stage_picture.py a figure
exits.py          ExitExplorer
attribution.py    AttributionExplorer; attribution_pictures.py, attribution_checks.py its parts, own_images.py
monitor.py        TrainingMonitor; monitor_picture.py a figure
probe_images.py   the images behind a run's snapshots, where the data is; thumbnails.py: small ones

The script is in `corsd_lib.sharing.pages`: what it can decide in the browser is decided there, also while the kernel is busy.

An explorer reads a `Run` and nothing else: live or from a file, of this machine or of another. Data travels to the browser
once and in binary.
"""

from __future__ import annotations

from typing import Any

from corsd_lib.errors import missing_package

try:
    import anywidget  # noqa: F401
    import ipywidgets  # noqa: F401
    import plotly  # noqa: F401
except ImportError as error:
    raise missing_package("an explorer", "ipywidgets", error) from error

from corsd_lib.widgets.exits import ExitExplorer
from corsd_lib.widgets.monitor import TrainingMonitor
from corsd_lib.widgets.relation import RelationExplorer
from corsd_lib.widgets.stages import StageExplorer

__all__ = ["AttributionExplorer", "ExitExplorer", "RelationExplorer", "StageExplorer", "TrainingMonitor"]


def __getattr__(name: str) -> Any:
    if name != "AttributionExplorer":  # it needs captum, which the others do without
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from corsd_lib.widgets.attribution import AttributionExplorer

    return AttributionExplorer
