"""What the texts and colours of a `StageExplorer` are made of.

N images, D embedding dimensions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F

from corsd_lib.analysis.embedding import StageEmbedding, own_share
from corsd_lib.analysis.exits import first_right
from corsd_lib.figures.style import name_html


def tidiest(embedding: Tensor, groups: Tensor, count: int) -> list[int]:
    """The `count` groups of `groups` (N,) of whose images most of the 10 nearest in an embedding (N, D) are their own."""
    own = own_share(embedding, groups)
    purity = {int(g): own[groups == g].mean().item() for g in groups.unique()}
    return sorted(purity, key=lambda g: -purity[g])[:count]


def late_image(logits: Sequence[Tensor], labels: Tensor) -> int:
    """Position of the image that only the deepest of several exits gets right and is surest of; 0 where there is none."""
    if len(logits) == 1:
        return 0
    late = first_right(logits, labels) == len(logits)
    sure = F.softmax(logits[-1], dim=1).amax(1)
    return int(torch.where(late, sure, 0.0).argmax())


def why_no_umap() -> str:
    """Why PCA is shown, in sentences."""
    if find_spec("umap") is None:
        return "This is PCA: UMAP needs umap-learn, which is not installed (pip install 'corsd_lib[notebooks]')."
    return "This is PCA. UMAP shows neighbourhoods better: choose it as projection; its first fit takes up to some minutes."


def percent(share: float) -> str:
    """A share in [0, 1] in %; a dash for none."""
    return "–" if math.isnan(share) else f"{100 * share:.0f} %"


def quality(embedding: StageEmbedding, epoch: int) -> list[str]:
    """How far to trust the picture of the `epoch`-th epoch, three lines for every exit."""
    measures = (embedding.trustworthiness, embedding.knn_purity, embedding.embedding_purity)
    return [
        f"trustworthiness {trust:.2f} of 1\nof its class: {percent(here)} in the picture,"
        f"\n{percent(there)} in the embedding" + (": tidier than it is" if here > there + 0.01 else "")
        for trust, here, there in zip(*(measure[epoch].tolist() for measure in measures), strict=True)
    ]


def marked_html(marked: Sequence[int], labels: Tensor, logits: Sequence[Tensor], names: Sequence[str]) -> str:
    """How many images are marked, of which classes, and how many of them are right at each exit; how to mark, when none is."""
    if not marked:
        return "<p>Draw around points to mark these images everywhere; click a point to look at one.</p>"
    chosen = list(marked)
    counts = Counter(labels[chosen].tolist()).most_common()
    classes = ", ".join(f"{name_html(names[c])} {n}" for c, n in counts[:8])
    more = f" and {len(counts) - 8} more {'class' if len(counts) == 9 else 'classes'}" if len(counts) > 8 else ""
    right = [(z[chosen].argmax(1) == labels[chosen]).double().mean().item() for z in logits]
    at = ", ".join(f"{percent(share)} at exit {k}" for k, share in enumerate(right, 1))
    return f"<p><b>{len(chosen)} images marked</b>: {classes}{more}. Right: {at}.</p>"
