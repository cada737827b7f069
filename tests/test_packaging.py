"""What says what is installed, and how, agrees: pyproject, constraints, environment, Makefile, CI, README."""

from __future__ import annotations

import os
import platform
import re
import runpy
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import corsd_lib

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
BY_HAND = frozenset({"wandb", "mlflow"})  # extras that make does not install: large, and for one service each
NOT_PINNED = frozenset({"teaching", "docs"})  # not installed with the others, and they bring many packages of their own
EXTRAS = frozenset(PROJECT["optional-dependencies"]) - BY_HAND - NOT_PINNED
CUDA_ONLY = re.compile(r"nvidia-|cuda-|triton$")  # torch pins these itself, where they exist


def direct_dependencies() -> list[Requirement]:
    return [Requirement(text) for group in [PROJECT["dependencies"], *of_extras(EXTRAS)] for text in group]


def of_extras(extras: frozenset[str]) -> list[list[str]]:
    return [PROJECT["optional-dependencies"][extra] for extra in sorted(extras)]


def constraint_lines() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def pins() -> dict[str, Version]:
    """Canonical name -> the version that constraints.txt holds it to."""
    return {canonicalize_name(line.name): Version(str(line.specifier)[2:]) for line in constraint_lines()}


def installed_pins() -> dict[str, Version]:
    """The pins of what make installs: all but the packages of the extras of `BY_HAND`."""
    others = {canonicalize_name(Requirement(text).name) for e in BY_HAND for text in PROJECT["optional-dependencies"][e]}
    return {name: version for name, version in pins().items() if name not in others}


def installed_with_everything() -> dict[str, Version]:
    """What the package and its extras bring here, CUDA wheels left out: canonical name -> version."""
    todo, seen = [("corsd_lib", EXTRAS)], set()
    found: dict[str, Version] = {}
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen or CUDA_ONLY.match(name):
            continue
        seen.add((name, extras))
        distribution = metadata.distribution(name)
        found[name] = Version(Version(distribution.version).public)  # 2.14.1+cu130 counts as 2.14.1
        for requirement in map(Requirement, distribution.requires or []):
            if applies(requirement, extras):
                todo.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    del found["corsd_lib"]
    return found


def applies(requirement: Requirement, extras: frozenset[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""})


def of_users() -> list[Requirement]:
    """What a user installs: the dependencies and every extra but those of maintainers."""
    extras = [texts for name, texts in PROJECT["optional-dependencies"].items() if name not in ("dev", "docs")]
    return [Requirement(text) for group in [PROJECT["dependencies"], *extras] for text in group]


def bounds_of(requirement: Requirement) -> dict[str, Version]:
    return {clause.operator: Version(clause.version) for clause in requirement.specifier}


@pytest.mark.parametrize("requirement", direct_dependencies(), ids=lambda requirement: requirement.name)
def test_a_dependency_holds_its_pin(requirement: Requirement) -> None:
    assert pins()[canonicalize_name(requirement.name)] in requirement.specifier


@pytest.mark.parametrize("requirement", of_users(), ids=lambda requirement: requirement.name)
def test_what_a_user_installs_has_a_lowest_version_and_no_limit_above(requirement: Requirement) -> None:
    """A limit would keep a user from versions that may work. One belongs here once a version is known to break the code."""
    assert set(bounds_of(requirement)) == {">="}


@pytest.mark.parametrize("text", PROJECT["optional-dependencies"]["dev"])
def test_a_tool_of_development_ranges_up_to_the_next_major_version(text: str) -> None:
    requirement = Requirement(text)
    bounds = bounds_of(requirement)
    assert set(bounds) == {">=", "<"}
    assert bounds["<"] == Version(str(pins()[canonicalize_name(requirement.name)].major + 1))


def test_an_extra_that_is_installed_by_hand_is_not_pinned() -> None:
    for requirement in (Requirement(text) for group in of_extras(NOT_PINNED) for text in group):
        assert canonicalize_name(requirement.name) not in pins()


def test_the_lowest_versions_are_those_of_all_that_a_user_installs() -> None:
    lines = list(runpy.run_path(str(ROOT / "tests" / "lowest.py"))["lowest"]())
    tools = [text for name in ("dev", "docs") for text in PROJECT["optional-dependencies"][name]]
    assert lines == [*(f"{requirement.name}=={bounds_of(requirement)['>=']}" for requirement in of_users()), *tools]


def test_the_versions_of_python_are_those_that_ci_runs() -> None:
    named = [line.rpartition(" :: ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line]
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))["jobs"]
    assert named == jobs["fast"]["strategy"]["matrix"]["python"]
    assert PROJECT["requires-python"] == f">={named[0]}"


def test_constraints_are_exact_once_each_and_hold_on_every_platform() -> None:
    lines = constraint_lines()
    names = [canonicalize_name(line.name) for line in lines]
    assert [str(line) for line in lines if not re.fullmatch(r"==[\w.]+", str(line.specifier))] == []
    assert len(names) == len(set(names))
    assert [name for name in names if CUDA_ONLY.match(name)] == []


only_of_the_freeze = pytest.mark.skipif(
    sys.version_info[:2] != (3, 11) or platform.system() != "Linux",
    reason="constraints.txt is the freeze of Python 3.11 on Linux; elsewhere the ranges hold",
)


@only_of_the_freeze
def test_constraints_are_what_is_installed_neither_more_nor_less() -> None:
    assert installed_with_everything() == installed_pins()


@only_of_the_freeze
@pytest.mark.parametrize("name", sorted(installed_pins()))
def test_what_is_installed_runs_on_the_first_patch_release_of_each_python(name: str) -> None:
    """Debian 12 has Python 3.11.2: a pin that needs 3.11.5 would make `make test` impossible there."""
    major, minor = sys.version_info[:2]
    needed = metadata.metadata(name)["Requires-Python"]
    assert needed is None or f"{major}.{minor}.0" in SpecifierSet(needed)


def test_conda_installs_the_same_package_extras_and_versions() -> None:
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (python,) = [line for line in dependencies if isinstance(line, str) and line.startswith("python=")]
    (pip,) = [line["pip"] for line in dependencies if isinstance(line, dict)]
    assert python.removeprefix("python=") in SpecifierSet(PROJECT["requires-python"])
    assert python == "python=3.11"  # the one that constraints.txt was made on
    assert "-c constraints.txt" in pip
    (package,) = [line for line in pip if line.startswith("-e .")]
    assert set(re.findall(r"[\w-]+", package.removeprefix("-e "))) == EXTRAS


def test_make_installs_every_extra() -> None:
    (extras,) = re.findall(r"^EXTRAS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(extras.split(",")) == EXTRAS


def test_the_version_is_the_same_everywhere() -> None:
    changelog = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    found = [corsd_lib.__version__, metadata.version("corsd_lib"), citation["version"], changelog[0]]
    assert found == [PROJECT["version"]] * 4


def test_the_citation_names_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    (paper,) = citation["references"]
    names = [f"{author['given-names']} {author['family-names']}" for author in paper["authors"]]
    assert names == ["Muzhou Yu", "Sia Huat Tan", "Kailu Wu", "Runpei Dong", "Linfeng Zhang", "Kaisheng Ma"]
    assert paper["title"] == "CORSD: Class-Oriented Relational Self Distillation"
    assert (paper["year"], paper["url"]) == (2023, "https://arxiv.org/abs/2305.00918")
    assert citation["license"] == PROJECT["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")


def make(*arguments: str, folder: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    # Where make runs these tests, its flags and variables would reach the make that is tested.
    inherited = ("MAKE", "MFLAGS", "PYTHON", "WORKERS")
    outer = {key: value for key, value in os.environ.items() if not key.startswith(inherited)}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=folder, env=outer | variables, capture_output=True, text=True)


TARGETS = ["walkthrough", "lab", "slides", "grading", "docs", "test", "test-fast", "fuzz", "bench", "lint", "format", "clean"]
TARGETS += ["handout", "test-min", "test-wheel", "samples"]


@pytest.mark.parametrize("target", TARGETS)
def test_make_has_the_target_and_its_help(target: str) -> None:
    assert make("-n", target).returncode == 0
    assert re.search(rf"^  make {target} +\w", make("help").stdout, re.MULTILINE)


def test_make_test_runs_lint_types_units_and_notebooks() -> None:
    commands = make("-n", "test").stdout
    parts = ["ruff check", "ruff format --check", "mypy", "OMP_NUM_THREADS=1", "-n 2", "--nbval-lax"]
    assert [part for part in parts if part not in commands] == []


def test_the_lowest_versions_are_tested_in_an_environment_of_their_own() -> None:
    commands = make("-n", "test-min").stdout
    assert "venv --clear .venv-min" in commands and "-c .venv-min/lowest.txt" in commands
    assert not [line for line in commands.splitlines() if ".venv/" in line]
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert {".venv/", ".venv-min/", "build/"} <= set(ignored)


def test_ci_is_make_test_and_a_valid_script() -> None:
    script = ROOT / ".ci" / "run"
    lines = script.read_text().splitlines()
    assert "set -euo pipefail" in lines
    assert lines[-1] == "make test"  # nothing after it may hide how it ended
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0


def test_the_make_commands_of_the_readme_exist() -> None:
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("there is no README.md yet")
    code = re.findall(r"```.*?```|`[^`\n]+`", readme.read_text(), re.DOTALL)
    named = set(re.findall(r"\bmake ([a-z-]+)", "\n".join(code)))
    assert {"walkthrough", "test"} <= named
    assert [name for name in sorted(named) if make("-n", name).returncode != 0] == []


# Stands in for Python: `-m venv` makes .venv with a copy of itself, `-m pip install` installs nothing, both
# add a line to calls.txt. The file break-install lets one install fail; old-python stands for an older one.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
  "-c "*version_info*"< (3, 11)"*) test ! -e old-python ;;
  "-c "*) echo "-c constraints.txt" ;;
  "-m venv "*) echo venv >>calls.txt; rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
  "-m pip --version") ;;
  "-m pip install "*) echo "install ${*#-m pip install --disable-pip-version-check }" >>calls.txt
    ! rm break-install 2>/dev/null ;;
esac
"""
INSTALL = "install -e .[notebooks,dev,timm,tuning,hub,tracking,deploy,cluster] -c constraints.txt"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with our Makefile, the stand-in for Python, and the two requirement files, an hour old."""
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    (tmp_path / "python").write_text(FAKE_PYTHON)
    (tmp_path / "python").chmod(0o755)
    for name in ["pyproject.toml", "constraints.txt"]:
        (tmp_path / name).touch()
        shift_time(tmp_path / name, -3600)
    return tmp_path


def shift_time(path: Path, seconds: float) -> None:
    then = path.stat().st_mtime + seconds
    os.utime(path, (then, then))


def install(clone: Path) -> tuple[int, list[str], str]:
    """`make venv` there: exit status, what was called, what it said of errors."""
    (clone / "calls.txt").write_text("")
    done = make("venv", folder=clone, PYTHON="./python")
    return done.returncode, (clone / "calls.txt").read_text().splitlines(), done.stderr


def test_the_install_happens_once(clone: Path) -> None:
    assert install(clone) == (0, ["venv", INSTALL], "")
    assert install(clone) == (0, [], "")


def test_sphinx_is_installed_when_the_site_is_first_built(clone: Path) -> None:
    install(clone)
    (clone / "calls.txt").write_text("")
    builds = [make("docs", folder=clone, PYTHON="./python") for _ in range(2)]
    assert [build.returncode for build in builds] == [0, 0], builds[0].stderr
    assert (clone / "calls.txt").read_text().splitlines() == ["install -e .[docs] -c constraints.txt"]


@pytest.mark.parametrize("changed", ["pyproject.toml", "constraints.txt"])
def test_a_changed_requirement_installs_again_into_the_same_venv(clone: Path, changed: str) -> None:
    install(clone)
    shift_time(clone / changed, 7200)
    assert install(clone)[:2] == (0, [INSTALL])


def test_an_install_that_was_cut_off_is_repeated_in_a_new_venv(clone: Path) -> None:
    (clone / "break-install").touch()
    status, calls, _ = install(clone)
    assert status != 0
    assert calls == ["venv", INSTALL]
    assert install(clone)[:2] == (0, ["venv", INSTALL])
    assert install(clone)[:2] == (0, [])


def test_an_install_that_still_runs_is_left_alone(clone: Path) -> None:
    (clone / ".venv").mkdir()
    (clone / ".venv" / ".installing").write_text(f"{os.getpid()}\n")
    status, calls, error = install(clone)
    assert status != 0
    assert calls == []
    assert f"process {os.getpid()} is installing into .venv" in error


def test_a_python_that_is_too_old_is_named_and_nothing_is_made(clone: Path) -> None:
    (clone / "old-python").touch()
    status, calls, error = install(clone)
    assert status != 0
    assert calls == []
    assert "Python 3.11 or newer is needed, and PYTHON=./python is not that" in error
    assert not (clone / ".venv").exists()


def test_every_file_of_the_package_that_is_no_python_is_packaged() -> None:
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]
    folders = {package: ROOT / package.replace(".", "/") for package in patterns}
    packaged = {file for package, globs in patterns.items() for g in globs for file in folders[package].glob(g)}
    others = {f for f in (ROOT / "corsd_lib").rglob("*") if f.is_file() and f.suffix not in (".py", ".pyc")}
    assert others == packaged and others


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_a_workflow_calls_what_is_there(file: Path) -> None:
    jobs = yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert all(("uses" in step) != ("run" in step) for step in steps)
    commands = [step["run"] for step in steps if "run" in step]
    for command in commands:
        program, *words = command.split()
        there = make("-n", *words).returncode == 0 if program == "make" else os.access(ROOT / command, os.X_OK)
        assert there or command.startswith(("python -m ", "gh release upload ")), command
    extras = {extra for command in commands for names in re.findall(r'"\.\[([^]]+)\]"', command) for extra in names.split(",")}
    assert extras <= PROJECT["optional-dependencies"].keys()


def test_the_package_says_that_it_has_types() -> None:
    assert (ROOT / "corsd_lib" / "py.typed").is_file()
