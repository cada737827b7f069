from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from corsd_lib.batches import evaluation_batches
from corsd_lib.datasets import ImageArrays, ImageData, ImageFiles, Split, load_dataset
from corsd_lib.errors import CorsdError
from corsd_lib.files import read_json, read_tensors, write_json, write_tensors
from corsd_lib.methods import Method, build_method
from corsd_lib.network import MultiExitNetwork, build_network
from corsd_lib.relation import MapRelation, VectorRelation
from corsd_lib.runs import Run, TrainConfig, load_data, load_run
from corsd_lib.training import train
from corsd_lib.training.probe_set import ProbeSet, _half

Tiny = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_dataset("digits", validation_fraction=0.3)


def _parts(method: str = "corsd", **options: object) -> tuple[MultiExitNetwork, Method]:
    torch.manual_seed(4)
    exits = "deepest" if method in ("baseline", "corsd_release") else "all"
    network = build_network("resnet8", 10, in_channels=1, image_size=8, width=4, exits=exits)
    for module in network.modules():  # as if trained: running statistics that differ from 0 and 1
        if isinstance(module, torch.nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(std=0.1)
    return network, build_method(method, network=network, **options)


def _loop_over_pairs(score: Callable[[int, int], Tensor], labels: Tensor, classes: int) -> Tensor:
    """Mean score of all ordered pairs of two different images, by class and class."""
    total, count = torch.zeros(classes, classes, dtype=torch.float64), torch.zeros(classes, classes)
    for i, c in enumerate(labels.tolist()):
        for j, d in enumerate(labels.tolist()):
            if i != j:
                total[c, d] += score(i, j).double().item()
                count[c, d] += 1
    return (total / count).float()


# --- which images ---


@pytest.mark.parametrize("size,each", [(0, 2), (10, 2), (57, 5), (200, 20)])
def test_the_probe_set_holds_as_many_of_each_class(digits: ImageData, size: int, each: int) -> None:
    probe = ProbeSet(digits, size)
    assert torch.bincount(probe.split.labels).tolist() == [each] * 10
    assert probe.split.labels.tolist() == sorted(probe.split.labels.tolist())
    assert len(probe.split.index.unique()) == 10 * each


def test_a_small_class_gives_all_it_has(digits: ImageData) -> None:
    probe = ProbeSet(digits, 1000, "test")
    assert torch.equal(torch.bincount(probe.split.labels), torch.bincount(digits.test.labels))  # about 80 each


def test_the_probe_set_comes_from_validation_else_train_and_from_test_only_when_asked(digits: ImageData) -> None:
    held_out = digits.validation
    assert isinstance(held_out, ImageArrays) and isinstance(digits.test, ImageArrays) and isinstance(digits.train, ImageArrays)
    without = replace(digits, validation=None)
    cases = [(digits, "auto", "validation", held_out), (without, "auto", "train", digits.train)]
    cases += [(digits, "test", "test", digits.test), (digits, "train", "train", digits.train)]
    for data, asked, name, split in cases:
        probe = ProbeSet(data, 50, asked)
        assert probe.split_name == name and isinstance(probe.split, ImageArrays)
        for image, label, index in zip(probe.split.images, probe.split.labels, probe.split.index, strict=True):
            row = int((split.index == index).nonzero())
            assert torch.equal(image, split.images[row]) and label == split.labels[row]


def test_a_probe_split_that_is_not_there_is_named(digits: ImageData) -> None:
    with pytest.raises(CorsdError, match="probe_split 'validation': data 'digits' has no such split; set a"):
        ProbeSet(replace(digits, validation=None), 50, "validation")


def test_the_probe_set_is_random_and_always_the_same(digits: ImageData) -> None:
    torch.manual_seed(1)
    one, two = ProbeSet(digits, 50).split.index, ProbeSet(digits, 50).split.index
    assert torch.equal(one, two)
    first = torch.cat([digits.validation.index[digits.validation.labels == c][:5] for c in range(10)])  # type: ignore[union-attr]
    assert sorted(one.tolist()) != sorted(first.tolist())
    assert set(one.tolist()) <= set(ProbeSet(digits, 100).split.index.tolist())


def test_runs_of_two_methods_look_at_the_same_images(tiny: Tiny, tiny_run: Run) -> None:
    other = train(tiny(method="baseline", validation_fraction=0.2, epochs=1, lr=0.3), progress=False)
    assert torch.equal(other.probes.index, tiny_run.probes.index)
    assert torch.equal(other.probes.labels, tiny_run.probes.labels)
    assert other.probes.split == tiny_run.probes.split == "validation"
    validation = load_data(tiny_run.config).validation
    assert validation is not None and set(tiny_run.probes.index.tolist()) <= set(validation.index.tolist())


# --- what is kept of them ---


@pytest.mark.parametrize(
    "method,exits,stages", [("baseline", 1, 1), ("probe", 3, 3), ("byot", 3, 3), ("corsd", 3, 3), ("corsd_release", 1, 3)]
)
def test_a_snapshot_has_the_documented_shapes(
    digits: ImageData, tiny_run: Run, tmp_path: Path, method: str, exits: int, stages: int
) -> None:
    probe = ProbeSet(digits, 40)
    probe.write(tmp_path)
    tensors = probe.snapshot(*_parts(method))
    config = read_json(tiny_run.path / "config.json")
    write_json(tmp_path / "config.json", {**config, "train": {**config["train"], "method": method, "method_options": {}}})
    write_tensors(tmp_path / "probes" / "epoch_0003.safetensors", tensors)
    snapshot = load_run(tmp_path).probes[3]
    assert [(e.shape, e.dtype) for e in snapshot.embeddings] == [((40, 16), torch.float16)] * exits
    assert [(z.shape, z.dtype) for z in snapshot.logits] == [((40, 10), torch.float16)] * exits
    assert [(r.shape, r.dtype) for r in snapshot.relations] == [((10, 10), torch.float32)] * stages
    for relation in snapshot.relations:
        assert relation.min() >= 0 and relation.max() <= 1 and relation.std() > 1e-4
    assert all(v.dtype == torch.float16 for v in snapshot.relation_state.values() if v.is_floating_point())
    state = build_method(method, network=_parts(method)[0]).state_dict()
    assert {k for k in state if k.startswith("relations.")} == set(snapshot.relation_state)


def test_the_order_is_shallow_to_deep_and_that_of_the_probe_set(digits: ImageData) -> None:
    network, method = _parts()
    probe = ProbeSet(digits, 30)
    tensors = probe.snapshot(network, method)
    ((images, _),) = evaluation_batches(digits, probe.split)
    with torch.no_grad():
        out = network.eval()(images)
    for k in range(3):
        torch.testing.assert_close(tensors[f"embeddings.{k}"], out.embeddings[k].half(), atol=1e-3, rtol=2e-3)
        torch.testing.assert_close(tensors[f"logits.{k}"], out.logits[k].half(), atol=1e-3, rtol=2e-3)


def test_relations_of_vectors_are_those_of_a_loop_over_pairs(digits: ImageData) -> None:
    network, method = _parts(hidden=8, block_pairs=100)
    probe = ProbeSet(digits, 40)
    tensors = probe.snapshot(network, method)
    ((images, labels),) = evaluation_batches(digits, probe.split)
    with torch.no_grad():
        embeddings = network.eval()(images).embeddings
        for k, relation in enumerate(method.relation_networks()):
            assert isinstance(relation, VectorRelation)
            e = embeddings[k]
            expected = _loop_over_pairs(lambda i, j, r=relation, e=e: r.pair_scores(e[i : i + 1], e[j : j + 1])[0], labels, 10)  # type: ignore[misc]
            torch.testing.assert_close(tensors[f"relations.{k}"], expected, atol=1e-5, rtol=1e-5)
            assert (expected - expected.T).abs().max() > 1e-4  # pairs are ordered


def test_relations_of_maps_are_those_of_a_loop_over_pairs(digits: ImageData) -> None:
    network, method = _parts("corsd_release", hidden=8)
    probe = ProbeSet(digits, 30)
    tensors = probe.snapshot(network, method)
    ((images, labels),) = evaluation_batches(digits, probe.split)
    method.eval()
    with torch.no_grad():
        features = network.eval()(images).features
        for k, relation in enumerate(method.relation_networks()):
            assert isinstance(relation, MapRelation)
            f = features[k]

            def score(i: int, j: int, relation: MapRelation = relation, f: Tensor = f) -> Tensor:
                return relation._score(relation._pool(f, torch.tensor([i]), torch.tensor([j])))[0]

            torch.testing.assert_close(tensors[f"relations.{k}"], _loop_over_pairs(score, labels, 10), atol=1e-5, rtol=1e-5)


def test_pairs_of_maps_are_taken_of_some_images_of_each_class(digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    network, method = _parts("corsd_release", hidden=8)
    seen: list[Tensor] = []

    def scores(self: MapRelation, maps: Tensor) -> Tensor:
        seen.append(maps)
        return torch.rand(len(maps), len(maps))

    monkeypatch.setattr(MapRelation, "scores", scores)
    probe = ProbeSet(digits, 1000, "test")
    tensors = probe.snapshot(network, method)
    assert len(tensors["logits.0"]) == 797  # more than one batch of the evaluation
    labels = probe.split.labels.tolist()
    rows = [i for i, label in enumerate(labels) if labels[:i].count(label) < 6]  # 64 // 10
    ((images, _),) = evaluation_batches(digits, probe.split, batch_size=1000)
    with torch.no_grad():
        features = network.eval()(images).features
    assert len(seen) == 3
    for maps, expected in zip(seen, features, strict=True):
        torch.testing.assert_close(maps, expected[rows], atol=1e-5, rtol=1e-4)
    assert all(tensors[f"relations.{k}"].isfinite().all() for k in range(3))


@pytest.mark.parametrize("method", ["baseline", "byot"])
def test_without_relation_networks_the_relation_is_the_cosine(digits: ImageData, method: str) -> None:
    network, plain = _parts(method)
    probe = ProbeSet(digits, 30)
    tensors = probe.snapshot(network, plain)
    ((images, labels),) = evaluation_batches(digits, probe.split)
    with torch.no_grad():
        embeddings = network.eval()(images).embeddings
    for k, e in enumerate(embeddings):
        cosine = lambda i, j, e=e: (1 + torch.cosine_similarity(e[i], e[j], dim=0)) / 2  # noqa: E731
        expected = _loop_over_pairs(cosine, labels, 10)
        torch.testing.assert_close(tensors[f"relations.{k}"], expected, atol=1e-5, rtol=1e-5)


def test_the_last_snapshot_is_what_the_final_network_says(tiny_run: Run) -> None:
    data, probes = load_data(tiny_run.config), tiny_run.probes
    network, method, snapshot = tiny_run.network(), tiny_run.method(), probes[tiny_run.config.epochs]
    assert data.validation is not None
    rows = torch.tensor([int((data.validation.index == i).nonzero()) for i in probes.index])
    ((images, labels),) = evaluation_batches(data, data.validation.subset(rows))
    assert torch.equal(labels, probes.labels)
    with torch.no_grad():
        out = network(images)
        for k, relation in enumerate(method.relation_networks()):
            torch.testing.assert_close(snapshot.logits[k].float(), out.logits[k], atol=2e-3, rtol=2e-3)
            assert isinstance(relation, VectorRelation)
            e = out.embeddings[k]
            expected = _loop_over_pairs(lambda i, j, r=relation, e=e: r.pair_scores(e[i : i + 1], e[j : j + 1])[0], labels, 10)  # type: ignore[misc]
            torch.testing.assert_close(snapshot.relations[k], expected, atol=1e-3, rtol=1e-3)
    state = method.state_dict()
    assert all(torch.equal(v, state[k].half()) for k, v in snapshot.relation_state.items())


def test_the_first_snapshot_is_of_the_untrained_network(tiny_run: Run) -> None:
    first, last = tiny_run.probes[0], tiny_run.probes[2]
    torch.manual_seed(tiny_run.config.seed)
    network = build_network("resnet8", 10, in_channels=1, image_size=8, width=4)
    data, index = load_data(tiny_run.config), tiny_run.probes.index
    assert data.validation is not None
    rows = torch.tensor([int((data.validation.index == i).nonzero()) for i in index])
    ((images, _),) = evaluation_batches(data, data.validation.subset(rows))
    with torch.no_grad():
        out = network.eval()(images)
    torch.testing.assert_close(first.logits[2].float(), out.logits[2], atol=2e-3, rtol=2e-3)
    assert (first.logits[2] - last.logits[2]).abs().max() > 0.05


def test_a_snapshot_leaves_modes_statistics_and_random_numbers(digits: ImageData) -> None:
    network, method = _parts("corsd_release")
    network.train()
    network.backbone.eval()
    method.train()
    modes = [m.training for part in (network, method) for m in part.modules()]
    state = {k: v.clone() for part in (network, method) for k, v in part.state_dict().items()}
    random = torch.get_rng_state()
    probe = ProbeSet(digits, 20)
    probe.snapshot(network, method)
    assert probe.finite(network)
    assert modes == [m.training for part in (network, method) for m in part.modules()]
    assert all(torch.equal(v, state[k]) for part in (network, method) for k, v in part.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())


def test_finite_sees_a_network_that_is_of_no_use(digits: ImageData) -> None:
    network, _ = _parts()
    probe = ProbeSet(digits, 20)
    assert probe.finite(network)
    with torch.no_grad():
        for weight in network.backbone.parameters():
            weight.mul_(1e15)  # itself finite
    assert not probe.finite(network)


def test_streamed_images_are_probed_alike(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    labels = torch.arange(12) % 3
    split: Split = ImageFiles(tuple(str(tmp_path / f"{i}.png") for i in range(12)), labels, torch.arange(12), 16)
    names = ("a", "b", "c")
    data = ImageData("toy", split, split, names, names, torch.arange(3), (0.5,) * 3, (0.2,) * 3, 16)
    network = build_network("resnet8", 3, image_size=16, width=4)
    tensors = ProbeSet(data, 6).snapshot(network, build_method("byot", network=network))
    assert tensors["logits.2"].shape == (6, 3) and tensors["relations.2"].isfinite().all()


def test_the_probe_file_tells_which_images(tiny_run: Run) -> None:
    tensors, metadata = read_tensors(tiny_run.path / "probe.safetensors")
    assert metadata == {"split": "validation"}
    assert tensors["labels"].tolist() == [label for label in range(10) for _ in range(5)]
    validation = load_data(tiny_run.config).validation
    assert validation is not None and torch.isin(tensors["index"], validation.index).all()


def test_numbers_too_large_for_a_snapshot_stay_finite() -> None:
    values = torch.tensor([-1e6, -2.5, 0.0, 7e4, float("nan")])
    half = _half(values)
    assert half.dtype == torch.float16 and half[:4].tolist() == [-65504.0, -2.5, 0.0, 65504.0] and half[4].isnan()
