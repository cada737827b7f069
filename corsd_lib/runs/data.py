"""Images of a configuration and of a run, and their training batches."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from corsd_lib.batches import Augmentation, BatchSource, step_generator
from corsd_lib.datasets import ImageData, Split, load_dataset
from corsd_lib.datasets.selection import with_label_noise
from corsd_lib.errors import CorsdError, named
from corsd_lib.methods import find_method
from corsd_lib.runs.config import TrainConfig
from corsd_lib.runs.run import DataInfo, Run, check_run

__all__ = [
    "image_changes",
    "load_data",
    "run_data",
    "splits_of",
    "training_batches",
    "unseen_class_names",
]

_NOISE = 2**40  # label noise is seeded with (seed, _NOISE), batches with (seed, epoch): no epoch is as large


def load_data(config: TrainConfig, data_root: str | None = None) -> ImageData:
    """Load the data set of a configuration, from `data_root` if that is given. Raises the same errors as `load_dataset`."""
    return load_dataset(
        config.data,
        data_root or config.data_root,
        per_class=config.per_class,
        validation_fraction=config.validation_fraction,
        test_fraction=config.test_fraction,
        seed=config.seed,
        image_size=config.image_size,
        crop_to_box=config.crop_to_box,
        hold_out_classes=config.hold_out_classes,
        hold_out=config.hold_out,
        hold_out_seed=config.hold_out_seed,
    )


def run_data(run: Run, data: ImageData | None = None, data_root: str | None = None) -> ImageData:
    """Data set of a run, with the mean and standard deviation that were used in its training.

    This is `data` if it is given, else the data set that the configuration names, loaded from `data_root`. Raises `CorsdError`
    if `data` is not given but the run was trained on images that were passed to `train`, if the images on disk differ from
    those of the training, and if `data` does not have the classes and the number of channels of the run. Raises the errors of
    `load_dataset`, too.
    """
    check_run(run)
    if data is None:
        if run.data.name != run.config.data:
            raise CorsdError(
                f"{run.path} was trained on data that was passed to train(data=...), {run.data.name!r}: pass the same data "
                "here (data=...)"
            )
        with named(run.path):
            data = load_data(run.config, data_root)
        if changes := image_changes(data, run.data):
            raise CorsdError(
                f"the training images of {data.name!r} here are not those of {run.path}: {changes}; restore the files that the "
                "run was trained on, or pass those images (data=...)"
            )
    elif tuple(data.class_names) != run.data.class_names or data.channels != run.data.channels:
        raise CorsdError(f"{_class_difference(data, run.data)}, as in {run.data.name!r}, the data of {run.path}")
    unseen = None if data.unseen is None else replace(data.unseen, mean=run.data.mean, std=run.data.std)
    return replace(data, mean=run.data.mean, std=run.data.std, unseen=unseen)


def _class_difference(data: ImageData, info: DataInfo) -> str:
    """Text of an error: how the number of classes, the channels or a class name of `data` differs from `info`."""
    names, channels = data.class_names, f"{data.channels} channel{'s' if data.channels > 1 else ''}"
    if (len(names), data.channels) != (info.num_classes, info.channels):
        return f"{data.name!r} has {len(names)} classes and {channels}; allowed: {info.num_classes} and {info.channels}"
    k = next(k for k, pair in enumerate(zip(names, info.class_names, strict=True)) if pair[0] != pair[1])
    return f"class {k} of {data.name!r} is {names[k]!r}; allowed: {info.class_names[k]!r}"


def image_changes(data: ImageData, info: DataInfo) -> str:
    """Description of the first difference between `data` and the data of a run; "" if there is none.

    Classes, held-out classes, image size, channels, splits and statistics are compared, but not the test images.
    """
    if tuple(data.class_names) != info.class_names:
        return "its classes differ"
    if unseen_class_names(data) != info.unseen_class_names:
        return "its held-out classes differ"
    if (data.image_size, data.channels) != (info.image_size, info.channels):
        now, then = ((of.channels, of.image_size, of.image_size) for of in (data, info))
        return f"images are {now}, were {then}"
    if changes := _split_changes(data, info):
        return changes
    pairs = zip((*data.mean, *data.std), (*info.mean, *info.std), strict=True)
    alike = all(abs(now - then) < 5e-3 for now, then in pairs)  # decoders of JPEG differ by less
    return "" if alike else "mean or deviation of the training images differ"


def _split_changes(data: ImageData, info: DataInfo) -> str:
    """The first difference between the splits of `data` and those recorded in a run; "" if there is none.

    Only recorded checksums are compared: a run of an earlier version has fewer, or none.
    """
    then, now = info.splits or {}, splits_of(data)
    if data.generated_split and not all(len(recorded) == 3 for recorded in (then or {"train": ()}).values()):
        return "it was trained with an earlier version of this library, which split a folder of classes by position"
    for name in {**then, **(now if then else {})}:
        if name not in now or name not in then:
            return f"the split {name} {'is new' if name in now else 'is gone'}"
        if now[name][0] != then[name][0]:
            return f"{name} has {now[name][0]:,} images, had {then[name][0]:,}"
        if now[name][1] != then[name][1]:
            return f"{name} has as many images, but of different classes"
        if now[name][: len(then[name])] != list(then[name]):
            return f"{name} has as many images of each class, but different ones: some were replaced or renamed"
    return ""


def unseen_class_names(data: ImageData) -> tuple[str, ...]:
    """Names of the classes that are held out of `data`; () if none are."""
    return () if data.unseen is None else tuple(data.unseen.class_names)


def splits_of(data: ImageData) -> dict[str, list[int]]:
    """A dict with three numbers for the training split and, if there is one, for the validation split.

    The numbers are those of `DataInfo.splits`: how many images the split has, and two checksums.
    """
    splits = {"train": data.train, **({} if data.validation is None else {"validation": data.validation})}
    return {name: [len(split), _checksum(split.labels), _content(split)] for name, split in splits.items()}


def _checksum(values: Tensor) -> int:
    return zlib.crc32(values.cpu().to(torch.int64).numpy().tobytes())


def _content(split: Split) -> int:
    """CRC-32 that identifies the images of a split and their order. It is computed from file names, or from indices if there
    are none.
    """
    names = split.names
    return zlib.crc32("\n".join(names).encode("utf-8", "surrogateescape")) if names else _checksum(split.index)


def training_batches(config: TrainConfig, data: ImageData, **process: Any) -> BatchSource:
    """Training batches of `config` from `data`. `process`: device, rank and world_size of `BatchSource`.

    With `label_noise` some labels are replaced, in the batches and for the sampling; `data` is not changed. The noise has
    separate random numbers, seeded by `config.seed`. Raises `CorsdError` for an unknown method, and the errors of
    `BatchSource`.
    """
    method_class = find_method(config.method)
    if config.label_noise:
        noise = step_generator(config.seed, _NOISE)
        data = replace(data, train=with_label_noise(data.train, config.label_noise, data.num_classes, noise))
    return BatchSource(
        data,
        batch_size=config.batch_size,
        sampling=config.sampling or method_class.sampling,
        samples_per_class=config.samples_per_class or method_class.samples_per_class,
        augmentation=Augmentation(config.augmentation, padding_mode=config.padding_mode, cutout=config.cutout),
        seed=config.seed,
        workers=config.workers,
        **process,
    )
