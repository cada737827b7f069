"""What all explorers do."""

from __future__ import annotations

import json
from typing import Any
from weakref import WeakValueDictionary

import ipywidgets as ipw
import pytest
from explorers import small_run

from corsd_lib import ExitExplorer, RelationExplorer, Run, StageExplorer, TrainingMonitor
from corsd_lib.widgets import probe_images


@pytest.fixture(scope="module")
def corsd(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small_run(tmp_path_factory.mktemp("runs") / "corsd", "corsd")


def test_a_widget_also_offers_its_figure_where_no_kernel_answers(corsd: Run) -> None:
    monitor = TrainingMonitor()
    monitor(corsd)
    for widget in (monitor, RelationExplorer(corsd)):
        bundle = widget._repr_mimebundle_()
        assert "application/vnd.jupyter.widget-view+json" in bundle
        figure = json.loads(json.dumps(bundle["application/vnd.plotly.v1+json"]))
        assert figure["data"][0]["z"]["dtype"] == "f4"
        assert bundle["text/plain"].startswith(f"{type(widget).__name__}(")


def test_what_changed_before_it_is_shown_is_sent_with_it(corsd: Run) -> None:
    """Messages to a figure whose script is still loading are lost: a slow machine would show empty axes."""
    explorer = RelationExplorer(corsd)
    explorer.exit, explorer.selection = 1, (3, 8)
    explorer._repr_mimebundle_()
    sent = explorer.figure
    assert sent._widget_layout["title"]["text"] == sent.layout.title.text and "exit 1" in sent.layout.title.text
    assert len(sent._widget_layout["shapes"]) == len(sent.layout.shapes) > 0
    assert len(sent._widget_data) == len(sent.data)


def test_displayed_again_the_figure_is_a_new_one_to_the_browser(corsd: Run) -> None:
    """plotly's script goes on drawing into a plot that is gone, fails, and draws no other: a cell that ran again was dead."""
    explorer = RelationExplorer(corsd)
    explorer._repr_mimebundle_()
    first = explorer.figure.model_id
    box = next(box for box in explorer.children if explorer.figure in getattr(box, "children", ()))
    explorer.exit = 1
    explorer._repr_mimebundle_()
    assert explorer.figure.model_id != first and explorer.figure in box.children
    assert "exit 1" in explorer.figure.get_state()["_widget_layout"]["title"]["text"]


@pytest.mark.parametrize("explorer", [ExitExplorer, StageExplorer])
def test_the_first_view_waits_for_no_data_set(corsd: Run, explorer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = probe_images.run_data
    monkeypatch.setattr(probe_images, "_SHARED", WeakValueDictionary())
    monkeypatch.setattr(probe_images, "run_data", lambda run, *where: read.append(run.config.data) or real(run, *where))
    shown, other = explorer(corsd), explorer(corsd)
    assert read == [] and "<img" not in everything(shown)
    shown._repr_mimebundle_()
    shown.complete()  # or what displaying began
    assert read == ["digits"] and "<img" in everything(shown) and shown._busy.value == ""
    other.complete()
    assert read == ["digits"] and "<img" in everything(other)  # the same images, read once


def everything(explorer: Any) -> str:
    return "".join(part.value for part in vars(explorer).values() if isinstance(part, ipw.HTML))


def test_no_button_sends_a_figure_anywhere(corsd: Run) -> None:
    explorer = RelationExplorer(corsd)
    assert explorer.figure._config["showSendToCloud"] is False
    assert explorer._repr_mimebundle_()["application/vnd.plotly.v1+json"]["config"]["showSendToCloud"] is False
