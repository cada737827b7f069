"""Explorers: widgets that show runs. They only display what the analysis computes.

host.py           base class: an anywidget that runs the JavaScript of an explorer, and answers its requests
relation.py       RelationExplorer; relation_view.py: matrices, pair.py: images of a cell, relation_picture.py: static figure
stages.py         StageExplorer; stage_facts.py: texts, stage_picture.py: static figure
exits.py          ExitExplorer
attribution.py    AttributionExplorer; attribution_pictures.py: maps and texts, attribution_checks.py: tests of a map,
                  own_images.py: the user's own images
monitor.py        TrainingMonitor; monitor_picture.py: static figure
probe_images.py   probe images of a run, if the data is available; thumbnails.py: small copies of them

The JavaScript is in `corsd_lib.sharing.pages`. It asks the kernel only for data that the browser lacks;
everything else works even while the kernel is busy.

An explorer needs only a `Run`, which may be unfinished or from another machine. Data is sent to the browser once, in binary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from corsd_lib.widgets.attribution import AttributionExplorer

__all__ = ["AttributionExplorer", "ExitExplorer", "RelationExplorer", "StageExplorer", "TrainingMonitor"]


def __getattr__(name: str) -> Any:
    if name != "AttributionExplorer":  # it needs captum, the others do not
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from corsd_lib.widgets.attribution import AttributionExplorer

    return AttributionExplorer
