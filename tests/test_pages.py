"""Pages: what is in the file is what the run says, whole, escaped and closed to the network. tests/browser drives them."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from explorers import EPOCHS, large_run, small_run

from corsd_lib import CorsdError, Run, TrainConfig, load_run, stage_embedding, train
from corsd_lib.analysis import class_order, early_exit_curve
from corsd_lib.figures.style import LONGEST
from corsd_lib.files import read_json, read_tensors, write_json, write_tensors
from corsd_lib.sharing.pages import (
    Panel,
    columns_panel,
    exits_panel,
    figure_panel,
    relation_panel,
    run_names,
    stages_panel,
    table_panel,
    text_panel,
    write_page,
)
from corsd_lib.sharing.report import report_panels

EVIL = "</script><script>document.title = 'broken'</script><b>&"


class Scripts(HTMLParser):
    """Attributes and content of the scripts of a page, what it asks its policy for, and all that points elsewhere."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.policy, self.title, self.addresses = "", "", []
        self._inside = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self._inside = tag
        self.addresses += [v for k, v in attributes if k in ("src", "href")]
        if tag == "script":
            self.scripts.append((given, ""))
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(given["content"])

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, text: str) -> None:
        if self._inside == "script":
            attributes, before = self.scripts[-1]
            self.scripts[-1] = (attributes, before + text)
        if self._inside == "title":
            self.title += text


def read_page(path: Path) -> Any:
    (attributes, text), *_ = Scripts(path).scripts
    assert attributes == {"type": "application/json", "id": "page-data"}
    return json.loads(text)


def unpacked(packed: Any) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed["base64"]), packed["dtype"]).reshape(packed["shape"])


@pytest.fixture(scope="module", params=["corsd", "baseline"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small_run(tmp_path_factory.mktemp("runs") / request.param, request.param)


@pytest.fixture(scope="module")
def corsd(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small_run(tmp_path_factory.mktemp("runs") / "corsd", "corsd")


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_page_is_whole_escaped_and_closed_to_the_network(tmp_path: Path) -> None:
    panels = [text_panel(EVIL, EVIL), table_panel("", [EVIL], [[EVIL, "1"]]), Panel("text", "", {"paragraphs": []})]
    path = write_page(tmp_path / "below" / "page.html", panels, EVIL)
    page = Scripts(path)
    assert page.title == EVIL and page.addresses == []
    assert read_page(path)["panels"] == [json.loads(json.dumps(panel._asdict())) for panel in panels]
    assert page.policy.startswith("default-src 'none'; ")
    code = [text for attributes, text in page.scripts[1:] if not attributes]
    assert len(code) == 1 and len(page.scripts) == 2 and "KINDS.relation" in code[0]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in code]
    assert f"script-src 'sha256-{hashes[0]}';" in page.policy
    assert list(tmp_path.rglob("*.html")) == list(tmp_path.rglob("*.*")) == [path]  # no part is left


def test_plotly_is_on_a_page_once_where_a_figure_needs_it(tmp_path: Path) -> None:
    figure = figure_panel(go.Figure(go.Scatter(x=[1.0], y=[2.0])))
    page = Scripts(write_page(tmp_path / "page.html", [columns_panel("", [figure, figure]), figure]))
    code = [text for attributes, text in page.scripts if not attributes]
    assert len(code) == 2 and "plotly.js v" in code[0][:100] and page.policy.count("sha256-") == 2
    assert (tmp_path / "page.html").stat().st_size > 4_000_000
    write_page(tmp_path / "plain.html", [text_panel("", "")])
    assert (tmp_path / "plain.html").stat().st_size < 200_000


def test_a_page_wants_panels_and_arrays_that_a_browser_reads(tmp_path: Path) -> None:
    with pytest.raises(CorsdError, match="the page has no panels; allowed: one or more"):
        write_page(tmp_path / "page.html", [])
    with pytest.raises(CorsdError, match="the data of a panel has an array of float64; allowed: plain values and arrays"):
        write_page(tmp_path / "page.html", [Panel("text", "", {"x": np.zeros(2)})])
    with pytest.raises(CorsdError, match="the data of a panel has Tensor"):
        write_page(tmp_path / "page.html", [Panel("text", "", {"x": torch.zeros(2)})])
    assert not (tmp_path / "page.html").exists()


def test_arrays_travel_in_binary(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(6, dtype=np.uint8).reshape(2, 3),
        "b": np.float32([[0.5], [np.nan]]),
        "c": np.arange(3).astype(">i4"),
    }
    page = read_page(write_page(tmp_path / "page.html", [Panel("text", "", {**arrays, "paragraphs": []})]))
    for name, array in arrays.items():
        np.testing.assert_array_equal(unpacked(page["panels"][0]["data"][name]), array)


def test_figures_are_drawn_without_webgl_and_columns_hold_panels() -> None:
    panel = figure_panel(go.Figure(go.Scattergl(x=[1.0], y=[2.0])).update_layout(title="t"), "title", "text")
    assert panel.data["figure"]["data"][0]["type"] == "scatter" and panel.data["text"] == "text"
    nested = columns_panel("both", [panel, text_panel("a", "b")])
    assert [child["kind"] for child in nested.data["panels"]] == ["figure", "text"]


# --- relations --------------------------------------------------------------------------------------------------------


def test_relations_are_those_of_the_run(run: Run, tmp_path: Path) -> None:
    (panel,) = read_page(write_page(tmp_path / "page.html", [relation_panel(run)]))["panels"]
    (shown,) = panel["data"]["runs"]
    codes = unpacked(shown["codes"])
    assert shown["epochs"] == list(run.probes) == [0, 1, 2, 3]
    assert shown["stored"] == ("trained" if run.config.method == "corsd" else "cosine")
    assert panel["data"]["kind_names"][shown["stored"]] == ("relation" if run.config.method == "corsd" else "cosine relation")
    for e, snapshot in enumerate(run.probes.values()):
        expected = torch.stack(snapshot.relations).numpy()
        assert codes[e].shape == expected.shape and len(shown["kinds"][shown["stored"]]) == len(expected)
        np.testing.assert_allclose(codes[e] / shown["levels"], expected, atol=0.501 / 65534)
    start = panel["data"]["start"]
    assert (start["exit"], start["epoch"], start["order"], start["reference"]) == (len(expected), EPOCHS, "label", None)
    others = run.probes[EPOCHS].relations[-1].clone().fill_diagonal_(-1)
    assert others[tuple(start["selection"])] == others.max()


@pytest.mark.parametrize("relation", ["l2", "cosine"])
def test_a_relation_by_a_formula_is_called_so(tmp_path: Path, relation: str) -> None:
    config = TrainConfig(method="corsd", method_options={"relation": relation}, per_class=2, epochs=1, batch_size=20)
    run = train(replace(config, probe_size=30, out=str(tmp_path / "run")), progress=False)
    (shown,) = relation_panel(run).data["runs"]
    assert shown["stored"] == relation
    of_page = [panel for panel in report_panels([run], embedding="none") if panel.title.startswith("Separation of classes")]
    what = {"l2": "distance of the embeddings", "cosine": "cosine of the embeddings"}[relation]
    assert f"ROC-AUC of the {what}" in of_page[0].data["text"]


def test_first_right_counts_the_exits_that_are_shown(corsd: Run) -> None:
    some = stage_embedding(corsd, exits=[1, 3], method="pca")
    labels, logits = some.labels, corsd.probes[EPOCHS].logits
    first, last = ((logits[k].float().argmax(1) == labels).numpy() for k in (0, 2))
    np.testing.assert_array_equal(stages_panel(corsd, some).data["first_correct"][0], np.where(first, 1, np.where(last, 2, 0)))


def test_a_pair_without_a_score_has_none(corsd: Run, tmp_path: Path) -> None:
    run = large_run(corsd, tmp_path, ["a", "b"], epochs=1, exits=2, images=4)
    relations = {f"relations.{k}": torch.tensor([[0.0, torch.nan], [1.0, 0.5]]) for k in range(2)}
    file = tmp_path / "probes" / "epoch_0000.safetensors"
    write_tensors(file, {**read_tensors(file)[0], **relations})
    codes = relation_panel(run).data["runs"][0]["codes"]
    np.testing.assert_array_equal(codes[0], [[[0, 65535], [65534, 32767]]] * 2)


def test_a_view_begins_as_asked(corsd: Run) -> None:
    data = relation_panel(corsd, exit=1, epoch=2, order="cluster", selection=(3, 7)).data
    start = data["start"]
    assert (start["exit"], start["epoch"], start["order"], start["selection"]) == (1, 2, "cluster", [3, 7])
    deepest = corsd.probes[EPOCHS].relations[-1]
    assert data["orders"] == {"label": list(range(10)), "cluster": class_order("cluster", deepest).tolist()}
    assert data["superclasses"] == []  # of digits, each is its own
    for options, message in (
        ({"exit": 4}, "exit 4 is not available; allowed: 1, 2, 3"),
        ({"epoch": 9}, "epoch 9 is not available; allowed: 0, 1, 2, 3"),
        ({"order": "size"}, "class order 'size' is not known"),
        ({"selection": (0, 10)}, "class of the selection 10 is not available"),
    ):
        with pytest.raises(CorsdError, match=message):
            relation_panel(corsd, **options)


def test_superclasses_give_orders(corsd: Run, tmp_path: Path) -> None:
    run = large_run(corsd, tmp_path, ["a", "b", "c", "d"], epochs=2, exits=1, images=4)
    config = read_json(tmp_path / "config.json")
    config["data"] |= {"superclass_names": ["odd", "even"], "superclass_of_class": [0, 1, 0, 1]}
    write_json(tmp_path / "config.json", config)
    run = load_run(tmp_path)
    data = relation_panel(run, order="superclass").data
    assert list(data["orders"]) == ["label", "superclass", "cluster", "superclass_cluster"]
    assert data["orders"]["superclass"] == [0, 2, 1, 3] and data["superclasses"] == ["odd", "even"]


def test_runs_stand_side_by_side_when_they_know_the_same_classes(run: Run, corsd: Run, tmp_path: Path) -> None:
    data = relation_panel(corsd, run).data
    assert [shown["name"] for shown in data["runs"]] == run_names([corsd, run])
    assert len({shown["name"] for shown in data["runs"]}) == 2
    other = large_run(corsd, tmp_path, ["a", "b"], epochs=1, exits=1, images=4)
    with pytest.raises(CorsdError, match="have different classes: their relations cannot be compared"):
        relation_panel(corsd, other)


def test_many_classes_show_fewer_epochs_and_say_so(corsd: Run, tmp_path: Path) -> None:
    run = large_run(corsd, tmp_path, [str(c) for c in range(400)], epochs=9, exits=4, images=4)
    panel = relation_panel(run, epoch=3)
    (shown,) = panel.data["runs"]
    assert shown["codes"].size <= 4_000_000 and {0, 3, 8} <= set(shown["epochs"]) and len(shown["epochs"]) < 9
    assert "of 9 snapshots" in panel.data["text"]
    assert relation_panel(corsd).data["text"] == ""


def test_names_are_told_apart(corsd: Run, tmp_path: Path) -> None:
    run = large_run(corsd, tmp_path, [EVIL, "cat", "cat"], epochs=1, exits=1, images=4)
    data = relation_panel(run).data
    assert data["names"] == [f"{EVIL[: LONGEST - 1]}…", "cat", "cat (2)"] and data["whole_names"] == {"0": EVIL}
    assert run_names([corsd]) == ["corsd, seed 0"]
    assert run_names([corsd, corsd])[0] == f"corsd, seed 0 ({'/'.join(corsd.path.parts[-2:])})"
    assert len(set(run_names([corsd] * 3))) == 3


def test_a_run_without_snapshots_has_no_relations(corsd: Run, tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", read_json(corsd.path / "config.json"))
    with pytest.raises(CorsdError, match=r"has no probe snapshots: .* restore them, or train again"):
        relation_panel(load_run(tmp_path))


# --- stages and exits -------------------------------------------------------------------------------------------------


def test_stages_say_what_each_exit_takes_an_image_for(run: Run, tmp_path: Path) -> None:
    embedding = stage_embedding(run, epochs=(0, EPOCHS), method="pca")
    page = read_page(write_page(tmp_path / "page.html", [stages_panel(run, embedding, colour="correct", selection=[2, 5])]))
    data = page["panels"][0]["data"]
    (fit,) = data["fits"]
    np.testing.assert_array_equal(unpacked(fit["coordinates"]), embedding.coordinates.numpy())
    guesses, first = unpacked(data["predictions"]), unpacked(data["first_correct"])
    labels = run.probes.labels.numpy()
    for e, epoch in enumerate((0, EPOCHS)):
        expected = np.stack([z.float().numpy().argmax(1) for z in run.probes[epoch].logits])
        np.testing.assert_array_equal(guesses[e], expected)
        hits = [[*np.flatnonzero(column == label), -1][0] + 1 for column, label in zip(expected.T, labels, strict=True)]
        np.testing.assert_array_equal(first[e], hits)
    np.testing.assert_array_equal(unpacked(data["labels"]), labels)
    start = data["start"]
    assert (start["epoch"], start["colour"], start["selection"]) == (EPOCHS, "correct", [2, 5]) and fit["title"] == "PCA"
    assert np.allclose(fit["quality"]["trustworthiness"], embedding.trustworthiness)


def test_stages_refuse_what_is_not_there(corsd: Run) -> None:
    embedding = stage_embedding(corsd, method="pca")
    with pytest.raises(CorsdError, match="colour 'superclass' is not known; allowed: class, correct, first_correct"):
        stages_panel(corsd, embedding, colour="superclass")
    with pytest.raises(CorsdError, match="image of the selection 30 is not available"):
        stages_panel(corsd, embedding, selection=[30])


def test_exits_hold_the_curve(corsd: Run) -> None:
    logits = [z.float() for z in corsd.probes[EPOCHS].logits]
    curve = early_exit_curve(logits, corsd.probes.labels, [10, 20, 30])
    threshold = curve["threshold"].iloc[4]
    data = exits_panel(
        corsd, curve, rule="confidence", threshold=threshold + 1e-9, macs=[10, 20, 30], deepest_macs=25, split="probe"
    ).data
    (shown,) = data["curves"]
    np.testing.assert_array_equal(shown["accuracy"], curve["accuracy"].to_numpy(np.float32))
    np.testing.assert_array_equal(shown["shares"][:, 2], curve["fraction.exit3"].to_numpy(np.float32))
    assert data["start"]["threshold"] == np.float32(threshold) and data["deepest_macs"] == 25
    assert shown["images"] == "the 20 probe images, of train"
    with pytest.raises(CorsdError, match="the early-exit curve has no threshold"):
        exits_panel(corsd, pd.DataFrame(), rule="confidence", threshold=1, macs=[], deepest_macs=1, split="probe")


def test_a_page_does_not_replace_a_file_of_another_kind(tmp_path: Path) -> None:
    panel = text_panel("", "")
    for content in (b"{}", b"\x89PNG"):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(CorsdError, match=r"config.json exists and is not a page; remove it or choose another path"):
            write_page(tmp_path / "config.json", [panel])
        assert (tmp_path / "config.json").read_bytes() == content
    with pytest.raises(CorsdError, match=r"cannot write a page to '.?'; allowed: the path of a file"):
        write_page("", [panel])
