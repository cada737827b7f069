"""The configuration of a training of seconds, which many tests share."""

from __future__ import annotations

from typing import Any

TINY: dict[str, Any] = {
    "data": "digits",
    "per_class": 5,
    "width": 4,
    "epochs": 2,
    "batch_size": 16,  # 3 steps an epoch, the fourth is incomplete
    "lr": 0.05,
    "accelerator": "cpu",
    "probe_size": 50,
}
