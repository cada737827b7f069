"""AttributionExplorer: attribution maps of exits and of pairs of images."""

from __future__ import annotations

import html
from functools import cached_property
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor, nn

from corsd_lib.attribution import Attribution, attribute_exit, attribute_pair
from corsd_lib.attribution.engine import BASELINES, METHODS
from corsd_lib.batches import Normalise
from corsd_lib.datasets import ImageData
from corsd_lib.errors import CorsdError, check_choice, require, shortened
from corsd_lib.figures.images import image_attribution
from corsd_lib.figures.style import exit_names, set_title, short_name
from corsd_lib.network import MultiExitNetwork
from corsd_lib.runs import Run, check_run, check_snapshots
from corsd_lib.sharing.pages import Panel, figure_panel
from corsd_lib.widgets.attribution_checks import Checked, deletion_check, weights_check
from corsd_lib.widgets.attribution_pictures import COMPLETE, completeness, exit_finding, limit_of, map_png, pair_finding
from corsd_lib.widgets.host import Chosen, Explorer, checked
from corsd_lib.widgets.own_images import own_pixels
from corsd_lib.widgets.probe_images import ProbeImages, png_of

OWN, LABEL, YOURS = "own prediction", "true label", "your image"
STEPS = (20, 50, 100, 200, 500)
SIDE = 192  # approximate height of a picture, pixels
_OWN_IMAGE = "Use your own image: explorer.image = array, uint8 (H, W, 3), (3, H, W) or (H, W)."


class _Image(Chosen):
    """A trait whose value is an index in the probe set, or the user's own image.

    Instead of the user's own image, the browser gets a text as the value, a different one for each image (see
    `AttributionExplorer.marker`).
    """

    def __init__(self, default: Any, help: str) -> None:
        super().__init__(default, help)
        self.tag(to_json=lambda value, explorer: explorer.marker(value) if isinstance(value, Tensor) else value)


class AttributionExplorer(Explorer):
    """Shows attribution maps: of the prediction of an exit or, with a partner image, of the relation of two images.

    Controls choose an image (by class and number, at random, or one that the exit classifies wrongly), exit, class, method,
    baseline and steps. The explorer shows image, signed map and overlay, the scores of image and baseline, the completeness
    gap, and the predictions of all exits. Two buttons test the map: with random weights, and by deleting pixels.

    These attributes can be read, set and observed:

    - `image` and `partner` (or None): index in the probe set, or another image, uint8 (H, W, 3), (3, H, W) or (H, W), which is
      scaled to the image size of the run;
    - `exit`: 1 = shallowest; `target`: "own prediction", "true label", or a class by index or name;
    - `method`: "integrated_gradients" or "grad_cam"; `baseline`: "mean", "black" or "blur";
    - `steps`: 20, 50, 100, 200 or 500. By default, the first of these from 50 on with which the completeness gap of the first
      map is at most 5 %, else 500.

    `attributions` has the attributions that are shown, one for each image; reading it raises `CorsdError` if they cannot be
    computed. `data`: by default the data of the run, from `data_root`; if it is missing, a message is shown instead of images.
    The network has the newest weights. Raises `CorsdError` for invalid arguments, and `MissingPackage` if captum is not
    installed.
    """

    script = "attribution"
    chosen = ("image", "partner", "exit", "target", "method", "baseline", "steps")

    image = _Image(0, "index in the probe set, or your own image")
    partner = _Image(None, "as image, or None")
    exit = Chosen(help="the exit that is explained, 1 = shallowest")
    target = Chosen(OWN, help='the class whose logit is explained: "own prediction", "true label", or a class by index or name')
    method = Chosen("integrated_gradients", help='"integrated_gradients" or "grad_cam"')
    baseline = Chosen("mean", help='where integrated gradients begin: "mean" colour, "black" or "blur"')
    steps = Chosen(50, help="points on the line from baseline to image")

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
        check_run(run)
        self.run, self.images = run, ProbeImages(run, data, data_root)
        self._classes, self._probes = run.data.class_names, run.probes
        self._short = [short_name(name) for name in self._classes]
        check_snapshots(run)
        newest = self._probes[max(self._probes)]
        self._exits = exit_names(len(newest.logits))
        self._shown: tuple[Any, tuple[Attribution, ...]] | None = None
        self._steps_chosen = False
        self._own: list[Tensor] = []  # the user's own images that were shown
        sent = {
            "names": self._short,
            "whole_names": {str(c): name for c, name in enumerate(self._classes) if name != self._short[c]},
            "labels": self._probes.labels.numpy().astype(np.uint16),
            "predictions": torch.stack([z.float().argmax(1) for z in newest.logits]).numpy().astype(np.uint16),
            "exits": self._exits,
            "targets": [OWN, LABEL],
            "methods": [[key, name] for key, name in METHODS.items()],
            "baselines": [[key, name] for key, name in BASELINES.items()],
            "steps": list(STEPS),
        }
        super().__init__(sent, image=image, partner=partner, exit=len(self._exits) if exit is None else exit)
        self.observe(self._steps_set, "steps")

    # --- what can be read and set ---

    _valid = checked(*chosen)

    def check(self, name: str, value: Any) -> Any:
        if name in ("image", "partner"):
            return self._valid_image(name, value)
        if name == "target":
            value = self._classes.index(value) if isinstance(value, str) and value in self._classes else value
        allowed: dict[str, Any] = {
            "exit": range(1, len(self._exits) + 1),
            "target": [OWN, LABEL, *range(len(self._classes))],
            "method": METHODS,
            "baseline": BASELINES,
            "steps": STEPS,
        }
        check_choice(name, value, allowed[name])
        return value

    def _valid_image(self, name: str, value: Any) -> int | Tensor | None:
        count = len(self._probes.labels)
        if value is None and name == "partner":
            return None
        if isinstance(value, int | np.integer) and not isinstance(value, bool):
            if value not in range(count):
                raise CorsdError(
                    f"{name} = {shortened(value)} is not one of the {count} probe images; allowed: 0 to {count - 1}"
                )
            return int(value)
        if isinstance(value, str):  # from the browser, after undo
            return self._of_marker(value)
        return own_pixels(value, self.run.data)

    def marker(self, image: Tensor) -> str:
        """Name of the user's own image for the browser: "your image 1" and so on."""
        if not any(own is image for own in self._own):
            self._own.append(image)
        return f"{YOURS} {1 + next(i for i, own in enumerate(self._own) if own is image)}"

    def _of_marker(self, marker: str) -> Tensor:
        for place, image in enumerate(self._own, 1):
            if marker == f"{YOURS} {place}":
                return image
        raise CorsdError(f"image {shortened(marker)} is not known here. {_OWN_IMAGE}")

    def _news(self, state: dict[str, Any]) -> dict[str, Any]:
        """The part of a state from the browser that differs from the current one."""
        now = self.get_state([name for name in state if name in self.chosen])
        return {name: value for name, value in state.items() if name not in now or now[name] != value}

    def set_state(self, sync_data: dict[str, Any]) -> None:
        super().set_state(self._news(sync_data))

    def _steps_set(self, change: Any) -> None:
        self._steps_chosen = True

    @property
    def attributions(self) -> tuple[Attribution, ...]:
        """Attributions that are shown, one for each image. Raises `CorsdError` if they cannot be computed."""
        state = [getattr(self, name) for name in self.chosen]
        key = [id(v) if isinstance(v, Tensor) else v for v in state]
        if self._shown is None or self._shown[0] != key:
            found = self._attribute()
            while not self._steps_chosen and _gap(found) > COMPLETE and self.steps < STEPS[-1]:
                self.unobserve(self._steps_set, "steps")
                self.steps = next(steps for steps in STEPS if steps > self.steps)
                self.observe(self._steps_set, "steps")
                found = self._attribute()
            self._steps_chosen = True  # so that later maps have as many steps as the first one
            key[self.chosen.index("steps")] = self.steps
            self._shown = key, found
        return self._shown[1]

    def __repr__(self) -> str:
        image, partner = ("own" if isinstance(v, Tensor) else v for v in (self.image, self.partner))
        return f"AttributionExplorer({str(self.run.path)!r}, image {image}, partner {partner}, exit {self.exit})"

    # --- answers to requests of the browser ---

    def ask_map(self, **state: Any) -> dict[str, Any]:
        """Answer to a request of the browser: the attribution maps, and texts about them.

        For every image these are picture, signed map and overlay. The texts are the finding, the completeness gap and the
        predictions of all exits.
        """
        with self.unsent():  # a request may arrive before the change of state that it is about, and after later choices
            for name, value in self._news(state).items():
                setattr(self, name, value)
        try:
            found, pixels = self.attributions, self._pixels()
        except CorsdError as error:
            raise CorsdError(f"{error} {_OWN_IMAGE}" if self.images.missing else str(error)) from error
        probabilities = self._probabilities(pixels)
        limit = limit_of([a.map for a in found])
        rows = [
            {"title": self._caption(which), "pngs": _pictures(image, a.map, limit)}
            for which, image, a in zip((self.image, self.partner), pixels, found, strict=False)
        ]
        gap = found[0].completeness_gap
        return {
            "finding": self._finding(probabilities),
            "completeness": completeness(found[0], self._short),
            "complete": None if gap is None else gap <= COMPLETE,
            "rows": rows,
            "table": self._predictions(probabilities),
            "testable": self.partner is None,
        }

    def ask_weights(self) -> dict[str, Any]:
        """Answer to a request of the browser: the result of `weights_check`."""
        return weights_check(self._subject())

    def ask_deletion(self) -> dict[str, Any]:
        """Answer to a request of the browser: the result of `deletion_check`."""
        return deletion_check(self._subject())

    # --- computations ---

    @cached_property
    def _network(self) -> MultiExitNetwork:
        return self.run.network()

    @cached_property
    def _relations(self) -> nn.ModuleList | str:
        networks = self.run.method().relation_networks()
        return networks if len(networks) else "cosine"

    def _pixels(self) -> list[Tensor]:
        """The image, and the partner if there is one, each uint8 (C, H, W)."""
        shown = [self.image] if self.partner is None else [self.image, self.partner]
        return [self.images.pixels([which])[0] if isinstance(which, int) else which for which in shown]

    def _inputs(self, pixels: list[Tensor]) -> list[Tensor]:
        """Images uint8 (C, H, W) as inputs of the network."""
        return list(self._normalise(torch.stack(pixels)))

    @cached_property
    def _normalise(self) -> Normalise:
        return Normalise(self.run.data)  # type: ignore[arg-type]  # it reads only mean and std

    def _options(self) -> dict[str, Any]:
        return {"method": self.method, "steps": self.steps, "baseline": self.baseline, "normalise": self._normalise}

    def _attribute(self) -> tuple[Attribution, ...]:
        images = self._inputs(self._pixels())
        if len(images) == 2:
            missing = 0 if isinstance(self._relations, str) else len(self._relations) - len(self._network.exits)
            exit = self.exit + missing  # each stage has a relation network, but possibly only the deepest has an exit
            return attribute_pair(self._network, self._relations, images[0], images[1], exit, **self._options())
        return (attribute_exit(self._network, images[0], self.exit, self._class(), **self._options()),)

    def _class(self) -> int | None:
        if self.target == LABEL:
            if not isinstance(self.image, int):
                raise CorsdError("your own image has no true label: explain another class")
            return int(self._probes.labels[self.image])
        return None if self.target == OWN else int(self.target)

    def _probabilities(self, pixels: list[Tensor]) -> Tensor:
        """Predicted probabilities (images, exits, classes) of images uint8 (C, H, W)."""
        with torch.no_grad():
            logits = self._network(torch.stack(self._inputs(pixels)).to(next(self._network.parameters()))).logits
        return torch.stack([z.float().softmax(1).cpu() for z in logits], dim=1)

    def _finding(self, probabilities: Tensor) -> str:
        first = self.attributions[0]
        return exit_finding(first, probabilities[0], self._short) if self.partner is None else pair_finding(first)

    def _caption(self, which: int | Tensor) -> str:
        if isinstance(which, Tensor):
            return "your image"
        return f"{self._short[int(self._probes.labels[which])]} (probe {which})"

    def _predictions(self, probabilities: Tensor) -> dict[str, Any]:
        """Table of the prediction of every exit, with its probability, for each image."""
        target = self.attributions[0].target
        best, says = probabilities.max(dim=2)
        shown = [self._caption(which) for which in (self.image, self.partner)[: len(probabilities)]]
        head = ["", *(text for name in shown for text in (name, "probability"))]
        head += [] if target is None else [f"of {self._short[target]}"]
        rows = []
        for k, name in enumerate(self._exits):
            said = zip(says[:, k].tolist(), best[:, k].tolist(), strict=True)
            cells = [text for c, share in said for text in (self._short[c], f"{100 * share:.1f} %")]
            cells += [] if target is None else [f"{100 * probabilities[0, k, target]:.1f} %"]
            rows.append([name, *cells])
        return {"head": head, "rows": rows}

    def _subject(self) -> Checked:
        """Arguments of `weights_check` and `deletion_check`. Raises `CorsdError` for a pair, which they cannot test."""
        if self.partner is not None:
            raise CorsdError("These checks are for one image at an exit, not for a pair: remove the partner.")
        (found,) = self.attributions
        (image,) = self._inputs(self._pixels())
        return Checked(self._network, image, found, self._short[int(found.target or 0)], self._options())

    # --- files ---

    def picture(self) -> go.Figure:
        try:
            found, pixels = self.attributions, self._pixels()
        except CorsdError as error:
            return go.Figure(layout={"title": {"text": html.escape(str(error), quote=False)}, "width": 760, "height": 120})
        shown = [self._caption(which) for which in (self.image, self.partner)[: len(pixels)]]
        figure = image_attribution(torch.stack(pixels).numpy(), torch.stack([a.map for a in found]).numpy(), shown)
        said = html.escape(self._finding(self._probabilities(pixels)), quote=False)
        weight = figure.layout.title.text.replace("<br>", " ")
        set_title(figure, f"{said}\n{weight}", 84, below=40)
        figure.layout.height += 20  # for the second line of the title
        return figure

    def panels(self) -> list[Panel]:
        try:
            said = f"{self._finding(self._probabilities(self._pixels()))}. {completeness(self.attributions[0], self._short)}"
        except CorsdError as error:
            said = str(error)
        return [figure_panel(self.picture(), text=said)]


def _gap(found: tuple[Attribution, ...]) -> float:
    """Completeness gap; 0 for a method that has none."""
    return found[0].completeness_gap or 0.0


def _pictures(image: Tensor, values: Tensor, limit: float) -> list[list[Any]]:
    """PNGs of an image, its map, and the map over the image, each with a caption."""
    factor = max(1, SIDE // image.shape[1])
    return [
        [png_of(image, factor), "image"],
        [map_png(values, limit, side=SIDE), "signed map"],
        [map_png(values, limit, image, side=SIDE), "map over the image"],
    ]
