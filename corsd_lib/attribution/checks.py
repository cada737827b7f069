"""Two tests of whether a map depends on the trained network."""

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
    """Probability of a class while pixels are removed. S steps.

    `fraction` (S + 1,) of pixels replaced, 0 to 1; `probability` (S + 1,) when the most attributed go first; `random` (S + 1,)
    mean over random orders; `area`, `random_area` in [0, 1] under the two. The area of a good map is
    well below the random one.
    """

    fraction: Tensor = field(repr=False)
    probability: Tensor = field(repr=False)
    random: Tensor = field(repr=False)
    area: float
    random_area: float


class Randomisation(NamedTuple):
    """Rank correlations of two maps in [-1, 1]: of their values, and of their absolute values; NaN for a constant map."""

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
    """Spearman correlation of the map with the map of the same network with random weights, of values and of absolute values.

    If both are near 0, the map depends on the training. Near 1 it depends on the image only; this may be so for the absolute
    values alone, which a heatmap of one colour shows. The class is that of the trained network. Random weights come from `seed`
    and the `reset_parameters` of each layer. For small maps the result varies: use several seeds. Source: Adebayo et al. 2018,
    arXiv 1810.03292, the model parameter randomisation test.
    Other arguments and errors as of `attribute_exit`.
    """
    found = attribute_exit(network, image, exit, target, method, steps, baseline, normalise)
    other = attribute_exit(redrawn(network, seed), image, exit, found.target, method, steps, baseline, normalise)
    return Randomisation(_correlation(found.map, other.map), _correlation(found.map.abs(), other.map.abs()))


def _correlation(first: Tensor, second: Tensor) -> float:
    from scipy.stats import spearmanr

    pixels = [m.flatten().numpy() for m in (first, second)]
    if any(p.min() == p.max() for p in pixels):  # constant values have no ranks
        return math.nan
    return float(spearmanr(*pixels).statistic)


def redrawn(network: MultiExitNetwork, seed: int) -> MultiExitNetwork:
    device = next(network.parameters()).device
    fresh = copy.deepcopy(network).cpu()  # sampled on the CPU, because the generator of a GPU would not be restored
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
    """Probability of the class of an attribution at `exit` while pixels are replaced by the baseline, the highest first.

    After step s of `steps`, round(s / steps * H * W) pixels are those of the `baseline`. Beside it the mean over `draws` random
    orders, from `seed`: images with holes are unlike training images, so that the probability decreases for any order.
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
    """Copies (S, C, H, W) of `image` (1, C, H, W): in copy s the first `counts[s]` pixels of `order` (H * W,) are those of
    `base`.
    """
    rank = order.argsort()
    gone = (rank[None, :] < counts[:, None]).view(len(counts), 1, *image.shape[-2:])
    return torch.where(gone.to(image.device), base, image)  # (S, C, H, W)
