"""Leaving early: what a threshold costs and saves, and which images leave where."""

from __future__ import annotations

import html
import math
from collections import Counter
from functools import cached_property
from typing import TYPE_CHECKING, Any

import ipywidgets as ipw
import plotly.graph_objects as go
import torch
from torch import Tensor
from torch.nn import functional as F

from corsd_lib.analysis.exits import RULES, choose_threshold, early_exit_curve, exits_left, run_macs
from corsd_lib.datasets import ImageData
from corsd_lib.errors import CorsdError, check_choice, shortened
from corsd_lib.evaluation import exit_logits
from corsd_lib.figures.exits import early_exit_plot
from corsd_lib.figures.style import PALETTE, exit_names, name_html
from corsd_lib.pages import Panel, exits_panel
from corsd_lib.runs import Run
from corsd_lib.widgets.base import Explorer
from corsd_lib.widgets.probe_images import ProbeImages
from corsd_lib.widgets.thumbnails import Thumbnails, html_table, thumbnail

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("probe", "validation", "test")
STRIP = 12  # images shown of those that leave at an exit
SIGNS = {"confidence": "confidence ≥", "entropy": "entropy ≤", "patience": "exits in agreement ≥"}


class ExitExplorer(Explorer):
    """What an image costs, and how many are right, when each leaves at the first exit that is sure enough.

    Choose a rule and move its threshold: the point on the curve of accuracy (%) over mean multiply-accumulates an image, the
    share that leaves at each exit, and the images that do. A button takes the cheapest threshold that loses at most so many
    points. `explorer.rule` ("confidence", "entropy", "patience"), `.threshold`, `.split` ("probe", the probe images of the last
    snapshot, which need no data; "validation"; "test") and `.loss` can be read and set; `.curve` is what is drawn, `.figures`
    its row at the threshold, `.saved` what that saves (%), `.left_at` (N,) the exits that images leave at, 1 = shallowest.
    Raises `CorsdError` for a run without snapshots, and for a split without its data.
    """

    def __init__(self, run: Run, *, data: ImageData | None = None, data_root: str | None = None, split: str = "probe") -> None:
        self.run, self._probes = run, run.probes
        if not self._probes:
            raise CorsdError(f"{run.path} has no probe snapshots to explore: train with probe_every above 0")
        check_choice("split", split, SPLITS)
        self._images = ProbeImages(run, data, data_root)
        self._images.wanted = data is not None  # the first view does not wait for them
        self._thumbnails = Thumbnails(run, self._images)
        self._answers: dict[str, tuple[list[Tensor], Tensor]] = {}
        self._curves: dict[tuple[str, str], pd.DataFrame] = {}
        self._split, self._moving = "probe", True
        self._exits = exit_names(len(self._answers_on("probe")[0]))
        self._build_controls()
        curve = self._curve_of("probe", RULES[0])
        figure = go.FigureWidget(self._plot(curve, choose_threshold(curve)))
        super().__init__(figure, self._arranged(figure))
        self._moving = False
        if split == "probe":
            self.choose()
        else:
            self.split = split
        if not self._images.wanted:
            self._leave("reading the images", self._read_images)
        self._connect()

    def _build_controls(self) -> None:
        look = {"style": {"description_width": "70px"}}
        self.rule_choice = ipw.Dropdown(options=RULES, description="rule", layout={"width": "210px"}, **look)
        whose = f"probe images (of {self._probes.split})"
        names = ((whose, "probe"), ("all of validation", "validation"), ("all of test", "test"))
        self.split_choice = ipw.Dropdown(options=names, description="images", layout={"width": "330px"}, **look)
        self.threshold_slider = ipw.SelectionSlider(
            options=[("", 0.0)], description="threshold", layout={"width": "460px"}, readout=False, **look
        )
        self.reading = ipw.HTML()
        self.loss_field = ipw.BoundedFloatText(
            value=1.0, min=0.0, max=100.0, step=0.5, description="lose at most (points)", style={"description_width": "140px"}
        )
        self.loss_field.layout.width = "220px"
        self.choose_button = ipw.Button(description="cheapest threshold", tooltip="that loses at most so many points")
        self.table, self.strips, self.note = ipw.HTML(), ipw.HTML(), ipw.HTML()

    def _arranged(self, figure: go.FigureWidget) -> list[ipw.Widget]:
        wrap = {"flex_flow": "row wrap", "align_items": "center"}
        choices = ipw.HBox([self.rule_choice, self.split_choice, self.loss_field, self.choose_button], layout=wrap)
        slider = ipw.HBox([self.threshold_slider, self.reading], layout=wrap)
        side = ipw.VBox([self.table], layout={"padding": "40px 0 0 16px"})
        return [choices, slider, ipw.HBox([figure, side], layout={"flex_flow": "row wrap"}), self.note, self.strips]

    def _connect(self) -> None:
        self.rule_choice.observe(self._rule_chosen, "value")
        self.split_choice.observe(self._split_chosen, "value")
        self.threshold_slider.observe(lambda _: None if self._moving else self._draw(), "value")
        self.choose_button.on_click(lambda _: self.choose())

    # --- what can be read and set ---

    @property
    def rule(self) -> str:
        """What lets an image leave: "confidence", "entropy" or "patience", see `early_exit_curve`."""
        return self.rule_choice.value

    @rule.setter
    def rule(self, name: str) -> None:
        check_choice("rule", name, RULES)
        self.rule_choice.value = name

    @property
    def threshold(self) -> float:
        """Of the rule: confidence in [0, 1.01], entropy in [-0.01, 1], patience in whole exits from 1."""
        return self.threshold_slider.value

    @threshold.setter
    def threshold(self, value: float) -> None:
        low, high = {"confidence": (0, 1.01), "entropy": (-0.01, 1), "patience": (1, len(self._exits))}[self.rule]
        fits = _is_number(value) and low <= value <= high
        if not fits or (self.rule == "patience" and value != int(value)):
            kind = "a whole number from" if self.rule == "patience" else "a number from"
            raise CorsdError(f"threshold {shortened(value)} of {self.rule}; allowed: {kind} {low} to {high}")
        self._set_threshold(float(value))

    @property
    def split(self) -> str:
        """Whose figures are shown: "probe", "validation" or "test"."""
        return self._split

    @split.setter
    def split(self, name: str) -> None:
        check_choice("split", name, SPLITS)
        self._answers_on(name)  # or its error, before anything changes
        self._split = name
        self._moving, self.split_choice.value, self._moving = True, name, False
        self.choose()

    @property
    def loss(self) -> float:
        """How many points of accuracy `choose` may lose against the deepest exit."""
        return self.loss_field.value

    @loss.setter
    def loss(self, points: float) -> None:
        if not _is_number(points) or not 0 <= points <= 100:
            raise CorsdError(f"loss {shortened(points)}; allowed: 0 to 100 points")
        self.loss_field.value = float(points)

    @property
    def curve(self) -> pd.DataFrame:
        """The `early_exit_curve` of the split by the rule."""
        return self._curve_of(self.split, self.rule)

    @property
    def figures(self) -> dict[str, float]:
        """Row of the curve at the threshold: threshold, accuracy (%), loss (points), macs (mean an image), share.exit<k>."""
        return self._row(self.threshold)

    @property
    def saved(self) -> float:
        """Share of the plain network's cost, that of its deepest exit alone, that is saved, %; negative where it costs more."""
        return 100.0 * (1.0 - self.figures["macs"] / self._costs[1])

    @property
    def left_at(self) -> Tensor:
        """(N,) exit that each image of the split leaves at, 1 = shallowest."""
        return exits_left(self._answers_on(self.split)[0], self.rule, self.threshold)

    def choose(self) -> float:
        """Move to the cheapest threshold that loses at most `loss` points, and return it.

        On test it is one chosen on validation (on the probe images where the data has none): what is chosen on the images it is
        judged on looks better than it is.
        """
        value = choose_threshold(self._curve_of(self._chosen_on(), self.rule), self.loss)
        self._set_threshold(value)
        return value

    def __repr__(self) -> str:
        return (
            f"ExitExplorer({str(self.run.path)!r}, {self.split} images, {self.rule} {self.threshold:.4g}: "
            f"{self.figures['accuracy']:.1f} % right, {self.saved:.1f} % of MACs saved)"
        )

    def panels(self) -> list[Panel]:
        macs, deepest = self._costs
        curve = self.curve
        return [
            exits_panel(
                self.run,
                curve,
                rule=self.rule,
                threshold=self.threshold,
                macs=macs,
                deepest_macs=deepest,
                split=self.split,
            )
        ]

    # --- what that is made of ---

    @cached_property
    def _costs(self) -> tuple[list[int], int]:
        """MACs of leaving at each exit, and of the plain network; of the architecture, so weights need not be there yet."""
        return run_macs(self.run)

    def _answers_on(self, split: str) -> tuple[list[Tensor], Tensor]:
        """Logits, K x (N, C), and labels (N,) of a split; the network is asked once."""
        if split not in self._answers:
            self._answers[split] = self._of_probes() if split == "probe" else self._of_data(split)
        return self._answers[split]

    def _of_probes(self) -> tuple[list[Tensor], Tensor]:
        last = self._probes[list(self._probes)[-1]]
        return [z.float() for z in last.logits], self._probes.labels

    def _of_data(self, split: str) -> tuple[list[Tensor], Tensor]:
        self._images.wanted = True
        if self._images.missing:
            raise CorsdError(f"split {split!r} needs the data. {self._images.missing}")
        data = self._images.data
        images = getattr(data, split)
        if images is None:
            raise CorsdError(f"data {data.name!r} has no split {split!r}: set a validation_fraction")
        with self.busy(f"asking the network about {len(images):,} images of {split}"):
            return exit_logits(self.run.network(), data, images)

    def _curve_of(self, split: str, rule: str, also: float | None = None) -> pd.DataFrame:
        """The curve with its default thresholds, and with those that were asked for besides."""
        found = self._curves.get((split, rule))
        macs = self._costs[0]
        if found is None:
            found = early_exit_curve(*self._answers_on(split), macs, rule)
        if also is not None and also not in set(found["threshold"]):
            thresholds = sorted([*found["threshold"], also], reverse=rule == "entropy")
            found = early_exit_curve(*self._answers_on(split), macs, rule, thresholds)
        self._curves[split, rule] = found
        return found

    def _row(self, threshold: float) -> dict[str, float]:
        curve = self.curve
        row = curve[curve["threshold"] == threshold].iloc[0]
        return {str(name): float(value) for name, value in row.items()}

    def _chosen_on(self) -> str:
        if self.split != "test":
            return self.split
        return "probe" if self._images.data.validation is None else "validation"

    def _whose(self, split: str) -> str:
        count = len(self._answers_on(split)[1])
        return f"{count:,} probe images of {self._probes.split}" if split == "probe" else f"{count:,} images of {split}"

    # --- what happens then ---

    def _rule_chosen(self, change: Any) -> None:
        self.choose()

    def _split_chosen(self, change: Any) -> None:
        if self._moving:
            return
        try:
            self.split = change.new
        except CorsdError as error:  # a list in a browser cannot raise: say it, and stay where we were
            self._moving, self.split_choice.value, self._moving = True, self._split, False
            self.note.value = f"<p><b>{html.escape(str(error))}</b></p>"

    def _set_threshold(self, value: float) -> None:
        curve = self._curve_of(self.split, self.rule, also=value)
        thresholds = [float(t) for t in curve["threshold"]]
        self._moving = True  # new options move the slider to the first of them: nobody's choice
        if thresholds != [t for _, t in self.threshold_slider.options]:
            self.threshold_slider.options = [(f"{t:.4g}", t) for t in thresholds]
        self.threshold_slider.index = thresholds.index(value)
        self._moving = False
        self._draw()

    def _read_images(self) -> None:
        self._images.wanted = True
        self._draw()

    def _plot(self, curve: pd.DataFrame, chosen: float) -> go.Figure:
        figure = early_exit_plot({self.rule: curve}, deepest_macs=self._costs[1], chosen=chosen)
        return figure.update_layout(width=620, height=440)

    def _draw(self) -> None:
        self.complete()
        new = self._plot(self.curve, self.threshold)
        with self.figure.batch_update():
            for old, trace in zip(self.figure.data, new.data, strict=True):
                old.update(trace.to_plotly_json(), overwrite=True)
            self.figure.update_layout(title=new.layout.title, margin=new.layout.margin)
        self.reading.value = f"<b>{SIGNS[self.rule]} {self.threshold:.4g}</b>"
        self.table.value = self._shares()
        self.note.value = self._caution()
        self.strips.value = self._leavers()

    def _shares(self) -> str:
        """A row an exit: cost, how many leave, how many of them are right, and of which classes where no image can tell."""
        logits, labels = self._answers_on(self.split)
        left, rows = self.left_at, []
        no_images = self._images.wanted and self._images.missing
        for k, (name, macs, z) in enumerate(zip(self._exits, self._costs[0], logits, strict=True), 1):
            there = left == k
            count, share = int(there.sum()), 100.0 * there.double().mean().item()
            right = f"{100.0 * (z[there].argmax(1) == labels[there]).double().mean().item():.1f} %" if count else "–"
            bar = f'<div style="width:{share:.0f}px;height:8px;background:{PALETTE[0]}" aria-hidden="true"></div>'
            classes = [self._classes(labels[there])] if no_images else []
            rows.append((name, f"{macs / 1e6:.2f}", f"{count:,}", f"{share:.1f} %{bar}", right, *classes))
        head = ("", "million MACs", "images", "share", "right", *(["most frequent classes"] if no_images else []))
        return html_table(head, rows, f"Who leaves where, of {self._whose(self.split)}")

    def _classes(self, labels: Tensor, most: int = 4) -> str:
        names = self.run.data.class_names
        counts = Counter(labels.tolist()).most_common(most)
        return ", ".join(f"{name_html(names[c])} {n}" for c, n in counts) or "–"

    def _leavers(self) -> str:
        """Some of the images that leave at each exit, evenly from all of them; where the data is."""
        if self._images.missing:
            return f"<p>{html.escape(self._images.missing)}</p>"
        logits, labels = self._answers_on(self.split)
        left, parts = self.left_at, []
        for k, (name, z) in enumerate(zip(self._exits, logits, strict=True), 1):
            places = (left == k).nonzero().flatten()
            some = places[torch.linspace(0, len(places) - 1, min(STRIP, len(places))).long()].tolist()
            parts.append(f"<p><b>Leaving at {name}</b>, {len(some)} of {len(places):,}</p>{self._strip(some, z, labels)}")
        return "".join(parts)

    def _strip(self, positions: list[int], logits: Tensor, labels: Tensor) -> str:
        names, pngs = self.run.data.class_names, self._thumbnails.of(positions, self.split)
        confidence, guess = F.softmax(logits[positions].double(), dim=1).max(1)
        cells = []
        for p, sure, g in zip(positions, confidence.tolist(), guess.tolist(), strict=True):
            right = g == int(labels[p])
            told = f"✓ {100 * sure:.0f} % sure" if right else f"✗ as {names[g]}"
            cells.append(thumbnail(pngs.get(p), [names[int(labels[p])], told], right))
        return f"<div>{''.join(cells)}</div>"

    def _caution(self) -> str:
        """On which images these figures stand, and what that makes of a threshold chosen here."""
        if self.split == "test":
            rest = (
                f"The button chooses on {self._whose(self._chosen_on())}. "
                "A threshold moved by hand until the test looks good is no result."
            )
        elif self.split == "validation" or self._probes.split == "validation":
            rest = "A threshold chosen on them looks better here than on new images: choose it here, then look at test once."
        elif self._probes.split == "test":
            rest = "They are of test: choose a threshold on validation, not here."
        else:
            rest = "The network was trained on them: it is surer of them and more often right than of new images."
        return f"<p>Figures on {self._whose(self.split)}. {rest}</p>"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
