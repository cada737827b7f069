"""Training: from a configuration to a run on disk, on one device or several, with stop and resume at any time.

launch.py       `train`: devices, the lock of the run directory, the images
trainer.py      the training loop and the files that it writes
checkpoint.py   what a resume needs, and whether a file is a checkpoint of this training
optimizer.py    learning rate of each step, and groups of parameters
probe_set.py    the images of the snapshots
cuda_graphs.py  steps recorded as CUDA graphs
determinism.py  deterministic algorithms, if requested
trackers.py     metrics in TensorBoard, Weights & Biases, MLflow or a CSV file (sinks.py: one class for each)
stop.py         Ctrl-C and SIGTERM
"""

from __future__ import annotations

from corsd_lib.training.launch import train
from corsd_lib.training.stop import stop_request
from corsd_lib.training.trackers import Tracker
from corsd_lib.training.trainer import Trainer

__all__ = ["Tracker", "Trainer", "stop_request", "train"]
