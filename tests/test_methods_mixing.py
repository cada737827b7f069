"""Methods that mix images: what they draw, against torchvision's on the same draw, and what is asked of the mixture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from corsd_lib import losses
from corsd_lib.errors import CorsdError
from corsd_lib.methods import METHODS, Batch, Method, build_method
from corsd_lib.methods.mixing import class_partners, rectangle
from corsd_lib.network import ExitOutputs, build_network

CLASSES = 4


def make_batch(count: int = 6, sides: tuple[int, int] = (9, 7), seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.randn(count, 3, *sides, generator=generator), torch.arange(count) % CLASSES
    return Batch(images, labels, torch.arange(count), generator=generator)


def drawn(method: Method, batch: Batch, **changes: Tensor) -> Batch:
    return batch._replace(random={**method.sample(batch), **changes})


def outputs(count: int, exits: int = 3) -> ExitOutputs:
    return ExitOutputs([], [], list(torch.randn(exits, count, CLASSES, generator=torch.Generator().manual_seed(1))))


class Fixed:
    """A distribution with one value."""

    def __init__(self, value: float) -> None:
        self.value = value

    def sample(self, shape: tuple[int, ...]) -> Tensor:
        return torch.tensor(self.value)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixup_is_that_of_torchvision_on_the_same_draw(share: float) -> None:
    method, batch = build_method("mixup"), make_batch()
    partner = torch.arange(6).roll(1)  # torchvision mixes each image with the one before it
    theirs = v2.MixUp(num_classes=CLASSES)
    theirs._dist = Fixed(share)  # type: ignore[assignment]
    images, targets = theirs(batch.images, batch.labels)
    batch = drawn(method, batch, partner=partner, share=torch.tensor(share))
    torch.testing.assert_close(method.transform_images(batch), images)
    out = outputs(6)
    assert method(out, batch)["task"].item() == pytest.approx(F.cross_entropy(out.logits[-1], targets).item(), rel=1e-5)


@pytest.mark.parametrize("name", ["cutmix", "cutmix_exits"])
@pytest.mark.parametrize("place", [(0, 0), (8, 6), (4, 3), (1, 5)])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99, 1.0])
def test_cutmix_is_that_of_torchvision_on_the_same_draw(
    name: str, share: float, place: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    method, batch = build_method(name), make_batch()
    theirs = v2.CutMix(num_classes=CLASSES)
    theirs._dist = Fixed(share)  # type: ignore[assignment]
    drawn_centre = iter((place[1], place[0]))
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.tensor([next(drawn_centre)]))
    images, targets = theirs(batch.images, batch.labels)
    box = rectangle(batch.images.shape[-2:], 1 - share, [(place[0] + 0.5) / 9, (place[1] + 0.5) / 7])
    draws = {"partner": torch.arange(6).roll(1), "share": 1 - box.float().mean(), "box": box}
    batch = batch._replace(random=draws)
    assert torch.equal(method.transform_images(batch), images)
    out = outputs(6)
    parts = method(out, batch)
    assert parts["task"].item() == pytest.approx(F.cross_entropy(out.logits[-1], targets).item(), rel=1e-5)
    if name == "cutmix_exits":
        shallow = sum(F.cross_entropy(z, targets).item() for z in out.logits[:-1])
        assert parts["exit_ce"].item() == pytest.approx(shallow, rel=1e-5)


@pytest.mark.parametrize("name", ["mixup", "cutmix", "cutmix_exits"])
def test_a_draw_is_a_permutation_and_a_share_that_fits_what_is_seen(name: str) -> None:
    method, seen = build_method(name), []
    for seed in range(30):
        batch = drawn(method, make_batch(seed=seed))
        assert batch.random is not None
        partner, share = batch.random["partner"], batch.random["share"]
        assert sorted(partner.tolist()) == list(range(6)) and 0 <= share <= 1
        seen.append((share.item(), partner.tolist()))
        white = batch._replace(images=torch.ones(6, 1, 9, 7) * torch.arange(6.0).view(6, 1, 1, 1))
        wanted = share * torch.arange(6) + (1 - share) * partner
        torch.testing.assert_close(method.transform_images(white).mean((1, 2, 3)), wanted)
    assert len({share for share, _ in seen}) > 10 and len({tuple(partner) for _, partner in seen}) > 10


def test_shares_are_of_the_beta_distribution_and_of_the_generator_alone() -> None:
    for alpha in (0.2, 1.0, 8.0):
        method = build_method("mixup", alpha=alpha)
        batches = [make_batch(2, (1, 1), seed) for seed in range(2000)]
        shares = torch.stack([method.sample(batch)["share"] for batch in batches]).double()
        variance = 1 / (4 * (2 * alpha + 1))
        assert shares.mean().item() == pytest.approx(0.5, abs=4 * (variance / 2000) ** 0.5)
        assert shares.var().item() == pytest.approx(variance, rel=0.1)
    again = [method.sample(make_batch(2, (1, 1), seed))["share"].item() for seed in range(5)]
    assert again == shares[:5].tolist()


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_a_share_of_the_batches_is_left_as_it_is(name: str) -> None:
    whole = 0
    for seed in range(200):
        batch = make_batch(seed=seed)
        method = build_method(name, mixed_batches=0.5, alpha=50.0)
        batch = drawn(method, batch)
        assert batch.random is not None
        if batch.random["share"] == 1:
            whole += 1
            assert torch.equal(method.transform_images(batch), batch.images)
    assert 70 < whole < 130


@pytest.mark.parametrize("name", ["mixup", "cutmix", "cutmix_exits", "ips"])
def test_a_mixture_keeps_the_memory_format_and_the_batch(name: str) -> None:
    method = build_method(name)
    batch = make_batch()
    batch = drawn(method, batch._replace(images=batch.images.contiguous(memory_format=torch.channels_last)))
    before = batch.images.clone()
    assert method.transform_images(batch).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch.images, before)


@pytest.mark.parametrize("name", ["mixup", "cutmix", "cutmix_exits", "ips"])
def test_without_a_draw_nothing_is_mixed_twice(name: str) -> None:
    method = build_method(name)
    for call in (lambda: method.transform_images(make_batch()), lambda: method(outputs(6), make_batch())):
        with pytest.raises(
            CorsdError, match=rf"method '{name}': batch.random is None; allowed: what its sample\(batch\) returned"
        ):
            call()


@pytest.mark.parametrize(
    ("options", "words"),
    [({"alpha": 0.0}, "alpha = 0.0 must be above 0"), ({"mixed_batches": 1.5}, "mixed_batches = 1.5 must be at most 1")],
)
def test_bad_options_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(CorsdError, match=words):
        build_method("cutmix", **options)


@pytest.mark.parametrize(("name", "exits"), [("mixup", 1), ("cutmix", 1), ("cutmix_exits", 3), ("ips", 1)])
def test_the_exits_are_those_of_the_method(name: str, exits: int) -> None:
    network = build_network("resnet8", CLASSES, width=4, exits=METHODS[name].exits, image_size=8)
    assert len(network.exits) == exits


# --- intra-class patch swap ---


def pairs_of(labels: list[int], sides: tuple[int, int] = (9, 7), seed: int = 0) -> Batch:
    """Images of one grey each, that of their place in the batch."""
    images = torch.arange(len(labels)).float().view(-1, 1, 1, 1).expand(-1, 3, *sides).contiguous()
    return Batch(images, torch.tensor(labels), torch.arange(len(labels)), "balanced", torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2], [0, 1, 2, 0, 0, 1, 3, 0, 0], [5], [1, 1, 1], [0, 1, 2]], ids=str)
def test_partners_are_of_the_class_and_as_many_as_there_can_be(labels: list[int]) -> None:
    seen = set()
    for seed in range(20):
        partner = class_partners(torch.tensor(labels), torch.Generator().manual_seed(seed)).tolist()
        assert all(partner[j] == i and labels[i] == labels[j] for i, j in enumerate(partner))
        for label in set(labels):
            alone = [i for i, j in enumerate(partner) if i == j and labels[i] == label]
            assert len(alone) == labels.count(label) % 2
        seen.add(tuple(partner))
    assert len(seen) > 1 or max(labels.count(label) for label in labels) < 3


def test_a_pair_swaps_whole_patches_by_one_mask() -> None:
    """Patches of 4 pixels in images of 9 x 7: nine patches, those at the right and lower edge cut."""
    method, swapped = build_method("ips"), 0
    for seed in range(20):
        batch = drawn(method, pairs_of([0, 0, 1, 1, 2, 0], seed=seed))
        assert batch.random is not None and batch.random["swap"].shape == (6, 1, 3, 2)
        partner, images = batch.random["partner"].tolist(), method.transform_images(batch)
        for i, j in enumerate(partner):
            assert set(images[i].unique().tolist()) <= {i, j}
            assert torch.equal(images[i] + images[j], torch.full_like(images[i], i + j))
            for rows, columns in ((slice(y, y + 4), slice(x, x + 4)) for y in (0, 4, 8) for x in (0, 4)):
                assert len(images[i, :, rows, columns].unique()) == 1
            swapped += int((images[i, 0, ::4, ::4] == j).sum()) * (i != j)
    pairs = 20 * 4 * 6  # four of the six images have a partner
    assert 0.4 < swapped / pairs < 0.6


@pytest.mark.parametrize(("options", "wanted"), [({"probability": 0.0}, 0), ({"share": 0.0}, 0), ({"probability": 1.0}, 1)])
def test_probability_and_share_say_how_much_is_swapped(options: dict[str, float], wanted: int) -> None:
    method = build_method("ips", **options)
    batch = drawn(method, pairs_of([0, 0, 1, 1, 2, 2]))
    assert torch.equal(method.transform_images(batch), batch.images[[0, 1, 2, 3, 4, 5] if not wanted else [1, 0, 3, 2, 5, 4]])


def test_a_share_of_the_pairs_is_swapped() -> None:
    method, swapped = build_method("ips", share=0.5, probability=1.0), 0
    for seed in range(50):
        batch = drawn(method, pairs_of([0, 0, 1, 1, 2, 2], seed=seed))
        moved = method.transform_images(batch)[:, 0, 0, 0] != batch.images[:, 0, 0, 0]
        assert moved[0] == moved[1] and moved[2] == moved[3] and moved[4] == moved[5]
        swapped += int(moved.sum()) // 2
    assert 50 < swapped < 100


@pytest.mark.parametrize("direction", ["symmetric", "confident"])
def test_the_images_of_a_pair_teach_each_other(direction: str) -> None:
    method = build_method("ips", direction=direction)
    batch, out = drawn(method, pairs_of([0, 0, 1, 1, 2, 0])), outputs(6, 1)
    assert batch.random is not None
    (z,), y, partner = out.logits, batch.labels, batch.random["partner"].tolist()
    sure = z.softmax(1)[torch.arange(6), y].tolist()
    taught = [(j, i) for i, j in enumerate(partner) if i != j and (direction == "symmetric" or sure[j] > sure[i])]
    assert len(taught) == (4 if direction == "symmetric" else 2)
    parts = method(out, batch)
    wanted = sum(losses.distillation(z[[j]], z[[i]], 4.0).item() for j, i in taught) / len(taught)
    assert parts["swap_kd"].item() == pytest.approx(wanted, rel=1e-5)
    assert parts["task"].item() == pytest.approx(F.cross_entropy(z, y).item(), rel=1e-5)


def test_without_kd_the_swap_is_an_augmentation_alone() -> None:
    method = build_method("ips", swap_kd=0.0)
    batch = drawn(method, pairs_of([0, 0, 1, 1]))
    assert set(method(outputs(4, 1), batch)) == {"total", "task"}
    assert not torch.equal(method.transform_images(batch), batch.images)


@pytest.mark.parametrize("patch", [9, 32])
def test_a_patch_that_holds_the_image_is_named(patch: int) -> None:
    method = build_method("ips", patch=patch)
    with pytest.raises(CorsdError, match=rf"method 'ips': patch = {patch} must be below the image side 9"):
        method.sample(pairs_of([0, 0]))
