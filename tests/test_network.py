from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from corsd_lib.errors import CorsdError
from corsd_lib.network import MultiExitNetwork, build_network

CIFAR = [f"resnet{depth}" for depth in (8, 14, 20, 32, 56)]


def _count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _network(name: str = "resnet8", **options: object) -> MultiExitNetwork:
    torch.manual_seed(0)
    return build_network(name, 7, **{"width": 4, **options})  # type: ignore[arg-type]


# --- what the exits give ---


@pytest.mark.parametrize("name", ["resnet8", "resnet10", "resnet50", "wrn10_1"])
def test_outputs_run_from_shallow_to_deep(name: str) -> None:
    network = _network(name, image_size=16)
    outputs = network(torch.randn(3, 3, 16, 16))
    info = network.backbone.feature_info
    assert network.exit_stages == tuple(range(len(info))) and len(network.exits) == len(info)
    sides = [feature.shape[-1] for feature in outputs.features]
    assert sides == sorted(sides, reverse=True) and sides[0] > sides[-1]
    for feature, stage in zip(outputs.features, info, strict=True):
        assert feature.shape == (3, stage.channels, 16 // stage.reduction, 16 // stage.reduction)
    assert [tuple(e.shape) for e in outputs.embeddings] == [(3, network.embedding_dim)] * len(info)
    assert [tuple(z.shape) for z in outputs.logits] == [(3, 7)] * len(info)
    assert network.embedding_dim == info[-1].channels


def test_bottleneck_brings_every_stage_to_the_deepest_shape() -> None:
    network = _network("resnet10")
    outputs = network(torch.randn(2, 3, 21, 21))
    exits: Any = network.exits
    shapes = {head.bottleneck(feature).shape for head, feature in zip(exits, outputs.features, strict=True)}
    assert shapes == {outputs.features[-1].shape}
    assert [len(head.bottleneck) for head in exits] == [3, 2, 1, 0]


def test_deepest_exit_is_pooling_and_a_linear_layer() -> None:
    network = _network().eval()
    outputs = network(torch.randn(2, 3, 16, 16))
    pooled = outputs.features[-1].mean((2, 3))
    torch.testing.assert_close(outputs.embeddings[-1], pooled)
    head: Any = network.exits[-1]
    assert _count(head) == 16 * 7 + 7
    torch.testing.assert_close(outputs.logits[-1], pooled @ head.classifier.weight.T + head.classifier.bias)


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "wrn10_2"])
def test_deepest_only_is_the_same_network_without_shallow_exits(name: str) -> None:
    every, plain = _network(name), _network(name, exits="deepest")
    last = len(every.backbone.feature_info) - 1
    assert plain.exit_stages == (last,) and len(plain.exits) == 1
    # one seed, one start: a comparison of methods must not be one of initial weights
    for a, b in ((every.backbone, plain.backbone), (every.exits[-1], plain.exits[0])):
        for (key, value), other in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
            assert torch.equal(value, other), key
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(every.eval()(images).logits[-1], plain.eval()(images).logits[0])
    for left, right in zip(every(images).features, plain(images).features, strict=True):
        assert torch.equal(left, right)


# --- gradients ---


def _backbone_gradients(network: MultiExitNetwork, loss: Tensor) -> list[bool]:
    """For the stem and each stage: does any weight of it get a gradient other than zero?"""
    network.zero_grad()
    loss.backward()
    parts = [network.backbone.stem, *network.backbone.stages]
    return [any(w.grad is not None and w.grad.abs().sum() > 0 for w in part.parameters()) for part in parts]


def test_each_exit_trains_the_stages_up_to_its_own() -> None:
    network = _network("resnet10")
    images = torch.randn(4, 3, 16, 16)
    for k in range(4):
        loss = network(images).logits[k].square().sum()
        assert _backbone_gradients(network, loss) == [True] * (k + 2) + [False] * (3 - k)


def test_detached_shallow_exits_leave_the_backbone_alone() -> None:
    network = _network("resnet10")
    images = torch.randn(4, 3, 16, 16)
    outputs = network(images, detach_exits=True)
    shallow = sum(z.square().sum() + e.sum() for z, e in zip(outputs.logits[:-1], outputs.embeddings[:-1], strict=True))
    assert _backbone_gradients(network, shallow) == [False] * 5
    for head in network.exits[:-1]:
        assert all(w.grad is not None and torch.isfinite(w.grad).all() for w in head.parameters())
    assert all(w.grad is None for w in network.exits[-1].parameters())


def test_detaching_changes_neither_values_nor_the_deepest_exits_gradient() -> None:
    network = _network("resnet10")
    images = torch.randn(4, 3, 16, 16)
    twin = copy.deepcopy(network)
    attached, detached = network(images), twin(images, detach_exits=True)
    for a, b in zip(attached, detached, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    attached.logits[-1].square().sum().backward()
    detached.logits[-1].square().sum().backward()
    for (name, a), b in zip(network.backbone.named_parameters(), twin.backbone.parameters(), strict=True):
        assert a.grad is not None and a.grad.abs().sum() > 0, name
        assert b.grad is not None and torch.equal(a.grad, b.grad), name
    assert all(feature.requires_grad for feature in detached.features)


# --- modes, shapes, formats ---


def test_forward_and_truncated_leave_the_modes_alone() -> None:
    network = _network()
    network.backbone.stages[0].eval()  # a mixture: whatever the caller chose stays
    modes = [module.training for module in network.modules()]
    network(torch.randn(2, 3, 8, 8))
    network.truncated(1)
    assert [module.training for module in network.modules()] == modes


@pytest.mark.parametrize("name", [*CIFAR, "resnet10", "resnet50", "wrn10_1"])
def test_a_batch_of_one_trains(name: str) -> None:
    network = _network(name, in_channels=1, width=3)
    for side in (8, 4, 1):
        network.zero_grad()
        outputs = network(torch.randn(1, 1, side, side))
        sum(z.square().sum() for z in outputs.logits).backward()
        assert all(torch.isfinite(x).all() for part in outputs for x in part)
        assert all(w.grad is not None and torch.isfinite(w.grad).all() for w in network.parameters())


def test_channels_last_gives_the_same_values() -> None:
    network = _network("resnet10").eval()
    images = torch.randn(2, 3, 16, 16)
    expected = network(images)
    network = network.to(memory_format=torch.channels_last)
    outputs = network(images.to(memory_format=torch.channels_last))
    assert outputs.features[0].is_contiguous(memory_format=torch.channels_last)
    for a, b in zip(outputs, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [1, 3, 24])
@pytest.mark.parametrize("name", ["resnet8", "resnet18", "resnet50", "wrn10_2"])
def test_any_width_trains(name: str, width: int) -> None:
    network = _network(name, width=width)
    outputs = network(torch.randn(2, 3, 8, 8))
    sum(z.square().sum() for z in outputs.logits).backward()
    assert network.embedding_dim % width == 0
    assert all(w.grad is not None for w in network.parameters())


def test_state_dict_round_trip() -> None:
    network, other = _network(), build_network("resnet8", 7, width=4)
    images = torch.randn(2, 3, 8, 8)
    assert not torch.equal(network.eval()(images).logits[0], other.eval()(images).logits[0])
    other.load_state_dict(network.state_dict())
    assert torch.equal(network(images).logits[0], other(images).logits[0])


# --- the deployable part ---

TIMM = ["timm:test_resnet", "timm:test_convnext", "timm:test_efficientnet", "timm:mobilenetv3_small_050"]


@pytest.mark.parametrize("name", ["resnet14", "resnet10", "resnet50", "wrn10_2", *TIMM])
def test_truncated_gives_the_same_logits_from_fewer_weights(name: str) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    network = _network(name, width=None if name.startswith("timm:") else 4, image_size=64)
    with torch.no_grad():
        network(torch.randn(4, 3, 64, 64))  # statistics other than 0 and 1
    network.eval()
    images = torch.randn(2, 3, 64, 64)
    expected = network(images).logits
    parts = [network.truncated(k) for k in range(len(network.exits))]
    for part, logits in zip(parts, expected, strict=True):
        assert not part.training
        assert torch.equal(part(images), logits)
    weights = [_count(part.backbone) for part in parts]
    assert weights == sorted(set(weights)), "every deeper part holds more of the backbone"
    assert weights[-1] == _count(network.backbone)
    assert all(_count(part) == _count(part.backbone) + _count(part.exit) < _count(network) for part in parts)


@pytest.mark.parametrize("name", ["resnet8", "timm:test_resnet"])
def test_truncated_is_an_independent_copy_and_draws_no_random_numbers(name: str) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    network = _network(name, width=None if name.startswith("timm:") else 4)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state = torch.get_rng_state()
    part = network.truncated(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert part.training and all(module.training for module in part.modules())
    with torch.no_grad():
        for weight in part.parameters():
            weight.zero_()
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_truncated_of_a_plain_network_is_all_of_it() -> None:
    network = _network(exits="deepest").eval()
    images = torch.randn(2, 3, 8, 8)
    part = network.truncated(0)
    assert torch.equal(part(images), network(images).logits[0]) and _count(part) == _count(network)


@pytest.mark.parametrize("k", [-1, 3, "a"])
def test_truncated_at_an_exit_that_is_not_there(k: Any) -> None:
    with pytest.raises(CorsdError, match=rf"exit = {k!r}; allowed: 0 to 2"):
        _network().truncated(k)


# --- bad input ---


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 1, 8, 8), r"\(2, 1, 8, 8\); allowed: \(B, 3, H, W\)"),
        (torch.zeros(2, 3, 8), r"\(2, 3, 8\); allowed: \(B, 3, H, W\)"),
        (torch.zeros(3, 8, 8), r"\(3, 8, 8\); allowed: \(B, 3, H, W\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "uint8; allowed: floating point"),
    ],
)
def test_forward_refuses_other_images(images: Tensor, message: str) -> None:
    network = _network()
    for module in (network, network.truncated(0)):
        with pytest.raises(CorsdError, match=message):
            module(images)


def test_build_network_names_what_is_wrong() -> None:
    with pytest.raises(CorsdError, match=r"exits 'some'.*all, deepest"):
        _network(exits="some")
    with pytest.raises(CorsdError, match=r"num_classes = 0.*1 or more"):
        build_network("resnet8", 0)
    for wrong in (True, 2.0, "3", None, 2**31):
        with pytest.raises(CorsdError, match=r"num_classes = .*; allowed: a whole number of 1 or more"):
            build_network("resnet8", wrong)  # type: ignore[arg-type]
    with pytest.raises(CorsdError, match=r"num_classes = <integer of about 5,000 digits>"):
        build_network("resnet8", 10**5000)
    with pytest.raises(CorsdError, match=r"network 'resnet8' of width None and 2000000000 classes needs more memory"):
        build_network("resnet8", 2 * 10**9)
    for wrong in (3, None, "wrn" + "1" * 5000 + "_2", "wrn16_" + "1" * 5000, "x" * 5000):
        with pytest.raises(CorsdError, match=r"network (?!.{200}.*is not known).* is not known; allowed: resnet8"):
            build_network(wrong, 3)  # type: ignore[arg-type]
    for wrong in (True, 1.0, 2**31, 10**5000):
        with pytest.raises(CorsdError, match=r"width = .* for network 'resnet8'; allowed: an integer of 1 or more"):
            build_network("resnet8", 3, width=wrong)  # type: ignore[arg-type]
    with pytest.raises(CorsdError, match=r"resnet9.*resnet8"):
        build_network("resnet9", 10)
