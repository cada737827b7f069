"""The documentation site: its guides work, its pages are complete, its links lead somewhere. Most tests need no Sphinx."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import corsd_lib
from corsd_lib._notebooks import Formulas
from corsd_lib.cli import _parser, main
from corsd_lib.methods import METHODS, Batch, check_method
from corsd_lib.network import build_network
from corsd_lib.studies.search import Search
from corsd_lib.studies.study import Study

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))

from corsd_docs import docstrings, explorers, files, links, methods, pictures, reference, staging  # noqa: E402
from corsd_docs.files import Writer  # noqa: E402

PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts and path != DOCS / "README.md")


def text_of(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text_of(name), flags=re.DOTALL)


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Sphinx reads, without the parts that take seconds: costs of the methods, and live pages."""
    folder = tmp_path_factory.mktemp("source")
    write = Writer(folder)
    staging.stage(write)
    reference.write_reference(write)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "_costs", lambda: dict.fromkeys(METHODS, 1.0))
        methods.write_methods(write)
    return folder


# --- guides -----------------------------------------------------------------------------------------------------------


def commands(name: str) -> list[str]:
    """The commands of a page that call this program, also by `python -m`."""
    lines = "\n".join(blocks(name, "bash")).replace("\\\n", " ").splitlines()
    return [found[1] for line in lines if (found := re.search(r"(?:^|exec |-m )corsd(?:_lib)? (.*)", line))]


@pytest.mark.parametrize(
    ("page", "command"),
    [(str(page.relative_to(DOCS)), command) for page in PAGES for command in commands(str(page.relative_to(DOCS)))],
)
def test_every_command_of_a_page_parses(page: str, command: str, fresh_plugins: None, tmp_path: Path) -> None:
    _parser().parse_args(shlex.split(command, comments=True))


def test_the_pages_have_commands_and_code() -> None:
    """So that the tests of commands and code test something."""
    guides = [page for page in PAGES if page.parent.name == "guides" and page.stem != "index"]
    assert {page.stem for page in guides} == {"your_data", "add_a_method", "compare", "relation_matrix", "cluster"}
    assert sum(len(commands(str(page.relative_to(DOCS)))) for page in PAGES) >= 15
    assert all(len(page.read_text(encoding="utf-8").splitlines()) <= 85 for page in guides)


def test_the_code_of_the_first_page_is_that_of_the_readme() -> None:
    """Which another test runs."""
    (code,) = blocks("index.md", "python")
    (training,) = [line for line in code.splitlines() if "train(" in line]
    assert training in (ROOT / "README.md").read_text(encoding="utf-8") and "print(run.test" in code


@pytest.mark.slow
def test_the_guide_to_your_data_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it stands, but with fewer images and one epoch of a smaller network."""
    monkeypatch.chdir(tmp_path)
    write, read = blocks("guides/your_data.md", "python")
    exec(write.replace("per_class=40", "per_class=6"), {})
    assert len(list(tmp_path.glob("my_images/*/*.png"))) == 16 * 6
    look, train, evaluate, _ = commands("guides/your_data.md")
    main(shlex.split(look))
    assert "16 classes" in capsys.readouterr().out
    main(
        [
            *shlex.split(train.replace("--network resnet10 --width 16", "--network resnet8 --width 4")),
            "--epochs",
            "1",
            "--quiet",
        ]
    )
    main(shlex.split(evaluate))
    namespace: dict[str, Any] = {}
    exec(read, namespace)
    assert namespace["network"](torch.zeros(2, 3, 32, 32)).shape == (2, 16)


def test_the_method_of_the_guide_keeps_the_rules(
    fresh_plugins: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, check = blocks("guides/add_a_method.md", "python")
    (tmp_path / "my_methods.py").write_text(module, encoding="utf-8")
    monkeypatch.setenv("CORSD_METHODS", "my_methods")
    main(["methods", "mean_exit"])
    assert "mean_kd=0.5" in capsys.readouterr().out
    exec(check, {"check_method": check_method})
    method = METHODS["mean_exit"](temperature=1.0)
    out = build_network("resnet8", 3, width=4)(torch.randn(4, 3, 8, 8))
    found = method(out, Batch(torch.empty(0), torch.tensor([0, 1, 2, 0]), torch.arange(4)))["mean_kd"]
    p = torch.stack([z.softmax(1) for z in out.logits])
    by_hand = torch.stack([(p.mean(0) * (p.mean(0).log() - q.log())).sum(1).mean() for q in p]).sum()
    assert found.item() == pytest.approx(by_hand.item(), abs=1e-6)


def test_the_study_of_the_guide_is_one(tmp_path: Path) -> None:
    (content,) = blocks("guides/compare.md", "json")
    study = Study.from_dict(json.loads(content), tmp_path / "study.json")
    assert len(study.jobs()) == 15
    assert Search.of(study, "byot").own == {"exit_kd": 0.1} and Search.of(study, "deep_supervision").own == {"exit_ce": 1.0}


@pytest.mark.parametrize("page", ["guides/compare.md", "guides/relation_matrix.md"])
def test_the_code_of_a_guide_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    for code in blocks(page, "python"):
        exec(code, namespace)
    assert capsys.readouterr().out
    if page == "guides/relation_matrix.md":
        assert (tmp_path / "relation.html").is_file() and namespace["found"] > 1


# --- pages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_page_with_a_formula_and_a_picture(name: str, staged: Path) -> None:
    written = text_of(f"methods/{name}.md")
    assert written.startswith("# ") and "$$\n" in written and "\n## " not in written
    page = (staged / f"methods/{name}.md").read_text(encoding="utf-8")
    parts = re.findall(r"^## (.*)$", page, flags=re.MULTILINE)
    assert parts == ["Cost", "Result", "Options", "In code"]
    assert f"]({name}.svg)" in page and (staged / f"methods/{name}.svg").read_text().startswith("<svg")
    options = re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)
    assert options == list(METHODS[name]().options.__dataclass_fields__)


@pytest.mark.parametrize("page", sorted((DOCS / "methods").glob("*.md")), ids=lambda page: page.stem)
def test_every_formula_of_a_method_can_be_drawn(page: Path) -> None:
    """No command of LaTeX is left over."""
    formulas = Formulas()
    marked = formulas.take_out(page.read_text(encoding="utf-8"))
    drawn = [formulas.put_back(mark) for mark in re.findall(r"FORMULA-\d+-", marked)]
    assert drawn and [formula for formula in drawn if "\\" in formula or "<math" not in formula] == []


def test_no_page_or_picture_is_of_a_method_that_is_gone() -> None:
    assert {page.stem for page in (DOCS / "methods").glob("*.md")} == {*METHODS, "index"}
    assert pictures.PICTURES.keys() == METHODS.keys()


def test_the_results_of_a_method_are_those_of_the_summaries(staged: Path) -> None:
    page = (staged / "methods/corsd.md").read_text(encoding="utf-8").replace("\u00a0", " ")
    summary = corsd_lib.committed_summary("cifar100")["methods"]
    for variant in ("corsd", "corsd_paper"):
        m = summary[variant]
        half = (m["gain_high"] - m["gain_low"]) / 2
        assert f"| {m['label']} | {m['n']} | {m['top1'][-1]:.1f} ± " in page and f"{m['gain']:+.1f} ± {half:.1f} |" in page
    assert "without class KD" not in page  # a variant of the ablation
    assert "have not trained this method yet" in (staged / "methods/dlb.md").read_text(encoding="utf-8")


PUBLIC = ("", ".losses", ".methods", ".analysis", ".attribution", ".figures", ".widgets")


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_in_the_api(module: str) -> None:
    names = [name for name in importlib.import_module(f"corsd_lib{module}").__all__ if name != "__version__"]
    shown = {id(reference.found(path)) for path in reference.listed()} | {id(kind) for kind in METHODS.values()}
    public = {name: getattr(importlib.import_module(f"corsd_lib{module}"), name) for name in names}
    assert [name for name, value in public.items() if id(value) not in shown] == []


def test_a_name_is_in_the_api_once() -> None:
    values = [id(reference.found(path)) for path in reference.listed()]
    assert len(values) == len(set(values))
    assert {group["file"] for group in reference.groups()} == set(re.findall(r"^(\w+)$", text_of("api/index.md"), re.MULTILINE))


def test_links_from_source_lead_to_the_name_that_is_documented() -> None:
    assert reference.documented("corsd_lib.linear_cka") == "corsd_lib.analysis.linear_cka"
    assert reference.documented("corsd_lib.StageEmbedding.table") == "corsd_lib.analysis.StageEmbedding.table"
    assert reference.documented("corsd_lib.methods.CorsdRelease") == "corsd_lib.methods.corsd.CorsdRelease"


def test_the_gallery_shows_every_figure_of_the_studies_and_every_live_page() -> None:
    gallery = text_of("gallery.md")
    for figure in (ROOT / "results").glob("*/*.png"):
        assert f"](../{figure.relative_to(ROOT).as_posix()})" in gallery
    assert set(re.findall(r'href="explorers/(\w+)\.html"', gallery)) == explorers.PAGES.keys()
    assert set(re.findall(r'src="explorers/(\w+)\.html"', gallery)) == explorers.PAGES.keys() - {"report"}


# --- links and notebooks ----------------------------------------------------------------------------------------------


def test_relative_links_of_the_pages_lead_to_pages_and_files(staged: Path) -> None:
    count = 0
    for page in staged.rglob("*.*"):
        if page.suffix not in (".md", ".ipynb"):
            continue
        text = page.read_text(encoding="utf-8")
        if page.suffix == ".ipynb":
            text = "\n\n".join(cell["source"] for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")
        for match in staging.LINK.finditer(text):
            target = (match["target"] or match["source"] or "").partition("#")[0]
            if target and not re.match(r"[a-z]+:", target):
                count += 1
                assert (page.parent / target).is_file(), f"{page.relative_to(staged)} links to {target}"
    assert count > 300


def test_links_change_with_the_place_of_their_page() -> None:
    used: set[str] = set()
    change = staging._changing("notebooks/README.md", "course/index.md", staging.all_pages(), used)
    assert change("[a](../results/README.md#limits)") == "[a](../results/index.md#limits)"
    assert change("[a](01_walkthrough.ipynb)") == "[a](01_walkthrough.ipynb)"
    assert change("[a](GLOSSARY.md#relation)") == "[a](#term-relation)"
    assert change("[`losses.py`](../corsd_lib/losses.py), ![p](images/corsd.svg)") == (
        "[`losses.py`](../api/losses.md), ![p](../notebooks/images/corsd.svg)"
    )
    assert change("solved notebooks in [solutions](solutions/)") == "solved notebooks in solutions"
    same = "`[a](../README.md)`, [b](https://example.org), [c](#here)\n```\n[d](../README.md)\n```"
    assert change(same) == same
    assert used == {"notebooks/images/corsd.svg"}


def test_links_to_source_lead_to_the_repository_if_it_has_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "repository", lambda: "https://github.com/someone/a-fork")
    change = staging._changing("README.md", "overview.md", staging.all_pages(), set())
    assert change("[t](tests/test_cuda.py)") == "[t](https://github.com/someone/a-fork/blob/main/tests/test_cuda.py)"


def test_the_api_links_to_source_in_the_repository_if_it_has_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "sphinx.ext.viewcode" in runpy.run_path(str(DOCS / "conf.py"))["extensions"]
    monkeypatch.setattr(files, "repository", lambda: "https://github.com/someone/a-fork")
    settings = runpy.run_path(str(DOCS / "conf.py"))
    assert "sphinx.ext.linkcode" in settings["extensions"]

    def source(name: str) -> str | None:
        return settings["linkcode_resolve"]("py", {"module": "corsd_lib", "fullname": name})

    for name, file in {"build_network": "network", "Run.config": "runs/run", "losses.distillation": "losses"}.items():
        address, _, lines = str(source(name)).partition("#")
        assert address == f"https://github.com/someone/a-fork/blob/main/corsd_lib/{file}.py" and re.fullmatch(
            r"L\d+-L\d+", lines
        )
    assert source("METHODS") is None


def test_the_course_has_the_notebooks_in_the_order_of_its_table(staged: Path) -> None:
    readme = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8").partition("## All notebooks")[2]
    in_table = re.findall(r"^\| \[(\d\d_\w+)\]", readme, flags=re.MULTILINE)
    (tree,) = re.findall(r"```\{toctree\}\n:hidden:\n\n(.*?)\n```", (staged / "course/index.md").read_text(), flags=re.DOTALL)
    assert tree.splitlines() == [*in_table, "glossary", "instructors"]


def test_notebooks_have_pictures_with_alternative_text_in_place_of_figures(staged: Path) -> None:
    for path in staging.notebooks():
        notebook = json.loads((staged / "course" / path.name).read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            for output in cell.get("outputs", []):
                assert staging.PLOTLY not in output.get("data", {})
                if "image/png" in output.get("data", {}):
                    assert cell["metadata"]["mystnb"]["image"]["alt"] not in ("", "figure"), path.name


def test_only_what_has_changed_is_written_and_what_is_gone_is_removed(tmp_path: Path) -> None:
    write = Writer(tmp_path)
    write("a/kept.md", "same")
    write("gone.md", "old")
    before = (tmp_path / "a/kept.md").stat().st_mtime_ns
    os.utime(tmp_path / "a/kept.md", ns=(1, 1))
    again = Writer(tmp_path)
    again("a/kept.md", "same")
    again.finish()
    assert (tmp_path / "a/kept.md").stat().st_mtime_ns == 1 < before and not (tmp_path / "gone.md").exists()


def test_broken_links_of_a_site_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<p id="here"><a href="b.html#there">b</a> <a href="#here">c</a> <a href="https://x.org">d</a>'
    )
    (tmp_path / "b.html").write_text('<h1 id="there">b</h1><img src="picture.png">')
    (tmp_path / "picture.png").write_bytes(b"")
    assert links.broken_links(tmp_path) == []
    (tmp_path / "a.html").write_text(
        '<a href="b.html#nowhere">b</a> <a href="c.html">c</a> <script src="https://x.org/a.js"></script>'
    )
    (tmp_path / "picture.png").unlink()
    assert links.broken_links(tmp_path) == [
        "a.html loads https://x.org/a.js",
        "a.html: b.html#nowhere leads to no place on its page",
        "a.html: c.html leads to no file",
        "b.html: picture.png leads to no file",
    ]


# --- docstrings -------------------------------------------------------------------------------------------------------


def test_a_docstring_becomes_restructured_text() -> None:
    text = "Mean |a - b| of `relation_matrix` and `x`; *every* y_ of H * W.\n\n"
    text += "Kinds:\n- `one`: 1;\n- two,\n  and more.\n\nAs in:\n    a  b"
    assert docstrings.as_rst(text.split("\n"), {"relation_matrix": "corsd_lib.relation_matrix"}) == [
        r"Mean \|a - b\| of :py:obj:`relation_matrix <corsd_lib.relation_matrix>` and ``x``; *every* y\_ of H * W.",
        *("", "Kinds:", "", "- ``one``: 1;", "- two,", "  and more.", "", "As in::", "", "    a  b"),
    ]


def test_a_help_text_becomes_markdown() -> None:
    assert docstrings.as_markdown("in [0, 1], <data>, $X,\n`[y]` and *z*") == r"in \[0, 1], \<data>, \$X, `[y]` and *z*"


def test_a_docstring_with_code_over_two_lines_keeps_it() -> None:
    assert docstrings.as_rst(["a `b", "c` d"], {}) == ["a ``b c`` d"]


# --- Sphinx -----------------------------------------------------------------------------------------------------------

WITH_SPHINX = all(importlib.util.find_spec(package) for package in ("sphinx", "myst_nb", "furo"))


@pytest.mark.slow
@pytest.mark.skipif(not WITH_SPHINX, reason="needs the extra docs: `make docs` installs it")
def test_sphinx_builds_a_page_with_formulas_and_an_api_without_warnings(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write = Writer(source)
    write("index.md", "# Site\n\n$$\n\\mathcal{L} = x^2\n$$\n\n```{toctree}\nlosses\n```\n")
    write("losses.md", "# Losses\n\n```{eval-rst}\n.. autofunction:: corsd_lib.losses.margin_over_batch\n```\n")
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-c", str(DOCS), "-W", "-q", str(source), str(tmp_path / "html")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "<math" in (tmp_path / "html/index.html").read_text() and "every" in (tmp_path / "html/losses.html").read_text()
    assert links.broken_links(tmp_path / "html") == []
