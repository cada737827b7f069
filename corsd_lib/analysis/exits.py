"""Measures of the exits of a network: accuracy, agreement, overthinking, calibration, and early exit.

N images, K exits (shallow -> deep), C classes. Logits are a list of K tensors (N, C), labels are (N,).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from corsd_lib.costs import count_macs, cumulative_macs
from corsd_lib.datasets import ImageData
from corsd_lib.errors import CorsdError, check_choice, shortened
from corsd_lib.evaluation import confidence_bins, exit_logits, top_k_accuracy
from corsd_lib.network import MultiExitNetwork
from corsd_lib.runs import Run, run_data

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "RULES",
    "EarlyExit",
    "calibration_bins",
    "choose_threshold",
    "early_exit",
    "early_exit_curve",
    "exit_accuracy",
    "exit_agreement",
    "exit_taken",
    "first_correct",
    "overthinking",
]

RULES = ("confidence", "entropy", "patience")
# An image leaves if its score, which is minus the entropy for "entropy", is at least sign * threshold.
_SIGN = {"confidence": 1.0, "entropy": -1.0, "patience": 1.0}


# --- correct predictions ----------------------------------------------------------------------------------------------


def exit_accuracy(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Top-1 accuracy (K,) of every exit, %, double. Raises `CorsdError` if logits and labels do not match."""
    _check(logits, labels)
    return torch.tensor([top_k_accuracy(z, labels) for z in logits], dtype=torch.double)


def exit_agreement(logits: Sequence[Tensor]) -> Tensor:
    """Share (K, K) of images for which two exits predict the same class, correct or not; in [0, 1], double.

    a[k, l] = mean_i [argmax z_k(i) = argmax z_l(i)]: symmetric, ones on the diagonal. Raises `CorsdError` if shapes of the
    logits differ or values are not finite. Source: ours.
    """
    _check(logits)
    predictions = _predictions(logits)
    return (predictions[:, None] == predictions[None]).double().mean(2)


def first_correct(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """The first exit that classifies each image correctly, int64 (N,), from 1 (shallowest) to K; 0 if no exit is correct.

    Deeper exits may be wrong about the same image, see `overthinking`. Raises `CorsdError` if logits and labels do not match.
    Source: ours.
    """
    correct = _correct(logits, labels)
    before = (correct.cumsum(0) == 0).sum(0)  # (N,) exits before the first correct one; K if there is none
    return torch.where(before < len(correct), before + 1, 0)


def overthinking(logits: Sequence[Tensor], labels: Tensor) -> float:
    """Share of images for which a shallow exit is correct and the deepest is not; in [0, 1], 0 is best. It is 0 for a network
    with one exit.

    Raises `CorsdError` if logits and labels do not match. Source: Kaya, Hong and Dumitras 2019, arXiv 1810.07052, destructive
    overthinking.
    """
    correct = _correct(logits, labels)
    return (correct[:-1].any(0) & ~correct[-1]).double().mean().item()


def calibration_bins(logits: Tensor, labels: Tensor, bins: int = 15) -> pd.DataFrame:
    """Reliability diagram of the logits (N, C) of an exit: one row for each of `bins` equal bins (low, high] of confidence.

    Columns: low and high (edges, %); images; confidence (mean of the largest probability, %); accuracy (%). The last two are
    NaN in a bin without images. The mean of |accuracy - confidence| weighted by images is
    `corsd_lib.evaluation.calibration_error`. Raises `CorsdError` if logits and labels do not match, for logits that are not
    finite, and for `bins` below 1. Source: Guo et al. 2017, arXiv 1706.04599, section 2.
    """
    import pandas as pd

    _check([logits], labels)
    if bins < 1:
        raise CorsdError(f"bins = {shortened(bins)}; allowed: 1 or more")
    bin_of, confidence, correct = confidence_bins(logits, labels, bins)
    images = torch.bincount(bin_of, minlength=bins)
    sums = torch.zeros(2, bins, dtype=torch.double).index_add_(1, bin_of, torch.stack([confidence, correct]))
    means = 100.0 * sums / images  # 0 / 0 = NaN in a bin without images
    edges = 100.0 * torch.arange(bins + 1, dtype=torch.double) / bins
    columns = {"low": edges[:-1], "high": edges[1:], "images": images, "confidence": means[0], "accuracy": means[1]}
    return pd.DataFrame({name: column.numpy() for name, column in columns.items()})


# --- early exit -------------------------------------------------------------------------------------------------------


def early_exit_curve(
    logits: Sequence[Tensor],
    labels: Tensor,
    macs: Sequence[float],
    rule: str = "confidence",
    thresholds: Sequence[float] | None = None,
) -> pd.DataFrame:
    """Mean cost and accuracy if each image leaves at the first exit at which the `rule` is satisfied, else at the deepest.

    The rules, with p the softmax of an exit:
        confidence  max p >= threshold; Kaya et al. 2019, arXiv 1810.07052
        entropy     -sum p log p / log C <= threshold; BranchyNet, arXiv 1709.01686, which does not divide by log C
        patience    the same prediction at `threshold` exits in a row, including the present one; PABEE, arXiv 2006.04152.
                    PABEE counts only the repetitions, so its patience is smaller by 1

    `macs` (K,): the cost of an image that leaves at exit k, see `cumulative_macs`. Returns one row for each threshold, in the
    given order. The default thresholds for patience are 1 to K. For the other rules they are about 100 percentiles of the
    scores of all shallow exits, and one value that no image reaches (above 1 for confidence, below 0 for entropy). With the
    first default threshold all images leave at exit 1. With the last one all images leave at the deepest exit. Columns:
    threshold; accuracy (%); accuracy_drop (percentage points below the deepest exit, negative if early exit is more accurate);
    macs (mean over images); fraction.exit<k> (fraction of the images that leave at exit k, in [0, 1]). Raises `CorsdError` for
    an unknown rule, for thresholds that are not a list of numbers, and if logits, labels and macs do not match.
    """
    import pandas as pd

    check_choice("rule", rule, RULES)
    correct = _correct(logits, labels)  # (K, N)
    if len(macs) != len(correct):
        raise CorsdError(f"macs has {len(macs)} values for logits of {len(correct)} exits; allowed: one for each exit")
    scores, sign = _exit_scores(logits, rule), _SIGN[rule]
    signed = _default_thresholds(scores, rule) if thresholds is None else sign * _as_thresholds(thresholds)
    left_at = _exit_index(scores, signed)  # (T, N)
    hits = correct.gather(0, left_at).sum(1).double()  # (T,) numbers of images
    shares = torch.stack([(left_at == k).double().mean(1) for k in range(len(correct))], dim=1)  # (T, K)
    columns = {
        "threshold": sign * signed + 0.0,  # + 0.0 removes the sign of -0.0
        "accuracy": 100.0 * hits / correct.shape[1],
        # From counts, so that a drop of one point is exactly 1.0.
        "accuracy_drop": 100.0 * (correct[-1].sum() - hits) / correct.shape[1],
        "macs": shares @ torch.as_tensor(macs, dtype=torch.double),
        **{f"fraction.exit{k}": share for k, share in enumerate(shares.T, start=1)},
    }
    return pd.DataFrame({name: column.double().numpy() for name, column in columns.items()})


def exit_taken(logits: Sequence[Tensor], rule: str, threshold: float) -> Tensor:
    """The exit at which each image leaves, int64 (N,), numbered from 1 (shallowest).

    `rule` and `threshold` are explained in `early_exit_curve`. Raises `CorsdError` for an unknown rule, for a NaN threshold,
    and for logits that are not finite or have different shapes. Source: ours.
    """
    check_choice("rule", rule, RULES)
    _check(logits)
    signed = _SIGN[rule] * _as_thresholds([threshold])
    return 1 + _exit_index(_exit_scores(logits, rule), signed)[0]


def choose_threshold(curve: pd.DataFrame, max_accuracy_drop: float = 1.0) -> float:
    """The threshold with the lowest cost among those of an `early_exit_curve` that are accurate enough.

    Accurate enough means at most `max_accuracy_drop` percentage points below the deepest exit. If `max_accuracy_drop` is
    negative, the accuracy must be above that of the deepest exit. At equal cost the most accurate threshold is chosen.

    Choose a threshold on validation images and report its results on test images. On the images used for the choice, the best
    of many thresholds looks better than it is. Raises `CorsdError` if no threshold is accurate enough. Source: ours.
    """
    allowed = curve[curve["accuracy_drop"] <= max_accuracy_drop]
    if allowed.empty:
        least = f"{curve['accuracy_drop'].min():.2f}" if len(curve) else "none, the curve is empty"
        raise CorsdError(
            f"max_accuracy_drop = {shortened(max_accuracy_drop)} percentage points: no threshold of the curve has a drop this "
            f"small; the smallest is {least}"
        )
    return float(allowed.sort_values(["macs", "accuracy_drop"], kind="stable")["threshold"].iloc[0])


@dataclass(frozen=True, eq=False)
class EarlyExit:
    """An early-exit threshold that was chosen on validation images, and its results on test images.

    `validation`, `test`: results with this threshold on each of the two splits; keys as the columns of `early_exit_curve`.
    `macs` (K,): MACs of an image that leaves at exit k; `deepest_macs`: MACs of the plain network, without shallow exits.
    `curve`: the whole curve on the validation images.
    """

    rule: str
    threshold: float
    validation: dict[str, float]
    test: dict[str, float]
    macs: list[int]
    deepest_macs: int
    curve: pd.DataFrame

    @property
    def macs_saved(self) -> float:
        """Saved cost on the test images, in % of the cost of the plain network; negative if the exits cost more than they
        save.
        """
        return 100.0 * (1.0 - self.test["macs"] / self.deepest_macs)


def early_exit(
    run_or_network: Run | MultiExitNetwork,
    data: ImageData | None = None,
    *,
    rule: str = "confidence",
    max_accuracy_drop: float = 1.0,
    data_root: str | None = None,
) -> EarlyExit:
    """Choose an early-exit threshold on validation images, and evaluate it on test images.

    For a run, `data` is by default the data that it was trained on, loaded from `data_root`. `rule`: one of `RULES`, see
    `early_exit_curve`. A threshold is allowed if its validation accuracy is at most `max_accuracy_drop` percentage points below
    that of the deepest exit. The allowed threshold with the lowest mean MACs is chosen.

    Raises `CorsdError` for an unknown rule, for a network without `data`, and if no threshold is accurate enough. Raises
    `CorsdError` for data without a validation split, because a threshold must not be chosen on test images, and for data whose
    number of classes is not that of the network. For a run it raises the errors of `run_data`, too.
    """
    check_choice("rule", rule, RULES)
    network, data = _network_and_data(run_or_network, data, data_root)
    if data.validation is None:
        raise CorsdError(
            f"data {data.name!r} has no validation split to choose a threshold on: pass data that was loaded with a "
            "validation_fraction"
        )
    macs = cumulative_macs(network, data)
    curve = early_exit_curve(*exit_logits(network, data, data.validation), macs, rule)
    threshold = choose_threshold(curve, max_accuracy_drop)
    test = early_exit_curve(*exit_logits(network, data, data.test), macs, rule, [threshold])
    deepest = count_macs(network.truncated(len(macs) - 1), (1, data.channels, data.image_size, data.image_size))
    return EarlyExit(rule, threshold, _row(curve[curve["threshold"] == threshold]), _row(test), macs, deepest, curve)


def _network_and_data(
    run_or_network: Run | MultiExitNetwork, data: ImageData | None, data_root: str | None
) -> tuple[MultiExitNetwork, ImageData]:
    if isinstance(run_or_network, Run):
        network, data = run_or_network.network(), run_data(run_or_network, data, data_root)
    elif data is None:
        raise CorsdError("early_exit(network): data is missing; a network does not know its data set, so pass data")
    else:
        network = run_or_network
    if data.num_classes != network.num_classes:
        raise CorsdError(f"data {data.name!r} has {data.num_classes} classes, but the network has {network.num_classes}")
    return network, data


def _row(table: pd.DataFrame) -> dict[str, float]:
    return {str(name): float(value) for name, value in table.iloc[0].items()}


def _exit_scores(logits: Sequence[Tensor], rule: str) -> Tensor:
    """Score (K, N), double, of each image at each exit. An image leaves if its score is at least the threshold.

    For "entropy" the score is minus the entropy divided by log C, and the threshold is negated by the caller.
    """
    if rule == "patience":
        return _run_lengths(_predictions(logits)).double()
    p = F.softmax(torch.stack(list(logits)).double(), dim=2)  # (K, N, C)
    if rule == "confidence":
        return p.amax(2)
    return -torch.special.entr(p).sum(2) / (math.log(p.shape[2]) or 1.0)  # with one class log C is 0, and so is the entropy


def _run_lengths(predictions: Tensor) -> Tensor:
    """For each exit and image, the number (K, N) of consecutive exits ending at this exit that have the same prediction."""
    lengths = torch.ones_like(predictions)
    for k in range(1, len(predictions)):
        lengths[k] += torch.where(predictions[k] == predictions[k - 1], lengths[k - 1], 0)
    return lengths


def _exit_index(scores: Tensor, thresholds: Tensor) -> Tensor:
    """Exit at which each image leaves for each threshold, as an index (T, N) from 0.

    `scores` (K, N): see `_exit_scores`; `thresholds` (T,).
    """
    so_far = scores.cummax(0).values  # an image has left at exit k or before if so_far[k] >= threshold
    left_at = torch.zeros(len(thresholds), scores.shape[1], dtype=torch.long)
    for highest in so_far[:-1]:  # all others leave at the deepest exit
        left_at += highest < thresholds[:, None]
    return left_at


def _default_thresholds(scores: Tensor, rule: str) -> Tensor:
    """Default thresholds (T,) for `scores` (K, N) of `_exit_scores`, ascending; negated for "entropy", like the scores.

    With the first threshold every image leaves at exit 1. With the last one no image leaves before the deepest exit. For
    "patience" the thresholds are 1 to K. For the other rules they are about 100 percentiles of the scores of all shallow exits,
    and one value that no score reaches.
    """
    if rule == "patience":
        return torch.arange(1, len(scores) + 1, dtype=torch.double)
    # No score reaches this value, even with rounding errors
    none_leaves = torch.tensor([1.01 if rule == "confidence" else 0.01], dtype=torch.double)
    seen = scores[:-1].flatten().sort().values
    steps = torch.linspace(0, len(seen) - 1, 101, dtype=torch.double).round().long() if len(seen) else torch.arange(0)
    return torch.cat([seen[steps].unique(), none_leaves])


def _as_thresholds(thresholds: Sequence[float]) -> Tensor:
    values = torch.as_tensor(thresholds, dtype=torch.double)
    if values.ndim != 1 or bool(values.isnan().any()):
        raise CorsdError(f"thresholds = {shortened(thresholds)}; allowed: a list of numbers")
    return values


def _predictions(logits: Sequence[Tensor]) -> Tensor:
    """Predicted class (K, N) at each exit."""
    return torch.stack([z.argmax(1) for z in logits])


def _correct(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Whether the prediction of each exit for each image is correct: bool (K, N)."""
    _check(logits, labels)
    return _predictions(logits) == labels


def _check(logits: Sequence[Tensor], labels: Tensor | None = None) -> None:
    """Raise `CorsdError` unless all `logits` are finite and of one shape (N, C), N >= 1, and `labels` (N,) are below C."""
    shapes = [tuple(z.shape) for z in logits]
    if len(set(shapes)) != 1 or len(shapes[0]) != 2 or 0 in shapes[0]:
        raise CorsdError(f"logits have shapes {shapes}; allowed: (N, C), the same at every exit, of one image or more")
    for k, z in enumerate(logits, start=1):
        if not bool(z.isfinite().all()):
            raise CorsdError(f"logits of exit {k} are not all finite; allowed: finite numbers")
    if labels is None:
        return
    images, classes = shapes[0]
    if tuple(labels.shape) != (images,):
        raise CorsdError(f"labels have shape {tuple(labels.shape)}; allowed: ({images},), one for each image")
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise CorsdError(f"labels are from {int(labels.min())} to {int(labels.max())}; allowed: 0 to {classes - 1}")
