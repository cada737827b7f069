"""One exit of a run as a classifier of the Hub: stored as plain values and safetensors, and the same when it is loaded."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from corsd_lib.batches import evaluation_batches
from corsd_lib.errors import CorsdError
from corsd_lib.files import read_json, write_json
from corsd_lib.runs import Run, TrainConfig, load_data
from corsd_lib.training import train

pytest.importorskip("huggingface_hub", reason="needs huggingface_hub of the extra hub")
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


def test_a_file_without_all_weights_is_refused(run: Run, tmp_path: Path) -> None:
    ExitClassifier.from_run(run, 1).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.popitem()
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CorsdError, match=r"model\.safetensors has no weights of this classifier: "):
        ExitClassifier.from_pretrained(str(tmp_path))


def test_a_pickle_is_not_opened(run: Run) -> None:
    with pytest.raises(CorsdError, match=r"pytorch_model\.bin is a pickle, which is not opened"):
        ExitClassifier._load_as_pickle(ExitClassifier.from_run(run), "pytorch_model.bin", "cpu", False)


@pytest.mark.parametrize("exit", [0, 4])
def test_an_exit_that_is_not_there_is_named(run: Run, exit: int) -> None:
    with pytest.raises(CorsdError, match=f"exit {exit} of a network; allowed: 1 to 3"):
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
