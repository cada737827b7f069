"""Methods to compare with: label smoothing, handcrafted relations (RKD), and self-distillation without exits (CS-KD, PS-KD)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from corsd_lib import losses
from corsd_lib.batches import Batch
from corsd_lib.methods.base import Method, MethodOptions, option, sum_of
from corsd_lib.methods.classic import Baseline, DeepSupervision, DeepSupervisionOptions
from corsd_lib.network import ExitOutputs

__all__ = ["CsKd", "CsKdOptions", "LabelSmoothing", "LabelSmoothingOptions", "PsKd", "PsKdOptions", "Rkd", "RkdOptions"]


@dataclass(frozen=True)
class LabelSmoothingOptions(MethodOptions):
    """Options of the plain network with the usual `label_smoothing` of 0.1."""

    label_smoothing: float = 0.1


class LabelSmoothing(Baseline):
    """The plain network with smoothed labels, the simplest soft targets. Szegedy et al. 2016, arXiv 1512.00567."""

    name = "label_smoothing"
    Options = LabelSmoothingOptions


@dataclass(frozen=True)
class RkdOptions(DeepSupervisionOptions):
    """Options of RKD: the weights of its two losses. The defaults, distance 25 and angle 50, are usual for CIFAR."""

    distance: float = option(25.0, "weight of the difference of normalised distances from the deepest embedding's")
    angle: float = option(50.0, "weight of the difference of angles from the deepest embedding's")


class Rkd(DeepSupervision):
    """Deep supervision with relational knowledge distillation from the deepest exit. RKD, arXiv 1904.05068.

    Distances and angles between the embeddings of the deepest exit are the targets for those of every shallow exit.
    """

    name = "rkd"
    Options = RkdOptions
    taught_by_deepest = ("distance", "angle")

    def loss_terms(self, out: ExitOutputs, batch: Batch) -> dict[str, Tensor]:
        *shallow, deepest = out.embeddings
        relations = {
            "distance": lambda: sum_of(losses.rkd_distance(deepest, e) for e in shallow),
            "angle": lambda: sum_of(losses.rkd_angle(deepest, e) for e in shallow),
        }
        return {**super().loss_terms(out, batch), **self.active_terms(relations)}


@dataclass(frozen=True)
class CsKdOptions(MethodOptions):
    """Options of CS-KD. The defaults are the values of the paper for CIFAR-100; for CUB the paper has `class_kd` 3."""

    class_kd: float = option(1.0, "weight of the KL divergence from the prediction of another image of the class")
    temperature: float = option(4.0, "temperature of both softmaxes of the KL divergence", above=0)


class CsKd(Method):
    """The plain network with soft targets: its predictions for other images of the same class. CS-KD, arXiv 2003.13964.

    Batches have two images of each class, or more if there are too few classes to fill a batch. The prediction for each image
    is the target for the other images of its class. These batches are ours. In the authors' code every training image has a
    partner that serves only as its target, so the same number of pairs needs twice as many images.
    """

    name = "cs_kd"
    Options = CsKdOptions
    exits = "deepest"
    sampling = "balanced"
    samples_per_class = 2
    options: CsKdOptions

    def loss_terms(self, out: ExitOutputs, batch: Batch) -> dict[str, Tensor]:
        logits = out.logits[-1]
        parts = {
            "task": lambda: self._cross_entropy(logits, batch.labels),
            "class_kd": lambda: losses.class_distillation(logits, logits, batch.labels, self.options.temperature),
        }
        return self.active_terms(parts)


@dataclass(frozen=True)
class PsKdOptions(MethodOptions):
    """Options of PS-KD, with the value of the paper as default."""

    last_share: float = option(
        0.8, "share of the past prediction in the target at the end of the training; it grows linearly from 0", below=1
    )


class PsKd(Method):
    """The plain network; the target mixes the label with the network's previous prediction. PS-KD, arXiv 2006.12000.

    The buffer `past` (N, C) float16 has the latest softmax output for each training image. The row of an image is zero before
    its first training step; the target is then the label alone. The buffer is stored in checkpoints, not with the weights.
    """

    name = "ps_kd"
    Options = PsKdOptions
    exits = "deepest"
    cuda_graphs = False
    options: PsKdOptions
    past: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.register_buffer("past", torch.zeros(0, 0, dtype=torch.float16), persistent=False)

    def loss_terms(self, out: ExitOutputs, batch: Batch) -> dict[str, Tensor]:
        logits, indices = out.logits[-1], batch.indices.to(out.logits[-1].device)
        past = self._enlarge(int(batch.indices.max()) + 1, logits)[indices].float()
        share = self.options.last_share * batch.progress * (past.sum(1) > 0)  # (B,)
        task = losses.mixed_cross_entropy(logits, batch.labels, past, share, self.options.label_smoothing)
        if self.training:
            self._remember(indices, logits.detach().float().softmax(1))
        return {"task": task}

    def _enlarge(self, images: int, logits: Tensor) -> Tensor:
        """`past`, enlarged to at least `images` rows, because the number of images becomes known only as they are seen."""
        if images > len(self.past):
            grown = logits.new_zeros(images, logits.shape[1], dtype=torch.float16)
            grown[: len(self.past)] = self.past.view(-1, logits.shape[1])  # not cat: autocast to bfloat16 refuses float16
            self.past = grown
        return self.past

    def _remember(self, indices: Tensor, predictions: Tensor) -> None:
        """Store `predictions` (B, C) at `indices` (B,).

        Each process stores the predictions of all processes, because an image may come to another process next time.
        """
        for where, what in gather_processes(indices, predictions):
            past = self._enlarge(int(where.max()) + 1, predictions)
            where, what = where.to(past.device), what.to(past)
            past[where] = what.index_select(0, _last_occurrence(where))


def gather_processes(indices: Tensor, predictions: Tensor) -> list[tuple[Tensor, Tensor]]:
    """One pair (`indices` (B,), `predictions` (B, C)) for each process; on the CPU if there are several processes."""
    seen = [(indices, predictions)]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        seen = [(indices, predictions)] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(seen, (indices.cpu(), predictions.cpu()))
    return seen


def _last_occurrence(indices: Tensor) -> Tensor:
    """For each entry of `indices` (B,), the last position in `indices` that has the same value; (B,).

    An image may be in a batch twice. The later of its predictions is stored, so that the result does not depend on the order in
    which threads write.
    """
    positions = torch.arange(len(indices), device=indices.device)
    last = positions.new_zeros(int(indices.max()) + 1).scatter_reduce(0, indices, positions, "amax")
    return last[indices]
