"""The explorer of attributions: what it draws is what `corsd_lib.attribution` computes, and what it says is true of that."""

from __future__ import annotations

import io
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from explorers import LONG
from PIL import Image
from tiny import TINY

from corsd_lib import Run, TrainConfig, load_run, train
from corsd_lib.analysis.images import run_images, run_pixels
from corsd_lib.attribution import Randomisation, attribute_run, attribute_run_pair, deletion_curve, randomisation_check
from corsd_lib.batches import Normalise
from corsd_lib.datasets import ImageData
from corsd_lib.errors import CorsdError
from corsd_lib.files import read_json, write_json
from corsd_lib.runs import load_data
from corsd_lib.sharing.export import export_run
from corsd_lib.widgets import attribution_checks
from corsd_lib.widgets.attribution import AttributionExplorer
from corsd_lib.widgets.attribution_pictures import RAISED, map_png
from corsd_lib.widgets.own_images import own_pixels


@pytest.fixture(scope="module")
def data(tiny_run: Run) -> ImageData:
    return load_data(tiny_run.config)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = str(tmp_path_factory.mktemp("baseline") / "run")
    return train(TrainConfig(**{**TINY, "method": "baseline", "epochs": 1}, out=out), progress=False)


@pytest.fixture
def explorer(tiny_run: Run, data: ImageData) -> AttributionExplorer:
    explorer = AttributionExplorer(tiny_run, image=3, data=data)
    explorer._steps_chosen = True  # as after the first map
    return explorer


def maps(explorer: AttributionExplorer) -> list[np.ndarray]:
    """The signed maps that are shown, an image each."""
    return [found.map.numpy() for found in explorer.attributions]


def answer(explorer: AttributionExplorer, **changed: Any) -> dict[str, Any]:
    """What the browser is told of the map that it asks for."""
    return explorer.ask_map(**explorer.get_state(list(explorer.chosen)) | changed)


def said(explorer: AttributionExplorer) -> str:
    found = answer(explorer)
    return f"{found['finding']}. {found['completeness']}"


def pictures(explorer: AttributionExplorer) -> list[np.ndarray]:
    """The images that are shown, (8, 8, 3) uint8."""
    return [np.asarray(Image.open(io.BytesIO(row["pngs"][0][0])))[::24, ::24] for row in answer(explorer)["rows"]]


def table(explorer: AttributionExplorer) -> list[list[str]]:
    return [row[1:] for row in answer(explorer)["table"]["rows"]]


# --- an exit's decision ---


def test_first_view_is_the_deepest_exits_own_prediction_of_the_first_image(tiny_run: Run, data: ImageData) -> None:
    explorer = AttributionExplorer(tiny_run)
    found = attribute_run(tiny_run, 0, 3, data)
    assert (explorer.image, explorer.partner, explorer.exit, explorer.target) == (0, None, 3, "own prediction")
    assert (explorer.method, explorer.baseline, explorer.steps) == ("integrated_gradients", "mean", 50)
    assert explorer._shown is None  # nothing is computed before somebody looks
    explorer.steps = 50
    (drawn,) = maps(explorer)
    np.testing.assert_allclose(drawn, found.map.numpy(), rtol=1e-5, atol=1e-7)
    (picture,) = pictures(explorer)
    np.testing.assert_array_equal(picture[..., 0], run_pixels(tiny_run, [0], data)[0, 0].numpy())
    logits = tiny_run.network()(run_images(tiny_run, [0], data)).logits
    name = tiny_run.data.class_names[found.target or 0]
    assert found.target == logits[2].argmax()
    assert said(explorer).startswith(f"Exit 3 predicts {name} with {100 * logits[2].softmax(1).max():.1f} %. ")
    assert f"logit of {name}, f(x) = {found.score:.2f}, f(baseline) = {found.baseline_score:.2f}" in said(explorer)
    assert f"Completeness gap {100 * (found.completeness_gap or 0):.2g} %" in said(explorer)
    shares = [z.softmax(1)[0] for z in logits]
    of_target = [f"{100 * share[found.target]:.1f} %" for share in shares]
    says = [[str(int(share.argmax())), f"{100 * share.max():.1f} %"] for share in shares]
    assert table(explorer) == [[*row, target] for row, target in zip(says, of_target, strict=True)]


def test_every_control_changes_the_map_to_what_it_says(explorer: AttributionExplorer, tiny_run: Run, data: ImageData) -> None:
    asked: dict[str, Any] = {"position": 3, "exit": 3}

    def check(**changed: Any) -> None:
        asked.update(changed)
        (drawn,), expected = maps(explorer), attribute_run(tiny_run, **asked, data=data)
        np.testing.assert_allclose(drawn, expected.map.numpy(), rtol=1e-4, atol=1e-6)
        assert f"f(x) = {expected.score:.2f}" in said(explorer)

    explorer.set_state({"exit": 1})  # as a browser does
    check(exit=1)
    explorer.set_state({"target": "true label"})
    check(target=int(tiny_run.probes.labels[3]))
    explorer.set_state({"target": 8})
    check(target=8)
    explorer.set_state({"baseline": "black"})
    check(baseline="black")
    explorer.set_state({"steps": 20})
    check(steps=20)
    explorer.set_state({"image": 4})
    check(position=4)
    answer(explorer, image=7)  # a question that comes before the news
    check(position=7)
    assert explorer.image == 7
    explorer.set_state({"method": "grad_cam"})
    check(method="grad_cam")
    assert "completeness cannot be checked" in said(explorer)


def test_it_takes_the_steps_that_completeness_needs_until_somebody_chooses(
    tiny_run: Run, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    explorer, told = AttributionExplorer(tiny_run, data=data), []
    explorer.observe(lambda change: told.append(change.new), "steps")
    plain = AttributionExplorer._attribute

    def coarse(self: AttributionExplorer) -> Any:
        return tuple(replace(a, completeness_gap=0.2 if self.steps < 200 else 0.01) for a in plain(self))

    monkeypatch.setattr(AttributionExplorer, "_attribute", coarse)
    assert answer(explorer)["complete"] is True and explorer.steps == 200 and told == [100, 200]
    explorer.steps = 50
    found = answer(explorer)
    assert found["complete"] is False and explorer.steps == 50 and "use more steps" in found["completeness"]


def test_state_is_set_from_python_and_bad_values_change_nothing(explorer: AttributionExplorer) -> None:
    explorer.exit, explorer.target, explorer.method, explorer.baseline, explorer.steps = 2, "7", "grad_cam", "blur", 20
    assert (explorer.exit, explorer.target, explorer.method) == (2, 7, "grad_cam")
    assert (explorer.baseline, explorer.steps) == ("blur", 20)
    assert explorer.attributions[0].target == 7 and explorer.attributions[0].exit == 2
    wrong = {"exit": (4,), "target": ("ten", 10), "method": ("saliency",), "baseline": ("white",), "steps": (0,)}
    for name, bad in ((name, bad) for name, values in wrong.items() for bad in values):
        before = getattr(explorer, name)
        with pytest.raises(CorsdError, match=f"{name} {bad!r}"):
            setattr(explorer, name, bad)
        assert getattr(explorer, name) == before


@pytest.mark.parametrize("bad", [50, -1, True, 1.0, "3", None, np.zeros((8, 8)), np.zeros((2, 8, 8), np.uint8)])
def test_a_bad_image_is_refused_and_the_old_one_kept(explorer: AttributionExplorer, bad: Any) -> None:
    with pytest.raises(CorsdError, match="image"):
        explorer.image = bad
    assert explorer.image == 3


def test_each_change_is_told_once_whichever_way_it_came(explorer: AttributionExplorer) -> None:
    told: list[tuple[str, Any]] = []
    explorer.observe(lambda change: told.append((change.name, change.new)), ["image", "partner"])
    explorer.image = 9
    explorer.set_state({"image": 5, "partner": 2})
    explorer.set_state({"partner": None})
    assert told == [("image", 9), ("image", 5), ("partner", 2), ("partner", None)]


def test_the_browser_knows_what_every_exit_gets_wrong(explorer: AttributionExplorer, tiny_run: Run) -> None:
    sent = explorer._data["predictions"]
    predictions = np.frombuffer(sent["bytes"], sent["dtype"]).reshape(sent["shape"])
    for k, z in enumerate(tiny_run.probes[2].logits):
        np.testing.assert_array_equal(predictions[k], z.argmax(1))


# --- a pair's relation ---


@pytest.mark.parametrize("method", ["integrated_gradients", "grad_cam"])
def test_a_partner_makes_it_a_pairs_relation(
    explorer: AttributionExplorer, tiny_run: Run, data: ImageData, method: str
) -> None:
    explorer.method, explorer.exit, explorer.partner = method, 2, 30
    expected = attribute_run_pair(tiny_run, 3, 30, 2, data, method=method)
    for drawn, found in zip(maps(explorer), expected, strict=True):
        np.testing.assert_allclose(drawn, found.map.numpy(), rtol=1e-4, atol=1e-6)
    score = expected[0].score
    relation = 1 / (1 + np.exp(-score))
    assert f"At exit 2 the two have the relation logit {score:.2f}, a relation of {relation:.2f}." in said(explorer)
    shown = run_pixels(tiny_run, [3, 30], data)
    for picture, pixels in zip(pictures(explorer), shown, strict=True):
        np.testing.assert_array_equal(picture[..., 0], pixels[0].numpy())
    assert len(table(explorer)[0]) == 4 and not answer(explorer)["testable"]
    with pytest.raises(CorsdError, match="remove the partner"):
        explorer.ask_weights()
    explorer.partner = None
    assert len(maps(explorer)) == 1 and answer(explorer)["testable"]


def test_a_pair_of_a_run_with_one_exit_is_explained_by_the_relation_of_that_exits_stage(tmp_path: Path) -> None:
    release = {**TINY, "method": "corsd_release", "batch_size": 30, "epochs": 1}
    run = train(TrainConfig(**release, out=str(tmp_path / "run")), progress=False)
    data = load_data(run.config)
    explorer = AttributionExplorer(run, image=3, data=data)
    explorer.partner = 5
    deepest, _ = attribute_run_pair(run, 3, 5, 3, data)
    assert explorer.attributions[0].score == pytest.approx(deepest.score, rel=1e-4)
    assert f"At stage 3 the two have the relation logit {deepest.score:.2f}" in said(explorer)


def test_a_relation_by_distance_is_called_so(tmp_path: Path) -> None:
    options = {**TINY, "method_options": {"relation": "l2"}, "epochs": 1}
    run = train(TrainConfig(**options, out=str(tmp_path / "run")), progress=False)
    explorer = AttributionExplorer(run, image=3, data=load_data(run.config))
    explorer.partner = 5
    assert "the two have the negative distance -" in said(explorer) and "Explained is the negative distance" in said(explorer)
    assert "cosine" not in said(explorer)


def test_a_method_without_relation_networks_has_the_cosine(baseline: Run) -> None:
    explorer = AttributionExplorer(baseline, image=0, partner=1)
    explorer.steps = 50
    expected = attribute_run_pair(baseline, 0, 1, 1)
    assert f"cosine {expected[0].score:.2f}. Explained is the cosine, f(x) = {expected[0].score:.2f}" in said(explorer)
    assert explorer._data["exits"] == ["exit 1 (the only one)"]


def data_less(data: ImageData) -> ImageData:
    return replace(data, validation=None)


def test_a_map_as_a_picture_shows_sign_and_size() -> None:
    values = torch.tensor([[1.0, -0.5], [0.0, 3.0]])
    picture = np.asarray(Image.open(io.BytesIO(map_png(values, 1.0, side=2))))
    vermilion = [int(RAISED[i : i + 2], 16) for i in (1, 3, 5)]
    assert picture[0, 0].tolist() == picture[1, 1].tolist() == [*vermilion, 255]  # beyond the limit is its end
    assert picture[0, 1, 3] == 128 and picture[0, 1, 2] > picture[0, 1, 0] and picture[1, 0, 3] == 0
    image = torch.full((3, 2, 2), 100, dtype=torch.uint8)
    over = np.asarray(Image.open(io.BytesIO(map_png(values, 1.0, image, side=2))))
    assert over[0, 0, :3].tolist() == vermilion and over[1, 0].tolist() == [100, 100, 100, 255]
    assert np.asarray(Image.open(io.BytesIO(map_png(torch.zeros(2, 2), 0.0, side=2))))[..., 3].max() == 0


# --- the checks ---


def test_weights_are_drawn_anew_and_the_correlations_shown(
    explorer: AttributionExplorer, tiny_run: Run, data: ImageData
) -> None:
    explorer.exit = 1
    found = explorer.ask_weights()
    (image,) = run_images(tiny_run, [3], data)
    network, normalise = tiny_run.network(), Normalise(data)
    target = explorer.attributions[0].target
    values = [randomisation_check(network, image, 1, target, normalise=normalise, seed=s) for s in range(5)]
    np.testing.assert_allclose(found["signed"], [v.signed for v in values], atol=1e-4)
    np.testing.assert_allclose(found["strength"], [v.absolute for v in values], atol=1e-4)
    means = np.mean(values, axis=0)
    assert f"correlates {means[0]:.2f} with this one, {means[1]:.2f} for absolute values: " in found["sentence"]


def test_deletion_draws_the_curve_of_the_map_and_says_what_it_means(
    explorer: AttributionExplorer, tiny_run: Run, data: ImageData
) -> None:
    found = explorer.ask_deletion()
    (image,) = run_images(tiny_run, [3], data)
    curve = deletion_curve(tiny_run.network(), image, 3, attribute_run(tiny_run, 3, 3, data))
    np.testing.assert_allclose(found["x"], 100 * curve.fraction.numpy(), rtol=1e-5)
    for line, values in zip(found["lines"], (curve.probability, curve.random_probability), strict=True):
        np.testing.assert_allclose(line["y"], 100 * values.numpy(), rtol=1e-3, atol=1e-3)
    assert f"{curve.area:.3f}, {curve.random_area:.3f} in random order" in found["sentence"]
    assert ("depends on these pixels" in found["sentence"]) == (curve.area < 0.8 * curve.random_area)


@pytest.mark.parametrize(
    ("correlation", "verdict"),
    [
        ((0.1, 0.2), "depends on the training"),
        ((0.9, 0.1), "an untrained network"),
        ((-0.05, 0.4), "only the signs depend on the training"),
    ],
)
def test_the_verdict_on_random_weights_follows_the_correlation(
    explorer: AttributionExplorer, monkeypatch: pytest.MonkeyPatch, correlation: tuple[float, float], verdict: str
) -> None:
    monkeypatch.setattr(attribution_checks, "randomisation_check", lambda *args, **options: Randomisation(*correlation))
    assert verdict in explorer.ask_weights()["sentence"]
    monkeypatch.setattr(
        attribution_checks, "randomisation_check", lambda *args, **options: Randomisation(float("nan"), float("nan"))
    )
    assert "no correlation" in explorer.ask_weights()["sentence"]


# --- without data, and with an image of one's own ---


@pytest.fixture
def dataless(tiny_run: Run, data: ImageData) -> AttributionExplorer:
    return AttributionExplorer(tiny_run, data=data_less(data))


def test_without_data_a_sentence_says_what_to_do(dataless: AttributionExplorer) -> None:
    with pytest.raises(CorsdError, match=r"No images here.*explorer\.image = array"):
        answer(dataless)
    assert "No images here" in dataless.picture().layout.title.text and "No images here" in dataless.panels()[0].data["text"]
    with pytest.raises(CorsdError, match="No images here"):
        dataless.ask_deletion()


def test_an_image_of_ones_own_needs_no_data(dataless: AttributionExplorer, tiny_run: Run, data: ImageData) -> None:
    pixels = run_pixels(tiny_run, [3], data)[0]
    dataless.steps = 20
    expected = attribute_run(tiny_run, 3, 3, data, steps=20).map.numpy()
    shown = []
    for count, own in enumerate((pixels, pixels[0].numpy(), pixels.permute(1, 2, 0)), 1):
        dataless.image = own
        shown.append(dataless.image)
        (drawn,) = maps(dataless)
        np.testing.assert_allclose(drawn, expected, rtol=1e-3, atol=1e-4)
        assert dataless.get_state(["image"]) == {"image": f"your image {count}"}  # the browser sees that it is another one
        dataless.set_state({"image": f"your image {count}", "exit": 3})  # what the browser knows of it
        assert isinstance(dataless.image, torch.Tensor)
    dataless.set_state({"image": "your image 1"})  # undo in the browser
    assert dataless.image is shown[0]
    dataless.image = 2
    dataless.set_state({"image": "your image 3"})
    assert dataless.image is shown[2]
    with pytest.raises(CorsdError, match=r"image 'your image 4' is not known here\. Use your own image"):
        dataless.image = "your image 4"
    dataless.target = "true label"
    with pytest.raises(CorsdError, match="no true label"):
        answer(dataless)
    dataless.target = "own prediction"
    dataless.partner = pixels.flip(2)
    assert len(maps(dataless)) == 2 and "your image" in answer(dataless)["table"]["head"]


def test_own_images_are_scaled_to_the_runs_size_and_channels(tiny_run: Run) -> None:
    grey, colour = tiny_run.data, replace(tiny_run.data, mean=(0.5,) * 3, std=(0.2,) * 3, image_size=16)
    photo = np.zeros((40, 60, 3), np.uint8)
    photo[:, 5:55] = (200, 100, 50)
    small = own_pixels(photo, colour)
    assert small.shape == (3, 16, 16) and small.dtype == torch.uint8
    assert small.flatten(1).unique(dim=1).tolist() == [[200], [100], [50]]  # the middle, not squeezed
    assert own_pixels(photo, grey).unique().tolist() == [124]  # 0.299 R + 0.587 G + 0.114 B
    assert own_pixels(photo[..., 0], colour).flatten(1).unique(dim=1).tolist() == [[200]] * 3


# --- runs of all kinds ---


def test_an_exported_run_opens_and_explains_its_own_weights(tiny_run: Run, tmp_path: Path) -> None:
    exported = export_run(tiny_run, tmp_path / "small", snapshots=2, probe_images=20)
    explorer = AttributionExplorer(exported, image=5, partner=2, exit=1)
    expected = attribute_run_pair(exported, 5, 2, 1)
    np.testing.assert_allclose(maps(explorer)[0], expected[0].map.numpy(), rtol=1e-4, atol=1e-6)


def test_a_run_without_weights_or_snapshots_says_so(tiny_run: Run, data: ImageData, tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", read_json(tiny_run.path / "config.json"))
    with pytest.raises(CorsdError, match=f"{tmp_path} has no probe snapshots"):
        AttributionExplorer(load_run(tmp_path))
    for file in ("probe.safetensors", "probes/epoch_0002.safetensors"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes((tiny_run.path / file).read_bytes())
    with pytest.raises(CorsdError, match="has no weights yet"):
        answer(AttributionExplorer(load_run(tmp_path), data=data))


def test_names_of_classes_are_escaped_everywhere(tiny_run: Run, data: ImageData, tmp_path: Path) -> None:
    names = ["<img src=x onerror=alert(1)>" for _ in range(10)]
    for file in ("probe.safetensors", "probes/epoch_0002.safetensors", "weights.safetensors"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes((tiny_run.path / file).read_bytes())
    content = read_json(tiny_run.path / "config.json")
    content["data"]["class_names"] = names
    write_json(tmp_path / "config.json", content)
    run = load_run(tmp_path)
    data = replace(data, class_names=tuple(names))
    explorer = AttributionExplorer(run, data=data)
    text = explorer.picture().to_json()
    assert "<img src=x" not in text and "&lt;img src=x" in text


def test_a_long_name_is_written_short_and_whole_on_hover(tiny_run: Run, data: ImageData, tmp_path: Path) -> None:
    for file in ("probe.safetensors", "probes/epoch_0002.safetensors", "weights.safetensors"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes((tiny_run.path / file).read_bytes())
    content = read_json(tiny_run.path / "config.json")
    content["data"]["class_names"] = [LONG] * 10
    write_json(tmp_path / "config.json", content)
    run = load_run(tmp_path)
    data = replace(data, class_names=(LONG,) * 10)
    explorer = AttributionExplorer(run, data=data)
    explorer.target = LONG
    assert max(map(len, said(explorer).split())) < 60 and max(map(len, explorer._data["names"])) < 60
    assert LONG not in explorer.picture().to_json() and explorer._data["whole_names"]["0"] == LONG


def test_it_opens_in_a_second(tiny_run: Run, data: ImageData) -> None:
    begin = time.process_time()
    AttributionExplorer(tiny_run, data=data)
    assert time.process_time() - begin < 1.0


def test_to_html_has_the_figure_and_the_sentence(explorer: AttributionExplorer) -> None:
    (panel,) = explorer.panels()
    assert panel.kind == "figure" and panel.data["text"] == said(explorer)
    assert repr(explorer).endswith("image 3, partner None, exit 3)")


def test_a_request_changes_python_but_sends_no_choice_back(
    explorer: AttributionExplorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The browser may have chosen again; its older choice, sent back, would replace the newer one and be requested again."""
    sent: list[Any] = []
    explorer.ask_map(image=0)  # the number of steps is chosen with the first map
    monkeypatch.setattr("ipywidgets.Widget.send_state", lambda self, key=None: sent.append(key))
    explorer.ask_map(image=2, exit=1)
    assert (explorer.image, explorer.exit) == (2, 1) and sent == []
    explorer.exit = 2  # a change by the user of Python is sent
    assert sent == ["exit"]
