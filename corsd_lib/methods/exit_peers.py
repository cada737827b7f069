"""Methods that distil between the exits of a network: all exits teach each other (DKS), or the deepest exit teaches the others
by correlation (DIST).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

from torch import Tensor

from corsd_lib import losses
from corsd_lib.batches import Batch
from corsd_lib.methods.base import option, sum_of
from corsd_lib.methods.classic import DeepSupervision, DeepSupervisionOptions
from corsd_lib.network import ExitOutputs

__all__ = ["Dist", "DistOptions", "Dks", "DksOptions"]


@dataclass(frozen=True)
class DksOptions(DeepSupervisionOptions):
    """Options of DKS, with the authors' weight and temperature as defaults."""

    synergy: float = option(1.0, "weight of the KL divergence of each exit from every other exit")
    temperature: float = option(4.0, "temperature of both softmaxes of the KL divergence", above=0)


class Dks(DeepSupervision):
    """Deep supervision; every exit, including the deepest, learns from all others. DKS, arXiv 1906.00675.

    The cross-entropy is summed over exits, `synergy` over ordered pairs of exits. The teacher of a pair gets no gradient.
    """

    name = "dks"
    Options = DksOptions
    options: DksOptions

    def loss_terms(self, out: ExitOutputs, batch: Batch) -> dict[str, Tensor]:
        pairs = list(permutations(out.logits, 2))
        synergy = {"synergy": lambda: sum_of(losses.distillation(t, s, self.options.temperature) for t, s in pairs)}
        return {**super().loss_terms(out, batch), **self.active_terms(synergy)}


@dataclass(frozen=True)
class DistOptions(DeepSupervisionOptions):
    """Options of DIST, with the authors' values for CIFAR-100 as defaults; for ImageNet their temperature is 1."""

    correlation: float = option(2.0, "weight of the loss between each shallow exit and the deepest one")
    inter: float = option(1.0, "b, weight of the correlation over the classes of an image")
    intra: float = option(1.0, "g, weight of the correlation over the images of the batch, class by class")
    temperature: float = option(4.0, "temperature of both softmaxes", above=0)


class Dist(DeepSupervision):
    """Deep supervision; predictions of shallow exits should correlate with those of the deepest. DIST, arXiv 2205.10536.

    The loss of the paper is between a teacher and a student network. Here the deepest exit is the teacher of each shallow exit
    (ours).
    """

    name = "dist"
    Options = DistOptions
    taught_by_deepest = ("correlation",)
    options: DistOptions

    def loss_terms(self, out: ExitOutputs, batch: Batch) -> dict[str, Tensor]:
        (*shallow, deepest), o = out.logits, self.options
        correlation = {
            "correlation": lambda: sum_of(
                losses.correlation_distillation(deepest, z, o.temperature, o.inter, o.intra) for z in shallow
            )
        }
        return {**super().loss_terms(out, batch), **self.active_terms(correlation)}
