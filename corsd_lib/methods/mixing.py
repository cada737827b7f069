"""Peers that mix images: the network sees two images at once in training, and is asked for the labels of both."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from corsd_lib import losses
from corsd_lib.batches import Batch
from corsd_lib.errors import CorsdError
from corsd_lib.methods.base import Method, MethodOptions, option, sum_of
from corsd_lib.network import ExitOutputs

__all__ = ["Cutmix", "CutmixExits", "CutmixExitsOptions", "Mixup", "MixupOptions", "rectangle"]


@dataclass(frozen=True)
class MixupOptions(MethodOptions):
    """Both papers' Beta(1, 1), all batches mixed. The authors of CutMix mix half of them on CIFAR (`mixed_batches` 0.5)."""

    alpha: float = option(1.0, "shares of the two images are drawn from Beta(alpha, alpha)", above=0)
    mixed_batches: float = option(1.0, "probability of a batch to be mixed", high=1)


class Mixup(Method):
    """The plain network on weighted means of two images, both labels weighted alike. mixup, arXiv 1710.09412.

    One share and one permutation a batch, as in the authors' code; images are mixed when they are augmented and normalised. The
    recorded training accuracy is that on mixed images, counted against the label of the first one: lower than on single images.
    """

    name = "mixup"
    Options = MixupOptions
    exits = "deepest"
    options: MixupOptions

    def draw(self, batch: Batch) -> dict[str, Tensor]:
        """The second image of each, "partner" (B,), and the "share" () of the first one, in [0, 1]."""
        share = torch.tensor(self._share(batch.generator), device=batch.labels.device)
        return {"partner": self._partner(batch), "share": share}

    def _partner(self, batch: Batch) -> Tensor:
        return torch.randperm(len(batch.labels), generator=batch.generator).to(batch.labels.device)

    def _share(self, generator: torch.Generator | None) -> float:
        """A draw from Beta(alpha, alpha); 1 for a batch that is not mixed."""
        mixed = torch.rand((), generator=generator) < self.options.mixed_batches
        seed = int(torch.randint(2**62, (), generator=generator))  # torch's Beta takes no generator
        return np.random.default_rng(seed).beta(self.options.alpha, self.options.alpha) if mixed else 1.0

    def images(self, batch: Batch) -> Tensor:
        draws = drawn(self, batch)
        share, second = draws["share"], batch.images.index_select(0, draws["partner"])
        return share * batch.images + (1 - share) * second

    def terms(self, out: ExitOutputs, batch: Batch) -> dict[str, Tensor]:
        return {"task": self._of_both(out.logits[-1], batch)}

    def _of_both(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy with the labels of both images, each as much as its image."""
        draws = drawn(self, batch)
        second = batch.labels.index_select(0, draws["partner"])
        return losses.two_label_cross_entropy(logits, batch.labels, second, draws["share"], self.options.label_smoothing)


class Cutmix(Mixup):
    """The plain network on images with a rectangle of a second one, labels weighted by area. CutMix, arXiv 1905.04899.

    One rectangle and one permutation a batch, as in the authors' code. The recorded training accuracy is that on mixed images,
    counted against the label of the image around the rectangle.
    """

    name = "cutmix"

    def draw(self, batch: Batch) -> dict[str, Tensor]:
        """As `Mixup`, and the "box" (H, W), True where the second image is; "share" is what is left of the first one."""
        area, centre = 1 - self._share(batch.generator), torch.rand(2, generator=batch.generator).tolist()
        box = rectangle(batch.images.shape[-2:], area, centre)
        on_device = {"share": 1 - box.float().mean(), "box": box}
        return {"partner": self._partner(batch), **{k: v.to(batch.labels.device) for k, v in on_device.items()}}

    def images(self, batch: Batch) -> Tensor:
        draws = drawn(self, batch)
        second = batch.images.index_select(0, draws["partner"])
        return torch.where(~draws["box"], batch.images, second)  # in this order it keeps the memory format of the batch


def rectangle(sides: torch.Size, area: float, centre: list[float]) -> Tensor:
    """A mask bool (H, W) of `sides`: a rectangle of their proportions, without what sticks out. CutMix, as in torchvision.

    `area` in [0, 1]: its share of the image; `centre` (y, x), each in [0, 1), rounded down to a pixel.
    """
    inside = []
    for side, place in zip(sides, centre, strict=True):
        half, middle = int(0.5 * math.sqrt(area) * side), int(place * side)
        pixels = torch.arange(side)
        inside.append((pixels >= middle - half) & (pixels < middle + half))
    return inside[0][:, None] & inside[1][None, :]


@dataclass(frozen=True)
class CutmixExitsOptions(MixupOptions):
    """Cross-entropy of the shallow exits, as much as of the deepest one."""

    exit_ce: float = option(1.0, "weight of the cross-entropy of each shallow exit, with both labels")


class CutmixExits(Cutmix):
    """CutMix (arXiv 1905.04899) with the mixed labels at every exit, as deep supervision (arXiv 1409.5185)."""

    name = "cutmix_exits"
    Options = CutmixExitsOptions
    exits = "all"

    def terms(self, out: ExitOutputs, batch: Batch) -> dict[str, Tensor]:
        parts = {
            "task": lambda: self._of_both(out.logits[-1], batch),
            "exit_ce": lambda: sum_of(self._of_both(z, batch) for z in out.logits[:-1]),
        }
        return self.computed(parts)


def drawn(method: Method, batch: Batch) -> Mapping[str, Tensor]:
    """What `method` has drawn for `batch`; `CorsdError` where nothing was: a second draw would not fit the images."""
    if batch.draws is None:
        raise CorsdError(f"method {method.name!r}: batch.draws is None; allowed: what its draw(batch) returned")
    return batch.draws
