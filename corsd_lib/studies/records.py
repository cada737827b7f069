"""The record of a finished training: a small JSON object that remains when the run directory is deleted."""

from __future__ import annotations

from typing import Any

from corsd_lib.costs import training_macs
from corsd_lib.errors import CorsdError
from corsd_lib.readers import read_metrics
from corsd_lib.runs import PLACE_FIELDS, Run, portable_name

__all__ = ["Record", "make_record"]

Record = dict[str, Any]  # see `make_record`


def make_record(run: Run, variant: str, seed: int) -> Record:
    """Record of a finished run: configuration, test results, images, cost, time and provenance; without paths of this machine.

    It takes a few kilobytes. Raises `CorsdError` for a run that is not finished.
    """
    epochs = read_metrics(run.path / "metrics.jsonl")
    if not epochs or run.test is None:
        raise CorsdError(f"{run.path} has no {'evaluation on test' if epochs else 'metrics of an epoch'}: it is not finished")
    images = sum(epoch["images"] for epoch in epochs)
    return {
        "row": variant,  # name of this field in the first studies, unchanged for compatibility
        "seed": seed,
        "config": {k: v for k, v in run.raw_config.items() if k not in PLACE_FIELDS} | {"data": portable_name(run.config.data)},
        "test": {**run.test, "data": portable_name(run.data.name)},
        "train_top1": [v for k, v in epochs[-1].items() if k.startswith("train_top1.")],
        "images": images,
        "macs": round(images * training_macs(run.config, run.data)),
        "seconds": round(sum(epoch["seconds"] for epoch in epochs), 1),
        "provenance": run.provenance,
        **_unseen(run),
        **({"resumed": run.resumed} if run.resumed else {}),
    }


def _unseen(run: Run) -> dict[str, Any]:
    """The field `unseen` of a record, with the results on held-out classes; {} if no class was held out."""
    from corsd_lib.analysis.unseen import unseen_class_record

    return {"unseen": unseen_class_record(run)} if run.config.hold_out_classes else {}
