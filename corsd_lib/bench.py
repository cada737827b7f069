"""Benchmarks of speed and memory as ratios to an alternative, because absolute times differ between machines.

The explorers also have limits in seconds of processor time; see `corsd_lib.bench_explorers`.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from corsd_lib.batches import BatchSource, triplet_batches
from corsd_lib.bench_explorers import explorer_measurements
from corsd_lib.bench_serving import serving_measurements
from corsd_lib.datasets import ImageArrays, ImageData, ImageFiles
from corsd_lib.errors import CorsdError, require
from corsd_lib.files import write_between
from corsd_lib.losses import margin_over_triplets
from corsd_lib.methods import Batch, Corsd, build_method, find_method
from corsd_lib.network import ExitOutputs, build_network
from corsd_lib.provenance import provenance
from corsd_lib.relation import MapRelation
from corsd_lib.sharing.programs import FORMATS

__all__ = ["bench", "peak_memory", "table", "write_table"]

CLASSES, BATCH, ANCHORS = 100, 128, 43
SECONDS = 600  # time limit of a measured process


def bench(quick: bool = False) -> dict[str, Any]:
    """Run all benchmarks, which takes minutes on two cores.

    Returns a dict. `figures` has the measurements by name, each with its `value`, its `target` and a description, `what`.
    `repeat` is the number of repetitions, and `provenance` describes the environment. `quick`: 2 repetitions instead of 7.
    Raises `MissingPackage` if the extra "notebooks", which the explorers need, or the extra "deploy" is not installed.
    """
    require("the benchmark of explorers", "plotly", "ipywidgets", "anywidget")  # first, as the others take minutes
    require("the benchmark of latency", *FORMATS["onnx"].packages)
    repeat, begun = 2 if quick else 7, provenance()
    measurements = {
        **{f"{m}_step_study_{b}": study_step_ratio(m, b, repeat) for b in (64, 32) for m in ("corsd", "deep_supervision")},
        "corsd_step_resnet18": step_ratio("resnet18", repeat),
        "relation_share_resnet18": relation_share("resnet18", repeat),
        "corsd_step_resnet20": step_ratio("resnet20", repeat),
        "release_formulation": release_ratio("resnet18", repeat),
        "input_pipeline": pipeline_ratio(repeat),
        "streamed_pipeline": streamed_ratio(repeat),
        "step_memory_resnet18": memory_ratio("resnet18"),
        "import": import_ratio(repeat),
        **serving_measurements(repeat),
        **explorer_measurements(repeat),
    }
    return {"figures": measurements, "repeat": repeat, "provenance": begun}


def table(result: dict[str, Any]) -> str:
    """The measurements as a Markdown table."""
    lines = ["| what | measured | target |", "| --- | --- | --- |"]
    for measured in result["figures"].values():
        lines.append(f"| {measured['what']} | {measured['value']:.3g} | {measured['target']}{_missed(measured)} |")
    return "\n".join(lines)


def _missed(measured: dict[str, Any]) -> str:
    """Text ", **missed**" if a value is on the wrong side of its target, such as "at most 1.5" or "at least 3"; else ""."""
    *words, limit = measured["target"].split()
    if not words:  # "-" means no target
        return ""
    short = measured["value"] < float(limit) if words == ["at", "least"] else measured["value"] > float(limit)
    return ", **missed**" if short else ""


def write_table(result: dict[str, Any], document: Path) -> None:
    """Put the table between the `<!-- bench -->` marks of a Markdown file. Raises `CorsdError` without these marks."""
    write_between(document, "bench", table(result))


def step_ratio(name: str, repeat: int) -> dict[str, Any]:
    """Time of a CORSD step, including exits, relative to a step of the plain network."""
    seconds = _in_turn({m: _stepper(name, m) for m in ("baseline", "corsd")}, repeat)
    target = {"resnet18": "at most 1.35", "resnet20": "at most 1.7"}[name]
    return _measurement(f"CORSD step / plain step, {name}, batch {BATCH}", _ratio(seconds, "corsd", "baseline"), target)


def study_step_ratio(method: str, batch: int, repeat: int) -> dict[str, Any]:
    """Time of a step of `method` relative to a step of the plain network, both on one thread.

    Both use the settings of `results/cifar100`.
    """
    label, target = {"corsd": ("CORSD", "at most 1.5"), "deep_supervision": ("deep supervision", "at most 1.25")}[method]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = _in_turn({m: _study_stepper(m, batch) for m in ("baseline", method)}, 4 * repeat)
    finally:
        torch.set_num_threads(threads)
    what = f"{label} step / plain step, ResNet-10 of width 32 in bf16, batch {batch}, one thread"
    return _measurement(what, _ratio(seconds, method, "baseline"), target)


def relation_share(name: str, repeat: int) -> dict[str, Any]:
    """Time of the relation, auxiliary and transfer terms (forward and backward pass), as a share of a CORSD step."""
    network = build_network(name, CLASSES)
    method = build_method("corsd", network=network)
    assert isinstance(method, Corsd)
    images, labels = _images(BATCH)
    with torch.no_grad():
        out = network(images)
    leaves = [e.clone().requires_grad_() for e in out.embeddings]
    weights = method.options

    def relations() -> None:
        batch = Batch(images, labels, labels)
        alone = ExitOutputs(out.features, leaves, [z.detach() for z in out.logits])
        parts = method.relation_terms(alone, batch)
        sum((getattr(weights, k) * v for k, v in parts.items()), start=torch.zeros(())).backward()

    seconds = _in_turn({"relations": relations, "corsd": _stepper(name, "corsd")}, repeat)
    value = _ratio(seconds, "relations", "corsd")
    return _measurement(f"relation, auxiliary and transfer terms / CORSD step, {name}", value, "at most 0.05")


def release_ratio(name: str, repeat: int) -> dict[str, Any]:
    """Time per anchor image in the formulation of the CORSD authors' code, relative to that of this library.

    In the authors' code a step takes three images for each anchor, and its relation networks take pairs of feature maps.
    """
    seconds = _in_turn({"release": _release_stepper(name), "corsd": _stepper(name, "corsd")}, repeat)
    per_anchor = {"release": [s / ANCHORS for s in seconds["release"]], "corsd": [s / BATCH for s in seconds["corsd"]]}
    what = f"the authors' formulation / ours, time per anchor image, {name}"
    return _measurement(what, _ratio(per_anchor, "release", "corsd"), "at least 3")


def pipeline_ratio(repeat: int) -> dict[str, Any]:
    """Images per second of whole-batch augmentation, relative to torchvision's transforms of single images in two workers."""
    data = _data(50_000)
    source = BatchSource(data, batch_size=BATCH, augmentation="crop_flip")

    def ours() -> None:
        for _ in source(0):
            pass

    def theirs() -> None:
        for _ in _per_image_loader(data):
            pass

    seconds = _in_turn({"ours": ours, "theirs": theirs}, repeat)
    what = "input pipeline: images per second, ours / torchvision per image in 2 workers"
    return _measurement(what, _ratio(seconds, "theirs", "ours"), "at least 3")


def streamed_ratio(repeat: int) -> dict[str, Any]:
    """Images per second streamed from JPEG files at 224 pixels, relative to torchvision's ImageFolder; two workers each."""
    with tempfile.TemporaryDirectory() as folder:
        data = _photographs(Path(folder), 4 * BATCH)
        source = BatchSource(data, batch_size=BATCH, augmentation="resized_crop")

        def ours() -> None:
            for _ in source(0):
                pass

        def theirs() -> None:
            for _ in _image_folder_loader(Path(folder), data):
                pass

        seconds = _in_turn({"ours": ours, "theirs": theirs}, repeat)
    what = "streaming from files at 224: images per second, ours / torchvision's ImageFolder, 2 workers each"
    return _measurement(what, _ratio(seconds, "theirs", "ours"), "at least 1")


def memory_ratio(name: str) -> dict[str, Any]:
    """Memory that two CORSD steps add to the peak of a fresh process, divided by that of two steps of the plain network.

    Raises `CorsdError` if a process fails or takes too long.
    """
    peak = {method: _peak_memory(name, method) for method in ("baseline", "corsd")}
    measured = _measurement(
        f"memory of a CORSD step / a plain step, {name}, batch {BATCH}", peak["corsd"] / peak["baseline"], "-"
    )
    return {**measured, "gibibytes": {k: round(v, 3) for k, v in peak.items()}}


def import_ratio(repeat: int) -> dict[str, Any]:
    """Time to import torch, `train` and `load_dataset`, relative to torch alone; each in a new process.

    Raises `CorsdError` if a process fails or takes too long.
    """
    commands = {
        "torch": lambda: _fresh("import torch"),
        "corsd_lib": lambda: _fresh("import torch, corsd_lib; corsd_lib.train, corsd_lib.load_dataset"),
    }
    seconds = _in_turn(commands, max(repeat, 3))
    return _measurement("import torch, corsd_lib / import torch", _ratio(seconds, "corsd_lib", "torch"), "below 1.5")


# --- what is timed ----------------------------------------------------------------------------------------------------


def _in_turn(actions: dict[str, Callable[[], Any]], repeat: int) -> dict[str, list[float]]:
    """Seconds of each action in each of `repeat` rounds, by name.

    Every round runs all actions in turn, so that the load of the machine affects all of them. One more round runs before these
    and is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeat + 1):
        for name, action in actions.items():
            begin = time.perf_counter()
            action()
            seconds[name].append(time.perf_counter() - begin)
    return {name: values[1:] for name, values in seconds.items()}


def _ratio(seconds: dict[str, list[float]], one: str, other: str) -> float:
    """Median of the ratios `seconds[one][i]` / `seconds[other][i]`, one for each round i."""
    return statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))


def _measurement(what: str, value: float, target: str) -> dict[str, Any]:
    return {"what": what, "value": round(value, 3), "target": target}


def _images(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, 32, 32, generator=generator), torch.randint(CLASSES, (count,), generator=generator)


def _stepper(name: str, method_name: str) -> Callable[[], None]:
    """A function that does one training step on a fixed batch: forward, objective, backward, SGD."""
    network = build_network(name, CLASSES, exits=find_method(method_name).exits)
    method = build_method(method_name, network=network)
    optimizer = torch.optim.SGD([*network.parameters(), *method.parameters()], lr=1e-3, momentum=0.9)
    images, labels = _images(BATCH)

    def step() -> None:
        batch = Batch(images, labels, labels)
        batch = batch._replace(random=method.sample(batch))
        loss = method(network(method.transform_images(batch)), batch)["total"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def _study_stepper(method_name: str, batch_size: int) -> Callable[[], None]:
    """A function that does one training step as in `results/cifar100`, on a fixed batch with two images of each class."""
    network = build_network("resnet10", CLASSES, width=32, stem="medium", exits=find_method(method_name).exits)
    network.to(memory_format=torch.channels_last)
    method = build_method(method_name, network=network)
    optimizer = torch.optim.SGD([*network.parameters(), *method.parameters()], lr=1e-3, momentum=0.9)
    images = _images(batch_size)[0].contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch_size) // 2

    def step() -> None:
        batch = Batch(images, labels, labels)
        batch = batch._replace(random=method.sample(batch))
        with torch.autocast("cpu", torch.bfloat16):
            loss = method(network(method.transform_images(batch)), batch)["total"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def _release_stepper(name: str) -> Callable[[], None]:
    """A function that does one training step as in the CORSD authors' code, on a triplet batch.

    As in that code, the feature maps of the first stage are concatenated one pair at a time.
    """
    network = build_network(name, CLASSES, exits="deepest")
    method = build_method("corsd_release", network=network)
    optimizer = torch.optim.SGD([*network.parameters(), *method.parameters()], lr=1e-3, momentum=0.9)
    labels = torch.arange(CLASSES).repeat(6)
    rows = triplet_batches(labels, 3 * ANCHORS, torch.Generator().manual_seed(0))[0]
    images, labels = _images(3 * ANCHORS)[0], labels[rows]

    def step() -> None:
        out = network(images)
        loss = nn.functional.cross_entropy(out.logits[-1][:ANCHORS], labels[:ANCHORS])
        join = _join_one_by_one  # the authors' code loops over samples at the first stage only
        for module, maps in zip(method.relation_networks(), out.features, strict=True):
            relation = cast(MapRelation, module)
            pooled = relation.body(join(*maps.split(ANCHORS))).mean((2, 3))
            join = _join_at_once
            intra, inter = relation.score(relation.embed(pooled).relu()).sigmoid().squeeze(1).split(ANCHORS)
            auxiliary = nn.functional.cross_entropy(relation.auxiliary(pooled[:ANCHORS]), labels[:ANCHORS])
            loss = loss + 0.01 * margin_over_triplets(intra, inter) + 0.04 * auxiliary
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def _join_one_by_one(anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    return torch.stack([torch.cat([a, b]) for other in (positive, negative) for a, b in zip(anchor, other, strict=True)])


def _join_at_once(anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    return torch.cat([torch.cat([anchor, positive], dim=1), torch.cat([anchor, negative], dim=1)])


def _data(count: int) -> ImageData:
    """Random images of the shape of CIFAR; the measured time does not depend on their content."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    split = ImageArrays(images, torch.arange(count) % CLASSES, torch.arange(count))
    names = tuple(map(str, range(CLASSES)))
    third = (0.5, 0.5, 0.5)
    return ImageData("noise", split, split, names, names, torch.arange(CLASSES), third, third, 32)


def _per_image_loader(data: ImageData) -> Iterator[Any]:
    """The usual input pipeline: PIL images, RandomCrop, RandomHorizontalFlip, ToTensor and Normalize, in a DataLoader with 2
    workers.
    """
    from PIL import Image
    from torch.utils.data import DataLoader
    from torchvision import transforms

    assert isinstance(data.train, ImageArrays)
    pixels = data.train.images.permute(0, 2, 3, 1).numpy()
    augment = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4, padding_mode="reflect"),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(data.mean, data.std),
        ]
    )

    class PerImage(torch.utils.data.Dataset[Tensor]):
        def __len__(self) -> int:
            return len(pixels)

        def __getitem__(self, row: int) -> Tensor:
            return augment(Image.fromarray(pixels[row]))

    loader = DataLoader(PerImage(), batch_size=BATCH, shuffle=True, drop_last=True, num_workers=2)
    return islice(iter(loader), len(pixels) // BATCH)


def _photographs(folder: Path, count: int) -> ImageData:
    """A data set of `count` JPEG files, as large and as smooth as photographs of CUB, in the folders `folder`/<class>/."""
    from PIL import Image

    draw = np.random.default_rng(0)
    paths = [folder / str(i % CLASSES) / f"{i}.jpg" for i in range(count)]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        shapes = Image.fromarray(draw.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        shapes.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=95)
    split = ImageFiles(tuple(map(str, paths)), torch.arange(count) % CLASSES, torch.arange(count), 224)
    names, third = tuple(map(str, range(CLASSES))), (0.5, 0.5, 0.5)
    return ImageData("photographs", split, split, names, names, torch.arange(CLASSES), third, third, 224, "resized_crop")


def _image_folder_loader(folder: Path, data: ImageData) -> Iterator[Any]:
    """The usual input pipeline: ImageFolder, RandomResizedCrop, RandomHorizontalFlip, ToTensor and Normalize, with 2
    workers.
    """
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(data.image_size, scale=(data.crop_scale, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(data.mean, data.std),
        ]
    )
    files = datasets.ImageFolder(folder, augment)
    return iter(DataLoader(files, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=2))


def peak_memory() -> float:
    """Largest resident memory of this process so far, GiB."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss of a child starts at that of its parent, unlike the peak in /proc
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024**2
    import resource  # not available on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1024**3


def _peak_memory(name: str, method: str) -> float:
    """GiB that two steps add to the peak of a fresh process."""
    code = f"""
from corsd_lib.bench import _stepper, peak_memory
before = peak_memory()
step = _stepper({name!r}, {method!r})
step(), step()
print(peak_memory() - before)
"""
    return float(_fresh(code))


def _fresh(code: str) -> str:
    """The output of Python code in a new process. Raises `CorsdError` if it fails or takes too long."""
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        raise CorsdError(f"a measured process took more than {SECONDS} seconds and was ended") from error
    if done.returncode:
        raise CorsdError(f"a measured process failed: {done.stderr.strip().rpartition(chr(10))[2]}")
    return done.stdout
