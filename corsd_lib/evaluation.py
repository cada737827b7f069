"""Evaluation: accuracy, cross-entropy, calibration and cost of every exit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from corsd_lib.batches import evaluation_batches
from corsd_lib.costs import exit_costs
from corsd_lib.datasets import ImageData, ImageFiles, Split
from corsd_lib.errors import (
    PROCESSES_PER_CPU,
    CorsdError,
    check_choice,
    check_processes,
    enough_memory,
    shortened,
)
from corsd_lib.network import ExitOutputs, MultiExitNetwork, evaluating
from corsd_lib.runs import Run, run_data

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Evaluation",
    "calibration_error",
    "confidence_bins",
    "evaluate",
    "exit_embeddings",
    "exit_logits",
    "risk_coverage_area",
    "top_k_accuracy",
]


@dataclass(frozen=True)
class Evaluation:
    """Results on one split: `exits`, a dict for each exit, shallow -> deep, and `ensemble`, a dict for the mean of the
    probabilities of all exits.

    Keys: top1 and top5 (%), cross_entropy (nats), calibration_error (expected calibration error, %). The dict of an exit also
    has macs (multiply-accumulates for one image) and parameters; both are those of the network that ends at this exit and has
    no other exit. `data` is the name of the data set, `images` the number of images.
    """

    data: str
    split: str
    images: int
    exits: list[dict[str, float]]
    ensemble: dict[str, float]

    def table(self) -> pd.DataFrame:
        """One row for each exit ("exit1" and so on) and one for the "ensemble". Columns are the keys listed in `Evaluation`;
        `macs` and `parameters` of the ensemble are NaN.
        """
        import pandas as pd

        names = [f"exit{k}" for k in range(1, len(self.exits) + 1)]
        return pd.DataFrame([*self.exits, self.ensemble], index=pd.Index([*names, "ensemble"], name="exit"))


def evaluate(
    run_or_network: Run | MultiExitNetwork,
    data: ImageData | None = None,
    *,
    data_root: str | None = None,
    split: str = "test",
    device: torch.device | str | None = None,
    workers: int | None = None,
) -> Evaluation:
    """Evaluate the newest weights of a run, or a network, on a split of `data`: "train", "validation" or "test".

    A network is evaluated in eval mode and then set back to its previous mode. If `device` is given, the network is moved to
    it and stays there. For a run, `data` is by default the data set of its training, loaded from `data_root`. `workers`:
    processes that read streamed images; by default as many as in the training of a run, and 2 for a network. Raises
    `CorsdError` for a network without `data`, for a missing split, for data whose number of classes is not that of the
    network, for a device that cannot be used, for too little memory, and for more workers than this machine can run. For a run
    it also raises the errors of `run_data`.
    """
    check_choice("split", split, ("train", "validation", "test"))
    of_run = 2
    if isinstance(run_or_network, Run):
        data = run_data(run_or_network, data, data_root)
        network, of_run = run_or_network.network(), run_or_network.config.workers
    elif not isinstance(run_or_network, torch.nn.Module):
        given = shortened(run_or_network)
        raise CorsdError(f"evaluate: run_or_network = {given}; allowed: a Run, as load_run(path) returns it, or a network")
    elif data is None:
        raise CorsdError("evaluate(network): data is missing; a network does not know its data set, so pass data")
    else:
        network = run_or_network
    images: Split | None = getattr(data, split)
    if images is None:
        raise CorsdError(
            f"data {data.name!r} has no split {split!r}: pass data that was loaded with a validation_fraction, or use split "
            "'train' or 'test'"
        )
    if isinstance(images, ImageFiles):
        check_processes("workers", workers or 0, PROCESSES_PER_CPU)
    if data.num_classes != network.num_classes:
        raise CorsdError(f"data {data.name!r} has {data.num_classes} classes, but the network has {network.num_classes}")
    if device is not None:
        network = _move_to(network, device)
    with enough_memory(f"the evaluation on {data.name!r}"):
        logits, labels = exit_logits(network, data, images, of_run if workers is None else workers)
    exits = [{**scores(z, labels), **cost} for z, cost in zip(logits, exit_costs(network, data), strict=True)]
    mean = torch.stack([F.softmax(z, dim=1) for z in logits]).mean(0)
    return Evaluation(data.name, split, len(labels), exits, scores(mean.clamp_min(1e-12).log(), labels))


def _move_to(network: MultiExitNetwork, device: torch.device | str) -> MultiExitNetwork:
    try:
        torch.zeros(1, device=device).cpu()  # fails for "meta", from which nothing can be copied back
        return network.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # AssertionError: a torch built without CUDA
        reason = str(error).strip().partition("\n")[0]
        raise CorsdError(
            f"device {shortened(str(device))} cannot be used: {reason}; allowed: cpu, or cuda where there is a GPU"
        ) from error


def exit_logits(network: MultiExitNetwork, data: ImageData, split: Split, workers: int = 2) -> tuple[list[Tensor], Tensor]:
    """Logits of every exit, K x (N, C) float32 on the CPU, and labels (N,) of a split in its order. Raises the errors of
    `evaluation_batches`.
    """
    return _of_exits(network, data, split, workers, attrgetter("logits")), split.labels


def exit_embeddings(network: MultiExitNetwork, data: ImageData, split: Split, workers: int = 2) -> list[Tensor]:
    """Embeddings of every exit, K x (N, D) float32 on the CPU, of a split in its order. Images are normalised with the
    statistics of `data`.
    """
    return _of_exits(network, data, split, workers, attrgetter("embeddings"))


def _of_exits(
    network: MultiExitNetwork, data: ImageData, split: Split, workers: int, part: Callable[[ExitOutputs], list[Tensor]]
) -> list[Tensor]:
    """One kind of output of a network in eval mode, such as its logits, for all images of a split; a tensor for each exit."""
    device = next(network.parameters()).device
    collected: list[list[Tensor]] = []
    with evaluating(network):
        for images, _ in evaluation_batches(data, split, device, workers=workers):
            collected.append([t.float().cpu() for t in part(network(images))])
    return [torch.cat(t) for t in zip(*collected, strict=True)]


def scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """top1 and top5 (%), cross_entropy (nats) and calibration_error (%) of logits (N, C) for labels (N,)."""
    return {
        "top1": top_k_accuracy(logits, labels, 1),
        "top5": top_k_accuracy(logits, labels, 5),
        "cross_entropy": F.cross_entropy(logits, labels).item(),
        "calibration_error": calibration_error(logits, labels),
    }


def top_k_accuracy(logits: Tensor, labels: Tensor, k: int = 1) -> float:
    """Percentage of images whose label (N,) is among the `k` largest of its `logits` (N, C); k is reduced to C if it is
    larger.
    """
    top = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return 100.0 * (top == labels[:, None]).any(1).double().mean().item()


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error (%) of logits (N, C) for labels (N,): mean |accuracy - confidence| over bins of confidence.

    The `bins` bins have equal width and are weighted by their number of images. 0 is best. Source: Guo et al. 2017, arXiv
    1706.04599.
    """
    bin_of, confidence, correct = confidence_bins(logits, labels, bins)
    gap = torch.zeros(bins, dtype=torch.double).index_add_(0, bin_of, correct - confidence)
    return 100.0 * gap.abs().sum().item() / len(labels)


def confidence_bins(logits: Tensor, labels: Tensor, bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each image, its bin, its confidence in [0, 1], and whether its prediction is correct (0 or 1).

    Bins are int64 (N,), the other two float64 (N,). The confidence is the largest probability. The bins are intervals
    (low, high] of equal width, numbered from 0.
    """
    confidence, predicted = F.softmax(logits.double(), dim=1).max(1)
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    return bin_of, confidence, (predicted == labels).double()


def risk_coverage_area(logits: Tensor, labels: Tensor) -> float:
    """Area under the risk-coverage curve (AURC, %) of logits (N, C) for labels (N,): are confident predictions correct?

    The risk at a coverage of n images is the error rate among the n most confident ones. The area is the mean risk over n = 1
    to N. It is 0 if all predictions are correct, and about the error rate if confidence is unrelated to errors. For images of
    equal confidence the risk is averaged over all their orders. Source: Geifman, Uziel & El-Yaniv 2019, arXiv 1805.08206.
    """
    confidence, predicted = F.softmax(logits.double(), dim=1).max(1)
    _, tied, size = torch.unique(confidence, return_inverse=True, return_counts=True)
    errors = torch.zeros(len(size), dtype=torch.double).index_add_(0, tied, (predicted != labels).double())
    order = confidence.argsort(descending=True)
    expected = (errors / size)[tied][order]  # the error rate among images of equal confidence
    risk = expected.cumsum(0) / torch.arange(1, len(labels) + 1)
    return 100.0 * risk.mean().item()
