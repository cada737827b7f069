"""Backbones: convolutional networks, split into stages that declare their channels and their reduction."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from corsd_lib.errors import CorsdError, check_choice, require, shortened
from corsd_lib.layers import BatchNorm2d, init_convolutions


class StageInfo(NamedTuple):
    """Output of a stage: its number of `channels`, and `reduction` = image side / feature side, rounded up."""

    channels: int
    reduction: int


class StagedBackbone(nn.Module):
    """A convolutional network that returns the feature map of each of its stages.

    `forward`: images (B, in_channels, H, W) -> list of feature maps (B, C_k, H_k, W_k), shallow to deep, with the channels and
    reductions of `feature_info`. A forward hook on `stages[k]` gets the feature map of stage k.
    """

    stages: nn.ModuleList  # subclasses fill it

    def __init__(self, feature_info: Iterable[StageInfo], in_channels: int) -> None:
        super().__init__()
        self.feature_info = tuple(feature_info)
        self.in_channels = in_channels

    def forward(self, images: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def truncated(self, depth: int) -> StagedBackbone:
        """An independent copy of the first `depth` stages (1 or more), in the same train or eval mode."""
        raise NotImplementedError


class SequentialBackbone(StagedBackbone):
    """A stem followed by a sequence of stages; used for all networks except those of timm."""

    def __init__(
        self,
        stem: nn.Module,
        stages: Iterable[nn.Module],
        feature_info: Iterable[StageInfo],
        in_channels: int,
    ) -> None:
        super().__init__(feature_info, in_channels)
        self.stem = stem
        self.stages = nn.ModuleList(stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        feature = self.stem(images)
        features = []
        for stage in self.stages:
            feature = stage(feature)
            features.append(feature)
        return features

    def truncated(self, depth: int) -> SequentialBackbone:
        stem, stages = copy.deepcopy((self.stem, self.stages[:depth]))
        part = SequentialBackbone(stem, stages, self.feature_info[:depth], self.in_channels)
        return part.train(self.training)


# --- known backbones ---


@dataclass(frozen=True)
class _ResNet:
    block: str  # name of the residual block in torchvision.models.resnet
    blocks: tuple[int, ...]  # number of residual blocks in each stage
    width: int = 64  # channels of the first stage, before a Bottleneck's expansion


def _cifar(depth: int) -> _ResNet:
    # depth 6n + 2: n BasicBlocks of two convolutions in each of three stages, a stem and a classifier
    return _ResNet("BasicBlock", ((depth - 2) // 6,) * 3, width=16)


_RESNETS = {
    **{f"resnet{depth}": _cifar(depth) for depth in (8, 14, 20, 32, 56)},
    "resnet10": _ResNet("BasicBlock", (1, 1, 1, 1)),
    "resnet18": _ResNet("BasicBlock", (2, 2, 2, 2)),
    "resnet34": _ResNet("BasicBlock", (3, 4, 6, 3)),
    "resnet50": _ResNet("Bottleneck", (3, 4, 6, 3)),
    "resnet101": _ResNet("Bottleneck", (3, 4, 23, 3)),
    "resnet152": _ResNet("Bottleneck", (3, 8, 36, 3)),
}
_WIDE_RESNETS = ("wrn16_2", "wrn28_10")
_PRETRAINED = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
_STEMS = ("auto", "small", "medium", "large")
_SMALL_IMAGE = 64  # largest image side in pixels for which stem "auto" means "small"


def backbone_names() -> tuple[str, ...]:
    """Names of networks for `build_backbone`, which also accepts `wrn<6n+4>_<widening>` and `timm:<model>`."""
    return (*_RESNETS, *_WIDE_RESNETS)


def build_backbone(
    name: str,
    *,
    in_channels: int = 3,
    width: int | None = None,
    stem: str = "auto",
    image_size: int = 32,
    pretrained: bool = False,
) -> StagedBackbone:
    """Build a backbone by name. Weights are initialised with torch's global generator.

    - `resnet8/14/20/32/56`: three stages of BasicBlocks, base width 16 (arXiv 1512.03385, section 4.2, with projection
      shortcuts).
    - `resnet10/18/34/50/101/152`: four stages, base width 64 (torchvision; resnet10, with one block in each stage, is ours).
    - `wrn16_2`, `wrn28_10`, any `wrnD_W` with D = 6n + 4: pre-activation, base width 16, W times wider (arXiv 1605.07146).
    - `timm:<model>`: a timm model with a convolutional feature pyramid, see `TimmBackbone`.

    `width`: base width, 1 or more; None for the default of the network. `stem`: "small" is a 3x3 convolution with stride 1;
    "medium" is a 3x3 convolution with stride 2 (ours), so that all stages need about a quarter of the MACs of "small"; "large"
    is a 7x7 convolution with stride 2 and a max-pool; "auto" is "small" for images with a side of up to 64 pixels
    (`image_size`), else "large". A timm model takes only `width` None and `stem` "auto".

    `pretrained`: for `resnet18/34/50/101/152` torchvision's ImageNet weights, which need the large stem, the default width and
    three channels; for a timm model the weights of timm. Raises `CorsdError` for any other value or combination, and if the
    weights cannot be downloaded; `MissingPackage` if timm is needed and not installed.
    """
    check_choice("stem", stem, _STEMS)
    if not isinstance(name, str):
        raise _unknown_name_error(name)
    for what, value in (("in_channels", in_channels), ("width", width), ("image_size", image_size)):
        if value is not None and (type(value) is not int or not 1 <= value < 2**31):
            raise CorsdError(
                f"{what} = {shortened(value)} for network {name!r}; allowed: an integer of 1 or more, below {2**31}"
            )
    if name.startswith("timm:"):
        if width is not None or stem != "auto":
            given = f"width {shortened(width)}, stem {shortened(stem)}"
            raise CorsdError(f"network {name!r} does not take {given}; allowed: width None, stem 'auto'")
        return _build_timm(name, in_channels, image_size, pretrained)
    if stem == "auto":
        stem = "small" if image_size <= _SMALL_IMAGE else "large"
    if pretrained:
        _check_pretrained(name, in_channels, width, stem)
    build = _build_resnet if name in _RESNETS else _build_wide_resnet
    backbone = build(name, in_channels, width, stem)
    init_convolutions(backbone)
    if pretrained:
        backbone.load_state_dict(from_torchvision(_download(name)))
    return backbone


def _stem(in_channels: int, width: int, kind: str) -> tuple[nn.Sequential, int]:
    """Stem and its reduction. The stem has the module names that `from_torchvision` expects."""
    large = kind == "large"
    kernel, stride = {"small": (3, 1), "medium": (3, 2), "large": (7, 2)}[kind]
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(in_channels, width, kernel, stride=stride, padding=kernel // 2, bias=False),
        norm=BatchNorm2d(width),
        act=nn.ReLU(inplace=True),
    )
    if large:
        layers["pool"] = nn.MaxPool2d(3, stride=2, padding=1)
    return nn.Sequential(layers), 4 if large else stride


# --- ResNets ---


def _build_resnet(name: str, in_channels: int, width: int | None, stem_kind: str) -> SequentialBackbone:
    spec = _RESNETS[name]
    channels = base = width or spec.width
    stem, reduction = _stem(in_channels, base, stem_kind)
    stages, info = [], []
    for index, count in enumerate(spec.blocks):
        stride = 1 if index == 0 else 2
        stage, channels = _residual_stage(spec.block, count, channels, base * 2**index, stride)
        stages.append(stage)
        info.append(StageInfo(channels, reduction * 2**index))
    return SequentialBackbone(stem, stages, info, in_channels)


def _residual_stage(block_name: str, count: int, in_channels: int, planes: int, stride: int) -> tuple[nn.Sequential, int]:
    """A stage of `count` residual blocks of torchvision, and its number of output channels."""
    from torchvision.models import resnet  # heavy import, only needed for these networks

    block = getattr(resnet, block_name)
    out_channels = planes * block.expansion
    shortcut = None
    if stride != 1 or in_channels != out_channels:
        shortcut = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), BatchNorm2d(out_channels))
    blocks = [block(in_channels, planes, stride, shortcut, norm_layer=BatchNorm2d)]
    blocks += [block(out_channels, planes, norm_layer=BatchNorm2d) for _ in range(count - 1)]
    return nn.Sequential(*blocks), out_channels


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of a torchvision ResNet with the names of our modules, without the classifier."""
    renamed = {}
    for key, value in state.items():
        if key.startswith("fc."):
            continue
        key = re.sub(r"^conv1\.", "stem.conv.", key)
        key = re.sub(r"^bn1\.", "stem.norm.", key)
        key = re.sub(r"^layer(\d)\.", lambda match: f"stages.{int(match[1]) - 1}.", key)
        renamed[key] = value
    return renamed


def _check_pretrained(name: str, in_channels: int, width: int | None, stem: str) -> None:
    check_choice("pretrained network", name, [*_PRETRAINED, "timm:<model>"])
    given = {"stem": stem, "width": width or 64, "in_channels": in_channels}
    wanted = {"stem": "large", "width": 64, "in_channels": 3}
    for what, value in wanted.items():
        if given[what] != value:
            raise CorsdError(f"pretrained {name} needs {what} {shortened(value)}; it is {shortened(given[what])}")


def _download(name: str) -> dict[str, Tensor]:
    from torchvision.models import get_model_weights

    url = get_model_weights(name).DEFAULT.url
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    # OSError: no network, an unwritable cache; RuntimeError: a file that does not match its checksum
    except (OSError, RuntimeError) as error:
        raise CorsdError(f"pretrained weights of {name} did not arrive from {url}: {error}") from error


# --- Wide ResNets ---


class _Residual(nn.Module):
    """Sum residual(x) + shortcut(x) of two branches."""

    def __init__(self, residual: Iterable[nn.Module], shortcut: nn.Module) -> None:
        super().__init__()
        self.residual = nn.Sequential(*residual)
        self.shortcut = shortcut

    def forward(self, feature: Tensor) -> Tensor:
        return self.residual(feature) + self.shortcut(feature)


def _norm_act(channels: int) -> list[nn.Module]:
    return [BatchNorm2d(channels), nn.ReLU(inplace=True)]


def _two_convolutions(in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
    first = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
    second = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
    return [first, *_norm_act(out_channels), second]


def _wide_stage(count: int, in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """A stage of a wide ResNet. Its input and its output are feature maps after a ReLU.

    In the paper a stage begins with a BN-ReLU that its residual and its projection share. Here that BN-ReLU ends the previous
    stage (or the stem). The network computes the same function, but the feature map of every stage is activated, so exits get
    the same input as the next stage.
    """
    same = stride == 1 and in_channels == out_channels
    projection = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
    opening = _Residual(_two_convolutions(in_channels, out_channels, stride), projection)
    inner = []
    for _ in range(count - 1):
        residual = _two_convolutions(out_channels, out_channels, 1)
        inner.append(_Residual([*_norm_act(out_channels), *residual], nn.Identity()))
    return nn.Sequential(opening, *inner, *_norm_act(out_channels))


def _build_wide_resnet(name: str, in_channels: int, width: int | None, stem_kind: str) -> SequentialBackbone:
    blocks, widening = _parse_wide(name)
    channels = base = width or 16
    stem, reduction = _stem(in_channels, base, stem_kind)
    stages, info = [], []
    for index in range(3):
        stride = 1 if index == 0 else 2
        out_channels = base * widening * 2**index
        stages.append(_wide_stage(blocks, channels, out_channels, stride))
        info.append(StageInfo(out_channels, reduction * 2**index))
        channels = out_channels
    return SequentialBackbone(stem, stages, info, in_channels)


def _parse_wide(name: str) -> tuple[int, int]:
    """Number of blocks of a stage, and widening factor, of `wrn<depth>_<widening>`. Raises `CorsdError` for any other name."""
    match = re.fullmatch(r"wrn(\d{1,6})_(\d{1,6})", name)
    if match is None:
        raise _unknown_name_error(name)
    depth, widening = int(match[1]), int(match[2])
    if depth < 10 or (depth - 4) % 6 or widening < 1:
        raise CorsdError(
            f"network {name!r}: depth {depth}, widening {widening}; "
            "allowed: depth 6n + 4 (10, 16, 22, 28, ...), widening 1 or more"
        )
    return (depth - 4) // 6, widening


def _unknown_name_error(name: object) -> CorsdError:
    allowed = ", ".join(backbone_names())
    return CorsdError(f"network {shortened(name)} is not known; allowed: {allowed}, any wrn<6n+4>_<widening>, timm:<model>")


# --- timm ---

_FIRST_TIMM_REDUCTION = 4


class TimmBackbone(StagedBackbone):
    """A timm model through its `features_only` interface.

    Stages are timm's feature levels with a reduction of 4 or more. A level of reduction 2 is left out, because an exit there
    would cost most and predict worst. If fewer than two levels have a reduction of 4 or more, all levels are stages.

    timm's models are not always a chain of modules, so `stages` are identity modules that the feature maps pass through on
    output. Hooks on them work, but a feature map that is replaced there does not reach deeper stages. Batch normalisation is
    timm's own: in train mode it raises an error for a single image whose feature map is 1x1.
    """

    def __init__(self, name: str, model: nn.Module, in_channels: int, skipped: int) -> None:
        info = _timm_levels(model)[skipped:]
        super().__init__(info, in_channels)
        self.name = name
        self.skipped = skipped
        self.model = model
        self.stages = nn.ModuleList(nn.Identity() for _ in info)

    def forward(self, images: Tensor) -> list[Tensor]:
        features = self.model(images)[self.skipped :]
        return [stage(feature) for stage, feature in zip(self.stages, features, strict=True)]

    def truncated(self, depth: int) -> TimmBackbone:
        """A copy with the first `depth` stages, built by timm.

        Models that timm cannot cut (hook-based ones and HRNet) keep their later layers and return only these stages.
        """
        model: Any = self.model
        levels = tuple(model.feature_info.out_indices)[: self.skipped + depth]
        with torch.random.fork_rng(devices=[]):  # the random weights are overwritten below: keep the caller's random state
            part = _create_timm(self.name, in_chans=self.in_channels, out_indices=levels)
        _cut_blocks(part)
        state = self.model.state_dict()
        part.load_state_dict({key: state[key] for key in part.state_dict()})
        like = next(self.model.parameters())
        part.to(device=like.device, dtype=like.dtype)
        return TimmBackbone(self.name, part, self.in_channels, self.skipped).train(self.training)


def _timm_levels(model: Any) -> list[StageInfo]:
    info = model.feature_info
    return [StageInfo(*level) for level in zip(info.channels(), info.reduction(), strict=True)]


def _cut_blocks(model: Any) -> None:
    """Remove the blocks after the last feature level of `feature_info`; the EfficientNet and MobileNet wrappers of timm keep
    them.
    """
    match = re.match(r"blocks\.(\d+)", model.feature_info.module_name()[-1])
    if match is not None and isinstance(getattr(model, "blocks", None), nn.Sequential):
        model.blocks = model.blocks[: int(match[1]) + 1]


def _create_timm(name: str, **options: Any) -> nn.Module:
    require(f"network {name!r}", "timm")
    import timm

    model_name = name.removeprefix("timm:")
    if not timm.is_model(model_name):
        raise CorsdError(f"network {shortened(name)} is not known to timm; allowed: the names of timm.list_models()")
    try:
        return timm.create_model(model_name, features_only=True, **options)
    except Exception as error:  # models without features raise different exceptions
        given = f"features_only=True and {options}"
        raise CorsdError(f"network {name!r} cannot be built by timm with {given}: {error}") from error


def _build_timm(name: str, in_channels: int, image_size: int, pretrained: bool) -> TimmBackbone:
    model = _create_timm(name, in_chans=in_channels, pretrained=pretrained)
    levels = _timm_levels(model)
    _check_pyramid(name, model, levels, in_channels, image_size)
    deep = sum(level.reduction >= _FIRST_TIMM_REDUCTION for level in levels)
    return TimmBackbone(name, model, in_channels, skipped=len(levels) - deep if deep >= 2 else 0)


def _check_pyramid(name: str, model: nn.Module, levels: list[StageInfo], in_channels: int, image_size: int) -> None:
    """Raise `CorsdError` unless the model returns feature maps (B, C, H, W) of decreasing resolution, with the declared
    channels.
    """
    allowed = "allowed: convolutional models whose features are (B, C, H, W) maps of falling resolution"
    if levels[0].reduction == levels[-1].reduction:
        reductions = [level.reduction for level in levels]
        raise CorsdError(f"network {name!r} has no feature pyramid: reductions {reductions}; {allowed}")
    if str(getattr(model, "output_fmt", "NCHW")).endswith("NHWC"):
        raise CorsdError(f"network {name!r} gives channels-last features (B, H, W, C); {allowed}")
    mode = model.training
    try:
        with torch.no_grad():
            features = model.eval()(torch.zeros(1, in_channels, image_size, image_size))
    except Exception as error:  # such as a fixed input size, or a kernel larger than the map
        size = f"{image_size} x {image_size}"
        raise CorsdError(f"network {name!r} cannot take images of {size} pixels: {error}") from error
    finally:
        model.train(mode)
    for feature, level in zip(features, levels, strict=True):
        if feature.ndim != 4 or feature.shape[1] != level.channels:
            raise CorsdError(f"network {name!r} gives features {tuple(feature.shape)} for {level}; {allowed}")
