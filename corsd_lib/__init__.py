"""CORSD notebooks: train, compare and analyse self-distilled networks.

Names are imported on first use, so that `import corsd_lib` is fast. A name that needs an optional package exists without that
package too, and raises `MissingPackage` when it is called.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import Any

_HOME = {
    "analysis": (
        "class_structure",
        "early_exit",
        "early_exit_curve",
        "exit_accuracy",
        "run_images",
        "stage_embedding",
        "unseen_class_report",
    ),
    "attribution": ("attribute_exit", "attribute_pair"),
    "batches": ("Batch", "BatchSource"),
    "costs": ("count_macs",),
    "datasets": ("ImageArrays", "ImageData", "ImageFiles", "load_dataset"),
    "errors": ("CorsdError", "MissingPackage"),
    "evaluation": ("Evaluation", "evaluate"),
    "methods": ("METHODS", "Method", "build_method", "check_method", "find_method", "option"),
    "network": ("ExitOutputs", "MultiExitNetwork", "build_network"),
    "relation": ("cosine_scores", "relation_matrix"),
    "runs": ("Run", "TrainConfig", "load_run"),
    "sharing.deploy": ("export_model",),
    "sharing.export": ("committed_run", "committed_summary", "export_run"),
    "sharing.hub": ("push_run",),
    "sharing.report": ("write_report",),
    "studies.cluster": ("Cluster",),
    "studies.compare": ("run_study",),
    "studies.study": ("Study",),
    "studies.tuner": ("tune",),
    "training": ("Tracker", "train"),
    "widgets": ("AttributionExplorer", "ExitExplorer", "RelationExplorer", "StageExplorer", "TrainingMonitor"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *_MODULE_OF]

try:
    __version__ = metadata.version("corsd_lib")
except metadata.PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'corsd_lib' has no attribute {name!r}")
    from corsd_lib.errors import MissingPackage, stand_in

    try:
        value = getattr(import_module(f"corsd_lib.{_MODULE_OF[name]}"), name)
    except MissingPackage as error:
        return stand_in(name, error)  # not cached: the package may be installed later
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
