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


def explored(page: Any, kind: str, expression: str, arg: Any = None) -> Any:
    """What holds for an explorer in the page: `expression` of x, what its script gives away."""
    return page.evaluate(f"arg => {{ const x = document.querySelector('.corsd.{kind}').corsd; return {expression}; }}", arg)


def explored_until(page: Any, kind: str, condition: str, arg: Any = None) -> None:
    found = f"document.querySelector('.corsd.{kind}')?.corsd"
    page.wait_for_function(f"arg => {{ const x = {found}; return x && ({condition}); }}", arg=arg)


def control(explorer: Any, name: str) -> Any:
    return explorer.get_by_label(name, exact=True)


BUSY = "import time; time.sleep(20); print('slept')"


slowly = pytest.mark.parametrize("throttle", [1, 6])


@slowly
def test_relation_explorer(opened: Opened) -> None:
    """While a cell keeps the kernel busy the explorer draws, answers all that it can, and loses nothing of it."""
    chosen = "print('chosen', explorer.exit, explorer.epoch, explorer.selection)"
    page = opened("relations", made("RelationExplorer"), BUSY, chosen)
    explorer = page.locator(".corsd.relation")
    explored_until(page, "relation", "x.shown().n === 10")
    cells = explorer.locator("canvas").first
    assert cells.evaluate("c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size") > 50
    control(explorer, "exit").select_option(index=0)
    assert "exit 1 (shallowest), epoch 2" in explorer.locator("figcaption").first.inner_text()
    control(explorer, "epoch").focus()
    page.keyboard.press("ArrowLeft")
    assert "exit 1 (shallowest), epoch 1" in explorer.locator("figcaption").first.inner_text()

    x, y, size = explored(page, "relation", "[x.shown().box.left, x.shown().box.top, x.shown().box.size]")
    at = (x + 3.5 * size, y + 7.5 * size)
    cells.scroll_into_view_if_needed()
    cells.hover(position={"x": at[0], "y": at[1]})
    assert explorer.locator(".matrix .tip").first.inner_text().startswith("7 with 3")
    cells.click(position={"x": at[0], "y": at[1]})
    assert explorer.locator(".pair .finding").inner_text().startswith("7 with 3")
    page.keyboard.press("ArrowRight")
    assert explorer.locator(".pair .finding").inner_text().startswith("7 with 4")
    page.keyboard.press("Control+z")
    assert explorer.locator(".pair .finding").inner_text().startswith("7 with 3")
    assert page.get_by_text("slept", exact=True).count() == 0  # all of this while the kernel was busy
    explorer.locator(".pair-images img").first.wait_for()  # when the kernel comes to it; digits are embedded
    last_output(page, 2, "chosen 1 1 (7, 3)")
    assert explorer.locator(".pair .finding").inner_text().startswith("7 with 3")


def test_relations_that_only_python_has(opened: Opened) -> None:
    page = opened("kinds", made("RelationExplorer"))
    explorer = page.locator(".corsd.relation")
    explored_until(page, "relation", "x.shown().n === 10")
    control(explorer, "cells are").select_option(label="images")
    explored_until(page, "relation", "x.shown().n === 40")
    control(explorer, "relation").select_option(label="L2 relation")
    explorer.locator("figcaption", has_text="L2 relation").first.wait_for()
    control(explorer, "cells are").select_option(label="classes")
    explored_until(page, "relation", "x.shown().n === 10")
    explorer.get_by_role("button", name="show its images").click()
    explorer.get_by_role("button", name="which pixels relate them?").click()
    explorer.locator(".pixels img").nth(5).wait_for()


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


def test_an_explorer_whose_cell_ran_again_still_answers(opened: Opened) -> None:
    page = opened(
        "again", made("RelationExplorer").removesuffix("explorer"), "explorer", "explorer.exit = 1 + explorer.exit % 3"
    )
    caption = page.locator(".corsd.relation figcaption").first
    caption.filter(has_text="exit 1").wait_for()
    for cell in (1, 2):
        page.locator(".jp-CodeCell").nth(cell).locator(".jp-InputArea-editor").click()
        page.keyboard.press("Control+Enter")
        page.wait_for_timeout(3000)
    caption.filter(has_text="exit 2").wait_for()


def test_controls_are_reached_and_changed_by_keyboard_alone(opened: Opened) -> None:
    page = opened("keyboard", made("RelationExplorer"))
    explorer = page.locator(".corsd.relation")
    explored_until(page, "relation", "x.shown().n === 10")
    control(explorer, "exit").focus()
    page.keyboard.press("ArrowUp")  # the notebook's own shortcuts do not take it
    assert "exit 2, epoch 2" in explorer.locator("figcaption").first.inner_text()
    reached = []
    for _ in range(16):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.labels?.[0]?.textContent ?? document.activeElement.tagName"))
    assert {"epoch", "relation", "cells are", "order of classes", "subtract", "colours", "find a class", "CANVAS"} <= set(
        reached
    )
