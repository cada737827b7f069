"""The two tests that a person should make before believing a map of pixels, each behind a button."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets as ipw
import numpy as np
import plotly.graph_objects as go
from torch import Tensor

from corsd_lib.attribution import Attribution, DeletionCurve, Randomisation, deletion_curve, randomisation_check
from corsd_lib.errors import CorsdError
from corsd_lib.figures.style import GREY, PALETTE, set_title, template
from corsd_lib.network import MultiExitNetwork

DRAWS = 5  # of random weights: small maps vary much
ALIKE = 0.3  # mean rank correlation above which a map of an untrained network looks the same (ours)
BETTER = 0.8  # share of the random area below which a map found more than chance does (ours)


@dataclass(frozen=True)
class Checked:
    """What is tested: the attribution of an exit, and all that made it."""

    network: MultiExitNetwork
    image: Tensor
    found: Attribution
    target_name: str
    options: dict[str, Any]  # method, steps, baseline and normalise of `attribute_exit`


class SanityChecks(ipw.VBox):
    """Two buttons; their result as a sentence with a small plot, in `sentence` and `figure` (None before).

    `subject()` gives what is tested, or a sentence why there is nothing; `busy` is an explorer's sign.
    """

    def __init__(self, subject: Callable[[], Checked | str], busy: Callable[[str], Any]) -> None:
        self._subject, self._busy = subject, busy
        self.figure: go.FigureWidget | None = None
        wide = {"width": "auto"}
        self.weights_button = ipw.Button(description="check: draw the weights anew", icon="random", layout=wide)
        self.deletion_button = ipw.Button(description="check: delete its pixels", icon="eraser", layout=wide)
        self.sentence = ipw.HTML()
        self._fixed = [ipw.HBox([self.weights_button, self.deletion_button]), self.sentence]
        super().__init__(self._fixed)
        self.weights_button.on_click(lambda _: self._make("drawing weights anew", weights_check))
        self.deletion_button.on_click(lambda _: self._make("deleting pixels", deletion_check))

    def clear(self) -> None:
        """Forget a result: it was of another map."""
        self.sentence.value = ""
        self._show(None)

    def _make(self, what: str, check: Callable[[Checked], tuple[str, go.Figure]]) -> None:
        self.clear()
        subject = self._subject()
        if isinstance(subject, str):
            self.sentence.value = html.escape(subject)
            return
        with self._busy(what):
            try:
                sentence, figure = check(subject)
            except CorsdError as error:
                self.sentence.value = html.escape(str(error))
                return
        self.sentence.value = html.escape(sentence)
        self._show(go.FigureWidget(figure))

    def _show(self, figure: go.FigureWidget | None) -> None:
        old, self.figure = self.figure, figure
        self.children = [*self._fixed, *([figure] if figure else [])]
        if old is not None:
            old.close()


def weights_check(subject: Checked) -> tuple[str, go.Figure]:
    """Sentence and plot of `randomisation_check` for some draws of the weights."""
    found = subject.found
    values = [
        randomisation_check(subject.network, subject.image, found.exit, found.target, **subject.options, seed=seed)
        for seed in range(DRAWS)
    ]
    known = [v for v in values if not math.isnan(v.signed + v.strength)]
    if not known:
        return "A map is constant, with the trained weights or with drawn ones: there is nothing to compare.", _draws_figure([])
    signed, strength = (float(np.mean(of_a_kind)) for of_a_kind in zip(*known, strict=True))
    if abs(signed) >= ALIKE:
        which = f"above {ALIKE}" if signed > 0 else f"with the signs turned beyond {ALIKE}"
        verdict = f"{which}: an untrained network gives much the same map, do not read it as what was learned"
    elif abs(strength) >= ALIKE:
        verdict = f"above {ALIKE}, so an untrained network's map is strong at much the same pixels: read the signs only"
    else:
        verdict = "it depends on what was learned"
    said = f"the map correlates {signed:.2f} with this one, in strength alone {strength:.2f}"
    return f"With all weights drawn anew {said}: {verdict}.", _draws_figure(known)


def _draws_figure(values: Sequence[Randomisation]) -> go.Figure:
    figure = go.Figure()
    figure.add_vrect(x0=-ALIKE, x1=ALIKE, fillcolor=GREY, opacity=0.2, line_width=0)
    for height, name in enumerate(reversed(Randomisation._fields)):
        figure.add_scatter(
            x=np.asarray([getattr(value, name) for value in values], np.float32),
            y=np.full(len(values), height, np.float32),
            mode="markers",
            marker={"size": 12, "color": PALETTE[0], "symbol": "line-ns", "line": {"width": 2, "color": PALETTE[0]}},
            hovertemplate=f"{name}: correlation %{{x:.3f}}<extra></extra>",
        )
    figure.update_layout(template=template(), width=460, height=180, showlegend=False)
    figure.update_xaxes(title="rank correlation with the map of random weights", range=[-1.02, 1.02])
    figure.update_yaxes(tickvals=[0, 1], ticktext=["strength", "signed"], range=[-0.6, 1.6])
    set_title(figure, f"{len(values)} networks with weights drawn anew", 60)
    return figure


def deletion_check(subject: Checked) -> tuple[str, go.Figure]:
    """Sentence and plot of `deletion_curve`."""
    kept = {name: subject.options[name] for name in ("baseline", "normalise")}
    curve = deletion_curve(subject.network, subject.image, subject.found.exit, subject.found, **kept)
    areas = f"area under the probability of {subject.target_name} {curve.area:.3f}, {curve.random_area:.3f} in random order"
    verdict = (
        "the map found pixels that the exit needs"
        if curve.area < BETTER * curve.random_area
        else "hardly better than chance, do not trust the order of its pixels"
    )
    return f"Deleting the pixels that it points at first: {areas} (0 to 1): {verdict}.", _deletion_figure(curve, subject)


def _deletion_figure(curve: DeletionCurve, subject: Checked) -> go.Figure:
    figure = go.Figure()
    lines = (("most attributed first", curve.probability, PALETTE[1], "solid"), ("random order", curve.random, GREY, "dot"))
    for name, values, colour, dash in lines:
        figure.add_scatter(
            x=100 * curve.fraction.numpy(),
            y=100 * values.numpy(),
            name=name,
            mode="lines",
            line={"color": colour, "dash": dash, "width": 2},
            hovertemplate=f"%{{x:.0f}} % deleted<br>probability %{{y:.1f}} %<extra>{name}</extra>",
        )
    figure.update_layout(template=template(), width=460, height=280, legend={"x": 1, "xanchor": "right", "y": 1})
    figure.update_layout(legend_bgcolor="rgba(0,0,0,0)")
    figure.update_xaxes(title="pixels deleted (%)", range=[0, 100])
    figure.update_yaxes(title="probability (%)", rangemode="tozero")
    set_title(figure, html.escape(f"probability of {subject.target_name} at exit {subject.found.exit}", quote=False), 60)
    return figure
