"""CORSD notebooks: train, compare and analyse self-distilled networks.

Names are imported on first use, so that `import corsd_lib` is fast. If the optional package of a name is missing, the name can
still be imported. Calling it raises `MissingPackage`.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

# Names that type checkers and editors see; a test checks that they are the names loaded lazily below. "as" marks an export.
if TYPE_CHECKING:  # ruff: isort: off
    from corsd_lib.analysis import (
        class_structure as class_structure,
        early_exit as early_exit,
        early_exit_curve as early_exit_curve,
        exit_accuracy as exit_accuracy,
        run_images as run_images,
        stage_embedding as stage_embedding,
        unseen_class_report as unseen_class_report,
    )
    from corsd_lib.attribution import attribute_exit as attribute_exit, attribute_pair as attribute_pair
    from corsd_lib.batches import Batch as Batch, BatchSource as BatchSource
    from corsd_lib.costs import count_macs as count_macs
    from corsd_lib.datasets import (
        ImageArrays as ImageArrays,
        ImageData as ImageData,
        ImageFiles as ImageFiles,
        load_dataset as load_dataset,
    )
    from corsd_lib.errors import CorsdError as CorsdError, MissingPackage as MissingPackage
    from corsd_lib.evaluation import Evaluation as Evaluation, evaluate as evaluate
    from corsd_lib.methods import (
        METHODS as METHODS,
        Method as Method,
        build_method as build_method,
        check_method as check_method,
        find_method as find_method,
        option as option,
    )
    from corsd_lib.network import (
        ExitOutputs as ExitOutputs,
        MultiExitNetwork as MultiExitNetwork,
        build_network as build_network,
    )
    from corsd_lib.relation import cosine_scores as cosine_scores, relation_matrix as relation_matrix
    from corsd_lib.runs import Run as Run, TrainConfig as TrainConfig, load_run as load_run, sample_run as sample_run
    from corsd_lib.sharing.classifier import ExitClassifier as ExitClassifier
    from corsd_lib.sharing.deploy import export_model as export_model
    from corsd_lib.sharing.export import (
        committed_run as committed_run,
        committed_summary as committed_summary,
        export_run as export_run,
    )
    from corsd_lib.sharing.hub import push_run as push_run
    from corsd_lib.sharing.report import write_report as write_report
    from corsd_lib.studies.cluster import Cluster as Cluster
    from corsd_lib.studies.compare import run_study as run_study
    from corsd_lib.studies.study import Study as Study
    from corsd_lib.studies.tuner import tune as tune
    from corsd_lib.training import Tracker as Tracker, train as train
    from corsd_lib.widgets import (
        AttributionExplorer as AttributionExplorer,
        ExitExplorer as ExitExplorer,
        RelationExplorer as RelationExplorer,
        StageExplorer as StageExplorer,
        TrainingMonitor as TrainingMonitor,
    )

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
    "runs": ("Run", "TrainConfig", "load_run", "sample_run"),
    "sharing.deploy": ("export_model",),
    "sharing.classifier": ("ExitClassifier",),
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


if not TYPE_CHECKING:  # hidden from type checkers, which would otherwise accept any name

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
