"""The two tests of an attribution map, random weights and deleted pixels, with results as plain values for the script in the
browser.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from corsd_lib.attribution import Attribution, deletion_curve, randomisation_check
from corsd_lib.network import MultiExitNetwork

DRAWS = 5  # number of random initialisations, because results vary for small maps
ALIKE = 0.3  # mean rank correlation above which the map of an untrained network counts as the same (ours)
BETTER = 0.8  # share of the random area below which a map counts as better than chance (ours)


@dataclass(frozen=True)
class Checked:
    """Input of `weights_check` and `deletion_check`: the attribution of an exit, and the arguments of `attribute_exit`."""

    network: MultiExitNetwork
    image: Tensor
    found: Attribution
    target_name: str
    options: dict[str, Any]  # method, steps, baseline and normalise of `attribute_exit`


def weights_check(subject: Checked) -> dict[str, Any]:
    """`randomisation_check` for several random initialisations: a "sentence" and two lists.

    "signed" has the correlations of the maps, "strength" those of their absolute values. Each list has one number for each
    initialisation, without those for which a correlation is undefined.
    """
    found = subject.found
    values = [
        randomisation_check(subject.network, subject.image, found.exit, found.target, **subject.options, seed=seed)
        for seed in range(DRAWS)
    ]
    known = [v for v in values if not math.isnan(v.signed + v.absolute)]
    if not known:
        said = "A map is constant, with the trained or with random weights: there is no correlation."
        return {"sentence": said, "signed": [], "strength": []}
    signed, strength = (float(np.mean(of_a_kind)) for of_a_kind in zip(*known, strict=True))
    if abs(signed) >= ALIKE:
        which = f"above {ALIKE}" if signed > 0 else f"below -{ALIKE}"
        verdict = f"{which}: an untrained network gives a similar map, so the map does not show what was learned"
    elif abs(strength) >= ALIKE:
        verdict = (
            f"above {ALIKE}, so an untrained network has large values at similar pixels: only the signs depend on the training"
        )
    else:
        verdict = "the map depends on the training"
    said = f"the map correlates {signed:.2f} with this one, {strength:.2f} for absolute values"
    draws = {"signed": [v.signed for v in known], "strength": [v.absolute for v in known]}
    return {"sentence": f"With all weights re-initialised at random, {said}: {verdict}.", **draws}


def deletion_check(subject: Checked) -> dict[str, Any]:
    """`deletion_curve` as plain values.

    Keys: "sentence", the result; "of", title of the y-axis; "x", deleted pixels (%); "lines", two dicts, for the order by
    attribution and for random order, each with "name" and the probability "y" (%).
    """
    kept = {name: subject.options[name] for name in ("baseline", "normalise")}
    curve = deletion_curve(subject.network, subject.image, subject.found.exit, subject.found, **kept)
    areas = f"area under the probability of {subject.target_name} {curve.area:.3f}, {curve.random_area:.3f} in random order"
    verdict = (
        "the exit depends on these pixels"
        if curve.area < BETTER * curve.random_area
        else "little better than chance: the order of the pixels is not reliable"
    )
    return {
        "sentence": f"Deleting the pixels with the largest attribution first: {areas} (0 to 1): {verdict}.",
        "of": f"probability of {subject.target_name} at exit {subject.found.exit} (%)",
        "x": (100 * curve.fraction).float().numpy(),
        "lines": [
            {"name": "most attributed first", "y": (100 * curve.probability).float().numpy()},
            {"name": "random order", "y": (100 * curve.random_probability).float().numpy()},
        ],
    }
