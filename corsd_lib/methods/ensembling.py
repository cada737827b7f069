"""Peers whose soft targets are the network's own predictions of other images, or of another time."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from corsd_lib import losses
from corsd_lib.batches import Batch
from corsd_lib.methods.base import Method, MethodOptions, option
from corsd_lib.network import ExitOutputs

__all__ = ["Bake", "BakeOptions"]


@dataclass(frozen=True)
class BakeOptions(MethodOptions):
    """The values of the authors' code."""

    ensemble_kd: float = option(1.0, "weight of the KL divergence from the ensembled predictions of the batch")
    omega: float = option(0.5, "share of the other images in an ensembled prediction", below=1)
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
