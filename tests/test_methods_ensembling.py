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


def test_a_share_of_the_others_of_one_is_refused() -> None:
    with pytest.raises(CorsdError, match=r"method 'bake': omega = 1\.0 must be below 1"):
        build_method("bake", omega=1.0)
