"""Relations between probe images and between classes: scores, orders of classes, quality and agreement.

N images, C classes. Exits are numbered from 1, the shallowest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corsd_lib.errors import CorsdError, check_choice
from corsd_lib.relation import (
    HANDCRAFTED,
    HandcraftedRelation,
    MapRelation,
    VectorRelation,
    cosine_scores,
    relation_matrix,
)
from corsd_lib.runs import Run, Snapshot, load_part, new_network

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "CLASS_ORDERS",
    "KIND_NAMES",
    "RELATION_KINDS",
    "attribute_agreement",
    "average_ranks",
    "class_order",
    "class_relations",
    "confusion_agreement",
    "linkage_of",
    "relation_agreement",
    "relation_contrast",
    "relation_networks_at",
    "relation_quality",
    "same_class_auc",
    "sample_order",
    "snapshot_at",
    "snapshot_scores",
    "spearman",
    "stored_kind",
    "superclass_lift",
]

RELATION_KINDS = ("trained", *HANDCRAFTED)
KIND_NAMES = {"trained": "relation", "cosine": "cosine relation", "l2": "L2 relation"}
CLASS_ORDERS = ("label", "superclass", "cluster", "superclass_cluster")


# --- scores and class-level relations of a run -------------------------------------------------------------------------


def snapshot_scores(run: Run, epoch: int, exit: int, kind: str = "trained") -> Tensor:
    """Relation scores of all ordered pairs of the probe images after `epoch` at `exit`; (N, N) float32 in [0, 1], 1 = related.

    `kind`: "trained" uses the relation networks after that epoch. If the method has none, it uses the cosine, as
    `Snapshot.relations` does. "cosine" and "l2" are `cosine_scores` and `distance_scores` of the embeddings. The snapshot
    stores the embeddings and the weights of the relation networks in float16. Raises `CorsdError` for an unknown epoch, exit or
    kind. With "trained" it is also raised if the relation networks compare feature maps, or if the method has relation networks
    but the snapshot has none.
    """
    snapshot = snapshot_at(run, epoch)
    _check_exit(exit, len(snapshot.embeddings))
    return _apply_scorer(_scorers(run, snapshot, kind)[exit - 1], snapshot.embeddings[exit - 1])


def class_relations(run: Run, epoch: int, exit: int, kind: str = "trained") -> Tensor:
    """Class-level relation (`relation_matrix`) after `epoch` at `exit`; (C, C) float32 in [0, 1], NaN where a pair of classes
    has no pair of images.

    `kind` "trained": a matrix that the snapshot stores. It stores one for each relation network, and `exit` is the number of
    the relation network, from 1. There may be more relation networks than exits. If the method has no relation networks, the
    snapshot stores one matrix for each exit. `kind` "cosine" and "l2": see `snapshot_scores`. Raises `CorsdError` for an
    unknown epoch, exit or kind.
    """
    snapshot = snapshot_at(run, epoch)
    _check_exit(exit, _relation_count(snapshot, kind))
    return _class_matrix(run, snapshot, exit, kind)


def snapshot_at(run: Run, epoch: int) -> Snapshot:
    """The probe snapshot after `epoch`. If there is none, raises `CorsdError` with a list of the existing snapshots."""
    probes = run.probes
    check_choice(f"{run.path}: snapshot after epoch", epoch, probes)
    return probes[epoch]


def stored_kind(run: Run, snapshot: Snapshot) -> str:
    """Kind of the stored class-level relations: "trained" if the snapshot has relation networks, else "cosine" or "l2".

    It is "l2" if the option `relation` of the method is "l2".
    """
    if snapshot.relation_state:
        return "trained"
    return "l2" if run.raw_config["method_options"].get("relation") == "l2" else "cosine"


def relation_networks_at(run: Run, snapshot: Snapshot) -> nn.ModuleList:
    """The relation networks of a run at a snapshot, shallow -> deep, in eval mode; empty for a method without them.

    Their weights are those of the snapshot; the final weights of the run are not needed. Raises `CorsdError` if the snapshot
    lacks the relation networks of the method, or has different ones.
    """
    with torch.device("meta"):  # only the shapes are needed, and no random numbers
        network = new_network(replace(run.config, pretrained=False), run.data)
        networks = run.config.build_method(network).relation_networks()
    networks = networks.to_empty(device="cpu")
    if networks.state_dict() and not snapshot.relation_state:
        raise CorsdError(f"{run.path}: the snapshot after epoch {snapshot.epoch} has no relation networks, only relations")
    load_part(networks, snapshot.relation_state, "relations", run.path / "probes" / f"epoch_{snapshot.epoch:04d}.safetensors")
    return networks.eval()


def _relation_count(snapshot: Snapshot, kind: str) -> int:
    check_choice("relation kind", kind, RELATION_KINDS)
    return len(snapshot.relations if kind == "trained" else snapshot.embeddings)


def _class_matrix(run: Run, snapshot: Snapshot, exit: int, kind: str) -> Tensor:
    if kind == "trained":
        return snapshot.relations[exit - 1]
    scores = HANDCRAFTED[kind](snapshot.embeddings[exit - 1])
    return relation_matrix(scores, run.probes.labels, run.data.num_classes)


def _scorers(run: Run, snapshot: Snapshot, kind: str) -> list[Callable[[Tensor], Tensor]]:
    """List with one function per exit, which maps embeddings (N, D) to scores (N, N). Raises the same errors as
    `snapshot_scores`.
    """
    check_choice("relation kind", kind, RELATION_KINDS)
    if kind != "trained":
        return [HANDCRAFTED[kind]] * len(snapshot.embeddings)
    networks = relation_networks_at(run, snapshot)
    if any(isinstance(network, MapRelation) for network in networks):
        raise CorsdError(
            f"{run.path}: its trained relation uses feature maps, which snapshots do not have; "
            f"allowed kinds: {', '.join(HANDCRAFTED)}; for the stored class-level relation use class_relations"
        )
    if not len(networks):
        return [cosine_scores] * len(snapshot.embeddings)
    return [network.scores for network in networks if isinstance(network, VectorRelation | HandcraftedRelation)]


def _apply_scorer(scorer: Callable[[Tensor], Tensor], embeddings: Tensor) -> Tensor:
    with torch.no_grad():
        return scorer(embeddings.float())


def _check_exit(exit: int, count: int) -> None:
    check_choice("exit", exit, range(1, count + 1))


# --- orders ------------------------------------------------------------------------------------------------------------


def class_order(kind: str, matrix: Tensor | None = None, superclass_of_class: Tensor | None = None) -> Tensor:
    """An order of the classes for display: a permutation (C,) int64, for `matrix[order][:, order]`.

    `kind`: "label", 0 to C - 1; "superclass", by superclass and then by label; "cluster", the leaves of `linkage_of(matrix)`;
    "superclass_cluster", by superclass, and within each the leaves of its own clustering. The clustered orders need the
    class-level relation `matrix` (C, C). The superclass orders need `superclass_of_class` (C,) int64. "label" needs one of
    these two arguments, for the number of classes. Raises `CorsdError` for an unknown `kind`, if an argument is missing or has
    a wrong shape, and the errors of `linkage_of`. Source: ours.
    """
    check_choice("class order", kind, CLASS_ORDERS)
    classes = _class_count(matrix, superclass_of_class)
    if "cluster" in kind and matrix is None:
        raise CorsdError(f"class order {kind!r} needs a matrix")
    if "superclass" in kind and superclass_of_class is None:
        raise CorsdError(f"class order {kind!r} needs superclass_of_class")
    whole = torch.zeros(classes, dtype=torch.long)
    block_of = superclass_of_class if "superclass" in kind and superclass_of_class is not None else whole
    members = [(block_of == block).nonzero().flatten() for block in block_of.unique()]
    if "cluster" in kind and matrix is not None:
        members = [classes_in[_leaf_order(matrix[classes_in][:, classes_in])] for classes_in in members]
    return torch.cat(members)


def sample_order(labels: Tensor, class_order: Tensor) -> Tensor:
    """Indices (N,) int64 of images, sorted by the position of their class in `class_order` (C,); the order within a class is
    kept.

    Raises `CorsdError` for a label outside 0 to C - 1.
    """
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(class_order):
        raise CorsdError(
            f"labels are from {int(labels.min())} to {int(labels.max())}, but class_order has {len(class_order)} classes; "
            f"allowed: 0 to {len(class_order) - 1}"
        )
    position = class_order.argsort()
    return position[labels].argsort(stable=True)


def linkage_of(matrix: Tensor) -> Tensor:
    """Hierarchical clustering of classes by their relation, as SciPy's linkage matrix (C - 1, 4) float64.

    Average linkage on the distance 1 - (R + Rᵀ)/2. The leaves are in optimal order (Bar-Joseph et al. 2001): neighbouring
    classes are as related as possible. This takes seconds for 1,000 classes. `matrix`: R (C, C) in [0, 1]. A pair without a
    relation (NaN) gets the mean distance of the other pairs. Raises `CorsdError` if the shape or the range is wrong, and for a
    single class.
    """
    from scipy.cluster.hierarchy import linkage

    distance = 1 - _symmetric(matrix)
    if len(matrix) < 2:
        raise CorsdError(f"a matrix of {len(matrix)} classes cannot be clustered; allowed: 2 or more")
    i, j = torch.triu_indices(len(matrix), len(matrix), 1)
    pairs = distance[i, j]
    known = pairs[~pairs.isnan()]
    if len(known) and not -1e-6 <= known.min() <= known.max() <= 1 + 1e-6:
        raise CorsdError(f"relations from {1 - known.max():g} to {1 - known.min():g} cannot be clustered; allowed: 0 to 1")
    pairs = pairs.nan_to_num(known.mean().item() if len(known) else 1.0).clamp_min(0)
    return torch.from_numpy(linkage(pairs.numpy(), method="average", optimal_ordering=True))


def _leaf_order(matrix: Tensor) -> Tensor:
    """Classes (C,) int64 of a class-level relation (C, C), in the order of the leaves of its clustering."""
    from scipy.cluster.hierarchy import leaves_list

    if len(matrix) < 2:
        return torch.arange(len(matrix))
    return torch.from_numpy(leaves_list(linkage_of(matrix).numpy())).long()


def _class_count(matrix: Tensor | None, superclass_of_class: Tensor | None) -> int:
    if matrix is not None:
        _check_square(matrix)
    counts = [len(t) for t in (matrix, superclass_of_class) if t is not None]
    if not counts:
        raise CorsdError("the number of classes is not known: give a matrix or superclass_of_class")
    if counts[0] != counts[-1]:
        raise CorsdError(
            f"the relation has {counts[0]} classes, superclass_of_class has {counts[-1]}; allowed: the same number"
        )
    return counts[0]


def _symmetric(matrix: Tensor) -> Tensor:
    """(R + Rᵀ) / 2 of a relation R (C, C), in float64. Raises `CorsdError` unless R is square."""
    _check_square(matrix)
    m = matrix.double()
    return (m + m.T) / 2


def _check_square(matrix: Tensor) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise CorsdError(f"the class-level relation has shape {tuple(matrix.shape)}; allowed: (C, C)")


# --- quality of a relation ----------------------------------------------------------------------------------------------


def same_class_auc(scores: Tensor, labels: Tensor) -> float:
    """ROC-AUC of relation scores as a detector of pairs of the same class; in [0, 1], 0.5 is chance.

    The pairs are all ordered pairs of different images. The result is the share of combinations of one intra pair (same class)
    and one inter pair (different classes) in which the intra pair has the higher score; ties count half. It is Mann-Whitney U /
    (P·Q) for P intra and Q inter pairs, computed exactly from ranks. `scores` (N, N), `labels` (N,). Pairs with a NaN score are
    left out. The result is NaN if no intra pair or no inter pair is left. Raises `CorsdError` if the shapes are wrong. Source:
    Hanley and McNeil 1982.
    """
    intra, inter = _intra_and_inter(scores, labels)
    p, q = int(intra.sum()), int(inter.sum())
    if not p * q:
        return float("nan")
    ranks = average_ranks(torch.cat([scores[intra], scores[inter]]))
    return ((ranks[:p].sum().item() - p * (p + 1) / 2) / p) / q


def relation_contrast(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Difference between the relation scores within classes and between classes.

    `scores` (N, N): r_ij of images i and j. `labels` (N,). Keys:

    - `intra`: mean r_ij over the ordered pairs of different images of the same class;
    - `inter`: mean r_ij over the ordered pairs of images of different classes;
    - `contrast`: intra - inter, in [-1, 1] for scores in [0, 1];
    - `triplets`: share in [0, 1] of the triplets (i, j, k) with r_ij > r_ik, where j is another image of the class of i, and k
      is an image of a different class. Ties count half; 0.5 is chance.

    Pairs with a NaN score are left out. A value is NaN if there are no pairs or triplets for it. Raises `CorsdError` if the
    shapes are wrong. Source: ours.
    """
    intra, inter = _intra_and_inter(scores, labels)
    means = [scores[mask].double().mean().item() for mask in (intra, inter)]
    return {
        "intra": means[0],
        "inter": means[1],
        "contrast": means[0] - means[1],
        "triplets": _triplets_in_order(scores.double(), intra, inter),
    }


def relation_quality(run: Run, epoch: int, kind: str = "trained") -> pd.DataFrame:
    """Quality of the relation scores on the probe images, one row for each exit.

    Columns: epoch, exit, kind, auc (`same_class_auc`) and the keys of `relation_contrast`. Raises the same errors as
    `snapshot_scores`.
    """
    import pandas as pd

    snapshot, labels = snapshot_at(run, epoch), run.probes.labels
    rows = []
    for k, scorer in enumerate(_scorers(run, snapshot, kind)):
        scores = _apply_scorer(scorer, snapshot.embeddings[k])
        found = {"auc": same_class_auc(scores, labels), **relation_contrast(scores, labels)}
        rows.append({"epoch": epoch, "exit": k + 1, "kind": kind, **found})
    return pd.DataFrame(rows)


def _intra_and_inter(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Masks (N, N) of the intra pairs (same class, i != j) and of the inter pairs (different classes).

    Pairs whose score is NaN are in neither. Raises `CorsdError` if the shapes are wrong.
    """
    n = len(labels)
    if scores.shape != (n, n):
        raise CorsdError(f"scores of shape {tuple(scores.shape)} do not fit {n} labels; allowed: ({n}, {n})")
    same, known = labels[:, None] == labels[None, :], ~scores.isnan()
    return same & known & ~torch.eye(len(labels), dtype=torch.bool), ~same & known


def _triplets_in_order(scores: Tensor, intra: Tensor, inter: Tensor) -> float:
    """Share of triplets in the correct order, see `relation_contrast`. Sorting the rows takes O(N² log N); listing the triplets
    would take O(N³).
    """
    others = inter.sum(1, keepdim=True)  # (N, 1)
    triplets = int((intra.sum(1, keepdim=True) * others).sum())
    if not triplets:
        return float("nan")
    row = scores.masked_fill(~inter, -torch.inf).sort(dim=1).values  # the inter scores are at the end of each row
    below, not_above = (torch.searchsorted(row, scores.contiguous(), right=right) for right in (False, True))
    # (N, N) number of inter scores of the row below r_ij; equal ones count one half
    ordered = (below + not_above) / 2 - (len(scores) - others)
    return ordered[intra].double().sum().item() / triplets


def average_ranks(values: Tensor) -> Tensor:
    """Ranks 1..n of values (n,) in float64; equal values have their mean rank."""
    from scipy.stats import rankdata

    return torch.from_numpy(rankdata(values.numpy()))


# --- agreement of a class-level relation --------------------------------------------------------------------------------


def superclass_lift(matrix: Tensor, superclass_of_class: Tensor) -> float:
    """Mean relation of two different classes of the same superclass, divided by the mean for classes of different superclasses.

    `matrix` (C, C) in [0, 1], `superclass_of_class` (C,). At least 0; 1 if the relation does not depend on superclasses, above
    1 if classes of one superclass are more related. NaN entries are left out. NaN if there is no pair within superclasses, or
    none between them. Raises `CorsdError` if the matrix is not square or the lengths of the two arguments differ. Source: ours.
    """
    _class_count(matrix, superclass_of_class)
    related = superclass_of_class[:, None] == superclass_of_class[None, :]
    m = matrix.double()
    different = ~torch.eye(len(m), dtype=torch.bool)
    return (m[related & different].nanmean() / m[~related].nanmean()).item()


def attribute_agreement(matrix: Tensor, attributes: Tensor) -> float:
    """Spearman correlation of the relation of two classes with the cosine of their attribute vectors, over pairs of classes.

    `matrix` (C, C), symmetrised; `attributes` (C, A), as `ImageData.attributes`. In [-1, 1]; 1 if relation and cosine rank the
    pairs in the same order. Pairs with a NaN relation are left out. Classes whose attributes are all 0 are left out, too. NaN
    if the relation or the cosine is constant. Raises `CorsdError` if the matrix is not square or the lengths of the two
    arguments differ. Source: ours.
    """
    if len(attributes) != len(matrix):
        raise CorsdError(f"attributes has {len(attributes)} classes, the relation has {len(matrix)}; allowed: the same number")
    a = attributes.double()
    unit = a / a.norm(dim=1, keepdim=True)  # NaN for a class without attributes
    return _pairwise_agreement(matrix, (unit @ unit.T).round(decimals=12))  # rounded, so that equal cosines have equal ranks


def confusion_agreement(matrix: Tensor, logits: Tensor, labels: Tensor) -> float:
    """Spearman correlation of the relation of two classes with their rate of confusion, over pairs of classes; in [-1, 1].

    The confusion of classes c and d is the mean of two shares: the share of images of c that are predicted as d, and the share
    of images of d that are predicted as c. `matrix` (C, C), symmetrised; `logits` (N, C), `labels` (N,). Classes without an
    image are left out. NaN if the relation or the confusion is the same for all pairs, for example if no image is
    misclassified. Raises `CorsdError` if the shapes are wrong. Source: ours.
    """
    classes = len(matrix)
    if logits.shape != (len(labels), classes):
        raise CorsdError(
            f"logits of shape {tuple(logits.shape)} do not fit {len(labels)} labels and a relation of {classes} classes; "
            f"allowed: ({len(labels)}, {classes})"
        )
    cells = torch.bincount(labels * classes + logits.argmax(1), minlength=classes**2).view(classes, classes).double()
    n = cells.sum(1)
    # One division of whole numbers, so that equal shares are exactly equal and have equal ranks.
    both = (cells * n[None, :] + cells.T * n[:, None]) / (n[:, None] * n[None, :])
    return _pairwise_agreement(matrix, both)


def relation_agreement(run: Run, epoch: int, kind: str = "trained", attributes: Tensor | None = None) -> pd.DataFrame:
    """Agreement of `class_relations` with superclasses, confusions and attributes, one row for each exit.

    Columns:

    - `epoch`, `exit`, `kind`;
    - `superclass_lift` and `confusion_agreement`: the results of the functions of these names;
    - `superclass_auc`: `same_class_auc` of the class-level relation, with superclasses as labels. Unlike the lift, it can be
      compared between scores with different offsets;
    - `attribute_agreement`, only if `attributes` (C, A) as in `ImageData` are given: the result of `attribute_agreement`.

    Confusions are those of the probe images at the same exit. If the number of relations differs from that of the exits, as for
    relations of stages without an exit, the confusions are those at the deepest exit. Raises the same errors as
    `class_relations`.
    """
    import pandas as pd

    snapshot, labels = snapshot_at(run, epoch), run.probes.labels
    superclasses = torch.tensor(run.data.superclass_of_class)
    count = _relation_count(snapshot, kind)
    logits = snapshot.logits if len(snapshot.logits) == count else [snapshot.logits[-1]] * count
    rows = []
    for k in range(count):
        matrix = _class_matrix(run, snapshot, k + 1, kind)
        found = {
            "superclass_lift": superclass_lift(matrix, superclasses),
            "superclass_auc": same_class_auc(matrix, superclasses),
            "confusion_agreement": confusion_agreement(matrix, logits[k].float(), labels),
        }
        if attributes is not None:
            found["attribute_agreement"] = attribute_agreement(matrix, attributes)
        rows.append({"epoch": epoch, "exit": k + 1, "kind": kind, **found})
    return pd.DataFrame(rows)


def spearman(first: Tensor, second: Tensor) -> float:
    """Spearman's rank correlation of two vectors (n,), in [-1, 1]; equal values have their mean rank. NaN if either is
    constant.

    Pairs with a NaN are left out. Source: Spearman 1904.
    """
    known = ~(first.isnan() | second.isnan())
    ranks = torch.stack([average_ranks(values[known]) for values in (first, second)])  # (2, n)
    centred = ranks - ranks.mean(dim=1, keepdim=True)
    if not centred.any(dim=1).all():
        return float("nan")
    return F.cosine_similarity(centred[0], centred[1], dim=0, eps=0.0).item()


def _pairwise_agreement(matrix: Tensor, other: Tensor) -> float:
    """`spearman` of the off-diagonal entries of two matrices (C, C), symmetrised first."""
    i, j = torch.triu_indices(len(matrix), len(matrix), 1)
    return spearman(_symmetric(matrix)[i, j], _symmetric(other)[i, j])
