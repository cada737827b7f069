"""Pages in a real Chromium, opened from a file with the network blocked: every control, and what plotly holds then."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from corsd_lib import Run, TrainConfig, early_exit_curve, load_run, stage_embedding, train
from corsd_lib.figures.style import short_name
from corsd_lib.files import read_json, write_json
from corsd_lib.sharing.pages import (
    columns_panel,
    exits_panel,
    figure_panel,
    relation_panel,
    stages_panel,
    table_panel,
    text_panel,
    write_page,
)
from corsd_lib.sharing.report import write_report
from corsd_lib.widgets import RelationExplorer, StageExplorer
from corsd_lib.widgets.relation_view import _balanced

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
    until(page, "document.querySelectorAll('canvas').length > 0")
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


def held(section: Any, what: str) -> Any:
    """What the explorer of a section gives away, read in the browser; `x` is that."""
    return section.locator(".body").first.evaluate(f"node => {{ const x = node.corsd; return {what}; }}")


def matrix(section: Any, place: int = 0) -> np.ndarray:
    """The cells of a map in display order."""
    shown = held(section, f"(s => [s.n, Array.from(s.values, v => (Number.isNaN(v) ? -9 : v))])(x.maps[{place}].map.shown)")
    return np.array(shown[1]).reshape(shown[0], shown[0])


def points(section: Any, place: int, what: str) -> Any:
    """Of the points of a stage, `s` is what was drawn."""
    return held(section, f"(s => {what})(x.maps[{place}].view.shown)")


def painted(canvas: Any) -> int:
    """How many values the bytes of a canvas have: 1 for a blank one."""
    return canvas.evaluate("c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size")


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
    until(page, "document.querySelectorAll('section[data-kind=stages] canvas').length > 0")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1300
    relation = panel(page, 0, "relation")
    assert held(relation, "Math.max(...Array.from({ length: 10 }, (_, i) => x.shown().names(i).length))") < 60
    assert held(relation, "x.shown().box.side") > 250  # the cells have room beside the names
    titles = held(relation, "Array.from({ length: 10 }, (_, i) => x.shown().cell(i, i).title.length)")
    assert max(titles) >= 20_000  # hover has the whole of it
    control(relation, "first class").select_option("0")
    control(relation, "second class").select_option("1")
    assert relation.locator(".finding b").get_attribute("title") == f"{LONG} with {names[1]}"
    assert page.evaluate("document.documentElement.scrollWidth") <= 1300
    page.close()


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def calculated(page: Any) -> Callable[..., Any]:
    """`calculated(expression, m=matrix)`: what the page's functions make of matrices, which arrive as Float32Arrays."""

    def run(expression: str, **given: np.ndarray) -> Any:
        names = ", ".join(given)
        flat = [[None if np.isnan(v) else float(v) for v in array.ravel()] for array in given.values()]
        arrays = "given.map(a => Float32Array.from(a, v => v ?? NaN))"
        read = "(v => ArrayBuffer.isView(v) ? Array.from(v, w => (Number.isNaN(w) ? null : w)) : v)"
        return page.evaluate(f"given => {{ const [{names}] = {arrays}; return {read}({expression}); }}", flat)

    return run


def square(n: int, seed: int = 0, gaps: bool = True) -> np.ndarray:
    scores = np.random.default_rng(seed).random((n, n)).astype(np.float32)
    if gaps:
        scores[1, 2] = scores[3, 3] = np.nan
    return scores


def test_orders_differences_and_means(calculated: Callable[..., Any]) -> None:
    a, b, order = square(6), square(6, 1), [4, 2, 0, 1]
    as_array = lambda values: np.array([np.nan if v is None else v for v in values], np.float32)  # noqa: E731
    np.testing.assert_array_equal(as_array(calculated(f"ordered(a, 6, {order})", a=a)), a[np.ix_(order, order)].ravel())
    np.testing.assert_array_equal(as_array(calculated("difference(a, b)", a=a, b=b)), (a - b).ravel())
    groups = np.array([0, 0, 1, 1, 2, 2])
    same = groups[:, None] == groups
    kept = np.where(np.isin(np.arange(6), order)[:, None] & np.isin(np.arange(6), order), a, np.nan)
    got = calculated(f"within(a, 6, [0, 1, 2, 3, 4, 5].map(c => {order}.includes(c)))", a=a)
    np.testing.assert_array_equal(as_array(got), kept.ravel())
    means = calculated(f"groupMeans(a, {groups.tolist()})", a=a)
    assert means == pytest.approx({"within": np.nanmean(a[same]), "between": np.nanmean(a[~same])}, abs=1e-6)


def test_of_many_images_the_same_are_chosen_as_in_python(calculated: Callable[..., Any]) -> None:
    labels = np.random.default_rng(0).integers(0, 7, 60)
    for most in (100, 40, 20, 5):
        expected = _balanced(np.arange(3, 60), labels, most).tolist()
        positions = "Array.from({ length: 57 }, (_, i) => i + 3)"
        assert calculated(f"balanced({positions}, {labels.tolist()}, {most})") == expected


def test_top_pairs_and_surprises(calculated: Callable[..., Any]) -> None:
    a = square(7)
    off = np.where(np.eye(7, dtype=bool), np.nan, a)
    best = np.argsort(-np.nan_to_num(off.ravel(), nan=-1))[:5]
    found = calculated("topPairs(a, 7, 5)", a=a)
    assert [(pair["row"], pair["column"]) for pair in found] == [divmod(int(i), 7) for i in best]
    centred = a - 0.5
    largest = np.argsort(-np.abs(np.nan_to_num(np.where(np.eye(7, dtype=bool), 0, centred).ravel())))[:4]
    assert [p["row"] * 7 + p["column"] for p in calculated("topPairs(a, 7, 4, true)", a=centred)] == largest.tolist()
    expected = off - np.nanmean(off, 1, keepdims=True) - np.nanmean(off, 0, keepdims=True) + np.nanmean(off)
    got = np.array([np.nan if v is None else v for v in calculated("surprise(a, 7)", a=a)]).reshape(7, 7)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_colour_ranges_spans_ticks_and_polygons(calculated: Callable[..., Any]) -> None:
    a = square(5)
    off = a[~np.eye(5, dtype=bool)]
    assert calculated("colourRange(a, 5, true, false)", a=a) == pytest.approx([np.nanmin(off), np.nanmax(off)])
    assert calculated("colourRange(a, 5, false, false)", a=a) == [0, 1]
    assert calculated("colourRange(a, 5, true, true)", a=a - 2) == pytest.approx([np.nanmin(off) - 2, 2 - np.nanmin(off)])
    assert calculated("spans([3, 3, 1, 2, 2])") == [
        {"group": 3, "from": 0, "to": 2},
        {"group": 1, "from": 2, "to": 3},
        {"group": 2, "from": 3, "to": 5},
    ]
    assert calculated("ticks(0, 1, 5)") == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    corners = "[[0, 0], [4, 0], [4, 4], [2, 1], [0, 4]]"
    assert calculated(f"[inside(1, 1, {corners}), inside(2, 3, {corners}), inside(5, 1, {corners})]") == [True, False, False]
    assert calculated("[nearest([0, 5, 10], 7), nearest([0, 4, 8], 6), nearest([3], 99)]") == [5, 4, 3]
    assert calculated("found(['cat', 'caterpillar', 'Tomcat'], 'CAT')") == [0]
    assert calculated("found(['cats', 'caterpillar', 'Tomcat'], 'cat')") == [0, 1, 2]


def test_a_legend_shows_a_group_by_its_solid_line(page: Any) -> None:
    dashes = page.evaluate("""() => {
      const chart = lineChart({ label: "x", say: () => [] });
      const line = (name, group, dash) => ({ name, group, dash, x: [0, 1], y: [0, 1], color: "#000" });
      document.querySelector("main").append(chart.node);
      chart.draw({ lines: [line("a1", "a", "dot"), line("a2", "a", "solid"), line("b1", "b", "dot")], x: {}, y: {} });
      const signs = chart.node.querySelectorAll(".legend line");
      chart.node.remove();
      return Array.from(signs, (sign) => sign.getAttribute("stroke-dasharray"));
    }""")
    assert dashes == [None, "2 4"]


def test_an_answer_to_an_old_question_is_dropped(page: Any) -> None:
    said = page.evaluate("""async () => {
      const open = [], ask = newestOf((what) => new Promise((resolve) => open.push(() => resolve(what))));
      const first = ask("a"), second = ask("b");
      open[1](); open[0]();
      return [(await first) ?? "dropped", await second];
    }""")
    assert said == ["dropped", "b"]


def test_undo_goes_back_and_tells_the_host(page: Any) -> None:
    said = page.evaluate("""() => {
      const told = [], store = makeStore({ exit: 1, order: "label" }, (patch) => told.push(patch));
      store.set({ exit: 2 }); store.set({ exit: 2 }); store.set({ order: "cluster", exit: 3 }); store.receive({ exit: 9 });
      store.undo(); store.undo(); store.undo();
      return [store.state, told];
    }""")
    assert said[0] == {"exit": 1, "order": "label"}
    assert said[1] == [{"exit": 2}, {"order": "cluster", "exit": 3}, {"order": "label", "exit": 2}, {"exit": 1}]


def test_focus_moves_to_an_enabled_control_when_a_control_is_disabled(page: Any) -> None:
    names = page.evaluate("""() => {
      const [before, undo, after] = ["before", "undo", "after"].map((name) => button(name, () => {}));
      const box = el("div", { class: "corsd" }, before, undo, after), found = [];
      const focused = () => found.push(document.activeElement.textContent);
      document.body.append(box);
      undo.focus(); disable(undo, true); focused();
      disable(after, true); focused();
      disable(after, false); disable(undo, false); focused();
      box.remove();
      return found;
    }""")
    assert names == ["after", "before", "before"]


def test_a_drag_of_a_slider_is_one_step_of_undo(page: Any) -> None:
    states = page.evaluate("""() => {
      const store = makeStore({ epoch: 0, exit: 1 }), seen = [];
      const slide = slider("epoch", 9, 0, String, (epoch) => store.set({ epoch }));
      const to = (value, event) => { slide.range.value = value; slide.range.dispatchEvent(new Event(event)); };
      store.set({ exit: 2 });
      for (const value of [1, 2, 3]) to(value, "input");
      to(3, "change");
      for (const value of [4, 5]) to(value, "input");
      to(5, "change");
      for (let i = 0; i < 3; i++) { store.undo(); seen.push({ ...store.state }); }
      return seen;
    }""")
    assert states == [{"epoch": 3, "exit": 2}, {"epoch": 0, "exit": 2}, {"epoch": 0, "exit": 1}]


def test_an_undo_ends_a_gesture(page: Any) -> None:
    states = page.evaluate("""() => {
      const store = makeStore({ epoch: 0 }), mine = {}, seen = [];
      const to = (epoch) => gestured(mine, () => store.set({ epoch }));
      to(1); to(2); store.undo(); seen.push(store.state.epoch); to(3); to(4); store.undo(); seen.push(store.state.epoch);
      return seen;
    }""")
    assert states == [0, 0]


@pytest.mark.parametrize(("low", "high"), [(0.3, 0.9), (2.1, 4.8), (0.011, 0.019), (0.001, 1), (1e-6, 1e3)])
def test_a_logarithmic_axis_has_several_ticks_inside_its_range(page: Any, low: float, high: float) -> None:
    ticks = page.evaluate("([low, high]) => scaleOf(low, high, 0, 100, true).ticks(6)", [low, high])
    assert 2 <= len(ticks) <= 8
    assert all(low * 0.999 <= tick <= high * 1.001 for tick in ticks)


# --- relations --------------------------------------------------------------------------------------------------------


def test_exit_epoch_and_order_choose_the_relation(page: Any, runs: tuple[Run, Run]) -> None:
    run, _ = runs
    section = panel(page, 0, "relation")
    assert painted(section.locator("canvas").first) > 50
    np.testing.assert_allclose(matrix(section), run.probes[2].relations[2].numpy(), atol=1e-4)
    control(section, "exit").select_option("1")
    np.testing.assert_allclose(matrix(section), run.probes[2].relations[0].numpy(), atol=1e-4)
    caption = section.locator("figcaption")
    assert "exit 1 (shallowest), epoch 2" in caption.inner_text()
    move(control(section, "epoch"), 1)
    relation = run.probes[1].relations[0].numpy()
    np.testing.assert_allclose(matrix(section), relation, atol=1e-4)
    within, between = relation.diagonal().mean(), relation[~np.eye(10, dtype=bool)].mean()
    assert f"relation {within:.2f} within a class, {between:.2f} between classes" in caption.inner_text()
    control(section, "order of classes").select_option(label="superclass")
    order = [1, 3, 5, 7, 9, 0, 2, 4, 6, 8]
    np.testing.assert_allclose(matrix(section), relation[order][:, order], atol=1e-4)
    assert held(section, "[x.shown().names(0), x.shown().names(1)]") == ["1", "3"]
    assert held(section, "x.shown().lines") == [5]  # between the two superclasses, which are named at the axes
    assert held(section, "x.shown().groups.map(g => [g.name, g.from, g.to])") == [["odd", 0, 5], ["even", 5, 10]]
    control(section, "superclass").select_option(label="even")
    np.testing.assert_allclose(matrix(section), relation[::2, ::2], atol=1e-4)
    for _ in range(2):
        section.get_by_role("button", name="undo").click()
    np.testing.assert_allclose(matrix(section), relation, atol=1e-4)


def test_the_tip_under_a_resting_mouse_follows_the_epoch(page: Any) -> None:
    relations = panel(page, 0, "relation")
    x, y, size = held(relations, "(b => [b.left, b.top, b.size])(x.shown().box)")
    relations.locator("canvas").first.hover(position={"x": x + 3.5 * size, "y": y + 7.5 * size})
    tip = relations.locator(".tip").first
    seen = set()
    for epoch in range(3):
        control(relations, "epoch").evaluate(
            "(s, to) => { s.value = to; s.dispatchEvent(new Event('input', { bubbles: true })); }", epoch
        )
        seen.add(tip.inner_text())
        assert f"{matrix(relations)[7, 3]:.3f}" in tip.inner_text()
    assert len(seen) > 1


def test_a_pair_outside_the_superclass_is_shown_among_all_classes(page: Any) -> None:
    section = panel(page, 0, "relation")
    control(section, "superclass").select_option(label="even")
    control(section, "first class").select_option(label="2")
    control(section, "second class").select_option(label="4")
    assert held(section, "x.shown().n") == 5
    control(section, "second class").select_option(label="5")
    assert held(section, "x.shown().n") == 10
    assert held(section, "x.shown().frame") is not None
    section.get_by_role("button", name="undo").click()
    assert held(section, "x.shown().n") == 5


def test_play_goes_to_the_last_epoch_and_stops(page: Any) -> None:
    section = panel(page, 0, "relation")
    section.get_by_role("button", name="play").click()
    assert control(section, "epoch").input_value() == "0"  # from the end it begins anew
    section.get_by_role("button", name="pause").wait_for()
    section.get_by_role("button", name="play").wait_for()
    assert control(section, "epoch").input_value() == "2"


def test_differences_and_colour_ranges(page: Any, runs: tuple[Run, Run]) -> None:
    run, _ = runs
    section = panel(page, 0, "relation")
    control(section, "exit").select_option("1")
    control(section, "subtract").select_option(label="deepest exit")
    first, _, deepest = (r.numpy() for r in run.probes[2].relations)
    np.testing.assert_allclose(matrix(section), first - deepest, atol=2e-4)
    assert held(section, "[x.shown().low, x.shown().high, x.shown().scale]") == [-0.5, 0.5, "diverging"]
    assert "minus exit 3 (deepest), epoch 2" in section.locator("figcaption").inner_text()
    control(section, "subtract").select_option(label="epoch 1")
    np.testing.assert_allclose(matrix(section), first - run.probes[1].relations[0].numpy(), atol=2e-4)
    control(section, "subtract").select_option(label="nothing")
    assert held(section, "[x.shown().low, x.shown().high]") == [0, 1]
    control(section, "colours").select_option(label="fitted range")
    off = first[~np.eye(10, dtype=bool)]
    assert held(section, "[x.shown().low, x.shown().high]") == pytest.approx([off.min(), off.max()], abs=1e-4)


def test_a_click_on_a_cell_and_arrow_keys_show_the_pair(page: Any, runs: tuple[Run, Run]) -> None:
    run, _ = runs
    section = panel(page, 0, "relation")
    others = run.probes[2].relations[2].clone().fill_diagonal_(-1)
    row, column = divmod(int(others.argmax()), 10)  # the most related pair is shown first
    lines = "x.curve.shown.lines.map(line => Array.from(line.y))"
    expected = [[run.probes[e].relations[k][row, column].item() for e in range(3)] for k in range(3)]
    np.testing.assert_allclose(held(section, lines), expected, atol=1e-4)
    left, top, size = held(section, "[x.shown().box.left, x.shown().box.top, x.shown().box.size]")
    canvas = section.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    at = {"x": left + 3.3 * size, "y": top + 7.3 * size}
    canvas.hover(position=at)
    assert section.locator(".tip").first.inner_text().startswith("7 with 3")
    canvas.click(position=at)
    finding = section.locator(".pair .finding")
    assert finding.inner_text().startswith("7 with 3")
    expected = [[run.probes[e].relations[k][7, 3].item() for e in range(3)] for k in range(3)]
    np.testing.assert_allclose(held(section, lines), expected, atol=1e-4)
    assert control(section, "first class").input_value() == "7" and control(section, "second class").input_value() == "3"
    assert held(section, "x.shown().frame") == [7, 3]
    cells = section.locator(".pair td").all_inner_texts()
    assert [float(cell) for cell in cells[4:]] == pytest.approx(
        [expected[2][2], run.probes[2].relations[2][3, 7].item()], abs=1e-3
    )
    canvas.press("ArrowDown")
    canvas.press("ArrowLeft")
    assert finding.inner_text().startswith("8 with 2")
    canvas.press("Control+z")
    assert finding.inner_text().startswith("8 with 3")
    canvas.press("Escape")
    assert finding.inner_text() == "Click a cell, or choose two classes." and held(section, "x.shown().frame") is None


def test_a_drag_zooms_and_the_button_resets(page: Any) -> None:
    section = panel(page, 0, "relation")
    left, top, size = held(section, "[x.shown().box.left, x.shown().box.top, x.shown().box.size]")
    canvas = section.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + left + 2.5 * size, box["y"] + top + 1.5 * size)
    page.mouse.down()
    page.mouse.move(box["x"] + left + 4.5 * size, box["y"] + top + 4.5 * size, steps=4)
    page.mouse.up()
    assert held(section, "x.shown().view") == {"from": 1, "to": 5, "column": 2}
    section.get_by_role("button", name="reset view").click()
    assert held(section, "x.shown().view") == {"from": 0, "to": 10, "column": 0}


def test_pairs_worth_a_look_are_listed_and_selected(page: Any, runs: tuple[Run, Run]) -> None:
    run, _ = runs
    section = panel(page, 0, "relation")
    relation = np.where(np.eye(10, dtype=bool), -1, run.probes[2].relations[2].numpy())
    best = [divmod(int(i), 10) for i in np.argsort(-relation.ravel())[:10]]
    buttons = section.locator(".tops button")
    names = [short_name(EVIL), *map(str, range(1, 10))]
    assert buttons.all_inner_texts() == [f"{names[c]} with {names[d]}" for c, d in best]
    control(section, "pairs").select_option(label="most changed since epoch 0")
    change = relation - np.where(np.eye(10, dtype=bool), -1, run.probes[0].relations[2].numpy())
    row, column = divmod(int(np.abs(change).argmax()), 10)
    assert buttons.first.inner_text() == f"{names[row]} with {names[column]}"
    buttons.first.click()
    assert held(section, "x.shown().frame") == [row, column]
    for pressed in (buttons.nth(1), section.locator(".legend button").first):  # the pressed button keeps the focus
        text = pressed.inner_text().strip()
        pressed.focus()
        page.keyboard.press("Enter")
        page.wait_for_timeout(100)
        assert page.evaluate("document.activeElement.textContent").strip() == text


def test_classes_are_found_by_a_part_of_their_name_and_chosen_from_lists(page: Any) -> None:
    section = panel(page, 0, "relation")
    control(section, "find a class").fill("ONERROR")
    message = section.locator(".message").first
    assert message.inner_text().startswith(f"{EVIL}: most related to ")
    assert held(section, "[x.shown().rows, x.shown().frame[0]]") == [[0], 0]
    control(section, "find a class").fill("zebra")
    assert message.inner_text() == "No class has “zebra” in its name."
    control(section, "find a class").fill("")
    assert message.inner_text() == "" and held(section, "x.shown().rows") == []
    control(section, "first class").select_option(label="2")
    control(section, "second class").select_option(label="4")
    assert held(section, "x.shown().frame") == [2, 4]


def test_runs_side_by_side_and_their_difference(page: Any, runs: tuple[Run, Run]) -> None:
    run, other = runs
    section = panel(page, 1, "relation")
    control(section, "exit").select_option("2")
    mine, theirs = run.probes[2].relations[1].numpy(), other.probes[2].relations[0].numpy()  # the other has one exit
    np.testing.assert_allclose(matrix(section), mine, atol=1e-4)
    np.testing.assert_allclose(matrix(section, 1), theirs, atol=1e-4)
    assert held(section, "x.curve.shown.lines.length") == 4  # three exits and one
    control(section, "subtract").select_option(label="baseline, seed 0")
    np.testing.assert_allclose(matrix(section), mine - theirs, atol=2e-4)
    figures = section.locator("figure")
    assert figures.nth(0).is_visible() and not figures.nth(1).is_visible()


def test_the_address_of_a_state_opens_it(page: Any, file: Path) -> None:
    section = panel(page, 0, "relation")
    control(section, "exit").select_option("2")
    move(control(section, "epoch"), 1)
    address = page.evaluate("explorers[0].address()")
    page.goto("about:blank")
    page.goto(address)
    until(page, "document.querySelectorAll('canvas').length > 0")
    assert "exit 2, epoch 1" in section.locator("figcaption").inner_text()


def test_a_page_with_thumbnails_shows_both_classes_on_hover_and_what_is_marked(
    browser: Any, small_run: Run, tmp_path: Path
) -> None:
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.set_default_timeout(60_000)
    RelationExplorer(small_run).to_html(tmp_path / "relation.html")
    page.goto((tmp_path / "relation.html").as_uri())
    until(page, "document.querySelectorAll('canvas').length > 0")
    section = panel(page, 0, "relation")
    left, top, size = held(section, "[x.shown().box.left, x.shown().box.top, x.shown().box.size]")
    section.locator("canvas").first.hover(position={"x": left + 3.5 * size, "y": top + 7.5 * size})
    section.locator(".tip .faces img").nth(1).wait_for()
    stages = StageExplorer(small_run, method="pca")
    stages.selection = (1, 2, 3)
    stages.to_html(tmp_path / "stages.html")
    page.goto((tmp_path / "stages.html").as_uri())
    panel(page, 0, "stages").locator(".strip img").nth(2).wait_for()
    assert page.locator(".strip img").count() == 3
    page.close()


# --- stages -----------------------------------------------------------------------------------------------------------


def test_a_selection_in_one_stage_is_a_selection_in_all(page: Any, runs: tuple[Run, Run]) -> None:
    run, _ = runs
    section = panel(page, 0, "stages")
    assert points(section, 0, "s.chosen") is None and painted(section.locator("canvas").first) > 50
    canvas = section.locator("canvas").nth(1)
    canvas.scroll_into_view_if_needed()
    at = canvas.bounding_box()
    corners = [(0.02, 0.02), (0.98, 0.02), (0.98, 0.98), (0.02, 0.98), (0.02, 0.05)]
    page.mouse.move(at["x"] + 0.02 * at["width"], at["y"] + 0.02 * at["height"])
    page.mouse.down()
    for x, y in corners:
        page.mouse.move(at["x"] + x * at["width"], at["y"] + y * at["height"], steps=4)
    page.mouse.up()
    chosen = [points(section, k, "[...s.chosen]") for k in range(3)]
    assert chosen[0] == chosen[1] == chosen[2] == list(range(20))  # of ten classes two images each
    logits = run.probes[2].logits
    right = [int((z.float().argmax(1) == run.probes.labels).sum()) for z in logits]
    said = section.locator(".finding").last
    assert said.inner_text().startswith("20 images: ")
    assert f"exit 1 (shallowest): {right[0]}, exit 2: {right[1]}, exit 3 (deepest): {right[2]}" in said.inner_text()
    relation = panel(page, 0, "relation")
    assert held(relation, "x.shown().rings.length") == 10  # the same images are marked in the relations of the page
    section.get_by_role("button", name="clear selection").click()
    assert points(section, 0, "s.chosen") is None and said.inner_text() == "No selection."


def test_colours_epochs_and_classes_of_stages(page: Any, runs: tuple[Run, Run]) -> None:
    run, _ = runs
    section = panel(page, 0, "stages")
    labels = run.probes.labels.numpy()
    control(section, "select a class").select_option(index=1)
    assert points(section, 2, "[...s.chosen]") == np.flatnonzero(labels == 0).tolist()
    control(section, "colour").select_option(label="correct or wrong at that exit")
    colours = np.array(points(section, 0, f"Array.from({{ length: {len(labels)} }}, (_, i) => s.look(i).color)"))
    right = (run.probes[2].logits[0].float().argmax(1) == run.probes.labels).numpy()
    assert set(colours[right]) <= {"#0072B2"} and set(colours[~right]) == {"#D55E00"}
    embedding = stage_embedding(run, epochs=(0, 2), method="pca").coordinates
    np.testing.assert_allclose(points(section, 2, "Array.from(s.at)"), embedding[1, 2].numpy().ravel(), rtol=1e-5)
    move(control(section, "epoch"), 0)
    np.testing.assert_allclose(points(section, 2, "Array.from(s.at)"), embedding[0, 2].numpy().ravel(), rtol=1e-5)
    moved = "(s => s.now.every((v, i) => Math.abs(v - s.at[i]) < 1e-4))(node.corsd.maps[2].view.shown)"
    until(page, f"(node => {moved})(document.querySelector('section[data-kind=stages] .body'))")  # after a smooth way
    control(section, "colour").select_option(label="superclass")
    section.locator(".legend").get_by_role("button", name="odd").click()
    assert points(section, 0, "[...s.chosen]") == np.flatnonzero(labels % 2).tolist()
    section.locator(".legend").get_by_role("button", name="odd").click()
    assert points(section, 0, "s.chosen") is None


# An explorer with a kernel that answers when `answer(what, value)` is called, and with what it was asked.
ASKED = """kind => {
  const { data } = PAGE.panels.find((panel) => panel.kind === kind), box = document.createElement("div"), open = [];
  document.querySelector("main").prepend(box);
  const ask = (what, given) => new Promise((resolve, reject) => open.push({ what, given, resolve, reject }));
  const store = makeStore(structuredClone(data.start)), links = { ...makeLinks(), address: () => "" };
  const take = (what) => open.splice(open.findIndex((one) => one.what === what), 1)[0];
  window.kernel = { box, open, store, answer: (what, value) => take(what).resolve(value) };
  const faces = kind === "relation" ? null : (positions) => ask("faces", { positions });
  box.id = "asked";
  box.corsd = mount(kind, box, { data: { kinds: [], levels: [], ...data }, store, ask, faces, links, feed: () => ({}) });
}"""


def asked_for(page: Any, what: str) -> None:
    until(page, f"kernel.open.some((one) => one.what === '{what}')")


def test_images_of_an_earlier_threshold_are_pale_until_the_new_ones_are_there(page: Any) -> None:
    page.evaluate(ASKED, "exits")
    strips = page.locator("#asked .strips")
    row = "{ name, count: 2, correct: 50, classes: 'two of a class', images: [] }"
    fill = f"name => kernel.answer('images', {{ missing: '', exits: [{row}] }})"
    asked_for(page, "images")
    page.evaluate(fill, "exit 1")
    strips.get_by_text("Leaving at exit 1").wait_for()
    assert "stale" not in strips.get_attribute("class")
    move(page.locator("#asked input[type=range]"), 1)
    assert "stale" in strips.get_attribute("class")  # they are not of this threshold
    asked_for(page, "images")
    page.evaluate(fill, "exit 2")
    strips.get_by_text("Leaving at exit 2").wait_for()
    assert "stale" not in strips.get_attribute("class")


def test_what_is_told_of_another_image_is_pale(page: Any) -> None:
    page.evaluate(ASKED, "stages")
    rows = "[0, 1, 2].map((k) => ({ exit: `exit ${k}`, prediction: '', near: [1], pngs: {} }))"
    fill = f"title => kernel.answer('image', {{ title, png: null, missing: '', rows: {rows} }})"
    page.evaluate("kernel.store.set({ image: 0 })")
    asked_for(page, "image")
    page.evaluate(fill, "the first")
    facts = page.locator("#asked > div", has=page.locator("h4"))
    assert facts.locator("h4").inner_text() == "the first" and "stale" not in (facts.get_attribute("class") or "")
    page.evaluate("kernel.store.set({ image: 1, selection: [1, 2] })")
    assert "stale" in facts.get_attribute("class")
    marked = page.locator("#asked > .strip")
    assert "stale" in marked.get_attribute("class")
    asked_for(page, "image")
    page.evaluate("kernel.answer('faces', {})")
    page.evaluate(fill, "the second")
    until(page, "!document.querySelector('#asked .stale')")


def test_the_sign_of_a_busy_kernel_covers_and_moves_nothing(page: Any) -> None:
    page.evaluate(ASKED, "exits")
    sign, finding = page.locator("#asked .busy"), page.locator("#asked .finding")
    asked_for(page, "images")
    assert sign.is_visible()
    place, at = sign.bounding_box(), finding.bounding_box()
    apart = """place => [...document.querySelectorAll("#asked :is(.controls *, .finding)")].every((node) => {
      const at = node.getBoundingClientRect(), cell = node.matches(".group, .control, .controls");
      const [left, top] = [place.x - scrollX, place.y - scrollY];
      return cell || at.right <= left || at.left >= left + place.width || at.bottom <= top || at.top >= top + place.height;
    })"""
    assert page.evaluate(apart, place)
    assert "above" in sign.get_attribute("class")
    page.locator("#asked .controls button").last.evaluate("node => node.style.cssText = 'width: 1000px; max-width: none'")
    until(page, "!document.querySelector('#asked .busy.above')")  # there is no room beside the controls any more
    page.locator("#asked .controls button").last.evaluate("node => node.style.cssText = ''")
    until(page, "document.querySelector('#asked .busy.above')")
    page.evaluate("kernel.answer('images', { missing: '', exits: [] })")
    sign.wait_for(state="hidden")
    assert finding.bounding_box() == at


def test_a_click_on_a_point_reads_it(page: Any) -> None:
    section = panel(page, 0, "stages")
    canvas = section.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    x, y = held(section, "x.maps[0].view.place(4)")
    canvas.hover(position={"x": x, "y": y})
    assert section.locator(".tip").first.inner_text().startswith("image ")
    canvas.click(position={"x": x, "y": y})
    said = section.locator(".finding").last.inner_text()
    assert said.startswith("image ") and "predicted as exit 1 (shallowest): " in said


def test_the_point_under_the_mouse_is_ringed_at_every_exit(page: Any) -> None:
    section = panel(page, 0, "stages")
    canvas = section.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    x, y = held(section, "x.maps[0].view.place(4)")
    before = canvas.evaluate("c => c.toDataURL()")
    canvas.hover(position={"x": x, "y": y})
    lit = points(section, 0, "s.lit")
    assert lit is not None and lit == points(section, 1, "s.lit") == points(section, 2, "s.lit")
    assert canvas.evaluate("c => c.toDataURL()") != before
    page.mouse.move(0, 0)
    assert [points(section, k, "s.lit") for k in range(3)] == [None] * 3
    assert canvas.evaluate("c => c.toDataURL()") == before


def test_the_legend_of_points_counts_them_and_names_the_grey_ones(page: Any) -> None:
    page.evaluate(ASKED, "stages")
    page.evaluate("kernel.store.set({ colour: 'class', highlight: ['1', '2'] })")
    legend = page.locator("#asked .legend button")
    assert [text.split(" ", 1)[1] for text in legend.all_inner_texts()] == ["1 2", "2 2", "other classes 16"]
    legend.last.click()
    assert len(page.evaluate("kernel.store.state.selection")) == 16
    page.evaluate("kernel.store.set({ colour: 'superclass', highlight: ['odd', 'even'] })")
    assert [text.split(" ", 1)[1] for text in legend.all_inner_texts()] == ["odd 10", "even 10"]


def test_the_stages_zoom_and_move_together(page: Any) -> None:
    section = panel(page, 0, "stages")
    canvas, tools = section.locator("canvas").nth(1), section.get_by_role("group", name="picture tools")
    canvas.scroll_into_view_if_needed()

    def placed(exit: int) -> np.ndarray:
        return np.array(held(section, f"Array.from({{ length: 20 }}, (_, i) => x.maps[{exit}].view.place(i))"))

    centre = np.array(held(section, "(r => [r.width / 2, 160])(x.maps[1].view.node.getBoundingClientRect())"))
    before, move = [placed(k) for k in range(3)], tools.get_by_role("button", name="move")
    assert move.is_disabled()  # the whole picture is shown
    tools.get_by_role("button", name="zoom in").click()
    for k in range(3):
        np.testing.assert_allclose(placed(k) - centre, 1.5 * (before[k] - centre), atol=1.5)
    move.click()
    x, y = centre.tolist()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + x, box["y"] + y)
    page.mouse.down()
    page.mouse.move(box["x"] + x + 30, box["y"] + y - 20, steps=5)
    page.mouse.up()
    for k in range(3):
        np.testing.assert_allclose(placed(k) - centre, 1.5 * (before[k] - centre) + [30, -20], atol=1.5)
    assert points(section, 0, "s.chosen") is None  # moving selects nothing
    canvas.press("0")
    np.testing.assert_allclose(placed(2), before[2], atol=0.01)
    assert tools.get_by_role("button", name="select").get_attribute("aria-pressed") == "true" and move.is_disabled()


def test_the_wheel_with_ctrl_zooms_about_the_pointer(page: Any) -> None:
    section = panel(page, 0, "stages")
    canvas = section.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    at = held(section, "x.maps[0].view.place(4)")
    canvas.hover(position={"x": at[0], "y": at[1]})
    page.keyboard.down("Control")
    page.mouse.wheel(0, -140)
    page.keyboard.up("Control")
    until(page, "document.querySelector('section[data-kind=stages] .body').corsd.camera.zoom > 1.5")
    moved = np.subtract(held(section, "x.maps[0].view.place(4)"), at)
    assert np.abs(moved).max() < 40  # exactly there, unless this would show more than the whole picture
    canvas.press("ArrowRight")
    canvas.press("-")
    canvas.press("-")
    assert held(section, "x.camera.zoom") == 1 and held(section, "x.camera.x") == 0


# --- exits, figures and the page ----------------------------------------------------------------------------------------


def test_the_threshold_moves_cost_accuracy_and_shares(page: Any, runs: tuple[Run, Run]) -> None:
    run, _ = runs
    curve = early_exit_curve([z.float() for z in run.probes[2].logits], run.probes.labels, [10, 20, 30])
    section = panel(page, 0, "exits")
    slider = section.get_by_role("slider")
    for place in (0, 3):
        move(slider, place)
        row = curve.iloc[place]
        (mark,) = held(section, "x.curve.shown.marks")
        assert [mark["x"], mark["y"]] == pytest.approx([100 * row["macs"] / 25, row["accuracy"]], rel=1e-5)
        shares = held(section, "x.bars.shown.map(bar => bar.share)")
        assert shares == pytest.approx([row[f"fraction.exit{k}"] for k in (1, 2, 3)], abs=1e-5)
        said = section.locator(".finding").inner_text()
        saved = 100 - 100 * row["macs"] / 25
        fewer = "fewer" if saved > 0 else "more"
        assert said.startswith(f"{row['accuracy']:.1f} % correct, ") and f"{abs(saved):.0f} % {fewer}" in said
    assert "Measured on the 20 probe images, of train." in section.locator(".note").first.inner_text()
    control(section, "maximum accuracy drop (points)").fill("0")
    section.get_by_role("button", name="cheapest threshold").click()
    (mark,) = held(section, "x.curve.shown.marks")
    fits = curve[curve["accuracy_drop"] <= 1e-6]
    assert mark["x"] == pytest.approx(100 * fits["macs"].min() / 25, rel=1e-5)


def test_figures_tables_and_text_are_drawn_with_names_as_text(page: Any) -> None:
    section = panel(page, 0, "columns")
    drawn = section.locator(".plot").evaluate("p => [p.data[0].type, p.calcdata[0].map(d => d.y)]")
    assert drawn == ["scatter", [3, 4]]
    assert section.locator("th").all_inner_texts() == ["", EVIL, EVIL]
    assert panel(page, 0, "text").inner_text() == EVIL and page.title() == EVIL == page.locator("h1").inner_text()
    assert page.locator("nav a").count() == 5


def test_light_and_dark_follow_the_system_and_the_switch(page: Any) -> None:
    inks = {"light": "#1f2933", "dark": "#e4e7eb"}
    paper = "getComputedStyle(document.body).backgroundColor"
    ink = "colour(document.querySelector('canvas'), 'ink')"
    plot, switch = page.locator(".plot").first, page.locator("header select")
    assert page.evaluate(ink) == inks["light"] and page.evaluate(paper) == "rgb(255, 255, 255)"
    pixels = "document.querySelector('canvas').toDataURL()"
    before = page.evaluate(pixels)
    page.emulate_media(color_scheme="dark")
    until(page, "document.documentElement.dataset.theme === 'dark'")
    until(page, f"{ink} === '{inks['dark']}'")
    assert page.evaluate(paper) == "rgb(17, 20, 24)" and plot.evaluate("p => p.layout.font.color") == inks["dark"]
    page.wait_for_timeout(200)
    assert page.evaluate(pixels) != before  # names and ticks are drawn anew
    switch.select_option(label="light")
    assert page.evaluate(ink) == inks["light"] and page.evaluate(paper) == "rgb(255, 255, 255)"
    switch.select_option(label="dark")
    page.emulate_media(color_scheme="light")
    assert page.evaluate(ink) == inks["dark"]


def test_printed_is_without_controls_but_with_what_explains_the_colours(page: Any) -> None:
    page.emulate_media(media="print")
    shown = "nodes => nodes.map(node => getComputedStyle(node).display !== 'none')"
    assert not any(page.locator("nav, .controls, header .control, .modebar").evaluate_all(shown))
    legends = page.locator(".legend:not([hidden])").evaluate_all(shown)
    assert legends and all(legends)


def test_plots_fit_on_paper_and_come_back(page: Any) -> None:
    right = (
        "Math.max(...[...document.querySelectorAll('canvas, .chart > svg')].map(node => node.getBoundingClientRect().right))"
        " - document.body.getBoundingClientRect().left"
    )
    page.set_viewport_size({"width": 1500, "height": 1000})
    until(page, f"{right} > 1100")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    until(page, f"{right} <= 1040")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    until(page, f"{right} > 1100")


def test_a_narrow_window_scrolls_down_only(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    until(page, "document.documentElement.scrollWidth <= 390")
    until(page, "document.querySelector('canvas').getBoundingClientRect().width <= 390")


def test_on_a_narrow_page_a_value_stays_beside_its_slider_and_a_mark_within_its_chart(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 800})
    section = panel(page, 0, "exits")
    slide, value = (section.locator(f".control:has(input[type=range]) {part}").bounding_box() for part in ("input", "output"))
    assert value["x"] >= slide["x"] + slide["width"] and value["y"] < slide["y"] + slide["height"]
    for threshold in range(3):
        move(section.locator("input[type=range]"), threshold)
        chart, said = section.locator(".chart > svg").bounding_box(), section.locator(".chart .strong").bounding_box()
        assert section.locator(".chart .strong").text_content().startswith("threshold ")
        assert chart["x"] <= said["x"] and said["x"] + said["width"] <= chart["x"] + chart["width"] + 1


def test_the_name_of_the_first_row_is_not_cut(page: Any) -> None:
    assert held(panel(page, 0, "relation"), "x.shown().box.top") >= 6  # half of a line of 11 pixels, and a rim


def test_every_control_has_a_name(page: Any) -> None:
    controls = "[...document.querySelectorAll('select, input, button')]"
    unnamed = f"{controls}.filter(c => !c.labels?.length && !c.textContent.trim() && !c.ariaLabel)"
    assert page.evaluate(f"{unnamed}.map(c => c.outerHTML)") == []
