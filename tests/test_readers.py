"""Files of a run or a study that are wrong end in one `CorsdError` that names the file and the field."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TINY

from corsd_lib import cli
from corsd_lib.analysis import stage_embedding
from corsd_lib.analysis.embedding import is_kept
from corsd_lib.costs import run_macs
from corsd_lib.errors import CorsdError
from corsd_lib.files import read_json, read_lines, read_tensors, write_json, write_lines, write_tensors
from corsd_lib.readers import read_summary
from corsd_lib.runs import Run, TrainConfig, load_run
from corsd_lib.schema import parse_json, shortened

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def run(tiny_run: Run, tmp_path: Path) -> Run:
    """A copy of the tiny run that a test may damage."""
    return load_run(shutil.copytree(tiny_run.path, tmp_path / "run"))


def put(*way: Any, to: Any) -> Change:
    """Set what lies at the end of the way `way` through objects and lists."""

    def change(values: dict[str, Any]) -> None:
        at: Any = values
        for name in way[:-1]:
            at = at[name]
        at[way[-1]] = to

    return change


def drop(*way: Any) -> Change:
    def change(values: dict[str, Any]) -> None:
        at: Any = values
        for name in way[:-1]:
            at = at[name]
        del at[way[-1]]

    return change


# --- JSON -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000, "[" * 40 + "]" * 40])
def test_deeply_nested_json_is_refused(tmp_path: Path, text: str) -> None:
    for name, read in (("a.json", read_json), ("a.jsonl", read_lines)):
        (tmp_path / name).write_text(text)
        with pytest.raises(CorsdError, match=rf"{name} is not valid JSON( lines)?: objects and lists are nested too deeply"):
            read(tmp_path / name)


def test_a_name_that_stands_twice_in_an_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"b": [{"seed": 1, "seed": 2}]}')
    with pytest.raises(CorsdError, match=r"a\.json is not valid JSON: the name 'seed' appears twice in an object"):
        read_json(tmp_path / "a.json")


def test_half_of_a_surrogate_pair_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(r'{"title": "\ud800"}')
    with pytest.raises(CorsdError, match=r"a\.json is not valid JSON: .*surrogates not allowed"):
        read_json(tmp_path / "a.json")
    assert parse_json(r'["\ud83d\ude00 \u00e4"]') == ["😀 ä"]


def test_lines_that_cannot_be_read_are_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n")

    def refuse(*_: Any, **__: Any) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(CorsdError, match=r"cannot read .*a\.jsonl: Permission denied"):
        read_lines(tmp_path / "a.jsonl")


def test_values_of_any_size_are_short_in_messages() -> None:
    for value in ("x" * 10_000, 10**4000, list(range(10_000)), {"a": ["b" * 10_000]}):
        assert len(shortened(value)) < 200


# --- config.json ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change,message",
    [
        (drop("train", "method_options"), "train lacks method_options; allowed: a JSON object with method_options"),
        (put("train", "method_options", to=3), "train: method_options = 3; allowed: a JSON object"),
        (put("train", to=[1]), r"train = \[1\]; allowed: a JSON object"),
        (put("data", to=None), "data = None; allowed: a JSON object"),
        (put("data", "sides", to=8), "data: field 'sides' is not known; allowed: name, class_names"),
        (drop("data", "class_names"), "data lacks class_names"),
        (put("data", "class_names", to=[]), r"data: class_names has 0 entries; allowed: 1 to 65535"),
        (put("data", "class_names", 3, to=7), r"data: class_names\[3\] = 7; allowed: a string"),
        (drop("data", "class_names", 3), "data: superclass_of_class has 10 entries; allowed: 9, as class_names has"),
        (put("data", "superclass_of_class", 2, to=10), "data: superclass_of_class names more than the 10 superclasses"),
        (put("data", "superclass_of_class", 2, to=-1), r"data: superclass_of_class\[2\] = -1; allowed: a whole number from 0"),
        (put("data", "mean", to=[]), "data: mean has 0 entries"),
        (put("data", "mean", 0, to=float("nan")), r"data: mean\[0\] = nan; allowed: a number from"),
        (put("data", "std", 0, to=0), r"data: std\[0\] = 0; allowed: a number from 1e-12"),
        (put("data", "std", to=[0.5, 0.5]), "data: std has 2 entries; allowed: 1, as mean has"),
        (put("data", "image_size", to=10**30), "data: image_size = 1000000000000000000000000000000; allowed"),
        (put("data", "splits", "train", to=[1]), "data: splits: train has 1 entries; allowed: 2 to 3"),
        (put("provenance", "versions", to="2.9"), "provenance: versions = '2.9'; allowed: a JSON object"),
        (drop("provenance", "device"), "provenance lacks device"),
        (put("resumed", to=[{"revision": "a"}]), r"resumed\[0\] lacks corsd_lib"),
    ],
)
def test_a_config_that_is_wrong_is_named_with_its_field(run: Run, change: Change, message: str) -> None:
    values = read_json(run.path / "config.json")
    change(values)
    write_json(run.path / "config.json", values)
    for read in (lambda r: r.data, lambda r: r.config, repr, lambda r: r.probes, lambda r: r.network()):
        with pytest.raises(CorsdError, match=rf"{run.path / 'config.json'}: {message}"):
            read(load_run(run.path))


@pytest.mark.parametrize("name", ["probe_size", "batch_size", "image_size", "epochs", "per_class", "width", "workers", "lr"])
def test_a_whole_number_that_nothing_can_count_is_refused(name: str) -> None:
    for value in (10**30, 2**31, 10**400):
        with pytest.raises(CorsdError, match=rf"{name} = [0-9.]+ must be .*below 2,147,483,648$"):
            TrainConfig(**{name: value})
    with pytest.raises(CorsdError, match=r"seed = [0-9.]+ must be at least 0 and below 9,223,372,036,854,775,808$"):
        TrainConfig(seed=10**30)


def test_an_option_of_a_method_that_nothing_can_count_is_refused() -> None:
    for name, value in (("hidden", 10**30), ("margin", 10**400)):
        with pytest.raises(CorsdError, match=f"method 'corsd': {name} = 1000.* must be above .* and below"):
            TrainConfig(method_options={name: value}).build_method()


def test_a_probe_size_beyond_all_bounds_is_a_line_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "--out", str(tmp_path / "run"), "--probe-size", str(10**30)])
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("corsd: error: probe_size = 1000") and said.count("\n") == 1


def test_a_run_whose_name_no_file_can_have_is_none() -> None:
    for name in ("x" * 5000, "a\0b"):
        with pytest.raises(CorsdError, match="is not a run"):
            load_run(name)


def test_a_network_that_memory_does_not_hold_is_refused_before_it_is_made(run: Run) -> None:
    for field, value in (("width", 2**20), ("width", 2**31 - 1)):
        values = read_json(run.path / "config.json")
        values["train"][field] = value
        write_json(run.path / "config.json", values)
        with pytest.raises(CorsdError, match=r"of another architecture: it has [0-9,]+ numbers|more memory than is available"):
            load_run(run.path).network()
    options = {**run.raw_config["method_options"], "hidden": 2**31 - 1}
    values["train"] |= {"width": TINY["width"], "method_options": options}
    write_json(run.path / "config.json", values)
    with pytest.raises(CorsdError, match=r"of another architecture: it has [0-9,]+ numbers|cannot be built"):
        load_run(run.path).method()


# --- metrics.jsonl and test.json --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change,message",
    [
        (drop("epoch"), "line 2 lacks epoch"),
        (drop("loss.task"), "line 2 lacks loss.task"),
        (put("extra", to=1), "line 2: field 'extra' is not known"),
        (put("epoch", to=3), "line 2: epoch = 3; allowed: 2"),
        (put("seconds", to="1"), "line 2: seconds = '1'; allowed: a number from 0"),
        (put("images", to=0), "line 2: images = 0; allowed: a whole number from 1"),
        (put("train_top1.exit1", to=101), "line 2: train_top1.exit1 = 101; allowed: a number from 0 to 100$"),
        (put("step", to=-1), "line 2: step = -1; allowed: a whole number from 0 up$"),
        (put("loss.task", to=[]), r"line 2: loss.task = \[\]; allowed: a number .*, or NaN"),
        (put("lr", to=float("inf")), "line 2: lr = inf; allowed: a number from 0 to infinity"),
    ],
)
def test_a_line_of_metrics_that_is_wrong_is_named(run: Run, change: Change, message: str) -> None:
    lines = read_lines(run.path / "metrics.jsonl")
    change(lines[1])
    write_lines(run.path / "metrics.jsonl", lines)
    for read in (lambda: run.metrics, lambda: run.epochs_done, lambda: repr(run)):
        (run.path / "weights.safetensors").unlink(missing_ok=True)  # a finished run's repr does not count epochs
        with pytest.raises(CorsdError, match=f"metrics.jsonl: {message}"):
            read()


def test_exits_of_metrics_are_counted_without_a_gap(run: Run) -> None:
    lines = [{k: v for k, v in line.items() if k != "val_top1.exit2"} for line in read_lines(run.path / "metrics.jsonl")]
    write_lines(run.path / "metrics.jsonl", lines)
    with pytest.raises(
        CorsdError, match=r"the columns of exits are .*; allowed: train_top1.exit1 .*, and the same exits of val_top1"
    ):
        _ = run.metrics
    write_lines(run.path / "metrics.jsonl", [{k: v for k, v in line.items() if k != "loss.total"} for line in lines])
    with pytest.raises(CorsdError, match=r"metrics\.jsonl lacks the column loss.total"):
        _ = run.metrics


def test_a_part_of_the_loss_may_be_no_number(run: Run) -> None:
    lines = read_lines(run.path / "metrics.jsonl")
    lines[1]["loss.task"], lines[1]["loss.exit_ce"] = float("nan"), float("inf")  # with weight 0 it trains nothing
    write_lines(run.path / "metrics.jsonl", lines)
    assert run.metrics["loss.task"].isna().tolist() == [False, True]


@pytest.mark.parametrize(
    "change,message",
    [
        (drop("exits"), "lacks exits"),
        (put("exits", to=[]), ": exits has 0 entries; allowed: 1 or more|has 0 entries"),
        (put("exits", to=None), ": exits = None; allowed: a list"),
        (drop("exits", 0, "macs"), r": exits\[0\] lacks macs"),
        (put("exits", 0, "macs", to=0), r": exits\[0\]: macs = 0; allowed: a whole number from 1"),
        (put("ensemble", "top1", to="50"), ": ensemble: top1 = '50'; allowed: a number from 0"),
        (put("split", to="all"), ": split = 'all'; allowed: train, validation, test"),
        (put("trained", to={"exits": []}), ": trained lacks ensemble|trained: exits has 0 entries"),
    ],
)
def test_an_evaluation_that_is_wrong_is_named(run: Run, change: Change, message: str) -> None:
    values = read_json(run.path / "test.json")
    change(values)
    write_json(run.path / "test.json", values)
    with pytest.raises(CorsdError, match=rf"test\.json ?({message})"):
        _ = run.test


# --- tensors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tensors,message",
    [
        ({"labels": None}, " lacks labels"),
        ({"labels": torch.tensor([0.0] * 10)}, r": labels is float32 \(10,\); allowed: int64 \(N,\)"),
        ({"labels": torch.zeros(0).long(), "index": torch.zeros(0).long()}, r": labels is int64 \(0,\)"),
        ({"index": torch.arange(3)}, r": index is int64 \(3,\); allowed: .* the same N"),
        ({"labels": torch.full((50,), 10)}, ": labels: values are from 10 to 10; allowed: 0 to 9"),
        ({"labels": torch.full((50,), -1)}, ": labels: values are from -1 to -1; allowed: 0 to 9"),
        (
            {"index": torch.full((50,), -(2**40))},
            ": index: values are from -1099511627776 to -1099511627776; allowed: whole numbers of at least 0$",
        ),
        ({"index": torch.full((50,), -1)}, ": index: values are from -1 to -1"),
    ],
)
def test_a_probe_set_that_is_wrong_is_named(run: Run, tensors: dict[str, torch.Tensor | None], message: str) -> None:
    file = run.path / "probe.safetensors"
    good, metadata = read_tensors(file)
    write_tensors(file, {k: v for k, v in {**good, **tensors}.items() if v is not None}, metadata)
    for read in (lambda p: p.labels, lambda p: p.index, lambda p: p[2]):
        with pytest.raises(CorsdError, match=rf"probe\.safetensors{message}"):
            read(run.probes)


def test_a_probe_set_is_of_a_split(run: Run) -> None:
    tensors, _ = read_tensors(run.path / "probe.safetensors")
    for metadata in ({}, {"split": "all"}):
        write_tensors(run.path / "probe.safetensors", tensors, metadata)
        with pytest.raises(CorsdError, match=r"probe\.safetensors: split = .*; allowed: train, validation, test"):
            _ = run.probes.split


def half(*shape: int) -> torch.Tensor:
    return torch.zeros(shape).half()


@pytest.mark.parametrize(
    "tensors,message",
    [
        ({"embeddings.1": None}, " lacks embeddings.1"),
        ({"embeddings.2": None}, " has logits of 3 exits; allowed: 2, as many as of embeddings"),
        ({"embeddings.2": None, "logits.2": None}, r": embeddings.2 is absent and \(50, 16\) in epoch_0000"),
        ({"embeddings.3": half(50, 16), "logits.3": half(50, 10)}, r": (embeddings|logits).3 is .* and absent in epoch_0000"),
        ({"embeddings.0": half(49, 16)}, r": embeddings.0 is float16 \(49, 16\); allowed: floating point \(50, 16\)"),
        ({"embeddings.0": half(50)}, r": embeddings.0 is float16 \(50,\); allowed: floating point"),
        ({"embeddings.2": half(50, 0)}, r": embeddings.2 is float16 \(50, 0\)"),
        ({"logits.0": half(50, 9)}, r": logits.0 is float16 \(50, 9\); allowed: floating point \(50, 10\)"),
        ({"logits.0": half(50, 10).long()}, r": logits.0 is int64 \(50, 10\)"),
        ({"logits.0": half(50, 10).to(torch.float8_e4m3fn)}, r": logits.0 is float8_e4m3fn \(50, 10\)"),
        ({"relations.1": half(9, 10)}, r": relations.1 is float16 \(9, 10\); allowed: floating point \(10, 10\)"),
        ({"relations.1": torch.full((10, 10), 1.5)}, ": relations.1: values are from 1.5 to 1.5; allowed: -0.001 to 1.001"),
        ({"relations.1": torch.full((10, 10), torch.inf)}, ": relations.1: values are from inf to inf"),
        ({"extra": half(1)}, ": 'extra' is not known; allowed: embeddings, logits, relations"),
    ],
)
def test_a_snapshot_that_does_not_fit_is_named(run: Run, tensors: dict[str, torch.Tensor | None], message: str) -> None:
    file = run.path / "probes" / "epoch_0001.safetensors"
    write_tensors(file, {k: v for k, v in {**read_tensors(file)[0], **tensors}.items() if v is not None})
    with pytest.raises(CorsdError, match=rf"epoch_0001\.safetensors{message}"):
        run.probes[1]
    assert run.probes[2].epoch == 2 and run.probes[0].epoch == 0  # the others are what they were


def test_a_snapshot_is_read_though_the_first_one_is_damaged(run: Run) -> None:
    (run.path / "probes" / "epoch_0000.safetensors").write_bytes(b"damaged")
    assert len(run.probes[2].embeddings) == 3


@pytest.mark.parametrize("file", ["weights", "checkpoint"])
@pytest.mark.parametrize(
    "value,message",
    [
        (torch.full((10,), torch.nan), "network.exits.2.classifier.bias is not finite"),
        (torch.zeros(10).long(), "network.exits.2.classifier.bias is of torch.int64; allowed: torch.float32"),
        (torch.zeros(10).to(torch.float8_e4m3fn), "network.exits.2.classifier.bias is of torch.float8"),
    ],
)
def test_weights_of_another_kind_are_named(run: Run, file: str, value: torch.Tensor, message: str) -> None:
    path = run.path / f"{file}.safetensors"
    tensors, metadata = read_tensors(path)
    write_tensors(path, {**tensors, "network.exits.2.classifier.bias": value}, metadata)
    if file == "checkpoint":
        (run.path / "weights.safetensors").unlink()
    with pytest.raises(CorsdError, match=f"{file}.safetensors: {message}"):
        run.network()


def test_classes_that_do_not_fit_the_weights_are_one_error(run: Run) -> None:
    values = read_json(run.path / "config.json")
    for name in ("class_names", "superclass_of_class"):
        values["data"][name].pop()
    write_json(run.path / "config.json", values)
    with pytest.raises(CorsdError, match=r"weights\.safetensors is of another architecture: network\.exits\.0\.classifier"):
        load_run(run.path).network()
    with pytest.raises(CorsdError, match=r"probe\.safetensors: labels: values are from 0 to 9; allowed: 0 to 8"):
        _ = load_run(run.path).probes[2]


def test_an_embedding_that_is_damaged_is_made_anew(run: Run) -> None:
    found = stage_embedding(run, method="pca")
    (file,) = (run.path / "embeddings").glob("*.safetensors")
    tensors, metadata = read_tensors(file)
    assert is_kept(run, method="pca")
    for change in ({"coordinates": tensors["coordinates"][:, :2]}, {"extra": torch.zeros(1)}, {"knn_purity": torch.zeros(2)}):
        write_tensors(file, {**tensors, **change}, metadata)
        again = stage_embedding(run, method="pca")
        torch.testing.assert_close(again.coordinates, found.coordinates)
    write_tensors(file, {**tensors, "coordinates": tensors["coordinates"] * torch.nan}, metadata)
    assert not is_kept(run, method="pca")


# --- studies ----------------------------------------------------------------------------------------------------------


def test_a_summary_that_is_wrong_is_named(tmp_path: Path) -> None:
    whole = read_json(Path(__file__).parents[1] / "results" / "digits" / "summary.json")
    for change, message in (
        (drop("methods"), "summary.json lacks methods"),
        (put("methods", "baseline", "gain", to="1"), "summary.json: methods: baseline: gain = '1'; allowed"),
        (put("methods", "corsd", "top1_low", to=[None, None]), "methods: corsd: top1 has 3 exits; allowed: as many"),
        (put("methods", "corsd", "top1_low", 0, to=None), "methods: corsd: an interval has only one end"),
        (put("methods", "corsd", "gain_high", to=None), "methods: corsd: an interval has only one end"),
        (put("methods", "corsd", "gain", to=None), "methods: corsd: gain = None, but it has an interval"),
        (put("baseline", to="other"), "gain = .*, but the baseline has no row"),
    ):
        values = json.loads(json.dumps(whole))
        change(values)
        write_json(tmp_path / "summary.json", values)
        with pytest.raises(CorsdError, match=message):
            read_summary(tmp_path / "summary.json")


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_checking_a_long_run_costs_less_than_reading_it(run: Run) -> None:
    lines = read_lines(run.path / "metrics.jsonl")
    write_lines(run.path / "metrics.jsonl", [{**lines[0], "epoch": epoch} for epoch in range(1, 1001)])

    def seconds(read: Callable[[], object]) -> float:
        times = []
        for _ in range(5):
            begin = time.process_time()
            read()
            times.append(time.process_time() - begin)
        return min(times)

    assert seconds(lambda: run.epochs_done) < 4 * seconds(lambda: read_lines(run.path / "metrics.jsonl"))


# --- what a configuration says of snapshots ---------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"width": 2**15}, {"network": "resnet10"}, {"method": "baseline", "method_options": {}}])
def test_snapshots_of_another_network_are_refused_before_it_takes_memory(run: Run, change: dict[str, Any]) -> None:
    assert run_macs(run)[0][-1] > run_macs(run)[1] > 0
    values = read_json(run.path / "config.json")
    values["train"] |= change
    write_json(run.path / "config.json", values)
    with pytest.raises(CorsdError, match=r"snapshots of 3 exits with embeddings of 16 dimensions, but network 'resnet"):
        run_macs(load_run(run.path))
