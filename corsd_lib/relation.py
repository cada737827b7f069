"""Relations between images: structured pairs, trainable relation networks, and class-level relation matrices.

A relation network maps two images (i, j) at one stage to a relation embedding h_ij, a score r_ij in (0, 1) with 1 = related,
and auxiliary logits q_ij over the classes (CORSD, arXiv 2305.00918). It is used in training and analysis, and is not part of
the deployed network.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from corsd_lib.errors import CorsdError, check_choice, shortened
from corsd_lib.layers import downsampling
from corsd_lib.losses import full_precision, normalised_distances

__all__ = [
    "HandcraftedRelation",
    "MapRelation",
    "PairScore",
    "RelationOutput",
    "StructuredPairs",
    "VectorRelation",
    "cosine_scores",
    "distance_scores",
    "relation_matrix",
    "sample_pairs",
    "triplet_pairs",
]


class StructuredPairs(NamedTuple):
    """Pairs of indices in a batch; row 0 holds the anchors, row 1 their partners.

    `intra` (2, P): anchor and partner are different images of one class. `inter` (2, Q): they are of different classes.

    If both kinds occur, P = Q, and the columns p of `intra` and `inter` have the same anchor. They form a triplet: the anchor,
    `intra[1, p]` of the same class, and `inter[1, p]` of another class.
    """

    intra: Tensor
    inter: Tensor


class RelationOutput(NamedTuple):
    """Outputs of a relation network for a batch: scores in (0, 1) and auxiliary logits of intra and inter pairs.

    `intra` (P,) and `inter` (Q,): scores of the given `StructuredPairs`. `intra_logits` (P, C) and `inter_logits` (Q, C): their
    auxiliary logits; empty, of shape (0, 1), for `HandcraftedRelation`. `matrix` (B, B): scores of all ordered pairs, None for
    `MapRelation`. `log_odds` (B, B): log(r / (1 - r)) of the scores in `matrix`, only for `VectorRelation`, else None.
    """

    intra: Tensor
    inter: Tensor
    intra_logits: Tensor
    inter_logits: Tensor
    matrix: Tensor | None = None
    log_odds: Tensor | None = None


def sample_pairs(labels: Tensor, generator: torch.Generator | None = None, limit: int = 4096) -> StructuredPairs:
    """All ordered intra pairs of a batch (at most `limit`, chosen at random), and as many inter pairs with the same anchors.

    An intra pair has two images of one class, an inter pair images of two classes. `labels` (B,); `generator`: a CPU generator.
    If there are no intra pairs, every image is the anchor of one inter pair. If there is a single class, there are no inter
    pairs. Source: ours. The authors' code forms its triplets only from batches that are laid out for them (`triplet_pairs`).
    """
    y = labels.cpu()
    same = y[:, None] == y[None, :]
    intra = (same & ~torch.eye(len(y), dtype=torch.bool)).nonzero().T  # (2, P)
    if intra.shape[1] > limit:
        intra = intra[:, torch.randperm(intra.shape[1], generator=generator)[:limit]]
    anchors = intra[0] if intra.shape[1] else torch.arange(len(y))
    if bool(same.all()):  # one class, or a batch of one
        inter = torch.empty(2, 0, dtype=torch.long)
    else:
        inter = torch.stack([anchors, _other_class(y, same, anchors, generator)])
    return StructuredPairs(intra.to(labels.device), inter.to(labels.device))


def _other_class(y: Tensor, same: Tensor, anchors: Tensor, generator: torch.Generator | None) -> Tensor:
    """For each anchor, the index of an image of another class, chosen uniformly at random.

    Memory grows with B², not with B times the number of anchors.
    """
    others = (~same).sum(1)  # (B,) number of images of other classes
    ranked = same.to(torch.int8).argsort(dim=1, stable=True)  # (B, B) images of other classes first
    pick = (torch.rand(len(anchors), generator=generator) * others[anchors]).long()
    return ranked[anchors, pick.clamp_max(others[anchors] - 1)]


def triplet_pairs(batch_size: int, device: torch.device | str = "cpu") -> StructuredPairs:
    """Pairs of a batch laid out as [anchors, same class, other class], each a third of `batch_size`, as in the authors' code.

    Raises `CorsdError` unless `batch_size` is a multiple of 3.
    """
    if batch_size % 3:
        raise CorsdError(f"a triplet batch has {shortened(batch_size)} images; allowed: a multiple of 3")
    anchor, positive, negative = torch.arange(batch_size, device=device).view(3, -1)
    return StructuredPairs(torch.stack([anchor, positive]), torch.stack([anchor, negative]))


class PairScore(nn.Module):
    """Trainable score r_ij of a pair of vectors, for given pairs or for all pairs of a batch.

    r_ij = sigmoid(w·h_ij + c) in (0, 1) with h_ij = ReLU(U·e_i + V·e_j + b). `symmetric`: V = U, so that r_ij = r_ji. The
    vectors e are first layer-normalised without parameters, because their scale differs between stages.

    The first layer of the authors' network takes a concatenated pair. Here it is split: W·[e_i; e_j] = U·e_i + V·e_j. The
    scores of all B² ordered pairs then need two matrix products and one broadcast sum. Source of the split: ours.

    If there are more than `block_pairs` pairs, the scores are computed in blocks. The backward pass computes each block again,
    so memory grows with the size of a block, not with B² x hidden.
    """

    def __init__(self, dim: int, hidden: int = 128, block_pairs: int = 65536, symmetric: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(dim, hidden)
        self.second = None if symmetric else nn.Linear(dim, hidden, bias=False)
        self.score = nn.Linear(hidden, 1)
        self.block_pairs = block_pairs

    def scores(self, vectors: Tensor) -> Tensor:
        """Scores (B, B) in (0, 1) of all ordered pairs of vectors (B, D); 1 = related."""
        return self.log_odds(vectors).sigmoid()

    def log_odds(self, vectors: Tensor, others: Tensor | None = None) -> Tensor:
        """Log-odds (B, M) of all pairs of a first vector from `vectors` (B, D) and a second one from `others` (M, D).

        The type is float32 or wider. By default `others` is `vectors`, and the result is (B, B).
        """
        first, second = self._halves(vectors)
        return self._log_odds_matrix(first, second if others is None else self._halves(others)[1])

    def pair_scores(self, first: Tensor, second: Tensor) -> Tensor:
        """Scores (P,) of P pairs of vectors: `first` and `second`, both (P, D)."""
        return log_odds_of(self.score(self.pair_embeddings(first, second))).sigmoid()

    def pair_embeddings(self, first: Tensor, second: Tensor) -> Tensor:
        """Relation embeddings h (P, H) >= 0 of P pairs of vectors: `first` and `second`, both (P, D)."""
        return F.relu(self._halves(first)[0] + self._halves(second)[1])

    def _halves(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """U·e + b and V·e, both (B, H), where e are the layer-normalised `vectors` (B, D)."""
        e = F.layer_norm(vectors, vectors.shape[1:])
        return self.first(e), F.linear(e, self.first.weight) if self.second is None else self.second(e)

    def _log_odds_matrix(self, u: Tensor, v: Tensor) -> Tensor:
        blocks = u.split(max(1, self.block_pairs // max(1, len(v))))
        if len(blocks) == 1 or not (torch.is_grad_enabled() and u.requires_grad):
            return torch.cat([self._log_odds_rows(block, v) for block in blocks])
        recompute = partial(checkpoint, self._log_odds_rows, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([recompute(block, v) for block in blocks])

    def _log_odds_rows(self, u: Tensor, v: Tensor) -> Tensor:
        h = (u[:, None, :] + v[None, :, :]).relu_()  # (rows, B, H): the only tensor of this size
        return log_odds_of(self.score(h))


class VectorRelation(PairScore):
    """Relation network on exit embeddings: `PairScore` with a linear auxiliary classifier of h_ij, whose logits are q_ij.

    Source: ours, after CORSD, arXiv 2305.00918, which compares feature maps.
    """

    def __init__(
        self, dim: int, num_classes: int, hidden: int = 128, block_pairs: int = 65536, symmetric: bool = False
    ) -> None:
        super().__init__(dim, hidden, block_pairs, symmetric)
        self.auxiliary = nn.Linear(hidden, num_classes)

    def forward(self, embeddings: Tensor, labels: Tensor, pairs: StructuredPairs) -> RelationOutput:
        """Scores of all pairs of embeddings (B, D), and scores and auxiliary logits of `pairs`. `labels` are not used."""
        u, v = self._halves(embeddings)  # (B, H) each
        log_odds = self._log_odds_matrix(u, v)
        matrix = log_odds.sigmoid()
        i, j = torch.cat(pairs, dim=1)
        logits = self.auxiliary(F.relu(u.index_select(0, i) + v.index_select(0, j)))  # (P + Q, C)
        return RelationOutput(*_split_kinds(_entries(matrix, i, j), pairs), *_split_kinds(logits, pairs), matrix, log_odds)

    def auxiliary_logits(self, first: Tensor, second: Tensor) -> Tensor:
        """Auxiliary logits (P, C) of P pairs of embeddings: `first` and `second`, both (P, D)."""
        return self.auxiliary(self.pair_embeddings(first, second))


def _entries(matrix: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Entries `matrix[i, j]` (P,) of a matrix (B, B), with a deterministic gradient.

    A pair may occur several times; the backward pass sums the gradients of its occurrences. With advanced indexing on several
    CPU threads the order of this sum is random. With `index_select` it is fixed.
    """
    return matrix.flatten().index_select(0, i * matrix.shape[1] + j)


def _split_kinds(values: Tensor, pairs: StructuredPairs) -> tuple[Tensor, Tensor]:
    """Split values (P + Q, ...) of all `pairs` into those of the intra pairs and those of the inter pairs."""
    intra, inter = values.split([pairs.intra.shape[1], pairs.inter.shape[1]])
    return intra, inter


class HandcraftedRelation(nn.Module):
    """A formula in place of a trained relation network: `kind` "cosine" or "l2", without parameters or auxiliary classifier.

    For ablations: CORSD with the relations of earlier methods. See `cosine_scores` and `distance_scores`.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        check_choice("handcrafted relation", kind, HANDCRAFTED)
        self.scores = HANDCRAFTED[kind]

    def forward(self, embeddings: Tensor, labels: Tensor, pairs: StructuredPairs) -> RelationOutput:
        """Scores of all pairs of embeddings (B, D) and of `pairs`, without auxiliary logits. `labels` are not used."""
        matrix = self.scores(embeddings)
        none = matrix.new_zeros(0, 1)
        return RelationOutput(_entries(matrix, *pairs.intra), _entries(matrix, *pairs.inter), none, none, matrix)


class MapRelation(nn.Module):
    """Relation network on pairs of feature maps, as in the authors' code.

    Two feature maps are concatenated by channels and pass through separable convolutions, average pooling and an MLP. The
    auxiliary classifier is a linear layer on the pooled vector. Scores are computed only for the given pairs.

    `channels`, `deepest_channels`: number of channels of this stage and of the deepest one. `steps`: number of stride-2 steps
    between the two stages. The convolutions return 2 · `deepest_channels` channels (ours). At the deepest stage there are no
    convolutions, because a concatenated pair already has this number. Source: CORSD, arXiv 2305.00918.
    """

    def __init__(self, channels: int, steps: int, deepest_channels: int, num_classes: int, hidden: int = 128) -> None:
        super().__init__()
        self.body = downsampling(2 * channels, 2 * deepest_channels, steps)  # empty at the deepest stage
        self.embed = nn.Linear(2 * deepest_channels, hidden)
        self.score = nn.Linear(hidden, 1)
        self.auxiliary = nn.Linear(2 * deepest_channels, num_classes)

    def forward(self, features: Tensor, labels: Tensor, pairs: StructuredPairs) -> RelationOutput:
        """Scores and auxiliary logits of `pairs` of feature maps (B, c, H, W). `labels` are not used."""
        pooled = self._pool(features, *torch.cat(pairs, dim=1))  # (P + Q, 2 * deepest)
        return RelationOutput(*_split_kinds(self._score(pooled), pairs), *_split_kinds(self.auxiliary(pooled), pairs))

    def scores(self, features: Tensor, block: int | None = None) -> Tensor:
        """Scores (B, B) in (0, 1) of all ordered pairs of feature maps (B, c, H, W), without a gradient.

        It runs the network on B² pairs, `block` at a time; by default as many as fit into 64 MiB of float32.
        """
        n = len(features)
        block = block or max(1, 2**23 // features[0].numel())
        with torch.no_grad():
            i, j = torch.cartesian_prod(*[torch.arange(n, device=features.device)] * 2).T
            blocks = [self._score(self._pool(features, a, b)) for a, b in zip(i.split(block), j.split(block), strict=True)]
        return torch.cat(blocks).view(n, n)

    def _pool(self, features: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if not len(i):
            return features.new_zeros(0, self.embed.in_features)
        return self.body(torch.cat([features.index_select(0, i), features.index_select(0, j)], dim=1)).mean(dim=(2, 3))

    def _score(self, pooled: Tensor) -> Tensor:
        return log_odds_of(self.score(F.relu(self.embed(pooled)))).sigmoid()


def log_odds_of(logits: Tensor) -> Tensor:
    """Convert logits (..., 1) to log-odds (...) in float32 or wider. Narrower types are too inexact for long sums."""
    return logits.squeeze(-1).to(torch.promote_types(logits.dtype, torch.float32))


@full_precision
def cosine_scores(embeddings: Tensor) -> Tensor:
    """Handcrafted relation (1 + cosine) / 2 of all ordered pairs of embeddings (B, D); (B, B) in [0, 1]."""
    e = F.normalize(embeddings, dim=1, eps=1e-4)  # larger than the default eps, with which gradients near the origin are huge
    return ((1 + e @ e.T) / 2).clamp(0, 1)


@full_precision
def distance_scores(embeddings: Tensor) -> Tensor:
    """Handcrafted relation exp(-d_ij / mean positive d) of embeddings (B, D), with Euclidean distances d; (B, B) in (0, 1]."""
    return (-normalised_distances(embeddings)).exp()


HANDCRAFTED = {"cosine": cosine_scores, "l2": distance_scores}


def relation_matrix(scores: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Class-level relation R (C, C): R[c, d] = mean of r_ij over y_i = c, y_j = d, i != j; NaN if there is no such pair.

    `scores` (N, N), `labels` (N,). Raises `CorsdError` if the shapes are wrong. Source: ours.
    """
    n = len(labels)
    if scores.shape != (n, n):
        raise CorsdError(f"scores of shape {tuple(scores.shape)} do not fit {n} labels; allowed: ({n}, {n})")
    onehot = F.one_hot(labels, num_classes).to(torch.float64)  # (N, C)
    members = onehot.sum(0)
    off_diagonal = scores.to(torch.float64).clone().fill_diagonal_(0)
    pairs = members[:, None] * members[None, :] - torch.diag(members)
    total = onehot.T @ off_diagonal @ onehot
    return torch.where(pairs > 0, total / pairs.clamp_min(1), torch.nan).float()
