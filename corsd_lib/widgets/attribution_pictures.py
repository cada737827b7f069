"""Attributions in explorers: signed maps as images, and sentences about scores and completeness."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from plotly.colors import hex_to_rgb
from torch import Tensor

from corsd_lib.attribution import Attribution
from corsd_lib.figures.style import PALETTE

COMPLETE = 0.05  # largest completeness gap at which a map accounts for the difference of the scores
RAISED, LOWERED = PALETTE[1], PALETTE[0]


def map_png(values: Tensor, limit: float, pixels: Tensor | None = None, side: int = 128) -> bytes:
    """PNG of a signed map (H, W): opacity grows with |value| / `limit`, the colour shows the sign; 0 is transparent.

    If `pixels`, a uint8 image (1 or 3, H, W), is given, the map is drawn over it in grey. The picture is about `side` pixels
    high.
    """
    share = (values / limit if limit else values).clamp(-1, 1)
    colours = torch.tensor([hex_to_rgb(RAISED), hex_to_rgb(LOWERED)], dtype=torch.float32)
    colour = colours[(share < 0).long()]  # (H, W, 3)
    rgba = torch.cat([colour, 255 * share.abs()[..., None]], dim=-1).round().byte().numpy()
    picture = Image.fromarray(rgba)
    if pixels is not None:
        grey = pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
        picture = Image.alpha_composite(Image.fromarray(grey).convert("L").convert("RGBA"), picture)
    factor, file = max(1, side // len(values)), io.BytesIO()
    size = (picture.width * factor, picture.height * factor)
    picture.resize(size, Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def limit_of(maps: list[Tensor]) -> float:
    """The absolute value that is drawn in full colour, the same for all `maps`.

    It is the 99th percentile of all absolute values, so that single pixels do not dominate.
    """
    return float(np.quantile(np.concatenate([m.abs().flatten().numpy() for m in maps]), 0.99))


def pair_finding(found: Attribution) -> str:
    """Sentence about the relation of a pair."""
    name, where = _score_of_pair(found)
    relation = f", a relation of {sigmoid(found.score):.2f}" if "logit" in name else ""
    return f"At {where} {found.exit} the two have the {name} {found.score:.2f}{relation}"


def _score_of_pair(found: Attribution) -> tuple[str, str]:
    """Name of the score of a pair, and the word "exit" or "stage" for the place where the score was computed."""
    name, _, rest = found.description.partition(" of a pair")
    return name.rpartition("the ")[2], "stage" if " at stage " in rest else "exit"


def exit_finding(found: Attribution, probabilities: Tensor, names: Sequence[str]) -> str:
    """Sentence about the prediction of an exit; `probabilities` (exits, classes) of the image, `names` of the classes."""
    here = probabilities[found.exit - 1]
    says, target = int(here.argmax()), int(found.target or 0)
    other = "" if says == target else f", and {names[target]} with {100 * here[target]:.1f} %"
    return f"Exit {found.exit} predicts {names[says]} with {100 * here[says]:.1f} %{other}"


def completeness(found: Attribution, names: Sequence[str]) -> str:
    """Text about the explained score and the completeness of the map. `names`: names of the classes."""
    what = _score_of_pair(found)[0] if found.target is None else f"logit of {names[found.target]}"
    score = f"Explained is the {what}, f(x) = {found.score:.2f}"
    if found.baseline_score is None or found.completeness_gap is None:
        return f"{score}. Grad-CAM has no baseline, so completeness cannot be checked."
    gap = found.completeness_gap
    verdict = "the map explains the difference" if gap <= COMPLETE else "above 5 %: use more steps before you interpret the map"
    return f"{score}, f(baseline) = {found.baseline_score:.2f}. Completeness gap {100 * gap:.2g} %: {verdict}."


def sigmoid(logit: float) -> float:
    return float(torch.tensor(logit).sigmoid())
