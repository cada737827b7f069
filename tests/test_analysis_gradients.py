"""What reaches the network of every part of the loss, against one backward pass a part."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import Tensor

from corsd_lib.analysis import term_gradients
from corsd_lib.datasets import ImageArrays
from corsd_lib.errors import CorsdError
from corsd_lib.methods import METHODS, Batch
from corsd_lib.methods.classic import Baseline
from corsd_lib.runs import Run, TrainConfig, load_data, training_batches
from corsd_lib.training import train

Tiny = Callable[..., TrainConfig]


def _by_hand(run: Run, term: str, modules: Callable[[torch.nn.Module, torch.nn.Module], torch.nn.Module]) -> list[float]:
    """Norm of the weighted gradient of `term` and its cosine with cross-entropy's, one batch, parameter by parameter."""
    found = []
    for wanted in ((term,), ("task", "exit_ce")):
        network, method = run.network().train(), run.method().train()
        batch = next(training_batches(run.config, load_data(run.config))(run.config.epochs))
        batch = batch._replace(random=method.sample(batch))
        parts = method(network(method.transform_images(batch)), batch)
        sum(getattr(method.options, k) * parts[k] for k in wanted).backward()
        place = modules(network, method)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in place.parameters()]
        found.append([v for g in gradients for v in g.flatten().tolist()])
    one, labels = found
    norm, other = (math.sqrt(sum(v * v for v in values)) for values in found)
    return [norm, sum(a * b for a, b in zip(one, labels, strict=True)) / (norm * other)]


@pytest.mark.parametrize("term", ["task", "exit_kd", "auxiliary_inter", "relation_transfer"])
def test_norm_and_cosine_are_those_of_a_backward_pass(tiny_run: Run, term: str) -> None:
    table = term_gradients(tiny_run, batches=1).set_index(["term", "place"])
    places = {
        "backbone": lambda n, m: n.backbone,
        "stage 1": lambda n, m: n.backbone.stages[0],
        "exit 1": lambda n, m: n.exits[0],
    }
    for place, modules in places.items():
        if (term, place) != ("task", "exit 1"):
            assert table.loc[term, place].tolist() == pytest.approx(_by_hand(tiny_run, term, modules), rel=1e-3), place
    # the teacher is not taught, and labels do not reach relation networks
    for exit_kd_at in ("stage 3", "exit 3"):
        assert table.loc["exit_kd", exit_kd_at]["norm"] == 0 and math.isnan(table.loc["exit_kd", exit_kd_at]["cosine"])
    assert table.loc["task", "exit 1"]["norm"] == 0 == table.loc["task", "relation 1"]["norm"]
    assert table.loc["relation_margin", "relation 3"]["norm"] > 0


def test_the_squares_of_the_parts_of_the_backbone_add_up(tiny_run: Run) -> None:
    table = term_gradients(tiny_run, batches=1).pivot(index="term", columns="place", values="norm")
    inside = table[["stem", "stage 1", "stage 2", "stage 3"]].pow(2).sum(axis=1).pow(0.5)
    assert inside.tolist() == pytest.approx(table["backbone"].tolist(), rel=1e-4)


@pytest.mark.parametrize("name", ["baseline", "probe", "ps_kd", "corsd_release"])
def test_methods_of_every_kind_have_gradients_and_nothing_of_the_run_changes(tiny: Tiny, name: str) -> None:
    run = train(tiny(method=name, epochs=1, batch_size=12, sampling=METHODS[name].sampling), progress=False)
    before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
    table = term_gradients(run)
    assert (table["norm"] >= 0).all() and table.loc[table["term"] == "task", "norm"].max() > 0
    assert set(table["term"]) <= set(run.raw_config["method_options"])
    assert {file: file.read_bytes() for file in before} == before
    assert term_gradients(run).equals(table)


class Turned(Baseline):
    """The plain network, trained on images that stand on their heads."""

    name = "turned"

    def transform_images(self, batch: Batch) -> Tensor:
        return batch.images.flip(2)


def test_images_are_those_that_the_method_shows_the_network(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, Turned.name, Turned)
    upright = load_data(tiny())
    assert isinstance(upright.train, ImageArrays)
    turned = replace(upright, train=replace(upright.train, images=upright.train.images.flip(2)))
    tables: list[pd.DataFrame] = []
    for name, data in (("turned", upright), ("baseline", turned), ("baseline", upright)):
        run = train(tiny(f"{len(tables)}", method=name, augmentation="none", epochs=1), data=data, progress=False)
        tables.append(term_gradients(run, data))
    ours, theirs, others = tables
    assert not ours.equals(others)
    assert ours.equals(theirs)


def test_no_batch_is_refused_and_own_images_are_asked_for(tiny_run: Run, tiny: Tiny) -> None:
    with pytest.raises(CorsdError, match="batches = 0; allowed: 1 or more"):
        term_gradients(tiny_run, batches=0)
    data = replace(load_data(tiny()), name="mine")
    run = train(tiny(epochs=1), data=data, progress=False)
    with pytest.raises(CorsdError, match=r"was trained on data that was passed to train"):
        term_gradients(run)
    assert len(term_gradients(run, data))


def test_a_backbone_without_stages_of_its_own_has_no_stem(tiny: Tiny) -> None:
    pytest.importorskip("timm")
    run = train(tiny(network="timm:test_resnet", width=None, image_size=32, epochs=1), progress=False)
    found = set(term_gradients(run)["place"])
    assert "backbone" in found and not any(place.startswith(("stem", "stage")) for place in found)


def test_a_term_that_grows_over_the_training_has_its_whole_weight(tiny: Callable[..., TrainConfig]) -> None:
    norms = []
    for warmup in (0.0, 0.9):
        options = {"relation_kd": 1.0, "relation_warmup": warmup, "affinity": "labels"}
        run = train(tiny(f"warmup {warmup}", lr=1e-30, epochs=1, method_options=options), progress=False)  # the same weights
        table = term_gradients(run, batches=1).set_index(["term", "place"])
        norms.append(table.loc["relation_kd", "backbone"]["norm"])
    assert norms[0] == norms[1] > 0
