"""A JupyterLab of its own and a Chromium, for tests that look at explorers as people do."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from corsd_lib import Run, TrainConfig, train

# What Chromium's software renderer says of itself, and of the explorers nothing.
NOT_OURS = ("GL Driver Message", "WebGL")
PRELOAD = """import importlib
for name in ("torchvision", "lightning_fabric", "captum.attr", "sklearn.decomposition", "corsd_lib.widgets.attribution"):
    importlib.import_module(name)
del importlib, name
"""


@pytest.fixture(scope="session")
def lab_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="session")
def small_run(lab_folder: Path) -> Run:
    """Three exits, epochs 0 to 2, 40 probe images of digits; notebooks find it as "run"."""
    config = TrainConfig(
        per_class=4, validation_fraction=0.2, epochs=2, probe_size=40, batch_size=20, out=str(lab_folder / "run")
    )
    return train(config, progress=False)


@pytest.fixture(scope="session")
def lab(lab_folder: Path) -> Iterator[str]:
    """Address of a JupyterLab on the folder, with settings of nobody."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = {
        name: str(lab_folder / ".jupyter" / name)
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTER_RUNTIME_DIR")
    }
    home["JUPYTERLAB_WORKSPACES_DIR"] = str(lab_folder / ".jupyter" / "workspaces")
    # A kernel has loaded what takes longest before it says that it is idle: a browser that is made slower uses a whole
    # processor for as long as it waits, and takes it from the kernel.
    home["IPYTHONDIR"] = str(lab_folder / ".ipython")
    (startup := lab_folder / ".ipython" / "profile_default" / "startup").mkdir(parents=True)
    (startup / "preload.py").write_text(PRELOAD)
    command = [sys.executable, "-m", "jupyter", "lab", "--allow-root", "--no-browser", "--ServerApp.ip=127.0.0.1"]
    command += [f"--port={port}", "--IdentityProvider.token=", "--ServerApp.password="]
    command += ["--ServerApp.disable_check_xsrf=True", f"--ServerApp.root_dir={lab_folder}"]
    with open(lab_folder / "lab.log", "wb") as log:
        server = subprocess.Popen(command, env={**os.environ, **home}, stdout=log, stderr=log)
    try:
        _wait_for(f"http://127.0.0.1:{port}/api", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=20)


def _wait_for(url: str, server: subprocess.Popen[bytes], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    pytest.fail(f"no JupyterLab at {url}")


@pytest.fixture
def throttle() -> int:
    """How many times slower the browser's processor is made."""
    return 1


@pytest.fixture
def opened(browser: Any, lab: str, lab_folder: Path, small_run: Run, throttle: int) -> Iterator[Callable[..., Any]]:
    """`opened(name, code, ...)`: a page with a notebook of these cells, all of them run. No error may come to its console."""
    page = browser.new_page(viewport={"width": 1500, "height": 2000})
    page.set_default_timeout(90_000)  # a busy machine is slow, not broken
    slow = page.context.new_cdp_session(page)
    errors: list[str] = []
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" and not m.text.startswith(NOT_OURS) else None)
    page.on("pageerror", lambda error: errors.append(str(error)))

    def run_all(name: str, *cells: str) -> Any:
        name = f"{name}_{throttle}"
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        code = [nbformat.v4.new_code_cell(cell) for cell in cells]
        nbformat.write(nbformat.v4.new_notebook(cells=code, metadata={"kernelspec": kernel}), lab_folder / f"{name}.ipynb")
        page.goto(f"{lab}/lab/workspaces/{name}/tree/{name}.ipynb")
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()  # cells that are run before the kernel is there are dropped
        slow.send("Emulation.setCPUThrottlingRate", {"rate": throttle})  # JupyterLab itself may load in peace
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        page.wait_for_selector(".corsd", timeout=90_000)
        return page

    try:
        yield run_all
    finally:
        page.close()
        _end_kernels(lab)  # a training that was not stopped would slow down all tests after this one
    assert errors == []


def _end_kernels(lab: str) -> None:
    with urllib.request.urlopen(f"{lab}/api/kernels", timeout=60) as answer:
        kernels = json.load(answer)
    for kernel in kernels:
        urllib.request.urlopen(urllib.request.Request(f"{lab}/api/kernels/{kernel['id']}", method="DELETE"), timeout=60).close()
