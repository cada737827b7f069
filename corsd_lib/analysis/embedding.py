"""Pictures of what the exits see: one joint projection of the probe images to two dimensions, and how far to trust it.

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
NEIGHBOURS = 10  # of the measures of quality


@dataclass(frozen=True, eq=False)
class StageEmbedding:
    """Where the probe images lie in pictures of the exits, and what the pictures lose.

    `coordinates` (E, K, N, 2) float32, all of one joint fit, so that image i is coordinates[:, :, i]; axes have no unit.
    `labels`, `index` (N,): class of the images and their row in the data. `epochs` (E), `exits` (K, 1-based). Of every
    picture, (E, K) in [0, 1], 1 is best: its `trustworthiness`, its `knn_purity` and the `embedding_purity`, the same in
    the space of D dimensions; no purity can be above `purity_limit`. A picture that is purer than its embedding shows classes
    tidier than the exit sees them: in a joint fit shallow exits borrow order from deep ones.
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
        """One row a picture: epoch, exit, trustworthiness, knn_purity, embedding_purity."""
        import pandas as pd

        names = ("trustworthiness", "knn_purity", "embedding_purity")
        places = [(epoch, k) for epoch in self.epochs for k in self.exits]
        columns = {name: getattr(self, name).flatten().numpy() for name in names}
        return pd.DataFrame({"epoch": [e for e, _ in places], "exit": [k for _, k in places], **columns})


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
    """The probe images of a run in two dimensions, for the chosen `epochs` (the last by default) and `exits` (all, 1-based).

    Each exit is centred, scaled (`scaled_embedding`) and turned to the deepest at the last epoch (`aligned_embedding`); then
    all are projected together (`joint_projection`, which explains the other parameters), so that an image can be followed.
    Kept in the run as embeddings/<method>-<key>.safetensors, where the key is of all parameters that matter to the method, and
    read from there the next time unless `refresh`; a run that cannot be written to is embedded anew each time. Epochs and
    exits of the result are in ascending order. Raises `CorsdError` for an epoch without a snapshot, an exit that is not there,
    and embeddings that are not finite.
    """
    settings = _settings(run, epochs, exits, method, seed, neighbours, min_dist)
    path = _place(run, settings)
    tensors = None if refresh else _cached(path, run, settings)
    if tensors is None:
        tensors = _embedded(run, settings)
        with suppress(CorsdError):  # somebody else's run, or a full disk: what was computed is still good
            write_tensors(path, tensors, {"settings": json.dumps(settings)}, within=run.path)
    limit = purity_limit(tensors["labels"])
    chosen, places = tuple(settings["epochs"]), tuple(settings["exits"])
    return StageEmbedding(**tensors, epochs=chosen, exits=places, method=method, purity_limit=limit)


def is_kept(
    run: Run,
    epochs: Sequence[int] | None = None,
    exits: Sequence[int] | None = None,
    method: str = "umap",
    seed: int = 0,
    neighbours: int = 15,
    min_dist: float = 0.1,
) -> bool:
    """Whether `stage_embedding` with the same arguments only reads what the run has kept; errors as of that."""
    settings = _settings(run, epochs, exits, method, seed, neighbours, min_dist)
    return _cached(_place(run, settings), run, settings) is not None


def _chosen(what: str, asked: Sequence[int] | None, allowed: list[int], default: list[int]) -> list[int]:
    values = default if asked is None else [int(v) for v in asked]
    if not values or not set(values) <= set(allowed) or len(set(values)) < len(values):
        listed = ", ".join(map(str, allowed)) or "none, the run has no probe snapshot yet"
        raise CorsdError(f"{what} {shortened(values)} of an embedding; allowed: one or more, each once, of {listed}")
    return sorted(values)


def _settings(
    run: Run,
    epochs: Sequence[int] | None,
    exits: Sequence[int] | None,
    method: str,
    seed: int,
    neighbours: int,
    min_dist: float,
) -> dict[str, Any]:
    """All that decides the coordinates; PCA knows nothing of seeds and neighbours."""
    _check_settings(method, neighbours, min_dist)
    chosen = _chosen("epochs", epochs, list(run.probes), default=list(run.probes)[-1:])
    there = list(range(1, len(run.probes[chosen[0]].embeddings) + 1))
    places = _chosen("exits", exits, there, default=there)
    of_umap = {"seed": int(seed), "neighbours": int(neighbours), "min_dist": float(min_dist)}
    return {"epochs": chosen, "exits": places, "method": method, **(of_umap if method == "umap" else {})}


def _place(run: Run, settings: dict[str, Any]) -> Path:
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    return run.path / "embeddings" / f"{settings['method']}-{key}.safetensors"


def _cached(path: Path, run: Run, settings: dict[str, Any]) -> dict[str, Tensor] | None:
    """What was kept, unless there is nothing, it is damaged, or the run has other probe images by now."""
    try:
        tensors = read_embedding(path, len(settings["epochs"]), len(settings["exits"]), len(run.probes.labels))
    except CorsdError:
        return None
    same = all(torch.equal(tensors[name], getattr(run.probes, name)) for name in ("labels", "index"))
    return tensors if same else None


def _embedded(run: Run, settings: dict[str, Any]) -> dict[str, Tensor]:
    probes, epochs, exits = run.probes, settings["epochs"], settings["exits"]
    snapshots = (probes[epoch].embeddings for epoch in epochs)  # one in memory at a time
    embeddings = torch.stack([torch.stack([scaled_embedding(found[k - 1]) for k in exits]) for found in snapshots])
    reference = embeddings[-1, -1].clone()  # (N, D)
    for e in embeddings.flatten(0, 1)[:-1]:  # of (E, K, N, D); the last one is the reference
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

    y_i = (x_i - mean x) / mean_j ‖x_j - mean x‖. Every exit has an offset and a scale of its own, and norms grow with the
    epochs: a joint fit would spend its two dimensions on these differences and not on the images. Neighbours within an exit
    stay what they are. Embeddings that are all the same become zeros. Raises `CorsdError` where they are not finite.
    """
    if embedding.ndim != 2 or not bool(embedding.isfinite().all()):
        raise CorsdError(f"embeddings of shape {tuple(embedding.shape)}; allowed: (N, D), all of them finite")
    x = embedding.double()  # in float32 the mean of equal rows is not always that row, and the scaling would blow it up
    x = x - x.mean(0)
    scale = x.norm(dim=1).mean()
    return (x / torch.where(scale > 0, scale, 1.0)).float()


def aligned_embedding(embedding: Tensor, reference: Tensor) -> Tensor:
    """Scaled embeddings (N, D) turned (and mirrored) so that images come as near as can be to themselves in `reference` (N, D).

    X R with R = argmin ‖X R - Y‖ over orthogonal (D, D) = U Vᵀ of the singular value decomposition U S Vᵀ of Xᵀ Y. The
    dimensions of two exits have nothing to do with each other: without this a joint fit makes an island of every exit, and
    where an image lies in one says nothing of where it lies in the next. Distances within an exit stay what they are; how close
    an image comes to itself in another is in part the rotation's doing, the more the fewer images there are to a dimension:
    of 500 images in two unrelated sets to 0.9, 0.75 and 0.5 of the mean distance at D = 32, 128 and 512. float32.
    Source: Schönemann 1966, orthogonal Procrustes problem.
    """
    u, _, v = torch.linalg.svd(embedding.float().T @ reference.float())
    return embedding.float() @ (u @ v)


def joint_projection(
    embeddings: Tensor, method: str = "umap", seed: int = 0, neighbours: int = 15, min_dist: float = 0.1
) -> Tensor:
    """Coordinates (..., N, 2) float32 of scaled `embeddings` (..., N, D): one fit over all of them.

    "pca": the two directions of largest variance, exact and the same everywhere (up to rounding); of each direction the
    largest loading is positive. "umap" (McInnes et al. 2018, arXiv 1802.03426): neighbourhoods, of `neighbours` images (2 or
    more), drawn `min_dist` in [0, 1] apart at least; the same for a `seed` on one machine, not across machines. Distances
    between far groups mean little in it. Raises `CorsdError` for other settings, for UMAP of fewer than 5 points and where it
    is not installed.
    """
    _check_settings(method, neighbours, min_dist)
    points = embeddings.flatten(0, -2).float()
    flat = _pca(points) if method == "pca" else _umap(points, seed, neighbours, min_dist)
    return flat.view(*embeddings.shape[:-1], 2)


def _check_settings(method: str, neighbours: int, min_dist: float) -> None:
    check_choice("method of an embedding", method, PROJECTIONS)
    if neighbours < 2:
        raise CorsdError(f"neighbours = {shortened(neighbours)} of an embedding; allowed: 2 or more")
    if not 0 <= min_dist <= 1:
        raise CorsdError(f"min_dist = {shortened(min_dist)} of an embedding; allowed: 0 to 1")


def _pca(points: Tensor) -> Tensor:
    points = points.double()
    points = points - points.mean(0)
    _, directions = torch.linalg.eigh(points.T @ points)  # of the (D, D) scatter, columns in ascending order
    directions = directions[:, -2:].flip(1).T
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return (points @ (directions * largest.sign()).T).float()


def _umap(points: Tensor, seed: int, neighbours: int, min_dist: float) -> Tensor:
    if len(points) < 5:  # it lays points out by the graph's eigenvectors, of which there must be enough
        raise CorsdError(f"{len(points)} points for method 'umap'; allowed: 5 or more, or method 'pca'")
    require("method 'umap', unlike 'pca',", "umap")
    from umap import UMAP

    near = min(neighbours, len(points) - 1)
    model = UMAP(n_neighbors=near, min_dist=min_dist, random_state=seed, n_jobs=1)
    return torch.from_numpy(model.fit_transform(points.numpy())).float()


# --- how far to trust a picture ---------------------------------------------------------------------------------------


def trustworthiness(embedding: Tensor, coordinates: Tensor, neighbours: int = NEIGHBOURS) -> float:
    """How far to trust neighbours in a picture (N, 2) of an embedding (N, D): 1 at best, about 0.5 for positions at random.

    Not the share of real ones: a neighbour that the embedding does not have costs the more the farther away it is there.
    1 - 2 / (N k (2N - 3k - 1)) · sum of max(0, r(i, j) - k) over images i and the k nearest to it in the picture, j, where j
    is the r-th nearest to i in the embedding. k is `neighbours`, or less: below N / 2; NaN for fewer than 3 images.
    Source: Venna and Kaski 2001, as in scikit-learn.
    """
    from sklearn import manifold

    k = min(neighbours, (len(embedding) - 1) // 2)
    if k < 1:
        return float("nan")
    return float(manifold.trustworthiness(embedding.double().numpy(), coordinates.double().numpy(), n_neighbors=k))


def nearest_images(points: Tensor, neighbours: int = NEIGHBOURS, of: Sequence[int] | None = None) -> Tensor:
    """Rows (n, k) of the `neighbours` other points nearest to each, nearest first, of `points` (N, any); all when fewer.

    `of`: the n rows that are asked for, all N by default.
    """
    rows = torch.arange(len(points)) if of is None else torch.as_tensor(of)
    distances = torch.cdist(points[rows].double(), points.double())
    distances[torch.arange(len(rows)), rows] = float("inf")
    return distances.topk(max(0, min(neighbours, len(points) - 1)), largest=False).indices


def own_share(points: Tensor, labels: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """Share (N,) of each image's `nearest_images` that are of its class, double in [0, 1]; NaN for one image. Source: ours."""
    return (labels[nearest_images(points, neighbours)] == labels[:, None]).double().mean(1)


def knn_purity(points: Tensor, labels: Tensor, neighbours: int = NEIGHBOURS) -> float:
    """Mean share of an image's nearest `neighbours` (itself not counted) in `points` (N, any) that are of its class.

    In [0, 1]; at random about the share of the class, at most `purity_limit`. All the others where they are fewer than
    `neighbours`; NaN for one image. Source: ours.
    """
    return own_share(points, labels, neighbours).mean().item()


def purity_limit(labels: Tensor, neighbours: int = NEIGHBOURS) -> float:
    """The highest `knn_purity` that any points could have: below 1 where a class has fewer than `neighbours` + 1 images."""
    k = min(neighbours, len(labels) - 1)
    if k < 1:
        return float("nan")
    _, inverse, sizes = labels.unique(return_inverse=True, return_counts=True)
    return ((sizes[inverse] - 1).clamp_max(k).double() / k).mean().item()
