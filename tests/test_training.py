from __future__ import annotations

import itertools
import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import make_dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import SGD, lr_scheduler

from corsd_lib import cli, files
from corsd_lib.analysis.images import run_images
from corsd_lib.batches import Augmentation, Batch, BatchSource, evaluation_batches
from corsd_lib.datasets import DataNotice, ImageArrays, ImageData, ImageFiles, load_dataset
from corsd_lib.errors import CorsdError
from corsd_lib.evaluation import evaluate
from corsd_lib.methods import METHODS, MethodOptions, build_method
from corsd_lib.methods.classic import Baseline
from corsd_lib.network import ExitOutputs, build_network
from corsd_lib.runs import Run, TrainConfig, load_data, load_run
from corsd_lib.sharing.export import export_run
from corsd_lib.sharing.report import write_report
from corsd_lib.training import Trainer, launch, train, trainer
from corsd_lib.training.checkpoint import Checkpoint
from corsd_lib.training.optimizer import learning_rate, parameter_groups

Tiny = Callable[..., TrainConfig]
_SPLITS = ("train", "test")
PATHS = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])}
TINY: dict[str, Any] = {"per_class": 5, "width": 4, "epochs": 2, "batch_size": 16, "lr": 0.05, "accelerator": "cpu"}


def _train(config: TrainConfig, **options: Any) -> Run:
    return train(config, progress=False, **options)


def _weights(run: Run) -> dict[str, Tensor]:
    return load_file(run.path / "weights.safetensors")


def _contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of the last change of every file."""
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def _assert_same_training(run: Run, other: Run) -> None:
    """Equal bit for bit in all that is not time."""
    names = sorted(p.relative_to(run.path) for p in run.path.rglob("*.safetensors"))
    assert names == sorted(p.relative_to(other.path) for p in other.path.rglob("*.safetensors")) and len(names) >= 4
    for name in [*names, Path("test.json")]:
        assert (run.path / name).read_bytes() == (other.path / name).read_bytes(), name
    assert run.metrics.drop(columns="seconds").equals(other.metrics.drop(columns="seconds"))
    assert not list(run.path.rglob(".*")) and not list(other.path.rglob(".*"))  # nothing half-written is left


def _at_step(monkeypatch: pytest.MonkeyPatch, number: int, action: Callable[[], object]) -> None:
    """Do `action` within the `number`-th optimiser step that this process makes."""
    count, step = itertools.count(1), Trainer._step

    def counted(self: Trainer, batch: Any) -> Any:
        if next(count) == number:
            action()
        return step(self, batch)

    monkeypatch.setattr(Trainer, "_step", counted)


def _exit_status(action: Callable[[], object]) -> int:
    """What a process that does nothing but `action` would exit with."""
    try:
        action()
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _status_of_child(action: Callable[[], object], seconds: float = 300) -> int:
    """Run `action` in a forked process: its exit status, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        os._exit(_exit_status(action))
    return _awaited(pid, seconds)


def _awaited(pid: int, seconds: float = 300) -> int:
    """Exit status of a child; one that hangs is killed, and fails the test."""
    end = time.monotonic() + seconds
    while (done := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError(f"process {pid} hangs")
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(done[1])


def _corsd(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "corsd_lib", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def _pictures(folder: Path) -> None:
    """A data set of two classes as files."""
    draw = np.random.default_rng(0)
    for part, kind, i in itertools.product(("train", "val"), "ab", range(12)):
        file = folder / part / kind / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (18, 18, 3), dtype=np.uint8)).save(file)


def _wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, f"it ended too early: {process.communicate()}"
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.01)


@pytest.mark.parametrize("method", list(METHODS))
def test_data_of_one_class_is_the_same_error_for_every_method(tiny: Tiny, method: str) -> None:
    digits = load_dataset("digits", per_class=5)
    zeros = {part: getattr(digits, part).subset((getattr(digits, part).labels == 0).nonzero().flatten()) for part in _SPLITS}
    own = torch.zeros(1, dtype=torch.long)
    one = replace(digits, name="mine", class_names=("0",), superclass_names=("0",), superclass_of_class=own, **zeros)
    with pytest.raises(CorsdError, match=r"^mine: the data has one class, '0'; at least two are needed$"):
        _train(tiny(method=method), data=one)
    assert not tiny().path.exists()


@pytest.mark.parametrize("first", [True, False])
def test_of_several_processes_the_first_speaks_of_the_data(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, first: bool) -> None:
    def loaded(*_: object) -> None:
        warnings.warn("extra/ is not used", DataNotice, stacklevel=1)
        raise CorsdError("that is all")

    monkeypatch.setattr(launch, "_images_for", loaded)
    fabric: Any = SimpleNamespace(device=torch.device("cpu"), is_global_zero=first, broadcast=lambda problem: problem)
    with warnings.catch_warnings(record=True) as seen, pytest.raises(CorsdError, match="that is all"):
        warnings.simplefilter("always")
        launch._train(fabric, tiny(), None, None, False, None)
    assert len(seen) == first


# --- the loop is the plain loop ---

RECIPES: dict[str, dict[str, Any]] = {
    "baseline": {"method": "baseline"},
    "corsd": {},
    "corsd_release": {"method": "corsd_release"},
    "label smoothing": {"method": "deep_supervision", "method_options": {"label_smoothing": 0.2}},
    "cs_kd": {"method": "cs_kd", "batch_size": 20},
    "ps_kd": {"method": "ps_kd"},
    "shared relation network": {"method_options": {"shared": True}},
    "no decay of norms": {"decay_norm_and_bias": False, "weight_decay": 0.05},
    "nesterov": {"nesterov": True, "momentum": 0.7},
    "no momentum": {"momentum": 0.0},
    "clipping": {"clip_norm": 0.5},
    "cosine": {"schedule": "cosine"},
    "multistep": {"schedule": "multistep", "milestones": (0.3, 0.7)},
    "constant": {"schedule": "constant"},
    "balanced": {"sampling": "balanced", "batch_size": 20, "samples_per_class": 2},
    "augmentation": {"augmentation": "crop_flip", "cutout": 3},
    "zero padding": {"padding_mode": "zero"},
    "options": {"method_options": {"exit_kd": 1.0, "hidden": 16, "relation_margin": 0.0}},
    "width and seed": {"width": 3, "seed": 5, "per_class": 7},
}


def _scheduler(config: TrainConfig, optimizer: SGD, steps: int) -> Any:
    if config.schedule == "onecycle":
        return lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=steps, cycle_momentum=False)
    if config.schedule == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, steps)
    milestones = [-(-int(1000 * m) * steps // 1000) for m in config.milestones]
    return lr_scheduler.MultiStepLR(optimizer, milestones if config.schedule == "multistep" else [])


def _plain_loop(config: TrainConfig) -> dict[str, Tensor]:
    """A training as one would write it down from the configuration, with torch's own parts."""
    data, kind = load_data(config), METHODS[config.method]
    torch.manual_seed(config.seed)
    network = build_network("resnet8", 10, in_channels=1, image_size=8, width=config.width, exits=kind.exits)
    torch.manual_seed(config.seed + 1)
    method = build_method(config.method, network=network, **config.method_options)
    weights = [*network.parameters(), *method.parameters()]
    decayed = [w for w in weights if w.ndim > 1 or config.decay_norm_and_bias]
    undecayed = [w for w in weights if not any(w is d for d in decayed)]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    optimizer = SGD(groups, config.lr, config.momentum, nesterov=config.nesterov)
    source = BatchSource(
        data,
        batch_size=config.batch_size,
        sampling=config.sampling or kind.sampling,
        samples_per_class=config.samples_per_class or kind.samples_per_class,
        augmentation=Augmentation(config.augmentation, padding_mode=config.padding_mode, cutout=config.cutout),
        seed=config.seed,
    )
    steps = len(source.indices(0))
    scheduler = _scheduler(config, optimizer, config.epochs * steps)
    for epoch in range(config.epochs):
        for step, batch in enumerate(source(epoch)):
            batch = batch._replace(progress=(epoch * steps + step) / (config.epochs * steps))
            batch = batch._replace(random=method.sample(batch))
            loss = method(network(method.transform_images(batch)), batch)["total"]
            optimizer.zero_grad()
            loss.backward()
            if config.clip_norm:
                nn.utils.clip_grad_norm_(weights, config.clip_norm)
            optimizer.step()
            scheduler.step()
    parts: dict[str, nn.Module] = {"network": network, "method": method}
    return {f"{name}.{k}": v for name, part in parts.items() for k, v in part.state_dict().items()}


@cache
def _plain_weights(method: str) -> dict[str, Tensor]:
    return _plain_loop(TrainConfig(**{**TINY, "method": method}))


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_training_is_the_plain_loop(tiny: Tiny, name: str) -> None:
    config = tiny(probe_every=0, **RECIPES[name])
    weights, expected = _weights(_train(config)), _plain_loop(config)
    assert weights.keys() == expected.keys()
    for key, value in expected.items():  # rates are computed in another order: equal up to rounding, which the steps amplify
        torch.testing.assert_close(weights[key], value, atol=2e-4, rtol=2e-3, msg=f"{key} differs: {weights[key]}, {value}")
    if name not in (*METHODS, "width and seed"):  # and the recipe matters, ten times as much as these tolerances
        plain = _plain_weights(config.method)
        assert max(float((v - plain[k]).abs().max()) for k, v in expected.items() if "backbone" in k and v.ndim > 1) > 2e-3


@pytest.mark.parametrize("steps", [2, 3, 7, 10, 90, 1000])
@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "multistep", "constant"])
def test_the_learning_rate_is_that_of_torch_at_every_step(schedule: str, steps: int) -> None:
    config = TrainConfig(lr=0.3, schedule=schedule, milestones=(0.5, 0.75, 0.9))
    optimizer = SGD([nn.Parameter(torch.zeros(1))], config.lr)
    scheduler = _scheduler(config, optimizer, steps)
    for step in range(steps):
        assert learning_rate(step, steps, config) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6, abs=1e-9), step
        optimizer.step()
        if step < steps - 1:
            scheduler.step()


@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "multistep", "constant"])
def test_a_training_of_one_step_has_a_learning_rate(schedule: str) -> None:
    assert 0 < learning_rate(0, 1, TrainConfig(schedule=schedule)) <= 0.1


def test_the_recorded_learning_rate_is_that_of_the_last_step(tiny: Tiny) -> None:
    config = tiny(epochs=3)
    assert _train(config).metrics["lr"].tolist() == [learning_rate(step, 9, config) for step in (2, 5, 8)]


@pytest.mark.parametrize("everything", [True, False])
def test_weight_decay_groups_hold_every_parameter_once(everything: bool) -> None:
    network = build_network("resnet8", 10, width=4)
    method = build_method("corsd", network=network)
    module = nn.ModuleList([network, method])
    groups = parameter_groups(module, TrainConfig(weight_decay=0.1, decay_norm_and_bias=everything))
    inside = [id(p) for g in groups for p in g["params"]]
    assert len(inside) == len(set(inside)) and set(inside) == {id(p) for p in module.parameters()}
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    spared = {id(p) for m in module.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    spared |= {id(m.bias) for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d) and m.bias is not None}
    assert all(decay[i] == (0.1 if everything or i not in spared else 0.0) for i in inside) and len(spared) > 20


# --- seeds, modes, and what must not leak ---


def test_images_are_those_of_the_method_in_training_steps_and_as_they_are_elsewhere(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []

    class Turned(Baseline):
        name = "turned"

        def transform_images(self, batch: Batch) -> Tensor:
            calls.append(self.training)
            return batch.images.flip(2)

    monkeypatch.setitem(METHODS, Turned.name, Turned)
    upright = load_data(tiny(validation_fraction=0.2))
    assert isinstance(upright.train, ImageArrays)
    turned = replace(upright, train=replace(upright.train, images=upright.train.images.flip(2)))
    ours = _train(tiny("ours", method="turned", augmentation="none", validation_fraction=0.2), data=upright)
    theirs = _train(tiny("theirs", method="baseline", augmentation="none", validation_fraction=0.2), data=turned)
    _assert_same_training(ours, theirs)
    assert calls == [True] * 6  # once a step: validation, probes and test never call it


def test_same_seed_same_weights_other_seed_other_weights(tiny: Tiny, tiny_run: Run) -> None:
    one, two = tiny_run, _train(tiny("two", validation_fraction=0.2))
    other = _train(tiny("other", validation_fraction=0.2, seed=1))
    _assert_same_training(one, two)
    assert all(
        not torch.equal(v, _weights(other)[k])
        for k, v in _weights(one).items()
        if k.endswith(("conv1.weight", "classifier.weight"))
    )


def test_the_number_of_probes_and_checkpoints_changes_nothing(tiny: Tiny) -> None:
    often = _weights(_train(tiny("often", checkpoint_seconds=0.0, probe_every=1, probe_size=80)))
    rarely = _weights(_train(tiny("rarely", probe_every=0, probe_size=10)))
    assert all(torch.equal(often[k], rarely[k]) for k in often)


@pytest.mark.parametrize("every,expected", [(0, [0, 5]), (2, [0, 2, 4, 5]), (1, [0, 1, 2, 3, 4, 5])])
def test_snapshots_are_taken_every_n_epochs(tiny: Tiny, every: int, expected: list[int]) -> None:
    run = _train(tiny(epochs=5, per_class=2, method="baseline", probe_every=every, probe_size=10))
    assert list(run.probes) == expected


@pytest.mark.parametrize("method", ["baseline", "corsd"])
def test_validation_leaves_no_trace_in_the_training(tiny: Tiny, method: str) -> None:
    data = load_dataset("digits", per_class=5, validation_fraction=0.2)
    watched = _train(tiny("watched", method=method), data=data)
    blind = _train(tiny("blind", method=method), data=replace(data, validation=None))
    assert "val_top1.exit1" in watched.metrics and "val_top1.exit1" not in blind.metrics
    weights, expected = _weights(watched), _weights(blind)  # with the running statistics of the batch norms
    assert all(torch.equal(weights[k], expected[k]) for k in expected)


@pytest.mark.parametrize("method", list(METHODS))
def test_each_batch_norm_is_updated_once_a_step(tiny: Tiny, method: str) -> None:
    run = _train(tiny(method=method))
    steps = run.metrics["step"].tolist()[-1]
    counts = {k: int(v) for k, v in _weights(run).items() if k.endswith("num_batches_tracked")}
    assert len(counts) >= 7 and set(counts.values()) == {steps}, counts


def test_training_mode_is_on_in_every_step(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    modes, step = [], Trainer._step

    def watched(self: Trainer, batch: Any) -> Any:
        modes.append(all(m.training for m in [*self.network.modules(), *self.method.modules()]))
        return step(self, batch)

    monkeypatch.setattr(Trainer, "_step", watched)
    _train(tiny(validation_fraction=0.2))
    assert modes == [True] * 6


def test_random_numbers_of_the_caller_are_left_alone(tiny: Tiny, tiny_run: Run) -> None:
    torch.manual_seed(11)
    random.seed(12)
    np.random.seed(13)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()  # type: ignore[index]
    run = _train(tiny(validation_fraction=0.2))
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()  # type: ignore[index]
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    _assert_same_training(tiny_run, run)


def test_signal_handlers_of_the_caller_are_put_back(tiny: Tiny) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    _train(tiny(epochs=1))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_probes_leave_the_backbone_as_the_baseline_trains_it(tiny: Tiny) -> None:
    probe, baseline = (_weights(_train(tiny(method, method=method))) for method in ("probe", "baseline"))
    shared = [k for k in baseline if k.startswith("network.backbone.")]
    assert len(shared) > 30 and all(torch.equal(probe[k], baseline[k]) for k in shared)
    for part in ("weight", "bias"):
        assert torch.equal(probe[f"network.exits.2.classifier.{part}"], baseline[f"network.exits.0.classifier.{part}"])


def test_all_methods_begin_with_the_same_network(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: dict[str, dict[str, Tensor]] = {}
    monkeypatch.setattr(Trainer, "run", lambda self, *_: starts.update({self.config.method: self._weights()}))
    for method in METHODS:
        _train(tiny(method, method=method))
    for start in starts.values():
        shared = [k for k in start if k.startswith("network.backbone.")]
        assert shared and all(torch.equal(start[k], starts["baseline"][k]) for k in shared)
    assert set(starts) == set(METHODS)


# --- what is recorded ---


def test_recorded_losses_are_means_over_the_images_of_the_epoch(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[dict[str, Tensor], Tensor, int]] = []
    step = Trainer._step

    def watched(self: Trainer, batch: Any) -> Any:
        parts, right = step(self, batch)
        seen.append((parts, right, len(batch.labels)))
        return parts, right

    monkeypatch.setattr(Trainer, "_step", watched)
    # 3 rounds of 10 classes in batches of 4 classes: the last of 8 batches is smaller than the others
    metrics = _train(tiny(epochs=1, sampling="balanced", samples_per_class=2, batch_size=8, per_class=6)).metrics
    counts = [n for *_, n in seen]
    assert counts == [8] * 7 + [4] and metrics["images"].tolist() == [60]
    for name in seen[0][0]:
        mean = sum(parts[name].item() * n for parts, _, n in seen) / 60
        assert metrics[f"loss.{name}"].item() == pytest.approx(mean, rel=1e-9)
    for k in range(3):
        assert metrics[f"train_top1.exit{k + 1}"].item() == pytest.approx(100 * sum(int(r[k]) for _, r, _ in seen) / 60)


def test_train_accuracy_counts_right_answers_by_exit(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    guesses: list[tuple[list[Tensor], Tensor]] = []
    forward = trainer.Step.forward

    def watched(self: trainer.Step, batch: Any) -> Any:
        parts, logits = forward(self, batch)
        guesses.append((logits, batch.labels))
        return parts, logits

    monkeypatch.setattr(trainer.Step, "forward", watched)
    metrics = _train(tiny(epochs=1, lr=0.2, per_class=20)).metrics
    for k in range(3):
        right = sum(int(g == y) for logits, labels in guesses for g, y in zip(logits[k].argmax(1), labels, strict=True))
        assert metrics[f"train_top1.exit{k + 1}"].item() == pytest.approx(100 * right / metrics["images"].item())


def test_method_options_are_stored_whole(tiny: Tiny) -> None:
    run = _train(tiny(epochs=1, method_options={"exit_kd": 2, "hidden": 16}))
    stored = run.config.method_options
    defaults = build_method("corsd").options
    assert stored["exit_kd"] == 2.0 and stored["hidden"] == 16 and stored["margin"] == 1.0
    assert set(stored) == set(vars(defaults))
    assert run.method().relation_networks()[0].first.out_features == 16  # type: ignore[union-attr]


def test_release_counts_three_images_an_anchor(tiny: Tiny) -> None:
    run = _train(tiny(method="corsd_release"))
    assert run.metrics["images"].tolist() == [150, 150]  # 50 rows, 5 anchors in a batch of 15
    assert run.metrics["step"].tolist() == [10, 20]
    snapshot = run.probes[2]
    assert len(snapshot.relations) == 3 and len(snapshot.logits) == 1  # a relation of every stage, one exit
    assert run.metrics["loss.auxiliary_kd_intra"].notna().all()


def test_on_epoch_sees_the_run_grow(tiny: Tiny) -> None:
    seen: list[tuple[int, int, list[int], bool]] = []
    _train(tiny(), on_epoch=lambda run: seen.append((run.epochs_done, len(run.metrics), list(run.probes), run.finished)))
    assert seen == [(1, 1, [0, 1], False), (2, 2, [0, 1, 2], False)]


def test_progress_names_exits_and_parts_and_can_be_silent(
    tiny: Tiny, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # a narrow terminal cuts the line
    monkeypatch.setenv("LINES", "24")
    _train(tiny("silent", epochs=1))
    assert capsys.readouterr() == ("", "")
    train(tiny("loud", epochs=1))
    shown = capsys.readouterr().err
    assert "3/3" in shown and "epoch 1 train" in shown and "relation_margin" in shown


# --- precision, memory format, compilation ---


def test_mixed_precision_trains_and_resumes(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _train(tiny("whole", precision="bf16-mixed"))
    weights, full = _weights(whole), _weights(_train(tiny("full")))
    assert all(v.isfinite().all() and v.dtype == full[k].dtype for k, v in weights.items())
    assert any(not torch.equal(v, full[k]) for k, v in weights.items())
    config = tiny("cut", precision="bf16-mixed", checkpoint_seconds=0.0)
    _at_step(monkeypatch, 4, lambda: signal.raise_signal(signal.SIGINT))
    assert not _train(config).finished
    _assert_same_training(whole, _train(replace(config, resume=True)))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_in_mixed_precision(tiny: Tiny, method: str) -> None:
    run = _train(tiny(method, method=method, precision="bf16-mixed", epochs=1, batch_size=15))
    assert run.finished and np.isfinite(run.metrics["loss.total"]).all()


def test_channels_last_is_only_a_memory_format(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_dataset("digits", per_class=5)
    colour = {
        name: replace(split, images=split.images.repeat(1, 3, 1, 1)) for name, split in vars(data).items() if name in _SPLITS
    }
    data = replace(data, mean=data.mean * 3, std=data.std * 3, **colour)
    formats: list[bool] = []
    forward = trainer.Step.forward

    def watched(self: trainer.Step, batch: Any) -> Any:
        weight = dict(self.network.named_parameters())["backbone.stages.1.0.conv1.weight"]
        last = [x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous() for x in (weight, batch.images)]
        formats.append(all(last))
        return forward(self, batch)

    monkeypatch.setattr(trainer.Step, "forward", watched)
    config = tiny("last", channels_last=True)
    last = _train(config, data=data)
    assert formats == [True] * 6
    weights, plain = _weights(last), _weights(_train(tiny("plain"), data=data))
    for name, value in plain.items():
        torch.testing.assert_close(weights[name], value, atol=2e-4, rtol=2e-3)
    _at_step(monkeypatch, 4, lambda: signal.raise_signal(signal.SIGINT))
    cut = tiny("cut", channels_last=True)
    _train(cut, data=data)
    _assert_same_training(last, _train(replace(cut, resume=True), data=data))


@pytest.mark.slow
def test_compile_compiles_the_network_and_keeps_its_names(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    compile_ = nn.Module.compile

    def eagerly(self: nn.Module) -> None:  # the default backend takes a minute of a C++ compiler; what is traced is the same
        compiled.append(self)
        compile_(self, backend="eager")

    def check() -> None:
        run = _train(tiny("compiled", compile=True, epochs=1))
        assert [type(m).__name__ for m in compiled] == ["MultiExitNetwork"]
        weights, plain = _weights(run), _weights(_train(tiny("plain", epochs=1)))
        assert weights.keys() == plain.keys() and all(torch.allclose(v, plain[k], atol=1e-4) for k, v in weights.items())

    monkeypatch.setattr(nn.Module, "compile", eagerly)
    assert _status_of_child(check, 600) == 0  # the compiler gives autograd threads, which forks of other tests do not survive


# --- stop and resume ---


@pytest.mark.parametrize("step,number", list(zip(range(1, 6), itertools.cycle([signal.SIGINT, signal.SIGTERM]), strict=False)))
def test_a_stopped_training_ends_as_if_never_stopped(
    tiny: Tiny, tiny_run: Run, monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals
) -> None:
    _at_step(monkeypatch, step, lambda: signal.raise_signal(number))
    config = tiny(validation_fraction=0.2)
    run = _train(config)
    assert not run.finished and run.test is None and run.epochs_done == step // 3
    _, metadata = files.read_tensors(run.path / "checkpoint.safetensors")
    position = json.loads(metadata["position"])
    assert (position["epoch"], position["step"]) == divmod(step, 3)  # the step was finished, and none begun after it
    assert f"{step // 3} of 2 epochs" in repr(run)
    monkeypatch.undo()
    rest: list[int] = []
    _at_step(monkeypatch, 6 - step, lambda: rest.append(6 - step))
    _at_step(monkeypatch, 7 - step, lambda: rest.append(7 - step))
    _assert_same_training(tiny_run, _train(replace(config, resume=True)))
    assert rest == [6 - step]  # it went on from there, and did not begin anew


def test_an_epoch_in_two_pieces_took_the_seconds_of_both(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    stop, step, now = threading.Event(), Trainer._step, [0.0]

    def clock() -> float:
        now[0] += 0.001
        return now[0]

    def slow(self: Trainer, batch: Batch) -> Any:
        now[0] += 0.5
        stop.set()
        return step(self, batch)

    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=clock))  # no clock of a machine that others use too
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_step", slow)
        train(tiny(), progress=False, stop=stop)
    run = train(tiny(resume=True), progress=False)
    assert run.metrics["seconds"].iloc[0] > 0.5 > run.metrics["seconds"].iloc[1]


def test_what_a_method_remembers_of_the_training_is_in_the_checkpoint(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """PS-KD's past predictions: a resume needs them, the finished run does not hold them."""
    whole = _train(tiny("whole", method="ps_kd", epochs=3))
    assert not any("past" in name for name in _weights(whole))
    config = tiny("cut", method="ps_kd", epochs=3)
    _at_step(monkeypatch, 4, lambda: signal.raise_signal(signal.SIGINT))
    run = _train(config)
    monkeypatch.undo()
    tensors, metadata = files.read_tensors(run.path / "checkpoint.safetensors")
    assert tensors["memory.past"].shape[1] == 10 and tensors["memory.past"].any()
    _assert_same_training(whole, _train(replace(config, resume=True)))
    (run.path / "test.json").unlink()
    without = {k: v for k, v in tensors.items() if k != "memory.past"}
    files.write_tensors(run.path / "checkpoint.safetensors", without, metadata)
    with pytest.raises(CorsdError, match=r"checkpoint.safetensors lacks memory.past"):
        _train(replace(config, resume=True))


class Doubled(Baseline):
    """A method with a second term in the steps `more`, counted from 0 over the training."""

    name = "doubled"
    more: range = range(0)
    step = 0
    Options = make_dataclass("DoubledOptions", [("again", float, 1.0)], bases=(MethodOptions,), frozen=True)

    def loss_terms(self, out: ExitOutputs, batch: Batch) -> dict[str, Tensor]:
        parts = super().loss_terms(out, batch)
        if self.step in self.more:
            parts["again"] = parts["task"]
        self.step += 1
        return parts


@pytest.mark.parametrize("more", [range(1, 9), range(3, 9), range(2), range(3)])  # three steps an epoch
def test_a_training_ends_when_its_terms_change(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, more: range) -> None:
    monkeypatch.setitem(METHODS, "doubled", Doubled)
    monkeypatch.setattr(Doubled, "more", more)
    words = "method 'doubled': its terms are .* at epoch ., step ., and were .* before; allowed: the same terms in every step"
    with pytest.raises(CorsdError, match=f"^{words}$"):
        _train(tiny(method="doubled"))
    assert load_run(tiny().path).epochs_done == (3 in (more.start, more.stop))


@pytest.mark.parametrize("first", [True, False])
def test_a_method_that_was_given_other_terms_does_not_resume(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, first: bool) -> None:
    monkeypatch.setitem(METHODS, "doubled", Doubled)
    monkeypatch.setattr(Doubled, "more", range(9) if first else range(0))

    def end(run: Run) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _train(tiny(method="doubled"), on_epoch=end)
    before = load_run(tiny().path).metrics
    monkeypatch.setattr(Doubled, "more", range(0) if first else range(9))
    with pytest.raises(CorsdError, match="allowed: the same terms in every step"):
        _train(tiny(method="doubled", resume=True))
    assert load_run(tiny().path).metrics.equals(before)


def test_the_last_batch_of_dlb_is_in_the_checkpoint(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """50 images in halves of 8: six batches an epoch. The one after the stop learns from the one before it."""
    whole = _train(tiny("whole", method="dlb"))
    assert whole.metrics["step"].tolist() == [6, 12] and not any("indices" in name for name in _weights(whole))
    config = tiny("cut", method="dlb")
    _at_step(monkeypatch, 9, lambda: signal.raise_signal(signal.SIGINT))
    run = _train(config)
    monkeypatch.undo()
    tensors, _ = files.read_tensors(run.path / "checkpoint.safetensors")
    assert tensors["memory.indices"].shape == (16,) and tensors["memory.logits"].shape == (16, 10)
    _assert_same_training(whole, _train(replace(config, resume=True)))


def test_a_stop_in_the_last_step_finishes_the_run(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    _at_step(monkeypatch, 6, lambda: signal.raise_signal(signal.SIGINT))
    assert _train(tiny()).finished


def test_a_stop_between_epochs_and_many_stops(tiny: Tiny, tiny_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(validation_fraction=0.2, resume=True)  # there is nothing to resume yet: it begins

    def stop_after_first(run: Run) -> None:
        if run.epochs_done == 1:
            signal.raise_signal(signal.SIGINT)

    run = _train(config, on_epoch=stop_after_first)
    assert run.epochs_done == 1 and not run.finished
    while not run.finished:
        _at_step(monkeypatch, 1, lambda: signal.raise_signal(signal.SIGINT))
        run = _train(config)
        monkeypatch.undo()
    _assert_same_training(tiny_run, run)


def test_the_second_signal_acts_as_usual_and_the_run_survives_it(
    tiny: Tiny, tiny_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(validation_fraction=0.2, checkpoint_seconds=0.0)

    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    _at_step(monkeypatch, 5, twice)
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            _train(config)
    finally:
        signal.signal(signal.SIGINT, usual)
    _assert_same_training(tiny_run, _train(replace(config, resume=True)))


def test_a_second_sigterm_does_not_keep_a_training_from_saving(
    tiny: Tiny, tiny_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm sends it twice: at the begin and at the end of the time that a preempted job has."""

    def usual(number: int, frame: Any) -> None:
        raise AssertionError("the training would be ended here")

    def twice() -> None:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, usual)
    try:
        with monkeypatch.context() as patched:
            _at_step(patched, 4, twice)
            run = _train(tiny(validation_fraction=0.2))
        assert signal.getsignal(signal.SIGTERM) is usual
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not run.finished and _steps_saved(run.path) == 26  # 1 epoch, 1 step
    _assert_same_training(tiny_run, _train(tiny(validation_fraction=0.2, resume=True)))


def test_a_training_that_its_caller_breaks_off_can_be_resumed(tiny: Tiny, tiny_run: Run) -> None:
    def no_more(run: Run) -> None:
        raise StopIteration("enough")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(StopIteration, match="enough"):
        _train(tiny(validation_fraction=0.2), on_epoch=no_more)
    assert signal.getsignal(signal.SIGINT) is before
    _assert_same_training(tiny_run, _train(tiny(validation_fraction=0.2, resume=True)))


def test_a_thread_may_train_beside_the_main_one(tiny: Tiny, tiny_run: Run) -> None:
    """There it can set no signal handlers, and no notebook that watches it needs them."""
    runs: list[Run] = []
    thread = threading.Thread(target=lambda: runs.append(_train(tiny(validation_fraction=0.2))))
    thread.start()
    thread.join(300)
    _assert_same_training(tiny_run, runs[0])


def test_an_event_of_another_thread_stops_as_ctrl_c_does(tiny: Tiny, tiny_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    stop, config = threading.Event(), tiny(validation_fraction=0.2)
    _at_step(monkeypatch, 4, stop.set)
    run = _train(config, stop=stop)
    assert not run.finished
    _, metadata = files.read_tensors(run.path / "checkpoint.safetensors")
    position = json.loads(metadata["position"])
    assert (position["epoch"], position["step"]) == (1, 1)
    monkeypatch.undo()
    _assert_same_training(tiny_run, _train(replace(config, resume=True), stop=threading.Event()))


def test_workers_and_places_may_change_on_resume(
    tiny: Tiny, tiny_run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _at_step(monkeypatch, 4, lambda: signal.raise_signal(signal.SIGINT))
    _train(tiny("cut", validation_fraction=0.2))
    moved = shutil.move(tmp_path / "cut", tmp_path / "moved")
    again = tiny("moved", validation_fraction=0.2, resume=True, workers=0, checkpoint_seconds=1.0, data_root="elsewhere")
    assert str(again.path) == str(moved)
    _assert_same_training(tiny_run, _train(again))


def test_a_run_begun_before_a_setting_was_there_goes_on_and_says_with_what(
    tiny: Tiny, tiny_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(validation_fraction=0.2)
    with monkeypatch.context() as earlier:
        _at_step(earlier, 4, lambda: signal.raise_signal(signal.SIGINT))
        earlier.setattr("corsd_lib.provenance._commit", lambda: "earlier")
        run = _train(config)
    content = files.read_json(run.path / "config.json")
    del content["train"]["padding_mode"], content["train"]["method_options"]["margin"]  # each had its default
    files.write_json(run.path / "config.json", content)
    assert run.provenance["revision"] == "earlier" and run.resumed == []
    run = _train(replace(config, resume=True))
    _assert_same_training(tiny_run, run)
    (resumed,) = run.resumed
    assert (resumed["revision"], resumed["epochs_done"]) == (tiny_run.provenance["revision"], 1)
    assert run.provenance["revision"] == "earlier"


def test_a_resume_with_the_same_source_on_the_same_machine_adds_nothing(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    _at_step(monkeypatch, 4, lambda: signal.raise_signal(signal.SIGINT))
    before = files.read_json(_train(tiny()).path / "config.json")
    run = _train(tiny(resume=True))
    assert run.finished and files.read_json(run.path / "config.json") == before


def test_two_trainings_do_not_share_a_directory(tiny: Tiny) -> None:
    def again(run: Run) -> None:
        with pytest.raises(CorsdError, match=rf"{run.path} is being trained by another process: wait for it, or stop it"):
            _train(tiny(resume=True))

    assert _train(tiny(), on_epoch=again).finished


def test_a_training_that_began_before_the_lock_was_had_is_not_gone_on_with_under_other_settings(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the directory and the lock, another process trains there, and is stopped."""
    fabric, others = launch._fabric, [tiny(lr=0.1, resume=True)]

    def late(config: TrainConfig) -> Any:
        while others:
            with monkeypatch.context() as patched:
                _at_step(patched, 4, lambda: signal.raise_signal(signal.SIGINT))
                _train(others.pop())
        return fabric(config)

    monkeypatch.setattr(launch, "_fabric", late)
    with pytest.raises(
        CorsdError, match=r"run contains a run of another configuration: lr was 0.1, is 0.05; remove it or choose"
    ):
        _train(tiny(resume=True))
    others.append(tiny("new"))
    with pytest.raises(CorsdError, match=r"new already contains a run: resume it"):
        _train(tiny("new"))


def test_a_run_that_another_process_finished_before_the_lock_was_had_is_returned(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    fabric, others = launch._fabric, [tiny(resume=True)]
    before: list[dict[str, Any]] = []

    def late(config: TrainConfig) -> Any:
        while others:
            before.append(_contents(_train(others.pop()).path))
        return fabric(config)

    monkeypatch.setattr(launch, "_fabric", late)
    assert _contents(_train(tiny(resume=True)).path) == before[0]


def test_it_trains_where_there_are_no_locks(tiny: Tiny, tiny_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, which opens no folders either."""
    open_ = os.open

    def windows(path: Path, *flags: int) -> int:
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied")
        return open_(path, *flags)

    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setattr(os, "open", windows)
    _assert_same_training(tiny_run, _train(tiny(validation_fraction=0.2)))


# --- a run directory that changes while it is trained ---


def _removed(path: Path) -> None:
    shutil.rmtree(path)


def _moved(path: Path) -> None:
    path.rename(path.with_name("moved"))


def _without_config(path: Path) -> None:
    (path / "config.json").rename(path.with_name("config.json"))


def _replaced(path: Path) -> None:
    """Moved, and another training is begun in its place."""
    _moved(path)
    path.mkdir()
    config = files.read_json(path.with_name("moved") / "config.json")
    files.write_json(path / "config.json", {**config, "provenance": {**config["provenance"], "started": "later"}})


def _damaged(path: Path) -> None:
    shutil.copy(path / "config.json", path.with_name("config.json"))
    (path / "config.json").write_text((path / "config.json").read_text().replace('"seed": 0', '"seed": 1'))


CHANGES = {
    _removed: "run was moved or removed during the training, which therefore stops; if it was moved, resume it where it is",
    _moved: "run was moved or removed during the training",
    _without_config: "run/config.json is gone, so the training stops; put it back and resume",
    _damaged: "run/config.json is damaged: .*; the training therefore stops",
    _replaced: "run/config.json is of another training now, so the training stops",
}


@pytest.mark.parametrize("step", [2, 6])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
def test_a_run_directory_that_changes_ends_the_training_and_what_is_there_can_be_used(
    tiny: Tiny, tiny_run: Run, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], step: int
) -> None:
    config = tiny(validation_fraction=0.2, checkpoint_seconds=0.0)
    left: dict[str, Any] = {}

    def changed() -> None:
        change(config.path)
        left.update(_contents(config.path.parent))

    _at_step(monkeypatch, step, changed)
    with pytest.raises(CorsdError, match=CHANGES[change]) as caught:
        _train(config)
    assert "\n" not in str(caught.value) and _contents(config.path.parent) == left  # nothing was written any more
    assert config.path.exists() == (change not in (_moved, _removed))
    monkeypatch.undo()
    if change in (_without_config, _damaged):
        config.path.with_name("config.json").replace(config.path / "config.json")
    if change is not _removed:
        now = config.path if change in (_without_config, _damaged) else config.path.with_name("moved")
        _assert_same_training(tiny_run, _train(replace(config, out=str(now), resume=True)))


def test_a_run_directory_that_is_removed_between_the_last_epoch_and_the_end_is_noticed(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny()

    def evaluated(*_: Any, **__: Any) -> Any:
        shutil.rmtree(config.path)
        return evaluate(tiny_network, load_data(config))

    tiny_network = build_network("resnet8", 10, in_channels=1, image_size=8, width=4).eval()
    monkeypatch.setattr(trainer, "evaluate", evaluated)
    with pytest.raises(CorsdError, match="run was moved or removed during the training"):
        _train(config)
    assert not config.path.exists()


def test_a_run_directory_that_is_removed_while_a_file_is_made_ready_is_not_made_anew(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, write = tiny(), Checkpoint.write

    def removed(self: Checkpoint, *arguments: Any) -> None:
        shutil.rmtree(config.path)
        write(self, *arguments)

    monkeypatch.setattr(Checkpoint, "write", removed)
    with pytest.raises(CorsdError, match="run was moved or removed in the meantime"):
        _train(config)
    assert not config.path.exists()


def test_what_others_are_writing_below_the_run_directory_is_left_alone(tiny: Tiny, tmp_path: Path) -> None:
    """Another run that is being trained there, or a repository."""
    parts = [tmp_path / folder / f".config.json.{'0' * 32}.part" for folder in ("run/other", "run/.git", "run", "run/probes")]
    for part in parts:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
    _train(tiny(epochs=1))
    assert [part.exists() for part in parts] == [True, True, False, False]


def test_images_of_your_own_are_asked_for_again(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_dataset("digits", per_class=5)
    mine, other = (replace(data, name=name) for name in ("mine", "another"))
    with monkeypatch.context() as patched:
        _at_step(patched, 2, lambda: signal.raise_signal(signal.SIGINT))
        _train(tiny(), data=mine)
    asked = r"run was trained on data that was passed to train\(data=...\), 'mine': pass the same data here"
    with pytest.raises(CorsdError, match=asked):
        _train(tiny(resume=True))
    with pytest.raises(CorsdError, match=r"run was started on 'mine', not on 'another'; give the same data as at its start"):
        _train(tiny(resume=True), data=other)
    run = _train(tiny(resume=True), data=mine)
    assert run.test is not None and run.test["data"] == "mine"
    for use in (evaluate, lambda run: export_run(run, run.path / "copy"), lambda run: run_images(run, [0])):
        with pytest.raises(CorsdError, match=asked):
            use(run)
    copy = export_run(run, run.path / "copy", data=mine, snapshots=2)
    assert copy.test is not None and copy.test["data"] == "mine" == copy.data.name
    assert evaluate(run, mine).data == "mine"


def test_own_images_under_a_known_name_are_told_from_the_known_ones(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    known = load_dataset("digits", per_class=5)
    labels = torch.cat([known.train.labels[25:], known.train.labels[:25]])
    noisy = replace(known, train=ImageArrays(known.train.images, labels, known.train.index))
    with monkeypatch.context() as patched:
        _at_step(patched, 2, lambda: signal.raise_signal(signal.SIGINT))
        _train(tiny(), data=noisy)
    with pytest.raises(
        CorsdError, match=r"run was started on images that differ from those of 'digits' here: train .* of different classes"
    ):
        _train(tiny(resume=True), data=known)
    asked = r"images of 'digits' here are not those of .*run: train .* of different classes; restore the files that"
    with pytest.raises(CorsdError, match=asked):
        _train(tiny(resume=True))
    run = _train(tiny(resume=True), data=noisy)
    with pytest.raises(CorsdError, match=asked):
        evaluate(run)
    assert run.finished and evaluate(run, noisy).data == "digits"
    of_known = _train(tiny(out=str(run.path / "known")), data=load_dataset("digits", per_class=5))
    assert evaluate(of_known).data == "digits"  # the named ones may be given


def test_the_workers_of_a_training_are_those_of_its_evaluations_too(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def batches(*arguments: Any, workers: int = 2, **options: Any) -> Any:
        asked.append(workers)
        return evaluation_batches(*arguments, workers=workers, **options)

    for module in ("evaluation", "training.probe_set"):
        monkeypatch.setattr(f"corsd_lib.{module}.evaluation_batches", batches)
    run = _train(tiny(workers=0, epochs=1, validation_fraction=0.2))
    evaluate(run)
    assert len(asked) > 4 and set(asked) == {0}


def test_a_finished_run_is_returned_as_it_is(tiny: Tiny) -> None:
    run = _train(tiny())
    before = _contents(run.path)
    again = _train(tiny(resume=True))
    assert _contents(run.path) == before and again.test == run.test


def test_an_existing_run_is_never_touched_without_resume(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    _at_step(monkeypatch, 4, lambda: signal.raise_signal(signal.SIGINT))
    run = _train(tiny())
    before = _contents(run.path)
    with pytest.raises(CorsdError, match=rf"{run.path} already contains a run: resume it \(resume=True, --resume\), or"):
        _train(tiny(epochs=9))
    (run.path / "config.json").rename(run.path / "old.json")
    with pytest.raises(CorsdError, match=rf"{run.path} holds a checkpoint.safetensors but no config.json"):
        _train(tiny(resume=True))
    (run.path / "old.json").rename(run.path / "config.json")
    assert _contents(run.path) == before


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"lr": 0.1}, "lr was 0.05, is 0.1"),
        ({"epochs": 5}, "epochs was 2, is 5"),
        ({"width": 6, "seed": 4}, "width was 4, is 6, seed was 0, is 4"),
        ({"method_options": {"margin": 2.0}}, "method_options.margin was 1.0, is 2.0"),
        ({"milestones": (0.1,)}, r"milestones was \(0.5, 0.75\), is \(0.1,\)"),
    ],
)
def test_a_resume_with_another_configuration_is_refused(
    tiny: Tiny, tiny_run: Run, changes: dict[str, Any], message: str
) -> None:
    before = _contents(tiny_run.path)
    config = tiny(validation_fraction=0.2, resume=True, **changes)
    with pytest.raises(
        CorsdError, match=rf"a run of another configuration: {message}; remove it or choose another folder \(out=, --out\)$"
    ):
        _train(replace(config, out=str(tiny_run.path)))
    assert _contents(tiny_run.path) == before


def test_a_checkpoint_of_another_architecture_is_one_error(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    _at_step(monkeypatch, 4, lambda: signal.raise_signal(signal.SIGINT))
    run, other = _train(tiny("run")), _train(tiny("other", width=6))
    shutil.copy(other.path / "checkpoint.safetensors", run.path)
    with pytest.raises(CorsdError, match=rf"{run.path}/checkpoint.safetensors is of another architecture: network.* in this"):
        _train(tiny("run", resume=True))


@pytest.mark.parametrize("damage", ["truncated", "weights"])
def test_a_damaged_checkpoint_is_one_error(tiny: Tiny, tiny_run: Run, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    _at_step(monkeypatch, 4, lambda: signal.raise_signal(signal.SIGINT))
    run = _train(tiny())
    file = run.path / "checkpoint.safetensors"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-7])
        message = "is not a complete safetensors file: .*; restore a copy, or remove it to start over$"
    else:
        shutil.copy(tiny_run.path / "weights.safetensors", file)
        message = "is not a checkpoint: its metadata has no position; restore a copy, or remove it to start over$"
    with pytest.raises(CorsdError, match=rf"{file} {message}"):
        _train(tiny(resume=True))


def _flipped(file: Path) -> None:
    """One bit of the last tensor is another."""
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["probe", "probes/epoch_0000", "probes/epoch_0001"])
def test_a_damaged_probe_file_is_found_at_a_resume_and_can_be_removed(
    tiny: Tiny, tiny_run: Run, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with monkeypatch.context() as patched:
        _at_step(patched, 4, lambda: signal.raise_signal(signal.SIGINT))
        run = _train(tiny(validation_fraction=0.2))
    file = run.path / f"{name}.safetensors"
    whole = file.read_bytes()
    _flipped(file)
    advice = "the other snapshots stay usable" if "/" in name else "resume the run; for an export, export the run again"
    with pytest.raises(CorsdError, match=rf"^{file} is damaged: .*; restore a copy, or remove it.*{advice}$"):
        _train(tiny(validation_fraction=0.2, resume=True))
    file.unlink()
    again = _train(tiny(validation_fraction=0.2, resume=True))
    if name == "probe":
        assert file.read_bytes() == whole
        _assert_same_training(tiny_run, again)
    else:
        there = [epoch for epoch in (0, 1, 2) if epoch != int(name[-1])]
        assert list(again.probes) == there and torch.equal(again.probes[2].logits[-1], tiny_run.probes[2].logits[-1])
        assert write_report([again], again.path / "report.html", embedding="pca").is_file()


@pytest.mark.parametrize("name", ["weights", "probe"])
def test_what_is_said_of_damaged_files_of_a_finished_run_mends_it(tiny_run: Run, tmp_path: Path, name: str) -> None:
    path = shutil.copytree(tiny_run.path, tmp_path / "copy")
    file = path / f"{name}.safetensors"
    _flipped(file)
    with pytest.raises(CorsdError, match=r"remove it,? and test\.json.* and resume the run"):
        _ = load_run(path).network(), load_run(path).probes.labels
    file.unlink()
    (path / "test.json").unlink()
    again = _train(replace(tiny_run.config, out=str(path), resume=True))
    assert {f.name: f.read_bytes() for f in path.rglob("*.safetensors")} == {
        f.name: f.read_bytes() for f in tiny_run.path.rglob("*.safetensors")
    }
    assert again.test == tiny_run.test


def test_a_directory_that_cannot_be_written_is_one_error(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CorsdError, match=rf"cannot write {tmp_path}/file/run: Not a directory"):
        _train(tiny(out=str(tmp_path / "file" / "run")))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("accelerator", ["cpu", "auto"])
def test_float16_on_a_cpu_is_refused(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, accelerator: str) -> None:
    """Fabric would train in bfloat16, and config.json would say float16."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = tiny(accelerator=accelerator, precision="16-mixed")
    with pytest.raises(CorsdError, match="precision '16-mixed' does not work on a CPU; allowed: 32-true or bf16-mixed"):
        _train(config)
    assert not config.path.exists()


def test_more_processes_than_the_machine_can_run_are_refused(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr("lightning_fabric.Fabric.launch", lambda *_: pytest.fail("processes are started"))
    with pytest.raises(CorsdError, match=r"^devices = 100000 is more than this machine can run; allowed: up to 2, 1 per CPU$"):
        _train(tiny(devices=100_000))
    assert not (tmp_path / "run").exists()


def test_more_workers_than_the_machine_can_run_are_refused(
    tiny: Tiny, tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    labels = torch.arange(20) % 2
    files = ImageFiles(("none",) * 20, labels, torch.arange(20), 8)
    third = (0.5,) * 3
    data = ImageData("files", files, files, ("a", "b"), ("a", "b"), torch.arange(2), third, third, 8)
    message = r"^workers = 17 is more than this machine can run; allowed: up to 16, 8 per CPU$"
    with pytest.raises(CorsdError, match=message):
        _train(tiny(workers=17), data=data)
    assert not (tmp_path / "run").exists()
    with pytest.raises(CorsdError, match=message):
        evaluate(build_network("resnet8", 2, width=4).eval(), data, workers=17)
    assert evaluate(tiny_run, workers=17).images == 797  # images in memory need no workers
    assert _train(tiny(workers=17, epochs=1)).finished


SCRIPT = """
import multiprocessing
import threading
import corsd_lib.datasets.folders
from corsd_lib import TrainConfig, train

corsd_lib.datasets.folders.MEMORY_LIMIT = 0  # images are read by workers
config = TrainConfig(
    data="folder:pictures", image_size=16, width=4, batch_size=4, epochs=1, probe_size=4, accelerator="cpu", method="baseline",
    out="run", workers=1,
)
stop = threading.Event()
stop.set()  # the first step is the last
GUARD
    multiprocessing.set_start_method("spawn", force=True)  # as on Windows and macOS
    print(train(config, progress=False, stop=stop))
"""


@pytest.mark.slow
@pytest.mark.parametrize("guard", [True, False])
def test_a_script_without_a_guard_is_told_of_it_where_workers_are_spawned(tmp_path: Path, guard: bool) -> None:
    _pictures(tmp_path / "pictures")
    (tmp_path / "script.py").write_text(SCRIPT.replace("GUARD", "if __name__ == '__main__':" if guard else "if True:"))
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=600, env={**os.environ, **PATHS}
    )
    assert ("0 of 1 epochs" in done.stdout) == (done.returncode == 0) == guard, done.stderr
    if not guard:
        begin, asked = (
            "CorsdError: train was called by a worker process, which imports the script",
            "`if __name__ == '__main__':`",
        )
        assert any(begin in line and asked in line for line in done.stderr.splitlines())
        last = done.stderr.splitlines()[-1]
        assert "CorsdError: a worker process that reads images ended" in last and asked in last
        assert "is being trained by another process" not in done.stderr


def test_devices_that_are_not_there_are_one_error(tiny: Tiny) -> None:
    with pytest.raises(CorsdError, match="cannot train with accelerator 'tpu', devices 1, num_nodes 1, precision '32-true': "):
        _train(tiny(accelerator="tpu"))


@pytest.mark.parametrize("devices,started", [(1, 2), (2, 1)])
def test_another_number_of_processes_than_torchrun_has_started_is_one_error(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, devices: int, started: int
) -> None:
    names = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": str(started), "RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with pytest.raises(
        CorsdError, match=rf"cannot train with .*devices {devices}, .*does not match the world size \({started}\)"
    ):
        _train(tiny(devices=devices))


def test_batches_larger_than_the_data_for_all_processes_are_one_error(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BatchSource, "indices", lambda *_: [])
    with pytest.raises(CorsdError, match="batch_size 16 x 1 processes leaves no complete batch of training images"):
        _train(tiny())


# --- divergence ---


def _rate_explodes_at(monkeypatch: pytest.MonkeyPatch, step: int, rate: float) -> None:
    monkeypatch.setattr(trainer, "learning_rate", lambda s, steps, config: rate if s >= step else 0.05)


def _assert_all_finite(file: Path) -> None:
    tensors, _ = files.read_tensors(file)
    bad = [name for name, value in tensors.items() if not value.isfinite().all()]
    assert len(tensors) > 20 and not bad


@pytest.mark.parametrize("rate", [1e20, 1e35])
@pytest.mark.parametrize("step", [3, 4, 5])
def test_a_diverged_training_stops_and_keeps_the_last_good_checkpoint(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, step: int, rate: float
) -> None:
    _rate_explodes_at(monkeypatch, step, rate)
    config = tiny(checkpoint_seconds=0.0, epochs=3)
    with pytest.raises(
        CorsdError, match=r"training diverged at epoch \d, step \d: .*checkpoint is kept in .*lower lr"
    ) as caught:
        _train(config)
    assert "\n" not in str(caught.value)
    run = load_run(config.path)
    assert not run.finished and run.epochs_done >= 1
    for file in [run.path / "checkpoint.safetensors", *(run.path / "probes").iterdir()]:
        _assert_all_finite(file)
    network = run.network()
    assert all(z.isfinite().all() for z in network(torch.randn(2, 1, 8, 8)).logits)
    assert np.isfinite(run.metrics.to_numpy()).all()
    with pytest.raises(CorsdError, match="training diverged"):  # from the checkpoint it goes the same way
        _train(replace(config, resume=True))


def test_a_state_that_is_not_finite_is_never_recorded(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of finite loss may spoil the weights: the next loss would tell, but after the last step there is none."""
    step = Trainer._step

    def spoiled(self: Trainer, batch: Any) -> Any:
        out = step(self, batch)
        if self._steps_done() == 5:
            next(self.network.parameters()).data[0] = torch.nan
        return out

    monkeypatch.setattr(Trainer, "_step", spoiled)
    config = tiny()
    with pytest.raises(CorsdError, match=r"training diverged at epoch 2, step 3: no longer finite: network\.backbone"):
        _train(config)
    run = load_run(config.path)
    assert run.epochs_done == 1 and not run.finished and list(run.probes) == [0, 1]
    _assert_all_finite(run.path / "checkpoint.safetensors")


def test_a_training_that_memory_does_not_hold_is_one_error_and_keeps_its_checkpoint(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = Trainer._forward_backward

    def larger(self: Trainer, batch: Any) -> Any:
        return passes(self, batch) if self._steps_done() < 4 else torch.empty(2**60, dtype=torch.uint8)

    with monkeypatch.context() as patched, pytest.raises(CorsdError, match=r"memory than is available.*; a smaller batch_size"):
        patched.setattr(Trainer, "_forward_backward", larger)
        _train(tiny())
    assert _train(tiny(resume=True)).finished


@pytest.mark.parametrize("changes", [{}, {"padding_mode": "zero"}, {"augmentation": "none"}])
def test_images_of_one_pixel_are_trained_on(tiny: Tiny, changes: dict[str, Any]) -> None:
    assert _train(tiny(image_size=1, epochs=1, **changes)).finished


def test_a_training_that_diverges_at_once_says_that_there_is_no_checkpoint(tiny: Tiny) -> None:
    with pytest.raises(CorsdError, match=r"training diverged at epoch 1, step \d: .*there was no checkpoint yet"):
        _train(tiny(lr=1e20))


# --- SIGKILL ---


def _killed_before_write(config: TrainConfig, number: int) -> int:
    """Train in a child that is killed before its `number`-th file stands under its name, with the neighbour written."""
    count, replace_ = itertools.count(1), os.replace

    def counted(source: Path, target: Path) -> None:
        if next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        replace_(source, target)

    def action() -> None:
        files.os.replace = counted  # type: ignore[assignment]
        _train(config)

    return _status_of_child(action)


WRITES = 3 + 2 * (2 + 3) + 2  # to begin; an epoch's checkpoints, metrics, snapshot, checkpoint; weights and test


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, WRITES + 1))
def test_killed_between_any_two_writes_it_resumes_bit_for_bit(tiny: Tiny, tiny_run: Run, number: int) -> None:
    """What is on disk changes only when a file is renamed: these are all the moments that there are."""
    config = tiny(validation_fraction=0.2, checkpoint_seconds=0.0, resume=True)
    assert _killed_before_write(config, number) == -signal.SIGKILL
    _assert_same_training(tiny_run, _train(config))


def test_the_moments_of_death_are_all_there_are(tiny: Tiny) -> None:
    config = tiny(validation_fraction=0.2, checkpoint_seconds=0.0)
    assert _killed_before_write(config, WRITES + 1) == 0 and load_run(config.path).finished


def test_killed_again_and_again_it_comes_to_the_end(tiny: Tiny) -> None:
    whole = _train(tiny("whole", method="byot"))
    config = tiny("cut", method="byot", checkpoint_seconds=0.0, resume=True)
    deaths = 0
    while _killed_before_write(config, 6) == -signal.SIGKILL:  # config, probe set, snapshot and two steps, or less to begin
        deaths += 1
        assert deaths < 10
    assert deaths >= 2
    _assert_same_training(whole, load_run(config.path))


KILLS = int(os.environ.get("CORSD_KILLS", "4"))  # of a sweep: CORSD_KILLS=50 python -m pytest ... -k killed_at_any_time
LONGER: dict[str, Any] = {"per_class": 40, "epochs": 4}  # 25 steps an epoch: a second in all
WORDS = [f"--{k.replace('_', '-')}={v}" for k, v in {**TINY, **LONGER, "probe_size": 50, "checkpoint_seconds": 0.02}.items()]


def _steps_saved(out: Path) -> int:
    file = out / "checkpoint.safetensors"
    position = json.loads(files.read_tensors(file)[1]["position"]) if file.is_file() else {"epoch": 0, "step": 0}
    return 25 * position["epoch"] + position["step"]


def _longer_in_child(out: Path, threads: int) -> int:
    """Train the longer run, or go on with it, in a process of its own: its id."""
    words = ["train", *WORDS, "--out", str(out), "--resume", "--quiet"]
    if threads > 1:  # not by a fork, and threads that wait for each other must not keep the processors from other processes
        environment = {**os.environ, **PATHS, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
        return os.posix_spawn(sys.executable, [sys.executable, "-m", "corsd_lib", *words], environment)
    pid = os.fork()
    if pid == 0:
        os._exit(_exit_status(lambda: cli.main(words)))
    return pid


def _killed_when(moment: Callable[[], bool], out: Path, threads: int) -> bool:
    """Kill the training at a moment; whether that came before its end, which it may not on a busy machine."""
    pid, end = _longer_in_child(out, threads), time.monotonic() + 300
    while not (moment() or (out / "test.json").is_file()):
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    return _awaited(pid) == -signal.SIGKILL


def _moments(out: Path) -> Iterator[Callable[[], bool]]:
    """When to kill: four moments of every run first, then any."""
    yield lambda: (out / "config.json").is_file()  # before the first checkpoint, or just after it
    yield lambda: _steps_saved(out) % 25 > 0  # within an epoch
    yield lambda: (out / "metrics.jsonl").is_file()  # where an epoch was recorded and the next begins
    yield lambda: _steps_saved(out) > 60
    draw = random.Random(out.name)
    while True:
        wanted, end = _steps_saved(out) + draw.randrange(25), time.monotonic() + draw.random()
        yield lambda wanted=wanted, end=end: _steps_saved(out) >= wanted and time.monotonic() > end  # type: ignore[misc]


@pytest.mark.slow
@pytest.mark.parametrize("threads,least", [(1, KILLS), (2, max(1, KILLS // 4))])
def test_killed_at_any_time_it_resumes_bit_for_bit(tmp_path: Path, threads: int, least: int) -> None:
    """As many kills as $CORSD_KILLS says, over as many runs as they take; with two threads, which cost a start, a quarter."""
    assert _awaited(_longer_in_child(tmp_path / "whole", threads)) == 0
    kills = tries = 0
    while kills < least:
        out = tmp_path / f"run{tries}"
        for moment in itertools.islice(_moments(out), threads - 1, None):  # the first kill of two threads is within an epoch
            kills += _killed_when(moment, out, threads)
            if kills == least or (out / "test.json").is_file():
                break
        tries += 1
        assert tries <= 3 + least
        assert _awaited(_longer_in_child(out, threads)) == 0
        _assert_same_training(load_run(tmp_path / "whole"), load_run(out))


@pytest.mark.slow
def test_the_hint_of_the_command_after_ctrl_c_goes_on(tmp_path: Path, tiny: Tiny, held: Path) -> None:
    out = tmp_path / "a run"
    words = [f"--{k.replace('_', '-')}={v}" for k, v in {**TINY, "probe_size": 50}.items()]
    process = _corsd("train", *words, "--method", "held_baseline", "--out", str(out))
    _wait_until(lambda: any(tmp_path.glob("held-*")), process)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0 and "Traceback" not in errors, errors
    assert "1 of 2 epochs" in output and not load_run(out).finished
    name, *words = shlex.split(output.splitlines()[-1].partition("continue with: ")[2])
    assert name == "corsd"
    held.touch()
    cli.main([*words, "--quiet"])
    _assert_same_training(_train(tiny("whole", method="held_baseline")), load_run(out))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_does_not_reach_the_decoding_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Ctrl-C of a terminal goes to the whole process group, and SIGTERM of Slurm to all processes of a job, the workers of a
    streamed data set among them."""
    _pictures(tmp_path / "pictures")
    monkeypatch.setattr("corsd_lib.datasets.folders.MEMORY_LIMIT", 0)
    sizes = ["--image-size", "16", "--width", "4", "--batch-size", "4", "--epochs", "2", "--probe-size", "4"]
    names = ["--data", f"folder:{tmp_path / 'pictures'}", "--accelerator", "cpu", "--method", "baseline", "--quiet"]

    def command(out: str) -> None:
        cli.main(["train", *names, *sizes, "--out", str(tmp_path / out), "--resume"])

    def interrupted() -> None:
        os.setsid()
        # The pause stands for the rest of a long step, in which the end of a worker would be noticed.
        _at_step(monkeypatch, 3, lambda: (os.killpg(0, number), time.sleep(0.5)))
        command("cut")

    assert _status_of_child(lambda: command("whole")) == 0
    assert _status_of_child(interrupted) == 0
    assert not load_run(tmp_path / "cut").finished
    assert _status_of_child(lambda: command("cut")) == 0
    _assert_same_training(load_run(tmp_path / "whole"), load_run(tmp_path / "cut"))


# --- several processes ---

# Terms of weight 0 too, whose parameters never get a gradient, and a checkpoint after every step.
NONE = [f"{k}=0" for k in ("auxiliary_intra", "auxiliary_inter", "auxiliary_kd_intra", "auxiliary_kd_inter", "logit_relation")]
SHARED = ["--devices=2", "--batch-size=8", "--per-class=5", "--epochs=2", "--checkpoint-seconds=0", "--validation-fraction=0.2"]


def _together(folder: Path, actions: Callable[[int], object]) -> list[tuple[int, str]]:
    """Run `actions(rank)` in two processes as torchrun starts them; exit status and output of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in (0, 1):
        pid = os.fork()
        if pid == 0:
            os.environ |= {"TORCHELASTIC_RUN_ID": "x", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
            with open(folder / f"output{rank}.txt", "w") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            os._exit(_exit_status(partial(actions, rank)))
        children.append(pid)
    status = [_awaited(pid) for pid in children]
    return [(s, (folder / f"output{rank}.txt").read_text()) for rank, s in enumerate(status)]


def test_two_processes_train_one_network_stop_and_resume_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def command(rank: int, *more: str) -> None:
        states: list[dict[str, Tensor]] = []
        run = Trainer.run

        def watched(self: Trainer, *arguments: Any) -> None:
            run(self, *arguments)
            rows = {f"rows{epoch}": torch.cat(self.source.indices(epoch)).sort().values for epoch in range(2)}
            states.append(dict(self.module.named_parameters()) | rows)

        monkeypatch.setattr(Trainer, "run", watched)
        more = ("--sampling", "plain", *more)  # in which no image comes twice
        words = ["train", *WORDS, *SHARED, *more, "--out", str(tmp_path / "run"), "--quiet", "--method-options", *NONE]
        cli.main(words)
        files.write_tensors(tmp_path / f"state{rank}", states[0])

    def interrupted(rank: int) -> None:
        if rank == 0:  # the signal reaches one process: the other must stop at the same step
            _at_step(monkeypatch, 2, lambda: signal.raise_signal(signal.SIGINT))
        command(rank)

    (first, told), (second, silent) = _together(tmp_path, interrupted)
    assert (first, second) == (0, 0), told + silent
    assert "continue with: " in told and "corsd on digits" not in silent  # one process reports
    assert _steps_saved(tmp_path / "run") == 2
    (first, told), (second, silent) = _together(tmp_path, lambda rank: command(rank, "--resume"))
    assert (first, second) == (0, 0), told + silent
    assert "exit 3" in told and "exit 3" not in silent
    mine, other = (files.read_tensors(tmp_path / f"state{rank}")[0] for rank in (0, 1))
    weights = [k for k in mine if not k.startswith("rows")]
    assert len(weights) > 50 and all(torch.equal(mine[k], other[k]) for k in weights)
    for rows in ("rows0", "rows1"):
        assert len(mine[rows]) == len(other[rows]) == 24 and not torch.isin(mine[rows], other[rows]).any()
    run = load_run(tmp_path / "run")
    assert run.finished and run.metrics["images"].tolist() == [48, 48] and run.metrics["step"].tolist() == [3, 6]
    assert all(v.isfinite().all() for v in _weights(run).values()) and np.isfinite(run.metrics.to_numpy()).all()
    assert not list(run.path.rglob(".*"))


def test_processes_agree_that_the_run_directory_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process looks at it; all end, with one error each."""

    def command(rank: int) -> None:
        if rank == 0:
            _at_step(monkeypatch, 2, lambda: (tmp_path / "run").rename(tmp_path / "moved"))
        cli.main(["train", *WORDS, *SHARED, "--out", str(tmp_path / "run"), "--quiet", "--method", "baseline"])

    (first, told), (second, other) = _together(tmp_path, command)
    assert (first, second) == (2, 2), told + other
    assert "run was moved or removed during the training" in told and "run was changed by another process" in other
    assert _steps_saved(tmp_path / "moved") == 1 and not (tmp_path / "run").exists()


def test_processes_agree_that_a_run_is_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process finds it under the lock; all end, with one error each."""
    hold, words = (
        launch._lock_directory,
        ["train", *WORDS, *SHARED, "--out", str(tmp_path / "run"), "--quiet", "--method", "baseline"],
    )

    def late(folder: Path) -> Any:
        folder.mkdir()
        (folder / "weights.safetensors").touch()
        return hold(folder)

    monkeypatch.setattr(launch, "_lock_directory", late)
    for status, output in _together(tmp_path, lambda rank: cli.main(words)):
        assert status == 2 and "run holds a weights.safetensors but no config.json: choose another folder (out=" in output


def test_processes_agree_that_a_training_diverged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One loss that is not finite stops all of them, with one error each and no deadlock."""
    method = METHODS["baseline"]
    forward = method.forward

    def spoiled(self: Any, out: Any, batch: Any) -> dict[str, Tensor]:
        parts = forward(self, out, batch)
        return {k: v * torch.nan for k, v in parts.items()} if os.environ["RANK"] == "1" and batch.progress > 0.4 else parts

    monkeypatch.setattr(method, "forward", spoiled)
    words = ["train", *WORDS, *SHARED, "--out", str(tmp_path / "run"), "--quiet", "--method", "baseline"]
    for status, output in _together(tmp_path, lambda rank: cli.main(words)):
        assert status == 2 and "corsd: error: training diverged at epoch 2, step 1: the loss is not finite" in output
    assert _steps_saved(tmp_path / "run") == 25  # 1 epoch, 0 steps
    _assert_all_finite(tmp_path / "run" / "checkpoint.safetensors")


@pytest.mark.slow
def test_the_command_starts_its_second_process_itself_as_torchrun_does(tmp_path: Path) -> None:
    words = ["train", *WORDS, *SHARED, "--out", str(tmp_path / "run"), "--quiet", "--method", "baseline"]
    output, errors = (process := _corsd(*words)).communicate(timeout=300)
    assert process.returncode == 0, errors
    assert output.count("exit 1") == 1  # one report
    words[words.index("--out") + 1] = str(tmp_path / "together")
    assert [status for status, _ in _together(tmp_path, lambda rank: cli.main(words))] == [0, 0]
    _assert_same_training(load_run(tmp_path / "together"), load_run(tmp_path / "run"))
    words[words.index("--out") + 1] = str(tmp_path / "torchrun")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "corsd_lib", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **PATHS})
    assert done.returncode == 0 and done.stdout.count("exit 1") == 1, done.stderr
    _assert_same_training(load_run(tmp_path / "together"), load_run(tmp_path / "torchrun"))


def test_auto_is_cuda_or_cpu_and_never_a_device_without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    for present, wanted in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda present=present: present)
        assert launch._accelerator("auto") == wanted
    assert launch._accelerator("mps") == "mps"


def test_an_infinite_gradient_under_clipping_ends_in_our_error(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """A raw error of the clipping would hide what happened, and under float16 such a step is only to be skipped."""
    original = torch.Tensor.backward

    def overflow(self: torch.Tensor, *arguments: object, **options: object) -> None:
        original(self * float("inf"), *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "backward", overflow)
    with pytest.raises(CorsdError, match="training diverged at epoch 1"):
        train(tiny(clip_norm=1.0, epochs=1), progress=False)


def test_the_padding_mode_reaches_the_images(tiny: Tiny, tmp_path: Path) -> None:
    configs = [tiny(epochs=1, padding_mode=mode, out=str(tmp_path / mode)) for mode in ("reflect", "zero")]
    reflect, zero = (_train(config).network().state_dict() for config in configs)
    assert any(not torch.equal(reflect[name], zero[name]) for name in reflect)


def test_cuda_graphs_change_nothing_where_there_is_no_gpu(tiny: Tiny) -> None:
    graphs = _train(tiny("graphs", cuda_graphs=True, accelerator="cpu"))
    assert _weights(graphs).keys() == _weights(_train(tiny("eager"))).keys()
    assert all(torch.equal(v, _weights(Run(tiny("eager").path))[k]) for k, v in _weights(graphs).items())


@pytest.mark.parametrize(
    "line", ["[1]", "1", '{"epoch": true}', '{"epoch": 1}', '{"epoch": 1, "step": 3, "loss.total": "abc"}'], ids=str
)
def test_a_resume_refuses_metrics_that_nothing_can_read(tiny: Tiny, line: str) -> None:
    stop = threading.Event()
    config = tiny(epochs=3)
    _train(config, stop=stop, on_epoch=lambda run: stop.set())
    file = config.path / "metrics.jsonl"
    file.write_text(line + "\n", encoding="utf-8")
    checkpoint = (config.path / "checkpoint.safetensors").read_bytes()
    with pytest.raises(CorsdError, match=r"metrics\.jsonl"):
        _train(replace(config, resume=True))
    assert (config.path / "checkpoint.safetensors").read_bytes() == checkpoint and file.read_text() == line + "\n"


def test_a_run_that_never_took_a_step_is_begun_anew(tiny: Tiny) -> None:
    """What is refused at the first step leaves a folder that the corrected command may use."""
    with pytest.raises(CorsdError, match="patch = 8 must be below the image side 8"):
        _train(tiny(method="ips", method_options={"patch": 8}))
    assert not (tiny().path / "checkpoint.safetensors").exists()
    assert _train(tiny(method="ips", method_options={"patch": 4})).config.method_options["patch"] == 4


def test_the_config_of_another_program_is_not_replaced(tiny: Tiny) -> None:
    tiny().path.mkdir()
    (tiny().path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CorsdError, match=r"config.json"):
        _train(tiny())
    assert (tiny().path / "config.json").read_text() == '{"model_type": "bert"}'
