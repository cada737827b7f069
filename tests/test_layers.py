from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from corsd_lib.errors import CorsdError
from corsd_lib.layers import BatchNorm2d, DepthwiseConv2d, SeparableConv, downsampling, stride2_steps


def test_batch_norm_is_pytorchs_where_there_is_a_variance() -> None:
    torch.manual_seed(0)
    ours, theirs = BatchNorm2d(3), nn.BatchNorm2d(3)
    for shape in ((4, 3, 5, 5), (2, 3, 1, 1), (1, 3, 1, 2)):
        images = torch.randn(shape)
        assert torch.equal(ours(images), theirs(images))
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(ours.state_dict()["running_mean"], torch.zeros(3))


def test_batch_norm_falls_back_to_running_statistics_for_a_single_value() -> None:
    norm = BatchNorm2d(3)
    norm(torch.randn(8, 3, 4, 4) * 3 + 2)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    image = torch.randn(1, 3, 1, 1, requires_grad=True)
    out = norm(image)
    out.sum().backward()
    assert norm.training
    assert torch.equal(out, (norm.eval())(image))
    assert image.grad is not None and torch.isfinite(image.grad).all() and (image.grad != 0).all()
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name]), name
    with pytest.raises(ValueError, match="more than 1 value"):  # what it mends is still broken in PyTorch
        nn.BatchNorm2d(3)(image)


def _convolve_slowly(image: Tensor, weight: Tensor, stride: int, groups: int) -> Tensor:
    """A 2-D convolution with zero padding written as loops over output channels and positions."""
    pad = weight.shape[-1] // 2
    padded = F.pad(image, (pad, pad, pad, pad))
    per_group = image.shape[1] // groups
    side = math.ceil(image.shape[2] / stride)
    out = torch.zeros(len(image), len(weight), side, side, dtype=image.dtype)
    for channel in range(len(weight)):
        first = channel // (len(weight) // groups) * per_group
        for row in range(side):
            for column in range(side):
                top, left = row * stride, column * stride
                patch = padded[:, first : first + per_group, top : top + 2 * pad + 1, left : left + 2 * pad + 1]
                out[:, channel, row, column] = (patch * weight[channel]).sum((1, 2, 3))
    return out


@pytest.mark.parametrize("stride", [1, 2])
def test_separable_conv_is_byots_block(stride: int) -> None:
    torch.manual_seed(0)
    block = SeparableConv(3, 5, stride).double()
    images = torch.randn(2, 3, 7, 7, dtype=torch.float64)
    shapes = [tuple(weight.shape) for weight in block.parameters() if weight.ndim == 4]
    assert shapes == [(3, 1, 3, 3), (3, 3, 1, 1), (3, 1, 3, 3), (5, 3, 1, 1)]
    expected = images
    for index, weight in enumerate(weight for weight in block.parameters() if weight.ndim == 4):
        expected = _convolve_slowly(expected, weight, stride if index == 0 else 1, 3 if index % 2 == 0 else 1)
        if index % 2 == 1:  # batch norm (weight 1, bias 0, batch statistics) and ReLU after each pointwise one
            centred = expected - expected.mean((0, 2, 3), keepdim=True)
            expected = (centred / (centred.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()).clamp(min=0)
    torch.testing.assert_close(block(images), expected)


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_convolution_stays_in_float32_in_mixed_precision_on_a_cpu(stride: int) -> None:
    torch.manual_seed(0)
    layer, plain = DepthwiseConv2d(6, stride), nn.Conv2d(6, 6, 3, stride=stride, padding=1, groups=6, bias=False)
    plain.load_state_dict(layer.state_dict())
    images = torch.randn(2, 6, 7, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = images.bfloat16().requires_grad_()
        out = layer(low)
        assert plain(low).dtype == torch.bfloat16
    assert out.dtype == torch.float32 and torch.equal(out, plain(images.bfloat16().float()))
    out.sum().backward()
    assert low.grad is not None and low.grad.dtype == torch.bfloat16 and low.grad.any()
    assert torch.equal(layer(images), plain(images))


def test_separable_conv_does_not_write_into_its_input() -> None:
    images = torch.randn(2, 3, 4, 4)
    kept = images.clone()
    SeparableConv(3, 3, 1)(images)
    assert torch.equal(images, kept)


def test_convolutions_start_with_kaiming_deviation() -> None:
    torch.manual_seed(0)
    depthwise, pointwise = (layer for layer in list(SeparableConv(512, 256))[:2])
    assert isinstance(depthwise, nn.Conv2d) and isinstance(pointwise, nn.Conv2d)
    assert depthwise.weight.std().item() == pytest.approx(math.sqrt(2 / 9), rel=0.05)
    assert pointwise.weight.std().item() == pytest.approx(math.sqrt(2 / 512), rel=0.05)


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "steps", "widths"),
    [
        (16, 64, 2, [16, 32, 64]),
        (64, 512, 3, [64, 128, 256, 512]),
        (24, 320, 3, [24, 48, 96, 320]),  # channels that do not double: the last step makes up for it
        (40, 64, 3, [40, 64, 64, 64]),
        (96, 64, 2, [96, 64, 64]),  # a deepest stage that is narrower
        (8, 8, 1, [8, 8]),
        (8, 12, 0, [8, 12]),
        (8, 8, 0, []),
    ],
)
def test_downsampling_widths_and_shapes(in_channels: int, out_channels: int, steps: int, widths: list[int]) -> None:
    blocks: Any = downsampling(in_channels, out_channels, steps)
    first_and_last = [(next(block.parameters()).shape[0], block[-2].num_features) for block in blocks]
    assert first_and_last == list(pairwise(widths))
    out = blocks(torch.randn(2, in_channels, 13, 9))
    assert out.shape == (2, out_channels, math.ceil(13 / 2**steps), math.ceil(9 / 2**steps))


def test_downsampling_of_equal_shapes_is_the_identity() -> None:
    images = torch.randn(2, 4, 3, 3)
    assert downsampling(4, 4, 0)(images) is images


@pytest.mark.parametrize(("arguments", "message"), [((0, 4, 1), "0 -> 4"), ((4, 0, 1), "4 -> 0"), ((4, 4, -1), "-1")])
def test_downsampling_names_what_is_wrong(arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(CorsdError, match=message):
        downsampling(*arguments)


def test_stride2_steps() -> None:
    assert [stride2_steps(reduction, 32) for reduction in (32, 16, 8, 4, 1)] == [0, 1, 2, 3, 5]
    assert stride2_steps(4, 12) == 2
    for wrong in ((8, 4), (0, 4)):
        with pytest.raises(CorsdError, match=f"reduction of a stage is {wrong[0]}.*4"):
            stride2_steps(*wrong)
