"""Runs: the configuration of a training, and its result on disk.

config.py     `TrainConfig`
run.py        `Run`, and the facts about its data that it stores
snapshots.py  outputs of the network on the probe images, by epoch
hub.py        runs of the Hugging Face Hub
samples.py    sample runs, which come with the repository: found on this machine or downloaded
data.py       the images of a configuration or of a run, and training batches
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
from corsd_lib.runs.run import (
    DataInfo,
    Run,
    check_name,
    check_run,
    check_snapshots,
    load_part,
    load_run,
    new_network,
    portable_name,
)
from corsd_lib.runs.samples import sample_run
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
    "check_snapshots",
    "differences",
    "image_changes",
    "is_seed",
    "load_data",
    "load_part",
    "load_run",
    "new_network",
    "portable_name",
    "run_data",
    "sample_run",
    "splits_of",
    "training_batches",
    "unseen_class_names",
]
