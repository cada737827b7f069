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
    exit_parts,
    image_batch,
    images_at_once,
)
from corsd_lib.attribution.maps import attribute_exit
from corsd_lib.errors import CorsdError, check_choice
from corsd_lib.network import MultiExitNetwork


@dataclass(frozen=True, eq=False)
class DeletionCurve:
    """Probability of a class while the pixels of an image are replaced in S steps, see `deletion_curve`.

    `fraction` (S + 1,): fraction of pixels replaced, 0 to 1. `probability` (S + 1,): the probability if the most attributed
    pixels are replaced first. `random_probability` (S + 1,): the mean probability over random orders of the pixels. `area`,
    `random_area`: areas under the curves of `probability` and `random_probability`, in [0, 1]. For a good map `area` is well
    below `random_area`.
    """

    fraction: Tensor = field(repr=False)
    probability: Tensor = field(repr=False)
    random_probability: Tensor = field(repr=False)
    area: float
    random_area: float


class Randomisation(NamedTuple):
    """Spearman correlations, in [-1, 1], between the map of a network and that of the same network with random weights.

    `signed`: correlation of the values of the two maps. `absolute`: correlation of their absolute values. NaN if a map is
    constant.
    """

    signed: float
    absolute: float


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
    """Spearman correlation between the map of a network and the map of the same network with random weights.

    There are two correlations: one of the values, and one of their absolute values. If both are near 0, the map depends on the
    training. If both are near 1, the map depends only on the image. If only the second is near 1, the maps mark the same pixels
    with different signs. A heatmap in one colour shows only absolute values, so for such a heatmap use the second correlation.
    The class is `target`, by default the prediction of the trained network. Random weights are sampled with `seed` by the
    `reset_parameters` of each layer. For small maps the result varies: use several seeds. Source: Adebayo et al. 2018, arXiv
    1810.03292, the model parameter randomisation test. Other arguments and errors as in `attribute_exit`.
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
    num_random: int = 10,
    seed: int = 0,
) -> DeletionCurve:
    """Probability of the attributed class at `exit` while pixels are replaced by a baseline, most attributed pixels first.

    After step s of `steps`, round(s / steps * H * W) pixels have the values of the `baseline`. The result also has the mean
    probability over `num_random` random orders of the pixels, sampled with `seed`. This is the reference, because the
    probability decreases in any order: images with holes are unlike training images. `image` (C, H, W), normalised; `exit`
    (1 = shallowest), `baseline` and `normalise` as in `attribute_exit`; `steps` and `num_random` at least 1. Source: the
    deletion metric of RISE, arXiv 1806.07421; the random orders are ours. Raises `CorsdError` if `exit`, `baseline`, `steps`,
    `num_random` or `image` is invalid, and if the attribution belongs to a pair or to an image of a different size.
    """
    check_choice("baseline", baseline, BASELINES)
    check_count("steps", steps)
    check_count("num_random", num_random)
    x = image_batch(network, image)
    if attribution.target is None:
        raise CorsdError("the attribution is of a pair of images; allowed: one of attribute_exit")
    if attribution.map.shape != x.shape[-2:]:
        found, allowed = tuple(attribution.map.shape), tuple(x.shape[-2:])
        raise CorsdError(f"the attribution map has shape {found}; allowed: {allowed}, the size of the image")
    stage, head = exit_parts(network, exit)
    base, pixels = baseline_of(baseline, image, normalise).to(x), attribution.map.numel()
    counts = torch.arange(steps + 1).mul(pixels).div(steps).round().long()
    generator = torch.Generator().manual_seed(seed)
    orders = [attribution.map.flatten().argsort(descending=True, stable=True)]
    orders += [torch.randperm(pixels, generator=generator) for _ in range(num_random)]
    curves = []
    for order in orders:
        batches = _delete_pixels(x, base, order, counts).split(images_at_once(x))
        logits = torch.cat([head(stage(batch))[1].cpu() for batch in batches])
        curves.append(F.softmax(logits.float(), dim=1)[:, attribution.target])
    ours, random = curves[0], torch.stack(curves[1:]).mean(0)
    fraction = counts / pixels
    area, random_area = (torch.trapezoid(curve, fraction).item() for curve in (ours, random))
    return DeletionCurve(fraction, ours, random, area, random_area)


def _delete_pixels(image: Tensor, base: Tensor, order: Tensor, counts: Tensor) -> Tensor:
    """Copies (S, C, H, W) of `image` (1, C, H, W): in copy s the first `counts[s]` pixels of `order` (H * W,) are those of
    `base`.
    """
    rank = order.argsort()
    gone = (rank[None, :] < counts[:, None]).view(len(counts), 1, *image.shape[-2:])
    return torch.where(gone.to(image.device), base, image)  # (S, C, H, W)
