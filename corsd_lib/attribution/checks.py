"""Is a map about this network? Two tests that a person should make before believing it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from corsd_lib.attribution.engine import (
    BASELINES,
    Attribution,
    baseline_of,
    check_count,
    checked_image,
    exit_parts,
    images_at_once,
)
from corsd_lib.attribution.maps import attribute_exit
from corsd_lib.errors import CorsdError, check_choice
from corsd_lib.network import MultiExitNetwork


@dataclass(frozen=True, eq=False)
class DeletionCurve:
    """Probability of a class as pixels are taken away. S steps.

    `fraction` (S + 1,) of pixels replaced, 0 to 1; `probability` (S + 1,) when the most attributed go first; `random` (S + 1,)
    mean over random orders; `area`, `random_area` in [0, 1] under the two. A map that found what matters has an area well
    below the random one.
    """

    fraction: Tensor = field(repr=False)
    probability: Tensor = field(repr=False)
    random: Tensor = field(repr=False)
    area: float
    random_area: float


class Randomisation(NamedTuple):
    """Rank correlations of two maps in [-1, 1]: of their values, and of their sizes whatever the sign; NaN for a flat map."""

    signed: float
    strength: float


def randomisation_check(
    network: MultiExitNetwork,
    image: Tensor,
    exit: int,
    target: int | None = None,
    method: str = "integrated_gradients",
    steps: int = 50,
    baseline: str = "mean",
    normalise: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
) -> Randomisation:
    """Spearman correlation of the map with that of the same network with all weights drawn anew, signed and in strength.

    Both near 0: the map depends on what was learned. Near 1: it shows the image, whatever the network; a map may do so in its
    strength alone, which is what a heatmap of one colour shows. The class stays that of the trained network. Weights are drawn
    from `seed` by each layer's own `reset_parameters`. Small maps vary much: take several seeds. Source: Adebayo et al. 2018,
    arXiv 1810.03292, the model parameter randomisation test.
    Other arguments and errors as of `attribute_exit`.
    """
    found = attribute_exit(network, image, exit, target, method, steps, baseline, normalise)
    other = attribute_exit(redrawn(network, seed), image, exit, found.target, method, steps, baseline, normalise)
    return Randomisation(_correlation(found.map, other.map), _correlation(found.map.abs(), other.map.abs()))


def _correlation(first: Tensor, second: Tensor) -> float:
    from scipy.stats import spearmanr

    pixels = [m.flatten().numpy() for m in (first, second)]
    if any(p.min() == p.max() for p in pixels):  # ranks say nothing, and scipy would warn
        return math.nan
    return float(spearmanr(*pixels).statistic)


def redrawn(network: MultiExitNetwork, seed: int) -> MultiExitNetwork:
    device = next(network.parameters()).device
    fresh = copy.deepcopy(network).cpu()  # drawn on the CPU: a GPU's generator would not be restored
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for module in fresh.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    return fresh.to(device)


def deletion_curve(
    network: MultiExitNetwork,
    image: Tensor,
    exit: int,
    attribution: Attribution,
    steps: int = 20,
    baseline: str = "mean",
    normalise: Callable[[Tensor], Tensor] | None = None,
    draws: int = 10,
    seed: int = 0,
) -> DeletionCurve:
    """Probability of the attribution's class at `exit` as pixels give way to the baseline, the most attributed first.

    After step s of `steps`, round(s / steps * H * W) pixels are those of the `baseline`. Beside it the mean over `draws` random
    orders, from `seed`: pictures with holes are unlike any that were trained on, so that probability falls whatever is deleted.
    Source: the deletion metric of RISE, arXiv 1806.07421; the random orders are ours. Raises `CorsdError` as `attribute_exit`
    does, and for an attribution of a pair or of another size.
    """
    check_choice("baseline", baseline, BASELINES)
    check_count("steps", steps)
    check_count("draws", draws)
    x = checked_image(network, image)
    if attribution.target is None or attribution.map.shape != x.shape[-2:]:
        of = f"of shape {tuple(attribution.map.shape)} and class {attribution.target}"
        raise CorsdError(f"attribution {of}; allowed: an exit's, of shape {tuple(x.shape[-2:])}")
    stage, head = exit_parts(network, exit)
    base, pixels = baseline_of(baseline, image, normalise).to(x), attribution.map.numel()
    counts = torch.arange(steps + 1).mul(pixels).div(steps).round().long()
    generator = torch.Generator().manual_seed(seed)
    orders = [attribution.map.flatten().argsort(descending=True, stable=True)]
    orders += [torch.randperm(pixels, generator=generator) for _ in range(draws)]
    curves = []
    for order in orders:
        batches = _deleted(x, base, order, counts).split(images_at_once(x))
        logits = torch.cat([head(stage(batch))[1].cpu() for batch in batches])
        curves.append(F.softmax(logits.float(), dim=1)[:, attribution.target])
    ours, random = curves[0], torch.stack(curves[1:]).mean(0)
    fraction = counts / pixels
    area, random_area = (torch.trapezoid(curve, fraction).item() for curve in (ours, random))
    return DeletionCurve(fraction, ours, random, area, random_area)


def _deleted(image: Tensor, base: Tensor, order: Tensor, counts: Tensor) -> Tensor:
    """`image` (1, C, H, W) with the first n pixels of `order` (H * W,) from `base`, for each n of `counts` (S,)."""
    rank = order.argsort()
    gone = (rank[None, :] < counts[:, None]).view(len(counts), 1, *image.shape[-2:])
    return torch.where(gone.to(image.device), base, image)  # (S, C, H, W)
