from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import pairwise, permutations
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from corsd_lib import costs, evaluation
from corsd_lib.batches import Batch, evaluation_batches
from corsd_lib.costs import count_macs, training_macs
from corsd_lib.datasets import ImageData, load_dataset
from corsd_lib.errors import CorsdError
from corsd_lib.evaluation import (
    Evaluation,
    calibration_error,
    evaluate,
    exit_logits,
    risk_coverage_area,
    scores,
    top_k_accuracy,
)
from corsd_lib.methods import METHODS
from corsd_lib.methods.classic import Baseline
from corsd_lib.network import MultiExitNetwork, build_network
from corsd_lib.runs import DataInfo, Run, TrainConfig, new_network
from corsd_lib.training import train

Tiny = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_dataset("digits", validation_fraction=0.1)


@pytest.fixture
def network() -> MultiExitNetwork:
    torch.manual_seed(3)
    return build_network("resnet8", 10, in_channels=1, image_size=8, width=4)


def _logits(rows: int, classes: int, spread: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    logits = torch.randn(rows, classes, generator=generator) * spread
    return logits, torch.randint(0, classes, (rows,), generator=generator)


# --- figures ---


@pytest.mark.parametrize("rows,classes", [(1, 2), (50, 10), (333, 3), (40, 100)])
@pytest.mark.parametrize("k", [1, 5])
def test_top_k_is_that_of_a_loop(rows: int, classes: int, k: int) -> None:
    logits, labels = _logits(rows, classes)
    right = 0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        right += sum(value > row[label] for value in row) < k  # fewer than k classes stand above the true one
    assert top_k_accuracy(logits, labels, k) == pytest.approx(100 * right / rows)


def _calibration_of_a_loop(logits: Tensor, labels: Tensor, bins: int) -> float:
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        powers = [math.exp(v - max(row)) for v in row]
        confidence = max(powers) / sum(powers)
        inside = next(b for b in range(bins) if confidence <= (b + 1) / bins or b == bins - 1)  # bins (b/n, (b+1)/n]
        members[inside].append((confidence, row.index(max(row)) == label))
    gaps = [abs(sum(right for _, right in m) / len(m) - sum(c for c, _ in m) / len(m)) * len(m) for m in members if m]
    return 100 * sum(gaps) / len(labels)


@pytest.mark.parametrize("spread", [0.0, 0.3, 2.0, 50.0])
@pytest.mark.parametrize("rows,classes,bins", [(1, 2, 15), (200, 10, 15), (500, 4, 10)])
def test_calibration_error_is_that_of_a_loop(rows: int, classes: int, bins: int, spread: float) -> None:
    logits, labels = _logits(rows, classes, spread)
    assert calibration_error(logits, labels, bins) == pytest.approx(_calibration_of_a_loop(logits, labels, bins), abs=1e-9)


def test_calibration_error_of_known_cases() -> None:
    sure_and_wrong = torch.tensor([[100.0, 0.0]]).expand(10, 2)
    assert calibration_error(sure_and_wrong, torch.ones(10, dtype=torch.long)) == pytest.approx(100)
    assert calibration_error(sure_and_wrong, torch.zeros(10, dtype=torch.long)) == pytest.approx(0, abs=1e-9)
    three_quarters = torch.tensor([[math.log(3), 0.0]]).expand(8, 2)  # 75 % sure, and right in 75 % of the cases
    assert calibration_error(three_quarters, torch.tensor([0, 0, 1, 0, 0, 0, 1, 0])) == pytest.approx(0, abs=1e-5)
    assert calibration_error(three_quarters, torch.tensor([0, 0, 1, 0, 1, 1, 1, 0])) == pytest.approx(25)


@pytest.mark.parametrize("classes, images", [(2, 6), (3, 7)])
def test_risk_coverage_area_is_the_mean_over_all_orders_of_images_of_equal_confidence(classes: int, images: int) -> None:
    torch.manual_seed(images)
    logits = torch.randn(images, classes)
    logits[2:5] = logits[1]  # four images of equal confidence
    labels = torch.randint(classes, (images,))
    confidence, wrong = logits.double().softmax(1).amax(1).tolist(), (logits.argmax(1) != labels).tolist()
    assert 0 < sum(wrong[1:5]) < 4
    found = []
    for order in permutations(range(images)):
        if all(confidence[i] >= confidence[j] for i, j in pairwise(order)):
            found.append(sum(sum(wrong[i] for i in order[:n]) / n for n in range(1, images + 1)) / images)
    assert len(found) == 24
    assert risk_coverage_area(logits, labels) == pytest.approx(100 * sum(found) / 24, abs=1e-9)


def test_risk_coverage_area_of_known_cases() -> None:
    logits, labels = torch.tensor([[0.0, 3.0], [0.0, 2.0], [0.0, 1.0], [0.0, 0.5]]), torch.ones(4, dtype=torch.long)
    assert risk_coverage_area(logits, labels) == 0
    assert risk_coverage_area(logits, 1 - labels) == 100
    assert risk_coverage_area(logits, torch.tensor([1, 1, 1, 0])) == pytest.approx(100 / 16)  # the least sure one is wrong
    assert risk_coverage_area(torch.zeros(4, 2), torch.tensor([1, 1, 1, 0])) == pytest.approx(75)  # predicts 0: 3 of 4 wrong


def test_scores_are_the_four_figures() -> None:
    logits, labels = _logits(60, 10)
    cross_entropy = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        cross_entropy += math.log(sum(math.exp(v) for v in row)) - row[label]
    figures = scores(logits, labels)
    assert list(figures) == ["top1", "top5", "cross_entropy", "calibration_error"]
    assert figures["cross_entropy"] == pytest.approx(cross_entropy / 60, rel=1e-5)
    assert figures["top1"] == top_k_accuracy(logits, labels) and figures["top5"] == top_k_accuracy(logits, labels, 5)
    assert figures["calibration_error"] == calibration_error(logits, labels)


# --- of a network ---


def test_every_exit_and_the_ensemble_are_those_of_a_loop(digits: ImageData, network: MultiExitNetwork) -> None:
    network.eval()
    result = evaluate(network, digits)
    assert (result.data, result.split, result.images, len(result.exits)) == ("digits", "test", 797, 3)
    logits: list[list[Tensor]] = [[], [], []]
    labels = []
    with torch.no_grad():
        for images, y in evaluation_batches(digits, digits.test, batch_size=1):
            for k, z in enumerate(network(images).logits):
                logits[k].append(z[0])
            labels.append(int(y))
    for k in range(3):
        right = sum(int(z.argmax()) == y for z, y in zip(logits[k], labels, strict=True))
        nats = [-torch.log_softmax(z.double(), 0)[y].item() for z, y in zip(logits[k], labels, strict=True)]
        assert result.exits[k]["top1"] == pytest.approx(100 * right / 797)
        assert result.exits[k]["cross_entropy"] == pytest.approx(sum(nats) / 797, rel=1e-5)
    mean = [torch.stack([logits[k][i].double().softmax(0) for k in range(3)]).mean(0) for i in range(797)]
    assert result.ensemble["top1"] == pytest.approx(
        100 * sum(int(p.argmax()) == y for p, y in zip(mean, labels, strict=True)) / 797
    )
    nats = [-p[y].log().item() for p, y in zip(mean, labels, strict=True)]
    assert result.ensemble["cross_entropy"] == pytest.approx(sum(nats) / 797, rel=1e-5)
    assert "macs" not in result.ensemble


def test_cost_of_an_exit_is_that_of_its_truncated_network(digits: ImageData, network: MultiExitNetwork) -> None:
    result = evaluate(network, digits)
    for k, figures in enumerate(result.exits):
        part = network.truncated(k)
        assert figures["parameters"] == sum(p.numel() for p in part.parameters())
        assert figures["macs"] == _macs_by_hooks(part, torch.zeros(1, 1, 8, 8)) > 0
    assert [e["macs"] for e in result.exits] == sorted(e["macs"] for e in result.exits)


def _macs_by_hooks(module: nn.Module, images: Tensor) -> int:
    total = 0

    def count(layer: nn.Module, _: object, out: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            height, width = layer.kernel_size
            total += out.numel() * height * width * layer.in_channels // layer.groups
        elif isinstance(layer, nn.Linear):
            total += out.numel() * layer.in_features

    handles = [m.register_forward_hook(count) for m in module.modules()]
    with torch.no_grad():
        module.eval()(images)
    for handle in handles:
        handle.remove()
    return total


def test_macs_of_known_layers() -> None:
    known = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),  # 16 x 16 positions, 3 x 3 x 3 inputs, 8 outputs
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8),  # 8 x 8 positions, 3 x 3 inputs, 8 outputs
        nn.Conv2d(8, 5, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 7),
    )
    expected = 256 * 27 * 8 + 64 * 9 * 8 + 64 * 8 * 5 + 5 * 7
    assert count_macs(known, (1, 3, 16, 16)) == expected == _macs_by_hooks(known, torch.zeros(1, 3, 16, 16))
    assert count_macs(known, (4, 3, 16, 16)) == 4 * expected


GROUPED = {torch.ops.aten.convolution_backward: costs._convolution_backward_flops}
INFO = DataInfo("made up", tuple("abcdefghij"), (), (), (0.5,), (0.5,), 8)


def test_macs_of_a_plain_training_step_are_those_of_a_hand_count() -> None:
    """Forward, gradient of weights and gradient of inputs cost the same; nobody asks for the gradient of the images."""
    config = TrainConfig(method="baseline", width=4, batch_size=16, per_class=5)
    first = 8 * 8 * 9 * 1 * 4  # positions, kernel, channels in and out of the first convolution
    forward = count_macs(new_network(config, INFO), (1, 1, 8, 8))
    assert training_macs(config, INFO) == 3 * forward - first


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "probe"},
        {"method": "deep_supervision"},
        {"method": "byot", "method_options": {"hint": 0.1}},
        {"method": "rkd"},
        {"method": "cs_kd"},
        {"method": "ps_kd"},
        {"method": "corsd"},
        {"method": "corsd", "sampling": "balanced"},
        {"method": "corsd", "method_options": {"fusion": "maps", "pair_limit": 7}},
        {"method": "corsd_release", "batch_size": 30},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_macs_of_a_training_step_are_those_of_a_whole_step(changes: dict[str, Any]) -> None:
    config = TrainConfig(**{"width": 4, "batch_size": 24, "per_class": 9, **changes})
    network = new_network(config, INFO).train()
    method = config.build_method(network).train()
    batch = costs._synthetic_batch(config, INFO)
    batch = batch._replace(images=torch.randn(len(batch.labels), 1, 8, 8))
    batch = batch._replace(random=method.sample(batch))
    method(network(method.transform_images(batch)), batch)  # a step before it, which leaves class means
    with FlopCounterMode(display=False, custom_mapping=GROUPED) as counter:
        method(network(method.transform_images(batch), method.detach_exits), batch)["total"].backward()
    assert training_macs(config, INFO) == pytest.approx(counter.get_total_flops() / 2 / len(batch.labels))
    assert training_macs(config, INFO) > training_macs(replace(config, method="baseline", method_options={}), INFO) - 1


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_of_a_grouped_convolution_cost_what_its_forward_pass_costs(groups: int, transposed: bool) -> None:
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer, images = kind(8, 16, 3, stride=2, groups=groups), torch.randn(5, 8, 9, 9, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        out = layer(images)
    with FlopCounterMode(display=False, custom_mapping=GROUPED) as backward:
        out.sum().backward()
    assert backward.get_total_flops() == 2 * forward.get_total_flops() > 0


def test_macs_of_a_training_step_hold_what_the_method_does_to_images(monkeypatch: pytest.MonkeyPatch) -> None:
    class Blurred(Baseline):
        name = "blurred"

        def transform_images(self, batch: Batch) -> Tensor:
            return F.conv2d(batch.images, torch.ones(1, 1, 3, 3, device=batch.images.device), padding=1)

    monkeypatch.setitem(METHODS, Blurred.name, Blurred)
    config = TrainConfig(method="blurred", width=4, batch_size=16, per_class=5)
    assert training_macs(config, INFO) == training_macs(replace(config, method="baseline"), INFO) + 8 * 8 * 9


def test_counting_a_training_draws_no_random_numbers() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    training_macs(TrainConfig(width=4, batch_size=16), INFO)
    assert torch.equal(torch.rand(1), expected)


def test_counting_leaves_statistics_and_modes() -> None:
    known = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    known[0].eval()
    count_macs(known, (2, 1, 8, 8))
    assert known.training and not known[0].training and int(known[1].num_batches_tracked) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("training", [True, False])
def test_a_network_is_left_in_the_modes_it_came_in(digits: ImageData, network: MultiExitNetwork, training: bool) -> None:
    network.train(training)
    network.exits[0].train(not training)
    modes = [m.training for m in network.modules()]
    state = {k: v.clone() for k, v in network.state_dict().items()}
    evaluate(network, digits)
    assert [m.training for m in network.modules()] == modes and len(set(modes)) == 2
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())
    assert torch.is_grad_enabled() and all(p.grad is None for p in network.parameters())


def test_modes_come_back_after_an_error_too(network: MultiExitNetwork) -> None:
    network.train()
    with pytest.raises(CorsdError, match="images have shape"), evaluation.evaluating(network):
        network(torch.zeros(1, 3, 8, 8))
    assert all(m.training for m in network.modules()) and torch.is_grad_enabled()


def test_train_mode_gives_the_same_figures_as_eval_mode(digits: ImageData, network: MultiExitNetwork) -> None:
    assert evaluate(network.train(), digits) == evaluate(network.eval(), digits)


def test_logits_keep_the_order_of_the_split(digits: ImageData, network: MultiExitNetwork) -> None:
    logits, labels = exit_logits(network, digits, digits.test)
    assert torch.equal(labels, digits.test.labels) and [z.shape for z in logits] == [(797, 10)] * 3
    tail = digits.test.subset(torch.arange(790, 797))
    last, _ = exit_logits(network, digits, tail)
    torch.testing.assert_close(last[2], logits[2][790:])
    assert not logits[0].requires_grad and logits[0].dtype == torch.float32


# --- splits, devices, errors ---


def test_each_split_is_its_own(digits: ImageData, network: MultiExitNetwork) -> None:
    sizes = {split: evaluate(network, digits, split=split).images for split in ("train", "validation", "test")}
    assert sizes == {"train": 900, "validation": 100, "test": 797}


def test_what_cannot_be_evaluated_is_named(digits: ImageData, network: MultiExitNetwork) -> None:
    with pytest.raises(CorsdError, match="a network does not know its data set"):
        evaluate(network)
    with pytest.raises(CorsdError, match="split 'mean' is not known; allowed: train, validation, test"):
        evaluate(network, digits, split="mean")
    with pytest.raises(CorsdError, match="data 'digits' has no split 'validation': pass data that was loaded"):
        evaluate(network, replace(digits, validation=None), split="validation")
    with pytest.raises(CorsdError, match="data 'digits' has 10 classes, but the network has 7"):
        evaluate(build_network("resnet8", 7, in_channels=1, image_size=8, width=4), digits)
    with pytest.raises(CorsdError, match="device 'nowhere' cannot be used") as caught:
        evaluate(network, digits, device="nowhere")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_a_missing_gpu_is_one_error(digits: ImageData, network: MultiExitNetwork) -> None:
    with pytest.raises(CorsdError, match="device 'cuda' cannot be used"):
        evaluate(network, digits, device="cuda")


# --- of a run ---


@pytest.mark.parametrize("method", ["corsd", "baseline", "corsd_release"])
def test_a_run_evaluates_to_exactly_what_its_training_wrote(tiny: Tiny, tiny_run: Run, method: str) -> None:
    run = tiny_run if method == "corsd" else train(tiny(method=method, epochs=1), progress=False)
    result = evaluate(run)
    assert asdict(result) == run.test
    assert len(result.exits) == (3 if method == "corsd" else 1)


def test_a_run_evaluates_on_the_splits_of_its_training(tiny_run: Run) -> None:
    result = evaluate(tiny_run, split="validation")
    assert result.images == 200 and evaluate(tiny_run, split="train").images == 50
    last = tiny_run.metrics.iloc[-1]
    assert [e["top1"] for e in result.exits] == [last[f"val_top1.exit{k}"] for k in (1, 2, 3)]


def test_a_run_evaluates_on_data_that_is_given(tiny_run: Run, digits: ImageData) -> None:
    few = replace(digits, test=digits.test.subset(torch.arange(30)))
    assert evaluate(tiny_run, few).images == 30


def test_given_data_is_normalised_as_in_the_training(tiny_run: Run, digits: ImageData) -> None:
    own = evaluate(tiny_run, digits)
    assert evaluate(tiny_run, replace(digits, mean=(0.9,), std=(0.1,))) == own


def test_given_data_of_other_classes_is_refused(tiny_run: Run, digits: ImageData) -> None:
    backwards = replace(digits, class_names=digits.class_names[::-1])
    with pytest.raises(CorsdError, match=r"class 0 of 'digits' is '9'; allowed: '0', as in 'digits', the data of "):
        evaluate(tiny_run, backwards)
    more = replace(
        digits, class_names=(*digits.class_names, "ten"), superclass_names=("a",), superclass_of_class=torch.zeros(11).long()
    )
    with pytest.raises(CorsdError, match=r"'digits' has 11 classes and 1 channel; allowed: 10 and 1, as in 'digits'"):
        evaluate(tiny_run, more)


def test_the_table_has_a_row_an_exit_and_the_ensemble(tiny_run: Run) -> None:
    result = evaluate(tiny_run)
    table = result.table()
    assert list(table.index) == ["exit1", "exit2", "exit3", "ensemble"] and table.index.name == "exit"
    assert table.loc["exit2", "top1"] == result.exits[1]["top1"]
    assert table.loc["ensemble", "top5"] == result.ensemble["top5"] and table["macs"].isna().tolist() == [False] * 3 + [True]
    assert isinstance(result, Evaluation)
