"""Peers of CORSD in the same frame: relations by a formula."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from corsd_lib import losses
from corsd_lib.batches import Batch
from corsd_lib.methods.base import sum_of
from corsd_lib.methods.classic import DeepSupervision, DeepSupervisionOptions
from corsd_lib.network import ExitOutputs

__all__ = ["Rkd", "RkdOptions"]


@dataclass(frozen=True)
class RkdOptions(DeepSupervisionOptions):
    """Weights of the two relations on pooled features, as in studies on CIFAR: distance 25, angle 50."""

    distance: float = 25.0
    angle: float = 50.0


class Rkd(DeepSupervision):
    """Exits, and handcrafted relations taught from the deepest embedding to the shallow ones. RKD, arXiv 1904.05068."""

    name = "rkd"
    Options = RkdOptions

    def terms(self, out: ExitOutputs, batch: Batch) -> dict[str, Tensor]:
        *shallow, deepest = out.embeddings
        return {
            **super().terms(out, batch),
            "distance": sum_of(losses.rkd_distance(deepest, e) for e in shallow),
            "angle": sum_of(losses.rkd_angle(deepest, e) for e in shallow),
        }
