"""Which pixels made an exit decide, and which made two images related."""

from __future__ import annotations

import html
from functools import cached_property
from typing import Any

import ipywidgets as ipw
import numpy as np
import plotly.graph_objects as go
import torch
import traitlets
from torch import Tensor, nn

from corsd_lib.attribution import Attribution, attribute_exit, attribute_pair
from corsd_lib.attribution.engine import BASELINES, METHODS
from corsd_lib.batches import Normalise
from corsd_lib.datasets import ImageData
from corsd_lib.errors import CorsdError, check_choice, require
from corsd_lib.figures.images import image_attribution
from corsd_lib.figures.style import exit_names, name_html, set_title, short_name
from corsd_lib.network import MultiExitNetwork
from corsd_lib.pages import Panel, figure_panel
from corsd_lib.runs import Run
from corsd_lib.widgets.attribution_checks import Checked, SanityChecks
from corsd_lib.widgets.attribution_pictures import (
    as_columns,
    completeness,
    exit_finding,
    pair_finding,
)
from corsd_lib.widgets.base import Explorer
from corsd_lib.widgets.image_choice import ImageChoice, own_pixels
from corsd_lib.widgets.probe_images import ProbeImages

__all__ = ["AttributionExplorer"]

OWN, LABEL = "own prediction", "true label"
STEPS = (20, 50, 100, 200, 500)
_OWN_IMAGE = "Show it one of your own: explorer.image = array, uint8 (H, W, 3), (3, H, W) or (H, W)."


class _Given(traitlets.Any):
    """Any value but None, which traitlets would take without asking."""

    allow_none = False


class AttributionExplorer(Explorer):
    """Which pixels made an exit of a run decide as it did; with a partner image, which made the two related.

    Choose an image by its class and its number in it, at random, or one that the exit gets wrong; exit, class to explain,
    method, baseline and steps. Beside image, signed map and overlay stand the explained score, the baseline's, the completeness
    gap and what every exit says; two buttons test whether the map is about this network at all.

    `explorer.image` and `.partner` (None for none): positions in the probe set, or images of one's own, uint8 (H, W, 3),
    (3, H, W) or (H, W), which are scaled to the run's size. `.exit` (1 = shallowest), `.target` ("own prediction",
    "true label", or a class by index or name), `.method`, `.baseline` and `.steps` can be read and set too; `.attributions` are
    those shown, one an image. `data`, else the run's own from `data_root`; without it a sentence stands in place of images.
    The network is that of the newest weights. Raises `CorsdError` for what is not there.
    """

    image = _Given(help="position in the probe set, or an image of one's own")
    partner = traitlets.Any(None, allow_none=True, help="as image, or None")

    def __init__(
        self,
        run: Run,
        *,
        image: Any = 0,
        partner: Any = None,
        exit: int | None = None,
        data: ImageData | None = None,
        data_root: str | None = None,
    ) -> None:
        require("AttributionExplorer", "captum")
        self.run, self.images = run, ProbeImages(run, data, data_root)
        self._names, self._probes = run.data.class_names, run.probes
        self._short = [short_name(name) for name in self._names]
        if not self._probes:
            raise CorsdError(f"{run.path} has no probe snapshots: train with probe_every above 0")
        self.attributions: tuple[Attribution, ...] = ()
        self._ready, self._random = False, np.random.default_rng(run.config.seed)
        self._controls()
        self.sentence, self.table = ipw.HTML(), ipw.HTML()
        self.checks = SanityChecks(self._subject, self.busy)
        figure = go.FigureWidget(layout={"width": 760, "height": 300})
        super().__init__(figure, self._layout(figure))
        self._connect()
        if exit is not None:
            self.exit = exit
        self.image, self.partner = image, partner
        self._ready = True
        self._update()

    def _controls(self) -> None:
        exits = exit_names(len(self._probes[max(self._probes)].logits))
        self.image_choice = ImageChoice(self._probes.labels, self._names, "image")
        self.partner_choice = ImageChoice(self._probes.labels, self._names, "partner", optional=True)
        self.random_button = ipw.Button(description="a random image", icon="random")
        self.wrong_button = ipw.Button(description="one it gets wrong", icon="times")
        self.exit_choice = ipw.Dropdown(options=[(n, k) for k, n in enumerate(exits, 1)], value=len(exits), description="exit")
        targets = [OWN, LABEL, *((name, c) for c, name in enumerate(self._short))]
        options = [(t, t) if isinstance(t, str) else t for t in targets]
        self.target_choice = ipw.Dropdown(options=options, value=OWN, description="explain")
        self.method_choice = ipw.Dropdown(options=[(name, key) for key, name in METHODS.items()], description="method")
        self.baseline_choice = ipw.Dropdown(options=[(name, key) for key, name in BASELINES.items()], description="baseline")
        self.steps_choice = ipw.Dropdown(options=STEPS, value=50, description="steps")

    def _layout(self, figure: go.FigureWidget) -> list[ipw.Widget]:
        row = {"flex_flow": "row wrap"}
        for control in self._choices():
            control.style.description_width, control.layout.width = "70px", "250px"
        self.steps_choice.layout.width = "150px"
        which = ipw.HBox([self.image_choice, self.random_button, self.wrong_button], layout=row)
        how = ipw.HBox(self._choices(), layout=row)
        beside = ipw.VBox(
            [self.table, self.checks], layout={"padding": "8px 0 0 16px", "flex": "1 1 480px", "min_width": "480px"}
        )
        self.result = ipw.HBox([figure, beside], layout=row)
        return [which, self.partner_choice, how, self.sentence, self.result]

    def _choices(self) -> list[ipw.Dropdown]:
        return [self.exit_choice, self.target_choice, self.method_choice, self.baseline_choice, self.steps_choice]

    def _connect(self) -> None:
        self.image_choice.observe(lambda c: self._chosen("image", c.new), "position")
        self.partner_choice.observe(lambda c: self._chosen("partner", c.new), "position")
        self.random_button.on_click(lambda _: self._draw_from(range(len(self._probes.labels))))
        self.wrong_button.on_click(lambda _: self._draw_from(self._wrong()))
        for control in self._choices():
            control.observe(lambda _: self._update(), "value")

    # --- what can be read and set ---

    @property
    def exit(self) -> int:
        """The exit that is explained, 1 = shallowest."""
        return self.exit_choice.value

    @exit.setter
    def exit(self, number: int) -> None:
        self._set(self.exit_choice, "exit", number)

    @property
    def target(self) -> int | str:
        """The class whose logit is explained: "own prediction", "true label" or an index; set by name too."""
        return self.target_choice.value

    @target.setter
    def target(self, which: int | str) -> None:
        index = self._names.index(which) if isinstance(which, str) and which in self._names else which
        self._set(self.target_choice, "target", index)

    @property
    def method(self) -> str:
        """ "integrated_gradients" or "grad_cam"."""
        return self.method_choice.value

    @method.setter
    def method(self, name: str) -> None:
        self._set(self.method_choice, "method", name)

    @property
    def baseline(self) -> str:
        """Where integrated gradients begin: "mean" colour, "black" or "blur"."""
        return self.baseline_choice.value

    @baseline.setter
    def baseline(self, name: str) -> None:
        self._set(self.baseline_choice, "baseline", name)

    @property
    def steps(self) -> int:
        """Points on the line from baseline to image."""
        return self.steps_choice.value

    @steps.setter
    def steps(self, number: int) -> None:
        self._set(self.steps_choice, "steps", number)

    def _set(self, control: ipw.Dropdown, what: str, value: object) -> None:
        check_choice(what, value, [option[1] if isinstance(option, tuple) else option for option in control.options])
        control.value = value

    def __repr__(self) -> str:
        image, partner = ("own" if isinstance(v, Tensor) else v for v in (self.image, self.partner))
        return f"AttributionExplorer({str(self.run.path)!r}, image {image}, partner {partner}, exit {self.exit})"

    def panels(self) -> list[Panel]:
        return [figure_panel(self.picture(), text=self._said)]

    # --- what happens then ---

    @traitlets.validate("image", "partner")
    def _valid_image(self, proposal: Any) -> int | Tensor | None:
        value, count = proposal.value, len(self._probes.labels)
        if value is None and proposal.trait.name == "partner":
            return None
        if isinstance(value, int | np.integer) and not isinstance(value, bool):
            if value not in range(count):
                raise CorsdError(f"{proposal.trait.name} {value} of {count} probe images; allowed: 0 to {count - 1}")
            return int(value)
        return own_pixels(value, self.run.data)

    @traitlets.observe("image", "partner")
    def _image_changed(self, change: Any) -> None:
        choice = self.image_choice if change.name == "image" else self.partner_choice
        choice.show(change.new if isinstance(change.new, int) else None)
        self._update()

    def _chosen(self, name: str, position: int | None) -> None:
        if position is not None or (name == "partner" and isinstance(self.partner, int)):
            setattr(self, name, position)

    def _draw_from(self, positions: Any) -> None:
        others = [p for p in positions if p != self.image] if isinstance(self.image, int) else list(positions)
        if not others:
            self._tell(f"Exit {self.exit} gets no other image of the probe set wrong.")
            return
        self.image = int(self._random.choice(others))

    def _wrong(self) -> list[int]:
        """Positions that the chosen exit gets wrong, by the newest snapshot."""
        predicted = self._probes[max(self._probes)].logits[self.exit - 1].argmax(1)
        return (predicted != self._probes.labels).nonzero().flatten().tolist()

    def _update(self) -> None:
        """Everything that is shown, anew."""
        if not self._ready:
            return
        self.checks.clear()
        self.attributions = ()
        self._enable()
        try:
            with self.busy("attributing"):
                pixels = self._pixels()
                self.attributions = self._attribute(pixels)
                self._draw(pixels)
            self.result.layout.display = None
        except CorsdError as error:
            self.figure.data, self.figure.layout.title.text, self.table.value = (), "", ""
            self.result.layout.display = "none"
            self._tell(f"{error} {_OWN_IMAGE}" if self.images.missing else str(error))

    def _enable(self) -> None:
        """Only what means something now: a pair has no class, Grad-CAM no baseline."""
        self.target_choice.disabled = self.partner is not None
        self.baseline_choice.disabled = self.steps_choice.disabled = self.method == "grad_cam"

    def _tell(self, text: str) -> None:
        self._said = text
        self.sentence.value = f'<div role="status">{html.escape(text)}</div>'

    @cached_property
    def _network(self) -> MultiExitNetwork:
        return self.run.network()

    @cached_property
    def _relations(self) -> nn.ModuleList | str:
        networks = self.run.method().relation_networks()
        return networks if len(networks) else "cosine"

    def _pixels(self) -> list[Tensor]:
        """The image, and the partner if there is one: uint8 (C, H, W)."""
        shown = [self.image] if self.partner is None else [self.image, self.partner]
        return [self.images.pixels([which])[0] if isinstance(which, int) else which for which in shown]

    def _inputs(self, pixels: list[Tensor]) -> list[Tensor]:
        """The same as the network sees them."""
        return list(self._normalise(torch.stack(pixels)))

    @cached_property
    def _normalise(self) -> Normalise:
        return Normalise(self.run.data)  # type: ignore[arg-type]  # it reads mean and std alone

    def _options(self) -> dict[str, Any]:
        return {"method": self.method, "steps": self.steps, "baseline": self.baseline, "normalise": self._normalise}

    def _attribute(self, pixels: list[Tensor]) -> tuple[Attribution, ...]:
        images = self._inputs(pixels)
        if len(images) == 2:
            missing = 0 if isinstance(self._relations, str) else len(self._relations) - len(self._network.exits)
            exit = self.exit + missing  # a relation network of every stage, an exit only of the deepest
            return attribute_pair(self._network, self._relations, images[0], images[1], exit, **self._options())
        return (attribute_exit(self._network, images[0], self.exit, self._class(), **self._options()),)

    def _class(self) -> int | None:
        if self.target == LABEL:
            if not isinstance(self.image, int):
                raise CorsdError("an image of one's own has no true label here: explain another class")
            return int(self._probes.labels[self.image])
        return None if self.target == OWN else int(self.target)

    def _draw(self, pixels: list[Tensor]) -> None:
        with torch.no_grad():
            logits = self._network(torch.stack(self._inputs(pixels)).to(next(self._network.parameters()))).logits
        probabilities = torch.stack([z.float().softmax(1).cpu() for z in logits], dim=1)  # (images, exits, classes)
        shown = [self._caption(which) for which in (self.image, self.partner)[: len(pixels)]]
        new = image_attribution(torch.stack(pixels).numpy(), torch.stack([a.map for a in self.attributions]).numpy(), shown)
        first = self.attributions[0]
        finding = pair_finding(first) if len(pixels) == 2 else exit_finding(first, probabilities[0], self._short)
        weight = new.layout.title.text.replace("<br>", " ")
        set_title(new, f"{html.escape(finding, quote=False)}\n{weight}", 84, below=40)
        new.layout.height += 20  # for the title's second line
        self._tell(f"{finding}. {completeness(first, self._short)}")
        self._show(as_columns(new))
        self.table.value = self._predictions(probabilities, shown)

    def _caption(self, which: int | Tensor) -> str:
        if isinstance(which, Tensor):
            return "your image"
        return f"{self._short[int(self._probes.labels[which])]} (probe {which})"

    def _show(self, new: go.Figure) -> None:
        """`new` in the widget: changed in place where it has the same traces, so that nothing flickers."""
        if len(self.figure.data) != len(new.data):
            self.figure.data = ()
            self.figure.add_traces(new.data)
            self.figure.layout = new.layout  # plotly.js wants traces before their axes
            return
        with self.figure.batch_update():
            for old, trace in zip(self.figure.data, new.data, strict=True):
                old.update(trace.to_plotly_json())
            self.figure.layout.update(new.layout.to_plotly_json())

    def _predictions(self, probabilities: Tensor, shown: list[str]) -> str:
        """A table: what every exit says of each image (images, exits, classes), and how sure it is."""
        target = self.attributions[0].target
        best, says = probabilities.max(dim=2)
        heads = [f"<th>{html.escape(name)}</th><th>probability</th>" for name in shown]
        heads += [] if target is None else [f"<th>of {name_html(self._names[target])}</th>"]
        rows = []
        for k, (name, _) in enumerate(self.exit_choice.options):
            said = zip(says[:, k].tolist(), best[:, k].tolist(), strict=True)
            cells = [f"<td>{name_html(self._names[c])}</td><td>{100 * share:.1f} %</td>" for c, share in said]
            cells += [] if target is None else [f"<td>{100 * probabilities[0, k, target]:.1f} %</td>"]
            rows.append(f"<tr><th>{name}</th>{''.join(cells)}</tr>")
        caption = "<caption>What every exit says</caption>"
        return f"<table>{caption}<tr><th></th>{''.join(heads)}</tr>{''.join(rows)}</table>"

    def _subject(self) -> Checked | str:
        """What the sanity checks test."""
        if self.partner is not None:
            return "These checks are for an exit's decision: choose no partner."
        if not self.attributions or self.attributions[0].target is None:
            return "There is no map to check."
        found = self.attributions[0]
        (image,) = self._inputs(self._pixels())
        return Checked(self._network, image, found, self._short[self.attributions[0].target], self._options())
