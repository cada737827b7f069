"""Pages in a real Chromium, opened from a file with the network blocked: every control, and what plotly holds then."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from corsd_lib import Run, TrainConfig, early_exit_curve, load_run, stage_embedding, train
from corsd_lib.files import read_json, write_json
from corsd_lib.pages import (
    columns_panel,
    exits_panel,
    figure_panel,
    relation_panel,
    stages_panel,
    table_panel,
    text_panel,
    write_page,
)
from corsd_lib.report import write_report

EVIL = "</script><img src=x onerror=alert(1)>&amp;"

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """A run with a class that is named to break the page, and one with a single exit."""
    folder = tmp_path_factory.mktemp("runs")
    for method in ("corsd", "baseline"):
        options: dict[str, Any] = {"per_class": 2, "epochs": 2, "probe_size": 40, "batch_size": 20, "method": method}
        run = train(TrainConfig(**options, out=str(folder / method)), progress=False)
        config = read_json(run.path / "config.json")
        names = [EVIL, *config["data"]["class_names"][1:]]
        config["data"] |= {"class_names": names, "superclass_names": ["odd", "even"], "superclass_of_class": [1, 0] * 5}
        write_json(run.path / "config.json", config)
    return load_run(folder / "corsd"), load_run(folder / "baseline")


@pytest.fixture(scope="module")
def file(runs: tuple[Run, Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run, other = runs
    logits = [z.float() for z in run.probes[2].logits]
    curve = early_exit_curve(logits, run.probes.labels, [10, 20, 30])
    exits = exits_panel(run, curve, rule="confidence", threshold=0, macs=[10, 20, 30], deepest_macs=25, split="probe")
    figure = go.Figure(go.Scattergl(x=np.float32([1, 2]), y=np.float32([3, 4]))).update_layout(width=300, height=200)
    panels = [
        text_panel("", EVIL),
        relation_panel(run),
        relation_panel(run, other),
        stages_panel(run, stage_embedding(run, epochs=(0, 2), method="pca")),
        exits,
        columns_panel("columns", [figure_panel(figure, "figure", "below"), table_panel("table", ["", EVIL], [[EVIL, "1"]])]),
    ]
    return write_page(tmp_path_factory.mktemp("page") / "page.html", panels, EVIL)


@pytest.fixture
def page(browser: Any, file: Path) -> Iterator[Any]:
    """The page as it opens in light; whatever it asks of the network, or complains about, fails the test."""
    context = browser.new_context(viewport={"width": 1300, "height": 900}, color_scheme="light", offline=True)
    page = context.new_page()
    page.set_default_timeout(60_000)  # a busy machine is slow, not broken
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: (wrong.append("a name became a script"), dialog.dismiss()))
    page.on("request", lambda request: wrong.append(request.url) if not request.url.startswith(("file:", "data:")) else None)
    page.goto(file.as_uri())
    until(page, "document.querySelectorAll('.js-plotly-plot .main-svg').length > 0")
    yield page
    assert wrong == []
    context.close()


def until(page: Any, what: str) -> None:
    """Wait for what a script says to be true; playwright's own way evaluates strings in the page, which its policy forbids."""
    for _ in range(300):
        if page.evaluate(what):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"waited 30 s for {what}")


def panel(page: Any, place: int, kind: str) -> Any:
    return page.locator(f"section[data-kind={kind}]").nth(place)


def held(plot: Any, what: str) -> Any:
    """What plotly holds of a plot, read in the browser; `p` is the plot."""
    return plot.evaluate(f"p => {what}")


def matrix(plot: Any) -> np.ndarray:
    return np.array(held(plot, "p.data[0].z.map(row => Array.from(row, s => Number.isNaN(s) ? -9 : s))"))


def control(section: Any, label: str) -> Any:
    return section.get_by_label(label, exact=True)


def move(slider: Any, to: int) -> None:
    """A slider from the keyboard."""
    slider.focus()
    slider.press("Home")
    for _ in range(to):
        slider.press("ArrowRight")


LONG = "<b>" + 9_997 * "n"


def test_a_class_name_of_any_length_leaves_the_page_its_width(browser: Any, runs: tuple[Run, Run], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs[0].path, folder)
    config = read_json(folder / "config.json")
    names = [LONG, *config["data"]["class_names"][1:]]
    config["data"] |= {"class_names": names, "superclass_names": [LONG, "even"]}
    write_json(folder / "config.json", config)
    write_report([load_run(folder)], tmp_path / "page.html")
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.set_default_timeout(60_000)
    page.goto((tmp_path / "page.html").as_uri())
    until(page, "document.querySelectorAll('section[data-kind=stages] .main-svg').length > 0")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1300
    relation = panel(page, 0, "relation")
    assert held(relation.locator(".matrix"), "Math.max(...p.data[0].x.map(name => name.length))") < 60
    assert held(relation.locator(".matrix"), "p._fullLayout._size.w") > 250  # the cells have room beside the names
    text = held(relation.locator(".matrix"), "p.data[0].hovertext.flat().reduce((a, b) => (a.length > b.length ? a : b))")
    assert text.replace("<br>", "").count("n") >= 2 * 9_997  # the name of both classes, whole and in lines
    control(relation, "first class").select_option("0")
    control(relation, "second class").select_option("1")
    assert relation.locator(".finding b").get_attribute("title") == f"{LONG} with {names[1]}"
    assert page.evaluate("document.documentElement.scrollWidth") <= 1300
    page.close()


# --- relations --------------------------------------------------------------------------------------------------------


def test_exit_epoch_and_order_choose_the_relation(page: Any, runs: tuple[Run, Run]) -> None:
    run, _ = runs
    section = panel(page, 0, "relation")
    plot = section.locator(".matrix")
    np.testing.assert_allclose(matrix(plot), run.probes[2].relations[2].numpy(), atol=0.003)
    control(section, "exit").select_option("1")
    np.testing.assert_allclose(matrix(plot), run.probes[2].relations[0].numpy(), atol=0.003)
    assert "exit 1 (shallowest), epoch 2" in section.locator("figcaption").inner_text()
    move(control(section, "epoch"), 1)
    relation = run.probes[1].relations[0].numpy()
    np.testing.assert_allclose(matrix(plot), relation, atol=0.003)
    within, between = relation.diagonal().mean(), relation[~np.eye(10, dtype=bool)].mean()
    assert f"relation {within:.2f} within a class, {between:.2f} between classes" in section.locator("figcaption").inner_text()
    control(section, "order of classes").select_option("superclass")
    order = [1, 3, 5, 7, 9, 0, 2, 4, 6, 8]
    np.testing.assert_allclose(matrix(plot), relation[order][:, order], atol=0.003)
    assert held(plot, "p.data[0].y")[:2] == ["1", "3"]
    lines = held(plot, "p.layout.shapes.filter(s => s.type === 'line').map(s => s.x0)")
    assert lines == [4.5, -0.5]  # between the two superclasses, down and across


def test_play_goes_to_the_last_epoch_and_stops(page: Any) -> None:
    section = panel(page, 0, "relation")
    section.get_by_role("button", name="play").click()
    assert control(section, "epoch").input_value() == "0"  # from the end it begins anew
    section.get_by_role("button", name="pause").wait_for()
    section.get_by_role("button", name="play").wait_for()
    assert control(section, "epoch").input_value() == "2"


def test_differences_have_one_range_around_zero(page: Any, runs: tuple[Run, Run]) -> None:
    run, _ = runs
    section = panel(page, 0, "relation")
    plot = section.locator(".matrix")
    control(section, "exit").select_option("1")
    control(section, "difference to").select_option("deepest")
    first, _, deepest = (r.numpy() for r in run.probes[2].relations)
    np.testing.assert_allclose(matrix(plot), first - deepest, atol=0.005)
    low, high = held(plot, "[p.data[0].zmin, p.data[0].zmax]")
    assert low == -high and high >= max(abs(s.relations[0] - s.relations[2]).max() for s in run.probes.values()) - 0.005
    assert "against deepest exit:" in section.locator("figcaption").inner_text()
    control(section, "difference to").select_option("first")
    np.testing.assert_allclose(matrix(plot), first - run.probes[0].relations[0].numpy(), atol=0.005)
    control(section, "difference to").select_option("nothing")
    assert held(plot, "[p.data[0].zmin, p.data[0].zmax]") == [0, 1]


def test_a_click_on_a_cell_shows_the_pair_at_every_exit_and_epoch(page: Any, runs: tuple[Run, Run]) -> None:
    run, _ = runs
    section = panel(page, 0, "relation")
    others = run.probes[2].relations[2].clone().fill_diagonal_(-1)
    row, column = divmod(int(others.argmax()), 10)  # the most related pair is shown first
    curve = section.locator(".curve")
    expected = [[run.probes[e].relations[k][row, column].item() for e in range(3)] for k in range(3)]
    np.testing.assert_allclose(held(curve, "p.data.map(t => t.y)"), expected, atol=0.003)
    section.locator(".matrix").scroll_into_view_if_needed()
    at = section.locator(".matrix .draglayer .nsewdrag").bounding_box()
    page.mouse.move(at["x"] + at["width"] * 0.33, at["y"] + at["height"] * 0.73)
    section.locator(".hoverlayer .hovertext", has_text="7 with 3").wait_for()  # plotly clicks on what it hovers over
    page.mouse.click(at["x"] + at["width"] * 0.33, at["y"] + at["height"] * 0.73)
    until(page, "document.querySelector('.pair .finding').textContent.startsWith('7 with 3')")
    expected = [[run.probes[e].relations[k][7, 3].item() for e in range(3)] for k in range(3)]
    np.testing.assert_allclose(held(curve, "p.data.map(t => t.y)"), expected, atol=0.003)
    assert control(section, "first class").input_value() == "7" and control(section, "second class").input_value() == "3"
    cells = section.locator(".pair td").all_inner_texts()
    back = run.probes[2].relations[2][3, 7].item()
    assert len(cells) == 6
    assert [float(cell) for cell in cells[4:]] == pytest.approx([expected[2][2], back], abs=0.01)


def test_classes_are_found_by_a_part_of_their_name_and_chosen_from_lists(page: Any) -> None:
    section = panel(page, 0, "relation")
    control(section, "find a class").fill("ONERROR")
    assert section.locator(".found").inner_text().startswith(f"{EVIL}: most related to ")
    plot = section.locator(".matrix")
    frames = held(plot, "p.layout.shapes.map(s => [s.x0, s.x1, s.y0, s.y1])")
    assert [-0.5, 9.5, -0.5, 0.5] in frames and [-0.5, 0.5, -0.5, 9.5] in frames
    control(section, "find a class").fill("zebra")
    assert section.locator(".found").inner_text() == "No class has “zebra” in its name."
    control(section, "find a class").fill("")
    assert section.locator(".found").inner_text() == "" and held(plot, "p.layout.shapes.length") == 1
    control(section, "first class").select_option(index=3)
    control(section, "second class").select_option(index=5)
    assert held(plot, "p.layout.shapes.map(s => [s.x0, s.y0])") == [[3.5, 1.5]]  # class 2 with class 4


def test_runs_side_by_side_and_their_difference(page: Any, runs: tuple[Run, Run]) -> None:
    run, other = runs
    section = panel(page, 1, "relation")
    plots = section.locator(".matrix")
    control(section, "exit").select_option("2")
    mine, theirs = run.probes[2].relations[1].numpy(), other.probes[2].relations[0].numpy()  # the other has one exit
    np.testing.assert_allclose(matrix(plots.nth(0)), mine, atol=0.003)
    np.testing.assert_allclose(matrix(plots.nth(1)), theirs, atol=0.003)
    assert section.locator(".curve").evaluate("p => p.data.length") == 4  # three exits and one
    control(section, "difference to").select_option(label="baseline, seed 0")
    np.testing.assert_allclose(matrix(plots.nth(0)), mine - theirs, atol=0.005)
    assert plots.nth(0).is_visible() and not plots.nth(1).is_visible()


# --- stages -----------------------------------------------------------------------------------------------------------


def test_a_selection_in_one_stage_is_a_selection_in_all(page: Any, runs: tuple[Run, Run]) -> None:
    run, _ = runs
    section = panel(page, 0, "stages")
    plots = section.locator(".stage")
    assert held(plots.nth(0), "p.data[0].selectedpoints ?? null") is None
    plots.nth(1).scroll_into_view_if_needed()
    at = plots.nth(1).locator(".draglayer .nsewdrag").bounding_box()
    corners = [(0.02, 0.02), (0.98, 0.02), (0.98, 0.98), (0.02, 0.98), (0.02, 0.05)]
    page.mouse.move(at["x"] + 0.02 * at["width"], at["y"] + 0.02 * at["height"])
    page.mouse.down()
    for x, y in corners:
        page.mouse.move(at["x"] + x * at["width"], at["y"] + y * at["height"], steps=4)
    page.mouse.up()
    until(page, "document.querySelector('.stage').data[0].selectedpoints?.length > 0")
    chosen = [held(plots.nth(k), "Array.from(p.data[0].selectedpoints)") for k in range(3)]
    assert chosen[0] == chosen[1] == chosen[2] == list(range(20))  # of ten classes two images each
    logits = run.probes[2].logits
    right = [int((z.float().argmax(1) == run.probes.labels).sum()) for z in logits]
    said = section.locator(".finding").inner_text()
    assert said.startswith("20 images: ")
    assert f"exit 1 (shallowest): {right[0]}, exit 2: {right[1]}, exit 3 (deepest): {right[2]}" in said
    section.get_by_role("button", name="select nothing").click()
    assert held(plots.nth(0), "p.data[0].selectedpoints") is None
    assert section.locator(".finding").inner_text() == "Nothing is selected."


def test_colours_epochs_and_classes_of_stages(page: Any, runs: tuple[Run, Run]) -> None:
    run, _ = runs
    section = panel(page, 0, "stages")
    plots = section.locator(".stage")
    labels = run.probes.labels.numpy()
    control(section, "select a class").select_option(index=1)
    assert held(plots.nth(2), "Array.from(p.data[0].selectedpoints)") == np.flatnonzero(labels == 0).tolist()
    control(section, "colour").select_option("right")
    colours = np.array(held(plots.nth(0), "p.data[0].marker.color"))
    right = (run.probes[2].logits[0].float().argmax(1) == run.probes.labels).numpy()
    assert set(colours[right]) <= {"#0072B2"} and set(colours[~right]) == {"#D55E00"}
    embedding = stage_embedding(run, epochs=(0, 2), method="pca").coordinates
    np.testing.assert_allclose(held(plots.nth(2), "Array.from(p.data[0].x)"), embedding[1, 2, :, 0].numpy(), rtol=1e-5)
    move(control(section, "epoch"), 0)
    np.testing.assert_allclose(held(plots.nth(2), "Array.from(p.data[0].x)"), embedding[0, 2, :, 0].numpy(), rtol=1e-5)
    control(section, "colour").select_option("superclass")
    section.locator(".legend").get_by_role("button", name="odd").click()
    assert held(plots.nth(0), "Array.from(p.data[0].selectedpoints)") == np.flatnonzero(labels % 2).tolist()
    first = held(plots.nth(0), "p.data[0].text")[0]
    assert first.startswith("image 0: &lt;/script&gt;") and "(even)" in first


def test_a_click_on_a_point_reads_it(page: Any) -> None:
    section = panel(page, 0, "stages")
    plot = section.locator(".stage").nth(0)
    plot.scroll_into_view_if_needed()
    at = held(plot, "(() => { const b = p.querySelectorAll('.scatterlayer .point')[4].getBoundingClientRect();"
                    " return [b.x + b.width / 2, b.y + b.height / 2]; })()")  # fmt: skip
    page.mouse.move(*at)
    page.wait_for_timeout(300)
    page.mouse.click(*at)
    until(page, "document.querySelector('.stages .finding').textContent.startsWith('image ')")
    assert "taken for exit 1 (shallowest): " in section.locator(".finding").inner_text()


# --- exits, figures and the page ----------------------------------------------------------------------------------------


def test_the_threshold_moves_cost_accuracy_and_shares(page: Any, runs: tuple[Run, Run]) -> None:
    run, _ = runs
    curve = early_exit_curve([z.float() for z in run.probes[2].logits], run.probes.labels, [10, 20, 30])
    section = panel(page, 0, "exits")
    slider = section.get_by_role("slider")
    for place in (0, 3):
        move(slider, place)
        row = curve.iloc[place]
        mark = held(section.locator(".exit-curve"), "[p.data[1].x[0], p.data[1].y[0]]")
        assert mark == pytest.approx([100 * row["macs"] / 25, row["accuracy"]], rel=1e-5)
        shares = held(section.locator(".exit-shares"), "p.data[0].y")
        assert shares == pytest.approx([100 * row[f"share.exit{k}"] for k in (1, 2, 3)], abs=1e-3)
        said = section.locator(".finding").inner_text()
        saved = 100 - 100 * row["macs"] / 25
        assert (
            said.startswith(f"{row['accuracy']:.1f} % right, ")
            and f"{abs(saved):.0f} % {'fewer' if saved > 0 else 'more'}" in said
        )
    assert "Measured on the 20 probe images, of train." in section.locator(".note").inner_text()


def test_figures_tables_and_text_are_drawn_with_names_as_text(page: Any) -> None:
    section = panel(page, 0, "columns")
    assert held(section.locator(".plot"), "[p.data[0].type, p.calcdata[0].map(d => d.y)]") == ["scatter", [3, 4]]
    assert section.locator("th").all_inner_texts() == ["", EVIL, EVIL]
    assert panel(page, 0, "text").inner_text() == EVIL and page.title() == EVIL == page.locator("h1").inner_text()
    assert page.locator("nav a").count() == 5


def test_light_and_dark_follow_the_system_and_the_switch(page: Any) -> None:
    plot = page.locator(".matrix").first
    inks = {"light": "#1f2933", "dark": "#e4e7eb"}
    paper = "getComputedStyle(document.body).backgroundColor"
    assert held(plot, "p.layout.font.color") == inks["light"] and page.evaluate(paper) == "rgb(255, 255, 255)"
    page.emulate_media(color_scheme="dark")
    until(page, "document.documentElement.dataset.theme === 'dark'")
    assert held(plot, "p.layout.font.color") == inks["dark"] and page.evaluate(paper) == "rgb(17, 20, 24)"
    page.get_by_label("colours").select_option("light")
    assert held(plot, "p.layout.font.color") == inks["light"] and page.evaluate(paper) == "rgb(255, 255, 255)"
    page.get_by_label("colours").select_option("dark")
    page.emulate_media(color_scheme="light")
    assert held(plot, "p.layout.font.color") == inks["dark"]


def test_printed_is_without_controls_but_with_what_explains_the_colours(page: Any) -> None:
    page.emulate_media(media="print")
    shown = "nodes => nodes.map(node => getComputedStyle(node).display !== 'none')"
    assert not any(page.locator("nav, .controls, header .control, .modebar").evaluate_all(shown))
    legends = page.locator(".legend").evaluate_all(shown)
    assert legends and all(legends)


def test_plots_fit_on_paper_and_come_back(page: Any) -> None:
    right = (
        "Math.max(...[...document.querySelectorAll('.main-svg')].map(svg => svg.getBoundingClientRect().right))"
        " - document.body.getBoundingClientRect().left"
    )
    page.set_viewport_size({"width": 1500, "height": 1000})
    until(page, f"{right} > 1100")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(right) <= 1040
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(right) > 1100


def test_a_narrow_window_scrolls_down_only(page: Any) -> None:
    page.set_viewport_size({"width": 380, "height": 800})
    until(page, "document.documentElement.scrollWidth <= 380")
    until(page, "document.querySelector('.matrix .main-svg').getBoundingClientRect().width <= 380")


def test_every_control_has_a_name(page: Any) -> None:
    controls = "[...document.querySelectorAll('select, input, button')]"
    unnamed = f"{controls}.filter(c => !c.labels?.length && !c.textContent.trim() && !c.ariaLabel)"
    assert page.evaluate(f"{unnamed}.map(c => c.outerHTML)") == []
