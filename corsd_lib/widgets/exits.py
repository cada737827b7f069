"""ExitExplorer: accuracy and cost of early exit, and the images that leave at each exit."""

from __future__ import annotations

import math
from collections import Counter
from functools import cached_property
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
import torch
import traitlets
from torch import Tensor
from torch.nn import functional as F

from corsd_lib.analysis.exits import RULES, choose_threshold, early_exit_curve, exit_taken
from corsd_lib.costs import run_macs
from corsd_lib.datasets import ImageData
from corsd_lib.errors import CorsdError, check_choice, shortened
from corsd_lib.evaluation import exit_logits
from corsd_lib.figures.exits import early_exit_plot
from corsd_lib.figures.style import exit_names, short_name
from corsd_lib.runs import Run, check_run, check_snapshots
from corsd_lib.sharing.pages import Panel, exits_panel
from corsd_lib.sharing.pages.panels import curve_beside, exits_curve, exits_data
from corsd_lib.widgets.host import Chosen, Explorer, checked
from corsd_lib.widgets.probe_images import ProbeImages
from corsd_lib.widgets.thumbnails import Thumbnails

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("probe", "validation", "test")
STRIP = 12  # number of images shown for each exit
SNAP = 1e-6  # thresholds that differ by less count as equal, because pages hold them as float32


class ExitExplorer(Explorer):
    """Shows accuracy and mean cost of early exit, for each rule and threshold.

    Controls choose a rule and its threshold. The explorer shows

    - the curve of accuracy (%) over mean multiply-accumulates of an image, with the chosen point;
    - the share of images that leaves at each exit;
    - images that leave at each exit, from the most to the least confident.

    A button chooses the cheapest threshold whose accuracy is at most `max_accuracy_drop` percentage points below that of the
    deepest exit. The curve of the run `other`, if given, is shown for comparison.

    These attributes can be read, set and observed: `rule` ("confidence", "entropy" or "patience"), `threshold`, `split`
    ("probe", "validation" or "test") and `max_accuracy_drop`. "probe" means the probe images of the last snapshot, which need
    no data. These can be read: `curve`, a table; `operating_point`, the row of the curve at the threshold; `macs_saved`, the
    saved cost (%); and `exit_taken` (N,), the exit at which each image leaves, 1 = shallowest.

    Raises `CorsdError` for a run without snapshots, and for a split without its data.
    """

    script = "exits"
    chosen = ("rule", "split", "threshold", "max_accuracy_drop")
    coupled = ("rule", "split", "threshold")

    rule = Chosen(
        "confidence", help='rule by which an image exits early: "confidence", "entropy" or "patience", see `early_exit_curve`'
    )
    split = Chosen("probe", help='the split that is shown: "probe", "validation" or "test"')
    threshold = Chosen(help="of the rule: confidence in [0, 1.01], entropy in [-0.01, 1], patience in whole exits from 1")
    max_accuracy_drop = Chosen(1.0, help="for `choose_threshold`: percentage points below the deepest exit, 0 to 100")

    def __init__(
        self,
        run: Run,
        other: Run | None = None,
        *,
        data: ImageData | None = None,
        data_root: str | None = None,
        split: str = "probe",
    ) -> None:
        for given in (run, *([] if other is None else [other])):
            check_run(given)
        self.run, self._probes = run, run.probes
        check_snapshots(run)
        check_choice("split", split, SPLITS)
        self._images = ProbeImages(run, data, data_root)
        self._thumbnails = Thumbnails(run, self._images)
        self._logits: dict[str, tuple[list[Tensor], Tensor]] = {}
        self._curves: dict[tuple[str, str], pd.DataFrame] = {}
        self._exits = exit_names(len(self._logits_on("probe")[0]))
        self._logits_on(split)
        shown = dict.fromkeys([("probe", rule) for rule in RULES] + [(split, RULES[0])])
        packed = [self._panel_curve(*each) for each in shown]
        splits = [[name, self._whose(name) if name in self._logits else f"all of {name}"] for name in SPLITS]
        data_ = {**exits_data(run, *self._costs), "curves": packed, "rules": list(RULES), "splits": splits}
        data_["others"] = self._others = [] if other is None else _other_curves(other)
        super().__init__(data_, split=split, threshold=self._cheapest(split, RULES[0], 1.0))

    # --- what can be read and set ---

    _valid = checked(*chosen)

    def check(self, name: str, value: Any) -> Any:
        if name == "rule":
            check_choice("rule", value, RULES)
        elif name == "split":
            check_choice("split", value, SPLITS)
            self._logits_on(value)  # first, so that an error is raised before anything changes
        elif name == "max_accuracy_drop":
            if not _is_number(value) or not 0 <= value <= 100:
                raise CorsdError(f"max_accuracy_drop = {shortened(value)}; allowed: 0 to 100 percentage points")
            return float(value)
        elif value is not None:
            return self._known_threshold(value)
        return value

    def _known_threshold(self, value: Any) -> float:
        """The threshold of the curve that equals `value` up to `SNAP`. If there is none, `value` itself, added to the curve.

        Raises `CorsdError` for a value that the rule cannot have.
        """
        rule = self.proposed("rule")
        low, high = self._range(rule)
        if not self._fits(rule, value):
            kind = "a whole number from" if rule == "patience" else "a number from"
            raise CorsdError(f"threshold = {shortened(value)} for {rule}; allowed: {kind} {low} to {high}")
        curve = self._curve_of(self.proposed("split"), rule, also=float(value))
        return float(curve["threshold"].iloc[int((curve["threshold"] - value).abs().argmin())])

    def _range(self, rule: str) -> tuple[float, float]:
        """Smallest and largest threshold of a rule."""
        return {"confidence": (0, 1.01), "entropy": (-0.01, 1), "patience": (1, len(self._exits))}[rule]

    def _fits(self, rule: str, value: Any) -> bool:
        """Whether `value` is a threshold that `rule` can have."""
        low, high = self._range(rule)
        return _is_number(value) and low - SNAP <= value <= high + SNAP and (rule != "patience" or value == int(value))

    @traitlets.observe("rule", "split")
    def _other_curve(self, change: Any) -> None:
        """Choose a threshold for the new rule or split (see `choose_threshold`), unless the browser sent one."""
        if self._wanted.get("threshold") is None:
            self.choose_threshold()

    @property
    def curve(self) -> pd.DataFrame:
        """`early_exit_curve` of the split for the rule."""
        return self._curve_of(self.split, self.rule)

    @property
    def operating_point(self) -> dict[str, float]:
        """Row of the curve at the threshold: threshold, accuracy (%), accuracy_drop (points), macs (mean), fraction.exit<k>."""
        curve = self.curve
        row = curve.iloc[int((curve["threshold"] - self._threshold).abs().argmin())]
        return {str(name): float(value) for name, value in row.items()}

    @property
    def macs_saved(self) -> float:
        """Saved cost, in % of the cost of the plain network (deepest exit only); negative if early exit costs more."""
        return 100.0 * (1.0 - self.operating_point["macs"] / self._costs[1])

    @property
    def exit_taken(self) -> Tensor:
        """The exit at which each image of the split leaves, int64 (N,), numbered from 1 (shallowest)."""
        return exit_taken(self._logits_on(self.split)[0], self.rule, self._threshold)

    @property
    def _threshold(self) -> float:
        """The trait `threshold`, or the cheapest allowed threshold if the trait is None.

        The trait is None after the browser has changed to a rule or split for which it has not chosen a threshold yet.
        """
        return self._cheapest(self.split, self.rule, self.max_accuracy_drop) if self.threshold is None else self.threshold

    def choose_threshold(self) -> float:
        """Set the threshold to the cheapest one that is accurate enough, and return it.

        Accurate enough means at most `max_accuracy_drop` percentage points below the deepest exit. For the test split the
        threshold is chosen on the validation images, or on the probe images if there is no validation split. The reason is that
        a threshold looks better on the images used for its choice than on new images.
        """
        self.threshold = self._cheapest(self.split, self.rule, self.max_accuracy_drop)
        return self.threshold

    def __repr__(self) -> str:
        return (
            f"ExitExplorer({str(self.run.path)!r}, {self.split} images, {self.rule} {self._threshold:.4g}: "
            f"{self.operating_point['accuracy']:.1f} % correct, {self.macs_saved:.1f} % of MACs saved)"
        )

    # --- answers to requests of the browser ---

    def ask_curve(self, rule: str, split: str, threshold: float | None, **others: Any) -> dict[str, Any]:
        """Answer to a request of the browser: the curve of a split and a rule, including a threshold that was set in Python."""
        self._curve_of(split, rule, threshold if self._fits(rule, threshold) else None)
        return self._panel_curve(split, rule)

    def ask_choose(self, rule: str, split: str, max_accuracy_drop: float, **others: Any) -> dict[str, float]:
        return {"threshold": self._cheapest(split, rule, max_accuracy_drop)}

    def ask_images(self, rule: str, split: str, threshold: float, **others: Any) -> dict[str, Any]:
        """Answer to a request of the browser: facts on the images that leave at each exit.

        For each exit: their number, the % correct, frequent classes and some of the images.

        The images are ordered from the most to the least confident. They are left out if the data is missing.
        """
        logits, labels = self._logits_on(split)
        left = exit_taken(logits, rule, threshold)
        exits = [
            self._leavers(name, (left == k + 1).nonzero().flatten(), logits[k], labels, split)
            for k, name in enumerate(self._exits)
        ]
        return {"exits": exits, "missing": self._images.missing}

    def _leavers(self, name: str, positions: Tensor, logits: Tensor, labels: Tensor, split: str) -> dict[str, Any]:
        names = self.run.data.class_names
        confidence, prediction = F.softmax(logits[positions].double(), dim=1).max(1)
        order = confidence.argsort(descending=True, stable=True)
        some = order[torch.linspace(0, len(order) - 1, min(STRIP, len(order))).long()] if len(order) else order
        pngs = self._thumbnails.of(positions[some].tolist(), split)
        images = []
        for i, sure, g in zip(positions[some].tolist(), confidence[some].tolist(), prediction[some].tolist(), strict=True):
            label = int(labels[i])
            text = f"✓ {100 * sure:.0f} %" if g == label else f"✗ as {short_name(names[g])}, {100 * sure:.0f} %"
            images.append({"png": pngs.get(i), "lines": [short_name(names[label]), text], "correct": g == label})
        frequent = Counter(labels[positions].tolist()).most_common(4)
        correct = 100.0 * (prediction == labels[positions]).double().mean().item() if len(positions) else None
        classes = ", ".join(f"{short_name(names[c])} {n}" for c, n in frequent)
        return {"name": name, "count": len(positions), "correct": correct, "classes": classes, "images": images if pngs else []}

    # --- computations ---

    @cached_property
    def _costs(self) -> tuple[list[int], int]:
        """MACs of an image that leaves at each exit, and MACs of the plain network. The weights are not needed."""
        return run_macs(self.run)

    def _logits_on(self, split: str) -> tuple[list[Tensor], Tensor]:
        """Logits, K x (N, C), and labels (N,) of a split, computed once."""
        if split not in self._logits:
            self._logits[split] = _probe_logits(self.run) if split == "probe" else self._data_logits(split)
        return self._logits[split]

    def _data_logits(self, split: str) -> tuple[list[Tensor], Tensor]:
        if self._images.missing:
            raise CorsdError(f"split {shortened(split)} needs the data. {self._images.missing}")
        data = self._images.data
        images = getattr(data, split)
        if images is None:
            raise CorsdError(
                f"data {data.name!r} has no split {shortened(split)}: pass data that was loaded with a validation_fraction, or "
                "use split 'probe' or 'test'"
            )
        return exit_logits(self.run.network(), data, images)

    def _curve_of(self, split: str, rule: str, also: float | None = None) -> pd.DataFrame:
        """The curve with its default thresholds, those that were added before, and the threshold `also`."""
        found = self._curves.get((split, rule))
        macs = self._costs[0]
        if found is None:
            found = early_exit_curve(*self._logits_on(split), macs, rule)
        if also is not None and (found["threshold"] - also).abs().min() > SNAP:
            thresholds = sorted([*found["threshold"], also], reverse=rule == "entropy")
            found = early_exit_curve(*self._logits_on(split), macs, rule, thresholds)
        self._curves[split, rule] = found
        return found

    def _cheapest(self, split: str, rule: str, max_accuracy_drop: float) -> float:
        chosen_on = self._chosen_on(split)
        value = choose_threshold(self._curve_of(chosen_on, rule), max_accuracy_drop)
        self._curve_of(split, rule, also=value)
        return value

    def _panel_curve(self, split: str, rule: str) -> dict[str, Any]:
        curve, said = self._curve_of(split, rule), self._whose(split)
        return exits_curve(curve, rule=rule, split=split, images=said, caution=self._caution(split))

    def _chosen_on(self, split: str) -> str:
        if split != "test":
            return split
        return "probe" if self._images.data.validation is None else "validation"

    def _whose(self, split: str) -> str:
        count = len(self._logits_on(split)[1])
        return f"{count:,} probe images of {self._probes.split}" if split == "probe" else f"{count:,} images of {split}"

    def _caution(self, split: str) -> str:
        """Warning about choosing a threshold on the images that are shown."""
        if split == "test":
            on = self._chosen_on(split)
            return f"The button chooses on {on} images. Do not tune the threshold by hand on the test images."
        if split == "validation" or self._probes.split == "validation":
            return "A threshold looks better on the images it was chosen on: choose it here, then evaluate once on test images."
        if self._probes.split == "test":
            return "These are test images: choose a threshold on validation images instead."
        return "The network was trained on these images: confidence and accuracy are higher than on new images."

    # --- files ---

    def picture(self) -> go.Figure:
        figure = early_exit_plot({self.rule: self.curve}, deepest_macs=self._costs[1], threshold=self._threshold)
        return figure.update_layout(width=620, height=440)

    def panels(self) -> list[Panel]:
        macs, deepest = self._costs
        how: dict[str, Any] = {"rule": self.rule, "threshold": self._threshold, "split": self.split}
        panel = exits_panel(self.run, self.curve, macs=macs, deepest_macs=deepest, **how)
        panel.data["start"]["max_accuracy_drop"] = self.max_accuracy_drop
        panel.data["others"] = self._others
        return [panel]


def _probe_logits(run: Run) -> tuple[list[Tensor], Tensor]:
    """Logits, K x (N, C), of the last snapshot, and labels (N,)."""
    probes = run.probes
    return [z.float() for z in probes[list(probes)[-1]].logits], probes.labels


def _other_curves(run: Run) -> list[dict[str, Any]]:
    """Curves of another run on its own probe images, one for each rule."""
    macs, deepest = run_macs(run)
    return [curve_beside(run, early_exit_curve(*_probe_logits(run), macs, rule), rule, deepest) for rule in RULES]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
