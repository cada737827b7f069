"""Trainings on a GPU: every method, every precision, stopped and resumed. Skipped where there is none."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from corsd_lib.evaluation import evaluate
from corsd_lib.methods import METHODS
from corsd_lib.runs import Run, TrainConfig, load_data
from corsd_lib.training import Trainer, train
from corsd_lib.training.cuda_graphs import GraphedForwardBackward

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and here is none")
Tiny = Callable[..., TrainConfig]


@pytest.fixture
def on_gpu(tiny: Tiny) -> Tiny:
    """The tiny configuration, for a GPU."""
    return lambda name="run", **changes: tiny(name, **{"accelerator": "cuda", **changes})


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_in_every_precision(on_gpu: Tiny, method: str, precision: str) -> None:
    run = train(on_gpu(method=method, precision=precision, channels_last=True, batch_size=24), progress=False)
    assert run.provenance["device"] == torch.cuda.get_device_name()
    assert run.metrics["loss.total"].map(math.isfinite).all() and len(run.metrics) == 2
    assert all(math.isfinite(e["cross_entropy"]) for e in run.test["exits"])


def test_the_first_epoch_is_that_of_a_cpu(on_gpu: Tiny) -> None:
    config = on_gpu("gpu", epochs=1, probe_every=1)
    on_cpu = train(replace(config, out=str(config.path.with_name("cpu")), accelerator="cpu"), progress=False)
    ours = train(config, progress=False)
    for name in [c for c in ours.metrics if c.startswith("loss.")]:
        assert ours.metrics[name].iloc[0] == pytest.approx(on_cpu.metrics[name].iloc[0], rel=2e-2, abs=1e-3), name


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("method", ["corsd", "ps_kd", "dlb"])
def test_a_stopped_training_ends_as_one_that_was_not(on_gpu: Tiny, method: str, precision: str) -> None:
    config = on_gpu("stopped", method=method, precision=precision, epochs=3)
    whole = train(replace(config, out=str(config.path.with_name("whole"))), progress=False)
    stop = threading.Event()
    unfinished = train(config, progress=False, stop=stop, on_epoch=lambda run: stop.set())
    assert unfinished.test is None and unfinished.epochs_done == 1
    resumed = train(replace(config, resume=True), progress=False)
    a, b = (load_file(run.path / "weights.safetensors") for run in (whole, resumed))
    for name in a:  # atomic sums on a GPU come in any order: close, not equal
        torch.testing.assert_close(a[name], b[name], rtol=0.05, atol=0.02, msg=name)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("method", METHODS)
def test_a_replayed_step_is_the_step_that_was_recorded(on_gpu: Tiny, method: str, precision: str) -> None:
    slowly = {"epochs": 4, "lr": 0.001}  # RKD soon strays
    config = on_gpu("eager", method=method, precision=precision, channels_last=True, batch_size=20, **slowly)
    graphs = replace(config, out=str(config.path.with_name("graphs")), cuda_graphs=True)
    still = replace(config, out=str(config.path.with_name("still")), lr=1e-12)
    eager, replayed, unmoved = (train(c, progress=False) for c in (config, graphs, still))
    for name in [c for c in eager.metrics if c.startswith("loss.")]:
        assert replayed.metrics[name].tolist() == pytest.approx(eager.metrics[name].tolist(), rel=0.05, abs=2e-3), name
    # At this learning rate losses hardly change: that replayed steps train at all is seen in the weights.
    assert _distance(replayed, eager) < 0.3 * _distance(unmoved, eager)


def _distance(run: Run, other: Run) -> float:
    """Euclidean distance of what two runs have trained."""
    a, b = (load_file(r.path / "weights.safetensors") for r in (run, other))
    trained = [n for n, w in a.items() if w.is_floating_point() and "running" not in n and "class_mean" not in n]
    return sum((a[n] - b[n]).float().square().sum().item() for n in trained) ** 0.5


def test_batches_of_one_shape_are_recorded_and_rare_ones_are_not(on_gpu: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[GraphedForwardBackward] = []
    graphed = Trainer._with_graphs
    monkeypatch.setattr(Trainer, "_with_graphs", lambda self: made.append(graphed(self)) or made[-1])
    train(on_gpu(cuda_graphs=True, epochs=3, batch_size=12), progress=False)  # three batches of 12 and one of 4 images an epoch
    (passes,) = made
    assert [shapes[0][0] for shapes in passes.recorded] == [12]
    assert sorted(passes.seen.values()) == [3, 9]


def test_weights_of_a_gpu_are_evaluated_alike_on_a_cpu(on_gpu: Tiny) -> None:
    run = train(on_gpu(epochs=3), progress=False)
    network, data = run.network(), load_data(run.config)
    on_cpu, on_cuda = (evaluate(network.to(device), data) for device in ("cpu", "cuda"))
    for a, b in zip(on_cpu.exits, on_cuda.exits, strict=True):
        assert a["top1"] == pytest.approx(b["top1"], abs=0.3) and a["cross_entropy"] == pytest.approx(
            b["cross_entropy"], rel=1e-3
        )
