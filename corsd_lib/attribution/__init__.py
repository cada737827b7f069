"""Attribution: which pixels the prediction of an exit, or the relation of two images, depends on. Uses captum.

Maps of pixels can be misleading. Each map therefore comes with the score of the image. A map of integrated gradients also has
the score of the baseline and the completeness gap. The values of the map should add up to the difference between both scores;
the gap is the relative error of their sum. Two tests show whether a map depends on the trained network: `randomisation_check`
and `deletion_curve`. All computations use frozen copies in eval mode; networks are never changed.

engine.py   integrated gradients and Grad-CAM of any score
maps.py     maps of the prediction of an exit, and of the relation of a pair
checks.py   tests of a map
runs.py     maps for a run on disk and images of its data
"""

from __future__ import annotations

from corsd_lib.attribution.checks import DeletionCurve, Randomisation, deletion_curve, randomisation_check
from corsd_lib.attribution.engine import Attribution
from corsd_lib.attribution.maps import attribute_exit, attribute_pair
from corsd_lib.attribution.runs import attribute_run, attribute_run_pair

__all__ = [
    "Attribution",
    "DeletionCurve",
    "Randomisation",
    "attribute_exit",
    "attribute_pair",
    "attribute_run",
    "attribute_run_pair",
    "deletion_curve",
    "randomisation_check",
]
