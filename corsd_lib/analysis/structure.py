"""Inter- and intra-class structure of embeddings: how tight classes are, how far apart, how alike two embeddings are.

N images, D embedding dimensions, C classes with an image. All is computed in float64. Embeddings that are not finite have a
structure of NaN.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from corsd_lib.analysis.relations import snapshot_at
from corsd_lib.errors import CorsdError
from corsd_lib.runs import Run

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "STRUCTURE",
    "cka_between_runs",
    "cka_matrix",
    "class_structure",
    "embedding_structure",
    "linear_cka",
    "mean_angles",
    "nearest_mean_accuracy",
    "scatter",
    "silhouette",
    "variance_collapse",
]

NAN = float("nan")

# The figures of `embedding_structure`, in its order.
STRUCTURE = (
    "within",
    "between",
    "total",
    "between_share",
    "silhouette",
    "nearest_mean_top1",
    "nc1",
    "mean_cosine",
    "cosine_deviation",
    "simplex_gap",
)


def class_structure(run: Run, epochs: Iterable[int] | None = None) -> pd.DataFrame:
    """Structure of the probe images in the embeddings of a run: one row an epoch and exit, columns epoch, exit and `STRUCTURE`.

    `epochs`: those with a snapshot when not given. Exit 1 is the shallowest. Raises `CorsdError` for an epoch without one.
    """
    import pandas as pd

    labels = run.probes.labels
    rows = []
    for epoch in run.probes if epochs is None else epochs:
        for k, embeddings in enumerate(snapshot_at(run, epoch).embeddings, start=1):
            rows.append({"epoch": epoch, "exit": k, **embedding_structure(embeddings, labels)})
    return pd.DataFrame(rows, columns=["epoch", "exit", *STRUCTURE])


def embedding_structure(embeddings: Tensor, labels: Tensor) -> dict[str, float]:
    """`scatter`, `silhouette`, `nearest_mean_accuracy`, `variance_collapse` and `mean_angles` by the names `STRUCTURE`.

    `embeddings` (N, D), `labels` (N,). Each of these functions raises `CorsdError` on other shapes.
    """
    return {
        **scatter(embeddings, labels),
        "silhouette": silhouette(embeddings, labels),
        "nearest_mean_top1": nearest_mean_accuracy(embeddings, labels),
        "nc1": variance_collapse(embeddings, labels),
        **mean_angles(embeddings, labels),
    }


def scatter(embeddings: Tensor, labels: Tensor) -> dict[str, float]:
    """Traces of the scatter matrices of embeddings (N, D) with labels (N,), all >= 0 and in units of the embedding squared.

    `within` = 1/N Σ_i |x_i - μ_y(i)|², `between` = Σ_c n_c/N |μ_c - μ|², `total` = within + between = 1/N Σ_i |x_i - μ|², and
    `between_share` = between / total in [0, 1]: the share of the variance that the class explains, 1 when every class is one
    point; it does not depend on the scale of the embeddings. Labels dealt at random give (C - 1) / (N - 1) on average, which is
    far from 0 with few images a class. NaN where total is 0. Fukunaga 1990, chapter 10.
    """
    x, y, counts = _grouped(embeddings, labels)
    tr_within, tr_between = (part.square().sum().item() for part in _deviations(x, y, counts))
    total = tr_within + tr_between
    share = tr_between / total if total else NAN
    return {"within": tr_within, "between": tr_between, "total": total, "between_share": share}


def silhouette(embeddings: Tensor, labels: Tensor) -> float:
    """Mean silhouette of embeddings (N, D) with labels (N,), in [-1, 1]: 1 = tight classes far apart, below 0 = mixed.

    s_i = (b - a) / max(a, b): a the mean Euclidean distance to the other images of the class, b the smallest mean distance to
    those of another class; 0 for the only image of a class. NaN for fewer than two classes. Rousseeuw 1987; as scikit-learn's.
    """
    x, y, counts = _grouped(embeddings, labels)
    if len(counts) < 2 or not x.isfinite().all():
        return NAN
    distances = torch.cdist(x, x).fill_diagonal_(0)  # (N, N)
    sums = torch.zeros(len(x), len(counts), dtype=x.dtype).index_add_(1, y, distances)  # (N, C)
    own = torch.nn.functional.one_hot(y, len(counts)).bool()
    a = sums[own] / (counts[y] - 1).clamp_min(1)
    b = (sums / counts).masked_fill(own, torch.inf).amin(1)
    s = ((b - a) / torch.maximum(a, b)).nan_to_num(0.0)  # 0 / 0: all of both classes at one point
    return s.masked_fill(counts[y] == 1, 0.0).mean().item()


def nearest_mean_accuracy(embeddings: Tensor, labels: Tensor) -> float:
    """Share (%) of images that are strictly nearer to the mean of their own class than to any other's, leave-one-out.

    Embeddings (N, D), labels (N,), Euclidean. The mean of the own class is that of its *other* images: with a few images a
    class and many dimensions each draws its mean towards itself, and noise would score near 100. The only image of a class has
    no such mean and is left out; NaN when none remains or for a single class. The classifier: Mensink et al. 2013.
    """
    x, y, counts = _grouped(embeddings, labels)
    judged = counts[y] > 1
    if len(counts) < 2 or not judged.any() or not x.isfinite().all():
        return NAN
    square = torch.cdist(x, _means(x, y, counts)).square()  # (N, C)
    mine = y[:, None]
    # x - (n·μ - x) / (n - 1) = (x - μ) · n / (n - 1)
    size = counts[y].double()
    own = square.gather(1, mine)[:, 0] * (size / (size - 1)).square()
    others = square.scatter(1, mine, torch.inf).amin(1)
    return 100.0 * (own < others)[judged].double().mean().item()


def variance_collapse(embeddings: Tensor, labels: Tensor) -> float:
    """NC1 = Tr(S_W S_B⁺) / C of embeddings (N, D) with labels (N,): >= 0, and 0 when every class has collapsed to a point.

    S_W = 1/N Σ_i (x_i - μ_y(i))(x_i - μ_y(i))ᵀ, S_B = Σ_c n_c/N (μ_c - μ)(μ_c - μ)ᵀ, ⁺ the pseudo-inverse: noise counts only
    in the directions that separate class means, relative to their spread. With few images a class compare with labels dealt at
    random: class means of noise differ, too. NaN where the means do not differ. Papyan, Han and
    Donoho 2020, arXiv 2008.08186 (classes of equal size there).
    """
    x, y, counts = _grouped(embeddings, labels)
    if not x.isfinite().all():
        return NAN
    within, weighted = _deviations(x, y, counts)
    _, s, directions = torch.linalg.svd(weighted, full_matrices=False)  # S_B = V diag(s²) Vᵀ
    # What is stored has three digits: directions in which the means differ a million times less are rounding.
    real = (s > 1e-6 * s[0]) & (torch.arange(len(s)) < len(counts) - 1)
    if not real.any():
        return NAN
    along = within @ directions[real].T  # (N, rank)
    return (along.square().sum(0) / s[real].square()).sum().item() / len(counts)


def mean_angles(embeddings: Tensor, labels: Tensor) -> dict[str, float]:
    """Angles between the class means of embeddings (N, D) with labels (N,), seen from the mean of the class means; NC2.

    `mean_cosine` and `cosine_deviation` (population) of the cosines over the pairs of classes, and `simplex_gap`, the mean of
    |cosine + 1/(C - 1)|, in [0, 2]: 0 when the means form a simplex, as far apart as C directions can be. Means of noise come
    close to one in many dimensions: compare with labels dealt at random. A mean at the centre
    has no direction and is left out; NaN without a pair. Papyan, Han and Donoho 2020, arXiv 2008.08186, figures 3 and 4.
    """
    x, y, counts = _grouped(embeddings, labels)
    means = _means(x, y, counts)
    centred = means - means.mean(0)
    norms = centred.norm(dim=1, keepdim=True)
    unit = (centred / norms)[norms[:, 0] > 1e-6 * norms.max()]  # what is nearer to the centre is rounding
    i, j = torch.triu_indices(len(unit), len(unit), 1)
    cosines = (unit @ unit.T)[i, j]
    if not len(cosines):
        return {"mean_cosine": NAN, "cosine_deviation": NAN, "simplex_gap": NAN}
    return {
        "mean_cosine": cosines.mean().item(),
        "cosine_deviation": cosines.std(correction=0).item(),
        "simplex_gap": (cosines + 1 / (len(counts) - 1)).abs().mean().item(),
    }


# --- how alike two embeddings see the same images -----------------------------------------------------------------------


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Linear centred kernel alignment |YᵀX|² / (|XᵀX| |YᵀY|) (Frobenius norms) of two embeddings of the same images.

    `first` X (N, D), `second` Y (N, E), their columns centred: in [0, 1]; 1 when one is a rotation and scaling of the other.
    NaN for an embedding that has all images at one point. Independent noise gives about D / (N + D), not 0.
    Kornblith et al. 2019, arXiv 1905.00414, equation 4. Raises `CorsdError` for different numbers of images.
    """
    return cka_matrix([first], [second]).item()


def cka_matrix(embeddings: Sequence[Tensor], others: Sequence[Tensor] | None = None) -> Tensor:
    """`linear_cka` of each of `embeddings` K x (N, D) with each of L `others`, by default themselves; (K, L) float64.

    In the form <XXᵀ, YYᵀ> / (|XXᵀ| |YYᵀ|): one product of (N, D) an embedding, and memory for N² numbers of each.
    """
    sizes = sorted({len(e) for e in (*embeddings, *(others or ()))})
    if len(sizes) != 1:
        raise CorsdError(
            f"embeddings of {', '.join(map(str, sizes)) or 'no'} images; the same images in the same order are wanted"
        )
    rows = torch.stack([_unit_gram(e) for e in embeddings])
    columns = rows if others is None else torch.stack([_unit_gram(e) for e in others])
    return (rows @ columns.T).clamp(0, 1)


def cka_between_runs(run_a: Run, run_b: Run, epoch: int, epoch_b: int | None = None) -> Tensor:
    """`linear_cka` between the exits of two runs after `epoch` (of `run_b` after `epoch_b` when given); (K_a, K_b) float64.

    Both must have looked at the same probe images. Raises `CorsdError` when they did not, or where there is no snapshot.
    """
    a, b = run_a.probes, run_b.probes
    same = torch.equal(a.labels, b.labels) and torch.equal(a.index, b.index) and a.split == b.split
    if not same or run_a.data.class_names != run_b.data.class_names:
        raise CorsdError(
            f"{run_a.path} and {run_b.path} looked at different probe images: {len(a.labels)} of {a.split} of "
            f"{run_a.data.name!r}, {len(b.labels)} of {b.split} of {run_b.data.name!r}; the same images are wanted"
        )
    second = snapshot_at(run_b, epoch if epoch_b is None else epoch_b)
    return cka_matrix(snapshot_at(run_a, epoch).embeddings, second.embeddings)


# --- parts -------------------------------------------------------------------------------------------------------------


def _grouped(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings (N, D) in float64, centred; number of each image's class among those present (N,); images of these (C,)."""
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1] or not len(labels):
        given = f"embeddings of shape {tuple(embeddings.shape)} with labels of shape {tuple(labels.shape)}"
        raise CorsdError(f"{given}; (N, D) and (N,) are wanted, N at least 1")
    _, y, counts = labels.unique(return_inverse=True, return_counts=True)
    # Every figure here is of differences; centred, they lose the fewest digits.
    return _centred(embeddings), y, counts


def _means(x: Tensor, y: Tensor, counts: Tensor) -> Tensor:
    """Mean of each class (C, D)."""
    sums = torch.zeros(len(counts), x.shape[1], dtype=x.dtype).index_add_(0, y, x)
    return sums / counts[:, None]


def _deviations(x: Tensor, y: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """W (N, D) and B (C, D) with WᵀW = S_W and BᵀB = S_B of centred embeddings (N, D)."""
    means = _means(x, y, counts)
    within = (x - means[y]) / len(x) ** 0.5
    return within, means * (counts.double() / len(x)).sqrt()[:, None]


def _unit_gram(embeddings: Tensor) -> Tensor:
    """XXᵀ of centred embeddings (N, D), flat (N²,), of length 1; NaN when all images are at one point."""
    x = _centred(embeddings)
    gram = (x @ x.T).flatten()
    return gram / gram.norm()


def _centred(embeddings: Tensor) -> Tensor:
    e = embeddings.double()
    return e - e.mean(0)
