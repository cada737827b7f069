"""Reference methods: the plain network, detached exits, deep supervision, BYOT."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from corsd_lib import losses
from corsd_lib.methods.base import Batch, Method, MethodOptions, option, sum_of
from corsd_lib.network import ExitOutputs

__all__ = ["Baseline", "Byot", "ByotOptions", "DeepSupervision", "DeepSupervisionOptions", "Probe"]


class Baseline(Method):
    """The plain network: cross-entropy of its only exit, the deepest one."""

    name = "baseline"
    exits = "deepest"

    def loss_terms(self, out: ExitOutputs, batch: Batch) -> dict[str, Tensor]:
        return {"task": self._cross_entropy(out.logits[-1], batch.labels)}


@dataclass(frozen=True)
class DeepSupervisionOptions(MethodOptions):
    """Options of deep supervision: by default the cross-entropy of each exit has the same weight."""

    exit_ce: float = option(1.0, "weight of the cross-entropy of each shallow exit")


class DeepSupervision(Method):
    """Cross-entropy at every exit. Lee et al. 2015, arXiv 1409.5185."""

    name = "deep_supervision"
    Options = DeepSupervisionOptions

    def loss_terms(self, out: ExitOutputs, batch: Batch) -> dict[str, Tensor]:
        parts = {
            "task": lambda: self._cross_entropy(out.logits[-1], batch.labels),
            "exit_ce": lambda: sum_of(self._cross_entropy(z, batch.labels) for z in out.logits[:-1]),
        }
        return self.active_terms(parts)


class Probe(DeepSupervision):
    """The plain network with detached shallow exits: their gradients stop before the backbone (ours).

    It measures how well shallow stages of the plain network classify. Backbone and deepest exit are trained as in `baseline`,
    except if gradients are clipped, because clipping uses the norm over all parameters.
    """

    name = "probe"
    detach_exits = True


@dataclass(frozen=True)
class ByotOptions(MethodOptions):
    """Options of BYOT, with the weights of the paper: (1-a)·CE of shallow exits, a·T²·KL to the deepest, b·hint, with a = 0.1,
    T = 3, b = 1e-6.

    The cross-entropy of the deepest exit, `task`, has weight 1, because it has no teacher.
    """

    exit_ce: float = option(0.9, "weight of the cross-entropy of each shallow exit")
    exit_kd: float = option(0.1, "weight of the KL divergence of each shallow exit from the deepest one")
    hint: float = option(1e-6, "weight of the squared distance between each shallow embedding and the deepest one")
    temperature: float = option(3.0, "temperature of both softmaxes of the KL divergence", above=0)


class Byot(Method):
    """Be Your Own Teacher: the deepest exit teaches its logits and its embedding to the shallow ones. arXiv 1905.08094."""

    name = "byot"
    Options = ByotOptions
    taught_by_deepest = ("exit_kd", "hint")
    options: ByotOptions

    def loss_terms(self, out: ExitOutputs, batch: Batch) -> dict[str, Tensor]:
        *shallow, deepest = out.logits
        parts = {
            "task": lambda: self._cross_entropy(deepest, batch.labels),
            "exit_ce": lambda: sum_of(self._cross_entropy(z, batch.labels) for z in shallow),
            "exit_kd": lambda: sum_of(losses.distillation(deepest, z, self.options.temperature) for z in shallow),
            "hint": lambda: sum_of(losses.feature_hint(out.embeddings[-1], e) for e in out.embeddings[:-1]),
        }
        return self.active_terms(parts)
