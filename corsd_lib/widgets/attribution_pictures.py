"""What explorers show and say of attributions: signed maps as pictures, scores and checks as sentences."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import torch
from PIL import Image
from plotly.colors import hex_to_rgb
from torch import Tensor

from corsd_lib.attribution import Attribution
from corsd_lib.errors import CorsdError
from corsd_lib.figures.style import PALETTE, short_name
from corsd_lib.runs import Run
from corsd_lib.widgets.base import cell_by_cell
from corsd_lib.widgets.probe_images import ProbeImages, image_html, image_source, png_of

RAISED, LOWERED = PALETTE[1], PALETTE[0]
_LEGEND = (
    f'<span style="color:{RAISED}">■</span> raised the score, <span style="color:{LOWERED}">■</span> lowered it; '
    "one scale for both maps"
)


def map_png(values: Tensor, limit: float, pixels: Tensor | None = None, side: int = 128) -> bytes:
    """PNG of a signed map (H, W): the more of `limit` a value is, the more of its sign's colour; 0 is transparent.

    Over `pixels`, a uint8 image (1 or 3, H, W), it is drawn on that image in grey. About `side` pixels high.
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
    """The value that gets the full colour, one for all maps: the 99th percentile, so that one pixel does not hide the rest."""
    return float(np.quantile(np.concatenate([m.abs().flatten().numpy() for m in maps]), 0.99))


def pair_attribution_html(run: Run, first: int, second: int, exit: int, images: ProbeImages) -> str:
    """HTML: probe images `first` and `second`, and which pixels of either made the relation at `exit` (1 = shallowest).

    Integrated gradients from the mean colour; the trained relation, or the cosine where the method has none. Beside the
    pictures stand the score, the baselines' score and the completeness gap. Where something is missing (data, weights) a
    sentence says what: nothing is raised for a run.
    """
    from corsd_lib.attribution import attribute_run_pair

    if images.missing:
        return f"<p>{html.escape(images.missing)}</p>"
    try:
        of_both = attribute_run_pair(run, first, second, exit, images.data)
        pixels = images.pixels([first, second])
    except CorsdError as error:
        return f"<p>No attribution here: {html.escape(str(error))}</p>"
    names = [short_name(run.data.class_names[run.probes.labels[i]]) for i in (first, second)]
    limit = limit_of([a.map for a in of_both])
    rows = (
        _picture_row(f"{which} image, {name} (probe {position})", image, a.map, limit)
        for which, name, position, image, a in zip(("first", "second"), names, (first, second), pixels, of_both, strict=True)
    )
    said = f"{pair_finding(of_both[0])}. {completeness(of_both[0], [short_name(name) for name in run.data.class_names])}"
    return f"<div>{''.join(rows)}<p>{_LEGEND}</p><p>{said}</p></div>"


def _picture_row(what: str, pixels: Tensor, values: Tensor, limit: float) -> str:
    pictures = [
        image_html(png_of(pixels, max(1, 128 // pixels.shape[1])), what),
        image_html(map_png(values, limit), f"signed map of the {what}"),
        image_html(map_png(values, limit, pixels), f"signed map over the {what}"),
    ]
    return f'<figure style="margin:0 0 8px"><figcaption>{html.escape(what)}</figcaption>{" ".join(pictures)}</figure>'


def pair_finding(found: Attribution) -> str:
    """What the relation of a pair is, with every number named."""
    name, where = _score_of_pair(found)
    relation = f", a relation of {sigmoid(found.score):.2f}" if "logit" in name else ""
    return f"At {where} {found.exit} the two have the {name} {found.score:.2f}{relation}"


def _score_of_pair(found: Attribution) -> tuple[str, str]:
    """What the score of a pair is called, and whether it is of an exit or of a stage."""
    name, _, rest = found.what.partition(" of a pair")
    return name.rpartition("the ")[2], "stage" if " at stage " in rest else "exit"


def exit_finding(found: Attribution, probabilities: Tensor, names: Sequence[str]) -> str:
    """What an exit decided; `probabilities` (exits, classes) of the image."""
    here = probabilities[found.exit - 1]
    says, target = int(here.argmax()), int(found.target or 0)
    other = "" if says == target else f", and {names[target]} with {100 * here[target]:.1f} %"
    return f"Exit {found.exit} says {names[says]} with {100 * here[says]:.1f} %{other}"


def completeness(found: Attribution, names: Sequence[str]) -> str:
    """What score is explained, and how much of it the map accounts for; `names` of the classes."""
    what = _score_of_pair(found)[0] if found.target is None else f"logit of {names[found.target]}"
    score = f"Explained is the {what}, f(x) = {found.score:.2f}"
    if found.baseline_score is None or found.completeness_gap is None:
        return f"{score}. Grad-CAM has no baseline, and so no check of completeness."
    gap = found.completeness_gap
    verdict = "the map accounts for the difference" if gap <= 0.05 else "above 5 %, take more steps before reading the map"
    return f"{score}, f(baseline) = {found.baseline_score:.2f}. Completeness gap {100 * gap:.2g} %: {verdict}."


def as_columns(figure: go.Figure) -> go.Figure:
    """The same figure for a FigureWidget: images as PNGs, maps as columns, which travel in binary."""
    for trace in figure.data:
        if trace.type == "image":
            pixels = torch.from_numpy(np.array(trace.z, np.uint8)).permute(2, 0, 1)
            trace.update(source=image_source(png_of(pixels)), z=None)
        elif trace.type == "heatmap":
            z = np.asarray(trace.z, np.float32)
            trace.update(x=np.arange(z.shape[1], dtype=np.float32), y=np.arange(z.shape[0], dtype=np.float32))
            cell_by_cell(trace)
    return figure


def sigmoid(logit: float) -> float:
    return float(torch.tensor(logit).sigmoid())
