"""Every explorer in a real JupyterLab and a real Chromium: it opens, and answers a list, a slider and a click."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.browser

Opened = Callable[..., Any]
Until = Callable[..., None]
TITLE = "(d, text) => (d.layout.title?.text ?? '').startsWith(text)"
IN_TITLE = "(d, text) => (d.layout.title?.text ?? '').includes(text)"


def made(name: str, options: str = "") -> str:
    return f"from corsd_lib import {name}, load_run\nexplorer = {name}(load_run('run'), {options})\nexplorer"


def last_output(page: Any, code_cell: int, text: str) -> None:
    """Run a cell again until it prints this: what was done in the browser is known to the kernel."""
    for _ in range(20):  # what arrives late above the cell moves it away from under the mouse
        page.locator(".jp-CodeCell").nth(code_cell).locator(".jp-InputArea-editor").click()
        page.keyboard.press("Control+Enter")
        page.wait_for_timeout(2000)
        if text in page.evaluate("document.body.textContent"):
            return
    pytest.fail(f"cell {code_cell} never printed {text!r}")


def click_until(page: Any, at: tuple[float, float], done: Callable[[], bool]) -> None:
    """plotly sends hovers and clicks through one variable: a click right behind a hover can get lost."""
    for _ in range(8):
        page.mouse.move(at[0] + 3, at[1])
        page.wait_for_timeout(1000)
        page.mouse.click(at[0] + 3, at[1])
        for _ in range(20):
            page.wait_for_timeout(500)
            if done():
                return
    pytest.fail(f"no answer to a click at {at}")


def test_relation_explorer(opened: Opened, until: Until) -> None:
    code = made("RelationExplorer")
    page = opened("relations", code, "print('selected', explorer.selection)")
    explorer = page.locator(".corsd")

    until(page, TITLE, "exit 3 (deepest), epoch 2")
    explorer.locator("select").first.select_option(index=0)
    until(page, TITLE, "exit 1 (shallowest), epoch 2")
    explorer.locator(".noUi-handle").first.focus()
    page.keyboard.press("ArrowLeft")
    until(page, TITLE, "exit 1 (shallowest), epoch 1")

    cells = explorer.locator(".draglayer .nsewdrag").first.bounding_box()
    at = (cells["x"] + cells["width"] * 0.35, cells["y"] + cells["height"] * 0.75)  # column 3, row 7 of 10
    page.mouse.move(*at)
    explorer.locator(".hoverlayer .hovertext", has_text="7 with 3").wait_for()
    caption = explorer.locator("table caption", has_text="7 and 3")
    click_until(page, at, lambda: caption.count() > 0)
    assert caption.locator("xpath=..").locator("tr").count() == 4  # a head and three exits
    explorer.locator("img").first.wait_for()  # digits are embedded: the pair's images are there
    last_output(page, 1, "selected (7, 3)")


def test_stage_explorer(opened: Opened, until: Until) -> None:
    code = made("StageExplorer", "epochs=[0, 2], method='pca'")
    page = opened("stages", code, "print('marked', len(explorer.selection) > 0)")
    explorer = page.locator(".corsd")

    until(page, IN_TITLE, "Epoch 2")
    until(page, "d => d.data.length >= 3")
    explorer.locator(".noUi-handle").first.focus()
    page.keyboard.press("ArrowLeft")
    until(page, IN_TITLE, "Epoch 0")
    explorer.locator("select").first.select_option(label="right or wrong at that exit")
    until(page, "d => d.data.some(t => (t.name ?? '').includes('right'))")

    box = explorer.locator(".draglayer .nsewdrag").first.bounding_box()
    corners = [(0.02, 0.02), (0.98, 0.02), (0.98, 0.98), (0.02, 0.98), (0.02, 0.02)]
    points = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in corners]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=10)
    page.mouse.up()
    explorer.get_by_text("marked").first.wait_for()
    last_output(page, 1, "marked True")


def test_exit_explorer(opened: Opened, until: Until) -> None:
    code = made("ExitExplorer")
    page = opened("exits", code, "print('rule', explorer.rule, 'lowest', explorer.threshold == explorer.curve.threshold.min())")
    explorer = page.locator(".corsd")

    until(page, TITLE, "confidence at")
    explorer.locator("select").first.select_option(index=1)
    until(page, TITLE, "entropy at")
    explorer.locator("select").first.select_option(index=0)
    until(page, TITLE, "confidence at")
    explorer.locator(".noUi-handle").first.focus()
    page.keyboard.press("Home")
    explorer.get_by_text("Leaving at exit 1 (shallowest)").wait_for()
    last_output(page, 1, "rule confidence lowest True")


def test_attribution_explorer(opened: Opened, until: Until) -> None:
    code = made("AttributionExplorer", "image=3")
    page = opened("attribution", code, "print('asked for', explorer.exit, explorer.method)")
    explorer = page.locator(".corsd")

    until(page, TITLE, "Exit 3")  # drawn although the figure was filled before it was shown
    explorer.locator("select", has_text="exit 1 (shallowest)").select_option(index=0)
    until(page, TITLE, "Exit 1")
    explorer.locator("select", has_text="integrated gradients").select_option(index=1)
    explorer.get_by_role("button", name="check: delete its pixels").click()
    page.wait_for_function("document.querySelectorAll('.corsd .js-plotly-plot').length > 1")
    last_output(page, 1, "asked for 1 grad_cam")


def test_training_monitor(opened: Opened, until: Until) -> None:
    code = (
        "from corsd_lib import TrainConfig, TrainingMonitor\nmonitor = TrainingMonitor()\n"
        "monitor.train(TrainConfig(per_class=4, epochs=100000, batch_size=20, probe_every=0, out='watched'))\nmonitor"
    )
    page = opened(
        "monitor",
        code,
        "print('kept', (run := monitor.wait()).finished, run.epochs_done > 0) if monitor.stop_button.disabled else None",
    )
    explorer = page.locator(".corsd")

    until(page, "d => d.data.some(t => t.type === 'scatter' && t.y?.length > 1)")
    explorer.get_by_role("button", name="stop").click()
    explorer.get_by_role("button", name="go on", disabled=False).wait_for()
    last_output(page, 1, "kept False True")


def test_an_explorer_whose_cell_ran_again_still_answers(opened: Opened, until: Until) -> None:
    page = opened(
        "again", made("RelationExplorer").removesuffix("explorer"), "explorer", "explorer.exit = 1 + explorer.exit % 3"
    )
    until(page, TITLE, "exit 1")
    for cell in (1, 2):
        page.locator(".jp-CodeCell").nth(cell).locator(".jp-InputArea-editor").click()
        page.keyboard.press("Control+Enter")
        page.wait_for_timeout(3000)
    until(page, TITLE, "exit 2")


def test_controls_are_reached_and_changed_by_keyboard_alone(opened: Opened, until: Until) -> None:
    page = opened("keyboard", made("RelationExplorer"))
    until(page, TITLE, "exit 3 (deepest), epoch 2")
    page.locator(".corsd select").first.focus()
    for key in ("Space", "ArrowUp", "Enter"):  # an arrow alone is JupyterLab's: it goes to another cell
        page.keyboard.press(key)
        page.wait_for_timeout(300)
    until(page, TITLE, "exit 2, epoch 2")

    reached = []
    for _ in range(20):
        page.keyboard.press("Tab")
        name = page.evaluate(
            "(here => here.className.includes('noUi-handle') ? 'epoch'"
            " : here.closest('.widget-dropdown, .widget-text')?.querySelector('label').textContent)(document.activeElement)"
        )
        reached.append(name)
        if name == "epoch":
            page.keyboard.press("ArrowLeft")
            until(page, TITLE, "exit 2, epoch 1")
    assert {"epoch", "subtract", "level", "relation", "order by", "find class", "first class", "second class"} <= set(reached)
