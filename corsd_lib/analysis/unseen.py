"""Retrieval and few-shot accuracy of a run on classes that were held out of its training, by exit and score."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from corsd_lib.analysis.retrieval import (
    SIMILARITIES,
    Episodes,
    FewShot,
    embedding_few_shot,
    embedding_retrieval,
    few_shot_accuracy,
    retrieval_metrics,
)
from corsd_lib.datasets import ImageData
from corsd_lib.errors import CorsdError, check_choice
from corsd_lib.evaluation import exit_embeddings
from corsd_lib.relation import VectorRelation
from corsd_lib.runs import Run, run_data

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["unseen_class_record", "unseen_class_report"]

WAYS, QUERIES = 5, 15
SHOTS = {"one_shot": 1, "five_shot": 5}
# CORSD's terms that train the deepest relation network, which then teaches the others
SCORE_TERMS = ("relation_margin", "relation_ce")


def unseen_class_report(
    run: Run, data: ImageData | None = None, *, data_root: str | None = None, images: str = "test"
) -> pd.DataFrame:
    """Retrieval and few-shot accuracy of the newest weights of a run on the classes that were held out of its training.

    One row for each exit and score. The scores are "cosine" and "euclidean" of the exit's embeddings, and "relation", the score
    of its relation network, if the method trains one on embeddings. Columns, in %:

    - `recall_at_1`, `map_at_r`, `r_precision`: see `retrieval_metrics`, with each image as a query against all others;
    - `one_shot`, `five_shot`: mean accuracy over 600 episodes. An episode has 5 classes, or all if fewer are held out; each
      class has 1 or 5 examples and 15 queries. NaN if too few classes have this number of images;
    - `one_shot_half`, `five_shot_half`: half the width of the 95 % confidence intervals of these means.

    `images`: "test", or "all" for train and test together, as is usual for CUB-200-2011. The images are loaded if `data` is not
    given. Raises `CorsdError` for unknown `images` and for data without held-out classes, and the errors of `run_data`.
    """
    import pandas as pd

    embeddings, labels = _embedded(run, data, data_root, images)
    return pd.DataFrame(_rows(run, embeddings, labels))


def unseen_class_record(run: Run, data_root: str | None = None) -> dict[str, Any]:
    """`unseen_class_report` of the test images as a dict of JSON values, with the settings of its episodes.

    Numbers are rounded to four decimals, and NaN is None. Raises the errors of `unseen_class_report`.
    """
    embeddings, labels = _embedded(run, None, data_root, "test")
    rows = [{k: _plain(v) for k, v in row.items()} for row in _rows(run, embeddings, labels)]
    classes = len(run.data.unseen_class_names)
    setting = {"ways": min(WAYS, classes), "queries": QUERIES, "episodes": Episodes.count}
    return {"classes": classes, "images": len(labels), **setting, "figures": rows}


def _plain(value: float | str) -> float | str | None:
    if not isinstance(value, float):
        return value
    return round(value, 4) if value == value else None


def _embedded(run: Run, data: ImageData | None, data_root: str | None, images: str) -> tuple[list[Tensor], Tensor]:
    """Embeddings of every exit, K x (N, D), and labels (N,) of images of the held-out classes."""
    check_choice("images", images, ("test", "all"))
    data = run_data(run, data, data_root)
    if data.unseen is None:
        raise CorsdError(
            f"data {data.name!r} of {run.path} has no held-out classes: train with hold_out_classes, or pass data that has some"
        )
    splits = [data.unseen.test] if images == "test" else [data.unseen.train, data.unseen.test]
    network = run.network()
    parts = [exit_embeddings(network, data, split, run.config.workers) for split in splits]
    return [torch.cat(e) for e in zip(*parts, strict=True)], torch.cat([split.labels for split in splits])


def _rows(run: Run, embeddings: list[Tensor], labels: Tensor) -> list[dict[str, Any]]:
    """Rows of the report, from the embeddings (N, D) of each exit and the labels (N,)."""
    networks = _trained_relations(run)
    rows = []
    for k, vectors in enumerate(embeddings):
        for name in SIMILARITIES:
            few_shots = _few_shots(partial(embedding_few_shot, vectors, labels, similarity=name), labels)
            rows.append({"exit": k + 1, "score": name, **embedding_retrieval(vectors, labels, name), **few_shots})
        if networks:
            with torch.no_grad():
                scores = networks[k].scores(vectors)
            few_shots = _few_shots(partial(few_shot_accuracy, scores, labels), labels)
            rows.append({"exit": k + 1, "score": "relation", **retrieval_metrics(scores, labels), **few_shots})
    return rows


def _trained_relations(run: Run) -> list[VectorRelation]:
    """Relation networks on embeddings, one for each exit; [] if there are none, or if no loss term trains them."""
    method = run.method()
    networks = [network for network in method.relation_networks() if isinstance(network, VectorRelation)]
    weights = [getattr(method.options, name) for name in SCORE_TERMS if hasattr(method.options, name)]
    return networks if any(weights) or not weights else []


def _few_shots(classify: Callable[..., FewShot], labels: Tensor) -> dict[str, float]:
    """Few-shot columns of a row of the report.

    `classify(episodes=...)` returns the mean accuracy over episodes and half the width of its confidence interval. `labels`
    (N,). If too few classes have enough images for a number of shots, its columns are NaN.
    """
    sizes = torch.bincount(labels)
    ways, found = min(WAYS, len(sizes)), dict[str, float]()
    for name, shots in SHOTS.items():
        enough = int((sizes >= shots + QUERIES).sum()) >= ways
        result = classify(episodes=Episodes(ways, shots, QUERIES)) if enough else FewShot(float("nan"), float("nan"))
        found |= {name: result.accuracy, f"{name}_half": result.half}
    return found
