"""How batches are made: which rows (plain, balanced, triplets, overlapping), and how whole batches are augmented on the device.

Everything random is drawn from a generator seeded by (seed, epoch, step), so a batch depends on its place in the training
and on nothing else: not on the number of workers, not on where a run was stopped and resumed.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
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
Item = tuple[int, int | None]  # row of a streamed image, and the seed of its random crop


class Batch(NamedTuple):
    """One training batch on the training device.

    `images` (B, C, H, W) float, `labels` (B,), `rows` (B,) of the images in the train split, `sampling` how rows were
    drawn ("plain", "balanced", "triplet": thirds of anchors, same class, other class, or "overlapping": half of them again),
    `generator` a CPU generator seeded for this step, `progress` in [0, 1) of the whole training, `draws` what the method has
    drawn for it (see `Method.draw`).
    """

    images: Tensor
    labels: Tensor
    rows: Tensor
    sampling: str = "plain"
    generator: torch.Generator | None = None
    progress: float = 0.0
    draws: Mapping[str, Tensor] | None = None


def step_generator(*place: int) -> torch.Generator:
    """A CPU generator that depends only on `place`, e.g. (seed, epoch, step); neighbours are unrelated."""
    seed = 0
    for number in place:  # splitmix64: torch's own seeding keeps neighbouring seeds correlated in the first draws
        seed = (seed + number + 0x9E3779B97F4A7C15) % 2**64
        seed = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        seed = ((seed ^ (seed >> 27)) * 0x94D049BB133111EB) % 2**64
        seed ^= seed >> 31
    return torch.Generator().manual_seed(seed % 2**63)


# --- which rows -----------------------------------------------------------------------------------------------------


def plain_batches(labels: Tensor, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Shuffled rows in batches of `batch_size`; the incomplete last batch is dropped unless it is the only one."""
    order = torch.randperm(len(labels), generator=generator)
    full = len(order) // batch_size * batch_size
    return list(order[: full or len(order)].split(batch_size))


def balanced_batches(labels: Tensor, batch_size: int, generator: torch.Generator, samples_per_class: int = 4) -> list[Tensor]:
    """P classes x K samples a batch, P·K <= `batch_size`; every class is seen equally often in an epoch.

    An epoch is as many rounds over all classes as come closest to the images of an epoch of `plain_batches`, at least one; a
    round takes K rows of each class. A small class is reshuffled and read again, a large one is read in part. K is
    `samples_per_class`, or more, up to the mean class size, when there are too few classes to fill a batch. No class stands
    twice in a batch, and no image of a class of at least K; a smaller one meets itself, in another crop. The last batch may be
    a small one.
    """
    groups = _class_rows(labels)
    k = max(samples_per_class, min(batch_size // len(groups), len(labels) // len(groups)))
    if k < 2 or batch_size < k:
        raise CorsdError(
            f"balanced batches want 2 <= samples_per_class <= batch_size; got {shortened(k)} and {shortened(batch_size)}"
        )
    plain = len(labels) // batch_size * batch_size or len(labels)
    rounds = max(1, round(plain / (k * len(groups))))
    passes = [_shuffled_passes(group, -(-rounds * k // len(group)), k, generator) for group in groups]
    rows = [every[: rounds * k].view(rounds, k) for every in passes]
    classes = min(len(groups), batch_size // k)
    order = _shuffled_passes(torch.arange(len(groups)), rounds, classes, generator)
    taken = torch.zeros(len(groups), dtype=torch.long)
    batches = []
    for chunk in order.split(classes):
        batches.append(torch.cat([rows[c][taken[c]] for c in chunk.tolist()]))
        taken[chunk] += 1
    return batches


def triplet_batches(labels: Tensor, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Rows laid out [anchors, same class, other class], a third of the batch each; each row is an anchor once an epoch.

    The release's sampling: an epoch over n images passes 3n. A class of one image is its own partner. The incomplete last batch
    is dropped unless it is the only one. Raises `CorsdError` with fewer than two classes or `batch_size` below 3.
    """
    if batch_size < 3 or len(labels.unique()) < 2:
        raise CorsdError(f"triplets want a batch_size of at least 3 (got {shortened(batch_size)}) and two classes")
    anchors = plain_batches(labels, batch_size // 3, generator)
    by_class = labels.argsort(stable=True)
    _, inverse, sizes = labels.unique(return_inverse=True, return_counts=True)
    starts = sizes.cumsum(0) - sizes
    place = torch.empty_like(by_class).scatter_(0, by_class, torch.arange(len(labels)))
    batches = []
    for a in anchors:
        size, start = sizes[inverse[a]], starts[inverse[a]]
        hop = 1 + _randint(size - 1, generator)  # 1 .. size - 1: any place of the class but the anchor's own
        same = start + torch.where(size > 1, (place[a] - start + hop) % size, torch.zeros_like(size))
        other = _randint(len(labels) - size, generator)
        other += torch.where(other >= start, size, torch.zeros_like(size))  # skip the anchor's class
        batches.append(torch.cat([a, by_class[same], by_class[other]]))
    return batches


def overlapping_batches(labels: Tensor, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Shuffled rows such that the first half of a batch is the second half of the one before it; DLB, arXiv 2203.16172.

    An epoch over n images passes 2n: each row is new once and repeated once. The first batch repeats the half that ends the
    epoch, so that this holds for all rows. An odd `batch_size` is rounded down; an incomplete half is dropped. Where there are
    not two halves, the only batch is all rows. Raises `CorsdError` for a `batch_size` below 2.
    """
    if batch_size < 2:
        raise CorsdError(f"overlapping batches want a batch_size of at least 2; got {batch_size}")
    order, half = torch.randperm(len(labels), generator=generator), batch_size // 2
    halves = order[: len(order) // half * half].split(half)
    return [torch.cat([halves[i - 1], halves[i]]) for i in range(len(halves))] if len(halves) > 1 else [order]


def _class_rows(labels: Tensor) -> list[Tensor]:
    sizes = labels.unique(return_counts=True)[1]
    return list(labels.argsort(stable=True).split(sizes.tolist()))


def _shuffled_passes(items: Tensor, passes: int, chunk: int, generator: torch.Generator) -> Tensor:
    """`passes` permutations of `items` joined, such that no `chunk` of the sequence holds one twice, where that is possible."""
    order = items[:0]
    for _ in range(passes):
        tail = order[len(order) // chunk * chunk :]
        following = items[torch.randperm(len(items), generator=generator)]
        clash = torch.isin(following, tail).to(torch.int8)
        order = torch.cat([order, following[clash.argsort(stable=True)]])
    return order


def _randint(high: Tensor, generator: torch.Generator) -> Tensor:
    """One integer in [0, max(high, 1)) for each entry of `high`."""
    high = high.clamp_min(1)
    return torch.minimum((torch.rand(high.shape, generator=generator, dtype=torch.float64) * high).long(), high - 1)


def epoch_batches(
    labels: Tensor, sampling: str, batch_size: int, samples_per_class: int, generator: torch.Generator
) -> list[Tensor]:
    """The rows of every batch of an epoch; `sampling` is one of `SAMPLINGS`."""
    check_choice("sampling", sampling, SAMPLINGS)
    if sampling == "balanced":
        return balanced_batches(labels, batch_size, generator, samples_per_class)
    draw = {"plain": plain_batches, "triplet": triplet_batches, "overlapping": overlapping_batches}[sampling]
    return draw(labels, batch_size, generator)


# --- what a batch looks like ----------------------------------------------------------------------------------------


def pad_images(images: Tensor, padding: int, mode: str = "reflect") -> Tensor:
    """uint8 images (N, C, H, W) with `padding` more pixels on every side, `mode` "reflect" or "zero"."""
    check_choice("padding mode", mode, PADDING_MODES)
    if mode == "zero":
        return F.pad(images, [padding] * 4)
    for dim in (2, 3):  # torch reflects no uint8: pick rows and columns instead
        side = images.shape[dim]
        if padding >= side:
            raise CorsdError(f"reflect padding {shortened(padding)} must be smaller than the image side {side}")
        index = torch.arange(-padding, side + padding, device=images.device).abs()
        images = images.index_select(dim, torch.where(index >= side, 2 * (side - 1) - index, index))
    return images


def augment_crop(
    padded: Tensor, rows: Tensor, size: int, generator: torch.Generator, flip: bool = True, cutout: int = 0
) -> Tensor:
    """Random crop, horizontal flip and cutout of `rows` (B,) of uint8 `padded` (N, C, H, W); (B, C, `size`, `size`).

    Every image has its own draw. The crops are windows of one strided view, so that the batch is one copy. `cutout`: side of a
    square set to mid-grey 128, 0 for none (DeVries and Taylor, arXiv 1708.04552).
    """
    draw = torch.rand(5, len(rows), generator=generator).to(padded.device)
    windows = padded.unfold(2, size, 1).unfold(3, size, 1)  # (N, C, positions, positions, size, size)
    y, x = ((draw[i] * windows.shape[2 + i]).long().clamp_max(windows.shape[2 + i] - 1) for i in (0, 1))
    out = windows[rows, :, y, x]
    if flip:
        mirrored = draw[2] < 0.5
        out[mirrored] = out[mirrored].flip(3)
    return _cutout(out, draw[3:], cutout)


def _cutout(images: Tensor, draw: Tensor, side: int) -> Tensor:
    """A square of `side` pixels set to grey in each image; its centre from `draw` (2, B) in [0, 1): it may stick out."""
    if not side:
        return images
    _, _, h, w = images.shape
    cy, cx = (draw * torch.tensor([[h], [w]], device=draw.device)).long()  # (B,) centres
    near = [(torch.arange(n, device=images.device)[None] - centre[:, None] + side // 2) for n, centre in ((h, cy), (w, cx))]
    rows, columns = ((d >= 0) & (d < side) for d in near)
    return images.masked_fill((rows[:, None, :, None] & columns[:, None, None, :]), 128)


def augment_resized_crop(images: Tensor, size: int, generator: torch.Generator, scale: float) -> Tensor:
    """Random-resized-crop to `size` and flip of uint8 images (B, C, H, W), each image its own draw; (B, C, size, size).

    torchvision.transforms.v2's RandomResizedCrop with area in [`scale`, 1].
    """
    crop = _resized_crop(size, scale)
    with torch.random.fork_rng(devices=[]):  # v2 draws from torch's global generator: lend it ours
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))  # and no GPU's
        return torch.stack([crop(image) for image in images])


@cache
def _resized_crop(size: int, scale: float) -> Callable[[Tensor], Tensor]:
    """The transform of `augment_resized_crop`: made once, for a worker crops one image at a time."""
    from torchvision.transforms import v2

    return v2.Compose([v2.RandomResizedCrop(size, scale=(scale, 1.0), antialias=True), v2.RandomHorizontalFlip()])


def centre_crop(images: Tensor, size: int) -> Tensor:
    """The central `size` x `size` of images (..., H, W); H, W >= `size`."""
    top, left = ((side - size) // 2 for side in images.shape[-2:])
    return images[..., top : top + size, left : left + size]


class Normalise:
    """uint8 images (B, C, H, W) -> float32, (pixels / 255 - mean) / std by channel."""

    def __init__(self, data: ImageData, device: torch.device | str = "cpu") -> None:
        mean, std = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (data.mean, data.std))
        self.scale, self.shift = 1 / (255 * std), mean / std

    def __call__(self, images: Tensor) -> Tensor:
        return images.float().mul_(self.scale).sub_(self.shift)


class BatchSource:
    """Training batches of a split on a device: draws rows, augments and normalises them.

    `augmentation` one of `AUGMENTATIONS`, `padding` pixels of the pad-crop (default: an eighth of the side, 4 at 32),
    `cutout` side in pixels. In several processes each takes every `world`-th batch, of overlapping ones a stretch of
    neighbours, and pairs are formed within a batch. An image that comes again is augmented again.
    Raises `CorsdError` for an unknown choice or a number out of range.
    """

    def __init__(
        self,
        data: ImageData,
        *,
        batch_size: int,
        sampling: str = "plain",
        samples_per_class: int = 4,
        augmentation: str | None = None,
        padding: int | None = None,
        padding_mode: str = "reflect",
        cutout: int = 0,
        seed: int = 0,
        device: torch.device | str = "cpu",
        workers: int = 2,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.augmentation = data.augmentation if augmentation is None else augmentation
        check_choice("augmentation", self.augmentation, AUGMENTATIONS)
        check_choice("sampling", sampling, SAMPLINGS)
        check_choice("padding mode", padding_mode, PADDING_MODES)
        for name, value, low in (("batch_size", batch_size, 1), ("padding", padding or 0, 0), ("cutout", cutout, 0)):
            if value < low:
                raise CorsdError(f"{name} = {shortened(value)} must be at least {low}")
        self.data, self.split, self.sampling = data, data.train, sampling
        self.batch_size, self.samples_per_class = batch_size, samples_per_class
        self.padding = padding if padding is not None else max(1, data.image_size // 8)
        if padding is None and padding_mode == "reflect":
            self.padding = min(self.padding, data.image_size - 1)  # one pixel has no neighbour to reflect
        self.padding_mode, self.cutout = padding_mode, cutout
        self.seed, self.device, self.workers = seed, torch.device(device), workers
        self.rank, self.world = rank, world
        self.normalise = Normalise(data, device)
        if isinstance(self.split, ImageArrays):
            self.images = self._prepared(self.split.images).to(device)

    def rows(self, epoch: int) -> list[Tensor]:
        """Rows of the train split of every batch that this process sees in `epoch`."""
        batches = self._rows_of_all(epoch)
        share = len(batches) // self.world
        if self.sampling == "overlapping":
            return batches[self.rank * share : (self.rank + 1) * share]
        return batches[self.rank : share * self.world : self.world]

    def images_of(self, epoch: int, steps: int) -> int:
        """How many images all processes together see in the first `steps` steps of `epoch`."""
        return sum(len(batch) for batch in self._rows_of_all(epoch)[: steps * self.world])

    def _rows_of_all(self, epoch: int) -> list[Tensor]:
        generator = step_generator(self.seed, epoch)
        return epoch_batches(self.split.labels, self.sampling, self.batch_size, self.samples_per_class, generator)

    def __call__(self, epoch: int, start: int = 0, progress: Callable[[int], float] | None = None) -> Iterator[Batch]:
        """The batches of `epoch` from step `start` on."""
        rows = self.rows(epoch)
        steps = range(start, len(rows))
        generators = [step_generator(self.seed, epoch, step, self.rank) for step in steps]
        images = self._stream(rows[start:], generators) if isinstance(self.split, ImageFiles) else None
        for step, generator in zip(steps, generators, strict=True):
            batch = rows[step]
            pixels = self._augment(self.images, batch, generator) if images is None else next(images)
            yield Batch(
                images=self.normalise(pixels),
                labels=self.split.labels[batch].to(self.device),
                rows=batch,
                sampling=self.sampling,
                generator=generator,
                progress=progress(step) if progress else 0.0,
            )

    def _prepared(self, images: Tensor) -> Tensor:
        """Everything of the augmentation that is the same in every epoch."""
        if self.augmentation == "resized_crop":
            return images
        images = centre_crop(images, self.data.image_size)
        return images if self.augmentation == "none" else pad_images(images, self.padding, self.padding_mode)

    def _augment(self, images: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Augmented `rows` (B,) of `images`: of the whole prepared split, or of a streamed batch."""
        rows = rows.to(self.device)
        if self.augmentation != "resized_crop":
            flip = self.augmentation == "crop_flip"
            return augment_crop(images, rows, self.data.image_size, generator, flip, self.cutout)
        if isinstance(self.split, ImageArrays):  # streamed images are cropped where they are decoded, by the workers
            images = augment_resized_crop(images[rows], self.data.image_size, generator, self.data.crop_scale)
        return _cutout(images, torch.rand(2, len(rows), generator=generator).to(self.device), self.cutout)

    def _stream(self, rows: list[Tensor], generators: list[torch.Generator]) -> Iterator[Tensor]:
        """Augmented images of the batches of `rows`, decoded by workers; every image brings the seed of its own crop."""
        assert isinstance(self.split, ImageFiles)
        crop = self.augmentation == "resized_crop"
        items = (_items(batch, generator if crop else None) for batch, generator in zip(rows, generators, strict=True))
        decoded = _decoded(self.split, self.data.image_size, items, self.workers, self.device, self.data.crop_scale)
        for images, generator in zip(decoded, generators, strict=True):
            prepared = self._prepared(images.to(self.device, non_blocking=True))
            yield self._augment(prepared, torch.arange(len(images)), generator)


class _FileDataset(torch.utils.data.Dataset[Tensor]):
    """Decoded images of an `ImageFiles`: random-resized-cropped from an item's seed if it has one, else from the centre."""

    def __init__(self, files: ImageFiles, size: int, scale: float = 1.0) -> None:
        self.files, self.size, self.scale = files, size, scale

    def __getitem__(self, item: Item) -> Tensor:
        from torchvision.transforms.v2 import functional as tv

        row, seed = item
        image = self.files.load(row)
        if seed is not None:
            return augment_resized_crop(image[None], self.size, step_generator(seed), self.scale)[0]
        image = tv.resize(image, [round(self.size * 8 / 7)], antialias=True)
        return centre_crop(image, self.size)


def _items(rows: Tensor, generator: torch.Generator | None = None) -> list[Item]:
    """Rows (B,) as items of a `_FileDataset`, each with a seed drawn from `generator` if there is one."""
    seeds = [None] * len(rows) if generator is None else torch.randint(2**62, rows.shape, generator=generator).tolist()
    return list(zip(rows.tolist(), seeds, strict=True))


def _decoded(
    files: ImageFiles, size: int, items: Iterable[list[Item]], workers: int, device: torch.device, scale: float = 1.0
) -> Iterator[Tensor]:
    """The batches uint8 (B, 3, `size`, `size`) of `items`, in their order whatever the number of workers."""
    import torchvision.transforms.v2  # noqa: F401  before the workers fork: each would import it again, every epoch
    from torch.utils.data import DataLoader

    loader = DataLoader(
        _FileDataset(files, size, scale),
        batch_sampler=items,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_leave_signals_to_the_main_process,
        generator=torch.Generator(),  # else each pass would take a number from torch's global generator
    )
    try:
        yield from loader
    except CorsdError as error:  # of a worker: its whole traceback, with our line at the end
        error.__traceback__ = None  # its frames would keep the workers, and to collect them later takes 10 seconds
        raise CorsdError(str(error).rstrip().rpartition("CorsdError: ")[2]) from error
    except (BrokenPipeError, RuntimeError) as error:
        if not isinstance(error, BrokenPipeError) and not str(error).startswith("DataLoader worker"):
            raise
        raise CorsdError(
            f"a worker process that reads images ended ({error}): a script must begin what it does with "
            "`if __name__ == '__main__':`, and memory must be enough for `workers` processes (workers=0 reads without them)"
        ) from None  # its frames would keep the workers, and it adds nothing


def _leave_signals_to_the_main_process(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the loop still wants its batch
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def evaluation_batches(
    data: ImageData, split: Split, device: torch.device | str = "cpu", batch_size: int | None = None, workers: int = 2
) -> Iterator[tuple[Tensor, Tensor]]:
    """(images, labels) of `split` in its order, normalised, centre-cropped, not augmented, on `device`.

    `batch_size`: by default 512 up to 64 pixels a side, then fewer as images grow, so that memory does not.
    """
    batch_size = batch_size or max(16, 512 * 64**2 // max(64, data.image_size) ** 2)
    normalise, device = Normalise(data, device), torch.device(device)
    rows = list(torch.arange(len(split)).split(batch_size))
    if isinstance(split, ImageFiles):
        images = _decoded(split, data.image_size, map(_items, rows), workers, device)
    else:
        images = (centre_crop(split.images[batch], data.image_size) for batch in rows)
    for batch, pixels in zip(rows, images, strict=True):
        yield normalise(pixels.to(device, non_blocking=True)), split.labels[batch].to(device)
