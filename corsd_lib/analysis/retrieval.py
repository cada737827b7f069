"""Retrieval and few-shot metrics of embeddings, or of scores of pairs.

N images, D dimensions. Scores (N, N) are higher for more similar images; row i is the query, column j the retrieved image.
Source of recall@1, R-precision and MAP@R: Musgrave et al. 2020, A Metric Learning Reality Check, arXiv 2003.08505.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from corsd_lib.errors import CorsdError, check_choice

__all__ = [
    "SIMILARITIES",
    "Episodes",
    "FewShot",
    "embedding_few_shot",
    "embedding_retrieval",
    "few_shot_accuracy",
    "map_at_r",
    "r_precision",
    "recall_at_1",
    "retrieval_metrics",
]

BLOCK = 512  # number of queries at a time, because memory grows with BLOCK x N


def cosine_similarity(queries: Tensor, others: Tensor) -> Tensor:
    """Cosines (Q, N) between vectors (Q, D) and (N, D)."""
    return F.normalize(queries, dim=-1) @ F.normalize(others, dim=-1).transpose(-1, -2)


def euclidean_similarity(queries: Tensor, others: Tensor) -> Tensor:
    """Negative Euclidean distances (Q, N) between vectors (Q, D) and (N, D)."""
    return -torch.cdist(queries, others)


SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": cosine_similarity,
    "euclidean": euclidean_similarity,
}


# --- retrieval --------------------------------------------------------------------------------------------------------


def recall_at_1(scores: Tensor, labels: Tensor) -> float:
    """Percentage of images whose highest-scored other image has the same class.

    Arguments, ties and errors as in `retrieval_metrics`.
    """
    return retrieval_metrics(scores, labels)["recall_at_1"]


def r_precision(scores: Tensor, labels: Tensor) -> float:
    """Mean share (%) of images of the query's class among the R images with the highest scores.

    R is the number of other images of the query's class. Arguments, ties and errors as in `retrieval_metrics`.
    """
    return retrieval_metrics(scores, labels)["r_precision"]


def map_at_r(scores: Tensor, labels: Tensor) -> float:
    """Mean average precision at R (%). Arguments, ties and errors as in `retrieval_metrics`."""
    return retrieval_metrics(scores, labels)["map_at_r"]


def retrieval_metrics(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """recall_at_1, r_precision and map_at_r (%) of scores (N, N) for labels (N,); each image is a query against all others.

    R is the number of other images of the query's class. For one query the metrics are:

    - `recall_at_1`: 1 if the image with the highest score is of the query's class, else 0;
    - `r_precision`: the share of images of the query's class among the R images with the highest scores;
    - `map_at_r`: 1/R · sum of P(k) over the ranks k <= R with an image of the query's class, where P(k) is the share of images
      of this class among the first k.

    The result has their means over the queries with R > 0; NaN if there are none. Images with equal scores have no defined
    order: each metric is averaged over all their orders. Raises `CorsdError` if the shapes are wrong and for NaN scores.
    Source: Musgrave et al. 2020, arXiv 2003.08505; the rule for ties is ours.
    """
    n = len(labels)
    if scores.shape != (n, n):
        raise CorsdError(f"scores of shape {tuple(scores.shape)} do not fit {n} labels; allowed: ({n}, {n})")
    blocks = torch.arange(len(labels)).split(BLOCK)
    return _mean_metrics(_query_metrics(scores[block], labels, block) for block in blocks)


def embedding_retrieval(embeddings: Tensor, labels: Tensor, similarity: str = "cosine") -> dict[str, float]:
    """`retrieval_metrics` of embeddings (N, D) with labels (N,), compared by `similarity`, a key of `SIMILARITIES`.

    Computed in blocks, without an (N, N) matrix. Raises `CorsdError` for an unknown similarity, if the shapes are wrong and for
    NaN embeddings.
    """
    check_choice("similarity", similarity, SIMILARITIES)
    _check_embeddings(embeddings, labels)
    e, compare = embeddings.double(), SIMILARITIES[similarity]
    blocks = torch.arange(len(labels)).split(BLOCK)
    return _mean_metrics(_query_metrics(compare(e[block], e), labels, block) for block in blocks)


def _mean_metrics(blocks: Iterable[Tensor]) -> dict[str, float]:
    """Means (%) of the metrics over all queries, from blocks (3, Q) in [0, 1]; NaN values are left out."""
    metrics = torch.cat([torch.empty(3, 0, dtype=torch.double), *blocks], dim=1)
    means = (100 * metrics.nanmean(1)).tolist()
    return dict(zip(("recall_at_1", "r_precision", "map_at_r"), means, strict=True))


def _query_metrics(scores: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    """recall@1, R-precision and MAP@R of each query: (3, Q) double in [0, 1].

    `scores` (Q, N); `labels` (N,); `queries` (Q,): indices of images. R is the number of other images of the class of the
    query. The metrics of a query with R = 0 are NaN. Raises `CorsdError` for NaN scores.
    """
    if scores.isnan().any():
        raise CorsdError("scores have NaN; allowed: numbers, higher for more similar images")
    if len(labels) < 2:
        return torch.full((3, len(queries)), torch.nan, dtype=torch.double)
    others = torch.arange(len(labels)) != queries[:, None]
    scores = scores[others].view(len(queries), -1).double()  # (Q, N - 1)
    same = (labels[queries][:, None] == labels)[others].view(scores.shape)
    r = same.sum(1, keepdim=True)  # (Q, 1)
    most = max(1, int(r.max()))
    ordered, order = scores.sort(dim=1, descending=True)
    precision, share = _expected_precision(ordered, same.gather(1, order).double(), most)
    within = torch.arange(1, most + 1) <= r
    mean_of_r = torch.stack([share * within, precision * within]).sum(2) / r.T
    first = torch.where(r.T > 0, share[:, 0], torch.nan)
    return torch.cat([first, mean_of_r])


def _expected_precision(scores: Tensor, same: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Expected rel(k) · P(k) and expected rel(k), over all orders of equal scores, for ranks k = 1..`most`: each (Q, most).

    `same` (Q, M) has rel(k): 1 if the image at rank k is of the query's class, else 0. P(k) is the mean of rel(1) to rel(k).
    `scores` (Q, M) are in descending order. Take a group of g images with equal scores, s of them of the query's class. Each
    position of the group has an image of this class with probability s/g. If it has one, each earlier position of the group has
    one with probability (s - 1)/(g - 1).
    """
    new = torch.ones_like(scores, dtype=torch.bool)
    new[:, 1:] = scores[:, 1:] != scores[:, :-1]
    group = new.cumsum(1) - 1  # (Q, M) index of the group of equal scores
    ones = torch.ones_like(same)
    sizes, members = (torch.zeros_like(same).scatter_add_(1, group, values) for values in (ones, same))
    before, members_before = (values.cumsum(1) - values for values in (sizes, members))  # counts in all earlier groups
    group = group[:, :most]
    g, s, n, c = (values.gather(1, group) for values in (sizes, members, before, members_before))
    rank = torch.arange(1, most + 1)
    share = s / g
    earlier = c + (rank - n - 1) * (s - 1).clamp_min(0) / (g - 1).clamp_min(1)
    return share * (1 + earlier) / rank, share


def _check_embeddings(embeddings: Tensor, labels: Tensor) -> None:
    if embeddings.ndim != 2 or len(embeddings) != len(labels):
        raise CorsdError(
            f"embeddings of shape {tuple(embeddings.shape)} do not fit {len(labels)} labels; allowed: ({len(labels)}, D)"
        )


# --- few shots --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Episodes:
    """`count` few-shot tasks: random sets of `ways` classes, with `shots` examples and `queries` other images of each class.

    Classes and images are sampled uniformly with `seed`. A task (episode) contains no class and no image twice. Classes with
    fewer than `shots` + `queries` images are not used. The defaults are the usual ones (Chen et al. 2019, arXiv 1904.04232).
    Raises `CorsdError` for values out of range.
    """

    ways: int = 5
    shots: int = 1
    queries: int = 15
    count: int = 600
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, low in (
            *((name, getattr(self, name), 1) for name in ("shots", "queries", "count")),
            ("ways", self.ways, 2),
            ("seed", self.seed, 0),
        ):
            if type(value) is not int or value < low:
                raise CorsdError(f"{name} of episodes is {value!r}; allowed: a whole number of at least {low}")

    def sample(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of examples (E, W, S) and queries (E, W, Q) of all E episodes. Raises `CorsdError` if there are too few
        images.
        """
        indices = _indices_by_class(labels, self.shots + self.queries)
        if len(indices) < self.ways:
            raise CorsdError(
                f"{self.ways} ways need as many classes with {self.shots + self.queries} images each, for {self.shots} shots "
                f"and {self.queries} queries; {len(indices)} classes have so many"
            )
        generator = torch.Generator().manual_seed(self.seed)
        ways = torch.rand(self.count, len(indices), generator=generator).argsort(1)[:, : self.ways]  # (E, W)
        found = indices[ways]  # (E, W, M), padded with -1
        order = torch.rand(found.shape, generator=generator).masked_fill_(found < 0, 2).argsort(2)
        chosen = found.gather(2, order[..., : self.shots + self.queries])
        return chosen[..., : self.shots], chosen[..., self.shots :]


class FewShot(NamedTuple):
    """Mean accuracy (%) over episodes, and half the width of its 95 % confidence interval: 1.96 standard errors."""

    accuracy: float
    half: float


def embedding_few_shot(
    embeddings: Tensor, labels: Tensor, episodes: Episodes | None = None, similarity: str = "cosine"
) -> FewShot:
    """Few-shot accuracy of the nearest class prototype, for embeddings (N, D) and labels (N,).

    A prototype is the mean embedding of the examples of a class; for "cosine" all embeddings are first normalised to length 1.
    If n prototypes are tied for nearest, a query counts 1/n if the correct one is among them, else 0. Raises `CorsdError` for
    an unknown similarity, if the shapes are wrong, and if there are too few images. Source: Snell et al. 2017, Prototypical
    Networks, arXiv 1703.05175.
    """
    check_choice("similarity", similarity, SIMILARITIES)
    _check_embeddings(embeddings, labels)
    e, compare = embeddings.double(), SIMILARITIES[similarity]
    if similarity == "cosine":
        e = F.normalize(e, dim=1)
    examples, queries = (episodes or Episodes()).sample(labels)
    blocks = zip(examples.split(32), queries.flatten(1).split(32), strict=True)
    return _accuracy(torch.cat([compare(e[query], e[shots].mean(2)) for shots, query in blocks]))


def few_shot_accuracy(scores: Tensor, labels: Tensor, episodes: Episodes | None = None) -> FewShot:
    """Few-shot accuracy of predicting, for each query, the class whose examples have the highest mean score.

    `scores` (N, N): rows for queries, columns for examples. `labels` (N,). This is meant for scores that have no prototypes,
    such as those of a relation network. Ties and errors as in `embedding_few_shot`. Source: ours, after Sung et al. 2018, arXiv
    1711.06025.
    """
    n = len(labels)
    if scores.shape != (n, n):
        raise CorsdError(f"scores of shape {tuple(scores.shape)} do not fit {n} labels; allowed: ({n}, {n})")
    examples, queries = (episodes or Episodes()).sample(labels)
    of_pairs = scores[queries.flatten(1)[:, :, None, None], examples[:, None]]  # (E, W·Q, W, S)
    return _accuracy(of_pairs.double().mean(3))


def _indices_by_class(labels: Tensor, least: int) -> Tensor:
    """Indices (classes, M) of the images of every class with at least `least` images, padded with -1."""
    indices = [(labels == label).nonzero().flatten() for label in labels.unique().tolist()]
    kept = [each for each in indices if len(each) >= least]
    if not kept:
        return torch.empty(0, 0, dtype=torch.long)
    return torch.nn.utils.rnn.pad_sequence(kept, batch_first=True, padding_value=-1)


def _accuracy(scores: Tensor) -> FewShot:
    """Few-shot accuracy from scores (E, W·Q, W) of each query for each class.

    E episodes, W classes, Q queries of each class; the queries of an episode are sorted by their class.
    """
    episodes, queries, ways = scores.shape
    own = torch.arange(ways).repeat_interleave(queries // ways)
    best = scores == scores.amax(2, keepdim=True)
    correct = best[:, torch.arange(queries), own] / best.sum(2)  # (E, W·Q)
    of_episodes = 100 * correct.double().mean(1)
    half = 1.96 * of_episodes.std().item() / episodes**0.5 if episodes > 1 else float("nan")
    return FewShot(of_episodes.mean().item(), half)
