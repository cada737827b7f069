"""Batches: sampling of indices (plain, balanced, triplet, overlapping), and augmentation of whole batches on the device.

The indices of an epoch are sampled with a generator seeded by (seed, epoch). All other random numbers of a batch come from one
seeded by (seed, epoch, step, rank), where rank is the number of the process. A batch therefore does not depend on the number of
workers, or on where a run was stopped and resumed.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from corsd_lib.datasets import AUGMENTATIONS as DATA_AUGMENTATIONS
from corsd_lib.datasets import ImageArrays, ImageData, ImageFiles, Split
from corsd_lib.errors import CorsdError, check_choice, shortened

__all__ = [
    "AUGMENTATIONS",
    "SAMPLINGS",
    "Augmentation",
    "Batch",
    "BatchSource",
    "augment_crop",
    "balanced_batches",
    "evaluation_batches",
    "overlapping_batches",
    "pad_images",
    "plain_batches",
    "step_generator",
    "triplet_batches",
]

AUGMENTATIONS = ("none", *DATA_AUGMENTATIONS)
SAMPLINGS = ("plain", "balanced", "triplet", "overlapping")
PADDING_MODES = ("reflect", "zero")
Item = tuple[int, int | None]  # index of a streamed image, and the seed of its random crop


class Batch(NamedTuple):
    """One training batch on the training device.

    `images` (B, C, H, W): float, normalised. `labels` (B,). `indices` (B,): positions of the images in the train split.
    `sampling`: how the images were sampled, one of `SAMPLINGS`. A "triplet" batch has one third anchors, then one third images
    of the same classes, then one third images of other classes. Half of an "overlapping" batch is from the previous batch.
    `generator`: a CPU generator, seeded for this step. `progress`: share of the whole training that is done, in [0, 1).
    `random`: the random tensors of the method for this batch, see `Method.sample`.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    sampling: str = "plain"
    generator: torch.Generator | None = None
    progress: float = 0.0
    random: Mapping[str, Tensor] | None = None


def step_generator(*numbers: int) -> torch.Generator:
    """A CPU generator seeded by `numbers`, such as (seed, epoch, step); generators of neighbouring numbers are independent."""
    seed = 0
    for number in numbers:  # splitmix64, because torch's own seeding makes the first numbers of neighbouring seeds correlate
        seed = (seed + number + 0x9E3779B97F4A7C15) % 2**64
        seed = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        seed = ((seed ^ (seed >> 27)) * 0x94D049BB133111EB) % 2**64
        seed ^= seed >> 31
    return torch.Generator().manual_seed(seed % 2**63)


# --- sampling -------------------------------------------------------------------------------------------------------


def plain_batches(labels: Tensor, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Shuffled indices int64 in batches (`batch_size`,); an incomplete last batch is dropped unless it is the only one."""
    order = torch.randperm(len(labels), generator=generator)
    full = len(order) // batch_size * batch_size
    return list(order[: full or len(order)].split(batch_size))


def balanced_batches(labels: Tensor, batch_size: int, generator: torch.Generator, samples_per_class: int = 4) -> list[Tensor]:
    """Batches of indices with K samples of each of P classes, P·K <= `batch_size`; an epoch samples all classes equally often.

    An epoch consists of rounds; a round takes K indices of each class. The number of rounds, at least one, is chosen so that an
    epoch has about as many images as with `plain_batches`. A small class is reshuffled and used again; a large class is used
    only in part. K is `samples_per_class`, or more (up to the mean class size) if there are too few classes to fill a batch. A
    class occurs at most once in a batch, with K images. Within a batch an image is repeated only if its class has fewer than K
    images. The last batch may be smaller. Raises `CorsdError` unless 2 <= K <= `batch_size`.
    """
    groups = _class_indices(labels)
    k = max(samples_per_class, min(batch_size // len(groups), len(labels) // len(groups)))
    if k < 2 or batch_size < k:
        raise CorsdError(
            f"balanced batches need 2 <= samples_per_class <= batch_size; got {shortened(k)} and {shortened(batch_size)}"
        )
    plain = len(labels) // batch_size * batch_size or len(labels)
    rounds = max(1, round(plain / (k * len(groups))))
    shuffled = [_repeated_permutations(group, -(-rounds * k // len(group)), k, generator) for group in groups]
    indices = [every[: rounds * k].view(rounds, k) for every in shuffled]
    classes = min(len(groups), batch_size // k)
    order = _repeated_permutations(torch.arange(len(groups)), rounds, classes, generator)
    taken = torch.zeros(len(groups), dtype=torch.long)
    batches = []
    for chunk in order.split(classes):
        batches.append(torch.cat([indices[c][taken[c]] for c in chunk.tolist()]))
        taken[chunk] += 1
    return batches


def triplet_batches(labels: Tensor, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Batches laid out as [anchors, positives (same class), negatives], `batch_size` // 3 indices each.

    Each index is an anchor at most once in an epoch, so an epoch over n images has at most 3n indices. An incomplete last batch
    is dropped unless it is the only one. The only image of a class is its own positive. Returns index tensors int64 (3 ·
    (`batch_size` // 3),); the only batch may be shorter. Raises `CorsdError` if there are fewer than two classes and if
    `batch_size` is below 3. Source: the code of the authors of CORSD.
    """
    if batch_size < 3:
        raise CorsdError(f"batch_size = {shortened(batch_size)}; allowed for triplets: at least 3")
    if (classes := len(labels.unique())) < 2:
        raise CorsdError(f"number of classes of the labels = {classes}; allowed for triplets: at least 2")
    anchors = plain_batches(labels, batch_size // 3, generator)
    by_class = labels.argsort(stable=True)
    _, inverse, sizes = labels.unique(return_inverse=True, return_counts=True)
    starts = sizes.cumsum(0) - sizes
    position = torch.empty_like(by_class).scatter_(0, by_class, torch.arange(len(labels)))
    batches = []
    for a in anchors:
        size, start = sizes[inverse[a]], starts[inverse[a]]
        hop = 1 + _randint(size - 1, generator)  # 1 .. size - 1: any position in the class except the anchor's
        same = start + torch.where(size > 1, (position[a] - start + hop) % size, torch.zeros_like(size))
        other = _randint(len(labels) - size, generator)
        other += torch.where(other >= start, size, torch.zeros_like(size))  # skip the anchor's class
        batches.append(torch.cat([a, by_class[same], by_class[other]]))
    return batches


def overlapping_batches(labels: Tensor, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Shuffled indices such that the first half of a batch is the second half of the previous one.

    The first batch begins with the second half of the last batch. Each index is therefore in two batches, and an epoch over n
    images has 2n indices. An odd `batch_size` is rounded down, and an incomplete half is dropped. If the indices do not fill
    two halves, there is a single batch of all indices. Raises `CorsdError` for a `batch_size` below 2. Source: DLB, arXiv
    2203.16172.
    """
    if batch_size < 2:
        raise CorsdError(f"overlapping batches need a batch_size of at least 2; got {batch_size}")
    order, half = torch.randperm(len(labels), generator=generator), batch_size // 2
    halves = order[: len(order) // half * half].split(half)
    return [torch.cat([halves[i - 1], halves[i]]) for i in range(len(halves))] if len(halves) > 1 else [order]


def _class_indices(labels: Tensor) -> list[Tensor]:
    sizes = labels.unique(return_counts=True)[1]
    return list(labels.argsort(stable=True).split(sizes.tolist()))


def _repeated_permutations(items: Tensor, count: int, chunk: int, generator: torch.Generator) -> Tensor:
    """`count` random permutations of `items`, concatenated; where possible, no chunk of `chunk` entries repeats an item."""
    order = items[:0]
    for _ in range(count):
        tail = order[len(order) // chunk * chunk :]
        following = items[torch.randperm(len(items), generator=generator)]
        clash = torch.isin(following, tail).to(torch.int8)
        order = torch.cat([order, following[clash.argsort(stable=True)]])
    return order


def _randint(high: Tensor, generator: torch.Generator) -> Tensor:
    """A random integer in [0, max(high, 1)) for each entry of `high`."""
    high = high.clamp_min(1)
    return torch.minimum((torch.rand(high.shape, generator=generator, dtype=torch.float64) * high).long(), high - 1)


def epoch_batches(
    labels: Tensor, sampling: str, batch_size: int, samples_per_class: int, generator: torch.Generator
) -> list[Tensor]:
    """Indices of every batch of an epoch.

    `sampling`: one of `SAMPLINGS`. Raises `CorsdError` for an unknown `sampling`, and the errors of the function that samples
    the batches, such as `balanced_batches`.
    """
    check_choice("sampling", sampling, SAMPLINGS)
    if sampling == "balanced":
        return balanced_batches(labels, batch_size, generator, samples_per_class)
    sample = {"plain": plain_batches, "triplet": triplet_batches, "overlapping": overlapping_batches}[sampling]
    return sample(labels, batch_size, generator)


# --- augmentation ---------------------------------------------------------------------------------------------------


def pad_images(images: Tensor, padding: int, mode: str = "reflect") -> Tensor:
    """Pad uint8 images (N, C, H, W) by `padding` pixels on every side; `mode` "reflect" or "zero".

    Raises `CorsdError` for an unknown mode, and if `padding` is not smaller than the image side in mode "reflect".
    """
    check_choice("padding mode", mode, PADDING_MODES)
    if mode == "zero":
        return F.pad(images, [padding] * 4)
    for dim in (2, 3):  # torch cannot reflect uint8: select rows and columns instead
        side = images.shape[dim]
        if padding >= side:
            raise CorsdError(f"reflect padding {shortened(padding)} must be smaller than the image side {side}")
        index = torch.arange(-padding, side + padding, device=images.device).abs()
        images = images.index_select(dim, torch.where(index >= side, 2 * (side - 1) - index, index))
    return images


def augment_crop(
    padded: Tensor, indices: Tensor, size: int, generator: torch.Generator, flip: bool = True, cutout: int = 0
) -> Tensor:
    """Random crop, horizontal flip and cutout of the images with `indices` (B,) in uint8 `padded` (N, C, H, W).

    Returns (B, C, `size`, `size`). Each image has its own random numbers. The crops are windows of one strided view, so the
    batch is copied once. `cutout`: side in pixels of a square that is set to mid-grey 128, 0 for none (DeVries and Taylor,
    arXiv 1708.04552).
    """
    random = torch.rand(5, len(indices), generator=generator).to(padded.device)
    windows = padded.unfold(2, size, 1).unfold(3, size, 1)  # (N, C, positions, positions, size, size)
    y, x = ((random[i] * windows.shape[2 + i]).long().clamp_max(windows.shape[2 + i] - 1) for i in (0, 1))
    out = windows[indices, :, y, x]
    if flip:
        mirrored = random[2] < 0.5
        out[mirrored] = out[mirrored].flip(3)
    return _cutout(out, random[3:], cutout)


def _cutout(images: Tensor, centres: Tensor, side: int) -> Tensor:
    """Copy of uint8 images (B, C, H, W) with a grey square of `side` pixels in each image; unchanged images if `side` is 0.

    `centres` (2, B): y and x of the centres in [0, 1), as fractions of H and W. A square may extend beyond the edge.
    """
    if not side:
        return images
    _, _, h, w = images.shape
    cy, cx = (centres * torch.tensor([[h], [w]], device=centres.device)).long()  # (B,) pixels
    near = [(torch.arange(n, device=images.device)[None] - centre[:, None] + side // 2) for n, centre in ((h, cy), (w, cx))]
    rows, columns = ((d >= 0) & (d < side) for d in near)
    return images.masked_fill((rows[:, None, :, None] & columns[:, None, None, :]), 128)


def augment_resized_crop(images: Tensor, size: int, generator: torch.Generator, scale: float) -> Tensor:
    """Random resized crop and horizontal flip of uint8 images (B, C, H, W); returns uint8 (B, C, size, size).

    Each image has its own crop, by RandomResizedCrop of torchvision.transforms.v2. The area of a crop is a share in
    [`scale`, 1] of the area of the image.
    """
    crop = _resized_crop(size, scale)
    with torch.random.fork_rng(devices=[]):  # v2 uses torch's global generator: seed it from ours
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))  # seeds only the CPU
        return torch.stack([crop(image) for image in images])


@cache
def _resized_crop(size: int, scale: float) -> Callable[[Tensor], Tensor]:
    """The transform of `augment_resized_crop`, cached because a worker crops one image at a time."""
    from torchvision.transforms import v2

    return v2.Compose([v2.RandomResizedCrop(size, scale=(scale, 1.0), antialias=True), v2.RandomHorizontalFlip()])


def centre_crop(images: Tensor, size: int) -> Tensor:
    """The central `size` x `size` pixels of images (..., H, W); H, W >= `size`."""
    top, left = ((side - size) // 2 for side in images.shape[-2:])
    return images[..., top : top + size, left : left + size]


class Normalise:
    """Normalises uint8 images (B, C, H, W) to float32: (pixels / 255 - mean) / std of each channel."""

    def __init__(self, data: ImageData, device: torch.device | str = "cpu") -> None:
        mean, std = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (data.mean, data.std))
        self.scale, self.shift = 1 / (255 * std), mean / std

    def __call__(self, images: Tensor) -> Tensor:
        return images.float().mul_(self.scale).sub_(self.shift)


@dataclass(frozen=True)
class Augmentation:
    """How training images are augmented.

    `kind`: one of `AUGMENTATIONS`; None for the default of the data set. `padding`: pixels by which images are padded before a
    crop; None for an eighth of the image side (4 at 32 pixels). `padding_mode`: "reflect" or "zero". `cutout`: side of the
    cutout square in pixels, 0 for none. Raises `CorsdError` for an unknown choice and for a negative number.
    """

    kind: str | None = None
    padding: int | None = None
    padding_mode: str = "reflect"
    cutout: int = 0

    def __post_init__(self) -> None:
        if self.kind is not None:
            check_choice("augmentation", self.kind, AUGMENTATIONS)
        check_choice("padding mode", self.padding_mode, PADDING_MODES)
        for name in ("padding", "cutout"):
            if (getattr(self, name) or 0) < 0:
                raise CorsdError(f"{name} = {shortened(getattr(self, name))} must be at least 0")

    def for_data(self, data: ImageData) -> Augmentation:
        """A copy with the defaults of the data set in place of a `kind` or `padding` of None."""
        padding = max(1, data.image_size // 8) if self.padding is None else self.padding
        if self.padding is None and self.padding_mode == "reflect":
            padding = min(padding, data.image_size - 1)  # a single pixel has no neighbour to reflect
        return replace(self, kind=data.augmentation if self.kind is None else self.kind, padding=padding)


class BatchSource:
    """Source of training batches on a device: samples indices of the train split, and augments and normalises the images.

    `augmentation`: an `Augmentation`, or its kind by name; None for the default of the data set. An image that is sampled twice
    is augmented twice. With `world_size` processes, process `rank` gets every `world_size`-th batch. With the sampling
    "overlapping" it gets a contiguous part of the batches instead. `workers`: processes that read streamed images. Raises
    `CorsdError` for an unknown choice and for a number out of range.
    """

    def __init__(
        self,
        data: ImageData,
        *,
        batch_size: int,
        sampling: str = "plain",
        samples_per_class: int = 4,
        augmentation: Augmentation | str | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        workers: int = 2,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        given = augmentation if isinstance(augmentation, Augmentation) else Augmentation(augmentation)
        self.augmentation = given.for_data(data)
        check_choice("sampling", sampling, SAMPLINGS)
        if batch_size < 1:
            raise CorsdError(f"batch_size = {shortened(batch_size)} must be at least 1")
        self.data, self.split, self.sampling = data, data.train, sampling
        self.batch_size, self.samples_per_class = batch_size, samples_per_class
        self.seed, self.device, self.workers = seed, torch.device(device), workers
        self.rank, self.world_size = rank, world_size
        self.normalise = Normalise(data, device)
        if isinstance(self.split, ImageArrays):
            self.images = self._prepare(self.split.images).to(device)

    def indices(self, epoch: int) -> list[Tensor]:
        """Indices in the train split for every batch of this process in `epoch`."""
        batches = self._all_indices(epoch)
        share = len(batches) // self.world_size
        if self.sampling == "overlapping":
            return batches[self.rank * share : (self.rank + 1) * share]
        return batches[self.rank : share * self.world_size : self.world_size]

    def num_images(self, epoch: int, steps: int) -> int:
        """Number of images, over all processes, in the first `steps` steps of `epoch`."""
        return sum(len(batch) for batch in self._all_indices(epoch)[: steps * self.world_size])

    def _all_indices(self, epoch: int) -> list[Tensor]:
        generator = step_generator(self.seed, epoch)
        return epoch_batches(self.split.labels, self.sampling, self.batch_size, self.samples_per_class, generator)

    def __call__(self, epoch: int, start: int = 0, progress: Callable[[int], float] | None = None) -> Iterator[Batch]:
        """Batches of `epoch` from step `start` on. `progress(step)` returns the field `progress` of the batch of that step.

        If `progress` is None, the field is 0.
        """
        indices = self.indices(epoch)
        steps = range(start, len(indices))
        generators = [step_generator(self.seed, epoch, step, self.rank) for step in steps]
        images = self._stream(indices[start:], generators) if isinstance(self.split, ImageFiles) else None
        for step, generator in zip(steps, generators, strict=True):
            batch = indices[step]
            pixels = self._augment(self.images, batch, generator) if images is None else next(images)
            yield Batch(
                images=self.normalise(pixels),
                labels=self.split.labels[batch].to(self.device),
                indices=batch,
                sampling=self.sampling,
                generator=generator,
                progress=progress(step) if progress else 0.0,
            )

    def _prepare(self, images: Tensor) -> Tensor:
        """Images after the steps of the augmentation that are the same in every epoch: centre crop and padding."""
        how = self.augmentation
        if how.kind == "resized_crop":
            return images
        images = centre_crop(images, self.data.image_size)
        return images if how.kind == "none" else pad_images(images, how.padding or 0, how.padding_mode)

    def _augment(self, images: Tensor, indices: Tensor, generator: torch.Generator) -> Tensor:
        """Augmented copies of `images[indices]`, `indices` (B,). `images`: the whole prepared split, or a streamed batch."""
        how, indices = self.augmentation, indices.to(self.device)
        if how.kind != "resized_crop":
            return augment_crop(images, indices, self.data.image_size, generator, how.kind == "crop_flip", how.cutout)
        if isinstance(self.split, ImageArrays):  # streamed images are cropped by the workers that decode them
            images = augment_resized_crop(images[indices], self.data.image_size, generator, self.data.crop_scale)
        return _cutout(images, torch.rand(2, len(indices), generator=generator).to(self.device), how.cutout)

    def _stream(self, indices: list[Tensor], generators: list[torch.Generator]) -> Iterator[Tensor]:
        """Augmented images of the batches `indices`, decoded by workers; every image has its own seed for the crop."""
        assert isinstance(self.split, ImageFiles)
        crop = self.augmentation.kind == "resized_crop"
        items = (_items(batch, generator if crop else None) for batch, generator in zip(indices, generators, strict=True))
        decoded = _decode(self.split, self.data.image_size, items, self.workers, self.device, self.data.crop_scale)
        for images, generator in zip(decoded, generators, strict=True):
            prepared = self._prepare(images.to(self.device, non_blocking=True))
            yield self._augment(prepared, torch.arange(len(images)), generator)


class _FileDataset(torch.utils.data.Dataset[Tensor]):
    """Decoded images of an `ImageFiles`, uint8 (3, size, size).

    An item is (index, seed). With a seed the image is a random resized crop, randomly flipped; with None it is the centre crop.
    """

    def __init__(self, files: ImageFiles, size: int, scale: float = 1.0) -> None:
        self.files, self.size, self.scale = files, size, scale

    def __getitem__(self, item: Item) -> Tensor:
        from torchvision.transforms.v2 import functional as tv

        index, seed = item
        image = self.files.load(index)
        if seed is not None:
            return augment_resized_crop(image[None], self.size, step_generator(seed), self.scale)[0]
        image = tv.resize(image, [round(self.size * 8 / 7)], antialias=True)
        return centre_crop(image, self.size)


def _items(indices: Tensor, generator: torch.Generator | None = None) -> list[Item]:
    """Items of a `_FileDataset` for `indices` (B,), each with a seed from `generator` if that is given."""
    seeds = [None] * len(indices) if generator is None else torch.randint(2**62, indices.shape, generator=generator).tolist()
    return list(zip(indices.tolist(), seeds, strict=True))


def _decode(
    files: ImageFiles, size: int, items: Iterable[list[Item]], workers: int, device: torch.device, scale: float = 1.0
) -> Iterator[Tensor]:
    """Decoded batches uint8 (B, 3, `size`, `size`), in the order of `items`, for any number of workers.

    Raises `CorsdError` for an image that cannot be read and if a worker process ends.
    """
    import torchvision.transforms.v2  # noqa: F401  imported here so that forked workers need not import it in every epoch
    from torch.utils.data import DataLoader

    loader = DataLoader(
        _FileDataset(files, size, scale),
        batch_sampler=items,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_leave_signals_to_the_main_process,
        generator=torch.Generator(),  # else torch's global generator would be used
    )
    try:
        yield from loader
    except CorsdError as error:  # from a worker: its message is a traceback that ends with our message
        error.__traceback__ = None  # its frames keep the workers alive; collecting them later takes 10 seconds
        raise CorsdError(str(error).rstrip().rpartition("CorsdError: ")[2]) from error
    except (BrokenPipeError, RuntimeError) as error:
        if not isinstance(error, BrokenPipeError) and not str(error).startswith("DataLoader worker"):
            raise
        raise CorsdError(
            f"a worker process that reads images ended ({error}): a script must start its work below "
            "`if __name__ == '__main__':`, and memory must be enough for `workers` processes (workers=0 reads without them)"
        ) from None  # its frames would keep the workers alive


WORKER_SECONDS = 10  # how long a worker goes on after SIGTERM


def _leave_signals_to_the_main_process(worker: int) -> None:
    # Workers do not stop at once, because the training loop still needs their batch. Ctrl-C reaches the whole process group,
    # and the SIGTERM of Slurm all processes of a job. A worker that does not end by itself ends WORKER_SECONDS after a SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later if hasattr(signal, "alarm") else signal.SIG_DFL)


def _end_later(number: int, frame: object) -> None:
    signal.alarm(WORKER_SECONDS)


def evaluation_batches(
    data: ImageData, split: Split, device: torch.device | str = "cpu", batch_size: int | None = None, workers: int = 2
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields images (B, C, S, S) float32 and labels (B,) int64 of `split` in its order, on `device`.

    Images are centre-cropped and normalised, not augmented. `batch_size`: by default 512 up to 64 pixels, fewer for larger
    images (at least 16), so that memory is about constant. `workers`: processes that read streamed images. Raises `CorsdError`
    for an image that cannot be read and if a process that reads images ends unexpectedly.
    """
    batch_size = batch_size or max(16, 512 * 64**2 // max(64, data.image_size) ** 2)
    normalise, device = Normalise(data, device), torch.device(device)
    indices = list(torch.arange(len(split)).split(batch_size))
    if isinstance(split, ImageFiles):
        images = _decode(split, data.image_size, map(_items, indices), workers, device)
    else:
        images = (centre_crop(split.images[batch], data.image_size) for batch in indices)
    for batch, pixels in zip(indices, images, strict=True):
        yield normalise(pixels.to(device, non_blocking=True)), split.labels[batch].to(device)
