from __future__ import annotations

import math
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from corsd_lib.backbones import StagedBackbone, StageInfo, backbone_names, build_backbone, from_torchvision
from corsd_lib.errors import CorsdError

CIFAR = [f"resnet{depth}" for depth in (8, 14, 20, 32, 56)]
TORCHVISION = [f"resnet{depth}" for depth in (18, 34, 50, 101, 152)]
TIMM = ["timm:test_resnet", "timm:test_efficientnet", "timm:test_convnext", "timm:mobilenetv3_small_050"]


def _count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _check_declaration(backbone: StagedBackbone, images: Tensor) -> None:
    features = backbone.eval()(images)
    assert len(features) == len(backbone.stages) == len(backbone.feature_info)
    side = images.shape[-1]
    for feature, info in zip(features, backbone.feature_info, strict=True):
        expected = math.ceil(side / info.reduction)
        assert feature.shape == (len(images), info.channels, expected, expected)


# --- declared and real shapes ---


@pytest.mark.parametrize("stem", ["small", "medium", "large"])
@pytest.mark.parametrize("name", [*backbone_names(), "wrn10_1"])
def test_declared_channels_and_reduction_are_real(name: str, stem: str) -> None:
    backbone = build_backbone(name, width=1 if name == "wrn28_10" else 3, stem=stem, in_channels=2)
    for side in (8, 19):
        _check_declaration(backbone, torch.randn(1, 2, side, side))


def test_default_widths() -> None:
    declared = {name: [info.channels for info in build_backbone(name).feature_info] for name in ("resnet8", "wrn16_2")}
    assert declared == {"resnet8": [16, 32, 64], "wrn16_2": [32, 64, 128]}
    with torch.device("meta"):
        assert [info.channels for info in build_backbone("resnet10").feature_info] == [64, 128, 256, 512]
        assert [info.channels for info in build_backbone("resnet50").feature_info] == [256, 512, 1024, 2048]


@pytest.mark.parametrize(("side", "reductions"), [(64, [1, 2, 4, 8]), (65, [4, 8, 16, 32])])
def test_auto_stem_follows_the_image_size(side: int, reductions: list[int]) -> None:
    backbone = build_backbone("resnet10", width=2, image_size=side)
    assert [info.reduction for info in backbone.feature_info] == reductions


@pytest.mark.parametrize("width", [1, 5, 24])
def test_any_width(width: int) -> None:
    assert [info.channels for info in build_backbone("resnet14", width=width).feature_info] == [
        width,
        2 * width,
        4 * width,
    ]


def test_stages_do_not_write_into_the_features_before_them() -> None:
    for name in ("resnet14", "wrn16_2", "resnet50"):
        backbone = build_backbone(name, width=4).eval()
        seen: list[Tensor] = []
        for stage in backbone.stages:
            stage.register_forward_hook(lambda _module, _inputs, output, seen=seen: seen.append(output.clone()))
        features = backbone(torch.randn(2, 3, 8, 8))
        for feature, at_once in zip(features, seen, strict=True):
            assert torch.equal(feature, at_once)


# --- the architectures are the published ones ---


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # published totals for ten classes less the linear classifier's
        ("resnet20", 272_474 - 650),
        ("wrn16_2", 691_674 - 1_290),
        ("wrn28_10", 36_479_194 - 6_410),
    ],
)
def test_parameters_are_the_published_number(name: str, parameters: int) -> None:
    with torch.device("meta"):
        assert _count(build_backbone(name)) == parameters


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_state_dict_has_our_keys_and_shapes(name: str) -> None:
    with torch.device("meta"):
        ours = build_backbone(name, stem="large").state_dict()
        theirs = from_torchvision(torchvision.models.get_model(name).state_dict())
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


def _torchvision_resnet18() -> Any:
    """A resnet18 with random weights and, unlike a fresh one, random statistics and affine parts."""
    model = torchvision.models.resnet18()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight, module.bias, module.state_dict()["running_mean"]):
                nn.init.normal_(value)
            nn.init.uniform_(module.state_dict()["running_var"], 0.5, 2.0)
    return model


@pytest.mark.parametrize("training", [False, True])
def test_features_equal_torchvisions_bit_for_bit(training: bool) -> None:
    torch.manual_seed(0)
    theirs = _torchvision_resnet18().train(training)
    ours = build_backbone("resnet18", stem="large").train(training)
    ours.load_state_dict(from_torchvision(theirs.state_dict()))
    expected: list[Tensor] = []
    for layer in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
        layer.register_forward_hook(lambda _module, _inputs, output: expected.append(output))
    images = torch.randn(2, 3, 70, 70)
    with torch.no_grad():
        theirs(images)
        features = ours(images)
    assert [tuple(feature.shape[1:]) for feature in features] == [
        (64, 18, 18),
        (128, 9, 9),
        (256, 5, 5),
        (512, 3, 3),
    ]
    for feature, other in zip(features, expected, strict=True):
        assert torch.equal(feature, other)


def _wide_resnet_as_the_paper_writes_it(backbone: Any, images: Tensor) -> Tensor:
    """BN-ReLU-conv as in arXiv 1605.07146: a stage opens with the norm that ours keeps before it."""
    stem, stages = backbone.stem, backbone.stages
    x, norm = stem.conv(images), stem.norm
    for stage in stages:
        opening, *inner, next_norm, _ = stage
        x = norm(x).relu()
        conv1, bn2, _, conv2 = opening.residual
        x = conv2(bn2(conv1(x)).relu()) + opening.shortcut(x)
        for block in inner:
            bn1, _, conv1, bn2, _, conv2 = block.residual
            x = x + conv2(bn2(conv1(bn1(x).relu())).relu())
        norm = next_norm
    return norm(x).relu()


def test_wide_resnet_is_the_papers_function() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("wrn16_2", width=4).double()
    backbone(torch.randn(8, 3, 16, 16, dtype=torch.float64))  # statistics other than 0 and 1
    backbone.eval()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(backbone(images)[-1], _wide_resnet_as_the_paper_writes_it(backbone, images))
    assert all((feature >= 0).all() for feature in backbone(images))


def test_weights_start_as_torchvisions_do() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("resnet10", stem="large")
    for name, weight in backbone.named_parameters():
        if weight.ndim == 4:
            fan_out = weight.shape[0] * weight.shape[2] * weight.shape[3]
            assert weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05), name
        else:
            assert torch.equal(weight, torch.full_like(weight, float(name.endswith("weight")))), name


# --- pretrained weights ---


def test_pretrained_loads_what_torchvision_publishes(monkeypatch: pytest.MonkeyPatch) -> None:
    published = _torchvision_resnet18().state_dict()
    asked: list[str] = []

    def fetch(url: str, **options: object) -> dict[str, Tensor]:
        asked.append(url)
        assert options["check_hash"] and options["weights_only"]
        return published

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    loaded = build_backbone("resnet18", image_size=224, pretrained=True).state_dict()
    assert asked == [torchvision.models.ResNet18_Weights.DEFAULT.url]
    for key, value in from_torchvision(published).items():
        assert torch.equal(loaded[key], value), key


def test_pretrained_without_a_network_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(url: str, **options: object) -> dict[str, Tensor]:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    with pytest.raises(CorsdError, match=r"resnet34 did not arrive from https.*no route to host"):
        build_backbone("resnet34", stem="large", pretrained=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet20"}, "resnet20.*allowed: resnet18"),
        ({"name": "resnet10", "stem": "large"}, "resnet10.*allowed: resnet18"),
        ({"name": "resnet18"}, "pretrained resnet18 needs stem 'large'; it is 'small'"),
        ({"name": "resnet18", "stem": "large", "width": 32}, "needs width 64; it is 32"),
        ({"name": "resnet18", "stem": "large", "in_channels": 1}, "needs in_channels 3; it is 1"),
    ],
)
def test_pretrained_with_what_it_does_not_fit(options: dict, message: str) -> None:
    with pytest.raises(CorsdError, match=message):
        build_backbone(**options, pretrained=True)


# --- bad input ---


@pytest.mark.parametrize("name", ["resnet19", "wrn", "wrn16", "", "RESNET8", "wrn<6n+4>_<widening>"])
def test_an_unknown_name_lists_what_is_allowed(name: str) -> None:
    with pytest.raises(CorsdError) as caught:
        build_backbone(name)
    for word in (repr(name), *backbone_names(), "timm:"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "wrn15_2"}, "depth 15.*6n"),
        ({"name": "wrn4_2"}, "depth 4.*6n"),
        ({"name": "wrn16_0"}, "widening 0.*1 or more"),
        ({"name": "resnet8", "width": 0}, "width = 0.*1 or more"),
        ({"name": "resnet8", "width": 2.5}, "width = 2.5.*integer"),
        ({"name": "resnet8", "in_channels": 0}, "in_channels = 0.*1 or more"),
        ({"name": "resnet8", "image_size": -1}, "image_size = -1.*1 or more"),
        ({"name": "resnet8", "stem": "big"}, "stem 'big'.*small, medium, large"),
        ({"name": "timm:test_resnet", "width": 8}, "width 8.*allowed: width None"),
        ({"name": "timm:test_resnet", "stem": "large"}, "stem 'large'.*'auto'"),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(CorsdError, match=message):
        build_backbone(**options)


# --- timm ---


@pytest.mark.parametrize("name", TIMM)
def test_timm_declarations_are_real(name: str) -> None:
    pytest.importorskip("timm")
    backbone = build_backbone(name, in_channels=2, image_size=64)
    assert backbone.training and all(module.training for module in backbone.modules())
    assert [info.reduction for info in backbone.feature_info] == [4, 8, 16, 32]
    _check_declaration(backbone, torch.randn(2, 2, 64, 64))


def test_timm_keeps_all_levels_of_a_network_for_small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_timm(monkeypatch, [(4, 1), (8, 2), (16, 4)])
    backbone = build_backbone("timm:test_resnet", image_size=16)
    assert backbone.feature_info == (StageInfo(4, 1), StageInfo(8, 2), StageInfo(16, 4))


def _fake_timm(monkeypatch: pytest.MonkeyPatch, levels: list[tuple[int, int]], dimensions: int = 4) -> None:
    """Make timm give a model that declares and returns `levels` (channels, reduction)."""
    timm = pytest.importorskip("timm")

    class Fake(nn.Module):
        feature_info = SimpleNamespace(
            channels=lambda: [channels for channels, _ in levels], reduction=lambda: [by for _, by in levels]
        )

        def forward(self, images: Tensor) -> list[Tensor]:
            side = images.shape[-1]
            maps = [torch.zeros(len(images), channels, side // by, side // by) for channels, by in levels]
            return maps if dimensions == 4 else [feature.flatten(2) for feature in maps]

    monkeypatch.setattr(timm, "create_model", lambda *_args, **_options: Fake())


def test_timm_vectors_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_timm(monkeypatch, [(4, 4), (8, 8)], dimensions=3)
    with pytest.raises(CorsdError, match=r"gives features \(1, 4, 64\)"):
        build_backbone("timm:test_resnet")


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("timm:resnet_that_is_not", 32, "resnet_that_is_not.*list_models"),
        ("timm:test_vit", 160, r"no feature pyramid.*\[16, 16, 16\]"),
        ("timm:swin_tiny_patch4_window7_224", 224, "channels-last"),
        ("timm:test_resnet.no_such_weights", 32, "cannot be built by timm.*no_such_weights"),
    ],
)
def test_timm_models_without_maps_are_refused(name: str, size: int, message: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(CorsdError, match=message):
        build_backbone(name, image_size=size)


def test_timm_images_too_small_for_the_model() -> None:
    pytest.importorskip("timm")
    with pytest.raises(CorsdError, match=r"inception_v3' cannot take images of 16 x 16 pixels: .*[Kk]ernel"):
        build_backbone("timm:inception_v3", image_size=16)


def test_timm_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(CorsdError, match=r"timm:resnet18' needs timm, which is not installed: pip install 'corsd_lib\[timm\]'"):
        build_backbone("timm:resnet18")


@pytest.mark.slow
def test_importing_the_module_does_not_import_torchvision_or_timm() -> None:
    code = "import sys, corsd_lib.network; print([m for m in ('torchvision', 'timm') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
