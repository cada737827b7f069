"""What tests of explorers share: small and large runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from corsd_lib import Run, TrainConfig, load_run, train
from corsd_lib.files import read_json, write_json, write_tensors

EPOCHS = 3
LONG = "n" * 10_000  # the name of a class


def longest_word(text: str) -> int:
    """Characters of the longest word that is seen of HTML: what is in its tags, titles included, is not."""
    return max(map(len, re.sub(r"<[^>]*>", " ", text).split()))


def small_run(path: Path, method: str, **options: Any) -> Run:
    config = TrainConfig(method=method, per_class=2, epochs=EPOCHS, batch_size=20, probe_size=30, out=str(path))
    return train(config, progress=False, **options)


def large_run(small: Run, path: Path, names: list[str], epochs: int = 30, exits: int = 4, images: int = 1000) -> Run:
    """A run like `small` with other classes and random snapshots, as large as CIFAR-100's by default."""
    config = read_json(small.path / "config.json")
    config["data"] |= {"class_names": names, "superclass_names": names, "superclass_of_class": list(range(len(names)))}
    write_json(path / "config.json", config)
    labels = torch.arange(images) % len(names)
    write_tensors(path / "probe.safetensors", {"labels": labels, "index": torch.arange(images)}, {"split": "train"})
    generator = torch.Generator().manual_seed(0)
    for epoch in range(epochs):
        snapshot = {f"relations.{k}": torch.rand(len(names), len(names), generator=generator) for k in range(exits)}
        snapshot |= {f"embeddings.{k}": torch.zeros(images, 64).half() for k in range(exits)}
        snapshot |= {f"logits.{k}": torch.zeros(images, len(names)).half() for k in range(exits)}
        write_tensors(path / "probes" / f"epoch_{epoch:04d}.safetensors", snapshot)
    return load_run(path)
