"""An exported run: the same run, smaller, and nothing of the machine that it comes from."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from corsd_lib import cli, committed_run, committed_summary, export_run
from corsd_lib.analysis.embedding import is_kept
from corsd_lib.errors import CorsdError
from corsd_lib.evaluation import evaluate
from corsd_lib.files import read_json, read_tensors, write_json, write_tensors
from corsd_lib.relation import VectorRelation, cosine_scores, distance_scores, relation_matrix
from corsd_lib.runs import Run, TrainConfig, load_data, load_run
from corsd_lib.sharing.export import _balanced, _card, _spread
from corsd_lib.training import train
from corsd_lib.training.probe_set import ProbeSet

Tiny = Callable[..., TrainConfig]
KEPT = 3  # images a class of the exports here, of 5 in the run


@pytest.fixture(scope="module")
def exported(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An export of a run of `corsd`, with two of its three snapshots. Read only."""
    return export_run(tiny_run, tmp_path_factory.mktemp("export") / "corsd", snapshots=2, probe_images=10 * KEPT)


@pytest.fixture
def copied(tiny_run: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run.path, tmp_path / "copy"))


def _content(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


# --- it opens as the original does ---


def test_it_holds_these_files_and_no_others(exported: Run) -> None:
    assert sorted(_content(exported.path)) == [
        "README.md",
        "config.json",
        "metrics.jsonl",
        "probe.safetensors",
        "probes/epoch_0000.safetensors",
        "probes/epoch_0002.safetensors",
        "test.json",
        "weights.safetensors",
    ]


def test_weights_are_the_trained_ones_in_float16(tiny_run: Run, exported: Run) -> None:
    original = read_tensors(tiny_run.path / "weights.safetensors")[0]
    stored = read_tensors(exported.path / "weights.safetensors")[0]
    assert stored.keys() == original.keys()
    for name, value in original.items():
        assert stored[name].dtype == (torch.float16 if value.is_floating_point() else value.dtype)
        assert torch.equal(stored[name], value.to(stored[name].dtype))
    for part in (exported.network(), exported.method()):
        assert not any(m.training for m in part.modules()) and all(p.dtype == torch.float32 for p in part.parameters())


def test_the_rest_of_the_run_is_the_same(tiny_run: Run, exported: Run) -> None:
    assert exported.finished and exported.epochs_done == 2 and exported.data == tiny_run.data
    assert exported.provenance == tiny_run.provenance
    nowhere = {"out": None, "data_root": None, "resume": False}
    assert exported.raw_config == {**tiny_run.raw_config, **nowhere}
    before, after = tiny_run.metrics, exported.metrics
    assert list(after) == list(before) and after["images"].dtype == before["images"].dtype
    np.testing.assert_allclose(after.to_numpy(), before.to_numpy(), rtol=5e-6, atol=0)
    text = re.sub(r', "checksum": "\w+"', "", (exported.path / "metrics.jsonl").read_text())
    assert max(len(re.sub(r"e.*|\D", "", number).lstrip("0")) for number in re.findall(r"[\d.e-]+", text)) <= 6


def test_figures_are_those_of_the_weights_as_exported(tiny_run: Run, exported: Run) -> None:
    assert exported.test is not None and tiny_run.test is not None
    trained = exported.test["trained"]
    assert {k: v for k, v in exported.test.items() if k != "trained"} == asdict(evaluate(exported))
    assert trained == {name: tiny_run.test[name] for name in ("exits", "ensemble")}
    assert trained["exits"][0]["cross_entropy"] != exported.test["exits"][0]["cross_entropy"]


def test_evaluate_on_the_command_line_repeats_them(exported: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    moved = shutil.copytree(exported.path, tmp_path / "elsewhere")
    cli.main(["evaluate", str(moved), "--json"])
    assert json.loads(capsys.readouterr().out) == {k: v for k, v in (exported.test or {}).items() if k != "trained"}


def test_an_explorer_opens_it(exported: Run) -> None:
    widgets = pytest.importorskip("corsd_lib.widgets")
    explorer = widgets.RelationExplorer(exported)
    assert (explorer.exit, explorer.epoch, explorer.matrix.shape) == (3, 2, (10, 10))
    explorer.epoch, explorer.exit = 0, 1
    np.testing.assert_array_equal(explorer.matrix, exported.probes[0].relations[0].numpy())
    widgets.TrainingMonitor()(exported)


def test_an_export_whose_folder_is_moved_meanwhile_is_not_begun_anew(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved(*arguments: Any) -> Any:
        found = evaluate(*arguments)
        (tmp_path / "copy").rename(tmp_path / "moved")
        return found

    monkeypatch.setattr("corsd_lib.sharing.export.evaluate", moved)
    with pytest.raises(CorsdError, match="copy was moved or removed in the meantime"):
        export_run(tiny_run, tmp_path / "copy", snapshots=2, probe_images=10)
    assert not (tmp_path / "copy").exists()


# --- snapshots ---


def test_some_images_of_each_class_stay_and_all_that_is_known_of_them(tiny_run: Run, exported: Run) -> None:
    before, after = tiny_run.probes, exported.probes
    rows = [row for row in range(50) if row % 5 < KEPT]
    assert list(after) == [0, 2] and after.split == before.split == "validation"
    assert torch.equal(after.labels, before.labels[rows]) and torch.equal(after.index, before.index[rows])
    for epoch in after:
        for name in ("embeddings", "logits"):
            for kept, whole in zip(getattr(after[epoch], name), getattr(before[epoch], name), strict=True):
                assert kept.dtype == torch.float16 and torch.equal(kept, whole[rows])
        old, new = before[epoch].relation_state, after[epoch].relation_state
        assert old.keys() == new.keys() and all(torch.equal(new[k], old[k]) for k in old)


def test_the_images_that_stay_are_those_of_a_smaller_probe_set(exported: Run) -> None:
    assert torch.equal(ProbeSet(load_data(exported.config), 10 * KEPT).split.index, exported.probes.index)


def test_relations_are_those_of_the_embeddings_and_networks_that_stay(tiny_run: Run, exported: Run) -> None:
    """Written out again, and with another network at each epoch: the one of that snapshot."""
    probes, labels = exported.probes, exported.probes.labels
    for epoch in probes:
        for k, (e, relation) in enumerate(zip(probes[epoch].embeddings, probes[epoch].relations, strict=True)):
            network = VectorRelation(16, 10)
            state = {n: v.float() for n, v in probes[epoch].relation_state.items() if n.startswith(f"relations.{k}.")}
            network.load_state_dict({n.removeprefix(f"relations.{k}."): v for n, v in state.items()})
            expected = relation_matrix(network.scores(e.float()), labels, 10)
            assert torch.equal(relation, expected) and relation.dtype == torch.float32
            torch.testing.assert_close(relation, tiny_run.probes[epoch].relations[k], atol=0.2, rtol=0)
            assert not torch.equal(relation, tiny_run.probes[epoch].relations[k])  # those of more images


@pytest.mark.parametrize("options,score", [({}, cosine_scores), ({"relation": "l2"}, distance_scores)], ids=["cosine", "l2"])
def test_relations_without_networks_are_those_of_the_formula(
    tiny: Tiny, tmp_path: Path, options: dict[str, str], score: Callable[[Tensor], Tensor]
) -> None:
    run = train(tiny(method="corsd" if options else "byot", method_options=options, epochs=1), progress=False)
    probes = export_run(run, tmp_path / "export", probe_images=20).probes
    for e, relation in zip(probes[1].embeddings, probes[1].relations, strict=True):
        assert torch.equal(relation, relation_matrix(score(e), probes.labels, 10))


def test_relations_of_maps_stay_as_they_are(tiny: Tiny, tmp_path: Path) -> None:
    run = train(tiny(method="corsd_release", batch_size=15, epochs=1), progress=False)
    exported = export_run(run, tmp_path / "export", probe_images=20)
    assert len(exported.probes.labels) == 20 and len(exported.probes[1].logits) == 1
    for mine, original in zip(exported.probes[1].relations, run.probes[1].relations, strict=True):
        assert torch.equal(mine, original)
    assert len(exported.method().relation_networks()) == 3


@pytest.mark.parametrize(
    "epochs,count,expected",
    [
        (range(61), 6, [0, 2, 10, 22, 38, 60]),
        (range(0, 121, 3), 6, [0, 6, 18, 42, 78, 120]),
        ([0, 30], 6, [0, 30]),
        (range(6), 6, [0, 1, 2, 3, 4, 5]),
        (range(7), 6, [0, 1, 2, 3, 4, 6]),
        (range(61), 2, [0, 60]),
    ],
)
def test_early_snapshots_are_denser(epochs: Any, count: int, expected: list[int]) -> None:
    assert _spread(list(epochs), count) == expected


def test_as_many_snapshots_as_asked_for_whatever_there_is() -> None:
    for there in range(2, 60):
        for count in range(2, there + 1):
            kept = _spread(list(range(there)), count)
            gaps = [b - a for a, b in pairwise(kept)]
            assert len(set(kept)) == count and (kept[0], kept[-1]) == (0, there - 1) and min(gaps) >= 1


def test_a_class_with_few_images_gives_what_it_has() -> None:
    assert _balanced(torch.tensor([0, 0, 0, 2, 3, 3]), 2).tolist() == [0, 1, 3, 4, 5]


# --- it travels ---


def test_no_text_names_a_place_on_this_machine(tiny: Tiny, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (20, 8, 8), dtype=np.uint8)
    labels = np.arange(20) % 2
    np.savez(tmp_path / "mine.npz", train_x=images, train_y=labels, test_x=images, test_y=labels)
    config = tiny(data=f"npz:{tmp_path}/mine.npz", data_root=str(tmp_path), per_class=None, epochs=1, resume=True)
    exported = export_run(train(config, progress=False), tmp_path / "export")
    for name, content in _content(exported.path).items():
        assert str(tmp_path).encode() not in content, name
        if not name.endswith(".safetensors"):
            assert not re.search(r"(?<![\w/:.])/(?!/)\w+/|[A-Z]:\\|~/", content.decode()), name
    assert exported.config.data == exported.data.name == "npz:mine.npz"
    assert exported.test is not None and exported.test["data"] == "npz:mine.npz"


def test_its_size_is_what_the_docstring_says(exported: Run) -> None:
    count = sum(v.numel() for part in (exported.network(), exported.method()) for v in part.state_dict().values())
    probes, exits, classes = exported.probes, 3, 10
    state = sum(v.numel() for v in probes[2].relation_state.values())
    dim = probes[2].embeddings[0].shape[1]
    snapshot = exits * (2 * 10 * KEPT * (dim + classes) + 4 * classes**2) + 2 * state
    size = sum(map(len, _content(exported.path).values()))
    assert 0 <= size - 2 * count - len(probes) * snapshot < 32_000  # names, configuration, metrics, card


def test_the_same_export_again_gives_the_same_files(tiny_run: Run, exported: Run, tmp_path: Path) -> None:
    dest = Path(shutil.copytree(exported.path, tmp_path / "export"))
    (dest / "probes" / f".epoch_0001.safetensors.{'0' * 32}.part").touch()  # left by one that was killed
    export_run(tiny_run, dest, snapshots=2, probe_images=10 * KEPT)
    assert _content(dest) == _content(exported.path)
    export_run(tiny_run, dest)
    assert list(load_run(dest).probes) == [0, 1, 2] and len(load_run(dest).probes.labels) == 50
    export_run(tiny_run, dest, snapshots=2, probe_images=10 * KEPT)
    assert _content(dest) == _content(exported.path)


def test_an_export_that_was_cut_off_is_made_whole(
    tiny_run: Run, exported: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    dest = tmp_path / "export"
    monkeypatch.setattr("corsd_lib.sharing.export.write_lines", killed)
    with pytest.raises(KeyboardInterrupt):
        export_run(tiny_run, dest, snapshots=2, probe_images=10 * KEPT)
    monkeypatch.undo()
    export_run(tiny_run, dest, snapshots=2, probe_images=10 * KEPT)
    assert _content(dest) == _content(exported.path)


def test_an_export_can_be_exported_and_remembers_what_was_trained(exported: Run, tmp_path: Path) -> None:
    again = export_run(exported, tmp_path / "again", probe_images=20)
    assert again.test == exported.test and len(again.probes.labels) == 20
    assert (again.path / "weights.safetensors").read_bytes() == (exported.path / "weights.safetensors").read_bytes()


# --- the model card ---


def test_the_card_has_front_matter_with_the_figures(exported: Run) -> None:
    _, front, body = (exported.path / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(front)
    assert (card["license"], card["library_name"], card["datasets"]) == ("other", "corsd", ["digits"])
    assert "corsd" in card["tags"] and card["metrics"] == ["accuracy"]
    (model,) = card["model-index"]
    (result,) = model["results"]
    assert result["dataset"] == {"name": "digits", "type": "digits", "split": "test"}
    assert exported.test is not None
    top1 = [row["top1"] for row in exported.test["exits"]]
    assert [m["value"] for m in result["metrics"]] == [pytest.approx(value, abs=0.005) for value in top1]
    for k, row in enumerate(exported.test["exits"], 1):
        line = next(line for line in body.splitlines() if line.startswith(f"| exit {k} |"))
        assert f"| {row['top1']:.2f} |" in line and f"| {row['macs']:,} | {row['parameters']:,} |" in line
        assert line.endswith(f"| {exported.test['trained']['exits'][k - 1]['top1']:.2f} |")


def test_the_card_says_how_it_was_trained_and_with_what(exported: Run) -> None:
    text = (exported.path / "README.md").read_text()
    for said in ("| epochs | 2 |", "| per_class | 5 |", "| method option exit_kd | 0.1 |", "after epochs 0, 2:"):
        assert said in text
    assert exported.provenance["revision"] in text and f"torch {exported.provenance['versions']['torch']}" in text
    assert "No images of the data set are in this folder" in text and "| out |" not in text and "None" not in text


def test_the_card_says_where_a_training_went_on(exported: Run, tmp_path: Path) -> None:
    path = shutil.copytree(exported.path, tmp_path / "run")
    config = read_json(path / "config.json")
    elsewhere = {**config["provenance"], "revision": "0123abcd", "device": "cuda (some GPU)", "epochs_done": 1}
    write_json(path / "config.json", {**config, "resumed": [elsewhere]})
    figures = read_json(path / "test.json")
    card = _card(load_run(path), figures, figures["trained"])
    (said,) = [line for line in card.splitlines() if line.startswith("Resumed")]
    assert said.startswith("Resumed after epoch 1 with commit 0123abcd, PyTorch ") and "device cuda (some GPU)" in said
    assert "Resumed" not in (exported.path / "README.md").read_text()


def test_the_code_of_the_card_runs(exported: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (exported.path / "README.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(exported.path)
    exec(code, {})
    assert capsys.readouterr().out.strip() in exported.data.class_names


# --- what cannot be exported ---


def test_an_unfinished_run_is_refused(copied: Path, tmp_path: Path) -> None:
    (copied / "test.json").unlink()  # the last file of a training
    with pytest.raises(CorsdError, match=rf"{copied} is not finished \(2 of 2 epochs\): only a finished run is exported"):
        export_run(load_run(copied), tmp_path / "export")
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("what", ["another folder", "a file", "the run itself", "another run", "another training"])
def test_what_is_there_already_is_never_overwritten(
    tiny_run: Run, exported: Run, copied: Path, tmp_path: Path, what: str
) -> None:
    dest = tmp_path / "there"
    if what == "another folder":
        dest.mkdir()
        (dest / "notes.txt").write_text("mine")
    elif what == "a file":
        dest.write_text("mine")
    elif what in ("the run itself", "another run"):
        dest = copied if what == "the run itself" else Path(shutil.copytree(tiny_run.path, dest))
    else:  # an export of the same configuration, trained at another time
        shutil.copytree(exported.path, dest)
        config = read_json(dest / "config.json")
        config["provenance"]["started"] = "2020-01-01T00:00:00Z"
        write_json(dest / "config.json", config)
    before = _content(dest) if dest.is_dir() else dest.read_bytes()
    with pytest.raises(CorsdError, match=rf"{dest} exists and is not an export of {copied}: choose another folder"):
        export_run(load_run(copied), dest)
    assert before == (_content(dest) if dest.is_dir() else dest.read_bytes())


def test_a_folder_whose_name_is_not_utf_8_is_refused_before_anything_is_written(tiny_run: Run, tmp_path: Path) -> None:
    with pytest.raises(CorsdError, match=r"folder '.*caf\\udce9' is not valid UTF-8"):
        export_run(tiny_run, tmp_path / os.fsdecode(b"caf\xe9"))
    assert not list(tmp_path.iterdir())


def test_without_the_data_it_says_why_it_is_wanted(copied: Path, tmp_path: Path) -> None:
    config = read_json(copied / "config.json")
    config["train"]["data"] = config["data"]["name"] = "cifar10"
    write_json(copied / "config.json", config)
    message = (
        r"an export needs the data of the run for its evaluation, which cannot be read: .*: cifar10 is neither at .*nowhere"
    )
    with pytest.raises(CorsdError, match=message):
        export_run(load_run(copied), tmp_path / "export", data_root=tmp_path / "nowhere")
    assert not (tmp_path / "export").exists()


def test_weights_beyond_float16_are_named(copied: Path, tmp_path: Path) -> None:
    tensors = read_tensors(copied / "weights.safetensors")[0]
    tensors["network.exits.2.classifier.bias"][3] = -1e5
    write_tensors(copied / "weights.safetensors", tensors)
    with pytest.raises(CorsdError, match=r"network\.exits\.2\.classifier\.bias has values up to 100000; allowed in an export"):
        export_run(load_run(copied), tmp_path / "export")
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize(
    "options,message",
    [
        ({"snapshots": 1}, "snapshots is 1; allowed: a whole number of at least 2"),
        ({"probe_images": -1}, "probe_images is -1; allowed: a whole number of at least 0"),
    ],
)
def test_counts_out_of_range_are_named(tiny_run: Run, tmp_path: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(CorsdError, match=message):
        export_run(tiny_run, tmp_path / "export", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "export").exists()


# --- the command line ---


def test_export_on_the_command_line_says_how_large_it_is(
    tiny_run: Run, exported: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dest = tmp_path / "export"
    cli.main(["export", str(tiny_run.path), str(dest), "--snapshots", "2", "--probe-images", str(10 * KEPT)])
    assert _content(dest) == _content(exported.path)
    size = sum(map(len, _content(dest).values())) / 1e6
    assert capsys.readouterr().out.startswith(f"{dest}: {size:.2f} MB, of which weights ")


def test_figures_of_other_exits_than_the_weights_have_are_refused_before_anything_is_written(
    copied: Path, tmp_path: Path
) -> None:
    test = read_json(copied / "test.json")
    test["exits"].pop()
    write_json(copied / "test.json", test)
    with pytest.raises(CorsdError, match=r"test\.json: exits has 2 entries; allowed: 3, as the network of its weights"):
        export_run(load_run(copied), tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_an_error_on_the_command_line_is_one_line(copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "weights.safetensors").unlink()
    with pytest.raises(SystemExit) as end:
        cli.main(["export", str(copied), str(tmp_path / "export")])
    out, err = capsys.readouterr()
    assert end.value.code == 2 and out == "" and err.count("\n") == 1 and "is not finished" in err


# --- runs that travel ---


def test_a_committed_run_is_found_from_below_and_by_its_name_alone(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_run(tiny_run, tmp_path / "results" / "mine" / "runs" / "corsd", snapshots=2, probe_images=20)
    (tmp_path / "notebooks" / "solutions").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "notebooks" / "solutions")
    assert committed_run("mine/corsd").path == tmp_path / "results" / "mine" / "runs" / "corsd"
    with pytest.raises(CorsdError, match=r"'mine/other'.*there are: .*mine/corsd"):
        committed_run("mine/other")


def test_a_committed_run_is_found_beside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert committed_run("cifar100_small/corsd").config.method == "corsd"


def test_what_a_committed_study_says_is_found_in_the_same_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = {**committed_summary("digits"), "title": "of my own"}
    write_json(tmp_path / "results" / "mine" / "summary.json", mine)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert committed_summary("mine") == mine
    assert committed_summary("cifar100_small")["baseline"] == "baseline"
    with pytest.raises(CorsdError, match=r"no summary of a study 'other'; there are: .*cifar100_small.*mine"):
        committed_summary("other")


@pytest.mark.alone
def test_the_umap_travels_where_it_is_wanted_and_one_of_other_images_does_not_stay(tiny_run: Run, tmp_path: Path) -> None:
    words = ["export", str(tiny_run.path), str(tmp_path / "copy"), "--snapshots", "2", "--probe-images"]
    cli.main([*words, "30", "--umap"])
    assert is_kept(load_run(tmp_path / "copy")) and len(list((tmp_path / "copy" / "embeddings").iterdir())) == 1
    cli.main([*words, "20"])
    assert not list((tmp_path / "copy" / "embeddings").iterdir())


@pytest.mark.parametrize("given", [None, 5, []])
def test_what_is_no_name_of_a_committed_run_is_refused(given: Any) -> None:
    for find, what in ((committed_run, "sample run"), (committed_summary, "study")):
        with pytest.raises(CorsdError, match=rf"{what} is .*; allowed: a str or a Path"):
            find(given)


@pytest.mark.parametrize("name", ["snapshots", "probe_images"])
@pytest.mark.parametrize("value", [-1, 2.5, "8", None, 10**26])
def test_a_count_out_of_range_is_refused(name: str, value: Any, tiny_run: Run, tmp_path: Path) -> None:
    with pytest.raises(CorsdError, match=rf"{name} is .*; allowed: a whole number of at least"):
        export_run(tiny_run, tmp_path / "out", **{name: value})
    assert not (tmp_path / "out").exists()
