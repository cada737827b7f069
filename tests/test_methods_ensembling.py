"""Methods whose soft targets are predictions of other images, or of another time."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from corsd_lib.errors import CorsdError
from corsd_lib.methods import Batch, build_method
from corsd_lib.network import ExitOutputs

CLASSES = 4


def outputs(count: int, seed: int = 1) -> ExitOutputs:
    generator = torch.Generator().manual_seed(seed)
    return ExitOutputs([], [torch.randn(count, 5, generator=generator)], [torch.randn(count, CLASSES, generator=generator)])


def make_batch(rows: list[int]) -> Batch:
    rows_ = torch.tensor(rows)
    return Batch(torch.zeros(len(rows), 3, 8, 8), rows_ % CLASSES, rows_)


def test_bake_teaches_each_image_the_ensemble_of_the_batch() -> None:
    method, batch, out = build_method("bake", omega=0.3, temperature=2.0), make_batch([0, 4, 1, 5, 2]), outputs(5)
    assert (method.sampling, method.samples_per_class, method.exits) == ("balanced", 4, "deepest")
    z, e = out.logits[-1], F.normalize(out.embeddings[-1], dim=1)
    affinity = (e @ e.T).masked_fill(torch.eye(5, dtype=torch.bool), -torch.inf).softmax(1)
    p = (z / 2).softmax(1)
    q = 0.7 * torch.linalg.inv(torch.eye(5) - 0.3 * affinity) @ p
    parts = method(out, batch)
    assert parts["ensemble_kd"].item() == pytest.approx(4 * (q * (q / p).log()).sum(1).mean().item(), rel=1e-4)
    assert parts["task"].item() == pytest.approx(F.cross_entropy(z, batch.labels).item(), rel=1e-5)


def test_dlb_learns_from_what_the_last_batch_said_of_the_same_images() -> None:
    method = build_method("dlb", temperature=2.0)
    assert (method.sampling, method.exits, method.cuda_graphs) == ("overlapping", "deepest", False)
    first, second = outputs(4, seed=1), outputs(4, seed=2)
    assert method(first, make_batch([0, 1, 2, 3]))["last_kd"].item() == 0.0  # nothing was said yet
    method.eval()
    method(outputs(4, seed=3), make_batch([2, 3, 4, 5]))  # nothing is remembered of it
    method.train()
    before, now = first.logits[-1], second.logits[-1].requires_grad_()
    parts = method(second, make_batch([3, 2, 4, 5]))
    p, q = (before[[3, 2]] / 2).softmax(1), (now[:2] / 2).softmax(1)
    assert parts["last_kd"].item() == pytest.approx(4 * (p * (p / q).log()).sum(1).mean().item(), rel=1e-4)
    assert parts["task"].item() == pytest.approx(F.cross_entropy(now, torch.tensor([3, 2, 0, 1])).item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(parts["last_kd"], now)
    assert gradient[:2].abs().sum() > 0 and not gradient[2:].any()
    assert method.indices.tolist() == [3, 2, 4, 5] and torch.equal(method.logits, now.detach())


def test_a_batch_that_repeats_nothing_has_nothing_to_learn_from() -> None:
    method = build_method("dlb")
    method(outputs(2), make_batch([0, 1]))
    logits = outputs(2, seed=2).logits[-1].requires_grad_()
    loss = method(ExitOutputs([], [], [logits]), make_batch([5, 6]))["last_kd"]
    assert loss.item() == 0 and not torch.autograd.grad(loss, logits)[0].any()


def test_dlb_remembers_what_other_processes_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = torch.tensor([[0.5, 0.0, 2.0, 1.0]])

    def gather(seen: list[object], mine: object) -> None:
        seen[:] = [mine, (torch.tensor([7]), theirs)]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    method = build_method("dlb")
    method(outputs(2), make_batch([0, 1]))
    assert method.indices.tolist() == [0, 1, 7] and torch.equal(method.logits[2:], theirs)


def test_a_share_of_the_others_of_one_is_refused() -> None:
    with pytest.raises(CorsdError, match=r"method 'bake': omega = 1\.0 must be at most 0\.99"):
        build_method("bake", omega=1.0)
    parts = build_method("bake", omega=0.99)(outputs(64), make_batch(list(range(64))))
    assert parts["ensemble_kd"].isfinite() and parts["ensemble_kd"] > 0
