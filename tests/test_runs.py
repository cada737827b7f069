from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from corsd_lib.errors import CorsdError
from corsd_lib.files import read_json, read_tensors, write_json, write_tensors
from corsd_lib.runs import Run, TrainConfig, load_part, load_run, new_network

Tiny = Callable[..., TrainConfig]


@pytest.fixture
def copied(tiny_run: Run, tmp_path: Path) -> Path:
    """A copy of the tiny run that a test may damage."""
    return Path(shutil.copytree(tiny_run.path, tmp_path / "copy"))


def test_a_run_in_a_folder_whose_name_is_not_utf_8_is_refused(tiny_run: Run, tmp_path: Path) -> None:
    shutil.copytree(tiny_run.path, tmp_path / os.fsdecode(b"caf\xe9"))
    with pytest.raises(CorsdError, match=r"run '.*caf\\udce9' is not valid UTF-8"):
        load_run(tmp_path / os.fsdecode(b"caf\xe9"))


# --- the configuration ---


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"method": "kd"}, "method 'kd' is not known; allowed: baseline, "),
        ({"schedule": "step"}, "schedule 'step' is not known; allowed: onecycle, cosine, multistep, constant"),
        ({"precision": "8-bit"}, "precision '8-bit' is not known; allowed: 32-true, bf16-mixed, 16-mixed"),
        ({"epochs": 0}, "epochs = 0 must be above 0"),
        ({"epochs": 1.5}, "epochs = 1.5 is of type float; allowed: int"),
        ({"epochs": "3"}, "epochs = '3' is of type str; allowed: int"),
        ({"epochs": True}, "epochs = True is of type bool; allowed: int"),
        ({"resume": 1}, "resume = 1 is of type int; allowed: bool"),
        ({"per_class": "5"}, "per_class = '5' is of type str; allowed: int or None"),
        ({"method_options": [1]}, "method_options = .* is of type tuple; allowed: dict"),
        ({"method_options": {3: 1}}, "method_options: the name 3 is of type int; allowed: str"),
        ({"method_options": {"task": None}}, "method_options: task = None is of type NoneType; allowed: bool, int, float"),
        ({"method_options": {"task": (1 for _ in "a")}}, "method_options: task = <generator .*> is of type generator"),
        ({"seed": 10**5000}, "seed = <integer of about 5,000 digits> must be at least 0"),
        ({"epochs": 10**5000}, "epochs = <integer of about 5,000 digits> must be"),
        ({"lr": 1e308}, r"lr = 1e\+308 must be above 0 and below 1e\+38"),
        ({"weight_decay": 1e308}, r"weight_decay = 1e\+308 must be at least 0 and below 1e\+38"),
        ({"method": "x" * 9999}, "method '(?!x{200}).* is not known"),
        ({"batch_size": -1}, "batch_size = -1 must be above 0"),
        ({"samples_per_class": 0}, "samples_per_class = 0 must be above 0"),
        ({"devices": 0}, "devices = 0 must be above 0"),
        ({"devices": -(10**12)}, "devices = -1000000000000 must be above 0$"),
        ({"epochs": 10**12}, "epochs = 1000000000000 must be at least 0 and below 2,147,483,648$"),
        ({"width": 2**31}, "width = 2147483648 must be at least 0 and below 2,147,483,648$"),
        ({"seed": 2**63}, "seed = .* must be at least 0 and below 9,223,372,036,854,775,808$"),
        ({"lr": 0.0}, "lr = 0.0 must be above 0"),
        ({"lr": float("nan")}, "lr = nan must be above 0"),
        ({"lr": float("inf")}, r"lr = inf must be above 0 and below 1e\+38"),
        ({"momentum": 1.0}, "momentum = 1.0 must be at least 0 and below 1"),
        ({"validation_fraction": -0.1}, "validation_fraction = -0.1 must be at least 0 and below 1"),
        ({"test_fraction": 0.0}, "test_fraction = 0.0 must be above 0 and below 1"),
        ({"test_fraction": 1.0}, "test_fraction = 1.0 must be above 0 and below 1"),
        *[
            ({name: "a\udce9"}, rf"{name} 'a\\udce9' is not valid UTF-8; rename it")
            for name in ("data", "data_root", "out", "network", "method")
        ],
        ({"out": Path("a\udce9")}, r"out 'a\\udce9' is not valid UTF-8"),
        ({"method_options": {"fusion": "\ud800"}}, r"fusion '\\ud800' is not valid UTF-8"),
        ({"milestones": (0.5, 1.5)}, "a milestone = 1.5 must be at least 0 and below 1"),
        ({"milestones": ["half"]}, "a milestone = 'half' is of type str; allowed: float"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov = True needs a momentum above 0"),
        *[
            ({name: -1}, f"{name} = -1 must be at least 0")
            for name in ("seed", "cutout", "workers", "probe_every", "probe_size")
        ],
        *[({name: -0.5}, f"{name} = -0.5 must be at least 0") for name in ("clip_norm", "weight_decay", "checkpoint_seconds")],
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CorsdError, match=message):
        TrainConfig(**changes)


def test_a_whole_number_will_do_for_a_fraction_and_a_path_for_a_name(tmp_path: Path) -> None:
    config = TrainConfig(lr=1, out=tmp_path / "run", milestones=[0.25, 0])  # type: ignore[arg-type]
    assert config.path == tmp_path / "run" and config.milestones == (0.25, 0)
    assert json.loads(json.dumps(asdict(config)))["out"] == str(tmp_path / "run")


def test_the_run_directory_tells_what_was_trained() -> None:
    assert TrainConfig().path == Path("runs/digits-resnet8-corsd-s0")
    config = TrainConfig(data="folder:/a/b", network="timm:resnet18", method="byot", seed=3)
    assert config.path == Path("runs/folder-_a_b-timm-resnet18-byot-s3")
    assert TrainConfig(out="here").path == Path("here")


def test_a_plain_file_of_fields_is_a_configuration(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"epochs": 3, "milestones": [0.1], "method_options": {"hidden": 8}, "width": None})
    config = TrainConfig.from_file(tmp_path / "a.json")
    assert config == TrainConfig(epochs=3, milestones=(0.1,), method_options={"hidden": 8})


def test_a_run_reads_back_its_own_configuration(tiny_run: Run) -> None:
    config = TrainConfig.from_file(tiny_run.path / "config.json")
    assert config.out is None and not config.resume  # where it was written is not part of what was done
    assert replace(config, out=tiny_run.config.out) == tiny_run.config
    options = tiny_run.config.method_options
    assert options["exit_kd"] == 0.1 and options["fusion"] == "vectors" and options["label_smoothing"] == 0.0


@pytest.mark.parametrize(
    "content,message",
    [
        ({"epoch": 3}, "a.json: field 'epoch' is not known; allowed: data, data_root, per_class"),
        ({"train": {"epoch": 3}, "data": {}, "provenance": {}}, "a.json: field 'epoch' is not known"),
        ({"title": "a study", "train": {"epochs": 3}}, "a.json: field 'title' is not known"),
        ([1, 2], "a.json is not a configuration; allowed: a JSON object of fields and values"),
        (3, "a.json is not a configuration"),
        ({"epochs": "3"}, "epochs = '3' is of type str"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, content: Any, message: str) -> None:
    write_json(tmp_path / "a.json", content)
    with pytest.raises(CorsdError, match=message):
        TrainConfig.from_file(tmp_path / "a.json")


# --- what a run tells ---


def test_a_finished_run_has_all_its_files(tiny_run: Run) -> None:
    assert sorted(p.relative_to(tiny_run.path).as_posix() for p in tiny_run.path.rglob("*") if p.is_file()) == [
        "checkpoint.safetensors",
        "config.json",
        "metrics.jsonl",
        "probe.safetensors",
        "probes/epoch_0000.safetensors",
        "probes/epoch_0001.safetensors",
        "probes/epoch_0002.safetensors",
        "test.json",
        "weights.safetensors",
    ]
    assert tiny_run.finished and tiny_run.epochs_done == 2
    assert "corsd on digits, resnet8, seed 0, finished" in repr(tiny_run)


def test_metrics_are_a_table_of_the_documented_columns(tiny_run: Run) -> None:
    metrics = tiny_run.metrics
    assert isinstance(metrics, pd.DataFrame) and metrics["epoch"].tolist() == [1, 2] and metrics["step"].tolist() == [3, 6]
    for k in (1, 2, 3):
        assert metrics[f"train_top1.exit{k}"].between(0, 100).all() and metrics[f"val_top1.exit{k}"].between(0, 100).all()
    parts = [c for c in metrics if str(c).startswith("loss.")]
    assert {"loss.total", "loss.task", "loss.relation_margin"} <= set(parts) and len(parts) == 12
    assert metrics[parts].notna().all(axis=None) and (metrics["seconds"] > 0).all() and (metrics["images"] == 40).all()
    weights = {**tiny_run.config.method_options, "total": 0.0}
    total = sum(weights[str(c).removeprefix("loss.")] * metrics[c] for c in parts)
    pd.testing.assert_series_equal(total, metrics["loss.total"], check_names=False, rtol=1e-5)


def test_a_run_knows_its_data_without_the_images(tiny_run: Run) -> None:
    data = tiny_run.data
    assert data.class_names == tuple("0123456789") and data.num_classes == 10 and data.channels == 1
    assert (data.name, data.image_size, data.superclass_of_class) == ("digits", 8, tuple(range(10)))
    assert data.mean == pytest.approx((0.3051,), abs=1e-3)


def test_provenance_says_what_the_result_depends_on(tiny_run: Run) -> None:
    provenance = tiny_run.provenance
    assert provenance["versions"]["torch"] == torch.__version__.split("+")[0] and provenance["cores"] >= 1
    assert provenance["device"] == "cpu" and provenance["threads"] == 1
    assert {"corsd_lib", "revision", "python", "machine", "started"} <= provenance.keys()


def test_the_test_split_is_evaluated_once_at_the_end(tiny_run: Run, copied: Path) -> None:
    test = tiny_run.test
    assert test is not None and test["split"] == "test" and test["images"] == 797 and len(test["exits"]) == 3
    (copied / "test.json").unlink()
    assert load_run(copied).test is None


def test_snapshots_are_found_by_epoch(tiny_run: Run, copied: Path) -> None:
    probes = tiny_run.probes
    assert list(probes) == [0, 1, 2] and len(probes) == 3 and 1 in probes and 7 not in probes
    assert probes[2].epoch == 2 and probes.split == "validation"
    with pytest.raises(KeyError, match=r"no probe snapshot after epoch 7; there are: \[0, 1, 2\]"):
        probes[7]
    (copied / "probes" / ".epoch_0003.safetensors.1.part").touch()  # one that is being written
    (copied / "probes" / "epoch_0001 (copy).safetensors").touch()
    assert list(load_run(copied).probes) == [0, 1, 2]
    for epoch in (9999, 10000):
        (copied / "probes" / f"epoch_{epoch:04d}.safetensors").touch()
    assert list(load_run(copied).probes) == [0, 1, 2, 9999, 10000]
    assert repr(load_run(copied).probes) == f"Probes({str(copied)!r}: snapshots after epochs [0, 1, 2, 9999, 10000])"


def test_snapshots_are_read_only_when_asked_for(copied: Path) -> None:
    (copied / "probes" / "epoch_0001.safetensors").write_bytes(b"damaged")
    probes = load_run(copied).probes
    assert probes[0].epoch == 0
    with pytest.raises(CorsdError, match=r"epoch_0001.safetensors is not a complete safetensors file"):
        probes[1]


def test_a_method_that_is_not_found_names_the_run_and_where_it_may_come_from(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CORSD_METHODS", raising=False)
    content = read_json(copied / "config.json")
    content["train"]["method"] = "of_a_plug_in"
    write_json(copied / "config.json", content)
    advice = "for your own method, name its module in CORSD_"
    message = rf"^{copied}/config.json: method 'of_a_plug_in' is not known; allowed: .*; {advice}"
    for read in (lambda run: run.config, repr, lambda run: run.network()):
        with pytest.raises(CorsdError, match=message):
            read(load_run(copied))


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"lr": -1.0}, "lr = -1.0 must be above 0"),
        ({"network": "resnet99"}, "network 'resnet99' is not known"),
        ({"method_options": {"hidden": -3}}, "method 'corsd': hidden"),
    ],
)
def test_a_bad_value_in_a_run_is_named_with_its_file(copied: Path, changes: dict[str, Any], message: str) -> None:
    content = read_json(copied / "config.json")
    content["train"].update(changes)
    write_json(copied / "config.json", content)
    with pytest.raises(CorsdError, match=rf"^{copied}/config.json: {message}"):
        load_run(copied).method()


@pytest.mark.parametrize("content", [{"epochs": 3}, [], {"train": {}, "data": {}}])
def test_a_folder_that_is_no_run_is_named(tmp_path: Path, content: Any) -> None:
    with pytest.raises(CorsdError, match=rf"{tmp_path} is not a run: it has no config.json"):
        load_run(tmp_path)
    write_json(tmp_path / "config.json", content)
    with pytest.raises(
        CorsdError, match=r"config\.json is not the configuration of a run: it lacks one of train, data, provenance"
    ):
        _ = load_run(tmp_path).config


# --- weights ---


def test_the_network_is_that_of_the_weights_in_eval_mode(tiny_run: Run) -> None:
    network, method = tiny_run.network(), tiny_run.method()
    assert not any(m.training for m in [*network.modules(), *method.modules()])
    tensors = load_file(tiny_run.path / "weights.safetensors")
    state = {f"network.{k}": v for k, v in network.state_dict().items()}
    state |= {f"method.{k}": v for k, v in method.state_dict().items()}
    assert state.keys() == tensors.keys()
    assert all(torch.equal(state[k], tensors[k]) for k in state)
    assert len(method.relation_networks()) == 3


def test_an_unfinished_run_gives_its_checkpoint(copied: Path) -> None:
    whole = load_run(copied).network().state_dict()
    (copied / "weights.safetensors").unlink()
    (copied / "test.json").unlink()
    run = load_run(copied)
    assert not run.finished
    state = run.network().state_dict()
    assert all(torch.equal(state[k], whole[k]) for k in whole)


def test_a_run_without_weights_says_so(copied: Path) -> None:
    for name in ("weights", "checkpoint"):
        (copied / f"{name}.safetensors").unlink()
    for ask in (load_run(copied).network, load_run(copied).method):
        with pytest.raises(CorsdError, match="has no weights yet: its training was stopped before the first checkpoint"):
            ask()


def test_truncated_weights_are_named(copied: Path) -> None:
    file = copied / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CorsdError, match=rf"{file} is not a complete safetensors file"):
        load_run(copied).network()


def test_no_pickle_is_ever_read(tiny_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a pickle was read")

    monkeypatch.setattr(torch, "load", never)
    monkeypatch.setattr(pickle, "load", never)
    monkeypatch.setattr(pickle, "loads", never)
    run = load_run(tiny_run.path)
    _ = run.network(), run.method(), run.probes[0], run.probes.labels, run.metrics, run.test, run.config


@pytest.mark.parametrize("change", ["shape", "absent", "more"])
def test_another_architecture_is_one_error_naming_the_first_difference(copied: Path, change: str) -> None:
    file = copied / "weights.safetensors"
    tensors = load_file(file)
    name = next(iter(load_run(copied).network().state_dict()))
    shape = tuple(tensors[f"network.{name}"].shape)
    if change == "shape":
        tensors[f"network.{name}"] = torch.zeros(2, 2)
        tensors["network.exits.2.classifier.bias"] = torch.zeros(3)  # differs too, but later
        expected = f"{name} is (2, 2) there, {shape}"
    elif change == "absent":
        del tensors[f"network.{name}"], tensors["network.exits.2.classifier.bias"]
        expected = f"{name} is absent there, {shape}"
    else:
        tensors["network.extra"] = torch.zeros(5)
        expected = "extra is (5,) there, absent"
    save_file(tensors, file)
    with pytest.raises(CorsdError) as caught:
        load_run(copied).network()
    assert str(caught.value) == f"{file} is of another architecture: network.{expected} in this network"


def test_a_part_is_loaded_by_its_prefix_alone(tiny_run: Run, tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = new_network(tiny_run.config, tiny_run.data)
    wanted = new_network(tiny_run.config, tiny_run.data).state_dict()
    tensors = {f"network.{k}": v for k, v in wanted.items()} | {f"method.network.{k}": v + 1 for k, v in wanted.items()}
    write_tensors(tmp_path / "a.safetensors", tensors)
    load_part(network, read_tensors(tmp_path / "a.safetensors")[0], "network", tmp_path / "a.safetensors")
    assert all(torch.equal(v, wanted[k]) for k, v in network.state_dict().items())


def test_every_field_of_the_configuration_is_stored(tiny_run: Run) -> None:
    stored = json.loads((tiny_run.path / "config.json").read_text())["train"]
    assert list(stored) == [f.name for f in fields(TrainConfig)]


@pytest.mark.parametrize("given", [None, 5, ["a"]])
def test_what_is_no_path_of_a_run_is_refused(given: Any) -> None:
    with pytest.raises(CorsdError, match=r"run directory is .*; allowed: a str or a Path"):
        load_run(given)


@pytest.mark.parametrize("name", ["out", "data_root"])
def test_an_empty_path_is_refused(name: str) -> None:
    with pytest.raises(CorsdError, match=f"{name} is ''; allowed: the path of a folder, or None"):
        TrainConfig(**{name: ""})


def _takes_a_run() -> dict[str, Any]:
    import corsd_lib
    from corsd_lib.analysis.relation_use import prototype_accuracy
    from corsd_lib.analysis.unseen import unseen_class_report
    from corsd_lib.evaluation import evaluate
    from corsd_lib.runs import run_data
    from corsd_lib.sharing.export import export_run
    from corsd_lib.sharing.report import write_report

    explorers = (getattr(corsd_lib, f"{name}Explorer") for name in ("Relation", "Stage", "Exit", "Attribution"))
    functions = (run_data, prototype_accuracy, unseen_class_report, evaluate)
    return {
        **{explorer.__name__: explorer for explorer in explorers},
        **{function.__name__: function for function in functions},
        "export_run": lambda run: export_run(run, "never/written"),
        "write_report": lambda run: write_report([run], "never/written.html"),
    }


@pytest.mark.parametrize("given", ["runs/x", Path("runs/x"), None, 5], ids=repr)
@pytest.mark.parametrize("name", sorted(_takes_a_run()))
def test_anything_but_a_run_is_refused(name: str, given: Any) -> None:
    with pytest.raises(CorsdError, match=r"is .*; allowed: a Run|run_or_network = .*; allowed: a Run"):
        _takes_a_run()[name](given)
    assert not Path("never").exists()
