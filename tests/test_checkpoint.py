"""A checkpoint that is not what its training wrote is one error, and never resumed to other weights."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TINY
from torch import Tensor

from corsd_lib.errors import CorsdError
from corsd_lib.files import read_json, read_lines, read_tensors, write_json, write_lines, write_tensors
from corsd_lib.methods.corsd import OF_RELATIONS
from corsd_lib.runs import Run, TrainConfig
from corsd_lib.training import Trainer, train
from corsd_lib.training.checkpoint import _scaler_problem

Tensors = dict[str, Tensor]
Position = dict[str, Any]


def _stopped(out: Path, step: int, **changes: Any) -> TrainConfig:
    """Stop a training of 2 epochs of 3 steps after `step` steps; its configuration, to be resumed."""
    config = TrainConfig(**{**TINY, "out": str(out), "resume": True, **changes})
    run = Trainer._step

    def watched(self: Trainer, batch: Any) -> Any:
        if self._steps_done() == step - 1:
            signal.raise_signal(signal.SIGINT)
        return run(self, batch)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "_step", watched)
        assert not train(config, progress=False).finished
    return config


@pytest.fixture(scope="module")
def within(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped within its second epoch. Read only."""
    return _stopped(tmp_path_factory.mktemp("within") / "run", 4).path


@pytest.fixture(scope="module")
def between(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after its first epoch. Read only."""
    return _stopped(tmp_path_factory.mktemp("between") / "run", 3).path


def _refused(of: Path, folder: Path, change: Callable[[Tensors, Position], object]) -> str:
    """Resume a copy of a run whose checkpoint has been changed and carries a checksum that agrees: what is said of it."""
    out = Path(shutil.copytree(of, folder / "copy"))
    file = out / "checkpoint.safetensors"
    tensors, metadata = read_tensors(file)
    position = json.loads(metadata["position"])
    change(tensors, position)
    write_tensors(file, tensors, {"position": json.dumps(position)})
    with pytest.raises(CorsdError) as caught:
        train(TrainConfig(**{**TINY, "out": str(out), "resume": True}), progress=False)
    assert not (out / "weights.safetensors").exists()
    said = str(caught.value)
    assert said.startswith(str(out)) and "\n" not in said
    return said


def _first(tensors: Tensors, part: str) -> str:
    return min(name for name in tensors if name.startswith(f"{part}."))


# --- tensors ---


@pytest.mark.parametrize("part", ["network", "method", "optimizer", "totals", "random"])
def test_a_tensor_that_is_missing_is_named(within: Path, tmp_path: Path, part: str) -> None:
    dropped: list[str] = []

    def drop(tensors: Tensors, position: Position) -> None:
        dropped.append(_first(tensors, part))
        del tensors[dropped[0]]

    said = _refused(within, tmp_path, drop)
    assert dropped[0] in said


@pytest.mark.parametrize("part", ["optimizer", "totals"])
def test_a_whole_part_that_is_missing_is_named(within: Path, tmp_path: Path, part: str) -> None:
    def drop(tensors: Tensors, position: Position) -> None:
        for name in [name for name in tensors if name.startswith(f"{part}.")]:
            del tensors[name]

    assert f"lacks {part}." in _refused(within, tmp_path, drop)


@pytest.mark.parametrize(
    "name", ["optimizer.9999.momentum_buffer", "optimizer.0.exp_avg", "totals.loss.other", "memory.x", "y"]
)
@pytest.mark.parametrize("listed", [True, False])
def test_a_tensor_that_no_such_training_writes_is_named(within: Path, tmp_path: Path, name: str, listed: bool) -> None:
    def add(tensors: Tensors, position: Position) -> None:
        tensors[name] = torch.zeros((3,))
        if listed:
            position["tensors"][name] = "float32 [3]"

    assert name.partition("loss")[0] in _refused(within, tmp_path, add)


@pytest.mark.parametrize("part", ["network", "method", "optimizer", "totals", "random"])
@pytest.mark.parametrize("change", ["shape", "type"])
@pytest.mark.parametrize("listed", [True, False])
def test_another_shape_or_type_is_named(within: Path, tmp_path: Path, part: str, change: str, listed: bool) -> None:
    """Also where the list of tensors was changed with it: against the network, the method and the optimiser themselves."""
    name = ""

    def spoil(tensors: Tensors, position: Position) -> None:
        nonlocal name
        name = _first(tensors, part)
        tensors[name] = tensors[name][None] if change == "shape" else tensors[name].to(torch.float16)
        if not listed:
            del position["tensors"]

    said = _refused(within, tmp_path, spoil)
    assert name in said, said


@pytest.mark.parametrize("part", ["network", "method", "optimizer", "totals"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_value_that_is_not_finite_is_named(within: Path, tmp_path: Path, part: str, value: float) -> None:
    def spoil(tensors: Tensors, position: Position) -> None:
        tensors[_first(tensors, part)].view(-1)[0] = value

    assert f"{part}." in (said := _refused(within, tmp_path, spoil)) and "is not finite" in said


def test_a_random_state_that_is_none_is_named(within: Path, tmp_path: Path) -> None:
    def spoil(tensors: Tensors, position: Position) -> None:
        tensors["random.cpu"].zero_()

    assert "is not a state of a random generator" in _refused(within, tmp_path, spoil)


@pytest.mark.parametrize("images", [0.0, -5.0, 17.0, 1e30])
def test_sums_over_other_images_than_those_of_the_steps_are_named(within: Path, tmp_path: Path, images: float) -> None:
    def spoil(tensors: Tensors, position: Position) -> None:
        tensors["totals.images"].fill_(images)

    assert f"totals.images = {images:g}; allowed: 16" in _refused(within, tmp_path, spoil)


@pytest.mark.parametrize("name", ["totals.loss.exit_ce", "totals.train_top1.exit2"])
def test_a_sum_that_is_missing_from_the_list_too_is_named(within: Path, tmp_path: Path, name: str) -> None:
    def drop(tensors: Tensors, position: Position) -> None:
        del tensors[name], position["tensors"][name]

    assert f"lacks {name}" in _refused(within, tmp_path, drop)


@pytest.mark.parametrize(("name", "value"), [("train_top1.exit1", 1601.0), ("train_top1.exit9", 1.0), ("other", 1.0)])
def test_a_sum_that_cannot_be_is_named(within: Path, tmp_path: Path, name: str, value: float) -> None:
    def put(tensors: Tensors, position: Position) -> None:
        tensors[f"totals.{name}"] = torch.tensor(value, dtype=torch.float64)
        position["tensors"][f"totals.{name}"] = "float64 []"

    assert f"totals.{name}" in _refused(within, tmp_path, put)


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("which", ["first", "last", "all but one"])
def test_momenta_that_were_dropped_are_named(within: Path, tmp_path: Path, which: str, listed: bool) -> None:
    def drop(tensors: Tensors, position: Position) -> None:
        # A smaller momentum belongs to weights that have changed by no more than rounding does.
        moved = (name for name, tensor in tensors.items() if name.startswith("optimizer.") and tensor.abs().max() > 0.01)
        names = sorted(moved)
        for name in {"first": names[:1], "last": names[-1:], "all but one": names[1:]}[which]:
            del tensors[name], position["tensors"][name]
        if not listed:
            del position["tensors"]

    said = _refused(within, tmp_path, drop)
    assert re.search(r"lacks optimizer\.\d+\.momentum_buffer, although (network|method)\..* was trained", said), said


def test_what_never_had_a_gradient_needs_no_momentum(tmp_path: Path) -> None:
    """A term of weight 0 leaves its relation networks as they were made."""
    weights = dict.fromkeys((*OF_RELATIONS, "logit_relation"), 0.0)
    config = _stopped(tmp_path / "run", 4, method_options=weights)
    tensors, _ = read_tensors(config.path / "checkpoint.safetensors")
    state, parameters = (sum(name.startswith(part) for name in tensors) for part in ("optimizer.", "method.relations."))
    assert state and parameters and train(config, progress=False).finished


def test_a_training_of_another_torch_goes_on_whatever_it_began_with(within: Path, tmp_path: Path) -> None:
    """Its first weights cannot be drawn again, and say nothing of what was trained."""
    out = Path(shutil.copytree(within, tmp_path / "copy"))
    content = read_json(out / "config.json")
    content["provenance"]["versions"]["torch"] = "1.0"
    write_json(out / "config.json", content)
    draw = torch.manual_seed
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "manual_seed", lambda seed: draw(seed + 5))
        assert train(TrainConfig(**{**TINY, "out": str(out), "resume": True}), progress=False).finished


@pytest.mark.parametrize("index", ["00", "01", "9" * 5000, "\u0663"])
def test_an_index_that_the_training_does_not_have_is_named(within: Path, tmp_path: Path, index: str) -> None:
    def rename(tensors: Tensors, position: Position) -> None:
        for values in (tensors, position["tensors"]):
            values[f"optimizer.{index}.momentum_buffer"] = values.pop("optimizer.1.momentum_buffer")

    said = _refused(within, tmp_path, rename)
    assert "it has optimizer." in said and "which this training does not have" in said and len(said) < 500


def test_sums_between_epochs_are_named(between: Path, tmp_path: Path) -> None:
    def add(tensors: Tensors, position: Position) -> None:
        for name in ("images", "loss.total"):
            tensors[f"totals.{name}"] = torch.ones((), dtype=torch.float64)
        del position["tensors"]

    assert "totals of images, loss.total after 0 steps of an epoch" in _refused(between, tmp_path, add)


def test_memory_of_another_shape_or_missing_is_named(tmp_path: Path) -> None:
    config = _stopped(tmp_path / "run", 4, method="ps_kd")
    file = config.path / "checkpoint.safetensors"
    tensors, metadata = read_tensors(file)
    for changed, message in (
        ({"memory.past": tensors["memory.past"][1:]}, r"memory.past was float16 \[50, 10\], is float16 \[49, 10\]"),
        ({"memory.past": tensors["memory.past"].double()}, r"memory.past was float16 \[50, 10\], is float64 \[50, 10\]"),
        ({}, "lacks memory.past"),
    ):
        rest = {k: v for k, v in tensors.items() if k != "memory.past"}
        write_tensors(file, {**rest, **changed}, metadata)
        with pytest.raises(CorsdError, match=message):
            train(config, progress=False)


# --- position ---


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"epoch": 99}, "epoch = 99; allowed: a whole number from 0 to 2"),
        ({"epoch": -5}, "epoch = -5; allowed: a whole number from 0 to 2"),
        ({"epoch": float("inf")}, "epoch = inf; allowed"),
        ({"epoch": float("nan")}, "epoch = nan; allowed"),
        ({"epoch": 1.0}, "epoch = 1.0; allowed"),
        ({"epoch": True}, "epoch = True; allowed"),
        ({"epoch": "1"}, "epoch = '1'; allowed"),
        ({"epoch": None}, "epoch = None; allowed"),
        ({"step": -3}, "step = -3 after epoch 1; allowed: a whole number from 0 to 2"),
        ({"step": 3}, "step = 3 after epoch 1; allowed"),
        ({"step": 0.5}, "step = 0.5 after epoch 1; allowed"),
        ({"epoch": 0, "step": 0}, "step = 0 after epoch 0; allowed: a whole number from 1 to 2"),
        ({"epoch": 2, "step": 1}, "step = 1 after epoch 2; allowed: a whole number from 0 to 0"),
        ({"step": 0}, "after 0 steps of an epoch"),
        ({"epoch": 2, "step": 0}, "after 0 steps of an epoch"),
        ({"epoch": 0}, "backbone.stem.norm.num_batches_tracked = 4 after 1 steps; allowed: 1"),
        ({"step": 2}, "totals.images = 16; allowed: 32"),
        ({"epoch": 10**4000}, "epoch = <integer of about 4,000 digits>; allowed: a whole number from 0 to 2"),
        ({"seconds": -1.0}, "seconds = -1.0; allowed: a finite number of at least 0"),
        ({"seconds": 1e308}, "seconds = 1e+308; allowed: a finite number of at least 0, at most 1e+10"),
        ({"seconds": float("inf")}, "seconds = inf; allowed"),
        ({"seconds": [1]}, r"seconds = [1]; allowed"),
        ({"precision": {"scale": 1.0}}, "precision = {'scale': 1.0}; allowed: an empty object"),
        ({"precision": None}, "precision = None; allowed: an empty object"),
        ({"tensors": []}, "its list of tensors is []; allowed: a JSON object"),
    ],
)
def test_a_position_that_no_training_of_these_epochs_has_is_named(
    within: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    said = _refused(within, tmp_path, lambda tensors, position: position.update(changes))
    assert "checkpoint.safetensors is not a checkpoint of this training: " in said and message in said


@pytest.mark.parametrize(
    "position", ["[" * 99_999, "", "[1]", '{"epoch": 1e400, "step": 0}', "{", '{"epoch": 1, "step": 1}'], ids=len
)
def test_a_position_that_is_not_one_is_one_error(within: Path, tmp_path: Path, position: str) -> None:
    out = Path(shutil.copytree(within, tmp_path / "copy"))
    file = out / "checkpoint.safetensors"
    write_tensors(file, read_tensors(file)[0], {"position": position})
    with pytest.raises(CorsdError, match=rf"{file} is not a checkpoint of this training: "):
        train(TrainConfig(**{**TINY, "out": str(out), "resume": True}), progress=False)


@pytest.mark.parametrize("epochs", [[], [2], [1, 1], [1, 2, 3], [2, 1], [None]])
def test_a_metrics_file_that_lacks_an_epoch_is_named(within: Path, tmp_path: Path, epochs: list[int | None]) -> None:
    out = Path(shutil.copytree(within, tmp_path / "copy"))
    (record,) = read_lines(out / "metrics.jsonl")
    write_lines(out / "metrics.jsonl", [{**record, "epoch": epoch} for epoch in epochs])
    found = r"has epochs .*; allowed: each of the 1 that are done|: line \d: epoch = .*; allowed: "
    with pytest.raises(CorsdError, match=rf"{out}/metrics.jsonl ?({found})"):
        train(TrainConfig(**{**TINY, "out": str(out), "resume": True}), progress=False)


def test_metrics_of_epochs_of_another_length_are_named(within: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(within, tmp_path / "copy"))
    (record,) = read_lines(out / "metrics.jsonl")
    write_lines(out / "metrics.jsonl", [{**record, "step": 4}])
    with pytest.raises(CorsdError, match=rf"{out}/metrics.jsonl: epoch 1: step = 4; allowed: 3"):
        train(TrainConfig(**{**TINY, "out": str(out), "resume": True}), progress=False)


# --- damage ---


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "metrics.jsonl", "config.json"])
def test_a_flipped_bit_is_not_trained_on(within: Path, tmp_path: Path, name: str) -> None:
    file = Path(shutil.copytree(within, tmp_path / "copy")) / name
    whole = file.read_bytes()
    place = len(whole) // 2 if name.startswith("checkpoint") else whole.index(b'"lr": 0.') + 8
    file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(CorsdError, match=rf"{file} is damaged: its content does not match its checksum"):
        train(TrainConfig(**{**TINY, "out": str(file.parent), "resume": True}), progress=False)


@pytest.mark.parametrize("name", ["weights.safetensors", "test.json", "probe.safetensors", "probes/epoch_0002.safetensors"])
def test_a_flipped_bit_of_a_finished_run_is_not_read(tiny_run: Run, tmp_path: Path, name: str) -> None:
    run = Run(shutil.copytree(tiny_run.path, tmp_path / "copy"))
    whole = (run.path / name).read_bytes()
    place = len(whole) - 8 if name.endswith("safetensors") else whole.index(b".", whole.index(b"cross_entropy")) + 1
    (run.path / name).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(CorsdError, match=rf"{run.path / name} is damaged"):
        _ = run.network(), run.test, run.probes.labels, run.probes[2]


# --- what stays readable ---


def test_a_checkpoint_of_an_earlier_version_goes_on(within: Path, tmp_path: Path) -> None:
    """One without checksums and without a list of its tensors."""
    from safetensors.torch import save_file

    out = Path(shutil.copytree(within, tmp_path / "copy"))
    whole = train(TrainConfig(**{**TINY, "out": str(tmp_path / "whole")}), progress=False)
    file = out / "checkpoint.safetensors"
    tensors, metadata = read_tensors(file)
    position = {k: v for k, v in json.loads(metadata["position"]).items() if k != "tensors"}
    save_file(tensors, file, {"position": json.dumps(position)})
    records = read_lines(out / "metrics.jsonl")
    (out / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    config = json.loads((out / "config.json").read_text())
    del config["checksum"]
    (out / "config.json").write_text(json.dumps(config))
    run = train(TrainConfig(**{**TINY, "out": str(out), "resume": True}), progress=False)
    for name in ("weights.safetensors", "checkpoint.safetensors"):
        assert (run.path / name).read_bytes() == (whole.path / name).read_bytes()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_training_without_momentum_has_no_optimiser_state(tmp_path: Path, momentum: float) -> None:
    config = _stopped(tmp_path / "run", 4, momentum=momentum)
    names = read_tensors(config.path / "checkpoint.safetensors")[0]
    assert any(name.startswith("optimizer.") for name in names) == bool(momentum)
    assert train(config, progress=False).finished


def test_a_run_whose_checkpoint_was_removed_begins_anew(within: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(within, tmp_path / "copy"))
    whole = train(TrainConfig(**{**TINY, "out": str(tmp_path / "whole")}), progress=False)
    (out / "checkpoint.safetensors").unlink()
    run = train(TrainConfig(**{**TINY, "out": str(out), "resume": True}), progress=False)
    assert (run.path / "weights.safetensors").read_bytes() == (whole.path / "weights.safetensors").read_bytes()
    assert run.metrics["epoch"].tolist() == [1, 2]


# --- the gradient scaler of 16-mixed, which only a GPU has ---

SCALER = {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 0}


@pytest.mark.parametrize(
    "given,problem",
    [
        (SCALER, ""),
        ({**SCALER, "scale": 0.0}, "precision: scale = 0.0; allowed: a finite number above 0"),
        ({**SCALER, "scale": float("inf")}, "precision: scale = inf; allowed: a finite number above 0"),
        ({**SCALER, "scale": "1"}, "precision: scale = '1'; allowed: a finite number above 0"),
        ({**SCALER, "_growth_tracker": -1}, "precision: _growth_tracker = -1; allowed: a finite number of at least 0"),
        ({}, "precision = {}; allowed: scale, growth_factor, backoff_factor, growth_interval, _growth_tracker"),
    ],
)
def test_a_gradient_scaler_is_checked(given: dict[str, Any], problem: str) -> None:
    assert _scaler_problem(given, SCALER) == problem
