from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info
from torchvision.transforms.v2 import functional as tv

from corsd_lib.batches import (
    SAMPLINGS,
    Augmentation,
    BatchSource,
    Normalise,
    augment_crop,
    augment_resized_crop,
    balanced_batches,
    centre_crop,
    epoch_batches,
    evaluation_batches,
    overlapping_batches,
    pad_images,
    plain_batches,
    step_generator,
    triplet_batches,
)
from corsd_lib.datasets import ImageArrays, ImageData, ImageFiles
from corsd_lib.errors import CorsdError
from corsd_lib.methods import Batch


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _labels(*sizes: int) -> Tensor:
    """Shuffled labels with `sizes[c]` images of class c."""
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return labels[torch.randperm(len(labels), generator=_generator(1))]


def _images(count: int, side: int = 8, channels: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, channels, side, side), generator=_generator(2), dtype=torch.uint8)


def _data(labels: Tensor, stored: int = 8, side: int = 8, channels: int = 3, **changes: Any) -> ImageData:
    split = ImageArrays(_images(len(labels), stored, channels), labels, torch.arange(len(labels)))
    names = tuple(f"c{c}" for c in range(int(labels.max()) + 1))
    mean, std = (0.5, 0.4, 0.3)[:channels], (0.2, 0.25, 0.3)[:channels]
    data = ImageData("toy", split, split, names, names, torch.arange(len(names)), mean, std, side)
    return replace(data, **changes)


def _count(batches: list[Tensor], length: int) -> Tensor:
    """How often each row is drawn."""
    return torch.bincount(torch.cat(batches), minlength=length)


# --- generators ---


def test_a_generator_depends_on_its_place_alone() -> None:
    def first(*place: int) -> int:
        return int(torch.randint(2**62, (), generator=step_generator(*place)))

    places: list[tuple[int, ...]] = [(s, e, t) for s in range(3) for e in range(5) for t in range(40)]
    places += [(s, e) for s in range(3) for e in range(5)]
    drawn = [first(*place) for place in places]
    assert len(set(drawn)) == len(places)
    torch.manual_seed(5)
    assert [first(*place) for place in places] == drawn


def test_generators_of_neighbours_are_unrelated() -> None:
    draws = torch.stack([torch.rand(8, generator=step_generator(0, 3, step)) for step in range(2000)])
    correlation = torch.corrcoef(torch.cat([draws[:-1], draws[1:]], dim=1).T)
    assert (correlation - torch.eye(16)).abs().max() < 0.1  # 5 standard deviations of chance
    assert (draws.mean(0) - 0.5).abs().max() < 0.035


# --- plain ---


def test_plain_batches_are_shuffled_and_drop_the_incomplete_last() -> None:
    batches = plain_batches(_labels(5, 18), 5, _generator())
    assert [len(b) for b in batches] == [5, 5, 5, 5]
    assert _count(batches, 23).max() == 1
    assert torch.cat(batches).tolist() != sorted(torch.cat(batches).tolist())
    assert torch.cat(plain_batches(_labels(5, 18), 5, _generator(1))).tolist() != torch.cat(batches).tolist()


def test_plain_keeps_the_only_batch_whatever_its_size() -> None:
    (batch,) = plain_batches(_labels(3, 2), 8, _generator())
    assert sorted(batch.tolist()) == [0, 1, 2, 3, 4]


def test_plain_drops_other_rows_in_another_epoch() -> None:
    dropped = [set(range(23)) - set(torch.cat(plain_batches(_labels(23), 5, _generator(s))).tolist()) for s in range(40)]
    assert all(len(d) == 3 for d in dropped) and set().union(*dropped) == set(range(23))


# --- balanced ---

BALANCED = {
    "even": ((20,) * 10, 40, 4),
    "cut": ((20,) * 10, 43, 4),  # 43 images hold 10 classes of 4
    "rounded up": ((11,) * 4, 16, 4),  # 2.75 rounds of 4 images a class
    "uneven": ((3, 30, 7, 20, 11, 1, 16), 12, 3),
    "few classes": ((9, 40, 23), 32, 4),  # K grows to 10 to fill a batch
    "two": ((50, 4), 16, 2),
    "many": ((5,) * 37, 20, 2),
    "one class": ((12,), 6, 2),
    "small data": ((2, 2, 3), 64, 4),
}


@pytest.mark.parametrize("sizes,batch_size,wanted_k", BALANCED.values(), ids=list(BALANCED))
@pytest.mark.parametrize("seed", range(3))
def test_balanced_batches_keep_their_promises(sizes: tuple[int, ...], batch_size: int, wanted_k: int, seed: int) -> None:
    labels = _labels(*sizes)
    batches = balanced_batches(labels, batch_size, _generator(seed), wanted_k)
    k = max(wanted_k, min(batch_size, sum(sizes)) // len(sizes))
    plain = sum(map(len, plain_batches(labels, batch_size, _generator(seed))))
    rounds = max(1, round(plain / len(sizes) / k))
    assert torch.bincount(labels[torch.cat(batches)]).tolist() == [rounds * k] * len(sizes)  # every class equally often
    assert all(len(b) == min(len(sizes), batch_size // k) * k for b in batches[:-1])  # P x K
    for batch in batches:
        assert 0 < len(batch) <= batch_size
        of = labels[batch].view(-1, k)
        assert (of == of[:, :1]).all()  # K rows of a class stand together
        assert len(of[:, 0].unique()) == len(of)  # and no class stands twice in a batch
        for group in batch.view(-1, k):  # nor an image of a class that has enough
            assert len(group.unique()) == min(k, sizes[labels[group[0]]])


@pytest.mark.parametrize(
    "classes,per_class,batch_size", [(10, 5, 128), (10, 10, 64), (10, 20, 128), (10, 50, 128), (100, 100, 64)]
)
def test_an_epoch_of_balanced_batches_passes_about_the_images_of_plain_ones(
    classes: int, per_class: int, batch_size: int
) -> None:
    labels = _labels(*(per_class,) * classes)
    plain, balanced = (draw(labels, batch_size, _generator(0)) for draw in (plain_batches, balanced_batches))
    assert sum(map(len, balanced)) == pytest.approx(sum(map(len, plain)), rel=0.07)


def test_balanced_reads_a_class_through_before_it_reads_it_again() -> None:
    labels = _labels(3, 30, 17)
    count = _count(balanced_batches(labels, 12, _generator(), 4), len(labels))
    # round(50 / 3 / 4) = 4 rounds of 4 rows of each class
    assert sorted(count[labels == 0].tolist()) == [5, 5, 6]
    assert sorted(count[labels == 1].tolist()) == [0] * 14 + [1] * 16
    assert sorted(count[labels == 2].tolist()) == [0] + [1] * 16


def test_balanced_is_another_draw_in_another_epoch_and_the_same_for_a_seed() -> None:
    labels = _labels(8, 8, 8, 8)
    first, again, other = (torch.cat(balanced_batches(labels, 8, _generator(s), 2)).tolist() for s in (0, 0, 1))
    assert first == again and first != other


def test_balanced_mixes_the_classes_of_a_batch_evenly() -> None:
    labels = _labels(*(4,) * 6)
    together = torch.zeros(6, 6)
    for seed in range(300):
        for batch in balanced_batches(labels, 4, _generator(seed), 2):
            together[tuple(labels[batch].view(-1, 2)[:, 0].tolist())] += 1
    pairs = (together + together.T)[torch.triu_indices(6, 6, 1).unbind()]
    expected = 300 * 2 * 3 / 15  # 2 rounds of 3 batches, 15 pairs of classes
    assert (pairs - expected).abs().max() < 5 * expected**0.5


@pytest.mark.parametrize("batch_size,k", [(8, 1), (3, 4)])
def test_balanced_wants_room_for_two_of_a_class(batch_size: int, k: int) -> None:
    with pytest.raises(CorsdError, match=rf"2 <= samples_per_class <= batch_size; got {k} and {batch_size}"):
        balanced_batches(_labels(*(4,) * 9), batch_size, _generator(), k)


# --- triplets ---


@pytest.mark.parametrize("sizes,batch_size", [((6, 9, 5), 6), ((2, 2), 12), ((1, 7, 4), 5), ((30, 1), 100)])
@pytest.mark.parametrize("seed", range(3))
def test_triplets_are_anchor_same_and_other(sizes: tuple[int, ...], batch_size: int, seed: int) -> None:
    labels = _labels(*sizes)
    batches = triplet_batches(labels, batch_size, _generator(seed))
    anchors, same, other = torch.cat([b.view(3, -1) for b in batches], dim=1)
    assert len(anchors) == len(anchors.unique())  # each row once
    assert len(batches) == max(1, len(labels) // (batch_size // 3))
    assert (labels[same] == labels[anchors]).all() and (labels[other] != labels[anchors]).all()
    alone = torch.tensor(sizes)[labels[anchors]] == 1
    assert torch.equal(same == anchors, alone)  # only a class of one image is its own partner


def test_every_row_is_an_anchor_once_an_epoch() -> None:
    labels = _labels(6, 9, 5)
    anchors = torch.cat([b[: len(b) // 3] for b in triplet_batches(labels, 12, _generator())])
    assert sorted(anchors.tolist()) == list(range(20))


def test_partners_of_triplets_are_drawn_evenly() -> None:
    labels = _labels(3, 5, 4)
    same, other = torch.zeros(12, 12), torch.zeros(12, 12)
    epochs = 3000
    for seed in range(epochs):
        for batch in triplet_batches(labels, 36, _generator(seed)):
            a, s, o = batch.view(3, -1)
            same[a, s] += 1
            other[a, o] += 1
    equal = labels[:, None] == labels[None, :]
    partners = (equal & ~torch.eye(12, dtype=torch.bool)).float()
    for seen, allowed in ((same, partners), (other, (~equal).float())):
        expected = epochs * allowed / allowed.sum(1, keepdim=True)
        assert (seen[allowed == 0] == 0).all()
        assert ((seen - expected).abs() <= 5 * expected.sqrt()).all()


@pytest.mark.parametrize(
    "sizes,batch_size,message",
    [
        ((5, 5), 2, "batch_size = 2; allowed for triplets: at least 3"),
        ((9,), 9, "number of classes of the labels = 1; allowed for triplets: at least 2"),
    ],
)
def test_triplets_want_two_classes_and_three_images(sizes: tuple[int, ...], batch_size: int, message: str) -> None:
    with pytest.raises(CorsdError, match=message):
        triplet_batches(_labels(*sizes), batch_size, _generator())


@pytest.mark.parametrize("count,batch_size", [(30, 6), (31, 6), (29, 7), (12, 12), (8, 2)])
@pytest.mark.parametrize("seed", range(3))
def test_half_of_an_overlapping_batch_is_half_of_the_one_before(count: int, batch_size: int, seed: int) -> None:
    half = batch_size // 2
    batches = overlapping_batches(_labels(count), batch_size, _generator(seed))
    assert len(batches) == count // half and {len(batch) for batch in batches} == {2 * half}
    for before, batch in zip([batches[-1], *batches], batches, strict=False):
        assert torch.equal(batch[:half], before[half:])
    counts = _count(batches, count)
    assert sorted(counts.tolist()) == [0] * (count % half) + [2] * (count - count % half)  # new once, repeated once
    other = overlapping_batches(_labels(count), batch_size, _generator(seed + 10))
    assert not torch.equal(torch.cat(batches), torch.cat(other))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_too_few_images_to_overlap_are_one_batch(count: int) -> None:
    (batch,) = overlapping_batches(_labels(count), 8, _generator())
    assert sorted(batch.tolist()) == list(range(count))


def test_overlapping_batches_want_two_images() -> None:
    with pytest.raises(CorsdError, match="overlapping batches need a batch_size of at least 2; got 1"):
        overlapping_batches(_labels(9), 1, _generator())


def test_an_unknown_sampling_is_named() -> None:
    with pytest.raises(CorsdError, match="sampling 'pairs' is not known; allowed: plain, balanced, triplet"):
        epoch_batches(_labels(4, 4), "pairs", 4, 2, _generator())


# --- augmentation of whole batches ---


@pytest.mark.parametrize("mode,numpy_mode", [("reflect", "reflect"), ("zero", "constant")])
@pytest.mark.parametrize("padding", [0, 1, 3, 5])
def test_padding_is_that_of_numpy(mode: str, numpy_mode: Any, padding: int) -> None:
    images = torch.randint(0, 256, (2, 3, 6, 7), generator=_generator(), dtype=torch.uint8)
    expected = np.pad(images.numpy(), ((0, 0), (0, 0), (padding, padding), (padding, padding)), numpy_mode)
    assert np.array_equal(pad_images(images, padding, mode).numpy(), expected)


def test_padding_errors_are_named() -> None:
    with pytest.raises(CorsdError, match="padding mode 'mirror' is not known; allowed: reflect, zero"):
        pad_images(_images(1), 2, "mirror")
    with pytest.raises(CorsdError, match="reflect padding 8 must be smaller than the image side 8"):
        pad_images(_images(1), 8)


def _crop_one_by_one(padded: Tensor, rows: Tensor, size: int, draw: Tensor, flip: bool, cutout: int) -> Tensor:
    out = []
    for i, row in enumerate(rows.tolist()):
        y, x = (int(draw[d, i] * (padded.shape[2 + d] - size + 1)) for d in (0, 1))
        image = padded[row, :, y : y + size, x : x + size].clone()
        if flip and draw[2, i] < 0.5:
            image = torch.from_numpy(image.numpy()[:, :, ::-1].copy())
        if cutout:
            top, left = (int(draw[3 + d, i] * size) - cutout // 2 for d in (0, 1))
            image[:, max(top, 0) : max(top + cutout, 0), max(left, 0) : max(left + cutout, 0)] = 128
        out.append(image)
    return torch.stack(out)


@pytest.mark.parametrize("mode", ["reflect", "zero"])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("cutout", [0, 1, 4, 5])
def test_crop_flip_and_cutout_are_those_of_a_loop(mode: str, flip: bool, cutout: int) -> None:
    padded = pad_images(_images(9), 2, mode)
    before = padded.clone()
    rows = torch.randint(0, 9, (40,), generator=_generator(3))
    out = augment_crop(padded, rows, 8, _generator(4), flip, cutout)
    draw = torch.rand(5, 40, generator=_generator(4))
    assert out.dtype == torch.uint8 and torch.equal(out, _crop_one_by_one(padded, rows, 8, draw, flip, cutout))
    assert torch.equal(padded, before)  # the stored images stay as they are


def test_every_crop_and_flip_comes_up_equally_often() -> None:
    padded = torch.arange(25, dtype=torch.uint8).view(1, 1, 5, 5)  # the first pixel of a 3 x 3 crop tells its place
    out = augment_crop(padded, torch.zeros(9000, dtype=torch.long), 3, _generator(), flip=True)
    mirrored = out[:, 0, 0, 0] > out[:, 0, 0, 2]
    corner = torch.where(mirrored, out[:, 0, 0, 2], out[:, 0, 0, 0]).long()
    count = torch.bincount(corner, minlength=25).view(5, 5)
    assert count.sum() == count[:3, :3].sum() and (count[:3, :3] - 1000).abs().max() < 150
    assert (mirrored.sum() - 4500).abs() < 240


def test_cutout_is_centred_anywhere_in_the_image() -> None:
    white = torch.full((1, 1, 6, 6), 255, dtype=torch.uint8)
    out = augment_crop(white, torch.zeros(3600, dtype=torch.long), 6, _generator(), flip=False, cutout=1)
    assert torch.equal(out.unique(), torch.tensor([128, 255], dtype=torch.uint8))
    assert (((out == 128).sum(0) - 100).abs() < 50).all()


def test_resized_crop_draws_for_each_image_and_leaves_the_global_generator() -> None:
    images = _images(1, 32).expand(6, -1, -1, -1)
    before = torch.get_rng_state()
    first, again, other = (augment_resized_crop(images, 16, _generator(s), 0.4) for s in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert first.shape == (6, 3, 16, 16) and first.dtype == torch.uint8
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len({image.numpy().tobytes() for image in first}) == 6


def test_resized_crop_keeps_at_least_its_share_of_the_area() -> None:
    ramp = torch.arange(64, dtype=torch.uint8).expand(500, 1, 64, 64)  # value = column: the spread tells the width
    out = augment_resized_crop(ramp, 64, _generator(), scale=0.4).float()
    widths = (out.amax((1, 2, 3)) - out.amin((1, 2, 3)) + 1) / 64
    assert widths.min() > (0.4 * 3 / 4) ** 0.5 - 0.05 and widths.min() < 0.7 and widths.max() > 0.95


@pytest.mark.parametrize("stored,size", [(8, 8), (9, 8), (11, 8), (8, 5)])
def test_centre_crop_leaves_equal_margins(stored: int, size: int) -> None:
    image = torch.arange(stored * stored).view(1, 1, stored, stored)
    out = centre_crop(image, size)
    top = (stored - size) // 2
    assert torch.equal(out, image[:, :, top : top + size, top : top + size])
    assert 0 <= (stored - size - top) - top <= 1


def test_normalise_is_the_formula_for_every_channel() -> None:
    data = _data(_labels(4))
    images = _images(4)
    out = Normalise(data)(images)
    for c in range(3):
        expected = (images[:, c].double() / 255 - data.mean[c]) / data.std[c]
        torch.testing.assert_close(out[:, c].double(), expected, atol=1e-6, rtol=1e-5)
    assert out.dtype == torch.float32 and images.dtype == torch.uint8


# --- the source ---


def _source(data: ImageData | None = None, augmentation: str | None = None, **options: Any) -> BatchSource:
    how = {name: options.pop(name) for name in ("padding", "padding_mode", "cutout") if name in options}
    options["augmentation"] = Augmentation(augmentation, **how) if how else augmentation
    return BatchSource(data or _data(_labels(9, 12, 10)), **{"batch_size": 6, "seed": 3, **options})


def _same(a: Batch, b: Batch) -> bool:
    """Equal in all that a method can see, the next random numbers among it."""
    assert a.generator is not None and b.generator is not None
    tensors = all(torch.equal(getattr(a, f), getattr(b, f)) for f in ("images", "labels", "indices"))
    return tensors and a[3:4] + a[5:] == b[3:4] + b[5:] and torch.equal(a.generator.get_state(), b.generator.get_state())


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("augmentation", ["none", "crop", "crop_flip", "resized_crop"])
def test_a_resumed_epoch_is_the_tail_of_the_whole_one(sampling: str, augmentation: str) -> None:
    options: dict[str, Any] = {"sampling": sampling, "samples_per_class": 2, "augmentation": augmentation, "cutout": 3}
    data = _data(_labels(9, 12, 10), stored=10)
    whole = list(_source(data, **options)(2, 0, lambda step: step / 10))
    assert len(whole) >= 4
    for start in (1, len(whole) - 1, len(whole)):
        torch.rand(3)
        tail = list(_source(data, **options)(2, start, lambda step: step / 10))
        assert len(tail) == len(whole) - start
        assert all(_same(a, b) for a, b in zip(whole[start:], tail, strict=True))
    assert whole[-1].progress == (len(whole) - 1) / 10 and whole[0].sampling == sampling


def test_epochs_seeds_and_steps_differ_in_rows_and_in_crops() -> None:
    one = _data(torch.zeros(1, dtype=torch.long).repeat(8))
    one = replace(one, train=ImageArrays(one.train.images[:1].repeat(8, 1, 1, 1), one.train.labels, one.train.index))  # type: ignore[union-attr]

    def pixels(seed: int, epoch: int) -> list[bytes]:
        return [batch.images.numpy().tobytes() for batch in _source(one, batch_size=4, seed=seed)(epoch)]

    seen = [*pixels(0, 0), *pixels(0, 1), *pixels(1, 0)]
    assert len(set(seen)) == 6  # the same image eight times: all that differs are the crops
    orders = [torch.cat(_source(seed=s).indices(e)).tolist() for s, e in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert orders[0] == orders[3] and orders[0] != orders[1] and orders[0] != orders[2]


def test_rows_name_the_images_and_labels_of_a_batch() -> None:
    data = _data(_labels(9, 12, 10), stored=11)
    split, normalise = data.train, Normalise(data)
    assert isinstance(split, ImageArrays)
    for batch, rows in zip(_source(data, augmentation="none")(0), _source(data).indices(0), strict=True):
        assert torch.equal(batch.indices, rows) and torch.equal(batch.labels, split.labels[rows])
        assert torch.equal(batch.images, normalise(centre_crop(split.images[rows], 8)))


def test_a_crop_shows_the_image_of_its_row() -> None:
    labels = torch.arange(12) % 3
    flat = (torch.arange(12, dtype=torch.uint8) * 20).view(12, 1, 1, 1).expand(12, 3, 10, 10)
    data = replace(_data(labels), train=ImageArrays(flat.contiguous(), labels, torch.arange(12)))
    for augmentation in ("crop", "crop_flip", "resized_crop"):
        for batch in _source(data, augmentation=augmentation)(0):
            grey = (batch.images * torch.tensor(data.std).view(1, 3, 1, 1) + torch.tensor(data.mean).view(1, 3, 1, 1)) * 255
            assert torch.equal(grey.round().long(), (batch.indices * 20).view(-1, 1, 1, 1).expand(-1, 3, 8, 8))


def test_the_default_augmentation_is_that_of_the_data() -> None:
    for name in ("crop", "crop_flip", "resized_crop"):
        data = _data(_labels(9, 12, 10), stored=12, augmentation=name)
        (a, *_), (b, *_) = _source(data)(0), _source(data, augmentation=name)(0)
        assert torch.equal(a.images, b.images)
    (plain, *_), (crop, *_) = _source(augmentation="none")(0), _source(augmentation="crop")(0)
    assert not torch.equal(plain.images, crop.images)


def test_padding_defaults_to_an_eighth_of_the_side() -> None:
    data = _data(_labels(4, 4), stored=32, side=32)
    assert _source(data).images.shape[-1] == 32 + 2 * 4
    assert _source(_data(_labels(4, 4), stored=6, side=6)).images.shape[-1] == 6 + 2 * 1
    one = _data(_labels(4, 4), stored=1, side=1)  # has no neighbour to reflect
    assert [_source(one, padding_mode=mode).images.shape[-1] for mode in ("reflect", "zero")] == [1, 3]
    black = _source(data, padding=5, padding_mode="zero").images
    assert black.shape[-1] == 42 and black[..., :5, :].max() == 0


@pytest.mark.parametrize("augmentation", ["none", "crop", "crop_flip", "resized_crop"])
def test_cutout_is_cut_whatever_the_augmentation(augmentation: str) -> None:
    labels = _labels(6, 6)
    white = ImageArrays(torch.full((12, 3, 8, 8), 255, dtype=torch.uint8), labels, torch.arange(12))
    source = _source(replace(_data(labels), train=white), augmentation=augmentation, cutout=4)
    for batch in source(0):
        dark = (batch.images < batch.images.max()).all(1).sum((1, 2))
        assert (dark >= 4).all() and (dark <= 16).all()  # a quarter of it at least is inside


@pytest.mark.parametrize("sampling", ["plain", "balanced", "triplet"])
@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_an_epoch_without_overlap(sampling: str, world: int) -> None:
    data = _data(_labels(19, 22, 20))
    options: dict[str, Any] = {"sampling": sampling, "samples_per_class": 2}
    alone = _source(data, **options).indices(1)
    shares = [_source(data, rank=rank, world_size=world, **options).indices(1) for rank in range(world)]
    assert {len(share) for share in shares} == {len(alone) // world}
    woven = [batch for batches in zip(*shares, strict=True) for batch in batches]
    assert all(torch.equal(a, b) for a, b in zip(woven, alone, strict=False))
    if sampling == "plain":
        assert _count(woven, len(data.train)).max() == 1


@pytest.mark.parametrize("world", [2, 3])
def test_overlapping_batches_keep_their_neighbours_in_several_processes(world: int) -> None:
    data = _data(_labels(19, 22, 20))
    alone = _source(data, sampling="overlapping").indices(1)
    shares = [_source(data, sampling="overlapping", rank=rank, world_size=world).indices(1) for rank in range(world)]
    assert {len(share) for share in shares} == {len(alone) // world}
    assert all(torch.equal(a[3:], b[:3]) for share in shares for a, b in pairwise(share))
    assert all(torch.equal(a, b) for a, b in zip((b for share in shares for b in share), alone, strict=False))


def test_a_repeated_image_is_cropped_anew() -> None:
    first, second = list(_source(_data(_labels(12), stored=10), sampling="overlapping", augmentation="crop")(0))[:2]
    assert torch.equal(first.indices[3:], second.indices[:3]) and not torch.equal(first.images[3:], second.images[:3])


def test_processes_draw_other_crops() -> None:
    same = _data(torch.zeros(12, dtype=torch.long))
    same = replace(same, train=ImageArrays(_images(1).repeat(12, 1, 1, 1), same.train.labels, same.train.index))
    first, second = (next(_source(same, rank=rank, world_size=2)(0)).images for rank in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"augmentation": "flip"}, "augmentation 'flip' is not known; allowed: none, crop, crop_flip, resized_crop"),
        ({"sampling": "pairs"}, "sampling 'pairs' is not known; allowed: plain, balanced, triplet"),
        ({"padding_mode": "mirror", "augmentation": "none"}, "padding mode 'mirror' is not known; allowed: reflect, zero"),
        ({"padding": 8}, "reflect padding 8 must be smaller than the image side 8"),
        ({"padding": -1}, "padding = -1 must be at least 0"),
        ({"batch_size": 0}, "batch_size = 0 must be at least 1"),
        ({"cutout": -2}, "cutout = -2 must be at least 0"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CorsdError, match=message):
        _source(**options)


# --- streaming from files ---


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    """Ten pictures of several shapes, three of them grey, as files."""
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for i in range(10):
        shape = (30 + 3 * i, 44 - 2 * i, 3) if i % 3 else (40, 25 + i)
        Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{i}.png")
    labels = torch.arange(10) % 2
    files = ImageFiles(tuple(str(folder / f"{i}.png") for i in range(10)), labels, torch.arange(10), 16)
    return replace(_data(labels), train=files, test=files, image_size=16, augmentation="resized_crop")


STREAMS = [("resized_crop", "plain", 0), ("crop_flip", "balanced", 5), ("none", "triplet", 0)]


@pytest.mark.parametrize("augmentation,sampling,cutout", STREAMS)
def test_streamed_batches_are_the_same_whatever_the_workers(
    streamed: ImageData, augmentation: str, sampling: str, cutout: int
) -> None:
    def batches(workers: int, start: int = 0) -> Iterator[Batch]:
        options = {"augmentation": augmentation, "sampling": sampling, "cutout": cutout, "samples_per_class": 2}
        return _source(streamed, batch_size=4, workers=workers, **options)(1, start)

    before = torch.get_rng_state()
    alone, helped, tail = list(batches(0)), list(batches(2)), list(batches(2, start=1))
    assert torch.equal(before, torch.get_rng_state())  # a loader takes its seed from torch's generator, if it is let
    assert len(alone) >= 2 and alone[0].images.shape[1:] == (3, 16, 16)
    assert all(_same(a, b) for a, b in zip(alone, helped, strict=True))
    assert all(_same(a, b) for a, b in zip(alone[1:], tail, strict=True))


def test_streamed_images_are_augmented_as_asked(streamed: ImageData) -> None:
    def pixels(augmentation: str, epoch: int = 0, **options: Any) -> Tensor:
        return next(_source(streamed, workers=0, augmentation=augmentation, **options)(epoch)).images

    plain = next(_source(streamed, workers=0, augmentation="none")(0))
    expected = torch.stack([_centre_of_file(streamed, int(row)) for row in plain.indices])
    assert torch.equal(plain.images, Normalise(streamed)(expected))
    cropped = Normalise(streamed)(
        augment_crop(pad_images(expected, 2), torch.arange(6), 16, step_generator(3, 0, 0, 0), flip=True)
    )
    assert torch.equal(pixels("crop_flip"), cropped)
    kinds = {
        pixels(a, **o).numpy().tobytes() for a in ("none", "crop", "crop_flip", "resized_crop") for o in ({}, {"cutout": 5})
    }
    assert len(kinds) == 8
    whole = next(_source(replace(streamed, crop_scale=1.0), workers=0, augmentation="resized_crop")(0)).images
    assert not torch.equal(whole, pixels("resized_crop"))


def _centre_of_file(data: ImageData, row: int) -> Tensor:
    assert isinstance(data.train, ImageFiles)
    return centre_crop(tv.resize(data.train.load(row), [round(16 * 8 / 7)], antialias=True), 16)


@pytest.mark.parametrize("augmentation", ["resized_crop", "none"])
def test_streamed_images_are_resized_with_their_channels_last_and_arrive_as_any_other(
    streamed: ImageData, augmentation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch resizes that layout twice as fast; a batch of it would train with other last bits than one from workers."""
    assert isinstance(streamed.train, ImageFiles) and streamed.train.load(0).stride(0) == 1
    batch = next(_source(streamed, workers=0, augmentation=augmentation)(0))
    assert batch.images.is_contiguous()
    load = ImageFiles.load
    monkeypatch.setattr(ImageFiles, "load", lambda self, i: load(self, i).contiguous())
    assert torch.equal(batch.images, next(_source(streamed, workers=0, augmentation=augmentation)(0)).images)


def test_an_image_that_comes_twice_is_cropped_twice(streamed: ImageData) -> None:
    few = replace(streamed, train=streamed.train.subset(torch.tensor([0, 1])))
    (batch,) = _source(few, sampling="balanced", batch_size=8, workers=0)(0)
    assert sorted(batch.indices.tolist()) == [0] * 4 + [1] * 4
    assert len({image.numpy().tobytes() for image in batch.images}) == 8


def test_ctrl_c_in_a_terminal_does_not_reach_the_workers(streamed: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    load = ImageFiles.load

    def watched(self: ImageFiles, i: int) -> Tensor:
        if get_worker_info() is None or signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            raise CorsdError("a worker that SIGINT ends, in the middle of an epoch")
        return load(self, i)

    monkeypatch.setattr(ImageFiles, "load", watched)
    assert len(list(_source(streamed, workers=1)(0))) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_one_line_from_a_worker_too(streamed: ImageData, tmp_path: Path, workers: int) -> None:
    whole, broken = streamed.train, tmp_path / "broken.png"
    assert isinstance(whole, ImageFiles)
    broken.write_bytes(Path(whole.paths[0]).read_bytes()[:200])
    files = replace(whole, paths=(str(broken), *whole.paths[1:]))
    with pytest.raises(CorsdError, match=str(broken)) as caught:
        list(_source(replace(streamed, train=files), workers=workers)(0))
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)
    assert not multiprocessing.active_children()  # the workers are gone already, and need not be waited for later


# --- evaluation ---


@pytest.mark.parametrize("batch_size", [4, 31, 512])
def test_evaluation_keeps_the_order_and_the_centre(batch_size: int) -> None:
    data = _data(_labels(9, 12, 10), stored=11)
    assert isinstance(data.test, ImageArrays)
    parts = list(evaluation_batches(data, data.test, batch_size=batch_size))
    assert [len(labels) for _, labels in parts] == [len(c) for c in torch.arange(31).split(batch_size)]
    assert torch.equal(torch.cat([labels for _, labels in parts]), data.test.labels)
    images = torch.cat([images for images, _ in parts])
    assert torch.equal(images, Normalise(data)(data.test.images[:, :, 1:9, 1:9]))


def test_evaluation_of_files_is_that_of_a_loop(streamed: ImageData) -> None:
    expected = Normalise(streamed)(torch.stack([_centre_of_file(streamed, i) for i in range(10)]))
    before = torch.get_rng_state()
    for workers in (0, 2):
        parts = list(evaluation_batches(streamed, streamed.test, batch_size=4, workers=workers))
        assert torch.equal(torch.cat([images for images, _ in parts]), expected)
        assert torch.equal(torch.cat([labels for _, labels in parts]), streamed.test.labels)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("sampling", ["plain", "balanced", "triplet"])
def test_images_of_the_first_steps_are_those_of_all_processes(sampling: str) -> None:
    sources = [_source(_data(_labels(9, 9, 9)), sampling=sampling, batch_size=6, rank=rank, world_size=2) for rank in (0, 1)]
    for steps in range(len(sources[0].indices(3)) + 1):
        seen = sum(len(rows) for source in sources for rows in source.indices(3)[:steps])
        assert [source.num_images(3, steps) for source in sources] == [seen, seen]
