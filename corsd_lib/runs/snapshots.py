"""Probe snapshots: the outputs of a network on the probe set during a training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from corsd_lib.readers import read_probe_set, read_snapshot

__all__ = ["Probes", "Snapshot"]


@dataclass(frozen=True)
class Snapshot:
    """Outputs on the probe set after an epoch. N probe images, K exits (shallow -> deep), C classes.

    `embeddings` K x (N, D) and `logits` K x (N, C): float16. `relations`: class-level relations (C, C) float32, see
    `relation_matrix`. There is one for each relation network. For a method without relation networks there is one for each
    exit, of the score (1 + cosine) / 2. `relation_state`: weights of the relation networks, float16.
    """

    epoch: int
    embeddings: list[Tensor]
    logits: list[Tensor]
    relations: list[Tensor]
    relation_state: dict[str, Tensor]


class Probes(Mapping[int, Snapshot]):
    """Mapping epoch -> snapshot of a run; a snapshot is read when it is used.

    `labels` and `index` (N,): classes of the probe images and their indices in the split whose name is `split`. Raises
    `CorsdError` for a damaged file, and for tensors that do not match each other, the number of classes or the other snapshots.
    """

    def __init__(self, path: Path, classes: int) -> None:
        self.path, self._classes = path, classes
        files = {f.stem.removeprefix("epoch_"): f for f in (path / "probes").glob("epoch_*.safetensors")}
        self._files = {int(epoch): files[epoch] for epoch in sorted(filter(str.isdecimal, files), key=int)}

    def __repr__(self) -> str:
        return f"Probes({str(self.path)!r}: snapshots after epochs {list(self._files)})"

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[int]:
        return iter(self._files)

    def __getitem__(self, epoch: int) -> Snapshot:
        if epoch not in self._files:
            raise KeyError(f"no probe snapshot after epoch {epoch}; there are: {list(self._files)}")
        file, first = self._files[epoch], next(iter(self._files.values()))
        parts = read_snapshot(file, len(self.labels), self._classes, like=None if first is file else first)
        return Snapshot(epoch, **parts)

    @cached_property
    def _set(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        return read_probe_set(self.path / "probe.safetensors", self._classes)

    @property
    def labels(self) -> Tensor:
        return self._set[0]["labels"]

    @property
    def index(self) -> Tensor:
        return self._set[0]["index"]

    @property
    def split(self) -> str:
        return self._set[1]["split"]
