"""A training, as it was asked for and as it lies on disk.

config.py     what was asked for: `TrainConfig`
run.py        what happened: `Run`, read when asked for, and what it remembers of its data
snapshots.py  what the network made of the probe images, epoch by epoch
data.py       the images of a configuration or of a run, and the batches of a training
"""

from __future__ import annotations

from corsd_lib.runs.config import PLACE_FIELDS, PROBE_FIELDS, SEEDS, TrainConfig, differences, is_seed
from corsd_lib.runs.data import (
    image_changes,
    load_data,
    run_data,
    splits_of,
    training_batches,
    unseen_class_names,
)
from corsd_lib.runs.run import DataInfo, Run, check_name, check_run, load_part, load_run, new_network, portable_name
from corsd_lib.runs.snapshots import Probes, Snapshot

__all__ = [
    "PLACE_FIELDS",
    "PROBE_FIELDS",
    "SEEDS",
    "DataInfo",
    "Probes",
    "Run",
    "Snapshot",
    "TrainConfig",
    "check_name",
    "check_run",
    "differences",
    "image_changes",
    "is_seed",
    "load_data",
    "load_part",
    "load_run",
    "new_network",
    "portable_name",
    "run_data",
    "splits_of",
    "training_batches",
    "unseen_class_names",
]
