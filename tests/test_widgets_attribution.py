"""The explorer of attributions: what it draws is what `corsd_lib.attribution` computes, and what it says is true of that."""

from __future__ import annotations

import base64
import html
import io
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from explorers import LONG, longest_word
from PIL import Image
from tiny import TINY

from corsd_lib import Run, TrainConfig, load_run, train
from corsd_lib.analysis.images import run_images, run_pixels
from corsd_lib.attribution import Randomisation, attribute_run, attribute_run_pair, deletion_curve, randomisation_check
from corsd_lib.batches import Normalise
from corsd_lib.datasets import ImageData
from corsd_lib.errors import CorsdError
from corsd_lib.evaluation import load_data
from corsd_lib.export import export_run
from corsd_lib.files import read_json, write_json
from corsd_lib.widgets import attribution_checks
from corsd_lib.widgets.attribution import AttributionExplorer
from corsd_lib.widgets.attribution_pictures import RAISED, map_png
from corsd_lib.widgets.image_choice import ImageChoice, own_pixels


@pytest.fixture(scope="module")
def data(tiny_run: Run) -> ImageData:
    return load_data(tiny_run.config)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = str(tmp_path_factory.mktemp("baseline") / "run")
    return train(TrainConfig(**{**TINY, "method": "baseline", "epochs": 1}, out=out), progress=False)


@pytest.fixture
def explorer(tiny_run: Run, data: ImageData) -> AttributionExplorer:
    return AttributionExplorer(tiny_run, image=3, data=data)


def maps(explorer: AttributionExplorer) -> list[np.ndarray]:
    """The signed maps that are drawn, an image each, from their columns."""
    drawn = [t for t in explorer.figure.data if t.type == "heatmap" and t.name == "map"]
    assert all(t.z.dtype == np.float32 and t.z.ndim == 1 for t in drawn)  # what FigureWidget sends in binary
    side = explorer.run.data.image_size
    for trace in drawn:
        np.testing.assert_array_equal(trace.x, np.tile(np.arange(side), side))
        np.testing.assert_array_equal(trace.y, np.repeat(np.arange(side), side))
    return [t.z.reshape(side, side) for t in drawn]


def pictures(explorer: AttributionExplorer) -> list[np.ndarray]:
    """The images that are drawn, each before its grey copy: (H, W, 3) uint8."""
    sources = [t.source.partition(",")[2] for t in explorer.figure.data if t.type == "image"]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(s)))) for s in sources[::2]]


def said(explorer: AttributionExplorer) -> str:
    return html.unescape(re.sub("<[^>]*>", "", explorer.sentence.value))


def table(explorer: AttributionExplorer) -> list[list[str]]:
    return [re.findall("<td>(.*?)</td>", row) for row in explorer.table.value.split("<tr>")[2:]]


# --- an exit's decision ---


def test_first_view_is_the_deepest_exits_own_prediction_of_the_first_image(tiny_run: Run, data: ImageData) -> None:
    explorer = AttributionExplorer(tiny_run)
    found = attribute_run(tiny_run, 0, 3, data)
    assert (explorer.image, explorer.partner, explorer.exit, explorer.target) == (0, None, 3, "own prediction")
    assert (explorer.method, explorer.baseline, explorer.steps) == ("integrated_gradients", "mean", 50)
    (drawn,) = maps(explorer)
    np.testing.assert_allclose(drawn, found.map.numpy(), rtol=1e-5, atol=1e-7)
    (picture,) = pictures(explorer)
    np.testing.assert_array_equal(picture[..., 0], run_pixels(tiny_run, [0], data)[0, 0].numpy())
    logits = tiny_run.network()(run_images(tiny_run, [0], data)).logits
    name = tiny_run.data.class_names[found.target or 0]
    assert found.target == logits[2].argmax()
    assert said(explorer).startswith(f"Exit 3 says {name} with {100 * logits[2].softmax(1).max():.1f} %. ")
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

    explorer.exit_choice.set_state({"index": 0})  # as a browser does
    check(exit=1)
    explorer.target_choice.set_state({"index": 1})
    check(target=int(tiny_run.probes.labels[3]))
    explorer.target_choice.set_state({"index": 2 + 8})
    check(target=8)
    explorer.baseline_choice.set_state({"index": 1})
    check(baseline="black")
    explorer.steps_choice.set_state({"index": 0})
    check(steps=20)
    explorer.image_choice.class_choice.set_state({"index": 4})
    check(position=(tiny_run.probes.labels == 4).nonzero()[0].item())
    explorer.image_choice.number.set_state({"value": 3})
    check(position=(tiny_run.probes.labels == 4).nonzero()[2].item())
    assert explorer.image == asked["position"]
    explorer.method_choice.set_state({"index": 1})
    check(method="grad_cam")
    assert "no check of completeness" in said(explorer)
    assert explorer.baseline_choice.disabled and explorer.steps_choice.disabled


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


def test_each_change_is_told_once_whichever_way_it_came(explorer: AttributionExplorer, tiny_run: Run) -> None:
    told: list[tuple[str, Any]] = []
    explorer.observe(lambda change: told.append((change.name, change.new)), ["image", "partner"])
    labels = tiny_run.probes.labels
    explorer.image = 9
    explorer.image_choice.class_choice.value = 5
    explorer.image_choice.number.value = 2
    explorer.partner_choice.class_choice.value = 2
    explorer.partner_choice.class_choice.value = None
    fifth, second = ((labels == c).nonzero().flatten().tolist() for c in (5, 2))
    assert told == [("image", 9), ("image", fifth[0]), ("image", fifth[1]), ("partner", second[0]), ("partner", None)]
    assert (explorer.image_choice.class_choice.value, explorer.image_choice.number.value) == (5, 2)


def test_buttons_find_another_image_and_one_that_the_exit_gets_wrong(explorer: AttributionExplorer, tiny_run: Run) -> None:
    predicted = tiny_run.probes[2].logits[0].argmax(1)
    wrong = (predicted != tiny_run.probes.labels).nonzero().flatten().tolist()
    assert 1 < len(wrong) < 50
    explorer.exit = 1
    for _ in range(4):
        before = explorer.image
        explorer.wrong_button.click()
        assert explorer.image in wrong and explorer.image != before
    seen = set()
    for _ in range(4):
        explorer.random_button.click()
        seen.add(explorer.image)
    assert len(seen) > 1


def test_an_exit_that_gets_nothing_wrong_says_so(explorer: AttributionExplorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer, "_wrong", list)
    explorer.wrong_button.click()
    assert explorer.image == 3 and said(explorer) == "Exit 3 gets no other image of the probe set wrong."


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
    assert explorer.target_choice.disabled and len(table(explorer)[0]) == 4
    explorer.checks.weights_button.click()
    assert "no partner" in explorer.checks.sentence.value and explorer.checks.figure is None
    explorer.partner = None
    assert len(maps(explorer)) == 1 and not explorer.target_choice.disabled


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
    expected = attribute_run_pair(baseline, 0, 1, 1)
    assert f"cosine {expected[0].score:.2f}. Explained is the cosine, f(x) = {expected[0].score:.2f}" in said(explorer)
    assert [name for name, _ in explorer.exit_choice.options] == ["exit 1 (the only one)"]


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
    explorer.checks.weights_button.click()
    (image,) = run_images(tiny_run, [3], data)
    network, normalise = tiny_run.network(), Normalise(data)
    target = explorer.attributions[0].target
    values = [randomisation_check(network, image, 1, target, normalise=normalise, seed=s) for s in range(5)]
    figure = explorer.checks.figure
    assert figure is not None
    strength, signed = figure.data
    np.testing.assert_allclose(signed.x, [v.signed for v in values], atol=1e-4)
    np.testing.assert_allclose(strength.x, [v.strength for v in values], atol=1e-4)
    means = np.mean(values, axis=0)
    assert f"correlates {means[0]:.2f} with this one, in strength alone {means[1]:.2f}: " in explorer.checks.sentence.value


def test_deletion_draws_the_curve_of_the_map_and_says_what_it_means(
    explorer: AttributionExplorer, tiny_run: Run, data: ImageData
) -> None:
    explorer.checks.deletion_button.click()
    (image,) = run_images(tiny_run, [3], data)
    curve = deletion_curve(tiny_run.network(), image, 3, attribute_run(tiny_run, 3, 3, data))
    figure = explorer.checks.figure
    assert figure is not None
    for line, values in zip(figure.data, (curve.probability, curve.random), strict=True):
        np.testing.assert_allclose(line.y, 100 * values.numpy(), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(line.x, 100 * curve.fraction.numpy(), rtol=1e-5)
    sentence = explorer.checks.sentence.value
    assert f"{curve.area:.3f}, {curve.random_area:.3f} in random order" in sentence
    assert ("found pixels" in sentence) == (curve.area < 0.8 * curve.random_area)
    explorer.exit = 2  # another map: the result was not of this one
    assert explorer.checks.sentence.value == "" and explorer.checks.figure is None


@pytest.mark.parametrize(
    ("correlation", "verdict"),
    [
        ((0.1, 0.2), "depends on what was learned"),
        ((0.9, 0.1), "an untrained network"),
        ((-0.05, 0.4), "read the signs only"),
    ],
)
def test_the_verdict_on_random_weights_follows_the_correlation(
    explorer: AttributionExplorer, monkeypatch: pytest.MonkeyPatch, correlation: tuple[float, float], verdict: str
) -> None:
    monkeypatch.setattr(attribution_checks, "randomisation_check", lambda *args, **options: Randomisation(*correlation))
    explorer.checks.weights_button.click()
    assert verdict in explorer.checks.sentence.value
    monkeypatch.setattr(
        attribution_checks, "randomisation_check", lambda *args, **options: Randomisation(float("nan"), float("nan"))
    )
    explorer.checks.weights_button.click()
    assert "nothing to compare" in explorer.checks.sentence.value


# --- without data, and with an image of one's own ---


@pytest.fixture
def dataless(tiny_run: Run, data: ImageData) -> AttributionExplorer:
    return AttributionExplorer(tiny_run, data=data_less(data))


def test_without_data_a_sentence_says_what_to_do(dataless: AttributionExplorer) -> None:
    assert "No images here" in said(dataless) and "explorer.image = array" in said(dataless)
    assert dataless.figure.data == () and dataless.attributions == () and dataless.result.layout.display == "none"
    dataless.checks.deletion_button.click()
    assert "no map" in dataless.checks.sentence.value


def test_an_image_of_ones_own_needs_no_data(dataless: AttributionExplorer, tiny_run: Run, data: ImageData) -> None:
    pixels = run_pixels(tiny_run, [3], data)[0]
    expected = attribute_run(tiny_run, 3, 3, data).map.numpy()
    for own in (pixels, pixels[0].numpy(), pixels.permute(1, 2, 0)):
        dataless.image = own
        (drawn,) = maps(dataless)
        np.testing.assert_allclose(drawn, expected, rtol=1e-3, atol=1e-4)
        assert dataless.result.layout.display is None and dataless.image_choice.class_choice.value is None
    dataless.target = "true label"
    assert "no true label" in said(dataless) and dataless.figure.data == ()
    dataless.target = "own prediction"
    dataless.partner = pixels.flip(2)
    assert len(maps(dataless)) == 2 and "your image" in dataless.table.value


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
    assert "holds no weights yet" in said(AttributionExplorer(load_run(tmp_path), data=data))


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
    explorer.checks.deletion_button.click()
    checks = explorer.checks
    texts = [explorer.sentence.value, explorer.table.value, explorer.figure.to_json(), checks.sentence.value]
    texts += [checks.figure.to_json() if checks.figure else ""]
    for text in texts:
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
    assert longest_word(explorer.sentence.value) < 60 and longest_word(explorer.table.value) < 60
    assert f'title="{LONG}"' in explorer.table.value and LONG not in explorer.figure.to_json()
    for control in (explorer.target_choice, explorer.image_choice.class_choice):
        assert max(len(option[0] if isinstance(option, tuple) else option) for option in control.options) < 60


def test_classes_without_a_probe_image_are_not_offered() -> None:
    choice = ImageChoice(torch.tensor([2, 0, 2]), ["a", "b", "c"], "image")
    assert choice.class_choice.options == (("a (1)", 0), ("c (2)", 2))
    choice.class_choice.value = 2
    assert choice.position == 0 and choice.number.max == 2
    choice.number.value = 2
    assert choice.position == 2
    choice.class_choice.value = 0
    assert (choice.position, choice.number.value, choice.number.max) == (1, 1, 1)


def test_it_opens_in_a_second_and_ships_maps_in_binary(explorer: AttributionExplorer, tiny_run: Run, data: ImageData) -> None:
    begin = time.process_time()
    AttributionExplorer(tiny_run, data=data)
    assert time.process_time() - begin < 1.0
    assert sum(t.z.nbytes for t in explorer.figure.data if t.type == "heatmap") == 2 * 8 * 8 * 4


def test_to_html_has_the_figure_and_the_sentence(explorer: AttributionExplorer) -> None:
    (panel,) = explorer.panels()
    assert panel.kind == "figure" and panel.data["text"] == said(explorer)
    assert repr(explorer).endswith("image 3, partner None, exit 3)")
