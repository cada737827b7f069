"""Cache of the mean and standard deviation of images, by checksum."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from corsd_lib.datasets.arrays import Statistics, channel_statistics
from corsd_lib.errors import CorsdError
from corsd_lib.files import read_json, write_json

FILE = "statistics.json"  # below the data root: {checksum: [mean, std]}


def cached_statistics(images: Tensor, checksum: str, root: Path) -> Statistics:
    """`channel_statistics` of images uint8 (N, C, H, W), cached in the file statistics.json in `root`.

    `checksum` identifies the images; statistics are computed once for each checksum. If the file cannot be read or written,
    they are computed each time.
    """
    kept = _read(root / FILE)
    found = _parse_entry(kept.get(checksum), images.shape[1])
    if found is None:
        found = channel_statistics(images)
        with suppress(CorsdError, OSError):
            write_json(root / FILE, {**kept, checksum: found}, within=root)
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (CorsdError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _parse_entry(entry: Any, channels: int) -> Statistics | None:
    """Mean and standard deviation from an entry of the file; None unless they are numbers in 0..1, one for each channel, and no
    deviation is 0.
    """
    try:
        mean, std = (tuple(map(float, values)) for values in entry)
    except (TypeError, ValueError, OverflowError):
        return None
    sound = len(mean) == len(std) == channels and all(0 <= m <= 1 and 0 < s <= 1 for m, s in zip(mean, std, strict=True))
    return (mean, std) if sound else None
