"""Small layers shared by backbones, exits and relation networks."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from corsd_lib.errors import CorsdError, shortened


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that accepts a single value per channel, which has no variance to normalise by.

    Input and output (B, C, H, W). In train mode with B·H·W = 1 (one image on a 1x1 map) PyTorch raises an error; here the
    running statistics are used, as in eval mode, and are not updated. Otherwise equal to `nn.BatchNorm2d`. Source: ours.
    """

    def forward(self, input: Tensor) -> Tensor:
        values_per_channel = input.numel() // self.num_features
        if self.training and self.track_running_stats and values_per_channel == 1:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(input)


class DepthwiseConv2d(nn.Conv2d):
    """A 3x3 depthwise convolution without bias, (B, channels, H, W) -> (B, channels, ceil(H / stride), ceil(W / stride)).

    In mixed precision on a CPU it uses float32, because PyTorch's bfloat16 kernel for its gradient is 10 to 40 times slower.
    Source: ours.
    """

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.float())
        return super().forward(input)


class SeparableConv(nn.Sequential):
    """Block of an exit: two depthwise-separable 3x3 convolutions, each with batch norm and ReLU.

    (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)), values >= 0. The first depthwise
    convolution has the stride. Source: the bottleneck of BYOT, arXiv 1905.08094, section 3.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 2) -> None:
        super().__init__(
            *_separable(in_channels, in_channels, stride),
            *_separable(in_channels, out_channels, 1),
        )
        init_convolutions(self)


def _separable(in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
    return [
        DepthwiseConv2d(in_channels, stride),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]


def downsampling(in_channels: int, out_channels: int, reduction_steps: int) -> nn.Sequential:
    """Convolutions that map a shallow feature map to the width and resolution of a deeper one.

    (B, in_channels, H, W) -> (B, out_channels, ceil(H / 2^n), ceil(W / 2^n)), n = `reduction_steps`: n `SeparableConv`s with
    stride 2. Channels double from one to the next up to `out_channels`, and the last one has `out_channels`. With n = 0 it is
    one block with stride 1 if the numbers of channels differ, else the identity (an empty Sequential). Raises `CorsdError` for
    a channel count below 1 or n below 0. Source: layout of arXiv 1905.08094, figure 2; the channel rule is ours.
    """
    if in_channels < 1 or out_channels < 1:
        raise CorsdError(
            f"a downsampling has channels {shortened(in_channels)} -> {shortened(out_channels)}; allowed: 1 or more"
        )
    if reduction_steps < 0:
        raise CorsdError(f"reduction_steps = {shortened(reduction_steps)}; allowed: 0 or more")
    if reduction_steps == 0 and in_channels == out_channels:
        return nn.Sequential()
    if reduction_steps == 0:
        return nn.Sequential(SeparableConv(in_channels, out_channels, 1))
    doubled = [min(in_channels * 2**step, out_channels) for step in range(1, reduction_steps)]
    widths = [in_channels, *doubled, out_channels]
    return nn.Sequential(*(SeparableConv(narrow, wide, 2) for narrow, wide in pairwise(widths)))


def stride2_steps(reduction: int, deepest_reduction: int) -> int:
    """Number of stride-2 steps from the reduction (image side / feature side) of a stage to that of the deepest stage.

    Rounded up if the ratio is not a power of two. Raises `CorsdError` if the deepest stage has the higher resolution. Source:
    ours.
    """
    if not 1 <= reduction <= deepest_reduction:
        raise CorsdError(
            f"the reduction of a stage is {shortened(reduction)}; allowed: 1 to {deepest_reduction}, that of the deepest stage"
        )
    return math.ceil(math.log2(deepest_reduction / reduction))


def init_convolutions(module: nn.Module) -> None:
    """Initialise all convolutions in `module` with Kaiming normal (arXiv 1502.01852).

    Fan out is used, as in torchvision. For convolutions with groups (depthwise) fan in is used.
    """
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            # PyTorch's fan out of a depthwise filter counts all channels, but each filter has one output channel: use fan in
            mode: Literal["fan_in", "fan_out"] = "fan_out" if child.groups == 1 else "fan_in"
            nn.init.kaiming_normal_(child.weight, mode=mode, nonlinearity="relu")
