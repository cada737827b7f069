"""ExitExplorer without a browser: its controls are moved as a browser would, and what is shown is computed anew."""

from __future__ import annotations

import re
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from explorers import LONG, large_run, longest_word, small_run
from torch import Tensor

from corsd_lib import Run, TrainConfig, load_dataset, load_run
from corsd_lib.analysis.exits import choose_threshold, cumulative_macs, early_exit, early_exit_curve
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


def cells(explorer: ExitExplorer) -> list[list[str]]:
    rows = explorer.table.value.split("<tr>")[2:]
    return [[re.sub("<[^>]*>", "", cell) for cell in re.findall("<td>(.*?)</td>", row)] for row in rows]


def test_opens_on_the_probe_images_at_the_cheapest_threshold_that_loses_a_point(run: Run) -> None:
    explorer = ExitExplorer(run)
    macs = cumulative_macs(run.network(), run.data)
    curve = early_exit_curve(*answers(run), macs)
    assert (explorer.rule, explorer.split, explorer.threshold) == ("confidence", "probe", choose_threshold(curve))
    np.testing.assert_allclose(explorer.curve["accuracy"], curve["accuracy"])
    row = curve[curve["threshold"] == explorer.threshold].iloc[0]
    assert explorer.figures == pytest.approx(dict(row))
    assert run.test is not None
    assert explorer.saved == pytest.approx(100 * (1 - row["macs"] / run.test["exits"][-1]["macs"]))
    assert explorer.figure.data[0].y.dtype == np.float32
    np.testing.assert_allclose(explorer.figure.data[0].y, curve["accuracy"], rtol=1e-5)


def test_the_slider_moves_the_point_the_table_and_the_images(corsd: Run) -> None:
    explorer = ExitExplorer(corsd)
    at = len(explorer.curve) // 2
    explorer.threshold_slider.set_state({"index": at})
    row = explorer.curve.iloc[at]
    assert explorer.threshold == row["threshold"]
    star = next(t for t in explorer.figure.data if len(t.y) == 1 and t.y[0] == pytest.approx(row["accuracy"]))
    assert star.x[0] == pytest.approx(100 * row["macs"] / explorer._costs[1], rel=1e-4)  # % of the plain network
    logits, labels = answers(corsd)
    places = leavers(corsd, lambda p: p.max() >= row["threshold"])
    for k, (images, shown) in enumerate(zip(places, cells(explorer), strict=True), 1):
        assert (explorer.left_at == k).nonzero().flatten().tolist() == images
        assert row[f"share.exit{k}"] == pytest.approx(len(images) / len(labels))
        right = [int(logits[k - 1][i].argmax()) == int(labels[i]) for i in images]
        rate = f"{100 * np.mean(right):.1f} %" if images else "–"
        assert shown[:4] == [
            f"{explorer._costs[0][k - 1] / 1e6:.2f}",
            str(len(images)),
            f"{100 * len(images) / len(labels):.1f} %",
            rate,
        ]


def test_a_threshold_between_those_of_the_curve_can_be_set(corsd: Run) -> None:
    explorer = ExitExplorer(corsd)
    explorer.threshold = 0.4321
    assert explorer.threshold == 0.4321 and 0.4321 in set(explorer.curve["threshold"])
    places = leavers(corsd, lambda p: p.max() >= 0.4321)
    assert [(explorer.left_at == k).sum().item() for k in (1, 2, 3)] == list(map(len, places))
    assert "0.4321" in explorer.reading.value


def test_every_rule_lets_others_leave(corsd: Run) -> None:
    explorer = ExitExplorer(corsd)
    explorer.rule_choice.set_state({"index": 1})
    assert explorer.rule == "entropy" and "entropy ≤" in explorer.reading.value
    explorer.threshold = 0.7
    places = leavers(corsd, lambda p: -(p * p.log()).sum() / np.log(10) <= 0.7)
    assert [(explorer.left_at == k).sum().item() for k in (1, 2, 3)] == list(map(len, places))
    explorer.rule = "patience"
    assert [t for _, t in explorer.threshold_slider.options] == [1, 2, 3]
    explorer.threshold = 2
    first, second, _ = (z.argmax(1) for z in answers(corsd)[0])
    assert explorer.left_at.tolist() == [2 if a == b else 3 for a, b in zip(first, second, strict=True)]
    for rule in ("confidence", "entropy", "patience"):
        explorer.rule = rule
        for threshold in explorer.curve["threshold"]:
            explorer.threshold = threshold
            shares = [(explorer.left_at == k).double().mean().item() for k in (1, 2, 3)]
            assert [explorer.figures[f"share.exit{k}"] for k in (1, 2, 3)] == pytest.approx(shares)


def test_the_button_takes_the_cheapest_threshold_that_loses_so_little(corsd: Run) -> None:
    explorer = ExitExplorer(corsd)
    for loss in (0.0, 5.0, 100.0):
        explorer.loss = loss
        explorer.choose_button.click()
        assert explorer.threshold == choose_threshold(explorer.curve, loss)
    assert explorer.figures["share.exit1"] == 1.0  # losing anything, all leave at once
    explorer.loss_field.set_state({"value": 0.0})
    assert explorer.choose() == choose_threshold(explorer.curve, 0.0)


def test_splits_of_the_data_are_asked_of_the_network(corsd: Run) -> None:
    data = load_dataset("digits", per_class=8, validation_fraction=0.4)
    explorer = ExitExplorer(corsd, data=data)
    explorer.split_choice.set_state({"index": 2})
    assert explorer.split == "test"
    macs, network = cumulative_macs(corsd.network(), corsd.data), corsd.network()
    on_test = early_exit_curve(*exit_logits(network, data, data.test), macs)
    np.testing.assert_allclose(explorer.curve["accuracy"].max(), on_test["accuracy"].max(), atol=1.0)
    assert explorer.figures["accuracy"] <= 100 and len(explorer.left_at) == len(data.test)
    explorer.split = "validation"
    assert len(explorer.left_at) == len(data.validation)
    np.testing.assert_allclose(
        explorer.curve["accuracy"], early_exit_curve(*exit_logits(network, data, data.validation), macs)["accuracy"]
    )


def test_on_test_the_threshold_is_one_chosen_on_validation(corsd: Run) -> None:
    data = load_dataset("digits", per_class=8, validation_fraction=0.4)
    explorer = ExitExplorer(corsd, data=data, split="test")
    found = early_exit(corsd, data)
    assert explorer.threshold == pytest.approx(found.threshold)
    assert explorer.figures["accuracy"] == pytest.approx(found.test["accuracy"])
    assert explorer.saved == pytest.approx(found.saved)
    assert f"chooses on {len(data.validation)} images of validation" in explorer.note.value


def test_what_figures_are_worth_is_said(corsd: Run, tmp_path: Path) -> None:
    assert "30 probe images of validation" in ExitExplorer(corsd).note.value
    assert "better here than on new images" in ExitExplorer(corsd).note.value
    run = large_run(corsd, tmp_path, ["a", "b"], epochs=1, exits=3, images=4)
    for split, said in (("train", "The network was trained on them"), ("test", "choose a threshold on validation")):
        write_tensors(
            tmp_path / "probe.safetensors", {"labels": torch.arange(4) % 2, "index": torch.arange(4)}, {"split": split}
        )
        assert said in ExitExplorer(load_run(run.path)).note.value


def test_images_that_leave_are_shown_and_classes_counted_where_the_data_is_not(corsd: Run, tmp_path: Path) -> None:
    explorer = ExitExplorer(corsd, data=load_dataset("digits", per_class=8, validation_fraction=0.4))
    counts = [int((explorer.left_at == k).sum()) for k in (1, 2, 3)]
    assert explorer.strips.value.count("<img") == sum(min(12, n) for n in counts)
    assert [f"{min(12, n)} of {n}" in explorer.strips.value for n in counts] == [True] * 3
    assert all(len(row) == 4 for row in cells(explorer))
    bare = without_data(corsd, tmp_path)
    bare.complete()
    assert "No images here" in bare.strips.value and "<img" not in bare.strips.value
    for k, row in enumerate(cells(bare), 1):
        classes = Counter(corsd.probes.labels[bare.left_at == k].tolist()).most_common(4)
        assert row[4] == (", ".join(f"{c} {n}" for c, n in classes) or "–")


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
    explorer.split_choice.set_state({"index": 1})
    assert explorer.split == explorer.split_choice.value == "probe" and "needs the data" in explorer.note.value
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
    with pytest.raises(CorsdError, match=f"threshold {bad!r} of {rule}"):
        explorer.threshold = bad
    assert explorer.threshold == before


def test_other_bad_values_are_refused(corsd: Run, tmp_path: Path) -> None:
    explorer = ExitExplorer(corsd)
    with pytest.raises(CorsdError, match="rule 'luck'"):
        explorer.rule = "luck"
    with pytest.raises(CorsdError, match="loss -1"):
        explorer.loss = -1
    write_json(tmp_path / "config.json", read_json(corsd.path / "config.json"))
    with pytest.raises(CorsdError, match=f"{tmp_path}.*probe_every"):
        ExitExplorer(load_run(tmp_path))


def test_a_single_exit_lets_nobody_leave(tmp_path: Path) -> None:
    explorer = ExitExplorer(small_run(tmp_path / "baseline", "baseline"))
    assert explorer.left_at.unique().tolist() == [1] and len(explorer.curve) == 1
    for rule in ("entropy", "patience"):
        explorer.rule = rule
        assert explorer.figures["loss"] == 0 and abs(explorer.saved) < 1e-9


def test_weights_are_not_needed_to_know_costs_and_random_numbers_stay(corsd: Run, tmp_path: Path) -> None:
    run = large_run(corsd, tmp_path, [str(i) for i in range(10)], epochs=1, exits=3, images=4)
    write_tensors(tmp_path / "probe.safetensors", {"labels": torch.arange(4), "index": torch.arange(4)}, {"split": "train"})
    state = torch.random.get_rng_state()
    assert ExitExplorer(run)._costs == ExitExplorer(corsd)._costs
    assert torch.equal(state, torch.random.get_rng_state())
    assert ExitExplorer(corsd)._costs[1] == evaluate(corsd, load_dataset("digits", per_class=8)).exits[-1]["macs"]


def test_names_are_escaped_everywhere(corsd: Run, tmp_path: Path) -> None:
    run = large_run(corsd, tmp_path, ["<img src=x onerror=alert(1)>", "b"], epochs=1, exits=3, images=4)
    write_tensors(tmp_path / "probe.safetensors", {"labels": torch.arange(4) % 2, "index": torch.arange(4)}, {"split": "test"})
    explorer = ExitExplorer(run)
    text = explorer.table.value + explorer.strips.value + explorer.figure.to_json()
    assert "<img src=x" not in text
    with_images = ExitExplorer(run, data=load_dataset("digits"))
    assert "<img src=x" not in with_images.strips.value + with_images.table.value


def test_a_long_name_is_written_short_and_whole_on_hover(corsd: Run, tmp_path: Path) -> None:
    explorer = ExitExplorer(large_run(corsd, tmp_path, [LONG, "b"], epochs=1, exits=3, images=4))
    explorer.complete()
    table = explorer.table.value  # the classes that leave at each exit, where there are no images
    assert longest_word(table) < 60 and f'title="{LONG}"' in table


def test_the_page_begins_as_the_explorer_is(corsd: Run) -> None:
    explorer = ExitExplorer(corsd)
    explorer.rule = "entropy"
    (panel,) = explorer.panels()
    assert panel.kind == "exits" and panel.data["rule"] == "entropy"
    assert panel.data["threshold"][panel.data["start"]] == pytest.approx(explorer.threshold)


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
        explorer.threshold_slider.index = at
    assert (time.process_time() - begin) / 4 < 0.05
