"""What a trained network is worth: accuracy, cross-entropy and calibration by exit, and what each exit costs."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corsd_lib.batches import Batch, BatchSource, epoch_batches, evaluation_batches, step_generator
from corsd_lib.datasets import ImageData, ImageFiles, Split, load_dataset
from corsd_lib.datasets.selection import with_label_noise
from corsd_lib.errors import (
    PROCESSES_A_CPU,
    CorsdError,
    check_choice,
    check_processes,
    enough_memory,
    named,
    shortened,
)
from corsd_lib.methods import find_method
from corsd_lib.network import ExitOutputs, MultiExitNetwork
from corsd_lib.runs import DataInfo, Run, TrainConfig, new_network

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Evaluation",
    "calibration_error",
    "count_macs",
    "evaluate",
    "exit_embeddings",
    "exit_logits",
    "load_data",
    "run_data",
    "top_k_accuracy",
    "training_batches",
    "training_macs",
]


_NOISE = 2**40  # in the place of an epoch: no training has as many


@dataclass(frozen=True)
class Evaluation:
    """Figures of one split: `exits`, a dict an exit (shallow -> deep), and `ensemble`, the mean of the exits' probabilities.

    Keys: top1, top5 (%), cross_entropy (nats), calibration_error (expected calibration error, %), and for an exit macs
    (multiply-accumulates an image) and parameters of its deployable sub-network.
    """

    data: str
    split: str
    images: int
    exits: list[dict[str, float]]
    ensemble: dict[str, float]

    def table(self) -> pd.DataFrame:
        """One row an exit and one for the ensemble."""
        import pandas as pd

        names = [f"exit{k}" for k in range(1, len(self.exits) + 1)]
        return pd.DataFrame([*self.exits, self.ensemble], index=pd.Index([*names, "ensemble"], name="exit"))


def evaluate(
    what: Run | MultiExitNetwork,
    data: ImageData | None = None,
    *,
    data_root: str | None = None,
    split: str = "test",
    device: torch.device | str | None = None,
    workers: int | None = None,
) -> Evaluation:
    """Evaluate a run's newest weights, or a network in eval mode, on a split ("train", "validation", "test") of `data`.

    For a run the data it was trained on is loaded when not given. A network is left in the mode it came in, on `device` if
    that is given. `workers` processes read images that are streamed (default: as many as trained the run, else 2). Raises
    `CorsdError` for a split that is not there, for data of another number of classes, and for more workers than this machine
    can run.
    """
    check_choice("split", split, ("train", "validation", "test"))
    of_run = 2
    if isinstance(what, Run):
        data = run_data(what, data, data_root)
        network, of_run = what.network(), what.config.workers
    elif data is None:
        raise CorsdError("evaluate(network, data): a network alone does not know its data, give it")
    else:
        network = what
    rows: Split | None = getattr(data, split)
    if rows is None:
        raise CorsdError(f"data {data.name!r} has no split {split!r}: set a validation_fraction, or use 'test'")
    if isinstance(rows, ImageFiles):
        check_processes("workers", workers or 0, PROCESSES_A_CPU)
    if data.num_classes != network.num_classes:
        raise CorsdError(f"data {data.name!r} has {data.num_classes} classes, the network {network.num_classes}")
    if device is not None:
        network = _moved(network, device)
    with enough_memory(f"the evaluation on {data.name!r}"):
        logits, labels = exit_logits(network, data, rows, of_run if workers is None else workers)
    exits = [{**scores(z, labels), **cost} for z, cost in zip(logits, exit_costs(network, data), strict=True)]
    mean = torch.stack([F.softmax(z, dim=1) for z in logits]).mean(0)
    return Evaluation(data.name, split, len(labels), exits, scores(mean.clamp_min(1e-12).log(), labels))


def _moved(network: MultiExitNetwork, device: torch.device | str) -> MultiExitNetwork:
    try:
        torch.zeros(1, device=device).cpu()  # "meta" takes everything and gives nothing back
        return network.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # AssertionError: a torch built without CUDA
        reason = str(error).strip().partition("\n")[0]
        raise CorsdError(
            f"device {shortened(str(device))} cannot be used: {reason}; allowed: cpu, or cuda where there is a GPU"
        ) from error


def load_data(config: TrainConfig, data_root: str | None = None) -> ImageData:
    """The data set of a configuration, from `data_root` when given."""
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
    """The images of a run: `data` where it is given, else those that its configuration names; mean and deviation are the run's.

    Raises `CorsdError` when it was trained on images that were given to `train` and are not given here, and for other classes.
    """
    if data is None:
        if run.data.name != run.config.data:
            raise CorsdError(f"{run.path} was trained on data that was given to train, {run.data.name!r}: give it here too")
        with named(run.path):
            data = load_data(run.config, data_root)
        if changes := image_changes(data, run.data):
            raise CorsdError(
                f"{run.path} was trained on other images than {data.name!r} has here: {changes}; put them back, or give them "
                "here too"
            )
    elif tuple(data.class_names) != run.data.class_names or data.channels != run.data.channels:
        raise CorsdError(f"data {data.name!r} has other classes or channels than {run.path} was trained on, {run.data.name!r}")
    unseen = None if data.unseen is None else replace(data.unseen, mean=run.data.mean, std=run.data.std)
    return replace(data, mean=run.data.mean, std=run.data.std, unseen=unseen)


def image_changes(data: ImageData, info: DataInfo) -> str:
    """What of classes, splits and statistics of `data` is another than a run remembers; "" where it is nothing.

    Its test images may be others, but no image that it was trained on.
    """
    if tuple(data.class_names) != info.class_names:
        return "its classes are others"
    if unseen_class_names(data) != info.unseen_class_names:
        return "its held-out classes are others"
    if (data.image_size, data.channels) != (info.image_size, info.channels):
        now, then = ((of.channels, of.image_size, of.image_size) for of in (data, info))
        return f"images are {now}, were {then}"
    if changes := _split_changes(data, info):
        return changes
    pairs = zip((*data.mean, *data.std), (*info.mean, *info.std), strict=True)
    alike = all(abs(now - then) < 5e-3 for now, then in pairs)  # decoders of JPEG differ by less
    return "" if alike else "mean or deviation of the pixels of train differ"


def _split_changes(data: ImageData, info: DataInfo) -> str:
    """What of the splits is another than a run remembers; of an earlier library it may remember less, or nothing."""
    then, now = info.splits or {}, splits_of(data)
    if data.own_split and not all(len(remembered) == 3 for remembered in (then or {"train": ()}).values()):
        return "it was trained with an earlier version of this library, which split a folder of classes by position"
    for name in {**then, **(now if then else {})}:
        if name not in now or name not in then:
            return f"the split {name} {'is new' if name in now else 'is gone'}"
        if now[name][0] != then[name][0]:
            return f"{name} has {now[name][0]:,} images, had {then[name][0]:,}"
        if now[name][1] != then[name][1]:
            return f"{name} has as many images, but of other classes"
        if now[name][: len(then[name])] != list(then[name]):
            return f"{name} has as many images of each class, but others: some were exchanged or renamed"
    return ""


def unseen_class_names(data: ImageData) -> tuple[str, ...]:
    """Names of the classes that `data` holds out; () where it holds out none."""
    return () if data.unseen is None else tuple(data.unseen.class_names)


def splits_of(data: ImageData) -> dict[str, list[int]]:
    """`DataInfo.splits` of a data set."""
    splits = {"train": data.train, **({} if data.validation is None else {"validation": data.validation})}
    return {name: [len(split), _checksum(split.labels), _content(split)] for name, split in splits.items()}


def _checksum(values: Tensor) -> int:
    return zlib.crc32(values.cpu().to(torch.int64).numpy().tobytes())


def _content(split: Split) -> int:
    """The CRC-32 of which images a split holds, in their order: of their names, else of their rows."""
    names = split.names
    return zlib.crc32("\n".join(names).encode("utf-8", "surrogateescape")) if names else _checksum(split.index)


def training_batches(config: TrainConfig, data: ImageData, **place: Any) -> BatchSource:
    """The batches that a training of `config` draws from `data`; `place`: device, rank and world of `BatchSource`.

    Their labels, and the labels that decide which images meet in a batch, have the noise that `config` wants; those of `data`
    stay as they are. The noise is drawn from `config.seed`, from a stream of its own.
    """
    kind = find_method(config.method)
    if config.label_noise:
        noise = step_generator(config.seed, _NOISE)
        data = replace(data, train=with_label_noise(data.train, config.label_noise, data.num_classes, noise))
    return BatchSource(
        data,
        batch_size=config.batch_size,
        sampling=config.sampling or kind.sampling,
        samples_per_class=config.samples_per_class or kind.samples_per_class,
        augmentation=config.augmentation,
        padding_mode=config.padding_mode,
        cutout=config.cutout,
        seed=config.seed,
        workers=config.workers,
        **place,
    )


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside, each module's own mode restored afterwards."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for m, mode in modes:
            m.training = mode


def exit_logits(network: MultiExitNetwork, data: ImageData, split: Split, workers: int = 2) -> tuple[list[Tensor], Tensor]:
    """Logits of every exit, K x (N, C) float32 on the CPU, and labels (N,) of a split in its order."""
    return _of_exits(network, data, split, workers, attrgetter("logits")), split.labels


def exit_embeddings(network: MultiExitNetwork, data: ImageData, split: Split, workers: int = 2) -> list[Tensor]:
    """Embeddings of every exit, K x (N, D) float32 on the CPU, of a split in its order, normalised as `data`."""
    return _of_exits(network, data, split, workers, attrgetter("embeddings"))


def _of_exits(
    network: MultiExitNetwork, data: ImageData, split: Split, workers: int, part: Callable[[ExitOutputs], list[Tensor]]
) -> list[Tensor]:
    """A part of what a network gives in eval mode, such as its logits, of all images of a split."""
    device = next(network.parameters()).device
    collected: list[list[Tensor]] = []
    with evaluating(network):
        for images, _ in evaluation_batches(data, split, device, workers=workers):
            collected.append([t.float().cpu() for t in part(network(images))])
    return [torch.cat(t) for t in zip(*collected, strict=True)]


def scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """top1, top5 (%), cross_entropy (nats) and calibration_error (%) of logits (N, C)."""
    return {
        "top1": top_k_accuracy(logits, labels, 1),
        "top5": top_k_accuracy(logits, labels, 5),
        "cross_entropy": F.cross_entropy(logits, labels).item(),
        "calibration_error": calibration_error(logits, labels),
    }


def top_k_accuracy(logits: Tensor, labels: Tensor, k: int = 1) -> float:
    """Share (%) of rows of `logits` (N, C) whose label is among the `k` largest (all of C when there are fewer)."""
    top = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return 100.0 * (top == labels[:, None]).any(1).double().mean().item()


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error (%): mean |accuracy - confidence| over equal bins of confidence, weighted by their images.

    Guo et al. 2017, arXiv 1706.04599; 0 is best.
    """
    confidence, guess = F.softmax(logits.double(), dim=1).max(1)
    right = (guess == labels).double()
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.double).index_add_(0, bin_of, right - confidence)
    return 100.0 * gap.abs().sum().item() / len(labels)


def exit_costs(network: MultiExitNetwork, data: ImageData) -> list[dict[str, float]]:
    """macs and parameters of the deployable sub-network of every exit."""
    shape = (1, data.channels, data.image_size, data.image_size)
    parts = [network.truncated(k) for k in range(len(network.exits))]
    return [{"macs": count_macs(part, shape), "parameters": sum(p.numel() for p in part.parameters())} for part in parts]


def count_macs(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of one forward pass of convolutions and matrix products at input `shape`, in eval mode."""
    from torch.utils.flop_counter import FlopCounterMode

    device = next(module.parameters()).device
    with evaluating(module), FlopCounterMode(display=False) as counter:
        module(torch.zeros(shape, device=device))
    return counter.get_total_flops() // 2


def training_macs(config: TrainConfig, data: DataInfo) -> float:
    """Multiply-accumulates an image of a training step, forward and backward, of the network and of what the method adds.

    Convolutions and matrix products, as `count_macs`. The network is counted on two images, for it costs the same for each; the
    method on images and made-up outputs of a whole batch drawn as in the training, for pairs grow with the square of the batch.
    """
    from torch.utils.flop_counter import FlopCounterMode

    right = {torch.ops.aten.convolution_backward: _convolution_backward_flops}
    with torch.random.fork_rng([]):
        network = new_network(replace(config, pretrained=False), data).train()
        method = config.build_method(network).train()
    batch = _made_up_batch(config, data)
    batch = batch._replace(draws=method.draw(batch))
    with FlopCounterMode(display=False, custom_mapping=right) as of_network:
        out = network(torch.zeros(2, data.channels, data.image_size, data.image_size), method.detach_exits)
    whole = ExitOutputs(*([_repeated(t, len(batch.labels)) for t in tensors] for tensors in out))
    method(whole, batch)  # what a method remembers of past batches is there in all but the first
    with FlopCounterMode(display=False, custom_mapping=right) as of_method:
        method.images(batch)
        method(whole, batch)["total"].backward()
    pairs = [(t, w.grad[:2]) for t, w in zip(_flat(out), _flat(whole), strict=True) if w.grad is not None]
    with FlopCounterMode(display=False, custom_mapping=right) as of_backward:
        torch.autograd.backward([t for t, _ in pairs], [grad for _, grad in pairs])
    network_flops = of_network.get_total_flops() + of_backward.get_total_flops()
    return network_flops / 2 / 2 + of_method.get_total_flops() / 2 / len(batch.labels)


def _convolution_backward_flops(
    grad: torch.Size, inputs: torch.Size, weight: torch.Size, *arguments: Any, out_shape: Any = None, **rest: Any
) -> int:
    """Gradients of inputs and weights, each as much as the forward pass; torch 2.14 counts groups as if all were connected."""
    transposed, wanted = arguments[4], arguments[7]
    positions = math.prod((inputs if transposed else grad)[2:])
    return 2 * grad[0] * positions * math.prod(weight) * (bool(wanted[0]) + bool(wanted[1]))


def _made_up_batch(config: TrainConfig, data: DataInfo) -> Batch:
    """Rows and labels of a batch as the sampling of `config` draws it; its images are zeros that take no memory."""
    kind = find_method(config.method)
    sampling, generator = config.sampling or kind.sampling, torch.Generator().manual_seed(0)
    labels = torch.arange(data.num_classes).repeat(config.per_class or 100)
    k = config.samples_per_class or kind.samples_per_class
    rows = epoch_batches(labels, sampling, config.batch_size, k, generator)[0]
    images = torch.zeros(()).expand(len(rows), data.channels, data.image_size, data.image_size)
    return Batch(images, labels[rows], rows, sampling, generator, progress=0.5)


def _flat(out: ExitOutputs) -> list[Tensor]:
    return [t for tensors in out for t in tensors]


def _repeated(two: Tensor, count: int) -> Tensor:
    """A leaf of `count` rows like those of `two`."""
    return torch.randn(count, *two.shape[1:], generator=torch.Generator().manual_seed(count)).requires_grad_()
