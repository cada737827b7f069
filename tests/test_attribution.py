from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corsd_lib.analysis.images import run_images
from corsd_lib.attribution import (
    Attribution,
    attribute_exit,
    attribute_pair,
    attribute_run,
    attribute_run_pair,
    deletion_curve,
    engine,
    randomisation_check,
)
from corsd_lib.attribution.checks import redrawn
from corsd_lib.backbones import SequentialBackbone, StageInfo
from corsd_lib.batches import Normalise
from corsd_lib.datasets import ImageData
from corsd_lib.errors import CorsdError
from corsd_lib.methods import build_method
from corsd_lib.network import MultiExitNetwork, build_network
from corsd_lib.relation import HandcraftedRelation, MapRelation, VectorRelation, cosine_scores
from corsd_lib.runs import Run, load_data


def _classifier(network: MultiExitNetwork) -> Tensor:
    """Weights (classes, D) of the first exit."""
    head: Any = network.exits[0]
    return head.classifier.weight.detach()


class Weighted(nn.Module):
    """Each pixel times a number of its own."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, images: Tensor) -> Tensor:
        return images * self.get_buffer("weight")


def _linear(channels: int, height: int, width: int, classes: int = 4) -> tuple[MultiExitNetwork, Tensor]:
    """A network that is linear in its image, and its weights (classes, C, H, W) by hand."""
    torch.manual_seed(channels * height)
    pixels = torch.randn(channels, height, width)
    backbone = SequentialBackbone(nn.Identity(), [Weighted(pixels)], [StageInfo(channels, 1)], channels)
    network = MultiExitNetwork(backbone, classes)
    weights = _classifier(network)
    return network, weights[:, :, None, None] * pixels / (height * width)


@pytest.fixture(scope="module")
def network() -> MultiExitNetwork:
    return _network("all")


def _network(exits: str) -> MultiExitNetwork:
    torch.manual_seed(3)
    network = build_network("resnet8", 10, in_channels=1, image_size=8, width=4, exits=exits)
    for module in network.modules():  # as if trained: running statistics that differ from 0 and 1
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(std=0.1)
    return network.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def _relations(network: MultiExitNetwork, **options: Any) -> nn.ModuleList:
    torch.manual_seed(8)
    return build_method("corsd", network=network, **options).relation_networks().eval()


def _mean_gradients(score: Callable[..., Tensor], images: list[Tensor], steps: int) -> list[Tensor]:
    """Integrated gradients with a baseline of zeros as the definition has it: a Gauss-Legendre sum, one step at a time."""
    total = [torch.zeros_like(image) for image in images]
    for place, weight in zip(*np.polynomial.legendre.leggauss(steps), strict=True):
        inputs = [((place + 1) / 2 * image).requires_grad_() for image in images]
        for sum_, gradient in zip(total, torch.autograd.grad(score(*inputs), inputs), strict=True):
            sum_ += gradient * (weight / 2)
    return [mean * image for mean, image in zip(total, images, strict=True)]


# --- of an exit ---


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 3), (3, 4, 7)])
@pytest.mark.parametrize("baseline", ["mean", "black", "blur"])
def test_integrated_gradients_of_a_linear_network_are_exact(shape: tuple[int, int, int], baseline: str) -> None:
    network, weights = _linear(*shape)
    image = torch.randn(shape)
    found = attribute_exit(network, image, 1, 2, steps=3, baseline=baseline, normalise=lambda pixels: pixels.float() - 1.5)
    base = {"mean": torch.zeros(shape), "black": torch.full(shape, -1.5)}.get(baseline)
    if base is None:
        base = engine.baseline_of("blur", image, None)[0]
        assert base.mean() == pytest.approx(image.mean().item(), abs=0.5) and base.std(correction=0) <= image.std(correction=0)
    assert found.values is not None and found.values.dtype == found.map.dtype == torch.float32
    torch.testing.assert_close(found.values, (image - base) * weights[2])
    torch.testing.assert_close(found.map, ((image - base) * weights[2]).sum(0))
    network.eval()
    assert found.score == pytest.approx(network(image[None]).logits[0][0, 2].item(), abs=1e-6)
    assert found.baseline_score == pytest.approx(network(base[None]).logits[0][0, 2].item(), abs=1e-6)
    if found.score != found.baseline_score:  # one pixel is its own blur
        assert found.completeness_gap is not None and found.completeness_gap < 1e-3
    assert (found.exit, found.target) == (1, 2)


def test_an_image_that_is_its_baseline_gets_nothing() -> None:
    network, _ = _linear(1, 4, 4)
    found = attribute_exit(network, torch.zeros(1, 4, 4), 1, 0)
    assert not found.map.any() and found.completeness_gap == 0 and found.score == found.baseline_score


def test_a_gap_is_relative_to_the_difference() -> None:
    assert engine.completeness_gap_of(3.0, 2.0) == engine.completeness_gap_of(-3.0, -2.0) == 0.5
    assert engine.completeness_gap_of(-2.0, 2.0) == 2 and engine.completeness_gap_of(0.1, 0.0) == math.inf
    assert engine.completeness_gap_of(0.0, 0.0) == 0


@pytest.mark.parametrize("exit", [1, 3])
def test_integrated_gradients_are_those_of_a_loop(network: MultiExitNetwork, images: Tensor, exit: int) -> None:
    (expected,) = _mean_gradients(lambda x: network(x).logits[exit - 1][0, 4], [images[:1]], steps=20)
    found = attribute_exit(network, images[0], exit, 4, steps=20)
    assert found.values is not None
    torch.testing.assert_close(found.values, expected[0], rtol=1e-3, atol=1e-5)


def test_the_maps_of_a_trained_run_are_complete(tiny_run: Run) -> None:
    network = tiny_run.network()
    for exit in (1, 2, 3):
        for image in run_images(tiny_run, [0, 25]):
            found = attribute_exit(network, image, exit, steps=200)
            assert found.values is not None and found.baseline_score is not None and found.completeness_gap is not None
            difference = found.score - found.baseline_score
            assert found.completeness_gap < 0.05
            assert found.values.sum().item() == pytest.approx(difference, rel=0.05)
            torch.testing.assert_close(found.map, found.values.sum(0))


def test_large_images_go_in_parts_and_give_the_same(
    network: MultiExitNetwork, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = attribute_exit(network, images[0], 2, 1, steps=10)
    sizes: list[int] = []
    monkeypatch.setattr(engine, "PIXELS_AT_ONCE", 3 * 64 + 1)
    forward = engine.Stage.forward

    def noted(stage: engine.Stage, x: Tensor) -> Tensor:
        sizes.append(len(x))
        return forward(stage, x)

    monkeypatch.setattr(engine.Stage, "forward", noted)
    torch.testing.assert_close(attribute_exit(network, images[0], 2, 1, steps=10).map, whole.map)
    assert max(sizes) == 3


def test_the_target_is_the_exits_own_prediction_unless_given(network: MultiExitNetwork, images: Tensor) -> None:
    own = [int(z.argmax()) for z in network(images[:1]).logits]
    for exit in (1, 2, 3):
        found = attribute_exit(network, images[0], exit, steps=2)
        assert found.target == own[exit - 1]
        assert found.description == (
            f"integrated gradients of the logit of class {own[exit - 1]} at exit {exit}, baseline: the mean colour, 2 steps"
        )
        other = attribute_exit(network, images[0], exit, 9 - own[exit - 1], "grad_cam")
        assert other.target == 9 - own[exit - 1] and other.target != found.target
        assert other.score == pytest.approx(network(images[:1]).logits[exit - 1][0, other.target].item(), rel=1e-5)


def _grad_cam_by_hand(activation: Tensor, gradient: Tensor) -> Tensor:
    """Sum over channels of activation (C, h, w) * mean gradient, at 8 x 8."""
    coarse = torch.zeros(activation.shape[1:])
    for channel, slope in zip(activation, gradient, strict=True):
        coarse += channel * slope.mean()
    return F.interpolate(coarse[None, None], (8, 8), mode="bilinear", align_corners=False)[0, 0]


@pytest.mark.parametrize("exit", [1, 2, 3])
def test_grad_cam_is_that_of_its_definition(network: MultiExitNetwork, images: Tensor, exit: int) -> None:
    out = network(images[2:3])
    feature = out.features[exit - 1]
    (gradient,) = torch.autograd.grad(out.logits[exit - 1][0, 5], feature)
    found = attribute_exit(network, images[2], exit, 5, "grad_cam")
    torch.testing.assert_close(found.map, _grad_cam_by_hand(feature[0].detach(), gradient[0]))
    assert found.values is None and found.baseline_score is None and found.completeness_gap is None
    assert found.map.any() and found.description.startswith(f"Grad-CAM of the logit of class 5 at exit {exit}, from ")


def test_grad_cam_reads_the_map_before_an_in_place_module_changes_it() -> None:
    network, _ = _linear(2, 8, 8)
    network.exits[0].bottleneck = nn.Sequential(nn.ReLU(inplace=True))
    image = torch.randn(2, 8, 8)
    feature = network.backbone(image[None])[0][0]
    slope = _classifier(network)[1][:, None, None] * (feature > 0) / 64
    torch.testing.assert_close(attribute_exit(network, image, 1, 1, "grad_cam").map, _grad_cam_by_hand(feature, slope))


# --- what is left behind ---


@pytest.mark.parametrize("method", ["integrated_gradients", "grad_cam"])
@pytest.mark.parametrize("grad", [True, False])
def test_network_and_relations_are_left_as_they_were(images: Tensor, method: str, grad: bool) -> None:
    network = _network("all").train()
    relations = _relations(network).train()
    network.exits[1].eval()
    parameters = [*network.parameters(), *relations.parameters()]
    for p in parameters[::2]:
        p.grad = torch.full_like(p, 0.5)
    for p in parameters[1::3]:
        p.requires_grad_(False)
    modules = [*network.modules(), *relations.modules()]
    facts = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules]
    flags = [p.requires_grad for p in parameters]
    state = copy.deepcopy([network.state_dict(), relations.state_dict()])
    draws, inputs = torch.get_rng_state(), images.clone()
    with torch.set_grad_enabled(grad):
        attribute_exit(network, inputs[0], 2, method=method, steps=3)
        attribute_pair(network, relations, inputs[0], inputs[1], 1, method, 3)
        found = attribute_exit(network, inputs[0], 3, 1, method, 3)
        randomisation_check(network, inputs[0], 2, method=method, steps=3)
        deletion_curve(network, inputs[0], 3, found)
        assert torch.is_grad_enabled() is grad
    assert [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules] == facts
    assert [p.requires_grad for p in parameters] == flags
    assert all((p.grad is None) is bool(i % 2) for i, p in enumerate(parameters))
    assert all(bool(p.grad.eq(0.5).all()) for p in parameters if p.grad is not None)
    for before, after in zip(state, [network.state_dict(), relations.state_dict()], strict=True):
        assert all(torch.equal(v, before[k]) for k, v in after.items())
    assert torch.equal(torch.get_rng_state(), draws) and torch.equal(inputs, images) and not inputs.requires_grad
    assert found.score == pytest.approx(network.eval()(images[:1]).logits[2][0, 1].item(), rel=1e-5)  # it ran in eval mode


# --- of a pair ---


@pytest.mark.parametrize("method", ["integrated_gradients", "grad_cam"])
@pytest.mark.parametrize("fusion", ["vectors", "maps"])
def test_the_score_of_a_pair_is_its_logit_whatever_else_is_in_the_batch(
    network: MultiExitNetwork, images: Tensor, fusion: str, method: str
) -> None:
    relations = _relations(network, fusion=fusion)
    out = network(images)
    for exit, relation in enumerate(relations, 1):
        assert isinstance(relation, MapRelation if fusion == "maps" else VectorRelation)
        matrix = relation.scores((out.features if fusion == "maps" else out.embeddings)[exit - 1])
        for i, j in ((2, 5), (5, 2)):
            found = attribute_pair(network, relations, images[i], images[j], exit, method, steps=2)
            assert [torch.sigmoid(torch.tensor(f.score)).item() for f in found] == pytest.approx([matrix[i, j].item()] * 2)
        assert matrix[2, 5] != matrix[5, 2]


@pytest.mark.parametrize("fusion", ["vectors", "maps"])
def test_integrated_gradients_of_a_pair_are_those_of_a_loop(network: MultiExitNetwork, images: Tensor, fusion: str) -> None:
    relations = _relations(network, fusion=fusion)
    relation: Any = relations[1]

    def logit(a: Tensor, b: Tensor) -> Tensor:
        first, second = network(a), network(b)
        if fusion == "vectors":
            return relation.score(relation.pair_embeddings(first.embeddings[1], second.embeddings[1]))[0, 0]
        pooled = relation.body(torch.cat([first.features[1], second.features[1]], dim=1)).mean((2, 3))
        return relation.score(relation.embed(pooled).relu())[0, 0]

    a, b = images[:1], images[1:2]
    expected = _mean_gradients(logit, [a, b], steps=20)
    found = attribute_pair(network, relations, a[0], b[0], 2, steps=20)
    for part, values in zip(found, expected, strict=True):
        assert part.values is not None
        torch.testing.assert_close(part.values, values[0], rtol=1e-3, atol=1e-5)
    zero = torch.zeros_like(a)
    assert found[0].score == found[1].score == pytest.approx(logit(a, b).item(), rel=1e-4)
    assert found[0].baseline_score == found[1].baseline_score == pytest.approx(logit(zero, zero).item(), rel=1e-4)
    assert found[0].completeness_gap == found[1].completeness_gap
    for part, which in zip(found, "ab", strict=True):
        of = f"the relation logit of a pair (a, b) at exit 2, for image {which}"
        assert part.description == f"integrated gradients of {of}, baseline: the mean colour, 20 steps"
        assert (part.exit, part.target) == (2, None)


@pytest.mark.parametrize("fusion", ["vectors", "maps"])
def test_grad_cam_of_a_pair_holds_the_other_image(network: MultiExitNetwork, images: Tensor, fusion: str) -> None:
    relations = _relations(network, fusion=fusion)
    relation: Any = relations[0]
    first, second = network(images[3:4]), network(images[4:5])
    if fusion == "vectors":
        score = relation.score(relation.pair_embeddings(first.embeddings[0], second.embeddings[0]))
    else:
        pooled = relation.body(torch.cat([first.features[0], second.features[0]], dim=1)).mean((2, 3))
        score = relation.score(relation.embed(pooled).relu())
    features = [first.features[0], second.features[0]]
    gradients = torch.autograd.grad(score.sum(), features)
    found = attribute_pair(network, relations, images[3], images[4], 1, "grad_cam")
    for part, feature, gradient in zip(found, features, gradients, strict=True):
        torch.testing.assert_close(part.map, _grad_cam_by_hand(feature[0].detach(), gradient[0]))
        assert part.score == pytest.approx(score.item(), rel=1e-4) and part.values is None and part.completeness_gap is None
    assert not torch.allclose(found[0].map, found[1].map)


@pytest.mark.parametrize("method", ["integrated_gradients", "grad_cam"])
@pytest.mark.parametrize("kind", ["cosine", "l2"])
def test_a_handcrafted_relation_is_symmetric(network: MultiExitNetwork, images: Tensor, kind: str, method: str) -> None:
    a, b = images[:2]
    there = attribute_pair(network, kind, a, b, 3, method, 8)
    back = attribute_pair(network, kind, b, a, 3, method, 8)
    for part, mirrored in zip(there, reversed(back), strict=True):
        torch.testing.assert_close(part.map, mirrored.map, rtol=1e-3, atol=1e-6)
        assert part.score == pytest.approx(mirrored.score, rel=1e-5)
    embeddings = network(images[:2]).embeddings[2].detach()
    expected = 2 * cosine_scores(embeddings)[0, 1] - 1 if kind == "cosine" else -(embeddings[0] - embeddings[1]).norm()
    assert there[0].score == pytest.approx(expected.item(), rel=1e-4)
    same = attribute_pair(network, nn.ModuleList([HandcraftedRelation(kind)] * 3), a, b, 3, method, 8)
    torch.testing.assert_close(same[0].map, there[0].map)


def test_an_image_with_itself_is_as_alike_as_two_baselines(network: MultiExitNetwork, images: Tensor) -> None:
    of_a, of_b = attribute_pair(network, "cosine", images[0], images[0], 2)
    assert of_a.score == pytest.approx(1) and of_a.baseline_score == pytest.approx(1)
    torch.testing.assert_close(of_a.map, of_b.map)
    assert of_a.map.abs().max() < 1e-5


def test_the_pairs_of_a_trained_run_are_complete(tiny_run: Run) -> None:
    for exit in (1, 2, 3):
        of_a, of_b = attribute_run_pair(tiny_run, 0, 45, exit, steps=200)
        assert of_a.values is not None and of_b.values is not None and of_a.baseline_score is not None
        together = of_a.values.sum().item() + of_b.values.sum().item()
        assert together == pytest.approx(of_a.score - of_a.baseline_score, rel=0.05)
        assert of_a.completeness_gap is not None and of_a.completeness_gap < 0.05


def test_maps_have_relations_at_stages_without_an_exit(images: Tensor) -> None:
    network = _network("deepest")
    torch.manual_seed(8)
    relations = build_method("corsd_release", network=network).relation_networks().eval()
    features = network(images[:2]).features
    for exit in (1, 2, 3):
        of_a, _ = attribute_pair(network, relations, images[0], images[1], exit, "grad_cam")
        logit = torch.logit(relations[exit - 1].scores(features[exit - 1]))[0, 1]  # type: ignore[operator]
        assert of_a.score == pytest.approx(logit.item(), rel=1e-3, abs=1e-5)
    with pytest.raises(CorsdError, match=r"exit = 2; allowed: 1 \(shallowest\) to 1, the number of exits"):
        attribute_exit(network, images[0], 2)


# --- sanity checks ---


def test_randomisation_turns_a_linear_map_over_or_leaves_it() -> None:
    """One channel: re-initialised weights change the scale and the sign of the map, and nothing else."""
    network, _ = _linear(1, 6, 5)
    image = torch.randn(1, 6, 5)
    seen = set()
    for seed in range(8):
        found = randomisation_check(network, image, 1, 2, seed=seed)
        fresh = _classifier(redrawn(network, seed))[2]
        before = _classifier(network)[2]
        assert fresh.item() != before.item()
        assert found == pytest.approx((1 if fresh.item() * before.item() > 0 else -1, 1))  # the same pixels are strong
        seen.add(round(found.signed))
        own = int(network(image[None]).logits[0].argmax())  # of the trained network, not of the other
        assert randomisation_check(network, image, 1, seed=seed) == randomisation_check(network, image, 1, own, seed=seed)
    assert seen == {1, -1}


def test_randomisation_changes_the_map_of_a_trained_network(tiny_run: Run) -> None:
    network, (image,) = tiny_run.network(), run_images(tiny_run, [7])
    for method in ("integrated_gradients", "grad_cam"):
        found = [randomisation_check(network, image, 3, method=method, steps=20, seed=seed) for seed in (0, 0, 1, 2)]
        assert found[0] == found[1] and len(set(found)) == 3
        assert all(-1 <= f <= 1 for pair in found for f in pair) and abs(sum(f.signed for f in found[1:])) / 3 < 0.8
    fresh = redrawn(network, 0)
    for name, weight in network.named_parameters():
        if weight.ndim > 1:
            assert not torch.isclose(dict(fresh.named_parameters())[name], weight).any(), name
    assert all(torch.equal(v, dict(redrawn(network, 0).state_dict())[k]) for k, v in fresh.state_dict().items())


def test_a_constant_map_has_no_rank_correlation() -> None:
    network, _ = _linear(1, 4, 4)
    assert all(math.isnan(f) for f in randomisation_check(network, torch.zeros(1, 4, 4), 1))


@pytest.mark.parametrize("steps", [1, 7, 20, 100])
def test_a_deletion_curve_is_that_of_a_loop(network: MultiExitNetwork, images: Tensor, steps: int) -> None:
    found = attribute_exit(network, images[0], 2, 3, steps=10)
    curve = deletion_curve(network, images[0], 2, found, steps, num_random=2)
    order = sorted(range(64), key=lambda p: -found.map.flatten()[p].item())
    for step in range(steps + 1):
        image = images[0].clone()
        for pixel in order[: round(step / steps * 64)]:
            image[:, pixel // 8, pixel % 8] = 0
        expected = network(image[None]).logits[1].softmax(1)[0, 3].item()
        assert curve.probability[step].item() == pytest.approx(expected, abs=1e-5)
        assert curve.fraction[step].item() == pytest.approx(round(step / steps * 64) / 64)
    p, x = curve.probability.tolist(), curve.fraction.tolist()
    area = sum((p[s] + p[s + 1]) / 2 * (x[s + 1] - x[s]) for s in range(steps))
    assert curve.area == pytest.approx(area, abs=1e-5) and 0 <= curve.random_area <= 1
    assert curve.random_probability[0] == pytest.approx(p[0]) and curve.random_probability[-1] == pytest.approx(p[-1], abs=1e-6)


def test_deleting_what_a_linear_network_reads_is_worse_than_chance() -> None:
    network, weights = _linear(3, 6, 6)
    for layer in network.exits[0].parameters():
        layer.data *= 200  # surer of itself
    image = 3 * (weights[1] - weights[[0, 2, 3]].mean(0)).sign()
    found = attribute_exit(network, image, 1, 1)
    curve = deletion_curve(network, image, 1, found, seed=1)
    assert curve.area < curve.random_area
    opposite = replace(found, map=-found.map)
    assert deletion_curve(network, image, 1, opposite, seed=1).area > curve.random_area
    again = deletion_curve(network, image, 1, found, seed=1)
    assert torch.equal(again.random_probability, curve.random_probability) and not torch.equal(
        deletion_curve(network, image, 1, found, seed=2).random_probability, curve.random_probability
    )


# --- of a run ---


def test_images_of_a_run_are_those_of_its_splits(tiny_run: Run) -> None:
    data = load_data(tiny_run.config)
    assert tiny_run.probes.split == "validation" and data.validation is not None
    (mean,), (std,) = data.mean, data.std
    for positions in ([0], [49, 3, 3]):
        found = run_images(tiny_run, positions, data)
        for position, image in zip(positions, found, strict=True):
            row = int(tiny_run.probes.index[position])
            at = data.validation.index.tolist().index(row)
            assert int(data.validation.labels[at]) == int(tiny_run.probes.labels[position])
            pixels = data.validation.images[at]  # type: ignore[union-attr]
            torch.testing.assert_close(image, (pixels / 255 - mean) / std, rtol=1e-4, atol=1e-5)
    pixels = data.test.images[[5, 2]]  # type: ignore[union-attr]
    torch.testing.assert_close(run_images(tiny_run, [5, 2], split="test"), (pixels / 255 - mean) / std, rtol=1e-4, atol=1e-5)


def test_attributions_of_a_run_are_those_of_its_network(tiny_run: Run) -> None:
    data, network = load_data(tiny_run.config), tiny_run.network()
    a, b = run_images(tiny_run, [3, 30])
    found = attribute_run(tiny_run, 3, 2, target=6, steps=5, baseline="black")
    expected = attribute_exit(network, a, 2, 6, steps=5, baseline="black", normalise=Normalise(data))
    torch.testing.assert_close(found.map, expected.map)
    assert (found.score, found.description) == (expected.score, expected.description) and "baseline: black" in found.description
    black = (torch.zeros(1, 1, 8, 8) - data.mean[0]) / data.std[0]
    assert found.baseline_score == pytest.approx(network(black).logits[1][0, 6].item(), rel=1e-4)
    relations = tiny_run.method().relation_networks()
    for part, same in zip(
        attribute_run_pair(tiny_run, 3, 30, 2, data, steps=5), attribute_pair(network, relations, a, b, 2, steps=5), strict=True
    ):
        torch.testing.assert_close(part.map, same.map)
    of_test = attribute_run(tiny_run, 0, 1, data, split="test", method="grad_cam")
    torch.testing.assert_close(
        of_test.map, attribute_exit(network, run_images(tiny_run, [0], data, "test")[0], 1, None, "grad_cam").map
    )


def test_a_method_without_relation_networks_has_the_cosine(tiny_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "method", lambda self: build_method("deep_supervision"))
    of_a, _ = attribute_run_pair(tiny_run, 3, 30, 2, method="grad_cam")
    assert of_a.description.startswith("Grad-CAM of the cosine of a pair (a, b) at exit 2")


def test_images_that_are_not_there_are_named(tiny_run: Run) -> None:
    data = load_data(tiny_run.config)
    with pytest.raises(
        CorsdError, match=r"positions \[50, -1\] are not in probe, which has 50 images; allowed: one or more from 0 to 49"
    ):
        run_images(tiny_run, [0, 50, -1], data)
    with pytest.raises(CorsdError, match=r"positions \[\] are not in probe"):
        run_images(tiny_run, [], data)
    with pytest.raises(CorsdError, match="split 'mean' is not known; allowed: probe, train, validation, test"):
        run_images(tiny_run, [0], data, "mean")
    with pytest.raises(CorsdError, match=r"data 'digits' has no split 'validation': pass data .* split 'train' or 'test'"):
        run_images(tiny_run, [0], replace(data, validation=None))
    few = _without(data, int(tiny_run.probes.index[4]))
    with pytest.raises(CorsdError, match=r"probe images \[4\] are not in split 'validation' of data 'digits'"):
        run_images(tiny_run, [3, 4], few)


def _without(data: ImageData, row: int) -> ImageData:
    assert data.validation is not None
    return replace(data, validation=data.validation.subset((data.validation.index != row).nonzero().flatten()))


# --- what cannot be ---


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"exit": 0}, r"exit = 0; allowed: 1 \(shallowest\) to 3"),
        ({"exit": 4}, "exit = 4"),
        ({"exit": True}, "exit = True"),
        ({"target": 10}, "target = 10; allowed: 0 to 9, or None"),
        ({"target": -1}, "target = -1"),
        ({"method": "lime"}, "attribution method 'lime' is not known; allowed: integrated_gradients, grad_cam"),
        ({"baseline": "white"}, "baseline 'white' is not known; allowed: mean, black, blur"),
        ({"baseline": "black"}, "baseline 'black' needs `normalise`"),
        ({"steps": 0}, "steps = 0; allowed: a whole number of at least 1"),
        ({"image": torch.zeros(1, 1, 8, 8)}, r"the image has shape \(1, 1, 8, 8\); allowed: one image \(C, H, W\) with C = 1"),
        ({"image": torch.zeros(3, 8, 8)}, r"the image has shape \(3, 8, 8\)"),
        ({"image": torch.zeros(1, 8, 8, dtype=torch.uint8)}, "the image is of type torch.uint8"),
        ({"image": torch.full((1, 8, 8), math.nan)}, "values that are not finite"),
    ],
    ids=str,
)
def test_what_cannot_be_attributed_is_named(network: MultiExitNetwork, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CorsdError, match=message):
        attribute_exit(network, **{"image": torch.ones(1, 8, 8), "exit": 1, **changes})


def test_what_cannot_be_a_pair_is_named(network: MultiExitNetwork, images: Tensor) -> None:
    a, b = images[:2]
    with pytest.raises(CorsdError, match="relations is empty: this method has no relation networks; allowed: 'cosine', 'l2'"):
        attribute_pair(network, build_method("baseline").relation_networks(), a, b, 1)
    with pytest.raises(CorsdError, match="relation 'dot' is not known; allowed: cosine, l2"):
        attribute_pair(network, "dot", a, b, 1)
    with pytest.raises(CorsdError, match=r"exit = 4; .* to 3, the number of relation networks"):
        attribute_pair(network, _relations(network), a, b, 4)
    with pytest.raises(CorsdError, match="exit = 0"):
        attribute_pair(network, "cosine", a, b, 0)
    with pytest.raises(CorsdError, match="the relation network is of type Linear"):
        attribute_pair(network, [nn.Linear(1, 1)] * 3, a, b, 1)
    with pytest.raises(CorsdError, match=r"the images of a pair have shapes \(1, 8, 8\) and \(1, 8, 6\)"):
        attribute_pair(network, "cosine", a, b[:, :, :6], 1)


def test_what_cannot_be_deleted_is_named(network: MultiExitNetwork, images: Tensor) -> None:
    found = attribute_exit(network, images[0], 1, 2, "grad_cam")
    of_pair, _ = attribute_pair(network, "cosine", images[0], images[1], 1, "grad_cam")
    with pytest.raises(CorsdError, match="the attribution is of a pair of images; allowed: one of attribute_exit"):
        deletion_curve(network, images[0], 1, of_pair)
    with pytest.raises(CorsdError, match=r"the attribution map has shape \(8, 4\); allowed: \(8, 8\), the size of the image"):
        deletion_curve(network, images[0], 1, replace(found, map=found.map[:, :4]))
    with pytest.raises(CorsdError, match="num_random = 0"):
        deletion_curve(network, images[0], 1, found, num_random=0)
    assert "map" not in repr(found) and isinstance(found, Attribution)
