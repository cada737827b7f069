"""Every explorer in a real JupyterLab and a real Chromium: it opens, and answers a list, a slider and a click."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.browser

Opened = Callable[..., Any]
# What holds on a slow processor holds on a fast one. Both are tried with CORSD_THROTTLES="1 6".
slowly = pytest.mark.parametrize("throttle", [int(rate) for rate in os.environ.get("CORSD_THROTTLES", "6").split()])


def made(name: str, options: str = "") -> str:
    return f"from corsd_lib import {name}, load_run\nexplorer = {name}(load_run('run'), {options})\nexplorer"


def last_output(page: Any, code_cell: int, text: str) -> None:
    """Run a cell again until it prints this: what was done in the browser is known to the kernel."""
    for _ in range(20):  # what arrives late above the cell moves it away from under the mouse
        page.locator(".jp-CodeCell").nth(code_cell).locator(".jp-InputArea-editor").click()
        page.keyboard.press("Control+Enter")
        for _ in range(20):
            page.wait_for_timeout(100)
            if text in page.evaluate("document.body.textContent"):
                return
    pytest.fail(f"cell {code_cell} never printed {text!r}")


def explored(page: Any, kind: str, expression: str, arg: Any = None) -> Any:
    """What holds for an explorer in the page: `expression` of x, what its script gives away."""
    return page.evaluate(f"arg => {{ const x = document.querySelector('.corsd.{kind}').corsd; return {expression}; }}", arg)


def explored_until(page: Any, kind: str, condition: str, arg: Any = None) -> None:
    found = f"document.querySelector('.corsd.{kind}')?.corsd"
    page.wait_for_function(f"arg => {{ const x = {found}; return x && ({condition}); }}", arg=arg)


def control(explorer: Any, name: str) -> Any:
    return explorer.get_by_label(name, exact=True)


@pytest.fixture
def free(lab_folder: Path, throttle: int, request: pytest.FixtureRequest) -> Path:
    """A cell with `busy(free)` keeps the kernel busy until this file is there."""
    return lab_folder / f"free_{request.function.__name__}_{throttle}"


def busy(free: Path) -> str:
    return f"import pathlib, time\nwhile not pathlib.Path('{free.name}').exists():\n    time.sleep(0.05)\nprint('free again')"


@slowly
def test_relation_explorer(opened: Opened, free: Path) -> None:
    """While a cell keeps the kernel busy the explorer draws, answers all that it can, and loses nothing of it."""
    chosen = "print('chosen', explorer.exit, explorer.epoch, explorer.selection)"
    page = opened("relations", made("RelationExplorer"), busy(free), chosen)
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
    control(explorer, "cells are").select_option(label="images")
    assert explorer.locator(".busy").inner_text() == "relating 40 images: waiting for the kernel…"
    covered = """node => {
      const sign = node.querySelector(".busy").getBoundingClientRect();
      const controls = ".controls :is(label, select, input, button)";
      return [...node.querySelectorAll(controls)].map((c) => c.getBoundingClientRect()).some((at) => at.width
        && at.right > sign.left && at.left < sign.right && at.bottom > sign.top && at.top < sign.bottom);
    }"""
    assert not explorer.evaluate(covered)
    control(explorer, "cells are").select_option(label="classes")
    assert explored(page, "relation", "x.shown().n") == 10
    assert page.get_by_text("free again", exact=True).count() == 0  # all of this while the kernel was busy
    free.touch()
    explorer.locator(".pair-images img").first.wait_for()  # when the kernel comes to it; digits are embedded
    last_output(page, 2, "chosen 1 1 (7, 3)")
    assert explorer.locator(".pair .finding").inner_text().startswith("7 with 3")


def test_relations_that_only_python_has(opened: Opened) -> None:
    page = opened("kinds", made("RelationExplorer"), "print('chosen', explorer.images, explorer.selection)")
    explorer = page.locator(".corsd.relation")
    explored_until(page, "relation", "x.shown().n === 10")
    control(explorer, "cells are").select_option(label="images")
    explored_until(page, "relation", "x.shown().n === 40")
    for row, column in ((20, 3), (5, 30)):  # each time images of other classes than those that are shown
        x, y, size, *chosen = explored(
            page,
            "relation",
            "(m => [m.box.left, m.box.top, m.box.size, ...arg.map((i) => x.maps[0].cells.rows[i]),"
            " ...arg.map((i) => x.maps[0].cells.classes[i])])(x.shown())",
            [row, column],
        )
        place = {"x": x + (column + 0.5) * size, "y": y + (row + 0.5) * size}
        explorer.locator("canvas").first.click(position=place)
        first, second, *classes = chosen
        explorer.get_by_text(f"#{first}", exact=False).first.wait_for()
        last_output(page, 1, f"chosen ({first}, {second}) ({classes[0]}, {classes[1]})")
    explorer.locator("canvas").first.focus()
    for _ in range(26):  # from row 5 and column 30 down, past the diagonal
        page.keyboard.press("ArrowDown")
    assert explored(page, "relation", "x.shown().frame") == [32, 30]
    control(explorer, "relation").select_option(label="L2 relation")
    explorer.locator("figcaption", has_text="L2 relation").first.wait_for()
    # The scores of the classes come, too, for the table and the lists beside the images.
    page.wait_for_function("!document.querySelector('.corsd.relation .pair table').textContent.includes('…')")
    explorer.locator(".tops ol").wait_for()
    control(explorer, "cells are").select_option(label="classes")
    explored_until(page, "relation", "x.shown().n === 10")
    explorer.get_by_role("button", name="which pixels relate them?").click()
    explorer.locator(".pixels img").nth(5).wait_for()


def lasso(page: Any, canvas: Any) -> None:
    """Draw around nearly all of a canvas."""
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    corners = [(0.02, 0.02), (0.98, 0.02), (0.98, 0.98), (0.02, 0.98), (0.02, 0.05)]
    points = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in corners]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points:
        page.mouse.move(*point, steps=4)
    page.mouse.up()


@slowly
def test_stage_and_exit_explorers_beside_relations(opened: Opened, free: Path) -> None:
    """Three in one notebook with a busy kernel: a lasso marks classes in the relations, and all answer."""
    code = (
        "from corsd_lib import ExitExplorer, RelationExplorer, StageExplorer, load_run\nrun = load_run('run')\n"
        "relations = RelationExplorer(run)\nstages = StageExplorer(run, relations, epochs=[0, 2], method='pca')\nstages"
    )
    told = "print('told', len(stages.selection), len(relations.marked), stages.epoch, exits.rule)"
    page = opened("stages", code, "exits = ExitExplorer(run)\nexits", "relations", busy(free), told)
    stages, exits = page.locator(".corsd.stages"), page.locator(".corsd.exits")
    explored_until(page, "relation", "x.shown().n === 10")
    lasso(page, stages.locator("canvas").first)
    assert explored(page, "stages", "[...x.maps[2].view.shown.chosen].length") == 40
    assert explored(page, "relation", "x.shown().rings.length") == 10
    control(stages, "epoch").focus()
    page.keyboard.press("ArrowLeft")
    assert "Epoch 0" in stages.locator(".finding").first.inner_text()
    control(exits, "rule").select_option(label="entropy")
    assert explored(page, "exits", "x.curve.shown.marks.length") == 1
    assert "entropy" in exits.locator(".controls").first.inner_text()
    assert page.get_by_text("free again", exact=True).count() == 0
    free.touch()
    stages.locator(".strip img").nth(3).wait_for()  # digits are embedded: what is marked is seen
    exits.locator(".strips img").nth(3).wait_for()
    last_output(page, 4, "told 40 40 0 entropy")


@slowly
def test_early_exit_that_python_completes(opened: Opened) -> None:
    """Curves that only Python has: the thresholds are those of the rule, and undo goes back step by step."""
    page = opened("early", made("ExitExplorer"), "print('told', explorer.split, explorer.rule, len(explorer.curve))")
    explorer = page.locator(".corsd.exits")
    explored_until(page, "exits", "x.curve.shown?.marks.length === 1")
    confident = explored(page, "exits", "x.curves.get('probe/confidence').threshold.length")
    for rule in ("patience", "confidence", "patience"):
        control(explorer, "rule").select_option(label=rule)
    assert explored(page, "exits", "Array.from(x.curves.get('probe/patience').threshold)") == [1, 2, 3]
    assert explored(page, "exits", "x.curves.get('probe/confidence').threshold.length") == confident
    last_output(page, 1, "told probe patience 3")
    control(explorer, "images").select_option(index=1)
    control(explorer, "rule").select_option(label="confidence")  # at once, while Python chooses
    explored_until(page, "exits", "x.curves.has('validation/confidence') && !document.querySelector('.corsd.exits.stale')")
    undo = explorer.get_by_role("button", name="undo")
    for _ in range(10):
        if undo.is_disabled():
            break
        undo.click()
        page.wait_for_timeout(500)
    assert undo.is_disabled()  # every step was taken back
    assert explorer.locator(".message").inner_text() == ""
    last_output(page, 1, f"told probe confidence {confident}")


@slowly
def test_attribution_explorer(opened: Opened) -> None:
    page = opened("attribution", made("AttributionExplorer", "image=3"), "print('asked for', explorer.exit, explorer.method)")
    explorer = page.locator(".corsd.attribution")
    explorer.locator(".attributions img").nth(2).wait_for()
    assert "Exit 3 predicts" in explorer.locator(".finding").inner_text()
    control(explorer, "exit").select_option(index=0)
    explorer.locator(".finding", has_text="Exit 1 predicts").wait_for()
    control(explorer, "method").select_option(index=1)
    explorer.locator(".note", has_text="Grad-CAM has no baseline").wait_for()
    explorer.get_by_role("button", name="check: delete pixels").click()
    explorer.locator(".check path").nth(1).wait_for()
    explorer.get_by_role("button", name="check: random weights").click()
    explorer.locator(".check td").nth(9).wait_for()
    last_output(page, 1, "asked for 1 grad_cam")


TRAINED = "TrainConfig(per_class=4, epochs=100000, batch_size=20, probe_every=0, out='{}')"
LINES = "(x.accuracy.shown?.lines ?? []).some(line => line.x.length > 1)"


@slowly
def test_training_monitor_stops_a_training_behind_the_cells(opened: Opened, throttle: int) -> None:
    code = "from corsd_lib import TrainConfig, TrainingMonitor, train\nmonitor = TrainingMonitor()\n"
    end = "print('kept', (run := monitor.wait()).finished, run.epochs_done > 0) if not monitor.training else None"
    page = opened("monitor", f"{code}monitor.train({TRAINED.format(f'behind_{throttle}')})\nmonitor", end)
    explorer = page.locator(".corsd.monitor")
    explored_until(page, "monitor", LINES)
    explorer.get_by_role("button", name="stop").click()
    explorer.get_by_role("button", name="resume", disabled=False).wait_for()
    last_output(page, 1, "kept False True")


@slowly
def test_training_monitor_stops_a_training_in_a_cell(opened: Opened, throttle: int) -> None:
    """The kernel hears nothing while a cell trains: the button asks the server to interrupt it."""
    code = "from corsd_lib import TrainConfig, TrainingMonitor, train\nmonitor = TrainingMonitor()\ndisplay(monitor)\n"
    config = TRAINED.format(f"cell_{throttle}")
    code += f"run = train({config}, on_epoch=monitor, progress=False)\nprint('kept', run.finished, run.epochs_done)"
    page = opened("cell", code)
    explored_until(page, "monitor", LINES)
    page.locator(".corsd.monitor").get_by_role("button", name="stop").click()
    kept = page.locator(".jp-OutputArea-output", has_text="kept False")
    kept.wait_for()
    epochs = kept.inner_text().split()[-1]
    page.locator(".corsd.monitor .finding", has_text=f"epoch {epochs} of").wait_for()  # the last one is drawn in any case


def test_an_explorer_whose_cell_ran_again_still_answers(opened: Opened) -> None:
    page = opened(
        "again", made("RelationExplorer").removesuffix("explorer"), "explorer", "explorer.exit = 1 + explorer.exit % 3"
    )
    caption = page.locator(".corsd.relation figcaption").first
    caption.filter(has_text="exit 1").wait_for()
    for cell, count in ((1, 4), (2, 5)):
        page.locator(".jp-CodeCell").nth(cell).locator(".jp-InputArea-editor").click()
        page.keyboard.press("Control+Enter")
        page.locator(".jp-CodeCell").nth(cell).locator(".jp-InputPrompt", has_text=f"[{count}]").first.wait_for()
    caption.filter(has_text="exit 2").wait_for()


def test_a_restart_of_the_kernel_ends_what_waits_for_it(opened: Opened) -> None:
    page = opened("restart", made("RelationExplorer"), "import time\ntime.sleep(300)")
    explorer = page.locator(".corsd.relation")
    explored_until(page, "relation", "x.shown().n === 10")
    control(explorer, "relation").select_option(label="L2 relation")
    explorer.locator(".busy", has_text="waiting for the kernel").wait_for()
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_text("Restart Kernel…", exact=True).click()
    page.get_by_role("button", name="Confirm Kernel Restart").click()
    explorer.locator(".message", has_text="The kernel was restarted or has stopped").wait_for()
    assert not explorer.locator(".busy").is_visible()
    assert "L2" not in explorer.locator("figcaption").first.inner_text()  # the choice that cannot be shown is taken back
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()  # a kernel that is just starting cannot be ended


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
