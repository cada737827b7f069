"""Which pixels made an exit decide as it did, and which made two images related; with captum, each with its check.

A map of pixels always looks like an explanation. So each comes with what it explains (the score and the baseline's), with how
much of that it accounts for (the completeness gap), and beside them stand two tests of whether it says anything of this
network: `randomisation_check` and `deletion_curve`. All of it is computed on frozen copies in eval mode: the network and the
relation networks that are given are never touched.

engine.py   integrated gradients and Grad-CAM of any score, and the frozen parts they run on
maps.py     what is asked: an exit's decision, a pair's relation
checks.py   is the map about this network?
runs.py     the same for a run on disk and images of its data
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
