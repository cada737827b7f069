from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import corsd_lib

HEAVY = (
    "torchvision",
    "timm",
    "pandas",
    "sklearn",
    "scipy",
    "plotly",
    "umap",
    "captum",
    "optuna",
    "lightning_fabric",
    "ipywidgets",
    "PIL",
    "rich",
    "onnx",
    "onnxruntime",
)


def _loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_the_package_itself_loads_nothing_heavy() -> None:
    loaded = _loaded_after("import corsd_lib")
    assert "corsd_lib" in loaded and not loaded & {*HEAVY, "torch", "numpy"}


@pytest.mark.parametrize("name", [n for n in corsd_lib.__all__ if n != "__version__"])
def test_every_public_name_is_there_under_its_own_name(name: str) -> None:
    value = getattr(corsd_lib, name)
    module = importlib.import_module(f"corsd_lib.{corsd_lib._MODULE_OF[name]}")
    assert value is getattr(module, name)
    assert name in dir(corsd_lib) and getattr(value, "__doc__", None)


def test_a_type_checker_sees_every_public_name_where_it_is() -> None:
    tree = ast.parse(Path(corsd_lib.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {
        (name.asname, str(node.module).removeprefix("corsd_lib."))
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
        if name.asname == name.name  # the form that strict checkers take for an export
    }
    assert seen == set(corsd_lib._MODULE_OF.items())


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'corsd_lib' has no attribute 'nothing'"):
        _ = corsd_lib.nothing


WITHOUT = """
import sys
class Blocked:
    def __init__(self, *packages):
        self.packages = packages
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.packages:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked(*{blocked!r}))
"""
OPTIONAL = "captum umap plotly ipywidgets anywidget traitlets IPython optuna timm kaleido nbformat nbclient nbconvert papermill"
# What needs a package, and how it says so.
CALLS = {
    "attribute_exit(network, image, 1)": ("attribution needs captum", "notebooks"),
    "attribute_pair(network, 'cosine', image, image, 1)": ("attribution needs captum", "notebooks"),
    "tune(None, 'row')": ("tuning needs optuna", "tuning"),
    "RelationExplorer(None)": ("an explorer needs {}", "notebooks"),
    "AttributionExplorer(None)": ("an explorer needs {}", "notebooks"),
    "TrainingMonitor()": ("an explorer needs {}", "notebooks"),
    "write_report([], 'report.html')": ("a report needs plotly", "notebooks"),
    "build_network('timm:resnet18', 3)": ("network 'timm:resnet18' needs timm", "timm"),
    "joint_projection(torch.randn(1, 1, 20, 3))": ("method 'umap', unlike 'pca', needs umap-learn", "notebooks"),
}


def _without(packages: str, code: str) -> subprocess.CompletedProcess[str]:
    code = WITHOUT.format(blocked=packages.split()) + code
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_without_the_optional_packages_every_public_name_is_there_and_says_so_when_it_is_called() -> None:
    """One error, which is an ImportError and a CorsdError, names the package and the command that installs it."""
    code = "import corsd_lib, pydoc, torch; from corsd_lib import *\n"
    code += "from corsd_lib.analysis.embedding import joint_projection\n"
    code += "for name in corsd_lib.__all__: assert hasattr(corsd_lib, name) and name in globals(), name\n"
    code += "network, image = build_network('resnet8', 3, width=4, image_size=8), torch.randn(3, 8, 8)\n"
    for call in CALLS:
        code += f"try: {call}\nexcept MissingPackage as e: print(isinstance(e, ImportError) and isinstance(e, CorsdError), e)\n"
    done = _without(OPTIONAL, code + "print(pydoc.render_doc(corsd_lib, renderer=pydoc.plaintext))")
    assert done.returncode == 0, done.stderr
    assert "attribute_exit(network" in done.stdout and "class RelationExplorer" in done.stdout
    for line, (what, extra) in zip(done.stdout.splitlines(), CALLS.values(), strict=False):
        begin, end = f"True {what}".split("{}") if "{}" in what else (f"True {what}", "")
        assert line.startswith(begin + end) and line.endswith(f", which is not installed: pip install 'corsd_lib[{extra}]'")


# Each package is missing in a fork of its own, so that what takes longest, torch, is imported once.
EXPLORER = """
import os, torch, pandas
for package in ("plotly", "ipywidgets", "anywidget", "captum"):
    sys.stdout.flush()
    if os.fork() == 0:
        sys.meta_path.insert(0, Blocked(package))
        try:
            from corsd_lib import AttributionExplorer
            AttributionExplorer(None)
        except ImportError as error:
            print(package, type(error).__name__, error)
        break
    os.wait()
"""


@pytest.mark.slow
def test_an_explorer_names_the_package_that_is_missing() -> None:
    lines = _without("", EXPLORER).stdout.splitlines()
    for package, line in zip(("plotly", "ipywidgets", "anywidget", "captum"), lines, strict=True):
        assert line.startswith(f"{package} MissingPackage ") and f"needs {package}, which is not installed" in line


def test_a_package_that_is_there_and_broken_is_named_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "optuna.py").write_text("raise ImportError('numpy is too new')\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{Path(__file__).parents[1]}")
    last = _without("", "from corsd_lib import tune\ntune(None, 'row')").stderr.splitlines()[-1]
    assert "tuning needs optuna, which cannot be imported (numpy is too new): pip install 'corsd_lib[tuning]'" in last


@pytest.mark.slow
def test_a_static_picture_says_that_it_needs_kaleido() -> None:
    code = "import plotly.graph_objects as go; from corsd_lib.figures import save_png\nsave_png(go.Figure(), 'picture.png')"
    last = _without("kaleido", code).stderr.splitlines()[-1]
    assert "MissingPackage: a static picture needs kaleido, which is not installed: pip install 'corsd_lib[notebooks]'" in last


COMMANDS = {
    "tune results/none": "optuna",
    "report run": "plotly",
    "walkthrough": "nbclient",
    "course": "jupyterlab",
    "bench": "plotly",
}
EACH_COMMAND = """
import os, torch
from corsd_lib.cli import main
for command, package in {commands!r}.items():
    if os.fork() == 0:
        sys.meta_path.insert(0, Blocked(package))
        main(command.split())
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 2, command
"""


@pytest.mark.slow
def test_a_command_ends_with_the_one_line_that_says_so() -> None:
    done = _without("", EACH_COMMAND.format(commands=COMMANDS))
    assert done.returncode == 0, done.stderr
    for package, line in zip(COMMANDS.values(), done.stderr.splitlines(), strict=True):
        assert f"needs {package}, which is not installed: pip install 'corsd_lib[" in line


IMPORTS = """
import importlib, pathlib, corsd_lib
from corsd_lib.errors import MissingPackage
root = pathlib.Path(corsd_lib.__file__).parent
for file in sorted(root.rglob("*.py")):
    name = ".".join(["corsd_lib", *file.relative_to(root).with_suffix("").parts]).removesuffix(".__init__")
    if not name.endswith("__main__"):
        try: importlib.import_module(name)
        except MissingPackage as error:
            print(name, isinstance(error, ImportError) and isinstance(error, corsd_lib.CorsdError), error)
"""


@pytest.mark.slow
def test_a_module_that_cannot_be_imported_without_a_package_names_it() -> None:
    done = _without(OPTIONAL, IMPORTS)
    assert done.returncode == 0, done.stderr
    refused = {line.split()[0]: line for line in done.stdout.splitlines()}
    for name in (
        "figures",
        "sharing.pages",
        "sharing.report",
        "studies.search",
        "studies.tuner",
        "widgets",
        "widgets.stages",
        "_notebooks",
    ):
        assert f"corsd_lib.{name}" in refused
    for name, line in refused.items():
        assert re.fullmatch(rf"{name} True .* needs \w+, which is not installed: pip install 'corsd_lib\[\w+\]'", line), line
    last = _without("nbformat", "import corsd_lib._notebooks").stderr.splitlines()[-1]
    assert (
        "MissingPackage: building notebooks needs nbformat, which is not installed: pip install 'corsd_lib[notebooks]'" in last
    )


@pytest.mark.slow
def test_a_package_that_is_installed_later_is_found() -> None:
    code = "import corsd_lib; first = corsd_lib.tune; sys.meta_path.pop(0)\n"
    code += "print(first is corsd_lib.tune, corsd_lib.tune.__module__)"
    assert _without("optuna", code).stdout.split() == ["False", "corsd_lib.studies.tuner"]


@pytest.mark.slow
def test_modules_load_where_the_system_has_no_fcntl() -> None:
    """As on Windows, which has no resource either."""
    modules = ["studies.compare", "studies.tuner", "training", "bench", "datasets.download"]
    modules = [f"corsd_lib.{name}" for name in modules]
    done = _loaded_after(f"sys.modules.update(fcntl=None, resource=None); import {', '.join(modules)}")
    assert done.issuperset(modules)


CLOCK = """
import sys, time
start = time.perf_counter()
import torch
alone = time.perf_counter()
import corsd_lib
from corsd_lib import TrainConfig, build_method, build_network, evaluate, load_dataset, load_run, train
print((time.perf_counter() - start) / (alone - start), *sys.modules)
"""


@pytest.mark.slow
def test_what_a_training_script_imports_is_little_more_than_torch() -> None:
    """Under 1.5 times the time of torch in one of some runs, since others may wait for the disk or the processor."""
    ratios: list[float] = []
    while len(ratios) < 8 and min(ratios, default=2) >= 1.5:
        done = subprocess.run([sys.executable, "-c", CLOCK], capture_output=True, text=True, check=True)
        ratio, *loaded = done.stdout.split()
        assert "corsd_lib.training" in loaded and not set(loaded) & set(HEAVY)
        ratios.append(float(ratio))
    assert min(ratios) < 1.5, ratios
