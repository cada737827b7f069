"""Arrays in, plotly figure out: no computing, no widgets.

One categorical palette, one sequential and one diverging scale for everything, all safe for colour-blind readers. A title
states the finding: the caller's, who has the numbers, or where none is given what a figure can tell from what it draws. Titles
are HTML, names from data are escaped; axes carry their units.

style.py       palette, scales, template, names of exits, titles; pictures as files
relations.py   relation matrices, alone or one minus another
marks.py       lines between groups of their cells, names of groups, trees
structure.py   inter- and intra-class structure over depth and over epochs
embeddings.py  the images as points, exit by exit
curves.py      a training over its epochs
exits.py       what exits are worth, and leaving at them
calibration.py whether they are as sure as they are right
images.py      images, and what was seen in them
studies.py     methods side by side
"""

from __future__ import annotations

from corsd_lib.errors import missing_package

try:
    import plotly.graph_objects  # noqa: F401
except ImportError as error:
    raise missing_package("a figure", "plotly", error) from error

from corsd_lib.figures.calibration import reliability_diagram
from corsd_lib.figures.curves import training_curves
from corsd_lib.figures.embeddings import embedding_scatter
from corsd_lib.figures.exits import early_exit_plot, exit_accuracy_bars
from corsd_lib.figures.images import image_attribution, image_strip
from corsd_lib.figures.relations import relation_difference, relation_heatmap
from corsd_lib.figures.structure import structure_over_depth, structure_over_epochs
from corsd_lib.figures.studies import accuracy_by_method, gain_by_method
from corsd_lib.figures.style import DIVERGING, PALETTE, PLOTLY, SCALE, exit_names, save_png, template

__all__ = [
    "DIVERGING",
    "PALETTE",
    "PLOTLY",
    "SCALE",
    "accuracy_by_method",
    "early_exit_plot",
    "embedding_scatter",
    "exit_accuracy_bars",
    "exit_names",
    "gain_by_method",
    "image_attribution",
    "image_strip",
    "relation_difference",
    "relation_heatmap",
    "reliability_diagram",
    "save_png",
    "structure_over_depth",
    "structure_over_epochs",
    "template",
    "training_curves",
]
