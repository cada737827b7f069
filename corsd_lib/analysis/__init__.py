"""Analysis of runs: numbers from arrays, without plots.

relations.py     scores of pairs, class-level relations, orders of classes, quality and agreement
relation_use.py  relation scores as the probability of "same class", and class prototypes at inference
structure.py     inter- and intra-class structure, similarity of exits and of runs
embedding.py     projections of the probe images to two dimensions, and their quality
exits.py         accuracy, agreement, calibration, early exit
gradients.py     gradients of each term of the loss, by part of the network
retrieval.py     retrieval and few-shot metrics of embeddings and of scores of pairs
unseen.py        retrieval and few-shot metrics for classes that were held out of the training
images.py        images of a run
"""

from __future__ import annotations

from corsd_lib.analysis.embedding import (
    StageEmbedding,
    aligned_embedding,
    joint_projection,
    knn_purity,
    nearest_images,
    purity_limit,
    scaled_embedding,
    stage_embedding,
    trustworthiness,
)
from corsd_lib.analysis.exits import (
    cumulative_macs,
    early_exit,
    early_exit_curve,
    exit_accuracy,
    exit_agreement,
    first_correct,
    overthinking,
)
from corsd_lib.analysis.gradients import term_gradients
from corsd_lib.analysis.images import run_images, run_pixels
from corsd_lib.analysis.relation_use import prototype_accuracy, relation_calibration
from corsd_lib.analysis.relations import (
    attribute_agreement,
    class_order,
    class_relations,
    relation_agreement,
    relation_networks_at,
    relation_quality,
    same_class_auc,
    snapshot_scores,
    spearman,
    superclass_lift,
)
from corsd_lib.analysis.structure import (
    cka_matrix,
    class_structure,
    linear_cka,
    mean_angles,
    nearest_mean_accuracy,
    scatter,
    silhouette,
    variance_collapse,
)
from corsd_lib.analysis.unseen import unseen_class_report

__all__ = [
    "StageEmbedding",
    "aligned_embedding",
    "attribute_agreement",
    "cka_matrix",
    "class_order",
    "class_relations",
    "class_structure",
    "cumulative_macs",
    "early_exit",
    "early_exit_curve",
    "exit_accuracy",
    "exit_agreement",
    "first_correct",
    "joint_projection",
    "knn_purity",
    "linear_cka",
    "mean_angles",
    "nearest_images",
    "nearest_mean_accuracy",
    "overthinking",
    "prototype_accuracy",
    "purity_limit",
    "relation_agreement",
    "relation_calibration",
    "relation_networks_at",
    "relation_quality",
    "run_images",
    "run_pixels",
    "same_class_auc",
    "scaled_embedding",
    "scatter",
    "silhouette",
    "snapshot_scores",
    "spearman",
    "stage_embedding",
    "superclass_lift",
    "term_gradients",
    "trustworthiness",
    "unseen_class_report",
    "variance_collapse",
]
