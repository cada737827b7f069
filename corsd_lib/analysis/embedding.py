"""Joint projection of the embeddings of all exits to two dimensions, and measures of its quality.

N probe images, E epochs, K exits (shallow -> deep), D embedding dimensions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from corsd_lib.errors import CorsdError, check_choice, require, shortened
from corsd_lib.files import write_tensors
from corsd_lib.readers import read_embedding
from corsd_lib.runs import Run

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "PROJECTIONS",
    "StageEmbedding",
    "UmapOptions",
    "aligned_embedding",
    "is_kept",
    "joint_projection",
    "knn_purity",
    "nearest_images",
    "own_share",
    "purity_limit",
    "scaled_embedding",
    "stage_embedding",
    "trustworthiness",
]

PROJECTIONS = ("umap", "pca")
NEIGHBOURS = 10  # default number for the measures of quality


@dataclass(frozen=True)
class UmapOptions:
    """Options of UMAP, see `joint_projection`: `seed`; `neighbours`, a number of images (2 or more); `min_dist` in [0, 1].

    Raises `CorsdError` if `neighbours` or `min_dist` is out of range.
    """

    seed: int = 0
    neighbours: int = 15
    min_dist: float = 0.1

    def __post_init__(self) -> None:
        if self.neighbours < 2:
            raise CorsdError(f"neighbours = {shortened(self.neighbours)}; allowed: 2 or more")
        if not 0 <= self.min_dist <= 1:
            raise CorsdError(f"min_dist = {shortened(self.min_dist)}; allowed: 0 to 1")


DEFAULT_UMAP = UmapOptions()


@dataclass(frozen=True, eq=False)
class StageEmbedding:
    """Coordinates of the probe images in two dimensions for each epoch and exit, with measures of the quality of the
    projection.

    `coordinates` (E, K, N, 2) float32, without a unit, are all from one joint fit; coordinates[:, :, i] are those of image i.
    `labels` (N,): classes of the images. `index` (N,): their indices in the split. `epochs` (E,). `exits` (K,), from 1.
    `method`: one of `PROJECTIONS`.

    Three measures (E, K) are in [0, 1], where 1 is best: `trustworthiness`; `knn_purity` of the coordinates; and
    `embedding_purity`, the purity of the embeddings in D dimensions. No purity can exceed `purity_limit`. If `knn_purity`
    exceeds `embedding_purity`, the picture overstates class separation. This can happen because, in a joint fit, deep exits
    affect the coordinates of shallow exits.
    """

    coordinates: Tensor
    labels: Tensor
    index: Tensor
    epochs: tuple[int, ...]
    exits: tuple[int, ...]
    method: str
    trustworthiness: Tensor
    knn_purity: Tensor
    embedding_purity: Tensor
    purity_limit: float

    def table(self) -> pd.DataFrame:
        """One row for each epoch and exit; columns epoch, exit, trustworthiness, knn_purity, embedding_purity."""
        import pandas as pd

        names = ("trustworthiness", "knn_purity", "embedding_purity")
        pairs = [(epoch, k) for epoch in self.epochs for k in self.exits]
        columns = {name: getattr(self, name).flatten().numpy() for name in names}
        return pd.DataFrame({"epoch": [e for e, _ in pairs], "exit": [k for _, k in pairs], **columns})


def stage_embedding(
    run: Run,
    epochs: Sequence[int] | None = None,
    exits: Sequence[int] | None = None,
    method: str = "umap",
    seed: int = 0,
    neighbours: int = 15,
    min_dist: float = 0.1,
    refresh: bool = False,
) -> StageEmbedding:
    """Project the probe images of a run to two dimensions, for `epochs` (default: the last) and `exits` (default: all, from 1).

    The embeddings of each exit and epoch are centred and scaled (`scaled_embedding`). They are then rotated to be close to the
    embeddings of the deepest chosen exit at the last chosen epoch (`aligned_embedding`). Finally all are projected together, so
    that an image can be followed through epochs and exits. For the other parameters see `joint_projection`. Epochs and exits of
    the result are in ascending order.

    The result is stored in the run as embeddings/<method>-<key>.safetensors, where the key is a hash of all parameters that
    affect the result. Later calls read this file. The result is computed again if `refresh` is True, and if the file is
    missing, damaged or for other probe images. If the file cannot be written, the result is only returned. Raises `CorsdError`
    for an epoch without a snapshot, an unknown exit, an epoch or exit that is given twice, and embeddings that are not finite.
    Raises the errors of `joint_projection`, too.
    """
    settings = _settings(run, epochs, exits, method, UmapOptions(seed, neighbours, min_dist))
    path = _file(run, settings)
    tensors = None if refresh else _cached(path, run, settings)
    if tensors is None:
        tensors = _embedded(run, settings)
        with suppress(CorsdError):  # the run is not writable, or the disk is full
            write_tensors(path, tensors, {"settings": json.dumps(settings)}, within=run.path)
    limit = purity_limit(tensors["labels"])
    epochs_of, exits_of = tuple(settings["epochs"]), tuple(settings["exits"])
    return StageEmbedding(**tensors, epochs=epochs_of, exits=exits_of, method=method, purity_limit=limit)


def is_kept(
    run: Run,
    epochs: Sequence[int] | None = None,
    exits: Sequence[int] | None = None,
    method: str = "umap",
    umap: UmapOptions = DEFAULT_UMAP,
) -> bool:
    """Whether the result of `stage_embedding` for these arguments is stored in the run.

    Raises `CorsdError` for an unknown method, epoch or exit.
    """
    settings = _settings(run, epochs, exits, method, umap)
    return _cached(_file(run, settings), run, settings) is not None


def _check_selection(what: str, asked: Sequence[int] | None, allowed: list[int], default: list[int]) -> list[int]:
    values = default if asked is None else [int(v) for v in asked]
    if not values or not set(values) <= set(allowed) or len(set(values)) < len(values):
        listed = ", ".join(map(str, allowed)) or "none, the run has no probe snapshot yet"
        raise CorsdError(f"{what} = {shortened(values)}; allowed: one or more, each once, of {listed}")
    return sorted(values)


def _settings(
    run: Run, epochs: Sequence[int] | None, exits: Sequence[int] | None, method: str, umap: UmapOptions
) -> dict[str, Any]:
    """The settings that determine the coordinates. For PCA they do not include the seed, neighbours and distance of UMAP.

    Raises `CorsdError` for an unknown method, epoch or exit.
    """
    check_choice("method of an embedding", method, PROJECTIONS)
    chosen = _check_selection("epochs", epochs, list(run.probes), default=list(run.probes)[-1:])
    there = list(range(1, len(run.probes[chosen[0]].embeddings) + 1))
    chosen_exits = _check_selection("exits", exits, there, default=there)
    of_umap = {"seed": int(umap.seed), "neighbours": int(umap.neighbours), "min_dist": float(umap.min_dist)}
    return {"epochs": chosen, "exits": chosen_exits, "method": method, **(of_umap if method == "umap" else {})}


def _file(run: Run, settings: dict[str, Any]) -> Path:
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    return run.path / "embeddings" / f"{settings['method']}-{key}.safetensors"


def _cached(path: Path, run: Run, settings: dict[str, Any]) -> dict[str, Tensor] | None:
    """The tensors stored in `path`. None if the file is missing or damaged, or if its probe images are not those of the run."""
    try:
        tensors = read_embedding(path, len(settings["epochs"]), len(settings["exits"]), len(run.probes.labels))
    except CorsdError:
        return None
    same = all(torch.equal(tensors[name], getattr(run.probes, name)) for name in ("labels", "index"))
    return tensors if same else None


def _embedded(run: Run, settings: dict[str, Any]) -> dict[str, Tensor]:
    probes, epochs, exits = run.probes, settings["epochs"], settings["exits"]
    snapshots = (probes[epoch].embeddings for epoch in epochs)  # only one is in memory at a time
    embeddings = torch.stack([torch.stack([scaled_embedding(found[k - 1]) for k in exits]) for found in snapshots])
    reference = embeddings[-1, -1].clone()  # (N, D)
    for e in embeddings.flatten(0, 1)[:-1]:  # each (N, D); the last one is the reference
        e.copy_(aligned_embedding(e, reference))
    options = {name: value for name, value in settings.items() if name not in ("epochs", "exits")}
    coordinates = joint_projection(embeddings, **options)
    pairs = list(zip(embeddings.flatten(0, 1), coordinates.flatten(0, 1), strict=True))
    measures = {
        "trustworthiness": [trustworthiness(high, low) for high, low in pairs],
        "knn_purity": [knn_purity(low, probes.labels) for _, low in pairs],
        "embedding_purity": [knn_purity(high, probes.labels) for high, _ in pairs],
    }
    shape = len(epochs), len(exits)
    quality = {name: torch.tensor(values, dtype=torch.double).view(shape) for name, values in measures.items()}
    return {"coordinates": coordinates, "labels": probes.labels, "index": probes.index, **quality}


# --- projections ------------------------------------------------------------------------------------------------------


def scaled_embedding(embedding: Tensor) -> Tensor:
    """Embeddings (N, D) of one exit after one epoch, centred and scaled to a mean norm of 1; float32.

    y_i = (x_i - mean x) / mean_j ‖x_j - mean x‖. Offsets and scales differ between exits and grow with the epochs. Without this
    step a joint fit would show these differences instead of the differences between images. Neighbours within an exit do not
    change. If all embeddings are equal, the result is 0. Raises `CorsdError` if the array is not of shape (N, D) or has values
    that are not finite.
    """
    if embedding.ndim != 2:
        raise CorsdError(f"embeddings have shape {tuple(embedding.shape)}; allowed: (N, D)")
    if not bool(embedding.isfinite().all()):
        raise CorsdError("embeddings are not all finite; allowed: finite numbers")
    x = embedding.double()  # in float32 the mean of equal embeddings may differ from them, and scaling would enlarge that
    x = x - x.mean(0)
    scale = x.norm(dim=1).mean()
    return (x / torch.where(scale > 0, scale, 1.0)).float()


def aligned_embedding(embedding: Tensor, reference: Tensor) -> Tensor:
    """Rotate (and mirror) scaled embeddings (N, D) to be as close as possible to `reference` (N, D); float32.

    With X = `embedding` and Y = `reference`, returns X R, where the orthogonal R (D, D) minimises ‖X R - Y‖. R = U Vᵀ, with the
    singular value decomposition Xᵀ Y = U S Vᵀ. The dimensions of two exits are unrelated. Without this step every exit would be
    a separate cluster of a joint fit, and positions in two exits could not be compared. Distances within an exit do not change.

    The rotation reduces the distance between an image and its reference even if the two sets are unrelated. The fewer images
    there are for each dimension, the larger this effect is. For two unrelated sets of 500 images, the rotation multiplies the
    mean distance by 0.9 at D = 32, by 0.75 at D = 128 and by 0.5 at D = 512. Source: Schönemann 1966, orthogonal Procrustes
    problem.
    """
    u, _, v = torch.linalg.svd(embedding.float().T @ reference.float())
    return embedding.float() @ (u @ v)


def joint_projection(
    embeddings: Tensor, method: str = "umap", seed: int = 0, neighbours: int = 15, min_dist: float = 0.1
) -> Tensor:
    """Project `embeddings` (..., N, D) to 2-D coordinates (..., N, 2), float32, with one fit over all of them.

    The embeddings are expected to be scaled, see `scaled_embedding`.

    "pca" projects on the two directions of largest variance. In each direction the component of largest absolute value is
    positive. The result is the same on all machines up to rounding.

    "umap" (McInnes et al. 2018, arXiv 1802.03426) keeps the `neighbours` (2 or more) nearest points of each point close to it.
    `min_dist` in [0, 1] is the intended smallest distance between two points. Distances between groups that are far apart are
    not meaningful. The result is reproducible for a `seed` on one machine only.

    Raises `CorsdError` for invalid settings, for UMAP with fewer than 5 points, and if UMAP is not installed.
    """
    check_choice("method of an embedding", method, PROJECTIONS)
    umap = UmapOptions(seed, neighbours, min_dist)
    points = embeddings.flatten(0, -2).float()
    flat = _pca(points) if method == "pca" else _umap(points, umap)
    return flat.view(*embeddings.shape[:-1], 2)


def _pca(points: Tensor) -> Tensor:
    points = points.double()
    points = points - points.mean(0)
    _, directions = torch.linalg.eigh(points.T @ points)  # of the scatter matrix (D, D), in ascending order of variance
    directions = directions[:, -2:].flip(1).T
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return (points @ (directions * largest.sign()).T).float()


def _umap(points: Tensor, options: UmapOptions) -> Tensor:
    if len(points) < 5:  # UMAP starts from eigenvectors of the graph and needs enough of them
        raise CorsdError(f"there are {len(points)} points for method 'umap'; allowed: 5 or more, or method 'pca'")
    require("method 'umap', unlike 'pca',", "umap")
    from umap import UMAP

    near = min(options.neighbours, len(points) - 1)
    model = UMAP(n_neighbors=near, min_dist=options.min_dist, random_state=options.seed, n_jobs=1)
    return torch.from_numpy(model.fit_transform(points.numpy())).float()


# --- quality of a projection ------------------------------------------------------------------------------------------


def trustworthiness(embedding: Tensor, coordinates: Tensor, neighbours: int = NEIGHBOURS) -> float:
    """Trustworthiness of a projection (N, 2) of an embedding (N, D): 1 is best, about 0.5 for random positions.

    Two images that are neighbours in the projection but not in the embedding lower the value. They lower it more if they are
    farther apart in the embedding. The value is 1 - 2 / (N k (2N - 3k - 1)) · S. S is the sum of max(0, r(i, j) - k) over all
    images i and their k nearest images j in the projection. r(i, j) is the rank of j among the images nearest to i in the
    embedding (1 = nearest). k is `neighbours`, reduced to stay below N / 2. NaN for fewer than 3 images. Source: Venna and
    Kaski 2001, as in scikit-learn.
    """
    from sklearn import manifold

    k = min(neighbours, (len(embedding) - 1) // 2)
    if k < 1:
        return float("nan")
    return float(manifold.trustworthiness(embedding.double().numpy(), coordinates.double().numpy(), n_neighbors=k))


def nearest_images(points: Tensor, neighbours: int = NEIGHBOURS, queries: Sequence[int] | None = None) -> Tensor:
    """Indices (n, k) int64 of the points nearest to each query by Euclidean distance, without the query itself, nearest first.

    `points` (N, D). k is `neighbours`, or N - 1 if that is less. `queries`: indices (n,) of the query points, by default all N.
    """
    indices = torch.arange(len(points)) if queries is None else torch.as_tensor(queries)
    distances = torch.cdist(points[indices].double(), points.double())
    distances[torch.arange(len(indices)), indices] = float("inf")
    return distances.topk(max(0, min(neighbours, len(points) - 1)), largest=False).indices


def own_share(points: Tensor, labels: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """For each image, the share (N,) of its `nearest_images` that are of its class.

    Double, in [0, 1]; NaN for a single image. Source: ours.
    """
    return (labels[nearest_images(points, neighbours)] == labels[:, None]).double().mean(1)


def knn_purity(points: Tensor, labels: Tensor, neighbours: int = NEIGHBOURS) -> float:
    """Mean of `own_share`: the share of an image's nearest `neighbours` in `points` (N, D) that are of its class.

    In [0, 1], at most `purity_limit`. For random points and C classes of equal size it is about 1/C. NaN for a single image.
    Source: ours.
    """
    return own_share(points, labels, neighbours).mean().item()


def purity_limit(labels: Tensor, neighbours: int = NEIGHBOURS) -> float:
    """Largest possible `knn_purity` for `labels` (N,): 1 if every class has more than k = min(`neighbours`, N - 1) images, else
    below 1; NaN for one image.
    """
    k = min(neighbours, len(labels) - 1)
    if k < 1:
        return float("nan")
    _, inverse, sizes = labels.unique(return_inverse=True, return_counts=True)
    return ((sizes[inverse] - 1).clamp_max(k).double() / k).mean().item()
