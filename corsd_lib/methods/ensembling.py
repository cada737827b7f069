"""Peers whose soft targets are the network's own predictions of other images, or of another time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from corsd_lib import losses
from corsd_lib.batches import Batch
from corsd_lib.methods.base import Method, MethodOptions, option
from corsd_lib.methods.peers import of_all_processes
from corsd_lib.network import ExitOutputs

__all__ = ["Bake", "BakeOptions", "Dlb", "DlbOptions"]


@dataclass(frozen=True)
class BakeOptions(MethodOptions):
    """The values of the authors' code."""

    ensemble_kd: float = option(1.0, "weight of the KL divergence from the ensembled predictions of the batch")
    omega: float = option(0.5, "share of the other images in an ensembled prediction", high=0.99)
    temperature: float = option(4.0, "of both softmaxes of the KL divergence", above=0)


class Bake(Method):
    """The plain network; the soft target of an image is mixed from the predictions of images like it. BAKE, arXiv 2104.13298.

    How alike two images are is the cosine of their embeddings. Batches hold four images a class, as the authors' anchor and
    three more; all of them are anchors here (ours), where the authors' batches are four times as large.
    """

    name = "bake"
    Options = BakeOptions
    exits = "deepest"
    sampling = "balanced"
    samples_per_class = 4
    graphs = False  # torch.linalg.solve waits for the device: it looks whether the matrix was singular
    options: BakeOptions

    def terms(self, out: ExitOutputs, batch: Batch) -> dict[str, Tensor]:
        logits, o = out.logits[-1], self.options
        parts = {
            "task": lambda: self._cross_entropy(logits, batch.labels),
            "ensemble_kd": lambda: losses.ensembled_distillation(logits, out.embeddings[-1], o.omega, o.temperature),
        }
        return self.computed(parts)


@dataclass(frozen=True)
class DlbOptions(MethodOptions):
    """The paper's values."""

    last_kd: float = option(1.0, "weight of the KL divergence from what the network said of an image in the last batch")
    temperature: float = option(3.0, "of both softmaxes of the KL divergence", above=0)


class Dlb(Method):
    """The plain network; half of each batch repeats half of the last one and learns from what was said then. arXiv 2203.16172.

    An epoch passes each image twice, in two crops, as the authors' code does, and a repeated image counts again: a study of
    equal images gives this method half of the epochs. `rows` (M,) and `logits` (M, C) are those of the last batch, of all
    processes; they are kept in checkpoints, not with the weights. Under another sampling hardly an image is repeated.
    """

    name = "dlb"
    Options = DlbOptions
    exits = "deepest"
    sampling = "overlapping"
    graphs = False
    options: DlbOptions
    rows: Tensor
    logits: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.register_buffer("rows", torch.zeros(0, dtype=torch.long), persistent=False)
        self.register_buffer("logits", torch.zeros(0, 0), persistent=False)

    def terms(self, out: ExitOutputs, batch: Batch) -> dict[str, Tensor]:
        logits, rows = out.logits[-1], batch.rows.to(out.logits[-1].device)
        parts = {
            "task": lambda: self._cross_entropy(logits, batch.labels),
            "last_kd": lambda: self._from_last(logits, rows),
        }
        terms = self.computed(parts)
        if self.training:
            self._remember(rows, logits.detach())
        return terms

    def _from_last(self, logits: Tensor, rows: Tensor) -> Tensor:
        """KL divergence of the images that the last batch held too; 0 where there is none."""
        if not len(self.rows):
            return logits.sum() * 0.0
        same = rows[:, None] == self.rows[None, :]  # (B, M)
        again = same.any(1)
        last = self.logits[same.int().argmax(1)]
        return losses.distillation(last[again], logits[again], self.options.temperature)

    def _remember(self, rows: Tensor, logits: Tensor) -> None:
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        seen = of_all_processes(rows, exact)
        self.rows = torch.cat([where.to(rows) for where, _ in seen])
        self.logits = torch.cat([what.to(exact) for _, what in seen])
