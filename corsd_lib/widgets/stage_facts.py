"""Texts of a `StageExplorer`, and the image that it shows first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F

from corsd_lib.analysis.embedding import NEIGHBOURS, StageEmbedding
from corsd_lib.analysis.exits import first_correct


def late_image(logits: Sequence[Tensor], labels: Tensor) -> int:
    """Index of the image with the most confident prediction among those that only the deepest exit classifies correctly.

    It is 0 if there is no such image.
    """
    if len(logits) == 1:
        return 0
    late = first_correct(logits, labels) == len(logits)
    sure = F.softmax(logits[-1], dim=1).amax(1)
    return int(torch.where(late, sure, 0.0).argmax())


def why_no_umap() -> str:
    """Sentences with the reason why PCA is shown instead of UMAP."""
    if find_spec("umap") is None:
        return "This is PCA: UMAP needs umap-learn, which is not installed (pip install 'corsd_lib[notebooks]')."
    return "This is PCA. UMAP shows neighbourhoods better: choose it as projection; its first fit may take some minutes."


def percent(share: float) -> str:
    """A share in [0, 1] as text in %; a dash for NaN."""
    return "–" if math.isnan(share) else f"{100 * share:.0f} %"


def quality(embedding: StageEmbedding, epoch: int) -> list[str]:
    """Texts about the quality of the projection for the `epoch`-th epoch (from 0): one text of three lines for every exit."""
    measures = (embedding.trustworthiness, embedding.knn_purity, embedding.embedding_purity)
    return [
        f"trustworthiness {trust:.2f} (at most 1)\npurity: {percent(here)} in the picture,"
        f"\n{percent(there)} in the embedding" + (": the picture separates them more" if here > there + 0.01 else "")
        for trust, here, there in zip(*(measure[epoch].tolist() for measure in measures), strict=True)
    ]


def finding(embedding: StageEmbedding, epoch: int) -> str:
    """Title for epoch `embedding.epochs[epoch]`: purity at the shallowest and the deepest exit."""
    purity = embedding.embedding_purity[epoch].tolist()
    near, deepest = min(NEIGHBOURS, len(embedding.labels) - 1), len(purity)
    last = f", {percent(purity[-1])} at exit {deepest}" if deepest > 1 else ""
    most = f" ({percent(embedding.purity_limit)} at most)" if embedding.purity_limit < 1 else ""
    return f"{percent(purity[0])} of the {near} nearest neighbours (in the embedding) have the same class at exit 1{last}{most}"
