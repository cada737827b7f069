"""What all explorers do."""

from __future__ import annotations

import json
from typing import Any
from weakref import WeakValueDictionary

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
        assert figure["data"][0]["z"]["dtype"] == "f4" and figure["config"]["showSendToCloud"] is False
        assert bundle["text/plain"].startswith(f"{type(widget).__name__}(")


@pytest.mark.parametrize("explorer", [ExitExplorer, StageExplorer, RelationExplorer])
def test_the_first_view_reads_no_data_set_and_two_explorers_share_it(
    corsd: Run, explorer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = probe_images.run_data
    monkeypatch.setattr(probe_images, "_SHARED", WeakValueDictionary())
    monkeypatch.setattr(probe_images, "run_data", lambda run, *where: read.append(run.config.data) or real(run, *where))
    shown, other = explorer(corsd), explorer(corsd)
    assert read == []
    assert shown._thumbnails.of([0]) and other._thumbnails.of([0]) and read == ["digits"]


def test_one_invalid_choice_does_not_take_the_valid_ones_with_it(corsd: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the kernel is busy the browser collects choices and sends them together."""
    explorer, sent = RelationExplorer(corsd), list[Any]()
    monkeypatch.setattr(explorer, "send", lambda content, buffers=None: sent.append(content))
    monkeypatch.setattr(explorer, "send_state", lambda key=None: sent.append(key))
    explorer.set_state({"exit": 1, "epoch": 99, "order": "label", "selection": [2, 5]})
    assert (explorer.exit, explorer.order, explorer.selection) == (1, "label", (2, 5))
    assert explorer.epoch == max(corsd.probes) and ["epoch"] in sent
    (said,) = [content["said"] for content in sent if isinstance(content, dict)]
    assert "epoch" in said and "99" in said


def test_choices_that_need_a_refused_one_are_refused_with_it(corsd: Run) -> None:
    explorer = StageExplorer(corsd, method="pca")
    before = explorer.highlight
    explorer.set_state({"colour": "shape", "highlight": ["round"], "image": 3})
    assert (explorer.colour, explorer.highlight, explorer.image) == ("class", before, 3)
