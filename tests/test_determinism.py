"""The same training gives the same bits, with one thread and with several."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from corsd_lib.batches import Batch, balanced_batches, step_generator, triplet_batches
from corsd_lib.errors import CorsdError
from corsd_lib.methods import METHODS, build_method
from corsd_lib.methods.classic import Baseline
from corsd_lib.methods.peers import PsKd
from corsd_lib.network import ExitOutputs, build_network
from corsd_lib.runs import Run, TrainConfig
from corsd_lib.training import train

pytestmark = pytest.mark.threads
Tiny = Callable[..., TrainConfig]

# Every method, and every variant of CORSD that computes its relations differently.
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"method": name} for name in METHODS},
    "corsd, maps": {"method": "corsd", "method_options": {"fusion": "maps"}},
    "corsd, blocks": {"method": "corsd", "method_options": {"block_pairs": 4096}},
    "corsd, shared": {"method": "corsd", "method_options": {"shared": True}},
    "corsd, cosine": {"method": "corsd", "method_options": {"relation": "cosine"}},
    "corsd, l2": {"method": "corsd", "method_options": {"relation": "l2"}},
    "corsd, relations that teach": {
        "method": "corsd",
        "method_options": {"relation_ce": 0.5, "relation_kd": 1.0, "relation_warmup": 0.5, "transfer": "row_kl"},
    },
}
# Several threads: batches of 128 images of 10 classes, enough pairs for PyTorch to share the work among them. One: small ones.
SHARED = torch.get_num_threads() > 1
IMAGES = {"per_class": 40, "batch_size": 128} if SHARED else {"per_class": 8, "batch_size": 32}
SIZE: dict[str, Any] = {**IMAGES, "epochs": 2, "probe_every": 0, "width": 8}


def _weights(run: Run) -> dict[str, Tensor]:
    return load_file(run.path / "weights.safetensors")


def _differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_of_a_batch_are_the_same_each_time(variant: str) -> None:
    options = VARIANTS[variant]
    kind = METHODS[options["method"]]
    torch.manual_seed(0)
    network = build_network("resnet8", 10, width=8, exits=kind.exits, image_size=8)
    method = build_method(options["method"], network=network, **options.get("method_options", {}))
    labels = torch.arange(10).repeat(40)
    batches = triplet_batches if kind.sampling == "triplet" else balanced_batches
    rows = batches(labels, IMAGES["batch_size"], step_generator(1))[0]
    images = torch.randn(len(rows), 3, 8, 8, generator=step_generator(2))
    batch = Batch(images, labels[rows], rows, kind.sampling, step_generator(3))
    batch = batch._replace(random=method.sample(batch))
    parameters = [p for p in (*network.parameters(), *method.parameters()) if p.requires_grad]
    buffers = {k: v.clone() for k, v in method.named_buffers()}

    def gradients() -> dict[str, Tensor]:
        for name, before in buffers.items():  # what a step leaves behind, such as class means
            parent, _, key = name.rpartition(".")
            setattr(method.get_submodule(parent), key, before.clone())
        total = method(network(method.transform_images(batch)), batch)["total"]
        found = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
        return {str(k): g for k, g in enumerate(found)}

    first = gradients()
    assert all(g.isfinite().all() for g in first.values())
    for _ in range(5 if SHARED else 1):
        assert not _differing(first, gradients())


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_training_gives_the_same_weights_twice(tiny: Tiny, variant: str) -> None:
    first, second = (train(tiny(name, **SIZE, **VARIANTS[variant]), progress=False) for name in ("first", "second"))
    assert not _differing(_weights(first), _weights(second))
    columns = [c for c in first.metrics if c != "seconds"]
    assert first.metrics[columns].equals(second.metrics[columns])


@pytest.mark.parametrize("method", ["ps_kd", "dlb", "corsd", "corsd_release"])
def test_a_resumed_training_gives_the_same_weights(tiny: Tiny, method: str) -> None:
    config = tiny("stopped", **SIZE, method=method)
    whole = train(replace(config, out=str(config.path.with_name("whole"))), progress=False)
    stop = threading.Event()
    unfinished = train(config, progress=False, stop=stop, on_epoch=lambda run: stop.set())
    assert unfinished.test is None
    resumed = train(replace(config, resume=True), progress=False)
    assert not _differing(_weights(whole), _weights(resumed))


def test_of_an_image_that_is_in_a_batch_twice_the_last_prediction_is_kept() -> None:
    method = PsKd()
    logits = torch.randn(6, 4, generator=step_generator(0))
    rows = torch.tensor([3, 0, 3, 1, 0, 3])
    method(ExitOutputs([], [], [logits]), Batch(torch.empty(6, 1, 1, 1), torch.tensor([0, 1, 0, 2, 1, 0]), rows))
    expected = logits.softmax(1).half()[[4, 3, 5]]
    assert torch.equal(method.past[[0, 1, 3]], expected) and not method.past[2].any()


@pytest.mark.parametrize("before", [False, True])
def test_deterministic_algorithms_are_on_in_the_training_only(tiny: Tiny, before: bool) -> None:
    seen: list[bool] = []
    torch.use_deterministic_algorithms(before, warn_only=before)
    try:
        train(
            tiny(deterministic=True),
            progress=False,
            on_epoch=lambda run: seen.append(
                torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
            ),
        )
        after = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen == [True, True] and after == (before, before)


def test_on_a_cpu_deterministic_changes_no_bit(tiny: Tiny, tiny_run: Run) -> None:
    run = train(tiny(deterministic=True, validation_fraction=0.2), progress=False)
    assert not _differing(_weights(run), _weights(tiny_run))


class Written(Baseline):
    """A method with an operation that has no deterministic algorithm."""

    name = "written"

    def loss_terms(self, out: ExitOutputs, batch: Batch) -> dict[str, Tensor]:
        torch.zeros(3).put_(torch.tensor([1, 1]), torch.ones(2))
        return super().loss_terms(out, batch)


def test_an_operation_without_a_deterministic_algorithm_is_one_error(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "written", Written)
    train(tiny("as it is", method="written", epochs=1), progress=False)
    with pytest.raises(CorsdError, match=r"deterministic = True: put_ .*use deterministic = False"):
        train(tiny(method="written", deterministic=True), progress=False)
    assert not torch.are_deterministic_algorithms_enabled()
