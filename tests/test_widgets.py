"""What all explorers do."""

from __future__ import annotations

import json

import pytest
from explorers import small_run

from corsd_lib import RelationExplorer, Run, TrainingMonitor


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
