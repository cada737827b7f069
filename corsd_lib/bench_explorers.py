"""Benchmarks of the explorers, the widgets of the notebooks: how fast they open and answer, without a browser.

The unit is processor time, because other programs use the machine too. What the browser draws is timed in
`tests/browser/test_speed.py`.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from corsd_lib.files import read_json, write_json, write_tensors
from corsd_lib.runs import Run, TrainConfig
from corsd_lib.training import train

__all__ = ["explorer_measurements", "run_of_classes"]

CLASSES, EXITS, SNAPSHOTS, PROBES = 100, 4, 5, 1000  # of CIFAR-100's size
EPOCHS = 40  # of the training that a monitor shows


def explorer_measurements(repeat: int) -> dict[str, dict[str, Any]]:
    """Measurements of the explorers by name, each a dict of `what` (with the unit), `value` and `target`.

    The times to open an explorer and to compute the relations of images are medians of `repeat` measurements. The cost of a
    training monitor is measured once.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = train(_config(folder / "images", probe_size=PROBES, epochs=1), progress=False)
        return {
            **first_view(run_of_classes(run, folder / "classes", CLASSES), repeat),
            "explorer_images": images_of_explorer(run, repeat),
            "monitor": monitor_ratio(folder / "watched"),
        }


def first_view(run: Run, repeat: int) -> dict[str, dict[str, Any]]:
    """Two measurements: seconds to open a `RelationExplorer` on a run and draw its static picture, and MB of data that it sends
    to a browser.
    """
    from corsd_lib.widgets import RelationExplorer

    def opened() -> RelationExplorer:
        explorer = RelationExplorer(Run(run.path))
        explorer._repr_mimebundle_()
        return explorer

    what = f"{CLASSES} classes x {EXITS} exits x {SNAPSHOTS} snapshots"
    return {
        "explorer_first_view": _measurement(f"first view of {what}: seconds of Python", _seconds(opened, repeat), "below 0.5"),
        "explorer_data": _measurement(f"data of {what}, shipped once: MB", _megabytes(opened()._data), "at most 3"),
    }


def images_of_explorer(run: Run, repeat: int) -> dict[str, Any]:
    """Time to compute the trained relation of every pair of probe images at one exit, in the blocks that a browser asks for."""
    from corsd_lib.widgets import RelationExplorer

    explorer, every = RelationExplorer(run), list(range(len(run.probes.labels)))
    # Loads the relation networks of the epoch before the measurement; they stay loaded.
    explorer.ask_images(0, "trained", 1, 1, every[:1], every)

    def related() -> None:
        for begin in range(0, len(every), 250):
            explorer.ask_images(0, "trained", 1, 1, every[begin : begin + 250], every)

    what = f"image x image relation of {len(every):,} probe images, in blocks: seconds of Python"
    return _measurement(what, _seconds(related, repeat), "below 0.5")


def monitor_ratio(path: Path) -> dict[str, Any]:
    """How many times as long a training takes with a `TrainingMonitor` as without it, in processor time.

    There is one training, with the monitor. The time without it is the time of this training less the time spent in the
    monitor. In this way differences between trainings do not count.
    """
    from corsd_lib.widgets import TrainingMonitor

    monitor, inside = TrainingMonitor(), 0.0

    def watched(run: Run) -> None:
        nonlocal inside
        begin = time.process_time()
        monitor(run)
        inside += time.process_time() - begin

    begin = time.process_time()
    train(_config(path, per_class=40, epochs=EPOCHS), progress=False, on_epoch=watched)
    whole = time.process_time() - begin
    return _measurement(f"training with a monitor / without, {whole:.0f} seconds", whole / (whole - inside), "at most 1.02")


def run_of_classes(small: Run, path: Path, classes: int, snapshots: int = SNAPSHOTS, exits: int = EXITS) -> Run:
    """Write a run of `classes` classes to `path`, with the configuration of `small` and method "byot", and return it.

    Its `snapshots` snapshots have random class-level relations for each of `exits` exits; embeddings and logits are 0. Raises
    `CorsdError` if the configuration cannot be read or the files cannot be written.
    """
    config, names = read_json(small.path / "config.json"), [f"class {c}" for c in range(classes)]
    config["data"] |= {"class_names": names, "superclass_names": names, "superclass_of_class": list(range(classes))}
    config["method"], config["method_options"] = "byot", {}
    write_json(path / "config.json", config)
    labels = torch.arange(PROBES) % classes
    write_tensors(path / "probe.safetensors", {"labels": labels, "index": torch.arange(PROBES)}, {"split": "train"})
    generator = torch.Generator().manual_seed(0)
    for epoch in range(snapshots):
        snapshot = {f"relations.{k}": torch.rand(classes, classes, generator=generator) for k in range(exits)}
        snapshot |= {f"embeddings.{k}": torch.zeros(PROBES, 64).half() for k in range(exits)}
        snapshot |= {f"logits.{k}": torch.zeros(PROBES, classes).half() for k in range(exits)}
        write_tensors(path / "probes" / f"epoch_{epoch:04d}.safetensors", snapshot)
    return Run(path)


def _config(out: Path, **options: Any) -> TrainConfig:
    given: dict[str, Any] = {"batch_size": 40, "probe_size": 100, "out": str(out)}
    return TrainConfig(**given | options)


def _seconds(action: Callable[[], Any], repeat: int) -> float:
    """Processor time of an action in seconds: the median of `repeat` calls after a first one."""
    taken = []
    for _ in range(repeat + 1):
        begin = time.process_time()
        action()
        taken.append(time.process_time() - begin)
    return statistics.median(taken[1:])


def _megabytes(value: Any) -> float:
    """Size of the arrays and texts in packed data, in MB."""
    if isinstance(value, dict):
        return sum(map(_megabytes, value.values()))
    if isinstance(value, list):
        return sum(map(_megabytes, value))
    return (len(value) if isinstance(value, bytes) else len(str(value))) / 1e6


def _measurement(what: str, value: float, target: str) -> dict[str, Any]:
    return {"what": what, "value": float(f"{value:.4g}"), "target": target}
