"""Plotly figures from arrays, without analysis and without widgets.

All figures share one categorical palette, one sequential and one diverging scale, which are safe for colour-blind readers. The
title states the finding; a default title is made from the drawn values. Titles are HTML, names from data are escaped, and axes
have units.

style.py       palette, scales, template, names, titles; static images
relations.py   relation matrices and their differences
marks.py       lines between groups of cells, names of groups, dendrograms
structure.py   inter- and intra-class structure over depth and over epochs
embeddings.py  images as points, one panel for each exit
curves.py      accuracy and loss over the epochs
exits.py       accuracy of exits, and early exit
calibration.py reliability diagrams
images.py      images and attribution maps
studies.py     results of the methods of a study
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
from corsd_lib.figures.exits import early_exit_plot, exit_accuracy_bars, exit_accuracy_points
from corsd_lib.figures.images import image_attribution, image_strip
from corsd_lib.figures.relations import relation_difference, relation_heatmap
from corsd_lib.figures.structure import structure_over_depth, structure_over_epochs
from corsd_lib.figures.studies import accuracy_by_method, differences_by_exit, gain_by_method, unseen_by_exit
from corsd_lib.figures.style import DIVERGING, PALETTE, PLOTLY, SCALE, exit_names, save_png, template

__all__ = [
    "DIVERGING",
    "PALETTE",
    "PLOTLY",
    "SCALE",
    "accuracy_by_method",
    "differences_by_exit",
    "early_exit_plot",
    "embedding_scatter",
    "exit_accuracy_bars",
    "exit_accuracy_points",
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
    "unseen_by_exit",
]
