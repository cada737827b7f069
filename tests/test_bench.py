"""The benchmark: what it times is what it says, ratios come from rounds, records become tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from corsd_lib import bench, bench_explorers, bench_serving, cli
from corsd_lib.analysis.exits import exit_taken
from corsd_lib.batches import evaluation_batches
from corsd_lib.errors import CorsdError
from corsd_lib.files import read_json
from corsd_lib.network import build_network, evaluating
from corsd_lib.runs import load_data, sample_run
from corsd_lib.sharing.programs import chain, single


def test_actions_run_in_turn_and_the_first_round_is_dropped() -> None:
    calls: list[str] = []
    seconds = bench._in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeat=3)
    assert calls == ["a", "b"] * 4
    assert [len(v) for v in seconds.values()] == [3, 3]


def test_the_ratio_is_the_median_over_rounds() -> None:
    assert bench._ratio({"a": [1.0, 9.0, 4.0], "b": [1.0, 3.0, 2.0]}, "a", "b") == 2.0


@pytest.mark.parametrize("method", ["baseline", "corsd"])
def test_a_timed_step_trains(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "BATCH", 4)
    moved: list[float] = []
    original = torch.optim.SGD.step

    def step(self: torch.optim.SGD) -> None:
        before = [p.detach().clone() for p in self.param_groups[0]["params"]]
        original(self)
        moved.append(sum((p - q).abs().sum().item() for p, q in zip(self.param_groups[0]["params"], before, strict=True)))

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    bench._stepper("resnet8", method)()
    assert moved[0] > 0


@pytest.mark.parametrize("method", ["corsd", "deep_supervision"])
def test_the_setting_of_the_study_is_timed_on_one_thread(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, before = [], torch.get_num_threads()

    def stepper(name: str, batch: int) -> Callable[[], None]:
        assert batch == 32
        return lambda: threads.append((name, torch.get_num_threads()))

    monkeypatch.setattr(bench, "_study_stepper", stepper)
    torch.set_num_threads(2)
    try:
        figure = bench.study_step_ratio(method, 32, repeat=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(threads) == {("baseline", 1), (method, 1)} and "batch 32" in figure["what"]
    study = read_json(Path(__file__).parents[1] / "results/cifar100/study.json")["train"]
    assert (study["network"], study["width"], study["stem"], study["precision"]) == ("resnet10", 32, "medium", "bf16-mixed")


def test_a_step_in_the_setting_of_the_study_trains_every_exit() -> None:
    gradients: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        original = torch.optim.SGD.step

        def step(self: torch.optim.SGD) -> None:
            gradients.extend(p.grad is not None for p in self.param_groups[0]["params"])
            original(self)

        patch.setattr(torch.optim.SGD, "step", step)
        bench._study_stepper("corsd", 8)()
    assert len(gradients) > 100 and sum(gradients) > 0.9 * len(gradients)


def test_both_ways_of_joining_pairs_give_the_same_relation_input() -> None:
    anchor, positive, negative = torch.randn(3, 5, 2, 4, 4)
    one, whole = bench._join_one_by_one(anchor, positive, negative), bench._join_at_once(anchor, positive, negative)
    assert one.shape == (10, 4, 4, 4) and torch.equal(one, whole)


def test_both_pipelines_deliver_the_same_number_of_batches() -> None:
    data = bench._data(3 * bench.BATCH + 7)
    theirs = [x.shape for x in bench._per_image_loader(data)]
    ours = [b.images.shape for b in bench.BatchSource(data, batch_size=bench.BATCH)(0)]
    assert ours == theirs == [torch.Size([bench.BATCH, 3, 32, 32])] * 3


def test_both_ways_of_streaming_read_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "BATCH", 4)
    data = bench._photographs(tmp_path, 10)
    theirs = [images.shape for images, _ in bench._image_folder_loader(tmp_path, data)]
    ours = [b.images.shape for b in bench.BatchSource(data, batch_size=4)(0)]
    assert ours == theirs == [torch.Size([4, 3, 224, 224])] * 2
    assert isinstance(data.train, bench.ImageFiles)
    assert {Path(path) for path in data.train.paths} == set(tmp_path.rglob("*.jpg"))


def test_streaming_is_measured_against_torchvisions_image_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "BATCH", 1)
    timed: list[str] = []

    def in_turn(actions: dict[str, Callable[[], object]], repeat: int) -> dict[str, list[float]]:
        for name, action in actions.items():
            timed.append(name)
            action()
        return {"ours": [2.0], "theirs": [3.0]}

    monkeypatch.setattr(bench, "_in_turn", in_turn)
    figure = bench.streamed_ratio(1)
    assert timed == ["ours", "theirs"] and (figure["value"], figure["target"]) == (1.5, "at least 1")


@pytest.mark.slow
def test_peak_memory_sees_what_is_allocated() -> None:
    before = bench.peak_memory()
    held = torch.ones(2 * 2**30 // 4)
    assert held.sum() > 0 and bench.peak_memory() > max(before, 2.0)


def test_shares_and_ratios_are_of_what_they_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "BATCH", 8)
    monkeypatch.setattr(bench, "ANCHORS", 4)
    for figure, names in (
        (bench.relation_share, ["relations", "corsd"]),
        (bench.release_ratio, ["release", "corsd"]),
        (lambda *_: bench.step_ratio("resnet20", 1), ["baseline", "corsd"]),
    ):
        timed: list[str] = []

        def in_turn(actions: dict[str, Callable[[], object]], repeat: int, timed: list[str] = timed) -> dict[str, list[float]]:
            timed += actions
            for action in actions.values():
                action()
            return {"relations": [1.0], "release": [6.0], "baseline": [2.0], "corsd": [4.0]}

        monkeypatch.setattr(bench, "_in_turn", in_turn)
        value = figure("resnet8", 1)["value"]
        assert timed == names
        assert value == {"relations": 0.25, "release": 3.0, "baseline": 2.0}[names[0]]  # release: per anchor, 6/4 to 4/8


def test_a_process_that_is_measured_has_a_time_limit_and_its_error_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bench._fresh("print(1.5)") == "1.5\n"
    with pytest.raises(CorsdError, match=r"^a measured process failed: ValueError: no$"):
        bench._fresh("raise ValueError('no')")
    monkeypatch.setattr(bench, "SECONDS", 0.1)
    with pytest.raises(CorsdError, match=r"^a measured process took more than 0\.1 seconds and was ended$"):
        bench._fresh("import time; time.sleep(600)")


def test_the_command_writes_record_and_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"figures": {"x": {"what": "a / b", "value": 2.0, "target": "-"}}}
    monkeypatch.setattr(bench, "bench", lambda quick: record if quick else {})
    (tmp_path / "README.md").write_text("<!-- bench -->\n<!-- /bench -->")
    cli.main(["bench", "--quick", "--out", str(tmp_path / "bench.json"), "--readme", str(tmp_path / "README.md")])
    assert read_json(tmp_path / "bench.json") == record and "| a / b | 2 | - |" in (tmp_path / "README.md").read_text()


def test_the_table_marks_what_misses_its_target() -> None:
    aims = [
        (1.6, "at most 1.5"),
        (1.5, "at most 1.5"),
        (2.9, "at least 3"),
        (3.0, "at least 3"),
        (1.2, "below 1.5"),
        (9.0, "-"),
    ]
    record = {"figures": {str(i): {"what": str(i), "value": value, "target": aim} for i, (value, aim) in enumerate(aims)}}
    assert ["missed" in line for line in bench.table(record).splitlines()[2:]] == [True, False, True, False, False, False]


def test_the_table_goes_between_the_marks(tmp_path: Path) -> None:
    record = {"figures": {"x": {"what": "a / b", "value": 0.0123, "target": "at most 1"}}}
    document = tmp_path / "README.md"
    document.write_text("top\n<!-- bench -->\nold\n<!-- /bench -->\nbottom\n")
    bench.write_table(record, document)
    table = "| what | measured | target |\n| --- | --- | --- |\n| a / b | 0.0123 | at most 1 |"
    assert document.read_text() == f"top\n<!-- bench -->\n{table}\n<!-- /bench -->\nbottom\n"
    document.write_text("no marks")
    with pytest.raises(CorsdError, match="must contain <!-- bench -->"):
        bench.write_table(record, document)


@pytest.mark.slow
def test_explorers_are_measured_from_a_run_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"CLASSES": 5, "PROBES": 20, "EPOCHS": 2}.items():
        monkeypatch.setattr(bench_explorers, name, value)
    figures = bench_explorers.explorer_measurements(repeat=1)
    assert set(figures) == {"explorer_first_view", "explorer_data", "explorer_images", "monitor"}
    assert all(figure["value"] > 0 for figure in figures.values())
    assert figures["monitor"]["value"] > 1 and "5 classes x 4 exits x 5 snapshots" in figures["explorer_data"]["what"]
    assert 0.001 < figures["explorer_data"]["value"] < 0.05  # 4 x 5 x 5 x 5 scores of two bytes, and names


@pytest.mark.slow
def test_latency_is_measured_on_programs_that_compute_what_the_network_computes() -> None:
    pytest.importorskip("onnxruntime")
    run = sample_run(bench_serving.RUN)
    network, data = run.network(), load_data(run.config)
    images = next(iter(evaluation_batches(data, data.test)))[0][:40]
    with evaluating(network), torch.no_grad():
        logits = network(images).logits
    threshold = 0.8
    exits = exit_taken(logits, "confidence", threshold)
    classes = [int(logits[k - 1][i].argmax()) for i, k in enumerate(exits.tolist())]
    programs = bench_serving.load(chain(network), images[:1])
    found = [bench_serving.classify(programs, image[None], threshold) for image in images.numpy()]
    assert found == list(zip(classes, exits.tolist(), strict=True)) and len(set(exits.tolist())) > 1
    (plain,) = bench_serving.load(single(network, len(network.exits)), images[:1])
    torch.testing.assert_close(torch.from_numpy(plain(images.numpy())[0]), logits[-1], rtol=1e-4, atol=1e-4)


def test_rows_of_latency_state_macs_and_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_serving, "_ratio", lambda network, images, threshold, repeat: threshold)
    figures = bench_serving.serving_measurements(repeat=1)
    trained, first, deepest = (figures[f"serving_{name}"] for name in ("trained", "resnet18_first", "resnet18_deepest"))
    assert 0 < trained["value"] < 1 and "0.5 points of accuracy less" in trained["what"] and "MACs: 0.49" in trained["what"]
    assert (first["value"], deepest["value"]) == (0.0, 2.0) and "MACs: 1.04" in deepest["what"]


def test_a_latency_is_relative_to_the_plain_network_in_the_same_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 3.0, 10.0, 12.0, 20.0, 26.0, 30.0, 32.0])  # two rounds; early exits take 3 and 6, the plain network 2
    monkeypatch.setattr(bench_serving, "load", lambda programs, image: [lambda x: [np.zeros((1, 2))]])
    monkeypatch.setattr(bench_serving.time, "perf_counter", lambda: next(clock))
    network = build_network("resnet8", 2, width=4)
    assert bench_serving._ratio(network, torch.zeros(1, 3, 8, 8), 0.5, repeat=1) == 3.0
