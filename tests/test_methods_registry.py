"""Plug-ins: found when a method is looked up, named when they are broken, and no trouble to the methods of others."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from corsd_lib.cli import main
from corsd_lib.datasets import load_dataset
from corsd_lib.errors import CorsdError
from corsd_lib.methods import METHODS, build_method, find_method, known_methods, loaded_plugins, plugin_failures, registry
from corsd_lib.provenance import provenance
from corsd_lib.runs import TrainConfig, training_batches

ROOT = Path(__file__).parents[1]
PLUGIN = """
from corsd_lib.methods import METHODS
from corsd_lib.methods.classic import Baseline

class Doubt(Baseline):
    \"\"\"The plain network, doubted.\"\"\"

    name = "doubt"

METHODS[Doubt.name] = Doubt
"""
Plugins = Callable[..., None]


@pytest.fixture
def plugins(fresh_plugins: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plugins:
    """Write modules by name, and name them all in CORSD_METHODS."""

    def write(**sources: str) -> None:
        for name, source in sources.items():
            (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        monkeypatch.setenv("CORSD_METHODS", ",".join(sources))

    return write


def entry_point(folder: Path, line: str) -> None:
    """What an installed package leaves: metadata that declares an entry point."""
    info = folder / "doubt_package-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: doubt-package\nVersion: 1.2\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[corsd.methods]\n{line}\n", encoding="utf-8")


@pytest.mark.slow
def test_the_help_needs_no_plugin() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CORSD_METHODS": "nope"}
    said = subprocess.run([sys.executable, "-m", "corsd_lib", "--help"], env=environment, capture_output=True, text=True)
    assert said.returncode == 0 and said.stdout.startswith("usage: corsd") and not said.stderr


def test_a_plugin_is_loaded_when_a_method_is_looked_up_and_only_then(plugins: Plugins) -> None:
    plugins(plugin_one=PLUGIN)
    assert find_method("corsd").name == "corsd" and "plugin_one" not in sys.modules and not loaded_plugins()
    assert "methods" not in provenance("cpu")
    config = TrainConfig(method="doubt")
    assert config.build_method().name == "doubt" and loaded_plugins() == ["plugin_one"] and not plugin_failures()
    assert provenance("cpu")["methods"] == "plugin_one"
    del sys.modules["plugin_one"]
    with pytest.raises(CorsdError, match=r"method 'dowt' is not known; allowed: baseline, .*doubt$"):
        build_method("dowt")
    assert "plugin_one" not in sys.modules, "loaded once"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import not_there.at_all", r"No module named 'not_there' \(it imports not_there, which is not installed\)"),
        ("{}['x']", "KeyError: 'x'"),
        ("if True", r"SyntaxError: expected ':'"),
        ("raise SystemExit(3)", r"SystemExit: 3 \(it ends the process while it is imported; allowed: only definitions\)"),
        ("raise SystemExit", r"SystemExit \(it ends the process while it is imported"),
        (
            PLUGIN.replace("[Doubt.name]", "[3]"),
            r"METHODS\[3\] is Doubt, whose name is 'doubt'; enter it under its name: METHODS\[D",
        ),
        (PLUGIN.replace("[Doubt.name]", "['x']"), r"METHODS\['x'\] is Doubt, whose name is 'doubt'"),
        (PLUGIN.replace('"doubt"', "None"), r"METHODS\[None\] is Doubt, whose name is None"),
        (
            PLUGIN.replace("(Baseline)", "(__import__('corsd_lib').Method)"),
            "is Doubt, which has no terms; allowed: a class that",
        ),
        (PLUGIN.replace('"doubt"', '"corsd"'), "the name 'corsd' is taken: choose another one"),
        ("from corsd_lib.methods import METHODS\nMETHODS['x'] = 3", r"METHODS\['x'\] is 3; allowed: a subclass of Method"),
        ("from corsd_lib.methods import METHODS\ndel METHODS['corsd']", "the name 'corsd' is taken"),
    ],
)
def test_a_broken_plugin_is_named_with_the_reason_and_no_trouble_to_others(plugins: Plugins, source: str, reason: str) -> None:
    corsd = METHODS["corsd"]
    plugins(plugin_broken=source, plugin_well=PLUGIN)
    with pytest.raises(CorsdError, match=f"method 'x' is not known; .*module 'plugin_broken' of CORSD_METHODS.*{reason}"):
        TrainConfig(method="x")
    assert find_method("corsd") is corsd and find_method("doubt").name == "doubt" and "x" not in METHODS
    assert list(plugin_failures()) == ["module 'plugin_broken' of CORSD_METHODS"] and loaded_plugins() == ["plugin_well"]


def test_a_plugin_that_is_not_found_is_told_from_one_that_lacks_a_package(
    plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins()
    monkeypatch.setenv("CORSD_METHODS", "no_such_plugin,no_such_package.methods,")
    reasons = list(plugin_failures().values())
    assert [reason.partition("(")[2] for reason in reasons] == ["is its folder on PYTHONPATH?)"] * 2


def test_a_plugin_may_look_up_a_method_while_it_is_loaded(plugins: Plugins) -> None:
    plugins(plugin_one=f"{PLUGIN}\nfrom corsd_lib.methods import known_methods\nassert 'doubt' in known_methods()")
    assert "doubt" in known_methods() and not plugin_failures()


def test_a_configuration_finds_its_plugin_in_another_process(plugins: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of `corsd tune` gets it pickled, and has loaded nothing yet."""
    plugins(plugin_one=PLUGIN)
    pickled = pickle.dumps(TrainConfig(method="doubt", data="digits", per_class=2, batch_size=5))
    monkeypatch.setattr(registry, "_PLUGINS", registry._Plugins())
    del METHODS["doubt"], sys.modules["plugin_one"]
    config = pickle.loads(pickled)
    assert training_batches(config, load_dataset("digits", per_class=2)).sampling == "plain"
    assert loaded_plugins() == ["plugin_one"]


def test_an_installed_package_brings_a_method_by_an_entry_point(plugins: Plugins, tmp_path: Path) -> None:
    plugins(doubt_module=PLUGIN.replace("METHODS[Doubt.name] = Doubt", ""))
    os.environ["CORSD_METHODS"] = ""
    entry_point(tmp_path, "doubt = doubt_module:Doubt")
    assert build_method("doubt").name == "doubt" and loaded_plugins() == ["doubt of doubt-package 1.2"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("doubt = nowhere:Doubt", r"No module named 'nowhere' \(is its folder on PYTHONPATH\?\)"),
        ("doubt = doubt_module:Certainty", "AttributeError: .*Certainty"),
        (
            "certainty = doubt_module:Doubt",
            "it must be a class whose name is 'certainty'; it is <class 'doubt_module.Doubt'>, whose name is 'doubt'",
        ),
    ],
)
def test_a_broken_entry_point_is_named_with_its_package(plugins: Plugins, tmp_path: Path, line: str, reason: str) -> None:
    plugins(doubt_module=PLUGIN.replace("METHODS[Doubt.name] = Doubt", ""))
    os.environ["CORSD_METHODS"] = ""
    entry_point(tmp_path, line)
    name, _, value = line.partition(" = ")
    words = rf"entry point '{name}' \({value}\) of doubt-package 1.2 could not be loaded: {reason}"
    with pytest.raises(CorsdError, match=words):
        find_method("x")
    assert find_method("baseline").name == "baseline"


def test_the_help_of_train_lists_plugins_and_those_that_do_not_load(
    plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    plugins(plugin_one=PLUGIN, plugin_broken="1 / 0")
    for verb in ("train", "compare"):
        with pytest.raises(SystemExit) as ended:
            main([verb, "--help"])
        text = capsys.readouterr().out
        assert not ended.value.code
        assert "  doubt             The plain network, doubted.\n" in text and "\n  corsd_release  " in text
        assert text.endswith(
            "plug-ins that could not be loaded:\n"
            "  module 'plugin_broken' of CORSD_METHODS: ZeroDivisionError: division by zero\n"
        )


def test_the_options_of_a_method_are_listed_with_their_ranges(capsys: pytest.CaptureFixture[str]) -> None:
    main(["methods"])
    assert "  ps_kd             The plain network; the target" in capsys.readouterr().out
    main(["methods", "corsd", "label_smoothing"])
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    endings = {
        "class_mean_momentum=0.9": "a number, at least 0 and below 1",
        "label_smoothing=0.1": "a number, at least 0 and below 1",
        "temperature=3.0": "a number, above 0",
        "hidden=128": "a whole number, above 0",
        "shared=false": "true or false",
        "fusion=vectors": "vectors or maps",
    }
    for option, ending in endings.items():
        assert any(line.startswith(f"  {option} ") and line.endswith(f"; {ending}") for line in lines), option
    with pytest.raises(SystemExit) as ended:
        main(["methods", "x"])
    assert ended.value.code == 2
