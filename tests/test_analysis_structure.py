from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import silhouette_score
from torch import Tensor

from corsd_lib.analysis.structure import (
    STRUCTURE,
    cka_between_runs,
    cka_matrix,
    class_structure,
    embedding_structure,
    linear_cka,
    mean_angles,
    nearest_mean_accuracy,
    scatter,
    silhouette,
    variance_collapse,
)
from corsd_lib.errors import CorsdError
from corsd_lib.files import read_tensors, write_tensors
from corsd_lib.runs import Run, TrainConfig, load_run
from corsd_lib.training import train

Tiny = Callable[..., TrainConfig]
CASES = [(12, 3, 2), (40, 5, 3), (30, 8, 20), (200, 10, 4), (25, 24, 6)]  # images, classes, dimensions


def _case(images: int, classes: int, dims: int, pull: float = 1.0) -> tuple[Tensor, Tensor]:
    """Embeddings about random class centres, every class of at least one image and of a random number of them."""
    generator = torch.Generator().manual_seed(images * dims)
    labels = torch.cat([torch.arange(classes), torch.randint(0, classes, (images - classes,), generator=generator)])
    labels = labels[torch.randperm(images, generator=generator)]
    centres = 3 + pull * torch.randn(classes, dims, generator=generator)
    return centres[labels] + torch.randn(images, dims, generator=generator), labels


def _blocks(embeddings: Tensor, labels: Tensor) -> dict[int, np.ndarray]:
    x = embeddings.double().numpy()
    return {c: x[[i for i, y in enumerate(labels.tolist()) if y == c]] for c in sorted(set(labels.tolist()))}


def _scatter_matrices(embeddings: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    x, n = embeddings.double().numpy(), len(labels)
    overall, within, between = x.mean(0), np.zeros((x.shape[1],) * 2), np.zeros((x.shape[1],) * 2)
    for rows in _blocks(embeddings, labels).values():
        mean = rows.mean(0)
        between += len(rows) / n * np.outer(mean - overall, mean - overall)
        for row in rows:
            within += np.outer(row - mean, row - mean) / n
    return within, between


# --- scatter and collapse ---


@pytest.mark.parametrize("images,classes,dims", CASES)
def test_scatter_is_that_of_a_loop_and_adds_up(images: int, classes: int, dims: int) -> None:
    embeddings, labels = _case(images, classes, dims)
    found = scatter(embeddings, labels)
    within, between = _scatter_matrices(embeddings, labels)
    assert found["within"] == pytest.approx(np.trace(within))
    assert found["between"] == pytest.approx(np.trace(between))
    total = ((embeddings.double() - embeddings.double().mean(0)) ** 2).sum(1).mean().item()
    assert found["total"] == pytest.approx(total)
    assert found["between_fraction"] == pytest.approx(np.trace(between) / total)


def test_the_share_between_classes_does_not_know_the_scale() -> None:
    embeddings, labels = _case(40, 5, 3)
    assert scatter(7 * embeddings + 100, labels)["between_fraction"] == pytest.approx(
        scatter(embeddings, labels)["between_fraction"]
    )


@pytest.mark.parametrize("images,classes,dims", CASES)
def test_collapse_is_that_of_the_pseudo_inverse(images: int, classes: int, dims: int) -> None:
    embeddings, labels = _case(images, classes, dims)
    within, between = _scatter_matrices(embeddings, labels)
    expected = np.trace(within @ np.linalg.pinv(between, rcond=1e-11, hermitian=True)) / classes
    assert variance_collapse(embeddings, labels) == pytest.approx(expected)
    assert variance_collapse(embeddings * 5 - 3, labels) == pytest.approx(expected)


def test_collapse_of_known_classes() -> None:
    # Two classes at -2 and 2, each spread by 1: S_W = 1, S_B = 4. The second dimension is noise that separates nothing.
    embeddings = torch.tensor([[-3.0, 9.0], [-1.0, 9.0], [1.0, 9.0], [3.0, 9.0]])
    labels = torch.tensor([7, 7, 2, 2])
    assert variance_collapse(embeddings, labels) == pytest.approx(1 / 4 / 2)
    noisy = embeddings + torch.tensor([[0.0, 5.0], [0.0, -5.0], [0.0, 5.0], [0.0, -5.0]])
    assert variance_collapse(noisy, labels) == pytest.approx(1 / 4 / 2)
    points = torch.tensor([[-2.0, 0.0], [-2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
    assert variance_collapse(points, labels) == 0


# --- silhouette and nearest mean ---


@pytest.mark.parametrize("images,classes,dims", CASES)
def test_silhouette_is_scikit_learns(images: int, classes: int, dims: int) -> None:
    for pull in (0.0, 1.0, 50.0):
        embeddings, labels = _case(images, classes, dims, pull)
        assert silhouette(embeddings, labels) == pytest.approx(silhouette_score(embeddings.double().numpy(), labels.numpy()))


def test_silhouette_of_known_points() -> None:
    labels = torch.tensor([0, 0, 1])
    # a = 1 and b = 5, then a = 1 and b = 4; the only image of a class counts 0
    assert silhouette(torch.tensor([[0.0], [1.0], [5.0]]), labels) == pytest.approx((4 / 5 + 3 / 4 + 0) / 3)
    assert silhouette(torch.full((3, 4), 0.3), labels) == 0


def _nearest_mean_of_a_loop(embeddings: Tensor, labels: Tensor) -> float:
    x, right, judged = embeddings.double(), 0, 0
    for i, label in enumerate(labels.tolist()):
        distances = {}
        for c in set(labels.tolist()):
            rows = [j for j, y in enumerate(labels.tolist()) if y == c and j != i]
            if rows:
                distances[c] = (x[i] - x[rows].mean(0)).norm().item()
        if label in distances:
            judged += 1
            right += min(distances, key=lambda c: distances[c]) == label
    return 100 * right / judged


@pytest.mark.parametrize("images,classes,dims", CASES)
def test_nearest_mean_is_that_of_a_loop_that_leaves_the_image_out(images: int, classes: int, dims: int) -> None:
    embeddings, labels = _case(images, classes, dims)
    assert nearest_mean_accuracy(embeddings, labels) == pytest.approx(_nearest_mean_of_a_loop(embeddings, labels))


def test_noise_in_many_dimensions_is_not_taken_for_classes() -> None:
    embeddings = torch.randn(200, 500, generator=torch.Generator().manual_seed(0))
    assert nearest_mean_accuracy(embeddings, torch.arange(200) % 100) < 5  # with the image in its mean it would be 100


# --- angles ---


@pytest.mark.parametrize("images,classes,dims", CASES)
def test_angles_are_those_of_a_loop(images: int, classes: int, dims: int) -> None:
    embeddings, labels = _case(images, classes, dims)
    means = [rows.mean(0) for rows in _blocks(embeddings, labels).values()]
    centre = sum(means) / classes
    v = [m - centre for m in means]
    cosines = [
        float(v[i] @ v[j]) / math.sqrt(float(v[i] @ v[i]) * float(v[j] @ v[j])) for i in range(classes) for j in range(i)
    ]
    found = mean_angles(embeddings, labels)
    assert found["mean_cosine"] == pytest.approx(np.mean(cosines))
    assert found["cosine_deviation"] == pytest.approx(np.std(cosines), abs=1e-9)
    assert found["simplex_gap"] == pytest.approx(np.mean([abs(c + 1 / (classes - 1)) for c in cosines]), abs=1e-9)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_a_simplex_has_no_gap_whatever_its_place_size_and_classes(classes: int) -> None:
    labels = torch.arange(classes).repeat_interleave(torch.arange(classes) + 1)  # 1, 2, 3, ... images
    found = mean_angles(4 * torch.eye(classes)[labels] + 11, labels)
    assert found["mean_cosine"] == pytest.approx(-1 / (classes - 1))
    assert found["cosine_deviation"] == pytest.approx(0, abs=1e-7) and found["simplex_gap"] == pytest.approx(0, abs=1e-7)


def test_a_mean_at_the_centre_has_no_angle() -> None:
    found = mean_angles(torch.tensor([[-1.0, 0.1], [0.0, 0.1], [1.0, 0.1]]), torch.arange(3))
    assert found["mean_cosine"] == pytest.approx(-1) and found["simplex_gap"] == pytest.approx(0.5)


# --- edges ---


def _nans(found: dict[str, float]) -> set[str]:
    return {name for name, value in found.items() if math.isnan(value)}


SEPARATION = {"silhouette", "nearest_mean_top1", "nc1", "mean_cosine", "cosine_deviation", "simplex_gap"}


def test_one_class_has_no_separation() -> None:
    found = embedding_structure(torch.randn(6, 3), torch.full((6,), 4))
    assert _nans(found) == SEPARATION
    assert found["between"] == pytest.approx(0) and found["between_fraction"] == pytest.approx(0) and found["within"] > 0


def test_one_image_of_each_class_has_no_spread() -> None:
    found = embedding_structure(torch.randn(6, 3), torch.arange(6))
    assert _nans(found) == {"nearest_mean_top1"}
    assert found["within"] == found["nc1"] == found["silhouette"] == 0 and found["between_fraction"] == 1


def test_one_image_has_nothing() -> None:
    assert _nans(embedding_structure(torch.randn(1, 3), torch.tensor([2]))) == SEPARATION | {"between_fraction"}


def test_images_at_one_point_have_no_structure() -> None:
    found = embedding_structure(torch.full((6, 3), 0.7), torch.arange(6) % 2)
    assert _nans(found) == {"between_fraction", "nc1", "mean_cosine", "cosine_deviation", "simplex_gap"}
    assert found["total"] == found["silhouette"] == found["nearest_mean_top1"] == 0  # nearest means strictly nearer


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_network_that_diverged_has_a_structure_of_nan(bad: float) -> None:
    embeddings, labels = _case(40, 5, 3)
    embeddings[3, 1] = bad
    found = embedding_structure(embeddings, labels)
    assert tuple(found) == STRUCTURE and _nans(found) == set(STRUCTURE)
    assert math.isnan(linear_cka(embeddings, embeddings))


@pytest.mark.parametrize("shape,labels", [((4, 2, 2), 4), ((4, 2), 3), ((0, 2), 0)])
def test_other_shapes_are_named(shape: tuple[int, ...], labels: int) -> None:
    with pytest.raises(CorsdError, match=r"embeddings have shape \(.*\), labels .*; allowed: \(N, D\) and \(N,\)"):
        scatter(torch.zeros(shape), torch.zeros(labels, dtype=torch.long))


# --- CKA ---


def _cka_by_features(a: Tensor, b: Tensor) -> float:
    """As Kornblith et al. write it."""
    x, y = (m.double().numpy() - m.double().numpy().mean(0) for m in (a, b))
    return float(np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


@pytest.mark.parametrize("images,first,second", [(2, 3, 1), (30, 4, 4), (30, 50, 7), (100, 3, 60)])
def test_cka_is_that_of_the_paper(images: int, first: int, second: int) -> None:
    generator = torch.Generator().manual_seed(images + first)
    a = torch.randn(images, first, generator=generator) + 2
    b = a[:, :1] * torch.randn(second, generator=generator) + torch.randn(images, second, generator=generator) - 1
    assert linear_cka(a, b) == pytest.approx(_cka_by_features(a, b))
    assert linear_cka(b, a) == pytest.approx(linear_cka(a, b))


def test_cka_does_not_know_rotation_scale_and_place() -> None:
    a = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))
    assert linear_cka(a, -3 * a @ rotation + 5) == pytest.approx(1)
    assert linear_cka(a, a @ torch.diag(torch.tensor([9.0, 1, 1, 1, 1, 1]).double())) < 0.9
    split = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    assert (
        linear_cka(split, torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])) == 0
    )  # two ways to split that know nothing of each other
    assert math.isnan(linear_cka(split, torch.ones(4, 2)))


def test_a_cka_matrix_has_every_pair() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(20, d, generator=generator) for d in (3, 5)]
    columns = [torch.randn(20, d, generator=generator) for d in (4, 2, 8)]
    expected = torch.tensor([[_cka_by_features(a, b) for b in columns] for a in rows], dtype=torch.float64)
    torch.testing.assert_close(cka_matrix(rows, columns), expected)
    itself = cka_matrix(columns)
    torch.testing.assert_close(itself, cka_matrix(columns, columns))
    torch.testing.assert_close(itself.diagonal(), torch.ones(3, dtype=torch.float64))
    with pytest.raises(CorsdError, match="the embeddings are of 19, 20 images; allowed: the same images in the same order"):
        cka_matrix(rows, [torch.zeros(19, 3)])


# --- runs ---


def test_the_structure_of_a_run_has_a_row_an_epoch_and_exit(tiny_run: Run) -> None:
    table = class_structure(tiny_run)
    assert list(table.columns) == ["epoch", "exit", *STRUCTURE]
    assert [*zip(table["epoch"], table["exit"], strict=True)] == [(e, k) for e in (0, 1, 2) for k in (1, 2, 3)]
    row = table[(table["epoch"] == 1) & (table["exit"] == 3)].iloc[0]
    expected = embedding_structure(tiny_run.probes[1].embeddings[2], tiny_run.probes.labels)
    assert {name: row[name] for name in STRUCTURE} == expected
    assert not table.isna().any().any()
    assert class_structure(tiny_run, [2])["epoch"].tolist() == [2, 2, 2]
    assert class_structure(tiny_run, []).empty
    with pytest.raises(CorsdError, match="snapshot after epoch 9 is not available; allowed: 0, 1, 2"):
        class_structure(tiny_run, [9])


def test_exits_of_two_runs_are_compared_on_the_same_images(tiny: Tiny, tiny_run: Run) -> None:
    other = train(tiny(method="baseline", validation_fraction=0.2, epochs=1), progress=False)  # one exit
    found = cka_between_runs(tiny_run, other, 1)
    assert found.shape == (3, 1)
    a, b = tiny_run.probes[1].embeddings, other.probes[1].embeddings
    assert found[2, 0].item() == pytest.approx(_cka_by_features(a[2], b[0]))
    torch.testing.assert_close(cka_between_runs(tiny_run, other, 2, 1), cka_matrix(tiny_run.probes[2].embeddings, b))
    with pytest.raises(CorsdError, match="snapshot after epoch 2 is not available; allowed: 0, 1"):
        cka_between_runs(tiny_run, other, 2)


def test_runs_that_looked_at_other_images_are_not_compared(tiny_run: Run, tmp_path: Path) -> None:
    shutil.copytree(tiny_run.path, tmp_path / "copy")
    copy, file = load_run(tmp_path / "copy"), tmp_path / "copy" / "probe.safetensors"
    assert cka_between_runs(tiny_run, copy, 0).diagonal().tolist() == pytest.approx([1, 1, 1])
    tensors, metadata = read_tensors(file)
    changes = [
        ({**tensors, "index": tensors["index"].flip(0)}, metadata),
        ({**tensors, "labels": tensors["labels"].flip(0)}, metadata),
        ({k: v[:40] for k, v in tensors.items()}, metadata),
        (tensors, {"split": "test"}),
    ]
    for changed, told in changes:
        write_tensors(file, changed, told)
        with pytest.raises(CorsdError, match=r"have different probe images \(50 .* 'digits', and \d+ (others )?from"):
            cka_between_runs(tiny_run, copy, 0)
    write_tensors(file, tensors, metadata)
    copy.data = replace(copy.data, class_names=tuple("abcdefghij"))
    with pytest.raises(CorsdError, match="have different classes"):
        cka_between_runs(tiny_run, copy, 0)
