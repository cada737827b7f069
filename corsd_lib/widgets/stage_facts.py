"""What the texts and colours of a `StageExplorer` are made of: tidy groups, and an image to begin with.

N images, D embedding dimensions.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F

from corsd_lib.analysis.embedding import own_share
from corsd_lib.analysis.exits import first_right
from corsd_lib.figures.style import unique_labels


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


def plain(names: Sequence[str]) -> list[str]:
    """Names as they are, a number added where one repeats."""
    return [html.unescape(name) for name in unique_labels(names)]


def percent(share: float) -> str:
    """A share in [0, 1] in %; a dash for none."""
    return "–" if math.isnan(share) else f"{100 * share:.0f} %"
