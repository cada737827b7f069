"""Learning-rate schedules and parameter groups."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from corsd_lib.runs import TrainConfig

__all__ = ["learning_rate", "parameter_groups"]


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Learning rate at step `step` (from 0) of a training with `steps` steps.

    It depends only on the step, so a resumed training needs no scheduler state. Schedules:

    - "onecycle": cosine from lr / 25 up to lr over the first 30 % of the steps, then cosine down to lr / 250,000, as in torch's
      OneCycleLR;
    - "cosine": cosine from lr down to 0 (arXiv 1608.03983);
    - "multistep": lr, divided by 10 after each fraction of the training in `milestones`;
    - "constant": lr.
    """
    share = step / steps
    if config.schedule == "onecycle":
        peak = 0.3 * steps - 1  # negative with 3 steps or fewer: then there is no warm-up, as in torch
        if step <= peak:
            return _cosine(config.lr / 25, config.lr, step / peak)
        return _cosine(config.lr, config.lr / 25e4, (step - peak) / (steps - 1 - peak))
    if config.schedule == "cosine":
        return _cosine(config.lr, 0.0, share)
    if config.schedule == "multistep":
        return config.lr * 0.1 ** sum(share >= milestone for milestone in config.milestones)
    return config.lr


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def parameter_groups(module: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """All parameters of `module` in groups for an optimiser, each with its weight decay.

    Without `decay_norm_and_bias`, one-dimensional parameters (weights of normalisation layers, and biases) have no weight
    decay.
    """
    parameters = list(module.parameters())
    if config.decay_norm_and_bias:
        return [{"params": parameters, "weight_decay": config.weight_decay}]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
