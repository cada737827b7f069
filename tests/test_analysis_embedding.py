from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import decomposition, manifold
from torch import Tensor

from corsd_lib.analysis import embedding as module
from corsd_lib.analysis.embedding import (
    StageEmbedding,
    aligned_embedding,
    is_kept,
    joint_projection,
    knn_purity,
    nearest_images,
    own_share,
    purity_limit,
    scaled_embedding,
    stage_embedding,
    trustworthiness,
)
from corsd_lib.errors import CorsdError
from corsd_lib.files import read_tensors, write_tensors
from corsd_lib.runs import Run, TrainConfig, load_run
from corsd_lib.training import train

pytestmark = pytest.mark.alone

Tiny = Callable[..., TrainConfig]
MEASURES = ("trustworthiness", "knn_purity", "embedding_purity")


def _points(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def run(tiny_run: Run, tmp_path: Path) -> Run:
    """A copy of the tiny run that may be written to."""
    return load_run(shutil.copytree(tiny_run.path, tmp_path / "copy"))


# --- how far to trust a picture ---


def _purity_of_a_loop(points: Tensor, labels: Tensor, k: int) -> float:
    shares = []
    for i, p in enumerate(points):
        others = sorted((math.dist(p.tolist(), q.tolist()), j) for j, q in enumerate(points) if j != i)
        shares.append(sum(labels[j] == labels[i] for _, j in others[:k]).item() / min(k, len(others)))
    return sum(shares) / len(shares)


@pytest.mark.parametrize("images,classes,k", [(40, 3, 10), (25, 1, 10), (12, 12, 3), (2, 2, 10), (7, 2, 10), (60, 4, 1)])
def test_purity_is_that_of_a_loop(images: int, classes: int, k: int) -> None:
    labels = torch.arange(images) % classes
    points = _points(images, 5) + labels[:, None]
    assert knn_purity(points, labels, k) == pytest.approx(_purity_of_a_loop(points, labels, k))


def test_purity_of_known_cases() -> None:
    labels = torch.arange(3).repeat_interleave(12)
    assert knn_purity(100.0 * labels[:, None] + _points(36, 2), labels) == 1
    mixed = torch.arange(36.0)[:, None]  # in a row, classes taking turns: of 2 neighbours none is of the class
    assert knn_purity(mixed, torch.arange(36) % 3, 2) == 0
    assert math.isnan(knn_purity(torch.zeros(1, 2), torch.zeros(1)))
    same = knn_purity(torch.zeros(30, 2), torch.zeros(30))  # all in one place: each still has ten others
    assert same == 1


@pytest.mark.parametrize("sizes", [(30, 30), (2, 2, 2, 30), (1, 20), (5,), (1,), (11, 10)])
def test_no_purity_is_above_the_limit_and_clusters_reach_it(sizes: Sequence[int]) -> None:
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    draw = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    labels = labels[draw]
    limit = purity_limit(labels)
    if sum(sizes) == 1:
        assert math.isnan(limit)
        return
    clusters = 1000.0 * labels[:, None] + _points(len(labels), 3)
    assert knn_purity(clusters, labels) == pytest.approx(limit) and limit <= 1
    k = min(10, sum(sizes) - 1)
    assert limit == pytest.approx(sum(n * min(n - 1, k) / k for n in sizes) / sum(sizes))


def _trust_of_a_loop(high: Tensor, low: Tensor, k: int) -> float:
    images, lost = len(high), 0
    for i in range(images):
        by_high = sorted((j for j in range(images) if j != i), key=lambda j: math.dist(high[i].tolist(), high[j].tolist()))
        by_low = sorted((j for j in range(images) if j != i), key=lambda j: math.dist(low[i].tolist(), low[j].tolist()))
        lost += sum(max(0, by_high.index(j) + 1 - k) for j in by_low[:k])
    return 1 - 2 * lost / (images * k * (2 * images - 3 * k - 1))


@pytest.mark.parametrize("images,k", [(40, 10), (21, 10), (20, 9), (9, 4), (3, 1)])
def test_trustworthiness_is_that_of_a_loop_and_of_sklearn(images: int, k: int) -> None:
    """k is 10, or what the number of images allows."""
    high = _points(images, 6)
    low = high[:, :2] + 0.5 * _points(images, 2, seed=1)
    value = trustworthiness(high, low)
    assert value == pytest.approx(_trust_of_a_loop(high, low, k))
    assert value == pytest.approx(manifold.trustworthiness(high.numpy(), low.numpy(), n_neighbors=k))
    assert trustworthiness(high[:, :2], high[:, :2]) == 1


def test_two_images_have_no_trustworthiness() -> None:
    assert math.isnan(trustworthiness(torch.zeros(2, 4), torch.zeros(2, 2)))


# --- scaling and turning ---


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_scaled_embeddings_have_mean_zero_and_norm_one(dtype: torch.dtype) -> None:
    x = (50 + 7 * _points(30, 8)).to(dtype)
    y = scaled_embedding(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.mean(0), torch.zeros(8), atol=1e-6, rtol=0)
    assert y.norm(dim=1).mean().item() == pytest.approx(1, rel=1e-5)
    wide = (x.float()[:, None] - x.float()[None]).norm(dim=2)
    narrow = (y[:, None] - y[None]).norm(dim=2)
    torch.testing.assert_close(narrow * (wide[0, 1] / narrow[0, 1]), wide, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(scaled_embedding(3 * x.double() - 100), scaled_embedding(x), rtol=1e-4, atol=1e-5)


def test_embeddings_that_are_all_the_same_become_zeros() -> None:
    for images in range(2, 40):  # whose mean in float32 is not always the same
        assert torch.equal(scaled_embedding(torch.full((images, 3), 0.1)), torch.zeros(images, 3))
    assert torch.equal(scaled_embedding(torch.tensor([[0.3, 2.0]])), torch.zeros(1, 2))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_embeddings_that_are_not_finite_are_named(value: float) -> None:
    x = _points(4, 3)
    x[2, 1] = value
    with pytest.raises(CorsdError, match=r"embeddings are not all finite; allowed: finite numbers"):
        scaled_embedding(x)


@pytest.mark.parametrize("images,dimensions", [(30, 6), (4, 9), (1, 3)])
def test_an_embedding_that_was_turned_is_turned_back(images: int, dimensions: int) -> None:
    x = _points(images, dimensions)
    turn, _ = torch.linalg.qr(_points(dimensions, dimensions, seed=2))
    torch.testing.assert_close(aligned_embedding(x @ turn, x), x, atol=1e-5, rtol=1e-4)


def test_turning_keeps_distances_and_no_other_rotation_is_nearer() -> None:
    x, y = _points(25, 5), _points(25, 5, seed=1)
    turned = aligned_embedding(x, y)
    torch.testing.assert_close(torch.cdist(turned, turned), torch.cdist(x, x), atol=1e-4, rtol=1e-4)
    best = (turned - y).norm()
    for seed in range(50):
        turn, _ = torch.linalg.qr(_points(5, 5, seed=seed + 2))
        assert (x @ turn - y).norm() > best
        little = torch.linalg.matrix_exp(0.01 * (turn - turn.T))  # a rotation close to none
        assert (turned @ little - y).norm() >= best


# --- projections ---


def test_pca_is_that_of_sklearn_with_the_largest_loading_positive() -> None:
    points = _points(2, 3, 20, 7) * torch.tensor([1, 5, 2, 0.5, 9, 0.1, 1])
    coordinates = joint_projection(points, "pca")
    assert coordinates.shape == (2, 3, 20, 2) and coordinates.dtype == torch.float32
    flat = points.reshape(-1, 7).double().numpy()
    model = decomposition.PCA(2, svd_solver="full").fit(flat)
    signs = [np.sign(v[np.abs(v).argmax()]) for v in model.components_]
    expected = torch.from_numpy(model.transform(flat) * np.array(signs)).float().view(2, 3, 20, 2)
    torch.testing.assert_close(coordinates, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(coordinates, joint_projection(points, "pca", seed=5))


def test_pca_of_images_all_in_one_place_is_zero() -> None:
    assert torch.equal(joint_projection(torch.zeros(1, 1, 4, 3), "pca"), torch.zeros(1, 1, 4, 2))


def test_settings_that_are_no_good_are_named(tiny_run: Run) -> None:
    points = _points(1, 1, 20, 3)
    for call in (lambda **k: joint_projection(points, **k), lambda **k: stage_embedding(tiny_run, **k)):
        with pytest.raises(CorsdError, match="method of an embedding 'tsne' is not known; allowed: umap, pca"):
            call(method="tsne")
        with pytest.raises(CorsdError, match="neighbours = 1; allowed: 2 or more"):
            call(neighbours=1)
        for bad in (-0.1, 1.5, math.nan):
            with pytest.raises(CorsdError, match=r"min_dist = .*; allowed: 0 to 1"):
                call(min_dist=bad)
    with pytest.raises(CorsdError, match="4 points for method 'umap'; allowed: 5 or more, or method 'pca'"):
        joint_projection(points[:, :, :4])


def test_umap_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(CorsdError, match=r"method 'umap', .* needs umap-learn, .*: pip install 'corsd_lib\[notebooks\]'"):
        joint_projection(_points(1, 1, 20, 3))


# --- of a run ---


def _expected(run: Run, epochs: Sequence[int], exits: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Scaled and turned embeddings (E, K, N, D), and their PCA, step by step."""
    reference = scaled_embedding(run.probes[epochs[-1]].embeddings[exits[-1] - 1])
    rows = []
    for epoch in epochs:
        scaled = [scaled_embedding(run.probes[epoch].embeddings[k - 1]) for k in exits]
        rows.append(torch.stack([aligned_embedding(s, reference) for s in scaled]))
    embeddings = torch.stack(rows)
    return embeddings, joint_projection(embeddings, "pca")


@pytest.mark.parametrize("epochs,exits", [([2], [1, 2, 3]), ([0, 2], [2]), ([0, 1, 2], [1, 3])])
def test_a_run_is_embedded_jointly_with_every_measure_beside(run: Run, epochs: list[int], exits: list[int]) -> None:
    result = stage_embedding(run, epochs, exits, "pca")
    embeddings, coordinates = _expected(run, epochs, exits)
    assert result.coordinates.shape == (len(epochs), len(exits), 50, 2) and result.coordinates.dtype == torch.float32
    torch.testing.assert_close(result.coordinates, coordinates)
    assert (result.epochs, result.exits, result.method) == (tuple(epochs), tuple(exits), "pca")
    labels = run.probes.labels
    assert torch.equal(result.labels, labels) and torch.equal(result.index, run.probes.index)
    for e, epoch in enumerate(epochs):
        for k, place in enumerate(exits):
            raw = run.probes[epoch].embeddings[place - 1].float()
            picture = result.coordinates[e, k]
            assert result.trustworthiness[e, k].item() == pytest.approx(_trust_of_a_loop(embeddings[e, k], picture, 10))
            assert result.knn_purity[e, k].item() == pytest.approx(_purity_of_a_loop(picture, labels, 10))
            assert result.embedding_purity[e, k].item() == pytest.approx(knn_purity(raw, labels), abs=0.01)
    assert result.purity_limit == pytest.approx(0.4)  # five of a class have four others


def test_by_default_the_last_epoch_and_all_exits(run: Run) -> None:
    result = stage_embedding(run, method="pca")
    assert (result.epochs, result.exits) == ((2,), (1, 2, 3))


def test_order_of_asking_does_not_matter(run: Run) -> None:
    one, two = stage_embedding(run, [2, 0], [3, 1], "pca"), stage_embedding(run, [0, 2], [1, 3], "pca")
    assert one.epochs == (0, 2) and one.exits == (1, 3) and torch.equal(one.coordinates, two.coordinates)
    assert len(list((run.path / "embeddings").iterdir())) == 1


def test_the_table_has_a_row_a_picture(run: Run) -> None:
    result = stage_embedding(run, [0, 2], [1, 3], "pca")
    table = result.table()
    assert list(table.columns) == ["epoch", "exit", *MEASURES]
    assert table[["epoch", "exit"]].values.tolist() == [[0, 1], [0, 3], [2, 1], [2, 3]]
    for name in MEASURES:
        assert table[name].tolist() == getattr(result, name).flatten().tolist()


def test_a_run_of_one_exit(tiny: Tiny) -> None:
    plain = train(tiny(method="baseline", epochs=1), progress=False)
    result = stage_embedding(plain, method="pca")
    assert result.exits == (1,) and result.coordinates.shape == (1, 1, 50, 2)


def test_what_is_not_in_the_run_is_named(run: Run) -> None:
    for epochs in ([7], [0, 7], [], [0, 0]):
        with pytest.raises(CorsdError, match=r"epochs = \[.*\]; allowed: one or more, each once, of 0, 1, 2"):
            stage_embedding(run, epochs, method="pca")
    for exits in ([0], [4], [], [1, 1], [-1]):
        with pytest.raises(CorsdError, match=r"exits = \[.*\]; allowed: one or more, each once, of 1, 2, 3"):
            stage_embedding(run, exits=exits, method="pca")
    shutil.rmtree(run.path / "probes")
    with pytest.raises(CorsdError, match="none, the run has no probe snapshot yet"):
        stage_embedding(run, method="pca")


# --- kept in the run ---


def _same(one: StageEmbedding, two: StageEmbedding) -> bool:
    names = ("coordinates", "labels", "index", *MEASURES)
    return all(torch.equal(getattr(one, n), getattr(two, n)) for n in names) and one.purity_limit == two.purity_limit


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods of all projections that were computed; UMAP is made up, for it takes long."""
    calls: list[str] = []

    def projection(embeddings: Tensor, method: str = "umap", **options: Any) -> Tensor:
        calls.append(method)
        return joint_projection(embeddings, "pca") + options.get("seed", 0)

    monkeypatch.setattr(module, "joint_projection", projection)
    return calls


@pytest.mark.parametrize("method", ["umap", "pca"])
def test_it_is_computed_once_and_then_read(run: Run, fits: list[str], method: str) -> None:
    first = stage_embedding(run, method=method)
    (file,) = (run.path / "embeddings").iterdir()
    assert file.name.startswith(f"{method}-") and file.suffix == ".safetensors"
    assert _same(first, stage_embedding(load_run(run.path), method=method)) and fits == [method]
    assert _same(first, stage_embedding(run, [2], [1, 2, 3], method)) and fits == [method]  # the defaults, spelled out
    assert _same(first, stage_embedding(run, method=method, refresh=True)) and fits == [method] * 2
    assert [f.name for f in (run.path / "embeddings").iterdir()] == [file.name]


def test_every_parameter_is_in_the_key(run: Run, fits: list[str]) -> None:
    variants: list[dict[str, Any]] = [{}, {"epochs": [0]}, {"exits": [3]}, {"seed": 1}, {"neighbours": 5}, {"min_dist": 0.3}]
    variants.append({"method": "pca"})
    results = [stage_embedding(run, **v) for v in variants]
    assert len(fits) == len(variants) == len(list((run.path / "embeddings").iterdir()))
    again = [stage_embedding(run, **v) for v in variants]
    assert len(fits) == len(variants) and all(_same(a, b) for a, b in zip(results, again, strict=True))
    assert not _same(results[0], results[3])
    stage_embedding(run, method="pca", seed=3, neighbours=4, min_dist=0.5)  # which mean nothing to PCA
    assert len(fits) == len(variants)


def test_a_damaged_or_foreign_file_is_computed_anew(run: Run, fits: list[str]) -> None:
    first = stage_embedding(run, method="pca")
    (file,) = (run.path / "embeddings").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert _same(first, stage_embedding(run, method="pca")) and len(fits) == 2
    tensors, metadata = read_tensors(file)
    write_tensors(file, {**tensors, "index": tensors["index"] + 1}, metadata)  # of other probe images
    assert _same(first, stage_embedding(run, method="pca")) and len(fits) == 3
    write_tensors(file, {"coordinates": tensors["coordinates"]})
    assert _same(first, stage_embedding(run, method="pca")) and len(fits) == 4
    assert _same(first, stage_embedding(run, method="pca")) and len(fits) == 4


def test_a_run_that_cannot_be_written_to_is_embedded_all_the_same(run: Run, fits: list[str]) -> None:
    (run.path / "embeddings").write_text("a file where the folder should be: not even root can write below it")
    before = sorted(f.name for f in run.path.iterdir())
    one, two = stage_embedding(run, method="pca"), stage_embedding(run, method="pca")
    assert _same(one, two) and len(fits) == 2
    assert sorted(f.name for f in run.path.iterdir()) == before


def test_nothing_but_the_folder_of_embeddings_is_touched(run: Run, fits: list[str]) -> None:
    before = {f: f.read_bytes() for f in run.path.rglob("*") if f.is_file()}
    stage_embedding(run)
    after = {f: f.read_bytes() for f in run.path.rglob("*") if f.is_file() and f.parent.name != "embeddings"}
    assert before == after


# --- UMAP itself: half a minute of compilation ---


@pytest.mark.slow
def test_umap_shows_clusters_and_follows_images_over_exits() -> None:
    labels = torch.arange(4).repeat_interleave(15)
    centres = 6 * _points(4, 16)
    deep = scaled_embedding(centres[labels] + _points(60, 16, seed=1))
    turn, _ = torch.linalg.qr(_points(16, 16, seed=2))
    shallow = scaled_embedding(centres[labels] + 2 * _points(60, 16, seed=3)) @ turn
    points = torch.stack([aligned_embedding(shallow, deep), deep])[None]  # (1, 2, N, D)
    state = torch.get_rng_state()
    coordinates = joint_projection(points, seed=4, neighbours=10)
    assert coordinates.shape == (1, 2, 60, 2) and coordinates.dtype == torch.float32 and coordinates.isfinite().all()
    assert torch.equal(coordinates, joint_projection(points, seed=4, neighbours=10))
    assert not torch.equal(coordinates, joint_projection(points, seed=5, neighbours=10))
    assert torch.equal(state, torch.get_rng_state())
    for k in range(2):
        assert knn_purity(coordinates[0, k], labels) > 0.9 and trustworthiness(points[0, k], coordinates[0, k]) > 0.8
    across = torch.cdist(coordinates[0, 0], coordinates[0, 1])  # an image is near its class in the other exit
    same = labels[:, None] == labels[None]
    assert across[same].mean() < 0.5 * across[~same].mean()
    assert joint_projection(points[:, :1, ::12]).shape == (1, 1, 5, 2)  # as few as there may be


@pytest.mark.slow
def test_a_run_in_umap(run: Run) -> None:
    result = stage_embedding(run, [0, 2])
    assert result.coordinates.shape == (2, 3, 50, 2) and result.coordinates.isfinite().all()
    assert float(result.trustworthiness.min()) > 0.6
    assert torch.equal(stage_embedding(run, [0, 2]).coordinates, result.coordinates)
    assert torch.equal(stage_embedding(run, [0, 2], refresh=True).coordinates, result.coordinates)


def test_a_run_that_is_removed_while_it_is_embedded_is_not_made_anew(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = load_run(shutil.copytree(run.path, tmp_path / "another"))
    embedded = module._embedded

    def removed(*arguments: Any) -> Any:
        found = embedded(*arguments)
        shutil.rmtree(copy.path)
        return found

    monkeypatch.setattr(module, "_embedded", removed)
    assert stage_embedding(copy, method="pca", refresh=True).method == "pca"
    assert not copy.path.exists()


def test_what_is_kept_is_known_without_fitting(run: Run) -> None:
    assert not is_kept(run, [0, 2], method="pca")
    stage_embedding(run, [2, 0], method="pca")
    assert is_kept(run, [0, 2], method="pca") and is_kept(run, [0, 2], [1, 2, 3], "pca")
    assert not is_kept(run, [0, 2]) and not is_kept(run, [2], method="pca") and not is_kept(run, [0, 2], [1], "pca")
    with pytest.raises(CorsdError, match="epochs"):
        is_kept(run, [9])


def test_nearest_images_are_those_of_a_loop_and_make_the_share() -> None:
    points, labels = _points(12, 3), torch.arange(12) % 3
    found, share = nearest_images(points, 4), own_share(points, labels, 4)
    for i in range(12):
        others = sorted((j for j in range(12) if j != i), key=lambda j: float((points[i].double() - points[j].double()).norm()))
        assert found[i].tolist() == others[:4]
        assert share[i] == sum(int(labels[j] == labels[i]) for j in others[:4]) / 4
    assert torch.equal(nearest_images(points, 4, [7, 2]), found[[7, 2]])
    assert nearest_images(points[:2]).tolist() == [[1], [0]] and nearest_images(points[:1]).shape == (1, 0)
