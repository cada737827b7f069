"""The wheel and the source archive: what is in them, and that the package works away from a clone. No network.

`make test-wheel` builds both and installs the wheel into an empty environment.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from corsd_lib import bundle

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MEGABYTE = 1_000_000
# What setuptools does for a wheel, into the folder sys.argv[1]; nothing is written into the clone.
BUILD = """
import sys
from setuptools import Distribution

distribution = Distribution({"script_name": "setup.py"})
distribution.parse_config_files()
distribution.get_command_obj("egg_info").egg_base = sys.argv[1]
distribution.get_command_obj("build_py").build_lib = sys.argv[1] + "/site"
distribution.run_command("build_py")
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the content of the wheel in site/, and the list of the source archive."""
    needed = next(text.partition(">=")[2] for text in PYPROJECT["build-system"]["requires"] if text.startswith("setuptools"))
    pytest.importorskip("setuptools", minversion=needed, reason=f"packages are built with setuptools {needed} or newer")
    folder = tmp_path_factory.mktemp("built")
    subprocess.run([sys.executable, "-c", BUILD, str(folder)], cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def carried(built: Path) -> set[str]:
    """The files of the bundle in the wheel."""
    inside = built / "site" / "corsd_lib" / bundle.PACKAGED
    return {path.relative_to(inside).as_posix() for path in inside.rglob("*") if path.is_file()}


def test_the_wheel_carries_the_notebooks_and_what_they_read(carried: set[str]) -> None:
    assert carried == {path.as_posix() for path in bundle.bundled_files(ROOT)}
    notebooks = {path.relative_to(ROOT).as_posix() for path in (ROOT / "notebooks").rglob("*.ipynb")}
    pictures = {f"notebooks/images/{path.name}" for path in (ROOT / "notebooks" / "images").iterdir()}
    summaries = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("results/*/summary.json")}
    assert notebooks | pictures | summaries | {"results/digits/runs/corsd/weights.safetensors"} <= carried


def test_the_wheel_has_no_tool_of_the_clone_and_one_run(carried: set[str]) -> None:
    assert {Path(name).suffix for name in carried} == {".ipynb", ".png", ".svg", ".md", ".json", ".jsonl", ".safetensors"}
    assert {name.split("/runs/")[1].split("/")[0] for name in carried if "/runs/" in name} == {"corsd"}
    pictures = [name for name in carried if name.endswith(".png")]
    assert not [name for name in pictures if not re.match(r"(notebooks/images|results/\w+)/[^/]+$", name)]


def test_the_wheel_is_small(built: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "wheel", "w", zipfile.ZIP_DEFLATED) as wheel:
        for file in (built / "site").rglob("*"):
            wheel.write(file)
    run = sum(path.stat().st_size for path in (ROOT / "results" / "digits" / "runs" / "corsd").rglob("*"))
    assert (tmp_path / "wheel").stat().st_size < 15 * MEGABYTE and run < 1.5 * MEGABYTE


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="an unpacked source archive has no history")
def test_the_source_archive_has_every_file_that_git_tracks(built: Path) -> None:
    listed = set((built / "corsd_lib.egg-info" / "SOURCES.txt").read_text(encoding="utf-8").splitlines())
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [name for name in tracked if (ROOT / name).exists() and name not in listed] == []
    made = {name for name in listed if name not in tracked}
    assert not [name for name in made if ".egg-info/" not in name and not name.endswith(".py")]


AWAY = """
import sys
from pathlib import Path
from corsd_lib import CorsdError, RelationExplorer, bundle, cli, committed_summary, sample_run

site = Path(sys.argv[1])
assert bundle.bundle_root() == site / "corsd_lib" / "_bundle", bundle.bundle_root()
run = sample_run("digits/corsd")
assert site in run.path.parents and run.test["exits"][0]["top1"] > 80
assert committed_summary("digits")["baseline"] == "baseline" and bundle.find_result("cifar100/tuning")
RelationExplorer(run).to_html("page.html", images=True)
cli.main(["course", "--no-open"])
"""


@pytest.mark.slow
def test_away_from_a_clone_a_run_opens_and_the_course_is_copied(built: Path, tmp_path: Path) -> None:
    offline = {
        "PYTHONPATH": str(built / "site"),
        "CORSD_CACHE": str(tmp_path / "cache"),
        "CORSD_RELEASES": "http://127.0.0.1:9",
    }
    done = subprocess.run(
        [sys.executable, "-c", AWAY, str(built / "site")],
        cwd=tmp_path,
        env={**os.environ, **offline},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "jupyter lab corsd-course/notebooks/01_walkthrough.ipynb" in done.stdout.replace("\\", "/")
    assert (tmp_path / "page.html").stat().st_size > 50_000 and not (tmp_path / "cache").exists()
    assert len(list((tmp_path / "corsd-course" / "notebooks").glob("*.ipynb"))) == len(list(ROOT.glob("notebooks/*.ipynb")))
