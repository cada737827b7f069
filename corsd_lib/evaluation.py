"""What a trained network is worth: accuracy, cross-entropy and calibration by exit, and what each exit costs."""

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
    PROCESSES_A_CPU,
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
    "evaluate",
    "exit_embeddings",
    "exit_logits",
    "top_k_accuracy",
]


@dataclass(frozen=True)
class Evaluation:
    """Figures of one split: `exits`, a dict an exit (shallow -> deep), and `ensemble`, the mean of the exits' probabilities.

    Keys: top1, top5 (%), cross_entropy (nats), calibration_error (expected calibration error, %), and for an exit macs
    (multiply-accumulates an image) and parameters of its deployable sub-network.
    """

    data: str
    split: str
    images: int
    exits: list[dict[str, float]]
    ensemble: dict[str, float]

    def table(self) -> pd.DataFrame:
        """One row an exit and one for the ensemble."""
        import pandas as pd

        names = [f"exit{k}" for k in range(1, len(self.exits) + 1)]
        return pd.DataFrame([*self.exits, self.ensemble], index=pd.Index([*names, "ensemble"], name="exit"))


def evaluate(
    what: Run | MultiExitNetwork,
    data: ImageData | None = None,
    *,
    data_root: str | None = None,
    split: str = "test",
    device: torch.device | str | None = None,
    workers: int | None = None,
) -> Evaluation:
    """Evaluate a run's newest weights, or a network in eval mode, on a split ("train", "validation", "test") of `data`.

    For a run the data it was trained on is loaded when not given. A network is left in the mode it came in, on `device` if
    that is given. `workers` processes read images that are streamed (default: as many as trained the run, else 2). Raises
    `CorsdError` for a split that is not there, for data of another number of classes, and for more workers than this machine
    can run.
    """
    check_choice("split", split, ("train", "validation", "test"))
    of_run = 2
    if isinstance(what, Run):
        data = run_data(what, data, data_root)
        network, of_run = what.network(), what.config.workers
    elif not isinstance(what, torch.nn.Module):
        raise CorsdError(f"evaluate: {shortened(what)} is neither; allowed: a Run, as load_run(path) returns it, or a network")
    elif data is None:
        raise CorsdError("evaluate(network, data): a network alone does not know its data, give it")
    else:
        network = what
    rows: Split | None = getattr(data, split)
    if rows is None:
        raise CorsdError(f"data {data.name!r} has no split {split!r}: set a validation_fraction, or use 'test'")
    if isinstance(rows, ImageFiles):
        check_processes("workers", workers or 0, PROCESSES_A_CPU)
    if data.num_classes != network.num_classes:
        raise CorsdError(f"data {data.name!r} has {data.num_classes} classes, the network {network.num_classes}")
    if device is not None:
        network = _moved(network, device)
    with enough_memory(f"the evaluation on {data.name!r}"):
        logits, labels = exit_logits(network, data, rows, of_run if workers is None else workers)
    exits = [{**scores(z, labels), **cost} for z, cost in zip(logits, exit_costs(network, data), strict=True)]
    mean = torch.stack([F.softmax(z, dim=1) for z in logits]).mean(0)
    return Evaluation(data.name, split, len(labels), exits, scores(mean.clamp_min(1e-12).log(), labels))


def _moved(network: MultiExitNetwork, device: torch.device | str) -> MultiExitNetwork:
    try:
        torch.zeros(1, device=device).cpu()  # "meta" takes everything and gives nothing back
        return network.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # AssertionError: a torch built without CUDA
        reason = str(error).strip().partition("\n")[0]
        raise CorsdError(
            f"device {shortened(str(device))} cannot be used: {reason}; allowed: cpu, or cuda where there is a GPU"
        ) from error


def exit_logits(network: MultiExitNetwork, data: ImageData, split: Split, workers: int = 2) -> tuple[list[Tensor], Tensor]:
    """Logits of every exit, K x (N, C) float32 on the CPU, and labels (N,) of a split in its order."""
    return _of_exits(network, data, split, workers, attrgetter("logits")), split.labels


def exit_embeddings(network: MultiExitNetwork, data: ImageData, split: Split, workers: int = 2) -> list[Tensor]:
    """Embeddings of every exit, K x (N, D) float32 on the CPU, of a split in its order, normalised as `data`."""
    return _of_exits(network, data, split, workers, attrgetter("embeddings"))


def _of_exits(
    network: MultiExitNetwork, data: ImageData, split: Split, workers: int, part: Callable[[ExitOutputs], list[Tensor]]
) -> list[Tensor]:
    """A part of what a network gives in eval mode, such as its logits, of all images of a split."""
    device = next(network.parameters()).device
    collected: list[list[Tensor]] = []
    with evaluating(network):
        for images, _ in evaluation_batches(data, split, device, workers=workers):
            collected.append([t.float().cpu() for t in part(network(images))])
    return [torch.cat(t) for t in zip(*collected, strict=True)]


def scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """top1, top5 (%), cross_entropy (nats) and calibration_error (%) of logits (N, C)."""
    return {
        "top1": top_k_accuracy(logits, labels, 1),
        "top5": top_k_accuracy(logits, labels, 5),
        "cross_entropy": F.cross_entropy(logits, labels).item(),
        "calibration_error": calibration_error(logits, labels),
    }


def top_k_accuracy(logits: Tensor, labels: Tensor, k: int = 1) -> float:
    """Share (%) of rows of `logits` (N, C) whose label is among the `k` largest (all of C when there are fewer)."""
    top = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return 100.0 * (top == labels[:, None]).any(1).double().mean().item()


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error (%): mean |accuracy - confidence| over equal bins of confidence, weighted by their images.

    Guo et al. 2017, arXiv 1706.04599; 0 is best.
    """
    confidence, guess = F.softmax(logits.double(), dim=1).max(1)
    right = (guess == labels).double()
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.double).index_add_(0, bin_of, right - confidence)
    return 100.0 * gap.abs().sum().item() / len(labels)
