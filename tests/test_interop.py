"""The losses and methods in the loops of others, as docs/README.md shows them."""

from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

DOCS = (Path(__file__).parents[1] / "docs" / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", DOCS, flags=re.DOTALL)


def _run(contains: str) -> dict[str, Any]:
    """The names that the only block with `contains` leaves."""
    (code,) = [block for block in BLOCKS if contains in block]
    names: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        exec(code, names)
    return names


def test_the_terms_train_a_network_in_plain_pytorch() -> None:
    names = _run("load_digits")
    with torch.no_grad():
        shallow = names["parts"][0](names["images"]).relu()
        student, teacher = names["parts"][2](shallow), names["parts"][3](names["parts"][1](shallow).relu())
    for logits in (student, teacher):
        assert (logits.argmax(1) == names["labels"]).float().mean() > 0.5  # after one epoch; chance is 0.1


@pytest.mark.slow
def test_the_terms_train_a_model_of_timm() -> None:
    pytest.importorskip("timm", reason="needs timm of the extra timm")
    names = _run("timm.create_model")
    assert all(p.grad is not None and p.grad.isfinite().all() for p in names["heads"].parameters())
    assert names["loss"].item() < 2 * torch.tensor(10.0).log().item()  # below chance at both heads


@pytest.mark.slow
def test_a_method_trains_in_a_lightning_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning", reason="needs lightning, which make installs for this test")
    monkeypatch.chdir(tmp_path)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hints about workers and logging intervals
        names = _run("LightningModule")
    metrics, model = names["trainer"].callback_metrics, names["model"]
    assert {"total", "task", "exit_kd", "relation_transfer"} <= metrics.keys()
    assert all(value.isfinite() for value in metrics.values())
    assert metrics["task"] < torch.tensor(10.0).log()
    trained = {id(p) for group in model.optimizers().param_groups for p in group["params"]}
    assert trained == {id(p) for part in (model.network, model.method) for p in part.parameters()}
