"""`MultiExitNetwork`: a backbone with classifiers (exits) on its stages. Lists of exits and stages are always shallow ->
deep.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from corsd_lib.backbones import StagedBackbone, StageInfo, build_backbone
from corsd_lib.errors import CorsdError, check_choice, enough_memory, is_whole, shortened
from corsd_lib.layers import downsampling, stride2_steps


class ExitOutputs(NamedTuple):
    """Outputs of a network for a batch, shallow -> deep; exit i is on stage `network.exit_stages[i]`."""

    features: list[Tensor]  # (B, C_k, H_k, W_k), the feature map of every stage, including those without an exit
    embeddings: list[Tensor]  # (B, D), the pooled vector before the classifier; D is the same at all exits
    logits: list[Tensor]  # (B, C)


class Exit(nn.Module):
    """Classifier on one stage: a bottleneck to the shape of the deepest stage, average pooling, and a linear layer.

    `forward`: feature (B, C_k, H_k, W_k) -> embedding (B, D), logits (B, C), where D is the number of channels of the deepest
    stage. On the deepest stage itself the bottleneck is empty. Source: BYOT, arXiv 1905.08094, figure 2.
    """

    def __init__(self, stage: StageInfo, deepest: StageInfo, num_classes: int) -> None:
        super().__init__()
        steps = stride2_steps(stage.reduction, deepest.reduction)
        self.bottleneck = downsampling(stage.channels, deepest.channels, steps)
        self.classifier = nn.Linear(deepest.channels, num_classes)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        shrunk = self.bottleneck(feature)  # (B, D, H_K, W_K)
        embedding = F.adaptive_avg_pool2d(shrunk, 1).flatten(1)  # (B, D)
        return embedding, self.classifier(embedding)


class MultiExitNetwork(nn.Module):
    """A backbone and its exits.

    `exits`: "all" puts an exit on every stage, "deepest" only on the last (the plain network). The deepest exit is initialised
    before the shallow ones. For a given seed, the backbone and the deepest exit therefore have the same initial weights with
    both values of `exits`. Raises `CorsdError` for fewer than one class and an unknown `exits`.
    """

    exits: nn.ModuleList

    def __init__(self, backbone: StagedBackbone, num_classes: int, exits: str = "all") -> None:
        super().__init__()
        check_choice("exits", exits, ("all", "deepest"))
        if not is_whole(num_classes, 1, 2**31 - 1):
            raise CorsdError(f"num_classes = {shortened(num_classes)}; allowed: a whole number of 1 or more, below {2**31}")
        info = backbone.feature_info
        deepest_exit = Exit(info[-1], info[-1], num_classes)
        shallow_exits = [Exit(stage, info[-1], num_classes) for stage in info[:-1]] if exits == "all" else []
        self.backbone = backbone
        self.exits = nn.ModuleList([*shallow_exits, deepest_exit])
        self.exit_stages = tuple(range(len(info) - len(self.exits), len(info)))
        self.num_classes = num_classes
        self.embedding_dim = info[-1].channels

    def forward(self, images: Tensor, detach_exits: bool = False) -> ExitOutputs:
        """Run every exit on a batch.

        `images` (B, C_in, H, W), floating point, normalised. `detach_exits`: shallow exits get detached feature maps, so that
        their gradients do not reach the backbone; the returned `features` and the deepest exit are not detached. Raises
        `CorsdError` if the shape or the type of the images is wrong.
        """
        check_images(images, self.backbone.in_channels)
        maps = self.backbone(images)
        outputs = ExitOutputs(maps, [], [])
        for stage, head in zip(self.exit_stages, self.exits, strict=True):
            cut = detach_exits and stage != len(maps) - 1
            embedding, logits = head(maps[stage].detach() if cut else maps[stage])
            outputs.embeddings.append(embedding)
            outputs.logits.append(logits)
        return outputs

    def truncated(self, k: int) -> TruncatedNetwork:
        """The deployable sub-network of exit `k` (0 = shallowest): a copy of the modules that it needs.

        The copy is in the same mode (train or eval) as this network. Raises `CorsdError` for an exit that does not exist.
        """
        if not is_whole(k, 0, len(self.exits) - 1):
            raise CorsdError(f"exit = {shortened(k)}; allowed: 0 to {len(self.exits) - 1}")
        backbone = self.backbone.truncated(self.exit_stages[k] + 1)
        return TruncatedNetwork(backbone, copy.deepcopy(self.exits[k])).train(self.training)


class TruncatedNetwork(nn.Module):
    """One exit and the stages that it needs. Maps images (B, C_in, H, W) to logits (B, C)."""

    def __init__(self, backbone: StagedBackbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.exit = head

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, self.backbone.in_channels)
        _, logits = self.exit(self.backbone(images)[-1])
        return logits


def check_images(images: Tensor, in_channels: int) -> None:
    """Raise `CorsdError` unless `images` is a floating-point tensor (B, in_channels, H, W)."""
    if images.ndim != 4 or images.shape[1] != in_channels:
        raise CorsdError(f"images have shape {tuple(images.shape)}; allowed: (B, {in_channels}, H, W)")
    if not images.is_floating_point():
        raise CorsdError(f"images are of type {images.dtype}; allowed: floating point, normalised")


def build_network(
    name: str,
    num_classes: int,
    *,
    in_channels: int = 3,
    image_size: int = 32,
    width: int | None = None,
    stem: str = "auto",
    pretrained: bool = False,
    exits: str = "all",
) -> MultiExitNetwork:
    """Build a backbone by name (see `build_backbone`) and put exits on it (see `MultiExitNetwork`).

    Weights are initialised with torch's global generator. Raises the errors of both, and `CorsdError` if there is not enough
    memory.
    """
    check_choice("exits", exits, ("all", "deepest"))  # before the backbone is built or downloaded
    with enough_memory(f"network {shortened(name)} of width {shortened(width)} and {shortened(num_classes)} classes"):
        backbone = build_backbone(
            name, in_channels=in_channels, width=width, stem=stem, image_size=image_size, pretrained=pretrained
        )
        return MultiExitNetwork(backbone, num_classes, exits)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put `module` into eval mode without gradients inside the context; afterwards every submodule is in its previous mode."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for m, mode in modes:
            m.training = mode
