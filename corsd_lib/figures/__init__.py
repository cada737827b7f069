"""Arrays in, plotly figure out: no computing, no widgets.

One categorical palette and one sequential scale for everything, both safe for colour-blind readers. A title states the finding
and comes from the caller, who has the numbers; axes carry their units. Names from data are escaped: plotly reads HTML tags.

style.py      palette, scale, template, names of exits, titles; pictures as files
relations.py  relation matrices
curves.py     a training over its epochs
exits.py      what exits are worth
images.py     images, and what was seen in them
studies.py    methods side by side
"""

from __future__ import annotations

try:
    import plotly.graph_objects  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"figures need {error.name}, which is not installed: pip install 'corsd_lib[notebooks]'", name=error.name
    ) from error

from corsd_lib.figures.curves import training_curves
from corsd_lib.figures.exits import exit_accuracy_bars
from corsd_lib.figures.images import image_strip
from corsd_lib.figures.relations import relation_heatmap
from corsd_lib.figures.studies import accuracy_by_method, gain_by_method
from corsd_lib.figures.style import PALETTE, PLOTLY, SCALE, exit_names, save_png, template

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
