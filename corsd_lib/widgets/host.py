"""The base class of explorers: an anywidget that runs the JavaScript of an explorer (in `corsd_lib.sharing.pages`).

It sends data to this script, synchronises the state, and answers the script's requests.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import anywidget
import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
import traitlets

from corsd_lib.errors import CorsdError
from corsd_lib.figures.style import PLOTLY, save_png
from corsd_lib.sharing.pages import Panel, write_page
from corsd_lib.sharing.pages.page import ARRAYS, explorer_script, explorer_style

# Buttons of a figure that is stored in a notebook: without plotly's logo and without the one that uploads the figure.
BUTTONS = {"displaylogo": False, "showSendToCloud": False}


class Explorer(anywidget.AnyWidget):
    """An explorer in a notebook. Its script (JavaScript) runs in the browser, as far as possible without the kernel.

    A subclass sets two attributes: `script`, the kind of explorer, and `chosen`, the names of its traits. The values of these
    traits are the state of the explorer; they are synchronised with the script. `check(name, value)` returns the value to
    store, or raises `CorsdError`. A request `what` of the script is answered by the method `ask_<what>`, which gets the
    arguments of the request and returns plain values, arrays and bytes. A saved notebook, which has no kernel, shows
    `picture()`.
    """

    _esm = explorer_script("widget.js")
    _css = explorer_style()
    script: ClassVar[str]
    chosen: ClassVar[tuple[str, ...]]
    coupled: ClassVar[tuple[str, ...]] = ()  # those that mean something only together: if one is refused, so are the others

    _kind = traitlets.Unicode().tag(sync=True)
    _names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    _data = traitlets.Dict().tag(sync=True)
    _feed = traitlets.Dict().tag(sync=True)  # data that changes while the explorer is shown

    def __init__(self, data: Mapping[str, Any], **state: Any) -> None:
        self._unsent = False
        self._answering = threading.RLock()  # requests may arrive on a thread other than that of the cells
        self._wanted: Mapping[str, Any] = {}  # values that the browser has sent together, while they are applied
        super().__init__(_kind=self.script, _names=list(self.chosen), _data=with_bytes(data), **state)
        self.on_msg(self._asked)

    def check(self, name: str, value: Any) -> Any:
        """The value to store for a new `value` of the trait `name`. Raises `CorsdError` if it is not valid."""
        return value

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """Apply the choices of the browser. For an invalid one the browser gets the reason and the value that stays.

        While the kernel is busy the browser collects choices and sends them together: the valid ones among them are kept.
        """
        self._wanted = {name: sync_data[name] for name in self.chosen if name in sync_data}
        sent = tuple(self._wanted)
        try:
            refused = self._refused()
            super().set_state({name: value for name, value in sync_data.items() if name not in refused})
            if refused:
                self.send_state(list(refused))
                self.send({"said": next(iter(refused.values()))})
        except CorsdError as error:
            self.send_state(list(sent))
            self.send({"said": str(error)})
        finally:
            self._wanted = {}

    def _refused(self) -> dict[str, str]:
        """Take what is not valid out of the choices to be applied: the reason by the name of each choice that is taken out."""
        refused: dict[str, str] = {}
        while True:
            for name, value in self._wanted.items():
                try:
                    self.check(name, value)
                except CorsdError as error:
                    together = self.coupled if name in self.coupled else (name,)
                    refused |= {other: str(error) for other in together if other in self._wanted}
                    break
            else:
                return refused
            self._wanted = {other: value for other, value in self._wanted.items() if other not in refused}

    @contextmanager
    def unsent(self) -> Iterator[None]:
        """Inside this context, changes of traits are not sent to the browser.

        The browser has the new values already, and may even have newer ones.
        """
        self._unsent = True
        try:
            yield
        finally:
            self._unsent = False

    def send_state(self, key: Any = None) -> None:
        if not self._unsent:
            super().send_state(key)

    def proposed(self, name: str) -> Any:
        """Value of the trait `name` among those that the browser has just sent, else its current value.

        The browser may send several traits together, and each is checked with the new values of the others.
        """
        return self._wanted.get(name, getattr(self, name))

    def _asked(self, widget: Any, content: Any, buffers: Any) -> None:
        if "question" not in content:
            return
        self.send({"began": content["question"]})  # so that the browser stops saying that it waits for the kernel
        answer: dict[str, Any] = {"answer": content["question"]}
        sent: list[bytes] = []
        try:
            with self._answering:
                value = getattr(self, f"ask_{content['what']}")(**content["given"])
            answer["value"] = in_buffers(value, sent)
        except CorsdError as error:
            answer["error"] = str(error)
        except Exception as error:  # the browser waits for an answer
            answer["error"] = f"{type(error).__name__}: {error}"
            raise
        finally:
            self.send(answer, sent)

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:  # type: ignore[override]  # IPython takes both
        bundle = (super()._repr_mimebundle_(**options) or ({}, {}))[0]
        return {**bundle, "text/plain": repr(self), PLOTLY: {**json.loads(self.picture().to_json()), "config": BUTTONS}}

    def picture(self) -> go.Figure:
        """Current view as a static figure."""
        raise NotImplementedError

    def save_png(self, path: str | Path, **options: Any) -> Path:
        """Write the current view as a static image; options and errors as in `corsd_lib.figures.save_png`."""
        return save_png(self.picture(), path, **options)

    def to_html(self, path: str | Path, *, images: bool | None = None) -> Path:
        """Write an HTML file that works like the explorer, without a kernel or an internet connection; return its path.

        The file opens with the current view. `images`: whether it has thumbnails of the probe images, for explorers that can
        show them without a kernel. By default it has them only for the data sets "digits" and "shapes", whose images may be
        published. Raises `CorsdError` if `images` is True and the data is missing, and if the file cannot be written.
        """
        faces = self.faces(images)
        return write_page(path, [panel._replace(data=panel.data | faces) for panel in self.panels()])

    def faces(self, images: bool | None) -> dict[str, Any]:
        """Thumbnails to add to the data of each panel, as {"faces": ...}; {} for an explorer that shows none. `images` as in
        `to_html`.
        """
        return {}

    def panels(self) -> list[Panel]:
        """Panels of the file that `to_html` writes."""
        raise NotImplementedError


def checked(*names: str) -> Callable[..., Any]:
    """Validator of the traits `names`, which calls `check` of their explorer."""

    def valid(explorer: Explorer, proposal: Any) -> Any:
        return explorer.check(proposal.trait.name, proposal.value)

    return traitlets.validate(*names)(valid)


class Chosen(traitlets.TraitType[Any, Any]):
    """A trait that is synchronised with the browser: any value that `check` of the explorer accepts, including None."""

    def __init__(self, default: Any = None, help: str = "") -> None:
        super().__init__(default, help=help)
        self.tag(sync=True)

    def validate(self, obj: Any, value: Any) -> Any:
        return value


def with_bytes(value: Any) -> Any:
    """`value` with arrays replaced by type, shape and bytes, to be sent in binary.

    Raises `CorsdError` for an array of a dtype that the script does not know.
    """
    return _replace_arrays(value, lambda content: {"bytes": content}, lambda content: content)


def in_buffers(value: Any, buffers: list[bytes]) -> Any:
    """Like `with_bytes`, for a message with separate binary buffers.

    Bytes are appended to `buffers` and replaced by {"buffer": index}. Raises `CorsdError` as `with_bytes` does.
    """

    def append(content: bytes) -> dict[str, Any]:
        buffers.append(content)
        return {"buffer": len(buffers) - 1}

    return _replace_arrays(value, append, append)


def _replace_arrays(value: Any, array: Callable[[bytes], dict[str, Any]], raw: Callable[[bytes], Any]) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _replace_arrays(part, array, raw) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_arrays(part, array, raw) for part in value]
    if isinstance(value, bytes):
        return raw(value)
    if isinstance(value, np.ndarray):
        return {
            "dtype": _known_dtype(value),
            "shape": list(value.shape),
            **array(value.astype(value.dtype.newbyteorder("<")).tobytes()),
        }
    return value


def _known_dtype(array: npt.NDArray[Any]) -> str:
    if array.dtype.name not in ARRAYS:
        raise CorsdError(f"the data for the browser has an array of {array.dtype}; allowed: arrays of {', '.join(ARRAYS)}")
    return array.dtype.name
