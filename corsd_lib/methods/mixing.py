"""Methods that mix images: mixup and CutMix mix any two images and their labels, IPS swaps patches within a class."""

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

__all__ = [
    "Cutmix",
    "CutmixExits",
    "CutmixExitsOptions",
    "Ips",
    "IpsOptions",
    "Mixup",
    "MixupOptions",
    "class_partners",
    "rectangle",
]


@dataclass(frozen=True)
class MixupOptions(MethodOptions):
    """Options of mixup and CutMix. By default all batches are mixed, with Beta(1, 1) as in both papers.

    On CIFAR the authors of CutMix mix half of the batches (`mixed_batches` 0.5).
    """

    alpha: float = option(1.0, "the shares of the two images are sampled from Beta(alpha, alpha)", above=0)
    mixed_batches: float = option(1.0, "probability that a batch is mixed", high=1)


class Mixup(Method):
    """The plain network on weighted means of two images, with their labels weighted in the same way. mixup, arXiv 1710.09412.

    The weight of the first image is the same for the whole batch, and one permutation of the batch gives the second images, as
    in the authors' code. Images are mixed after augmentation and normalisation. The training accuracy is measured on mixed
    images with the label of the first image, so it is lower than on single images.
    """

    name = "mixup"
    Options = MixupOptions
    exits = "deepest"
    options: MixupOptions

    def sample(self, batch: Batch) -> dict[str, Tensor]:
        """Random tensors: "partner" (B,), the index of each second image, and "share" (), the weight of the first one, in [0,
        1].
        """
        share = torch.tensor(self._share(batch.generator), device=batch.labels.device)
        return {"partner": self._partner(batch), "share": share}

    def _partner(self, batch: Batch) -> Tensor:
        return torch.randperm(len(batch.labels), generator=batch.generator).to(batch.labels.device)

    def _share(self, generator: torch.Generator | None) -> float:
        """A sample from Beta(alpha, alpha); 1 for a batch that is not mixed."""
        mixed = torch.rand((), generator=generator) < self.options.mixed_batches
        seed = int(torch.randint(2**62, (), generator=generator))  # torch's Beta takes no generator
        return np.random.default_rng(seed).beta(self.options.alpha, self.options.alpha) if mixed else 1.0

    def transform_images(self, batch: Batch) -> Tensor:
        random = random_of(self, batch)
        share, second = random["share"], batch.images.index_select(0, random["partner"])
        return share * batch.images + (1 - share) * second

    def loss_terms(self, out: ExitOutputs, batch: Batch) -> dict[str, Tensor]:
        return {"task": self._mixed_cross_entropy(out.logits[-1], batch)}

    def _mixed_cross_entropy(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy with the labels of both images, weighted by their shares."""
        random = random_of(self, batch)
        second = batch.labels.index_select(0, random["partner"])
        return losses.two_label_cross_entropy(logits, batch.labels, second, random["share"], self.options.label_smoothing)


class Cutmix(Mixup):
    """The plain network, trained on images with a rectangle from a second image. CutMix, arXiv 1905.04899.

    The two labels are weighted by the visible areas of the two images. All images of a batch use one rectangle and one
    permutation, as in the authors' code. The training accuracy is measured on mixed images with the label of the image around
    the rectangle.
    """

    name = "cutmix"

    def sample(self, batch: Batch) -> dict[str, Tensor]:
        """Random tensors of `Mixup`, and "box", bool (H, W), True inside the rectangle. "share" is the share of the first
        image's area that remains.
        """
        area, centre = 1 - self._share(batch.generator), torch.rand(2, generator=batch.generator).tolist()
        box = rectangle(batch.images.shape[-2:], area, centre)
        on_device = {"share": 1 - box.float().mean(), "box": box}
        return {"partner": self._partner(batch), **{k: v.to(batch.labels.device) for k, v in on_device.items()}}

    def transform_images(self, batch: Batch) -> Tensor:
        random = random_of(self, batch)
        second = batch.images.index_select(0, random["partner"])
        return torch.where(~random["box"], batch.images, second)  # this order keeps the memory format of the batch


def rectangle(sides: torch.Size, area: float, centre: list[float]) -> Tensor:
    """Bool mask (H, W) of a rectangle with the proportions of the image, clipped at its edges. CutMix, as in torchvision.

    `sides`: (H, W). `area`: share of the image in [0, 1], before clipping. `centre`: (y, x), each in [0, 1), rounded down to a
    pixel.
    """
    inside = []
    for side, position in zip(sides, centre, strict=True):
        half, middle = int(0.5 * math.sqrt(area) * side), int(position * side)
        pixels = torch.arange(side)
        inside.append((pixels >= middle - half) & (pixels < middle + half))
    return inside[0][:, None] & inside[1][None, :]


@dataclass(frozen=True)
class CutmixExitsOptions(MixupOptions):
    """Options of CutMix at every exit: by default the cross-entropy of each exit has the same weight."""

    exit_ce: float = option(1.0, "weight of the cross-entropy of each shallow exit, with both labels")


class CutmixExits(Cutmix):
    """CutMix (arXiv 1905.04899) with the mixed labels at every exit, as in deep supervision (arXiv 1409.5185)."""

    name = "cutmix_exits"
    Options = CutmixExitsOptions
    exits = "all"

    def loss_terms(self, out: ExitOutputs, batch: Batch) -> dict[str, Tensor]:
        parts = {
            "task": lambda: self._mixed_cross_entropy(out.logits[-1], batch),
            "exit_ce": lambda: sum_of(self._mixed_cross_entropy(z, batch) for z in out.logits[:-1]),
        }
        return self.active_terms(parts)


@dataclass(frozen=True)
class IpsOptions(MethodOptions):
    """Options of IPS. The authors' values are not published; the defaults are ours and should be tuned."""

    swap_kd: float = option(1.0, "weight of the KL divergence between the two images of a pair")
    temperature: float = option(4.0, "temperature of both softmaxes of the KL divergence", above=0)
    direction: str = option(
        "symmetric",
        "direction of distillation: symmetric, each image from the other; or confident, only the less confident image learns",
        choices=("symmetric", "confident"),
    )
    patch: int = option(
        4, "side of a patch in pixels, below the image side; patches at the right and lower edge may be smaller"
    )
    probability: float = option(0.5, "probability that a patch is swapped", high=1)
    share: float = option(1.0, "probability that a pair swaps patches", high=1)


class Ips(Method):
    """The plain network; two images of a class swap patches and teach each other. IPS, arXiv 2505.14124.

    Batches have two images of each class (more if there are too few classes to fill a batch). Images of a class are paired at
    random; one without a partner is not changed. The patches of a pair are swapped where a random mask is True. The
    cross-entropy covers all images, the KL divergence all pairs, swapped or not. Teachers get no gradient (ours). With
    `swap_kd` 0 the swap is only an augmentation. The training accuracy is measured on swapped images.
    """

    name = "ips"
    Options = IpsOptions
    exits = "deepest"
    sampling = "balanced"
    samples_per_class = 2
    options: IpsOptions

    def sample(self, batch: Batch) -> dict[str, Tensor]:
        """Random tensors: "partner" (B,), the index of each image's partner (its own if it has none), and "swap", bool (B, 1,
        h, w), True for the patches to swap on a grid of h × w patches. Raises `CorsdError` if a patch is as large as the image.
        """
        o, count, sides, device = self.options, len(batch.labels), batch.images.shape[-2:], batch.labels.device
        if o.patch >= max(sides):
            raise CorsdError(f"method {self.name!r}: patch = {o.patch} must be below the image side {max(sides)}")
        partner = class_partners(batch.labels, batch.generator)
        patches = torch.rand(count, 1, *(-(-side // o.patch) for side in sides), generator=batch.generator) < o.probability
        pairs = torch.rand(count, 1, 1, 1, generator=batch.generator) < o.share
        first = torch.minimum(partner, torch.arange(count, device=device))  # both images of a pair use the mask of the first
        return {"partner": partner, "swap": (patches & pairs).to(device).index_select(0, first)}

    def transform_images(self, batch: Batch) -> Tensor:
        random, (height, width) = random_of(self, batch), batch.images.shape[-2:]
        swap = random["swap"].repeat_interleave(self.options.patch, 2).repeat_interleave(self.options.patch, 3)
        other = batch.images.index_select(0, random["partner"])
        return torch.where(~swap[..., :height, :width], batch.images, other)  # in this order for the same reason as in `Cutmix`

    def loss_terms(self, out: ExitOutputs, batch: Batch) -> dict[str, Tensor]:
        logits, partner, o = out.logits[-1], random_of(self, batch)["partner"], self.options
        parts = {
            "task": lambda: self._cross_entropy(logits, batch.labels),
            "swap_kd": lambda: losses.partner_distillation(logits, partner, self._learns(logits, batch), o.temperature),
        }
        return self.active_terms(parts)

    def _learns(self, logits: Tensor, batch: Batch) -> Tensor:
        """Bool mask (B,) of the images that learn from their partner, see the option `direction`."""
        partner = random_of(self, batch)["partner"]
        paired = partner != torch.arange(len(partner), device=partner.device)
        if self.options.direction == "symmetric":
            return paired
        sure = logits.detach().float().log_softmax(1).gather(1, batch.labels[:, None])[:, 0]
        return paired & (sure < sure.index_select(0, partner))


def class_partners(labels: Tensor, generator: torch.Generator | None) -> Tensor:
    """Random partners within each class of `labels` (B,), as indices (B,): images i and j of a pair are each other's partner.

    In a class with an odd number of images one image is its own partner.
    """
    here = torch.arange(len(labels), device=labels.device)
    shuffled = torch.randperm(len(labels), generator=generator).to(labels.device)
    order = shuffled[labels[shuffled].argsort(stable=True)]  # class by class, in random order within a class
    by_class = labels[order]
    position = here - torch.searchsorted(by_class, by_class)  # within the class: 0 and 1 are a pair, 2 and 3 are the next
    other = order[(here + 1 - 2 * (position % 2)).clamp_max(len(labels) - 1)]
    return torch.empty_like(order).scatter_(0, order, torch.where(labels[other] == by_class, other, order))


def random_of(method: Method, batch: Batch) -> Mapping[str, Tensor]:
    """Random tensors of `batch`. Raises `CorsdError` if it has none, because new ones would not match the images."""
    if batch.random is None:
        raise CorsdError(f"method {method.name!r}: batch.random is None; allowed: what its sample(batch) returned")
    return batch.random
