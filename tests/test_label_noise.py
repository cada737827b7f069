"""Noise on the labels of a training, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from corsd_lib.batches import step_generator
from corsd_lib.datasets import ImageArrays, load_dataset
from corsd_lib.datasets.selection import with_label_noise
from corsd_lib.errors import CorsdError
from corsd_lib.files import read_json, write_json
from corsd_lib.runs import TrainConfig, load_data, load_run, run_data, training_batches
from corsd_lib.training import train

Tiny = Callable[..., TrainConfig]


def _noisy(share: float, seed: int = 0, classes: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels before and after, of 1,000 images."""
    split = load_dataset("digits").train
    after = with_label_noise(split, share, classes, torch.Generator().manual_seed(seed))
    assert isinstance(split, ImageArrays) and isinstance(after, ImageArrays)
    assert after.images is split.images and torch.equal(after.index, split.index)
    return split.labels, after.labels


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4004, 0.9])
def test_the_share_is_that_of_wrong_labels(share: float) -> None:
    before, after = _noisy(share)
    assert int((before != after).sum()) == round(share * 1000)
    assert {*after.tolist()} <= {*range(10)}


def test_wrong_labels_are_drawn_evenly_from_the_other_classes() -> None:
    counts = torch.zeros(10, 10)
    for seed in range(60):
        before, after = _noisy(0.5, seed)
        counts.index_put_((before, after), torch.ones(1000), accumulate=True)
    shares = counts / counts.sum(1, keepdim=True)
    others = shares[~torch.eye(10, dtype=torch.bool)]
    assert shares.diag().tolist() == pytest.approx([0.5] * 10, abs=0.03)
    assert others.tolist() == pytest.approx([0.5 / 9] * 90, abs=0.02)


def test_more_noise_adds_wrong_labels_and_keeps_the_others() -> None:
    before, some = _noisy(0.2)
    _, more = _noisy(0.4)
    wrong = before != some
    assert torch.equal(some[wrong], more[wrong]) and not torch.equal(some, _noisy(0.2, seed=1)[1])


def test_batches_and_their_classes_have_the_noise_and_the_data_has_not(tiny: Tiny) -> None:
    config = tiny(per_class=50, label_noise=0.4, validation_fraction=0.2)
    data = load_data(config)
    source = training_batches(config, data)
    clean = load_data(replace(config, label_noise=0.0))
    assert torch.equal(data.train.labels, clean.train.labels) and data.validation is not None and clean.validation is not None
    assert torch.equal(data.validation.labels, clean.validation.labels)
    assert int((source.split.labels != clean.train.labels).sum()) == 200
    for batch in source(0):
        assert torch.equal(batch.labels, source.split.labels[batch.indices])
        assert 1 not in torch.bincount(batch.labels)  # balanced by the labels that are learned
    again = training_batches(config, data).split.labels
    assert torch.equal(again, source.split.labels)
    assert not torch.equal(again, training_batches(replace(config, seed=1), data).split.labels)


def test_the_noise_has_a_stream_of_its_own(tiny: Tiny) -> None:
    """Batches of a method that draws them whatever the labels are the same with noise and without."""
    with_noise, without = (tiny(method="baseline", label_noise=share) for share in (0.3, 0.0))
    data = load_data(without)
    rows = [training_batches(config, data).indices(1) for config in (with_noise, without)]
    assert all(torch.equal(a, b) for a, b in zip(*rows, strict=True))
    labels = with_label_noise(data.train, 0.3, 10, step_generator(0, 0)).labels
    assert not torch.equal(training_batches(with_noise, data).split.labels, labels)


def test_what_is_measured_is_clean_and_the_run_knows_its_noise(tiny: Tiny) -> None:
    config = tiny(label_noise=0.5, validation_fraction=0.2, probe_split="train", epochs=1)
    run = train(config, progress=False)
    clean = load_data(replace(config, label_noise=0.0))
    assert load_run(run.path).config.label_noise == 0.5
    data = run_data(run)
    assert torch.equal(data.train.labels, clean.train.labels) and torch.equal(data.test.labels, clean.test.labels)
    labels = dict(zip(clean.train.index.tolist(), clean.train.labels.tolist(), strict=True))
    assert [labels[i] for i in run.probes.index.tolist()] == run.probes.labels.tolist()
    with pytest.raises(CorsdError, match=r"another configuration: label_noise was 0\.5, is 0\.1"):
        train(replace(config, label_noise=0.1, resume=True), progress=False)
    again = train(replace(config, out=f"{run.path}-again"), progress=False)
    assert again.metrics["loss.total"].equals(run.metrics["loss.total"])
    other = train(replace(config, out=f"{run.path}-other", label_noise=0.0), progress=False)
    assert not other.metrics["loss.total"].equals(run.metrics["loss.total"])


def test_a_run_of_an_earlier_library_had_no_noise(tiny: Tiny) -> None:
    run = train(tiny(epochs=1), progress=False)
    content = read_json(run.path / "config.json")
    del content["train"]["label_noise"]
    write_json(run.path / "config.json", content)
    assert load_run(run.path).config.label_noise == 0
    assert train(replace(run.config, resume=True), progress=False).finished


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_out_of_range_is_named(share: float) -> None:
    with pytest.raises(CorsdError, match=r"label_noise = .* must be at least 0 and below 1"):
        TrainConfig(label_noise=share)


def test_noise_goes_together_with_held_out_classes(tiny: Tiny) -> None:
    config = tiny(label_noise=0.9, hold_out_classes=3)
    source = training_batches(config, load_data(config))
    assert int(source.split.labels.max()) == 6
