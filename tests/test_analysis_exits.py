from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from corsd_lib.analysis.exits import (
    RULES,
    calibration_bins,
    choose_threshold,
    early_exit,
    early_exit_curve,
    exit_accuracy,
    exit_agreement,
    exit_taken,
    first_correct,
    overthinking,
)
from corsd_lib.costs import count_macs, cumulative_macs
from corsd_lib.datasets import ImageData, load_dataset
from corsd_lib.errors import CorsdError
from corsd_lib.evaluation import calibration_error, evaluate, exit_logits
from corsd_lib.network import MultiExitNetwork, build_network
from corsd_lib.runs import DataInfo, Run, TrainConfig

Tiny = Callable[..., TrainConfig]
SHAPES = [(1, 1, 2), (1, 40, 5), (2, 30, 3), (4, 57, 6), (3, 1, 4), (3, 8, 1)]  # exits, images, classes


def _made_up(exits: int, images: int, classes: int, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """Logits that know something of the label, the deeper the more."""
    draw = torch.Generator().manual_seed(seed * 1000 + exits * 100 + images + classes)
    labels = torch.randint(classes, (images,), generator=draw)
    hint = nn.functional.one_hot(labels, classes)
    return [2 * torch.randn(images, classes, generator=draw) + (k + 1) * hint for k in range(exits)], labels


def _guesses(logits: list[Tensor]) -> list[list[int]]:
    return [[row.index(max(row)) for row in z.tolist()] for z in logits]


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_dataset("digits", per_class=20, validation_fraction=0.2)


def _network(exits: str = "all") -> MultiExitNetwork:
    torch.manual_seed(3)
    return build_network("resnet8", 10, in_channels=1, image_size=8, width=4, exits=exits)


# --- who is right, and where ---


@pytest.mark.parametrize("exits,images,classes", SHAPES)
def test_accuracy_agreement_first_right_and_overthinking_are_those_of_loops(exits: int, images: int, classes: int) -> None:
    logits, labels = _made_up(exits, images, classes)
    guesses, truth = _guesses(logits), labels.tolist()
    accuracy = [100 * sum(g == y for g, y in zip(row, truth, strict=True)) / images for row in guesses]
    assert exit_accuracy(logits, labels).tolist() == pytest.approx(accuracy)
    agreement = exit_agreement(logits)
    assert agreement.shape == (exits, exits)
    first, lost = [], 0
    for i, y in enumerate(truth):
        right = [guesses[k][i] == y for k in range(exits)]
        first.append(right.index(True) + 1 if any(right) else 0)
        lost += any(right[:-1]) and not right[-1]
    assert first_correct(logits, labels).tolist() == first
    assert overthinking(logits, labels) == pytest.approx(lost / images)
    for k in range(exits):
        for j in range(exits):
            same = sum(a == b for a, b in zip(guesses[k], guesses[j], strict=True))
            assert agreement[k, j].item() == pytest.approx(same / images)


def test_a_known_case() -> None:
    """Three exits, four images of class 0: right everywhere; from exit 2 on; at exit 1 only; nowhere."""
    right, wrong = [1.0, 0.0, -1.0], [0.0, 1.0, -1.0]
    logits = [
        torch.tensor([right, wrong, right, wrong]),
        torch.tensor([right, right, wrong, wrong]),
        torch.tensor([right, right, wrong, wrong]),
    ]
    labels = torch.zeros(4, dtype=torch.long)
    assert exit_accuracy(logits, labels).tolist() == [50, 50, 50]
    assert first_correct(logits, labels).tolist() == [1, 2, 1, 0]
    assert overthinking(logits, labels) == 0.25
    assert exit_agreement(logits).tolist() == [[1, 0.5, 0.5], [0.5, 1, 1], [0.5, 1, 1]]
    assert overthinking(logits[2:], labels) == 0


def test_half_precision_of_a_snapshot_will_do(tiny_run: Run) -> None:
    snapshot, labels = tiny_run.probes[2], tiny_run.probes.labels
    assert snapshot.logits[0].dtype == torch.float16
    full = [z.float() for z in snapshot.logits]
    assert exit_accuracy(snapshot.logits, labels).tolist() == exit_accuracy(full, labels).tolist()
    macs = cumulative_macs(tiny_run.network(), tiny_run.data)
    for rule in RULES:
        pd.testing.assert_frame_equal(
            early_exit_curve(snapshot.logits, labels, macs, rule), early_exit_curve(full, labels, macs, rule)
        )
    pd.testing.assert_frame_equal(calibration_bins(snapshot.logits[0], labels), calibration_bins(full[0], labels))


# --- calibration ---


@pytest.mark.parametrize("scale", [0.0, 0.2, 2.0, 60.0])
@pytest.mark.parametrize("images,classes,bins", [(1, 2, 15), (1, 1, 3), (300, 10, 15), (500, 4, 7), (40, 3, 1)])
def test_bins_are_those_of_a_loop_and_give_the_calibration_error(images: int, classes: int, bins: int, scale: float) -> None:
    (logits,), labels = _made_up(1, images, classes)
    logits = scale * logits
    table = calibration_bins(logits, labels, bins)
    assert list(table.columns) == ["low", "high", "images", "confidence", "accuracy"] and len(table) == bins
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for row, label in zip(logits.double().softmax(1).tolist(), labels.tolist(), strict=True):
        inside = next(b for b in range(bins) if max(row) <= (b + 1) / bins or b == bins - 1)
        members[inside].append((max(row), row.index(max(row)) == label))
    for b, inside_b in enumerate(members):
        line = table.iloc[b]
        assert line["low"] == pytest.approx(100 * b / bins) and line["high"] == pytest.approx(100 * (b + 1) / bins)
        assert line["images"] == len(inside_b)
        if inside_b:
            assert line["confidence"] == pytest.approx(100 * sum(c for c, _ in inside_b) / len(inside_b))
            assert line["accuracy"] == pytest.approx(100 * sum(r for _, r in inside_b) / len(inside_b))
        else:
            assert math.isnan(line["confidence"]) and math.isnan(line["accuracy"])
    error = ((table["accuracy"] - table["confidence"]).abs() * table["images"]).sum() / images
    assert error == pytest.approx(calibration_error(logits, labels, bins), abs=1e-9)


# --- the curve ---


def _leave(probabilities: list[list[float]], rule: str, threshold: float) -> int:
    """The exit, 0-based, at which one image leaves; `probabilities` by exit."""
    guesses = [p.index(max(p)) for p in probabilities]
    for k, p in enumerate(probabilities[:-1]):
        if rule == "confidence":
            leaves = max(p) >= threshold
        elif rule == "entropy":
            classes = len(p)
            leaves = (
                -sum(q * math.log(q) for q in p if q > 0) / math.log(classes) <= threshold if classes > 1 else threshold >= 0
            )
        else:
            row = 1
            while row <= k and guesses[k - row] == guesses[k]:
                row += 1
            leaves = row >= threshold
        if leaves:
            return k
    return len(probabilities) - 1


def _curve_of_a_loop(logits: list[Tensor], labels: Tensor, macs: list[int], rule: str, thresholds: list[float]) -> list[dict]:
    probabilities = [z.double().softmax(1).tolist() for z in logits]
    images, deepest = len(labels), len(logits) - 1
    rows = []
    for threshold in thresholds:
        right, right_deepest, cost, left = 0, 0, 0, [0] * len(logits)
        for i, y in enumerate(labels.tolist()):
            exits = [p[i] for p in probabilities]
            k = _leave(exits, rule, threshold)
            right += exits[k].index(max(exits[k])) == y
            right_deepest += exits[deepest].index(max(exits[deepest])) == y
            cost += macs[k]
            left[k] += 1
        row = {
            "threshold": threshold,
            "accuracy": 100 * right / images,
            "accuracy_drop": 100 * (right_deepest - right) / images,
        }
        shares = {f"fraction.exit{k}": n / images for k, n in enumerate(left, start=1)}
        rows.append({**row, "macs": cost / images, **shares})
    return rows


@pytest.mark.parametrize("exits,images,classes", [*SHAPES, (5, 200, 3)])
@pytest.mark.parametrize(
    "rule,thresholds",
    [
        ("confidence", [0.9, 0.0, 0.3, 0.5, 0.77, 1.0, 1.2]),
        ("entropy", [0.0, 0.2, 0.5, 0.9, 1.0 + 1e-9, -0.1, 0.5]),
        ("patience", [1, 2, 3, 4, 5, 6]),
    ],
)
def test_the_curve_is_that_of_a_loop_over_images(
    exits: int, images: int, classes: int, rule: str, thresholds: list[float]
) -> None:
    logits, labels = _made_up(exits, images, classes)
    macs = [10, 25, 60, 100, 1000][:exits]
    curve = early_exit_curve(logits, labels, macs, rule, thresholds)
    expected = _curve_of_a_loop(logits, labels, macs, rule, thresholds)
    assert list(curve.columns) == list(expected[0])
    for (_, row), line in zip(curve.iterrows(), expected, strict=True):
        assert row.to_dict() == pytest.approx(line)


@pytest.mark.parametrize("exits,images,classes", [*SHAPES, (4, 500, 7)])
@pytest.mark.parametrize("rule", RULES)
def test_the_default_curve_goes_from_all_at_the_first_exit_to_all_at_the_deepest(
    exits: int, images: int, classes: int, rule: str
) -> None:
    logits, labels = _made_up(exits, images, classes)
    macs = [7, 20, 50, 110][:exits]
    curve = early_exit_curve(logits, labels, macs, rule)
    shares = curve[[f"fraction.exit{k}" for k in range(1, exits + 1)]]
    accuracy = exit_accuracy(logits, labels)
    assert shares.sum(axis=1).tolist() == pytest.approx([1.0] * len(curve))
    assert shares.iloc[0].iloc[0] == 1 and curve["accuracy"].iloc[0] == pytest.approx(accuracy[0].item())
    assert shares.iloc[-1].iloc[-1] == 1 and curve["accuracy"].iloc[-1] == pytest.approx(accuracy[-1].item())
    assert curve["macs"].iloc[0] == macs[0] and curve["macs"].iloc[-1] == macs[-1] and curve["accuracy_drop"].iloc[-1] == 0
    left_by = shares.cumsum(axis=1).round(12)  # a stricter rule keeps images at least as long
    assert all(left_by[name].is_monotonic_decreasing for name in left_by)
    assert curve["macs"].round(9).is_monotonic_increasing and curve["threshold"].is_unique and len(curve) <= 102
    assert curve["threshold"].is_monotonic_decreasing if rule == "entropy" else curve["threshold"].is_monotonic_increasing
    if exits > 1 and images > 100 and rule != "patience":
        assert curve["macs"].diff().max() < 0.05 * (macs[-1] - macs[0])  # no jumps: a threshold can be found


@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_the_rows_is_that_of_the_thresholds_and_each_stands_alone(rule: str) -> None:
    logits, labels = _made_up(3, 50, 4)
    asked = [0.7, 0.2, 0.7]
    whole = early_exit_curve(logits, labels, [1, 2, 3], rule, asked)
    assert whole["threshold"].tolist() == asked
    for row, threshold in enumerate(asked):
        alone = early_exit_curve(logits, labels, [1, 2, 3], rule, [threshold])
        pd.testing.assert_series_equal(alone.iloc[0], whole.iloc[row], check_names=False)


def test_patience_counts_exits_in_a_row() -> None:
    """Predictions 0 1 1 1, and 0 1 0 1: patience 2 leaves at exit 3 and 4, patience 1 at exit 1."""
    a, b = [1.0, 0.0], [0.0, 1.0]
    logits = [torch.tensor([a, a]), torch.tensor([b, b]), torch.tensor([b, a]), torch.tensor([b, b])]
    curve = early_exit_curve(logits, torch.tensor([1, 0]), [1, 2, 3, 4], "patience")
    assert curve["threshold"].tolist() == [1, 2, 3, 4]
    assert curve["macs"].tolist() == [1, 3.5, 4, 4]
    assert curve["accuracy"].tolist() == [50, 50, 50, 50]


def test_certain_exits_are_left_at_thresholds_of_one_and_of_zero_entropy() -> None:
    certain = [torch.tensor([[1000.0, 0.0, 0.0]])] * 2
    labels = torch.tensor([0])
    assert early_exit_curve(certain, labels, [1, 5], "confidence", [1.0])["macs"].tolist() == [1]
    assert early_exit_curve(certain, labels, [1, 5], "entropy", [0.0])["macs"].tolist() == [1]
    for rule in ("confidence", "entropy"):
        assert early_exit_curve(certain, labels, [1, 5], rule)["macs"].tolist() == [1, 5]


# --- the threshold ---


def _curve(rows: list[tuple[float, float, float]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["threshold", "accuracy_drop", "macs"])


def test_the_cheapest_threshold_that_loses_little_enough() -> None:
    curve = _curve([(0.1, 9.0, 10), (0.5, 1.0, 40), (0.6, 1.5, 30), (0.7, -0.5, 60), (1.01, 0.0, 100)])
    assert choose_threshold(curve) == 0.5
    assert choose_threshold(curve, 1.5) == 0.6
    assert choose_threshold(curve, 0.99) == 0.7  # better than the deepest
    assert choose_threshold(curve, -0.5) == 0.7
    assert choose_threshold(curve, 100) == 0.1
    with pytest.raises(CorsdError, match=r"max_accuracy_drop = -1 percentage points: no threshold .* smallest is -0\.50"):
        choose_threshold(curve, -1)
    with pytest.raises(CorsdError, match="the curve is empty"):
        choose_threshold(curve[:0])


def test_of_equally_cheap_thresholds_the_most_accurate() -> None:
    assert choose_threshold(_curve([(0.1, 0.9, 10), (0.2, 0.3, 10), (0.3, 0.3, 10), (0.4, 0.0, 11)])) == 0.2


@pytest.mark.parametrize("rule", RULES)
def test_what_is_chosen_is_what_a_search_finds(rule: str) -> None:
    logits, labels = _made_up(4, 300, 5)
    curve = early_exit_curve(logits, labels, [1, 3, 9, 20], rule)
    for loss in (0.0, 0.5, 5.0):
        found = early_exit_curve(logits, labels, [1, 3, 9, 20], rule, [choose_threshold(curve, loss)]).iloc[0]
        assert found["accuracy_drop"] <= loss
        assert found["macs"] == min(row["macs"] for _, row in curve.iterrows() if row["accuracy_drop"] <= loss)


@pytest.mark.parametrize("images,right,lost,points", [(300, 25, 3, 1.0), (1000, 900, 1, 0.1), (1000, 700, 7, 0.7)])
def test_a_loss_of_exactly_so_many_points_is_allowed(images: int, right: int, lost: int, points: float) -> None:
    """Though the difference of two accuracies is a little more: 100 · 25 / 300 - 100 · 22 / 300 > 1 in binary."""
    place = torch.arange(images)[:, None]
    shallow, deep = (torch.where(place < n, torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])) for n in (right - lost, right))
    curve = early_exit_curve([shallow, deep], torch.zeros(images, dtype=torch.long), [1, 2], "patience")
    assert curve["accuracy_drop"].tolist() == [points, 0.0] and choose_threshold(curve, points) == 1
    assert curve["accuracy"].tolist() == [100 * (right - lost) / images, 100 * right / images]


# --- costs ---


class _Until(nn.Module):
    """What an image passes that leaves at exit `k`, 0-based."""

    def __init__(self, network: MultiExitNetwork, k: int) -> None:
        super().__init__()
        self.backbone = network.backbone.truncated(network.exit_stages[k] + 1)
        self.exits, self.stages = network.exits[: k + 1], network.exit_stages

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.backbone(images)
        return [head(maps[stage])[1] for head, stage in zip(self.exits, self.stages, strict=False)]


@pytest.mark.parametrize("name,size,channels", [("resnet8", 8, 1), ("resnet10", 32, 3)])
def test_cumulative_costs_are_exactly_those_of_running_everything_on_the_way(name: str, size: int, channels: int) -> None:
    torch.manual_seed(0)
    network = build_network(name, 7, in_channels=channels, image_size=size, width=4).train()
    names = tuple("abcdefg")
    info = DataInfo("made up", names, (), (), (0.5,) * channels, (0.2,) * channels, size)
    macs, shape = cumulative_macs(network, info), (1, channels, size, size)
    assert len(macs) == len(network.exits) and macs == sorted(set(macs))
    assert macs == [count_macs(_Until(network, k), shape) for k in range(len(macs))]
    assert macs[0] == count_macs(network.truncated(0), shape) and macs[-1] == count_macs(network, shape)
    assert all(m.training for m in network.modules())


def test_a_plain_network_costs_what_it_costs(digits: ImageData) -> None:
    network = _network("deepest")
    assert cumulative_macs(network, digits) == [evaluate(network, digits).exits[0]["macs"]]


# --- chosen on validation, told on test ---


@pytest.mark.parametrize("rule", RULES)
def test_the_threshold_is_chosen_on_validation_and_read_off_on_test(tiny_run: Run, rule: str) -> None:
    data = load_dataset("digits", per_class=5, validation_fraction=0.2, seed=tiny_run.config.seed)
    network = tiny_run.network()
    assert data.validation is not None
    macs = cumulative_macs(network, data)
    result = early_exit(tiny_run, rule=rule, max_accuracy_drop=3.0)
    curve = early_exit_curve(*exit_logits(network, data, data.validation), macs, rule)
    pd.testing.assert_frame_equal(result.curve, curve)
    assert (result.rule, result.macs, result.threshold) == (rule, macs, choose_threshold(curve, 3.0))
    test = early_exit_curve(*exit_logits(network, data, data.test), macs, rule, [result.threshold])
    assert result.test == test.iloc[0].to_dict()
    assert result.validation == curve[curve["threshold"] == result.threshold].iloc[0].to_dict()
    assert result.validation["accuracy_drop"] <= 3.0 and result.test != result.validation
    assert result.deepest_macs == evaluate(network, data).exits[-1]["macs"] < macs[-1]
    assert result.macs_saved == pytest.approx(100 - 100 * result.test["macs"] / result.deepest_macs)


def test_the_test_split_has_no_say(tiny_run: Run, digits: ImageData) -> None:
    assert digits.validation is not None
    few = replace(digits, test=digits.test.subset(torch.arange(5)))
    assert early_exit(tiny_run, digits).threshold == early_exit(tiny_run, few).threshold
    half = digits.validation.subset(torch.arange(len(digits.validation) // 2))
    other = early_exit(tiny_run, replace(digits, validation=half))
    assert other.curve["accuracy"].tolist() != early_exit(tiny_run, digits).curve["accuracy"].tolist()


def test_a_network_of_one_exit_saves_nothing(digits: ImageData) -> None:
    result = early_exit(_network("deepest"), digits)
    assert result.macs_saved == 0 and result.test["fraction.exit1"] == 1 and result.test["accuracy_drop"] == 0


def test_a_network_keeps_its_modes(digits: ImageData) -> None:
    network = _network().train()
    early_exit(network, digits, rule="patience")
    assert all(m.training for m in network.modules())


# --- errors ---


def test_what_cannot_be_done_is_named(digits: ImageData, tiny_run: Run) -> None:
    network = _network()
    with pytest.raises(CorsdError, match="data 'digits' has no validation split to choose a threshold on"):
        early_exit(network, replace(digits, validation=None))
    with pytest.raises(CorsdError, match="a network does not know its data set"):
        early_exit(network)
    with pytest.raises(CorsdError, match="rule 'luck' is not known; allowed: confidence, entropy, patience"):
        early_exit(tiny_run, rule="luck")
    with pytest.raises(CorsdError, match="data 'digits' has 10 classes, but the network has 7"):
        early_exit(build_network("resnet8", 7, in_channels=1, image_size=8, width=4), digits)


def test_logits_that_do_not_fit_are_named() -> None:
    logits, labels = _made_up(2, 10, 3)
    with pytest.raises(CorsdError, match=r"macs has 3 values for logits of 2 exits"):
        early_exit_curve(logits, labels, [1, 2, 3])
    with pytest.raises(CorsdError, match="rule 'luck' is not known"):
        early_exit_curve(logits, labels, [1, 2], "luck")
    for bad in ([math.nan], 0.5):
        with pytest.raises(CorsdError, match=r"thresholds .* allowed: a list of numbers"):
            early_exit_curve(logits, labels, [1, 2], thresholds=bad)  # type: ignore[arg-type]
    with pytest.raises(CorsdError, match=r"logits have shapes \[\(10, 3\), \(9, 3\)\]"):
        exit_agreement([logits[0], logits[1][:9]])
    for empty in ([], [torch.zeros(0, 3)], [torch.zeros(3)]):
        with pytest.raises(CorsdError, match="logits have shapes"):
            exit_agreement(empty)
    with pytest.raises(CorsdError, match=r"labels have shape \(9,\); allowed: \(10,\), one for each image"):
        exit_accuracy(logits, labels[:9])
    with pytest.raises(CorsdError, match="labels are from 1 to 3; allowed: 0 to 2"):
        first_correct(logits, labels + 1)
    with pytest.raises(CorsdError, match="bins = 0"):
        calibration_bins(logits[0], labels, 0)
    for value in (math.nan, math.inf):
        logits[1][4, 2] = value
        with pytest.raises(CorsdError, match="logits of exit 2 are not all finite"):
            overthinking(logits, labels)


# --- the exit each image leaves at ---


@pytest.mark.parametrize(("rule", "threshold"), [("confidence", 0.4), ("entropy", 0.8), ("patience", 2)])
def test_the_exits_that_images_leave_at_make_the_shares_of_the_curve(rule: str, threshold: float) -> None:
    logits = list(torch.randn(3, 40, 5, generator=torch.Generator().manual_seed(1)) * 2)
    left = exit_taken(logits, rule, threshold)
    (row,) = early_exit_curve(logits, torch.zeros(40, dtype=torch.long), [1, 2, 3], rule, [threshold]).to_dict("records")
    assert [row[f"fraction.exit{k}"] for k in (1, 2, 3)] == [(left == k).double().mean().item() for k in (1, 2, 3)]
    assert len(left.unique()) > 1
    with pytest.raises(CorsdError, match="rule"):
        exit_taken(logits, "hope", threshold)
