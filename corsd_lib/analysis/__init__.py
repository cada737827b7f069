"""Analysis of runs: numbers from arrays, without plots.

relations.py     scores of pairs, class-level relations, orders of classes, quality and agreement
relation_use.py  calibration of scores as P(same class), and class prototypes at inference
structure.py     inter- and intra-class structure, similarity of exits and of runs
embedding.py     projections of the probe images to two dimensions, and their quality
exits.py         accuracy, agreement, calibration, early exit
gradients.py     gradients of each term of the loss, by part of the network
retrieval.py     retrieval and few-shot figures of embeddings and of scores of pairs
unseen.py        these figures for classes that were held out of the training
images.py        images of a run
"""

from __future__ import annotations

from corsd_lib.analysis.embedding import StageEmbedding, stage_embedding
from corsd_lib.analysis.exits import early_exit, early_exit_curve, exit_accuracy
from corsd_lib.analysis.gradients import term_gradients
from corsd_lib.analysis.images import run_images, run_pixels
from corsd_lib.analysis.relation_use import prototype_accuracy, relation_calibration
from corsd_lib.analysis.relations import class_order, class_relations, relation_quality, snapshot_scores
from corsd_lib.analysis.structure import class_structure
from corsd_lib.analysis.unseen import unseen_class_report

__all__ = [
    "StageEmbedding",
    "class_order",
    "class_relations",
    "class_structure",
    "early_exit",
    "early_exit_curve",
    "exit_accuracy",
    "prototype_accuracy",
    "relation_calibration",
    "relation_quality",
    "run_images",
    "run_pixels",
    "snapshot_scores",
    "stage_embedding",
    "term_gradients",
    "unseen_class_report",
]
