"""One exit of a run as a classifier of the Hub: stored as plain values and safetensors, and the same when it is loaded."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from corsd_lib.batches import evaluation_batches
from corsd_lib.errors import CorsdError
from corsd_lib.files import read_json, write_json
from corsd_lib.runs import Run, TrainConfig, load_data
from corsd_lib.training import train

pytest.importorskip("huggingface_hub", reason="needs huggingface_hub of the extra hub")
from corsd_lib.sharing import classifier
from corsd_lib.sharing.classifier import ExitClassifier


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = TrainConfig(
        data="digits",
        per_class=5,
        network="resnet8",
        width=8,
        method="corsd",
        epochs=1,
        batch_size=20,
        probe_size=20,
        accelerator="cpu",
        out=str(tmp_path_factory.mktemp("run") / "corsd"),
    )
    return train(config, progress=False)


@pytest.mark.parametrize("exit", [1, 2, None])
def test_a_loaded_classifier_gives_the_logits_of_the_run(run: Run, tmp_path: Path, exit: int | None) -> None:
    data = load_data(run.config)
    normalised, _ = next(evaluation_batches(data, data.test, batch_size=32))
    images = data.test.images[:32].float() / 255
    ExitClassifier.from_run(run, exit).save_pretrained(tmp_path)
    loaded = ExitClassifier.from_pretrained(str(tmp_path))
    assert not loaded.training and loaded.class_names == run.data.class_names
    with torch.no_grad():
        expected = run.network()(normalised).logits[(exit or 3) - 1]
        torch.testing.assert_close(loaded(images), expected, rtol=1e-5, atol=1e-5)
    assert {"config.json", "model.safetensors"} <= {file.name for file in tmp_path.iterdir()}
    assert not any("relation" in name for name in load_file(tmp_path / "model.safetensors"))


def test_the_configuration_is_plain_values(run: Run, tmp_path: Path) -> None:
    ExitClassifier.from_run(run).save_pretrained(tmp_path)
    config = read_json(tmp_path / "config.json")
    assert (config["network"], config["width"], config["exit"], config["exits"]) == ("resnet8", 8, 3, "all")
    assert config["class_names"] == list(run.data.class_names) and config["image_size"] == 8


def saved(run: Run, folder: Path) -> Path:
    ExitClassifier.from_run(run, 1).save_pretrained(folder)
    return folder


FIRST = "network.backbone.stem.conv.weight"


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda w: w.pop(FIRST), rf"is of another architecture: {FIRST} is absent there, \(8, 1, 3, 3\) in this network"),
        (lambda w: w.update({FIRST: torch.zeros(2)}), rf"is of another architecture: {FIRST} is \(2,\) there"),
        (
            lambda w: w.update({"network.more": torch.zeros(2)}),
            r"is of another architecture: network\.more is \(2,\) there, absent",
        ),
        (lambda w: w.update({"method.more": torch.zeros(2)}), r"has the tensor 'method\.more', .* network\.$"),
        (lambda w: w[FIRST].fill_(float("nan")), rf"{FIRST} is not finite$"),
        (lambda w: w.update({FIRST: w[FIRST].long()}), rf"{FIRST} is of torch\.int64; allowed: torch\.float32$"),
    ],
)
def test_weights_of_another_kind_are_named(
    run: Run, tmp_path: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    weights = load_file(saved(run, tmp_path) / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CorsdError, match=r"model\.safetensors:? " + message):
        ExitClassifier.from_pretrained(str(tmp_path))


def test_a_pickle_is_not_opened(run: Run, tmp_path: Path) -> None:
    (saved(run, tmp_path) / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CorsdError, match=r"pytorch_model\.bin is a pickle, which is not opened; expected: model\.safetensors$"):
        ExitClassifier.from_pretrained(str(tmp_path))
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(CorsdError, match=r"model\.safetensors does not exist$"):
        ExitClassifier.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", ["", "{\0}", "{", "[]", "null", "{}"])
def test_a_file_that_is_no_configuration_is_one_error(run: Run, tmp_path: Path, content: str) -> None:
    (saved(run, tmp_path) / "config.json").write_text(content)
    with pytest.raises(CorsdError, match=r"config\.json( = | is not valid JSON: | lacks network; )"):
        ExitClassifier.from_pretrained(str(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(CorsdError, match=r"config\.json does not exist$"):
        ExitClassifier.from_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    "field,value,message",
    [
        *(("exit", value, "exit = ") for value in ("2", None, 2.0, True, 0)),
        ("exit", 4, "exit = 4; allowed: 1 to 3"),
        ("class_names", 3, "class_names = 3; allowed: a list"),
        ("class_names", [], "class_names has 0 entries"),
        ("class_names", [["a"], "b"], r"class_names\[0\] = \['a'\]; allowed: a string"),
        *(("mean", value, "mean = ") for value in (None, 0.3)),
        ("mean", ["a"], r"mean\[0\] = 'a'; allowed: a number"),
        *(("std", [value], r"std\[0\] = ") for value in (0.0, float("nan"), float("inf"), -1.0)),
        ("std", [], "std has 0 entries"),
        ("std", [0.3, 0.3], "std has 2 entries; allowed: 1, as mean has"),
        ("image_size", 8.5, "image_size = 8.5"),
        ("width", "8", "width = '8'"),
        ("network", ["resnet8"], "network = "),
        ("exits", "some", "exits 'some' is not known; allowed: all, deepest"),
        ("more", 1, "field 'more' is not known; allowed: network, exit"),
    ],
)
def test_a_wrong_value_of_the_configuration_is_named(run: Run, tmp_path: Path, field: str, value: object, message: str) -> None:
    config = read_json(saved(run, tmp_path) / "config.json")
    write_json(tmp_path / "config.json", {**config, field: value})
    with pytest.raises(CorsdError, match=rf"config\.json: {message}"):
        ExitClassifier.from_pretrained(str(tmp_path))
    if field != "more":
        with pytest.raises(CorsdError, match=message):
            ExitClassifier(**{**config, field: value})
    del config["std"]
    write_json(tmp_path / "config.json", config)
    with pytest.raises(CorsdError, match=r"config\.json lacks std; allowed: a JSON object with network"):
        ExitClassifier.from_pretrained(str(tmp_path))


def test_what_is_no_run_or_no_classifier_is_one_error(run: Run) -> None:
    with pytest.raises(CorsdError, match="run is 'runs/a'; allowed: a Run"):
        ExitClassifier.from_run("runs/a")  # type: ignore[arg-type]
    with pytest.raises(CorsdError, match="classifier is None; allowed: a str or a Path"):
        ExitClassifier.from_pretrained(None)  # type: ignore[arg-type]
    with pytest.raises(
        CorsdError, match=r"^classifier 'no\\x00/a/b' is not a folder, and it cannot be downloaded: Repo id must"
    ):
        ExitClassifier.from_pretrained("no\0/a/b")


def test_a_classifier_of_the_hub(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options))
        if name == "nobody/none":
            raise OSError("offline\nand more")
        return str(tmp_path)

    monkeypatch.setattr(classifier, "snapshot_download", download)
    saved(run, tmp_path)
    found = ExitClassifier.from_pretrained("somebody/digits", revision="v1")
    assert found.class_names == run.data.class_names
    assert asked == [("somebody/digits", {"revision": "v1", "allow_patterns": ["config.json", "model.safetensors"]})]
    message = "^classifier 'nobody/none' is not a folder, and it cannot be downloaded: offline$"
    with pytest.raises(CorsdError, match=message):
        ExitClassifier.from_pretrained("nobody/none")


def test_a_place_that_cannot_be_written_is_one_error(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    found = ExitClassifier.from_run(run, 1)
    for place, reason in (("file", "File exists"), ("file/sub", "Not a directory")):
        with pytest.raises(CorsdError, match=rf"^cannot write .*{place}: {reason}$"):
            found.save_pretrained(tmp_path / place)
    (tmp_path / "model" / "model.safetensors").mkdir(parents=True)
    with pytest.raises(CorsdError, match=r"^cannot write .*model: "):
        found.save_pretrained(tmp_path / "model")

    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError("offline")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse)
    with pytest.raises(CorsdError, match=r"^the classifier cannot be uploaded to 'somebody/digits': offline$"):
        found.push_to_hub("somebody/digits")


@pytest.mark.parametrize("exit", [0, 4, "2", 2.0, True])
def test_an_exit_that_is_not_there_is_named(run: Run, exit: Any) -> None:
    with pytest.raises(CorsdError, match=f"exit = {exit!r}; allowed: 1 to 3"):
        ExitClassifier.from_run(run, exit)


def test_a_configuration_of_no_network_is_one_error(run: Run, tmp_path: Path) -> None:
    ExitClassifier.from_run(run).save_pretrained(tmp_path)
    write_json(tmp_path / "config.json", {**read_json(tmp_path / "config.json"), "network": "resnet9"})
    with pytest.raises(CorsdError, match="resnet9"):
        ExitClassifier.from_pretrained(str(tmp_path))


def test_the_example_of_the_docs_runs(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[1] / "docs" / "README.md").read_text(encoding="utf-8")
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "ExitClassifier" in block)
    (tmp_path / "runs").mkdir()
    shutil.copytree(run.path, tmp_path / "runs" / "first")
    monkeypatch.chdir(tmp_path)
    space = {"images": torch.rand(3, 1, 8, 8)}
    exec(example, space)
    assert space["logits"].shape == (3, 10)


def test_the_card_describes_the_classifier_and_its_example_runs(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (saved(run, tmp_path) / "README.md").read_text(encoding="utf-8")
    assert "# resnet8, exit 1:" in text and "1 x 8 x 8 values" in text and "More Information Needed" not in text
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    exec(example, space)
    assert space["logits"].shape == (1, 10)


def test_an_uploaded_card_names_its_repository(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    cards = []

    def upload(self: Any, *, folder_path: Path, **options: Any) -> str:
        cards.append((Path(folder_path) / "README.md").read_text(encoding="utf-8"))
        return "uploaded"

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda self, repo_id, **options: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload)
    assert ExitClassifier.from_run(run, 1).push_to_hub("somebody/digits") == "uploaded"
    assert 'from_pretrained("somebody/digits")' in cards[0]
