"""Terms of the losses as pure functions of tensors, without state and without the weights of the terms.

Shapes: B images, C classes, D embedding width, P (or Q) pairs of images; sg is stop-gradient. An intra pair is two images of
the same class, an inter pair two images of different classes. Without pairs a term is exactly 0 and has a gradient of 0, so
that batches without positives or with a single class can be trained on. Pairs are selected by masks, not by indexing. So
shapes do not depend on values, the CPU does not wait for the GPU, and all terms can be recorded in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, cast

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "auxiliary_cross_entropy",
    "batch_affinity",
    "class_affinity",
    "class_distillation",
    "correlation_distillation",
    "cross_entropy",
    "distillation",
    "ensembled_distillation",
    "ensembled_targets",
    "feature_hint",
    "full_precision",
    "margin_over_batch",
    "margin_over_triplets",
    "mixed_cross_entropy",
    "normalised_distances",
    "pairwise_distances",
    "partner_distillation",
    "relation_affinity",
    "relation_cross_entropy",
    "relation_transfer",
    "relation_transfer_by_row_correlation",
    "relation_transfer_by_row_divergence",
    "relation_transfer_over_batch",
    "rkd_angle",
    "rkd_distance",
    "target_divergence",
    "two_label_cross_entropy",
]


P = ParamSpec("P")


def full_precision(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Decorator that runs a function outside of autocast, with its positional tensors in at least float32.

    Autocast computes matrix products in half precision, in which the difference of two nearly equal sums is noise. The first
    argument of the function must be a tensor.
    """

    def at_least_float32(value: Any) -> Any:
        half = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
        return value.float() if half else value

    @wraps(function)
    def exact(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        device = cast(Tensor, args[0]).device
        with torch.autocast(device.type, enabled=False):
            return function(*map(at_least_float32, args), **kwargs)

    return exact


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy in nats of `logits` (B, C) against `labels` (B,); >= 0, 0 for an empty batch."""
    if not len(labels):
        return logits.sum() * 0.0
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)


@full_precision
def distillation(teacher: Tensor, student: Tensor, temperature: float = 3.0) -> Tensor:
    """T² · KL(softmax(sg teacher / T) ‖ softmax(student / T)) of logits (B, C), mean over the batch; >= 0 nats.

    No gradient reaches `teacher` (sg is stop-gradient). Source: Hinton et al. 2015, arXiv 1503.02531; between exits: BYOT,
    arXiv 1905.08094.
    """
    if not len(teacher):
        return student.sum() * 0.0
    log_p = _log_softmax(teacher.detach() / temperature)
    log_q = _log_softmax(student / temperature)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2


@full_precision
def class_distillation(teacher: Tensor, student: Tensor, labels: Tensor, temperature: float = 4.0) -> Tensor:
    """Distillation between images of one class: for each pair, image j is the teacher of image i, as in `distillation`.

    Returns the mean over all ordered pairs (i, j) of different images with the same label, in nats; >= 0 up to rounding.
    Logits (B, C), labels (B,). No gradient reaches `teacher`; it may be `student` itself. Source: CS-KD, arXiv 2003.13964.
    """
    intra, _ = _intra_and_inter(labels)
    log_p, log_q = _log_softmax(teacher.detach() / temperature), _log_softmax(student / temperature)
    p, pairs = log_p.exp(), intra.to(log_p.dtype)
    # the sum over pairs of sum_c p_jc (log p_jc - log q_ic), without a tensor that has an entry for each pair
    kl = pairs.sum(0) @ (p * log_p).sum(1) - ((pairs @ p) * log_q).sum()
    return kl / pairs.sum().clamp_min(1) * temperature**2


def _intra_and_inter(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Masks (B, B) of the intra pairs (same class, different images) and of the inter pairs (different classes) of a batch."""
    same = labels[:, None] == labels[None, :]
    return same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device), ~same


def mixed_cross_entropy(logits: Tensor, labels: Tensor, past: Tensor, weight: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy in nats of logits (B, C) against (1 - weight)·onehot(labels) + weight·past.

    `labels` (B,), `past` (B, C) probabilities, `weight` (B,) in [0, 1], one for each image. `label_smoothing` is applied to the
    one-hot part only. Source: PS-KD, arXiv 2006.12000.
    """
    hard = F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
    soft = -(past * _log_softmax(logits)).sum(1)
    return ((1 - weight) * hard + weight * soft).mean()


def _log_softmax(logits: Tensor) -> Tensor:
    """Log-softmax over the classes in at least float32; half precision is too coarse for the logarithm."""
    return F.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=1)


@full_precision
def feature_hint(teacher: Tensor, student: Tensor) -> Tensor:
    """Squared L2 distance of embeddings (B, D), *summed* over the batch; >= 0.

    No gradient reaches `teacher`. Source: the hint of BYOT, arXiv 1905.08094.
    """
    return (student - teacher.detach()).square().sum()


def auxiliary_cross_entropy(logits: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Soft cross-entropy of pair logits (P, C) against ½·onehot(`first`) + ½·onehot(`second`), both labels (P,); >= 0 nats.

    For an intra pair (`first` == `second`) this is the plain cross-entropy. The half/half label is a probability already; a
    softmax over it, as in the authors' code, would make it nearly uniform. Source: the auxiliary term of CORSD.
    """
    if not len(first):
        return logits.sum() * 0.0
    log_q = _log_softmax(logits)
    return -0.5 * (log_q.gather(1, first[:, None]) + log_q.gather(1, second[:, None])).mean()


def relation_transfer(teacher: tuple[Tensor, Tensor], student: tuple[Tensor, Tensor]) -> Tensor:
    """Mean of (r_student - sg r_teacher)² over pairs, in [0, 1]; both arguments are scores (intra (P,), inter (Q,)) in (0, 1).

    The result is the average of two means: over the intra pairs and over the inter pairs. If there are no pairs of one kind, it
    is the mean over the other kind. Source: the relation transfer of CORSD. The average of two means is ours. It has the same
    expected value as the authors' code, where each triplet has one pair of each kind.
    """
    parts = [(s - t.detach()).square().mean() for t, s in zip(teacher, student, strict=True) if s.numel()]
    return torch.stack(parts).mean() if parts else student[0].sum() * 0.0


def relation_transfer_over_batch(teacher: Tensor, student: Tensor, labels: Tensor) -> Tensor:
    """`relation_transfer` over *every* ordered pair of a batch with `labels` (B,), from scores (B, B) in (0, 1); in [0, 1]."""
    square = (student - teacher.detach()).square()
    masks = torch.stack(_intra_and_inter(labels))  # (2, B, B)
    counts = masks.sum((1, 2))
    means = (square * masks).sum((1, 2)) / counts.clamp_min(1)  # 0 for a kind without pairs
    return means.sum() / (counts > 0).sum().clamp_min(1)


def margin_over_triplets(intra: Tensor, inter: Tensor, margin: float = 1.0) -> Tensor:
    """Mean of max(0, m - r_intra + r_inter) over P triplets; in [0, m + 1].

    `intra` (P,), `inter` (P,): scores in (0, 1) of the two pairs of each triplet, which have the same first image (anchor).
    `margin`: m. Source: the margin term of CORSD.
    """
    if not (intra.numel() and inter.numel()):
        return (intra.sum() + inter.sum()) * 0.0
    return F.relu(margin - intra + inter).mean()


def margin_over_batch(scores: Tensor, labels: Tensor, margin: float = 1.0) -> Tensor:
    """`margin_over_triplets` over *every* triplet (i, j, k) of a batch: y_i = y_j, i != j, y_k != y_i; in [0, m + 1].

    `scores` r (B, B) in (0, 1), `labels` y (B,), `margin` m. The inter scores above r_ij - m are a suffix of the sorted row i,
    so their sum is one difference of prefix sums. Sorting the rows costs O(B² log B); listing the triplets would cost O(B³).
    The result is exact. With m >= 1, as in the authors' code, the hinge is never 0 and the loss is linear in the scores. Source
    of the algorithm: ours.
    """
    intra, inter = _intra_and_inter(labels)
    triplets = (intra.sum(1) * inter.sum(1)).sum()
    # Scores of the anchor's own class are -inf in the sorted rows and 0 in the sums.
    row = scores.masked_fill(~inter, -torch.inf).sort(dim=1).values
    prefix = F.pad(row.masked_fill(row.isinf(), 0.0).cumsum(1), (1, 0))  # (B, B + 1)
    # A score of exactly r_ij - m adds 0, so it may be on either side of the cut. The cut has no gradient.
    first = torch.searchsorted(row.detach(), (scores - margin).detach().contiguous())
    count = len(labels) - first
    hinge = count * (margin - scores) + prefix[:, -1:] - prefix.gather(1, first)
    return (hinge * intra).sum() / triplets.clamp_min(1)


@full_precision
def pairwise_distances(embeddings: Tensor) -> Tensor:
    """Euclidean distances (B, B) >= 0 of embeddings (B, D); the diagonal is exactly 0 and has no gradient.

    Equal embeddings of different images have the distance 1e-6, so that the gradient is finite.
    """
    norms = embeddings.square().sum(1)
    square = norms[:, None] + norms[None, :] - 2 * embeddings @ embeddings.T
    eye = torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device)
    return square.clamp_min(1e-12).sqrt().masked_fill(eye, 0.0)


def normalised_distances(embeddings: Tensor) -> Tensor:
    """`pairwise_distances` (B, B) of embeddings (B, D), divided by their mean positive entry.

    Equal embeddings of different images count as positive, see `pairwise_distances`.
    """
    distances = pairwise_distances(embeddings)
    positive = (distances > 0).sum().clamp_min(1)
    return distances / (distances.sum() / positive).clamp_min(torch.finfo(distances.dtype).tiny)


def rkd_distance(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean smooth-L1 loss between the distance matrices of embeddings (B, D), each divided by its mean positive entry; >= 0.

    No gradient reaches `teacher`; D may differ. Source: RKD, Park et al. 2019, arXiv 1904.05068, equation 6.
    """
    if len(student) < 2:
        return student.sum() * 0.0
    with torch.no_grad():
        target = normalised_distances(teacher)
    return F.smooth_l1_loss(normalised_distances(student), target)


def rkd_angle(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean smooth-L1 loss between the cosines of all angles in `student` and in `teacher`, both embeddings (B, D); >= 0.

    Each triplet of embeddings has an angle, so memory grows with B³. No gradient reaches `teacher`; its width D may differ from
    that of `student`. Source: RKD, arXiv 1904.05068, equation 8.
    """
    if not len(student):
        return student.sum() * 0.0
    with torch.no_grad():
        target = _angles(teacher)
    return F.smooth_l1_loss(_angles(student), target)


@full_precision
def _angles(embeddings: Tensor) -> Tensor:
    """Cosines (B, B, B): entry [i, j, k] is the cosine of the angle at embedding i between the directions to j and to k.

    The direction between equal embeddings is undefined. An entry is therefore 0, without a gradient, if the difference between
    embeddings i and j, or between i and k, is shorter than 1e-4 times the root mean square of all differences.
    """
    towards = embeddings[None, :, :] - embeddings[:, None, :]  # (B, B, D)
    square = towards.square().sum(2, keepdim=True)
    apart = square > 1e-8 * square.detach().mean()
    towards = towards * torch.where(apart, square, 1.0).rsqrt() * apart
    return towards @ towards.transpose(1, 2)


# --- relations as probabilities ---------------------------------------------------------------------------------------


def relation_cross_entropy(log_odds: Tensor, labels: Tensor) -> Tensor:
    """Balanced binary cross-entropy of "same class?" over every ordered pair of a batch; nats, >= 0.

    `log_odds` (B, B) of the relation scores, `labels` (B,). The result is the average of two means: over the intra pairs and
    over the inter pairs. If there are no pairs of one kind, it is the mean over the other kind. The loss is a proper scoring
    rule for intra and inter pairs that are equally frequent: it is minimal if each score is the probability that y_i = y_j
    under these frequencies. Source: ours.
    """
    masks = torch.stack(_intra_and_inter(labels))  # (2, B, B)
    nats = torch.stack([F.softplus(-log_odds), F.softplus(log_odds)])
    counts = masks.sum((1, 2))
    means = (nats * masks).sum((1, 2)) / counts.clamp_min(1)
    return means.sum() / (counts > 0).sum().clamp_min(1)


def relation_affinity(log_odds: Tensor) -> Tensor:
    """Softmax of each row of `log_odds` (B, B) over the entries off the diagonal.

    Returns (B, B) whose rows sum to 1 and whose diagonal is 0; [[1]] for a single image. Source: the affinity of BAKE, arXiv
    2104.13298, with any relation in place of the cosine.
    """
    if len(log_odds) < 2:
        return torch.ones_like(log_odds)
    eye = torch.eye(len(log_odds), dtype=torch.bool, device=log_odds.device)
    return log_odds.masked_fill(eye, -torch.inf).softmax(1)


def class_affinity(labels: Tensor) -> Tensor:
    """Affinity (B, B) from labels (B,): each row has equal weights, with sum 1, for the other images of the same class.

    An image that is alone in its class has weight 1 for itself.
    """
    intra = _intra_and_inter(labels)[0].float()
    alone = intra.sum(1) == 0
    return (intra + torch.diag(alone.float())) / intra.sum(1).clamp_min(1)[:, None]


@full_precision
def target_divergence(target: Tensor, logits: Tensor, temperature: float = 4.0) -> Tensor:
    """T² · KL(target ‖ softmax(logits / T)), mean over the rows; `target` (B, C) probabilities, `logits` (B, C); >= 0 nats.

    No gradient reaches `target`. Entries of `target` that are slightly below 0, due to rounding, are set to 0.
    """
    if not len(logits):
        return logits.sum() * 0.0
    return F.kl_div(_log_softmax(logits / temperature), target.detach().clamp_min(0), reduction="batchmean") * temperature**2


def relation_transfer_by_row_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher ‖ student) between the softmaxes of the rows of two matrices of log-odds (B, B), each without its diagonal.

    Mean over the rows, >= 0 nats. No gradient reaches `teacher`. Source: ours.
    """
    if len(student) < 2:
        return student.sum() * 0.0
    log_p, log_q = (_off_diagonal(m).log_softmax(1) for m in (teacher.detach(), student))
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def relation_transfer_by_row_correlation(teacher: Tensor, student: Tensor) -> Tensor:
    """1 - mean Pearson correlation between the rows of two matrices of log-odds (B, B), each without its diagonal; in [0, 2].

    0 for fewer than three images. No gradient reaches `teacher`. Source: ours, after DIST, arXiv 2205.10536, which correlates
    the probabilities of classes. Here a row has the log-odds of one image with the other images.
    """
    if len(student) < 3:  # rows without the diagonal have fewer than two entries, which have no correlation
        return student.sum() * 0.0
    rows = (_off_diagonal(m) for m in (teacher.detach(), student))
    t, s = (F.normalize(r - r.mean(1, keepdim=True), dim=1, eps=1e-6) for r in rows)
    return 1 - (t * s).sum(1).mean()


def _off_diagonal(matrix: Tensor) -> Tensor:
    """Rows of a matrix (B, B) without the diagonal: (B, B - 1)."""
    n = len(matrix)
    return matrix.flatten()[1:].view(n - 1, n + 1)[:, :-1].reshape(n, n - 1)


def two_label_cross_entropy(logits: Tensor, first: Tensor, second: Tensor, lam: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """lam · CE(z, first) + (1 - lam) · CE(z, second), mean over the batch; >= 0 nats.

    Logits z (B, C); `first`, `second` (B,): the two labels of each image. `lam` (): weight of the first label, in [0, 1].
    Source: the loss of mixup, arXiv 1710.09412, and of CutMix, arXiv 1905.04899.
    """
    one, other = (cross_entropy(logits, labels, label_smoothing) for labels in (first, second))
    return lam * one + (1 - lam) * other


@full_precision
def partner_distillation(logits: Tensor, partner: Tensor, mask: Tensor, temperature: float = 4.0) -> Tensor:
    """T² · KL(sg softmax(z_partner / T) ‖ softmax(z / T)), mean over the images that learn; >= 0 nats, 0 if no image learns.

    Logits (B, C); `partner` (B,): index of each image's teacher in the batch; `mask` bool (B,): the images that
    learn. No gradient reaches a teacher (sg is stop-gradient). If both images of a pair learn, this is the loss of intra-class
    patch swap, arXiv 2505.14124.
    """
    log_q = _log_softmax(logits / temperature)
    log_p = log_q.detach().index_select(0, partner)
    kl = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)  # (B,)
    return (kl * mask).sum() / mask.sum().clamp_min(1) * temperature**2


@full_precision
def batch_affinity(embeddings: Tensor) -> Tensor:
    """Softmax of the cosines between each embedding (B, D) and all others of the batch: (B, B), one row for each image.

    See `relation_affinity`. Source: BAKE, Ge et al. 2021, arXiv 2104.13298.
    """
    directions = F.normalize(embeddings, dim=1)
    return relation_affinity(directions @ directions.T)


@full_precision
def ensembled_targets(probabilities: Tensor, affinity: Tensor, omega: float) -> Tensor:
    """(1 - w) · (I - w·A)^-1 · P: each row of P mixed with the rows of its neighbours, of their neighbours, and so on.

    `probabilities` P (B, C): rows sum to 1. `affinity` A (B, B): rows sum to 1, the diagonal is 0. `omega` w in [0, 1): the
    share of the neighbours; above 0.99 float32 is inexact. Returns (B, C), whose rows sum to 1. Source: BAKE, Ge et al. 2021,
    arXiv 2104.13298.
    """
    eye = torch.eye(len(affinity), dtype=affinity.dtype, device=affinity.device)
    # The matrix is never singular, so the returned status is not checked
    return torch.linalg.solve_ex(eye - omega * affinity, (1 - omega) * probabilities)[0]


@full_precision
def ensembled_distillation(logits: Tensor, embeddings: Tensor, omega: float = 0.5, temperature: float = 4.0) -> Tensor:
    """T² · KL(sg Q ‖ P), mean over the batch, with P = softmax(z / T) and its `ensembled_targets` Q; >= 0 nats.

    Logits z (B, C); the affinity for Q is `batch_affinity` of embeddings (B, D). No gradient reaches Q. 0 for one image, which
    has no neighbour. Source: BAKE, arXiv 2104.13298.
    """
    if len(logits) < 2:
        return logits.sum() * 0.0
    with torch.no_grad():
        q = ensembled_targets((logits / temperature).softmax(1), batch_affinity(embeddings), omega)
    return target_divergence(q, logits, temperature)


@full_precision
def correlation_distillation(
    teacher: Tensor, student: Tensor, temperature: float = 4.0, inter: float = 1.0, intra: float = 1.0
) -> Tensor:
    """T² · (inter · (1 - mean correlation of rows) + intra · (1 - mean correlation of columns)) of softmax(z / T); >= 0.

    Logits (B, C). A row has the probabilities of one image for all classes, a column those of all images for one class.
    The correlation is Pearson's, between teacher and student; it is 0 for a constant row or column. For one image the term of
    the columns is left out. No gradient reaches `teacher`. Source: DIST, Huang et al. 2022, arXiv 2205.10536.
    """
    p, q = (_log_softmax(z / temperature).exp() for z in (teacher.detach(), student))
    loss = inter * (1 - _correlation(p, q).mean())
    if len(student) > 1:
        loss = loss + intra * (1 - _correlation(p.T, q.T).mean())
    return loss * temperature**2


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation (N,) of each row of `a` with the same row of `b`, both (N, M); eps 1e-8 as in the code of DIST."""
    a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
    return F.cosine_similarity(a, b, dim=1, eps=1e-8)
