"""Costs: multiply-accumulates (MACs) and parameters of exits, and MACs of a training step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from corsd_lib.backbones import SequentialBackbone, StagedBackbone
from corsd_lib.batches import Batch, epoch_batches
from corsd_lib.datasets import ImageData
from corsd_lib.errors import CorsdError
from corsd_lib.methods import find_method
from corsd_lib.network import ExitOutputs, MultiExitNetwork, evaluating
from corsd_lib.runs import DataInfo, Run, TrainConfig, new_network

__all__ = [
    "count_macs",
    "cumulative_macs",
    "early_exit_macs",
    "exit_costs",
    "run_macs",
    "training_macs",
]


def count_macs(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of a forward pass in eval mode for an input of this `shape`; counts convolutions and matrix
    products.
    """
    from torch.utils.flop_counter import FlopCounterMode

    device = next(module.parameters()).device
    with evaluating(module), FlopCounterMode(display=False) as counter:
        module(torch.zeros(shape, device=device))
    return counter.get_total_flops() // 2


def exit_costs(network: MultiExitNetwork, data: ImageData) -> list[dict[str, float]]:
    """Costs of the deployable sub-network of every exit: "macs", multiply-accumulates for one image, and "parameters"."""
    shape = (1, data.channels, data.image_size, data.image_size)
    parts = [network.truncated(k) for k in range(len(network.exits))]
    return [{"macs": count_macs(part, shape), "parameters": sum(p.numel() for p in part.parameters())} for part in parts]


def cumulative_macs(network: MultiExitNetwork, data: ImageData | DataInfo) -> list[int]:
    """Multiply-accumulates of an image that leaves at exit k, for each of the K exits.

    They cover the backbone up to the stage of exit k, and exits 1 to k, all of which are computed. `evaluate` reports fewer: it
    counts the deployable sub-network of exit k, which has no other exit. Only the channels and the image size of `data` are
    used. Source: ours.
    """
    return early_exit_macs(network, data)[0]


def early_exit_macs(network: MultiExitNetwork, data: ImageData | DataInfo) -> tuple[list[int], int]:
    """`cumulative_macs`, and the multiply-accumulates of the plain network, the backbone with only its deepest exit."""
    shape = (1, data.channels, data.image_size, data.image_size)
    with evaluating(network):
        images = torch.zeros(shape, device=next(network.parameters()).device)
        maps = network.backbone(images)
        inputs = [network.backbone.stem(images), *maps] if isinstance(network.backbone, SequentialBackbone) else []
    heads = [count_macs(head, tuple(maps[stage].shape)) for stage, head in zip(network.exit_stages, network.exits, strict=True)]
    before = _backbone_macs(network.backbone, shape, [tuple(x.shape) for x in inputs])
    to_exit = [before[stage] for stage in network.exit_stages]
    return [macs + sum(heads[: k + 1]) for k, macs in enumerate(to_exit)], to_exit[-1] + heads[-1]


def run_macs(run: Run) -> tuple[list[int], int]:
    """`early_exit_macs` of the network of a run with snapshots; its weights are not needed.

    Raises `CorsdError` if the snapshots do not match the network of the configuration.
    """
    with torch.device("meta"):  # without weights and without random numbers
        network = new_network(replace(run.config, pretrained=False), run.data)
    snapshot = run.probes[max(run.probes)]
    have, want = (len(snapshot.logits), snapshot.embeddings[0].shape[1]), (len(network.exits), network.embedding_dim)
    if have != want:  # checked before memory is allocated
        raise CorsdError(
            f"{run.path}: snapshots of {have[0]} exits with embeddings of {have[1]} dimensions, but network "
            f"{run.config.network!r} of config.json has {want[0]} exits and {want[1]} dimensions"
        )
    return early_exit_macs(network.to_empty(device="cpu"), run.data)


def _backbone_macs(backbone: StagedBackbone, shape: tuple[int, ...], inputs: Sequence[tuple[int, ...]]) -> list[int]:
    """MACs of the backbone up to every stage. `inputs`: shapes of the inputs of the stages, used only for a
    `SequentialBackbone`.
    """
    if not isinstance(backbone, SequentialBackbone):
        return [count_macs(backbone.truncated(depth), shape) for depth in range(1, len(backbone.feature_info) + 1)]
    stem = count_macs(backbone.stem, shape)
    stages = [count_macs(stage, given) for stage, given in zip(backbone.stages, inputs, strict=False)]
    return [stem + total for total in itertools.accumulate(stages)]


def training_macs(config: TrainConfig, data: DataInfo) -> float:
    """Multiply-accumulates of a training step per image: forward and backward pass of the network and of the method.

    Counts convolutions and matrix products, like `count_macs`. The cost of the network is proportional to the number of images,
    so it is counted on two images. The cost of the method may grow with the square of the batch, so it is counted on random
    outputs for a whole batch, whose labels are sampled as in the training. Raises the errors of `new_network` and
    `epoch_batches`, and `CorsdError` for invalid options of the method.
    """
    from torch.utils.flop_counter import FlopCounterMode

    corrected = {torch.ops.aten.convolution_backward: _convolution_backward_flops}
    with torch.random.fork_rng([]):
        network = new_network(replace(config, pretrained=False), data).train()
        method = config.build_method(network).train()
    batch = _synthetic_batch(config, data)
    batch = batch._replace(random=method.sample(batch))
    with FlopCounterMode(display=False, custom_mapping=corrected) as of_network:
        out = network(torch.zeros(2, data.channels, data.image_size, data.image_size), method.detach_exits)
    outputs = ExitOutputs(*([_random_like(t, len(batch.labels)) for t in tensors] for tensors in out))
    method(outputs, batch)  # not counted: methods that compare with past batches need a past batch
    with FlopCounterMode(display=False, custom_mapping=corrected) as of_method:
        method.transform_images(batch)
        method(outputs, batch)["total"].backward()
    pairs = [(t, w.grad[:2]) for t, w in zip(_flat(out), _flat(outputs), strict=True) if w.grad is not None]
    with FlopCounterMode(display=False, custom_mapping=corrected) as of_backward:
        torch.autograd.backward([t for t, _ in pairs], [grad for _, grad in pairs])
    network_flops = of_network.get_total_flops() + of_backward.get_total_flops()
    flops_per_mac, images = 2, 2
    network_macs = network_flops / flops_per_mac / images
    return network_macs + of_method.get_total_flops() / flops_per_mac / len(batch.labels)


def _convolution_backward_flops(
    grad: torch.Size, inputs: torch.Size, weight: torch.Size, *arguments: Any, out_shape: Any = None, **rest: Any
) -> int:
    """FLOPs of the gradients of inputs and weights of a convolution, each as many as in the forward pass.

    Replaces the formula of torch 2.14, which ignores groups.
    """
    transposed, wanted = arguments[4], arguments[7]
    positions = math.prod((inputs if transposed else grad)[2:])
    return 2 * grad[0] * positions * math.prod(weight) * (bool(wanted[0]) + bool(wanted[1]))


def _synthetic_batch(config: TrainConfig, data: DataInfo) -> Batch:
    """A batch with indices and labels sampled as in the training, from classes of equal size. Its images are zeros that take no
    memory.
    """
    method_class = find_method(config.method)
    sampling, generator = config.sampling or method_class.sampling, torch.Generator().manual_seed(0)
    labels = torch.arange(data.num_classes).repeat(config.per_class or 100)
    k = config.samples_per_class or method_class.samples_per_class
    indices = epoch_batches(labels, sampling, config.batch_size, k, generator)[0]
    images = torch.zeros(()).expand(len(indices), data.channels, data.image_size, data.image_size)
    return Batch(images, labels[indices], indices, sampling, generator, progress=0.5)


def _flat(out: ExitOutputs) -> list[Tensor]:
    return [t for tensors in out for t in tensors]


def _random_like(two: Tensor, count: int) -> Tensor:
    """A random leaf tensor (count, ...) that requires a gradient. All dimensions but the first are those of `two` (2, ...)."""
    return torch.randn(count, *two.shape[1:], generator=torch.Generator().manual_seed(count)).requires_grad_()
