"""Integrated gradients and Grad-CAM of a score; also baselines, frozen copies of networks, and checks of arguments."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corsd_lib.errors import CorsdError, check_choice, require, shortened
from corsd_lib.network import Exit, MultiExitNetwork

METHODS = {"integrated_gradients": "integrated gradients", "grad_cam": "Grad-CAM"}
BASELINES = {"mean": "the mean colour", "black": "black", "blur": "the blurred image"}
PIXELS_AT_ONCE = 50 * 64**2  # pixels of all images of a backward pass; the limit keeps memory constant for large images

Score = Callable[..., Tensor]  # one or two batches of images (n, C, H, W) -> (n,)


@dataclass(frozen=True, eq=False)
class Attribution:
    """Contribution of each pixel of an image to a score; positive values raised the score.

    - `map` (H, W) float32, signed: the sum of `values` over the channels, or Grad-CAM at the stage of the exit, upsampled;
    - `values` (C, H, W) float32: integrated gradients in units of the score, None for Grad-CAM;
    - `score`: f(x) of the image;
    - `baseline_score`: f(x') of the baseline, None for Grad-CAM, which has none;
    - `completeness_gap`: |S - (f(x) - f(x'))| / |f(x) - f(x')|, where S is the sum of `values` (of both images for a pair); in
      [0, inf]. 0 is exact; above 0.05 use more steps; inf if f(x) = f(x') and S is not 0; None for Grad-CAM;
    - `description`: what is attributed, and how;
    - `exit`: from 1 (shallowest);
    - `target`: the class, None for a pair.
    """

    map: Tensor = field(repr=False)
    values: Tensor | None = field(repr=False)
    score: float
    baseline_score: float | None
    completeness_gap: float | None
    description: str
    exit: int
    target: int | None = None


class Stage(nn.Module):
    """Maps images (n, C, H, W) to the feature map of stage `index` (from 0), in a frozen copy of the backbone in eval mode.

    The copy ends after the stage, so later stages are not computed.
    """

    def __init__(self, network: MultiExitNetwork, index: int) -> None:
        super().__init__()
        self.backbone = network.backbone.truncated(index + 1)
        # The layer that Grad-CAM reads. captum returns a copy of its output, so an in-place ReLU may follow.
        self.cut = nn.Identity()
        freeze(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.cut(self.backbone(images)[-1])


def freeze(module: nn.Module) -> None:
    module.eval().requires_grad_(False)


def frozen_copy(module: nn.Module) -> Any:
    module = copy.deepcopy(module)
    freeze(module)
    return module


def exit_parts(network: MultiExitNetwork, exit: int) -> tuple[Stage, Exit]:
    k = exit_index(exit, len(network.exits), "exits")
    return Stage(network, network.exit_stages[k]), frozen_copy(network.exits[k])


def integrated(
    score: Score,
    images: list[Tensor],
    baselines: list[Tensor],
    steps: int,
    what: list[str],
    baseline: str,
    exit: int,
    target: int | None = None,
) -> list[Attribution]:
    """Integrated gradients of `score` with respect to all `images` jointly, each (1, C, H, W); one Attribution for each image.

    All attributions have the same scores and completeness gap. `what`: a description of each map. `baseline`: the key of
    `BASELINES` that the `baselines` come from.
    """
    require("attribution", "captum")
    from captum.attr import IntegratedGradients

    baselines = [b.to(images[0]) for b in baselines]
    values = IntegratedGradients(score).attribute(
        tuple(images), baselines=tuple(baselines), n_steps=steps, internal_batch_size=images_at_once(images[0])
    )
    with torch.no_grad():
        at_image, at_baseline = score(*images).item(), score(*baselines).item()
    gap = completeness_gap_of(sum(v.double().sum().item() for v in values), at_image - at_baseline)
    how = f"{METHODS['integrated_gradients']} of {{}}, baseline: {BASELINES[baseline]}, {steps} steps"
    return [
        Attribution(v.sum(0), v, at_image, at_baseline, gap, how.format(words), exit, target)
        for v, words in zip((v[0].detach().float().cpu() for v in values), what, strict=True)
    ]


def completeness_gap_of(total: float, difference: float) -> float:
    if difference:
        return abs(total - difference) / abs(difference)
    return math.inf if total else 0.0


def grad_cam(score: Score, stage: Stage, image: Tensor, what: str, exit: int, target: int | None = None) -> Attribution:
    """Grad-CAM of a `score` of one image (1, C, H, W). The score must call `stage` once, because captum keeps only the last
    call.
    """
    require("attribution", "captum")
    from captum.attr import LayerGradCam

    image = image.clone().requires_grad_()  # the weights are frozen, so the input must require a gradient
    coarse = LayerGradCam(score, stage.cut).attribute(image).detach().float().cpu()  # (1, 1, h, w)
    upsampled = F.interpolate(coarse, image.shape[-2:], mode="bilinear", align_corners=False)[0, 0]
    with torch.no_grad():
        at_image = score(image).item()
    side = "x".join(map(str, coarse.shape[-2:]))
    return Attribution(upsampled, None, at_image, None, None, f"{METHODS['grad_cam']} of {what}, from {side}", exit, target)


def images_at_once(image: Tensor) -> int:
    return max(1, PIXELS_AT_ONCE // (image.shape[-2] * image.shape[-1]))


def baseline_of(kind: str, image: Tensor, normalise: Callable[[Tensor], Tensor] | None) -> Tensor:
    """Baseline of a normalised `image` (C, H, W), as a batch (1, C, H, W). Raises `CorsdError` for "black" without
    `normalise`.
    """
    image = image.detach()[None]
    if kind == "mean":
        return torch.zeros_like(image)
    if kind == "blur":
        from torchvision.transforms.v2.functional import gaussian_blur

        sigma = min(image.shape[-2:]) / 8  # removes shapes and keeps colours (ours)
        return gaussian_blur(image, 2 * int(2 * sigma) + 1, sigma)
    if normalise is None:
        raise CorsdError(
            "baseline 'black' needs `normalise`: the mean and standard deviation of the images are not part of a network"
        )
    return normalise(torch.zeros(image.shape, dtype=torch.uint8, device=image.device))


def check_request(method: str, baseline: str, steps: int) -> None:
    check_choice("attribution method", method, METHODS)
    check_choice("baseline", baseline, BASELINES)
    check_count("steps", steps)


def check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CorsdError(f"{name} = {shortened(value)}; allowed: a whole number of at least 1")


def exit_index(exit: int, count: int, of: str) -> int:
    """Convert the number `exit`, from 1 to `count`, to an index from 0. Raises `CorsdError` for any other number.

    `of`: what is counted, such as "exits", for the message.
    """
    if isinstance(exit, bool) or exit not in range(1, count + 1):
        raise CorsdError(f"exit = {shortened(exit)}; allowed: 1 (shallowest) to {count}, the number of {of}")
    return int(exit) - 1


def image_batch(network: MultiExitNetwork, image: Tensor) -> Tensor:
    """A normalised image (C, H, W) as a batch (1, C, H, W), with the dtype and on the device of the network.

    Raises `CorsdError` for a wrong shape, a dtype that is not floating point, and values that are not finite.
    """
    channels = network.backbone.in_channels
    if image.ndim != 3 or image.shape[0] != channels:
        raise CorsdError(f"the image has shape {tuple(image.shape)}; allowed: one image (C, H, W) with C = {channels}")
    if not image.is_floating_point():
        raise CorsdError(f"the image is of type {image.dtype}; allowed: floating point, normalised")
    if not bool(image.isfinite().all()):
        raise CorsdError("the image has values that are not finite; allowed: finite numbers")
    return image.detach()[None].to(next(network.parameters()))
