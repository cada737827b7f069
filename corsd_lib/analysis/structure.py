"""Inter- and intra-class structure of embeddings, and the similarity of two embeddings.

N images, D embedding dimensions, C classes that have at least one image. All measures are computed in float64; they are NaN for
embeddings that are not finite.
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

# Keys of `embedding_structure`, in its order
STRUCTURE = (
    "within",
    "between",
    "total",
    "between_fraction",
    "silhouette",
    "nearest_mean_top1",
    "nc1",
    "mean_cosine",
    "cosine_deviation",
    "simplex_gap",
)


def class_structure(run: Run, epochs: Iterable[int] | None = None) -> pd.DataFrame:
    """Structure of the embeddings of a run on the probe images, one row for each epoch and exit.

    Columns: epoch, exit and those of `STRUCTURE`, see `embedding_structure`. `epochs`: by default all that have a snapshot.
    Exit 1 is the shallowest. Raises `CorsdError` for an epoch without a snapshot.
    """
    import pandas as pd

    labels = run.probes.labels
    rows = []
    for epoch in run.probes if epochs is None else epochs:
        for k, embeddings in enumerate(snapshot_at(run, epoch).embeddings, start=1):
            rows.append({"epoch": epoch, "exit": k, **embedding_structure(embeddings, labels)})
    return pd.DataFrame(rows, columns=["epoch", "exit", *STRUCTURE])


def embedding_structure(embeddings: Tensor, labels: Tensor) -> dict[str, float]:
    """The results of `scatter`, `silhouette`, `nearest_mean_accuracy`, `variance_collapse` and `mean_angles` in one dict.

    `embeddings` (N, D), `labels` (N,). The keys are `STRUCTURE`. Raises `CorsdError` if the shapes are wrong.
    """
    return {
        **scatter(embeddings, labels),
        "silhouette": silhouette(embeddings, labels),
        "nearest_mean_top1": nearest_mean_accuracy(embeddings, labels),
        "nc1": variance_collapse(embeddings, labels),
        **mean_angles(embeddings, labels),
    }


def scatter(embeddings: Tensor, labels: Tensor) -> dict[str, float]:
    """Traces of the scatter matrices of embeddings (N, D) with labels (N,), and the fraction of the variance between classes.

    μ is the mean of all embeddings, μ_c that of the n_c embeddings of class c. The traces are >= 0 and in units of the
    embedding squared. Keys:

    - `within` = 1/N Σ_i |x_i - μ_y(i)|²;
    - `between` = Σ_c n_c/N |μ_c - μ|²;
    - `total` = within + between = 1/N Σ_i |x_i - μ|²;
    - `between_fraction` = between / total in [0, 1]: the fraction of the variance that the classes explain. It is 1 if every
      class is one point, and does not depend on the scale of the embeddings. Random labels give (C - 1) / (N - 1) on average,
      which is far from 0 with few images in each class. NaN if total is 0.

    Raises `CorsdError` if the shapes are wrong. Source: Fukunaga 1990, chapter 10.
    """
    x, y, counts = _grouped(embeddings, labels)
    tr_within, tr_between = (part.square().sum().item() for part in _deviations(x, y, counts))
    total = tr_within + tr_between
    share = tr_between / total if total else NAN
    return {"within": tr_within, "between": tr_between, "total": total, "between_fraction": share}


def silhouette(embeddings: Tensor, labels: Tensor) -> float:
    """Mean silhouette of embeddings (N, D) with labels (N,), in [-1, 1]: 1 = tight classes far apart, below 0 = mixed.

    s_i = (b - a) / max(a, b): a is the mean Euclidean distance to the other images of the class, b the smallest mean distance
    to the images of another class. s_i is 0 for the only image of a class. NaN for fewer than two classes and for embeddings
    that are not finite. Raises `CorsdError` if the shapes are wrong. Source: Rousseeuw 1987; computed by scikit-learn.
    """
    from sklearn.metrics import silhouette_score

    x, y, counts = _grouped(embeddings, labels)
    if len(counts) < 2 or not x.isfinite().all():
        return NAN
    if len(counts) == len(x):  # one image in each class: scikit-learn would raise an error
        return 0.0
    distances = torch.cdist(x, x).fill_diagonal_(0)  # scikit-learn requires zeros there, where cdist has rounding errors
    return float(silhouette_score(distances.numpy(), y.numpy(), metric="precomputed"))


def nearest_mean_accuracy(embeddings: Tensor, labels: Tensor) -> float:
    """Percentage of images that are strictly nearer to the mean of their own class than to any other mean, leave-one-out.

    Embeddings (N, D), labels (N,), Euclidean. The mean of its own class is computed without the image itself; otherwise noise
    would score near 100 with few images and many dimensions. A class with only one image is not evaluated, but its mean counts
    among the others. NaN if no image remains, if there is only one class, and if embeddings are not finite. Raises `CorsdError`
    if the shapes are wrong. Source of the classifier: Mensink et al. 2013.
    """
    x, y, counts = _grouped(embeddings, labels)
    counted = counts[y] > 1
    if len(counts) < 2 or not counted.any() or not x.isfinite().all():
        return NAN
    square = torch.cdist(x, _means(x, y, counts)).square()  # (N, C)
    own_class = y[:, None]
    # x - (n·μ - x) / (n - 1) = (x - μ) · n / (n - 1)
    size = counts[y].double()
    own = square.gather(1, own_class)[:, 0] * (size / (size - 1)).square()
    others = square.scatter(1, own_class, torch.inf).amin(1)
    return 100.0 * (own < others)[counted].double().mean().item()


def variance_collapse(embeddings: Tensor, labels: Tensor) -> float:
    """NC1 = Tr(S_W S_B⁺) / C of embeddings (N, D) with labels (N,): >= 0, and 0 if every class is a point.

    S_W = 1/N Σ_i (x_i - μ_y(i))(x_i - μ_y(i))ᵀ, S_B = Σ_c n_c/N (μ_c - μ)(μ_c - μ)ᵀ, and ⁺ is the pseudo-inverse. NC1 is the
    variance within classes relative to the variance of the class means, in the directions in which class means differ. If
    classes have few images, class means differ even for random embeddings: compare with the value for random labels. NaN if the
    means are equal and for embeddings that are not finite. Raises `CorsdError` if the shapes are wrong. Source: Papyan, Han and
    Donoho 2020, arXiv 2008.08186, for classes of equal size.
    """
    x, y, counts = _grouped(embeddings, labels)
    if not x.isfinite().all():
        return NAN
    within, weighted = _deviations(x, y, counts)
    _, s, directions = torch.linalg.svd(weighted, full_matrices=False)  # S_B = V diag(s²) Vᵀ
    # Embeddings are stored with three digits: much smaller differences of the means are rounding errors.
    real = (s > 1e-6 * s[0]) & (torch.arange(len(s)) < len(counts) - 1)
    if not real.any():
        return NAN
    along = within @ directions[real].T  # (N, rank)
    return (along.square().sum(0) / s[real].square()).sum().item() / len(counts)


def mean_angles(embeddings: Tensor, labels: Tensor) -> dict[str, float]:
    """Angles between the class means of embeddings (N, D) with labels (N,), seen from the mean of the class means.

    This is the property NC2 of neural collapse. Keys: `mean_cosine` and `cosine_deviation`, mean and population standard
    deviation of the cosines over the pairs of classes; `simplex_gap`, the mean of |cosine + 1/(C - 1)|, in [0, 2]. The gap is 0
    if the means form a simplex: every two of the C directions have the same, largest possible angle. In many dimensions the
    class means of random embeddings are close to a simplex too: compare with random labels. A class mean that equals the mean
    of the class means has no direction and is left out. NaN without a pair and for embeddings that are not finite. Raises
    `CorsdError` if the shapes are wrong. Source: Papyan, Han and Donoho 2020, arXiv 2008.08186, figures 3 and 4.
    """
    x, y, counts = _grouped(embeddings, labels)
    means = _means(x, y, counts)
    centred = means - means.mean(0)
    norms = centred.norm(dim=1, keepdim=True)
    unit = (centred / norms)[norms[:, 0] > 1e-6 * norms.max()]  # smaller norms are rounding errors
    i, j = torch.triu_indices(len(unit), len(unit), 1)
    cosines = (unit @ unit.T)[i, j]
    if not len(cosines):
        return {"mean_cosine": NAN, "cosine_deviation": NAN, "simplex_gap": NAN}
    return {
        "mean_cosine": cosines.mean().item(),
        "cosine_deviation": cosines.std(correction=0).item(),
        "simplex_gap": (cosines + 1 / (len(counts) - 1)).abs().mean().item(),
    }


# --- similarity of two embeddings ----------------------------------------------------------------------------------------


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Linear centred kernel alignment |YᵀX|² / (|XᵀX| |YᵀY|) (Frobenius norms) of two embeddings of the same images.

    `first` X (N, D), `second` Y (N, E); their columns are centred here. In [0, 1]; 1 if one is a rotation and scaling of the
    other. NaN if all rows of X, or all rows of Y, are equal. Independent noise with D = E gives about D / (N + D), not 0.
    Raises `CorsdError` if the numbers of images differ. Source: Kornblith et al. 2019, arXiv 1905.00414, equation 4.
    """
    return cka_matrix([first], [second]).item()


def cka_matrix(embeddings: Sequence[Tensor], others: Sequence[Tensor] | None = None) -> Tensor:
    """`linear_cka` (K, L) float64 of each of K `embeddings` (N, D) with each of L `others` (N, E), by default the same K.

    Computed as <XXᵀ, YYᵀ> / (|XXᵀ| |YYᵀ|), which takes memory for N² numbers for each embedding. Raises `CorsdError` if the
    numbers of images differ.
    """
    sizes = sorted({len(e) for e in (*embeddings, *(others or ()))})
    if len(sizes) != 1:
        raise CorsdError(
            f"the embeddings are of {', '.join(map(str, sizes)) or 'no'} images; allowed: the same images in the same order"
        )
    rows = torch.stack([_unit_gram(e) for e in embeddings])
    columns = rows if others is None else torch.stack([_unit_gram(e) for e in others])
    return (rows @ columns.T).clamp(0, 1)


def cka_between_runs(run_a: Run, run_b: Run, epoch: int, epoch_b: int | None = None) -> Tensor:
    """`linear_cka` (K_a, K_b) float64 between the exits of two runs.

    The embeddings are those of `run_a` after `epoch`, and of `run_b` after `epoch_b` (default: `epoch`). Raises `CorsdError` if
    the runs have different classes or probe images, and if one of them has no snapshot after its epoch.
    """
    a, b = run_a.probes, run_b.probes
    if run_a.data.class_names != run_b.data.class_names:
        raise CorsdError(
            f"{run_a.path} and {run_b.path} have different classes (of {run_a.data.name!r}, and of {run_b.data.name!r}): "
            "compare runs with the same data settings"
        )
    if not (torch.equal(a.labels, b.labels) and torch.equal(a.index, b.index) and a.split == b.split):
        from_a, from_b = (f"from {p.split} of {run.data.name!r}" for p, run in ((a, run_a), (b, run_b)))
        others = " others" if (len(a.labels), from_a) == (len(b.labels), from_b) else ""
        raise CorsdError(
            f"{run_a.path} and {run_b.path} have different probe images ({len(a.labels)} {from_a}, and {len(b.labels)}{others} "
            f"{from_b}): compare runs with the same data settings and probe_split"
        )
    second = snapshot_at(run_b, epoch if epoch_b is None else epoch_b)
    return cka_matrix(snapshot_at(run_a, epoch).embeddings, second.embeddings)


# --- parts -------------------------------------------------------------------------------------------------------------


def _grouped(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centred embeddings (N, D) in float64; class (N,) of each image, renumbered 0 to C - 1; number of images (C,) of each
    class.

    Raises `CorsdError` if the shapes are wrong.
    """
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1] or not len(labels):
        given = f"embeddings have shape {tuple(embeddings.shape)}, labels {tuple(labels.shape)}"
        raise CorsdError(f"{given}; allowed: (N, D) and (N,), with the same N of at least 1")
    _, y, counts = labels.unique(return_inverse=True, return_counts=True)
    # All measures depend on differences, which are most exact for centred embeddings.
    return _centred(embeddings), y, counts


def _means(x: Tensor, y: Tensor, counts: Tensor) -> Tensor:
    """Mean (C, D) of each class."""
    sums = torch.zeros(len(counts), x.shape[1], dtype=x.dtype).index_add_(0, y, x)
    return sums / counts[:, None]


def _deviations(x: Tensor, y: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """W (N, D) and B (C, D) of centred embeddings (N, D), such that WᵀW = S_W and BᵀB = S_B of `variance_collapse`."""
    means = _means(x, y, counts)
    within = (x - means[y]) / len(x) ** 0.5
    return within, means * (counts.double() / len(x)).sqrt()[:, None]


def _unit_gram(embeddings: Tensor) -> Tensor:
    """Gram matrix XXᵀ of the centred embeddings X (N, D), as a vector (N²,) of norm 1; NaN if all embeddings are equal."""
    x = _centred(embeddings)
    gram = (x @ x.T).flatten()
    return gram / gram.norm()


def _centred(embeddings: Tensor) -> Tensor:
    e = embeddings.double()
    return e - e.mean(0)
