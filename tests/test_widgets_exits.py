"""The Python side of the exit explorer: what is shown is computed anew here; tests/browser has the other side."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from explorers import LONG, large_run, small_run
from torch import Tensor

from corsd_lib import Run, TrainConfig, load_dataset, load_run
from corsd_lib.analysis.exits import choose_threshold, early_exit, early_exit_curve
from corsd_lib.costs import cumulative_macs
from corsd_lib.errors import CorsdError
from corsd_lib.evaluation import evaluate, exit_logits
from corsd_lib.files import read_json, read_tensors, write_json, write_tensors
from corsd_lib.training import train
from corsd_lib.widgets.exits import ExitExplorer


@pytest.fixture(scope="module", params=["corsd", "baseline"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small_run(tmp_path_factory.mktemp("runs") / request.param, request.param)


@pytest.fixture(scope="module")
def corsd(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with a validation split, and probe images of it."""
    out = str(tmp_path_factory.mktemp("runs") / "corsd")
    config = TrainConfig(per_class=8, validation_fraction=0.4, epochs=2, batch_size=16, probe_size=30, out=out)
    return train(config, progress=False)


def answers(run: Run) -> tuple[list[Tensor], Tensor]:
    probes = run.probes
    return [z.double() for z in probes[list(probes)[-1]].logits], probes.labels


def leavers(run: Run, ready: Any) -> list[list[int]]:
    """Images that leave at each exit when `ready(probabilities)` lets them, one by one."""
    logits, labels = answers(run)
    places: list[list[int]] = [[] for _ in logits]
    for i in range(len(labels)):
        k = next((k for k, z in enumerate(logits[:-1]) if ready(z[i].softmax(0))), len(logits) - 1)
        places[k].append(i)
    return places


def images_at(explorer: ExitExplorer) -> dict[str, Any]:
    """What the browser is told of the images that leave."""
    return explorer.ask_images(**{name: getattr(explorer, name) for name in explorer.chosen})


def sent(explorer: ExitExplorer, rule: str = "confidence", split: str = "probe") -> dict[str, np.ndarray]:
    """A curve that was sent at first."""
    (curve,) = (c for c in explorer._data["curves"] if (c["rule"], c["split"]) == (rule, split))
    names = ("threshold", "accuracy", "macs", "accuracy_drop", "shares")
    return {name: np.frombuffer(curve[name]["bytes"], np.float32).reshape(curve[name]["shape"]) for name in names}


def test_opens_on_the_probe_images_at_the_cheapest_threshold_that_loses_a_point(run: Run) -> None:
    explorer = ExitExplorer(run)
    macs = cumulative_macs(run.network(), run.data)
    curve = early_exit_curve(*answers(run), macs)
    assert (explorer.rule, explorer.split, explorer.threshold) == ("confidence", "probe", choose_threshold(curve))
    np.testing.assert_allclose(explorer.curve["accuracy"], curve["accuracy"])
    row = curve[curve["threshold"] == explorer.threshold].iloc[0]
    assert explorer.operating_point == pytest.approx(dict(row))
    assert run.test is not None
    assert explorer.macs_saved == pytest.approx(100 * (1 - row["macs"] / run.test["exits"][-1]["macs"]))
    np.testing.assert_allclose(explorer.picture().data[0].y, curve["accuracy"], rtol=1e-5)
    np.testing.assert_allclose(sent(explorer)["accuracy"], explorer.curve["accuracy"], rtol=1e-5)


def test_a_threshold_of_the_browser_is_one_of_the_curve_and_lets_its_images_leave(corsd: Run) -> None:
    explorer = ExitExplorer(corsd)
    at = len(explorer.curve) // 2
    explorer.set_state({"threshold": float(sent(explorer)["threshold"][at])})  # in single precision
    row = explorer.curve.iloc[at]
    assert explorer.threshold == row["threshold"]
    star = next(t for t in explorer.picture().data if len(t.y) == 1 and t.y[0] == pytest.approx(row["accuracy"]))
    assert star.x[0] == pytest.approx(100 * row["macs"] / explorer._costs[1], rel=1e-4)  # % of the plain network
    logits, labels = answers(corsd)
    places = leavers(corsd, lambda p: p.max() >= row["threshold"])
    for k, (images, shown) in enumerate(zip(places, images_at(explorer)["exits"], strict=True), 1):
        assert (explorer.exit_taken == k).nonzero().flatten().tolist() == images
        assert row[f"fraction.exit{k}"] == pytest.approx(len(images) / len(labels)) == sent(explorer)["shares"][at, k - 1]
        right = [int(logits[k - 1][i].argmax()) == int(labels[i]) for i in images]
        assert shown["count"] == len(images)
        assert shown["correct"] == (pytest.approx(100 * np.mean(right)) if images else None)


def test_images_that_leave_are_sorted_by_confidence(corsd: Run) -> None:
    explorer = ExitExplorer(corsd, data=load_dataset("digits", per_class=8, validation_fraction=0.4))
    logits, _labels = answers(corsd)
    for k, exit in enumerate(images_at(explorer)["exits"]):
        places = (explorer.exit_taken == k + 1).nonzero().flatten()
        sure = logits[k][places].softmax(1).amax(1).sort(descending=True).values
        said = [int(image["lines"][1].rstrip(" %sure").split()[-1]) for image in exit["images"]]
        assert said == sorted(said, reverse=True) and len(said) == min(12, len(places))
        if said:
            assert said[0] == round(100 * sure[0].item()) and all(i["png"].startswith(b"\x89PNG") for i in exit["images"])


def test_another_run_stands_beside(corsd: Run, run: Run) -> None:
    explorer = ExitExplorer(corsd, run)
    others = explorer._data["others"]
    assert [other["rule"] for other in others] == ["confidence", "entropy", "patience"]
    curve = early_exit_curve(*answers(run), cumulative_macs(run.network(), run.data))
    np.testing.assert_allclose(np.frombuffer(others[0]["accuracy"]["bytes"], np.float32), curve["accuracy"], rtol=1e-5)
    np.testing.assert_allclose(explorer.panels()[0].data["others"][0]["accuracy"], curve["accuracy"], rtol=1e-5)


def test_a_threshold_between_those_of_the_curve_can_be_set(corsd: Run) -> None:
    explorer = ExitExplorer(corsd)
    explorer.threshold = 0.4321
    assert explorer.threshold == 0.4321 and 0.4321 in set(explorer.curve["threshold"])
    places = leavers(corsd, lambda p: p.max() >= 0.4321)
    assert [(explorer.exit_taken == k).sum().item() for k in (1, 2, 3)] == list(map(len, places))
    curve = explorer.ask_curve(**{name: getattr(explorer, name) for name in explorer.chosen})
    assert np.float32(0.4321) in curve["threshold"]


def test_every_rule_lets_others_leave(corsd: Run) -> None:
    explorer = ExitExplorer(corsd)
    explorer.set_state({"rule": "entropy", "threshold": None})
    assert explorer.rule == "entropy" and explorer.threshold == choose_threshold(explorer.curve)
    explorer.threshold = 0.7
    places = leavers(corsd, lambda p: -(p * p.log()).sum() / np.log(10) <= 0.7)
    assert [(explorer.exit_taken == k).sum().item() for k in (1, 2, 3)] == list(map(len, places))
    explorer.rule = "patience"
    assert sent(explorer, "patience")["threshold"].tolist() == [1, 2, 3]
    explorer.set_state({"rule": "confidence", "threshold": 0.5})  # as an undo in the browser
    assert explorer.threshold == pytest.approx(0.5)
    explorer.rule = "patience"
    explorer.threshold = 2
    first, second, _ = (z.argmax(1) for z in answers(corsd)[0])
    assert explorer.exit_taken.tolist() == [2 if a == b else 3 for a, b in zip(first, second, strict=True)]
    for rule in ("confidence", "entropy", "patience"):
        explorer.rule = rule
        for threshold in explorer.curve["threshold"]:
            explorer.threshold = threshold
            shares = [(explorer.exit_taken == k).double().mean().item() for k in (1, 2, 3)]
            assert [explorer.operating_point[f"fraction.exit{k}"] for k in (1, 2, 3)] == pytest.approx(shares)


def test_the_button_takes_the_cheapest_threshold_that_loses_so_little(corsd: Run) -> None:
    explorer = ExitExplorer(corsd)
    for loss in (0.0, 5.0, 100.0):
        explorer.max_accuracy_drop = loss
        assert explorer.choose_threshold() == explorer.threshold
        assert explorer.threshold == choose_threshold(explorer.curve, loss)
    assert explorer.operating_point["fraction.exit1"] == 1.0  # losing anything, all leave at once
    explorer.set_state({"max_accuracy_drop": 0})
    assert explorer.choose_threshold() == choose_threshold(explorer.curve, 0.0)


def test_splits_of_the_data_are_asked_of_the_network(corsd: Run) -> None:
    data = load_dataset("digits", per_class=8, validation_fraction=0.4)
    explorer = ExitExplorer(corsd, data=data)
    explorer.set_state({"split": "test", "threshold": None})
    assert explorer.split == "test"
    macs, network = cumulative_macs(corsd.network(), corsd.data), corsd.network()
    on_test = early_exit_curve(*exit_logits(network, data, data.test), macs)
    np.testing.assert_allclose(explorer.curve["accuracy"].max(), on_test["accuracy"].max(), atol=1.0)
    assert explorer.operating_point["accuracy"] <= 100 and len(explorer.exit_taken) == len(data.test)
    explorer.split = "validation"
    assert len(explorer.exit_taken) == len(data.validation)
    np.testing.assert_allclose(
        explorer.curve["accuracy"], early_exit_curve(*exit_logits(network, data, data.validation), macs)["accuracy"]
    )


def test_on_test_the_threshold_is_one_chosen_on_validation(corsd: Run) -> None:
    data = load_dataset("digits", per_class=8, validation_fraction=0.4)
    explorer = ExitExplorer(corsd, data=data, split="test")
    found = early_exit(corsd, data)
    assert explorer.threshold == pytest.approx(found.threshold)
    assert explorer.operating_point["accuracy"] == pytest.approx(found.test["accuracy"])
    assert explorer.macs_saved == pytest.approx(found.macs_saved)
    assert "chooses on validation images" in explorer._caution("test")
    assert explorer.ask_choose("confidence", "test", 1.0) == {"threshold": explorer.threshold}


def test_what_figures_are_worth_is_said(corsd: Run, tmp_path: Path) -> None:
    curve = ExitExplorer(corsd)._data["curves"][0]
    assert (
        curve["images"] == "30 probe images of validation" and "looks better on the images it was chosen on" in curve["caution"]
    )
    run = large_run(corsd, tmp_path, ["a", "b"], epochs=1, exits=3, images=4)
    for split, said in (("train", "The network was trained on these images"), ("test", "choose a threshold on validation")):
        write_tensors(
            tmp_path / "probe.safetensors", {"labels": torch.arange(4) % 2, "index": torch.arange(4)}, {"split": split}
        )
        assert said in ExitExplorer(load_run(run.path))._data["curves"][0]["caution"]


def test_classes_are_counted_where_the_data_is_not(corsd: Run, tmp_path: Path) -> None:
    bare = without_data(corsd, tmp_path)
    found = images_at(bare)
    assert "No images here" in found["missing"] and all(exit["images"] == [] for exit in found["exits"])
    for k, exit in enumerate(found["exits"], 1):
        classes = Counter(corsd.probes.labels[bare.exit_taken == k].tolist()).most_common(4)
        assert exit["classes"] == ", ".join(f"{c} {n}" for c, n in classes)


def without_data(run: Run, path: Path) -> ExitExplorer:
    """The run as on a machine that has not got its data."""
    copy = Path(shutil.copytree(run.path, path / "copy"))
    config = read_json(copy / "config.json")
    config["train"] |= {"data": "cifar100"}
    write_json(copy / "config.json", config)
    return ExitExplorer(load_run(copy), data_root=str(path / "nothing"))


def test_a_split_without_its_data_is_refused_and_the_old_one_kept(corsd: Run, tmp_path: Path) -> None:
    explorer = without_data(corsd, tmp_path)
    with pytest.raises(CorsdError, match=r"split 'test' needs the data"):
        explorer.split = "test"
    explorer.set_state({"split": "validation", "threshold": None})
    assert explorer.split == "probe" and explorer.threshold is not None
    with pytest.raises(CorsdError, match=r"split 'train'.*probe, validation, test"):
        explorer.split = "train"
    with pytest.raises(CorsdError, match="split 'train'"):
        ExitExplorer(corsd, split="train")


@pytest.mark.parametrize(
    "rule,bad", [("confidence", 1.2), ("confidence", "x"), ("entropy", -0.5), ("patience", 1.5), ("patience", 4)]
)
def test_a_bad_threshold_is_refused_and_the_old_one_kept(corsd: Run, rule: str, bad: Any) -> None:
    explorer = ExitExplorer(corsd)
    explorer.rule = rule
    before = explorer.threshold
    with pytest.raises(CorsdError, match=f"threshold = {bad!r} for {rule}"):
        explorer.threshold = bad
    assert explorer.threshold == before


def test_other_bad_values_are_refused(corsd: Run, tmp_path: Path) -> None:
    explorer = ExitExplorer(corsd)
    with pytest.raises(CorsdError, match="rule 'luck'"):
        explorer.rule = "luck"
    with pytest.raises(CorsdError, match="max_accuracy_drop = -1"):
        explorer.max_accuracy_drop = -1
    write_json(tmp_path / "config.json", read_json(corsd.path / "config.json"))
    with pytest.raises(CorsdError, match=f"{tmp_path} has no probe snapshots"):
        ExitExplorer(load_run(tmp_path))


def test_a_single_exit_lets_nobody_leave(tmp_path: Path) -> None:
    explorer = ExitExplorer(small_run(tmp_path / "baseline", "baseline"))
    assert explorer.exit_taken.unique().tolist() == [1] and len(explorer.curve) == 1
    for rule in ("entropy", "patience"):
        explorer.rule = rule
        assert explorer.operating_point["accuracy_drop"] == 0 and abs(explorer.macs_saved) < 1e-9


def test_weights_are_not_needed_to_know_costs_and_random_numbers_stay(corsd: Run, tmp_path: Path) -> None:
    run = large_run(corsd, tmp_path, [str(i) for i in range(10)], epochs=1, exits=3, images=4)
    write_tensors(tmp_path / "probe.safetensors", {"labels": torch.arange(4), "index": torch.arange(4)}, {"split": "train"})
    state = torch.random.get_rng_state()
    assert ExitExplorer(run)._costs == ExitExplorer(corsd)._costs
    assert torch.equal(state, torch.random.get_rng_state())
    assert ExitExplorer(corsd)._costs[1] == evaluate(corsd, load_dataset("digits", per_class=8)).exits[-1]["macs"]


def test_a_long_name_is_written_short(corsd: Run, tmp_path: Path) -> None:
    explorer = ExitExplorer(large_run(corsd, tmp_path, [LONG, "b"], epochs=1, exits=3, images=4))
    assert max(len(exit["classes"]) for exit in images_at(explorer)["exits"]) < 120


def test_the_page_begins_as_the_explorer_is(corsd: Run) -> None:
    explorer = ExitExplorer(corsd)
    explorer.rule = "entropy"
    (panel,) = explorer.panels()
    start = panel.data["start"]
    assert panel.kind == "exits" and start["rule"] == "entropy" and start["threshold"] == pytest.approx(explorer.threshold)


def test_a_run_of_the_size_of_cifar100_opens_in_a_second_and_moves_at_once(corsd: Run, tmp_path: Path) -> None:
    run = large_run(corsd, tmp_path, [f"class {c}" for c in range(100)], epochs=2, exits=3)
    generator = torch.Generator().manual_seed(0)
    tensors = {f"logits.{k}": torch.randn(1000, 100, generator=generator).half() for k in range(3)}
    file = tmp_path / "probes" / "epoch_0001.safetensors"
    write_tensors(file, read_tensors(file)[0] | tensors)
    labels = torch.arange(100).repeat_interleave(10)
    write_tensors(tmp_path / "probe.safetensors", {"labels": labels, "index": torch.arange(1000)}, {"split": "train"})
    ExitExplorer(corsd)  # what the first widget of a process loads is not this run's cost
    begin = time.process_time()
    explorer = ExitExplorer(run)
    assert time.process_time() - begin < 1.0
    begin = time.process_time()
    for at in (10, 40, 70, 90):
        explorer.threshold = explorer.curve["threshold"].iloc[at]
    assert (time.process_time() - begin) / 4 < 0.05
