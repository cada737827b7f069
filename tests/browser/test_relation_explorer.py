"""RelationExplorer in a real JupyterLab and a real Chromium: it opens, and answers a list, a slider and a click on a cell."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from corsd_lib import TrainConfig, train

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
CODE = "from corsd_lib import RelationExplorer, load_run\nexplorer = RelationExplorer(load_run('run'))\nexplorer"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="NO BROWSER: Chromium is not installed, the explorer was not tried in one"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small real run and a notebook that explores it."""
    folder = tmp_path_factory.mktemp("lab")
    train(TrainConfig(per_class=2, epochs=2, probe_size=40, batch_size=20, out=str(folder / "run")), progress=False)
    cells = [nbformat.v4.new_code_cell(CODE), nbformat.v4.new_code_cell("print('selected', explorer.selection)")]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), folder / "explore.ipynb")
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """A JupyterLab of its own on `folder`, with settings of nobody."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = {
        name: str(folder / ".jupyter" / name)
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTER_RUNTIME_DIR")
    }
    home["JUPYTERLAB_WORKSPACES_DIR"] = str(folder / ".jupyter" / "workspaces")
    command = [sys.executable, "-m", "jupyter", "lab", "--allow-root", "--no-browser", "--ServerApp.ip=127.0.0.1"]
    command += [f"--port={port}", "--IdentityProvider.token=", "--ServerApp.password=", f"--ServerApp.root_dir={folder}"]
    with open(folder / "lab.log", "wb") as log:
        server = subprocess.Popen(command, env={**os.environ, **home}, stdout=log, stderr=log)
    try:
        _wait_for(f"http://127.0.0.1:{port}/api", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(120):
        assert server.poll() is None, "JupyterLab ended before it answered"
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.25)
    raise AssertionError(f"no answer from {url}")


@pytest.fixture
def page(address: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(90_000)  # a busy machine is slow, not broken
        yield page
        browser.close()


def test_explorer_answers_list_slider_and_click(page: Any, address: str) -> None:
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))

    page.goto(f"{address}/lab/tree/explore.ipynb")
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()  # cells that are run before the kernel is there are dropped
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    page.wait_for_selector(".corsd .js-plotly-plot .main-svg", timeout=60_000)
    explorer = page.locator(".corsd")

    wait_for_title(page, "exit 3 (deepest), epoch 2")
    explorer.locator("select").first.select_option(index=0)
    wait_for_title(page, "exit 1 (shallowest), epoch 2")
    explorer.locator(".noUi-handle").focus()
    page.keyboard.press("ArrowLeft")
    wait_for_title(page, "exit 1 (shallowest), epoch 1")

    cell = explorer.locator(".draglayer .nsewdrag").bounding_box()
    at = (cell["x"] + cell["width"] * 0.35, cell["y"] + cell["height"] * 0.75)  # column 3, row 7 of 10
    page.mouse.move(*at)
    explorer.locator(".hoverlayer .hovertext", has_text="7 with 3").wait_for()  # plotly clicks on what it hovers over
    caption = explorer.locator("table caption", has_text="7 and 3")
    for _ in range(20):  # plotly sends hovers and clicks through one variable: a click right behind a hover can get lost
        page.mouse.move(at[0] + 3, at[1])
        page.wait_for_timeout(1500)
        page.mouse.click(at[0] + 3, at[1])
        page.wait_for_timeout(1500)
        if caption.count():
            break
    caption.wait_for()
    assert caption.locator("xpath=..").locator("tr").count() == 4  # a head and three exits

    # What was clicked is known to the kernel.
    page.locator(".jp-CodeCell").nth(1).click()
    page.keyboard.press("Control+Enter")
    page.wait_for_function("document.body.textContent.includes('selected (7, 3)')")
    assert errors == []


def wait_for_title(page: Any, text: str) -> None:
    """Wait on plotly's data model, not on pixels."""
    has_title = "text => document.querySelector('.corsd .js-plotly-plot')?.layout?.title?.text?.startsWith(text)"
    page.wait_for_function(has_title, arg=text)
