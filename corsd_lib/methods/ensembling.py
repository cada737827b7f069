"""Methods whose soft targets are predictions of the network for other images (BAKE) or for the last batch (DLB)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from corsd_lib import losses
from corsd_lib.batches import Batch
from corsd_lib.methods.base import Method, MethodOptions, option
from corsd_lib.methods.peers import gather_processes
from corsd_lib.network import ExitOutputs

__all__ = ["Bake", "BakeOptions", "Dlb", "DlbOptions"]


@dataclass(frozen=True)
class BakeOptions(MethodOptions):
    """Options of BAKE, with the values of the authors' code as defaults."""

    ensemble_kd: float = option(1.0, "weight of the KL divergence from the ensembled predictions of the batch")
    omega: float = option(0.5, "share of the other images in an ensembled prediction", high=0.99)
    temperature: float = option(4.0, "temperature of both softmaxes of the KL divergence", above=0)


class Bake(Method):
    """The plain network; soft targets are mixtures of the predictions for similar images. BAKE, arXiv 2104.13298.

    The similarity of two images is the cosine of their embeddings. Batches have four images of each class, as in the authors'
    code. The authors add three images to each anchor, so their batches are four times as large. Here all images of a batch are
    anchors (ours).
    """

    name = "bake"
    Options = BakeOptions
    exits = "deepest"
    sampling = "balanced"
    samples_per_class = 4
    cuda_graphs = False  # torch.linalg.solve waits for the device, to check for a singular matrix
    options: BakeOptions

    def loss_terms(self, out: ExitOutputs, batch: Batch) -> dict[str, Tensor]:
        logits, o = out.logits[-1], self.options
        parts = {
            "task": lambda: self._cross_entropy(logits, batch.labels),
            "ensemble_kd": lambda: losses.ensembled_distillation(logits, out.embeddings[-1], o.omega, o.temperature),
        }
        return self.active_terms(parts)


@dataclass(frozen=True)
class DlbOptions(MethodOptions):
    """Options of DLB, with the paper's values as defaults."""

    last_kd: float = option(1.0, "weight of the KL divergence from the prediction for an image in the last batch")
    temperature: float = option(3.0, "temperature of both softmaxes of the KL divergence", above=0)


class Dlb(Method):
    """The plain network; half of each batch repeats the previous one, whose predictions are targets. DLB, arXiv 2203.16172.

    Each image is used twice in an epoch, in two crops, as in the authors' code. Each use counts as one image, so a study with
    equal numbers of images trains this method for half of the epochs. The buffers `indices` (M,) and `logits` (M, C) hold the
    image indices and the logits of the previous batch, gathered from all processes. They are stored in checkpoints, not with
    the weights. With any sampling other than "overlapping", hardly any image is repeated.
    """

    name = "dlb"
    Options = DlbOptions
    exits = "deepest"
    sampling = "overlapping"
    cuda_graphs = False
    options: DlbOptions
    indices: Tensor
    logits: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.register_buffer("indices", torch.zeros(0, dtype=torch.long), persistent=False)
        self.register_buffer("logits", torch.zeros(0, 0), persistent=False)

    def loss_terms(self, out: ExitOutputs, batch: Batch) -> dict[str, Tensor]:
        logits, indices = out.logits[-1], batch.indices.to(out.logits[-1].device)
        parts = {
            "task": lambda: self._cross_entropy(logits, batch.labels),
            "last_kd": lambda: self._from_last(logits, indices),
        }
        terms = self.active_terms(parts)
        if self.training:
            self._remember(indices, logits.detach())
        return terms

    def _from_last(self, logits: Tensor, indices: Tensor) -> Tensor:
        """KL divergence from the previous predictions, for the images that were in the previous batch too; 0 if there are
        none.
        """
        if not len(self.indices):
            return logits.sum() * 0.0
        same = indices[:, None] == self.indices[None, :]  # (B, M)
        repeated = same.any(1)
        last = self.logits[same.int().argmax(1)]
        return losses.distillation(last[repeated], logits[repeated], self.options.temperature)

    def _remember(self, indices: Tensor, logits: Tensor) -> None:
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        seen = gather_processes(indices, exact)
        self.indices = torch.cat([where.to(indices) for where, _ in seen])
        self.logits = torch.cat([what.to(exact) for _, what in seen])
