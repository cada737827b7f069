"""Two uses of the relation score: as the probability of "same class", and to classify by class prototypes at inference.

N images, C classes, D embedding width. Exits are numbered from 1, the shallowest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from corsd_lib.batches import evaluation_batches
from corsd_lib.datasets import ImageData, Split
from corsd_lib.errors import CorsdError, check_choice
from corsd_lib.evaluation import top_k_accuracy
from corsd_lib.network import MultiExitNetwork, evaluating
from corsd_lib.relation import VectorRelation
from corsd_lib.runs import Run, run_data

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["class_prototypes", "prototype_accuracy", "relation_calibration", "relation_calibration_error"]

WEIGHTS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)  # weights of the prototypes that are tried on validation images


# --- a score as a probability -----------------------------------------------------------------------------------------


def relation_calibration(scores: Tensor, labels: Tensor, bins: int = 10) -> pd.DataFrame:
    """Reliability diagram of relation scores as probabilities that two images are of the same class.

    One row for each of `bins` equal bins [low, high) of the score; the last bin includes 1. `scores` (N, N) in [0, 1], `labels`
    (N,). All ordered pairs of different images are counted. The weights of the intra pairs (same class) sum to one half, and so
    do those of the inter pairs (different classes), as in `losses.relation_cross_entropy`. Columns, in %: `low` and `high`, the
    edges; `share`, the weight of the bin; `score`, its weighted mean score; `same`, the share of its weight that is of intra
    pairs. The last two are NaN in an empty bin. Raises `CorsdError` if shapes do not match, if `bins` is below 1, and if there
    are no intra or no inter pairs. Source: ours, after Guo et al. 2017, arXiv 1706.04599.
    """
    import pandas as pd

    if bins < 1:
        raise CorsdError(f"bins = {bins}; allowed: 1 or more")
    values, same, weight = _weighted_pairs(scores, labels)
    bin_of = (values * bins).long().clamp(0, bins - 1)
    sums = torch.zeros(3, bins, dtype=torch.double)
    sums.index_add_(1, bin_of, torch.stack([weight, weight * values, weight * same]))
    edges = 100.0 * torch.arange(bins + 1, dtype=torch.double) / bins
    means = 100.0 * sums[1:] / sums[0]  # 0 / 0 = NaN in an empty bin
    columns = {"low": edges[:-1], "high": edges[1:], "share": 100 * sums[0], "score": means[0], "same": means[1]}
    return pd.DataFrame({name: column.numpy() for name, column in columns.items()})


def relation_calibration_error(scores: Tensor, labels: Tensor, bins: int = 10) -> float:
    """Expected calibration error (%) of relation scores as probabilities that two images are of the same class.

    It is the mean of |`score` - `same`| over the bins, weighted by `share`. These are columns of `relation_calibration`.
    Arguments and errors are those of `relation_calibration`.
    """
    table = relation_calibration(scores, labels, bins)
    return float(((table["score"] - table["same"]).abs() * table["share"] / 100).sum())


def _weighted_pairs(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Score, "same class" (0 or 1) and weight of the P ordered pairs i != j, each (P,) double.

    The weights of intra pairs (same class) sum to one half, and so do those of inter pairs (different classes). Raises
    `CorsdError` if shapes do not match, and if there are no intra or no inter pairs.
    """
    n = len(labels)
    if scores.shape != (n, n):
        raise CorsdError(f"scores of shape {tuple(scores.shape)} do not fit {n} labels; allowed: ({n}, {n})")
    off_diagonal = ~torch.eye(n, dtype=torch.bool)
    same = (labels[:, None] == labels[None, :])[off_diagonal]
    counts = torch.stack([(~same).sum(), same.sum()]).double()
    if not counts.all():
        raise CorsdError(
            f"the images have {int(counts[1])} intra pairs and {int(counts[0])} inter pairs; allowed: at least one of each"
        )
    return scores[off_diagonal].double(), same.double(), (0.5 / counts)[same.long()]


# --- relations to class prototypes at inference -----------------------------------------------------------------------


def class_prototypes(embeddings: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Mean embedding (C, D) of every class, from embeddings (N, D) and labels (N,). Raises `CorsdError` for a class without
    images.
    """
    counts = torch.bincount(labels, minlength=num_classes)
    if not counts.all():
        raise CorsdError(
            f"there is no image of the classes {(counts == 0).nonzero().flatten().tolist()[:5]}, so they have no prototype"
        )
    sums = torch.zeros(num_classes, embeddings.shape[1], dtype=torch.double).index_add_(0, labels, embeddings.double())
    return (sums / counts[:, None]).to(embeddings.dtype)


def prototype_accuracy(run: Run, data: ImageData | None = None, split: str = "test") -> pd.DataFrame:
    """Top-1 accuracy (%) on `split` of the classifier, of class prototypes and of both combined; one row for each exit.

    A prototype is the mean embedding of all training images of a class, without augmentation. Columns:

    - `exit`: from 1 (shallowest);
    - `classifier`: accuracy of the classifier of the exit;
    - `relation`, `cosine`: accuracy of the prototypes. The predicted class is the one whose prototype has the highest relation
      score with the image, or the highest cosine;
    - `with_relation`, `with_cosine`: accuracy of both combined. The predicted class has the largest log p + w · z. p is the
      probability from the classifier. z is the log-odds of the relation, or the cosine, standardised over the classes;
    - `weight_relation`, `weight_cosine`: the w that is best on the validation images;
    - `macs`: the multiply-accumulates that the relation adds for each image.

    Raises `CorsdError` for an unknown split, for a method that does not train a relation network on the embeddings of every
    exit, for data without validation images, and for a class without training images; and the errors of `run_data`. Source:
    ours.
    """
    import pandas as pd

    check_choice("split", split, ("train", "validation", "test"))
    data = run_data(run, data)
    network, networks = run.network(), run.method().relation_networks()
    relations = [net for net in networks if isinstance(net, VectorRelation)]
    if not relations or len(relations) < len(networks):
        raise CorsdError(
            f"{run.path}: method {run.config.method!r} does not train a relation network on the embeddings of every exit, "
            "which prototypes need; use a run of method 'corsd', for example"
        )
    if data.validation is None:
        raise CorsdError(
            f"data {data.name!r} has no validation split to choose the weight of the relation on: pass data that was loaded "
            "with a validation_fraction"
        )
    known, chosen, asked = (_outputs(network, data, images) for images in (data.train, data.validation, getattr(data, split)))
    rows = []
    for k, relation in enumerate(relations):
        prototypes = class_prototypes(known[0][k], known[2], data.num_classes)
        row: dict[str, float] = {"exit": k + 1, "classifier": top_k_accuracy(asked[1][k], asked[2])}
        for name in ("relation", "cosine"):
            on_chosen, on_asked = (_prototype_scores(name, relation, out[0][k], prototypes) for out in (chosen, asked))
            weight = max(WEIGHTS, key=lambda w: top_k_accuracy(_add_prototype_scores(chosen[1][k], on_chosen, w), chosen[2]))
            row[name] = top_k_accuracy(on_asked, asked[2])
            row[f"with_{name}"] = top_k_accuracy(_add_prototype_scores(asked[1][k], on_asked, weight), asked[2])
            row[f"weight_{name}"] = weight
        width, hidden = prototypes.shape[1], relation.first.out_features
        rows.append({**row, "macs": width * hidden + len(prototypes) * hidden})
    return pd.DataFrame(rows)


def _prototype_scores(name: str, relation: VectorRelation, embeddings: Tensor, prototypes: Tensor) -> Tensor:
    """Scores (N, C) of embeddings (N, D) with prototypes (C, D).

    They are cosines if `name` is "cosine", else log-odds of `relation`.
    """
    if name == "cosine":
        return F.normalize(embeddings, dim=1) @ F.normalize(prototypes, dim=1).T
    with torch.no_grad():
        return torch.cat([relation.log_odds(block, prototypes) for block in embeddings.split(256)])


def _add_prototype_scores(logits: Tensor, opinion: Tensor, weight: float) -> Tensor:
    spread = opinion.std(1, keepdim=True).clamp_min(1e-12)
    return logits.log_softmax(1) + weight * (opinion - opinion.mean(1, keepdim=True)) / spread


def _outputs(network: MultiExitNetwork, data: ImageData, split: Split) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Embeddings (N, D) and logits (N, C) of every exit, and labels (N,), of the images of a split, not augmented."""
    with evaluating(network):
        outs = [(network(images), labels) for images, labels in evaluation_batches(data, split)]
    embeddings, logits = (
        [torch.cat(exit) for exit in zip(*(getattr(out, name) for out, _ in outs), strict=True)]
        for name in ("embeddings", "logits")
    )
    return embeddings, logits, torch.cat([labels for _, labels in outs])
