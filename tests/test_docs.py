"""What README and CONTRIBUTING say works as said."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import ttest_1samp

from corsd_lib import figures, methods
from corsd_lib.bench import table
from corsd_lib.cli import _parser, main
from corsd_lib.course import with_ends
from corsd_lib.datasets import DATASETS
from corsd_lib.files import read_json
from corsd_lib.methods import METHODS
from corsd_lib.network import build_network
from corsd_lib.studies.intervals import mean_interval, with_interval
from corsd_lib.studies.search import Search
from corsd_lib.studies.study import Study
from corsd_lib.studies.summary import summarise
from corsd_lib.studies.tables import short_markdown

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TOOLS = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_the_method_of_contributing_works_as_shown() -> None:
    namespace = {**vars(methods.base), **vars(methods)}
    exec(blocks(CONTRIBUTING, "python")[0], namespace)
    method = namespace["Entropy"](confidence=0.5)
    out = build_network("resnet8", 3, width=4, exits="deepest")(torch.randn(4, 3, 8, 8))
    parts = method(out, methods.Batch(torch.empty(0), torch.tensor([0, 1, 2, 0]), torch.arange(4)))
    assert parts["total"].item() == pytest.approx((parts["task"] + 0.5 * parts["confidence"]).item())
    assert 0 < parts["confidence"].item() <= torch.tensor(3.0).log().item()
    exec(blocks(CONTRIBUTING, "python")[1], namespace)
    namespace["test_entropy_keeps_the_rules"]()


@pytest.mark.slow
def test_a_method_from_outside_is_trained_as_contributing_says(
    fresh_plugins: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a training in a process of its own, which finds the method by itself."""
    module = "from dataclasses import dataclass\nfrom torch import Tensor\nfrom corsd_lib.network import ExitOutputs\n"
    module += (
        "from corsd_lib.methods import METHODS, Batch, Method, MethodOptions, option\n" + blocks(CONTRIBUTING, "python")[0]
    )
    (tmp_path / "my_methods.py").write_text(
        "from __future__ import annotations\n" + module + "METHODS[Entropy.name] = Entropy\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    monkeypatch.setenv("CORSD_METHODS", "my_methods")
    monkeypatch.setattr(figures, "save_png", lambda figure, path, **_: path)
    command = "compare results/mine --methods baseline entropy --seeds 0 --per-class 5 --epochs 1 --batch-size 25 --width 4"
    main([*command.split(), "--jobs", "1", "--variants", "entropy", "--quiet"])
    record = read_json(tmp_path / "results/mine/records/entropy-s0.json")
    assert record["config"]["method_options"]["confidence"] == 0.1 and record["provenance"]["methods"] == "my_methods"


def test_a_broken_module_of_methods_is_no_trouble_to_other_methods(
    fresh_plugins: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CORSD_METHODS", "nowhere")
    main(["methods", "baseline"])
    assert capsys.readouterr().err == ""
    with pytest.raises(SystemExit) as end:
        main(["methods", "entropy"])
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1
    assert "module 'nowhere' of CORSD_METHODS could not be loaded: No module named 'nowhere'" in said


def test_the_study_of_the_results_is_one(tmp_path: Path) -> None:
    (content,) = blocks((ROOT / "results" / "README.md").read_text(encoding="utf-8"), "json")
    study = Study.from_dict(json.loads(content), tmp_path / "study.json")
    assert study.jobs()[0] == ("baseline", 0) and study.variants["no_hint"].tuned == "tuning/byot.json"
    assert Search.of(study, "byot").own == {"exit_kd": 0.1, "train.lr": 0.1}


@pytest.mark.parametrize(
    "command", [c for b in blocks(README + TOOLS, "bash") for c in b.splitlines() if c.startswith("corsd ")]
)
def test_every_command_of_the_readme_parses(command: str) -> None:
    _parser().parse_args(shlex.split(command, comments=True)[1:])


def test_the_ten_lines_of_the_readme_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand, but for fewer epochs."""
    monkeypatch.chdir(tmp_path)
    code = blocks(README, "python")[0].replace("epochs=120", "epochs=1").replace("probes[120]", "probes[1]")
    exec(code, {})
    assert (tmp_path / "runs/first/test.json").is_file()


def test_the_readme_lists_every_method_and_data_set() -> None:
    for name in METHODS:
        assert f"| `{name}` |" in README
    for name in DATASETS:
        assert f"`{name}`" in README


def test_the_table_of_speed_is_the_committed_record() -> None:
    record = json.loads((ROOT / "results/bench.json").read_text())
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- bench -->\n(.*?)<!-- /bench -->", text, flags=re.DOTALL)
    assert shown is not None and shown[1].strip() == table(record)


@pytest.mark.parametrize(
    "document", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("[!.]*/README.md")), ids=lambda p: p.parent.name + p.name
)
def test_relative_links_and_pictures_exist_and_pictures_have_alt_text(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text) + re.findall(r'<img[^>]*src="([^"]+)"', text)
    for target in targets:
        if not re.match(r"[a-z]+:", target):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
    for picture in re.findall(r"<img[^>]*>", text, flags=re.DOTALL):
        assert re.search(r'alt="[^"]{20,}"', picture), picture


def _lead(methods: dict[str, Any], row: str, other: str, k: int = -1) -> list[float]:
    """How far exit `k` of a row lies above another row's, points: mean and 95 % interval, paired by seed."""
    ours, theirs = methods[row]["top1_by_seed"], methods[other]["top1_by_seed"]
    return [end for end in mean_interval(ours[s][k] - theirs[s][k] for s in ours if s in theirs) if end is not None]


def _spoken(ends: list[float]) -> list[str]:
    """A mean and the ends of its interval as the documents write them."""
    return re.findall(r"-?\d+\.\d+", with_ends(*ends))


RELATIONS = (("no_class_kd", "exits_alone"), ("corsd", "no_relations"))  # rows that differ in the relation terms


def _studies() -> list[dict[str, Any]]:
    """What the records of the four studies say, by method: the main ones, then those of the small network."""
    names = ("cifar100", "cub200", "cifar100_small", "cub200_small")
    return [read_json(ROOT / "results" / name / "summary.json")["methods"] for name in names]


def test_the_finding_is_what_the_records_say() -> None:
    """The numbers of the numbered list, and what it says in words of the table below the heading "Results"."""
    found = re.search(r"<!-- found -->\n(.*?)<!-- /found -->", README, flags=re.DOTALL)
    assert found is not None
    main, birds, *_ = _studies()
    pairs = [
        (main, "corsd", "baseline"),
        (birds, "corsd", "baseline"),
        (birds, "corsd", "dks"),
        (birds, "no_class_kd", "exits_alone"),
        (birds, "corsd", "no_relations"),
        (birds, "corsd_cpu", "no_relations"),
        (birds, "auxiliary_alone", "matched_ce"),
        (main, "corsd", "no_relations"),
    ]
    leads = [_lead(*pair) for pair in pairs]
    lines = read_json(ROOT / "results" / "unseen_birds" / "summary.json")["unseen"]
    unseen = {
        u["variant"]: u["by_seed"] for u in lines if (u["figure"], u["score"], u["exit"]) == ("one_shot", "cosine", "exit 1")
    }
    one_shot = mean_interval([unseen["no_class_kd"][str(s)] - unseen["exits_alone"][str(s)] for s in range(3, 8)])
    assert "{:.1f} [{:.1f}, {:.1f}] to one-shot accuracy".format(*one_shot) in " ".join(found[1].split()) and one_shot[1] > 0
    numbers = " ".join(found[1].split()).replace("{:.1f} [{:.1f}, {:.1f}]".format(*one_shot), "")
    said = re.findall(r"-?\d+\.\d", numbers)
    assert said[:-2] == [end for lead in leads for end in _spoken(lead)]
    assert [low > 0 for _, low, _ in leads] == [True, True, False, True, True, False, True, False]
    assert all(high > 0 for *_, high in leads)
    assert _lead(birds, "auxiliary_alone", "exits_alone")[0] > 0.5 * leads[3][0]  # "most of that"
    figures = read_json(ROOT / "results" / "bench.json")["figures"]
    assert said[-2:] == [f"{figures[f'corsd_step_study_{batch}']['value']:.1f}" for batch in (64, 32)]
    common = [len(study[row]["top1_by_seed"].keys() & study[other]["top1_by_seed"].keys()) for study, row, other in pairs]
    assert [int(n) for n in re.findall(r"n = (\d+)", found[1])] == [*common[:3], 3, 3, 3, 5, 3] and set(common[3:]) == {3}
    for study, low, high in ((main, 0.5, 0.6), (birds, 0.5, 0.65)):  # "half to three fifths"
        assert low <= study["deep_supervision"]["gain"] / study["corsd"]["gain"] <= high


@pytest.mark.parametrize("document", ["README.md", "results/README.md"])
def test_tables_over_the_studies_are_made_from_their_summaries(document: str) -> None:
    overview = runpy.run_path(str(ROOT / "results" / "overview.py"))
    mark, table = overview["TABLES"][ROOT / document]
    text = (ROOT / document).read_text(encoding="utf-8")
    assert overview["written"](text, mark, table()) == text


def test_the_details_of_the_results_are_what_the_records_say() -> None:
    found = re.search(r"<!-- details -->\n(.*?)<!-- /details -->", README, flags=re.DOTALL)
    assert found is not None
    main, birds, *small = _studies()
    written: list[float] = []
    assert "about half of CORSD's gain on CIFAR-100 and about three fifths" in " ".join(found[1].split())
    for study, share in ((main, 0.5), (birds, 0.6)):
        gains = [study[row]["top1_by_seed"] for row in ("deep_supervision", "corsd", "baseline")]
        common = gains[0].keys() & gains[1].keys() & gains[2].keys()
        exits, corsd, plain = (sum(of[seed][-1] for seed in common) for of in gains)
        assert (exits - plain) / (corsd - plain) == pytest.approx(share, abs=0.05)
    for study in (main, birds):
        peers = {
            name: _lead(study, "corsd", name)
            for name, m in study.items()
            if name != "baseline" and not name.startswith("corsd") and m["group"] == "methods"
        }
        behind = {name: lead for name, lead in peers.items() if lead[1] > 0}
        assert (len(peers), len(behind)) == ((6, 6) if study is main else (6, 5))
        assert f"{study['corsd']['n']} seeds" in found[1] and f"({study['baseline']['n']}" in found[1]
        differences = {
            name: [
                ours[-1] - study[name]["top1_by_seed"][seed][-1]
                for seed, ours in study["corsd"]["top1_by_seed"].items()
                if seed in study[name]["top1_by_seed"]
            ]
            for name in behind
        }
        lost = [name for name, gaps in differences.items() if ttest_1samp(gaps, 0).pvalue >= 0.05 / len(peers)]
        assert lost == (["ps_kd"] if study is main else ["deep_supervision"])  # with Bonferroni's correction
        leads = [mean for mean, *_ in behind.values()]
        written += [study["corsd"]["top1"][-1], study["baseline"]["top1"][-1]]
        written += [max(study[name]["gain"] for name in peers)] if study is main else []
        written += [min(leads), max(leads)]
    written += [*_lead(birds, "dks", "baseline"), *_lead(birds, "corsd", "dks"), *_lead(birds, "dks", "corsd", 0)]
    assert _lead(birds, "corsd", "dks")[1] < 0 < _lead(birds, "dks", "corsd", 0)[1]
    for study in (main, birds):
        for k in (1, 2):
            mean, low, high = _lead(study, "corsd", "deep_supervision", k)
            assert low > 0
            written += [mean, low, high]
    for row, other in (("corsd", "deep_supervision"), ("byot", "corsd")):
        for study in (main, birds):
            mean, low, high = _lead(study, row, other, 0)
            assert mean > 0 and low < 0 < high  # not decided
            written += [mean, low, high]
    mean, low, high = _lead(main, "corsd", "no_class_kd")
    assert main["no_class_kd"]["n"] == 3 and low > 0
    written += [mean, low, high]
    written += _lead(main, "corsd_paper", "baseline")
    written += [methods["corsd"]["gain"] for methods in small]
    assert [float(number) for number in re.findall(r"-?\d+\.\d", found[1])] == [round(value, 1) for value in written]


def test_what_dks_leads_by_on_birds_is_as_the_records_say() -> None:
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    rows = (
        text.partition("<!-- dks -->")[2]
        .partition("<!-- /dks -->")[0]
        .partition("| ---: |\n")[2]
        .partition("\n\n")[0]
        .splitlines()
    )
    birds = _studies()[1]
    for row, other in zip(rows, ("corsd", "no_class_kd", "deep_supervision", "byot"), strict=True):
        assert re.findall(r"-?\d+\.\d", row) == [
            f"{end:.1f}".replace("-0.0", "0.0") for k in range(4) for end in _lead(birds, "dks", other, k)
        ]


def test_the_repeat_on_a_cpu_is_as_the_records_say() -> None:
    text = (
        (ROOT / "results" / "README.md").read_text(encoding="utf-8").partition("<!-- cpu -->")[2].partition("<!-- /cpu -->")[0]
    )
    birds = _studies()[1]
    others = ("corsd", "no_relations", "no_class_kd", "dks")
    leads = [_lead(birds, "corsd_cpu", other, k) for other in others for k in range(4)]
    assert re.findall(r"-?\d+\.\d", text) == [end for lead in leads for end in _spoken(lead)]
    assert all(low < 0 < high for _, low, high in leads[:4])  # "no difference was detected"
    assert [low > 0 for _, low, _ in leads[4:8]] == [True, True, True, False]
    assert "these seeds differ by {:.1f} [{:.1f}, {:.1f}] points".format(*leads[3]) in " ".join(README.split())
    record = read_json(ROOT / "results" / "cub200" / "records" / "corsd_cpu-s0.json")
    assert record["provenance"]["device"] == "cpu"


def test_what_patch_swap_changes_on_birds_is_as_the_records_say() -> None:
    text = (
        (ROOT / "results" / "README.md").read_text(encoding="utf-8").partition("<!-- ips -->")[2].partition("<!-- /ips -->")[0]
    )
    birds = _studies()[1]
    assert re.findall(r"-?\d+\.\d", text) == [*_spoken(_lead(birds, "ips", "baseline"))]
    assert f"at {birds['ips']['train_top1']:.0f} % on its" in text and birds["ips"]["n"] == 3
    search = read_json(ROOT / "results" / "cub200" / "tuning" / "ips.json")
    assert search["best"]["options"]["patch"] == 16 == max(search["space"]["patch"]["choices"])


def test_what_bake_changes_on_birds_is_as_the_records_say() -> None:
    text = (
        (ROOT / "results" / "README.md")
        .read_text(encoding="utf-8")
        .partition("<!-- bake -->")[2]
        .partition("<!-- /bake -->")[0]
    )
    birds = _studies()[1]
    assert re.findall(r"-?\d+\.\d", text) == [*_spoken(_lead(birds, "bake", "baseline"))]
    assert (
        f"{birds['bake']['images']:,.0f} images" in text
        and f"{birds['baseline']['images']:,.0f})" in text
        and birds["bake"]["n"] == 3
    )
    search = read_json(ROOT / "results" / "cub200" / "tuning" / "bake.json")
    assert search["best"]["options"]["ensemble_kd"] == 2 == max(search["space"]["ensemble_kd"]["choices"])


def test_what_synergy_changes_on_birds_is_as_the_records_say() -> None:
    document = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    text = document.partition("<!-- synergy -->")[2].partition("<!-- /synergy -->")[0]
    birds = _studies()[1]
    leads = [_spoken(_lead(birds, "synergy", other, k)) for other in ("corsd_cpu", "dks") for k in (0, -1)]
    assert re.findall(r"-?\d+\.\d+", text) == ["0.3", *(end for lead in leads for end in lead)]
    assert birds["synergy"]["options"]["synergy"] == birds["dks"]["options"]["synergy"] == 0.3 and birds["synergy"]["n"] == 3


def test_the_table_of_all_studies_quotes_their_gains() -> None:
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    methods = read_json(ROOT / "results" / "cub200" / "summary.json")["methods"]
    gain = with_interval(*(methods["no_class_kd"][key] for key in ("gain", "gain_low", "gain_high")), sign="+")
    assert f"| {gain} (n = 3) | +7.6 ± 0.7 (n = 5) |" in text and "gains 4.2 points on CIFAR-100 and 7.6 on CUB" in text


def test_the_terms_of_the_paper_alone_are_as_the_records_say() -> None:
    main, birds, *_ = _studies()
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    said = re.findall(r"-?\d+\.\d+", text.partition("<!-- paper -->")[2].partition("<!-- /paper -->")[0])
    leads = [_lead(main, "corsd_paper", "deep_supervision"), _lead(main, "corsd_paper", "baseline")]
    leads += [_lead(birds, "no_class_kd", "deep_supervision")]
    assert said == [end for lead in leads for end in _spoken(lead)] and leads[0][1] < 0 < leads[2][1]
    plain = read_json(ROOT / "results" / "cifar100_small" / "summary.json")["methods"]["baseline"]
    assert f"The small network ends with {plain['train_top1']:.0f} % on its training images" in text


def test_what_relations_add_on_birds_is_as_the_records_say() -> None:
    methods = read_json(ROOT / "results" / "cub200" / "summary.json")["methods"]
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    said = re.findall(r"-?\d+\.\d+", text.partition("<!-- birds -->")[2].partition("<!-- /birds -->")[0])
    by_class_kd = [("no_relations", "exits_alone"), ("corsd", "no_class_kd")]
    differences = [[_lead(methods, *pair, k) for k in range(4)] for pair in [*RELATIONS, *by_class_kd]]
    without_class_kd, beside_class_kd, class_kd, _ = differences
    assert all(low > 0 for _, low, _ in without_class_kd + beside_class_kd[1:])
    assert all(high < 0 for _, _, high in class_kd[:2])
    lead = [_lead(methods, "no_class_kd", "deep_supervision", k) for k in range(4)]
    assert all(low > 0 for _, low, _ in lead)
    leads = [ends for row in differences for ends in row] + [_lead(methods, "no_class_kd", "baseline"), *lead]
    assert {methods[row]["n"] for row in ("exits_alone", "no_class_kd", "no_relations")} == {3}
    assert said == [end for ends in leads for end in _spoken(ends)]


def test_what_relations_teach_on_birds_is_as_the_records_say() -> None:
    methods = read_json(ROOT / "results" / "cub200" / "summary.json")["methods"]
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    said = re.findall(r"-?\d+\.\d+", text.partition("<!-- teach -->")[2].partition("<!-- /teach -->")[0])
    trained, labels = "relation_kd", "relation_kd_labels"
    pairs = [(trained, labels), (trained, "corsd"), (labels, "corsd"), (labels, "corsd_cpu"), (labels, "no_class_kd")]
    differences = [[_lead(methods, *pair, k) for k in range(4)] for pair in pairs]
    assert said == [end for variant in differences for ends in variant for end in _spoken(ends)]
    assert [high < 0 for _, _, high in differences[0]] == [False, True, True, False]  # labels are ahead at exits 2 and 3
    assert [low > 0 for _, low, _ in differences[2]] == [True, True, False, False]
    assert [low > 0 for _, low, _ in differences[3]] == [True, True, True, False]  # on the same machine
    assert {methods[name]["n"] for name in (trained, labels, "no_class_kd")} == {3}


CONTROL = (
    ("no_class_kd", "exits_alone"),
    ("auxiliary_alone", "exits_alone"),
    ("relations_alone", "exits_alone"),
    ("matched_ce", "exits_alone"),
    ("double_ce", "exits_alone"),
    ("auxiliary_alone", "matched_ce"),
    ("auxiliary_alone", "double_ce"),
    ("no_class_kd", "auxiliary_alone"),
)


def test_the_control_on_birds_is_as_the_records_say() -> None:
    methods = read_json(ROOT / "results" / "cub200" / "summary.json")["methods"]
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    rows = text.partition("<!-- control -->")[2].partition("<!-- /control -->")[0].strip().splitlines()[2:]
    none = [0, 0, 0, 0]
    said = {"matched_ce": [-1, -1, 0, 0], "double_ce": [-1, -1, 0, 0], "relations_alone": none}  # in the text below the table
    for row, pair in zip(rows, CONTROL, strict=True):
        leads = [_lead(methods, *pair, k) for k in range(4)]
        assert re.findall(r"-?\d+\.\d+", row.split("|", 2)[2]) == [end for ends in leads for end in _spoken(ends)], pair
        assert len(methods[pair[0]]["top1_by_seed"].keys() & methods[pair[1]]["top1_by_seed"].keys()) == 3
        signs = [(low > 0) - (high < 0) for _, low, high in leads]
        assert signs == ([0, 0, 0, 1] if pair[1] == "auxiliary_alone" else said.get(pair[0], [1, 1, 1, 1])), pair
    added = {}
    for variant in ("auxiliary_alone", "matched_ce", "exits_alone"):
        options = read_json(ROOT / "results" / "cub200" / "records" / f"{variant}-s0.json")["config"]["method_options"]
        pairs = options["auxiliary_intra"] + options["auxiliary_inter"]
        added[variant] = (options["exit_ce"] + pairs, options["task"] + pairs)
    assert added["matched_ce"] == pytest.approx(added["auxiliary_alone"])  # the same label weight at every exit
    assert added["matched_ce"][0] - added["exits_alone"][0] == pytest.approx(0.75, abs=0.005)


TRUST = (
    ("auxiliary_alone", "exits_alone", "calibration_error", [-1, -1, -1, 0]),
    ("relations_alone", "exits_alone", "calibration_error", [0, 0, 0, 0]),
    ("matched_ce", "exits_alone", "calibration_error", [1, 1, 1, 1]),
    ("auxiliary_alone", "matched_ce", "calibration_error", [-1, -1, -1, -1]),
    ("corsd", "no_relations", "calibration_error", [1, 1, 1, 1]),
    ("auxiliary_alone", "exits_alone", "cross_entropy", [-1, -1, -1, -1]),
    ("auxiliary_alone", "matched_ce", "cross_entropy", [-1, -1, -1, -1]),
    ("auxiliary_alone", "matched_ce", "aurc", [-1, -1, -1, -1]),
)


def test_calibration_and_selective_prediction_on_birds_are_as_the_records_say() -> None:
    folder = ROOT / "results" / "cub200"
    areas = read_json(folder / "selective_prediction.json")["aurc"]

    def value(variant: str, seed: int, exit: int, measure: str) -> float:
        if measure == "aurc":
            return areas[variant][str(seed)][exit]
        return read_json(folder / "records" / f"{variant}-s{seed}.json")["test"]["exits"][exit][measure]

    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    rows = text.partition("<!-- trust -->")[2].partition("<!-- /trust -->")[0].strip().splitlines()[2:]
    for row, (variant, other, measure, signs) in zip(rows, TRUST, strict=True):
        gaps = [[value(variant, s, e, measure) - value(other, s, e, measure) for s in range(3)] for e in range(4)]
        digits = 2 if measure == "cross_entropy" else 1
        found = [mean_interval(gap) for gap in gaps]
        assert re.findall(r"-?\d+\.\d+", row.split("|", 3)[3]) == [f"{x:.{digits}f}" for ends in found for x in ends], row
        assert [(low > 0) - (high < 0) for _, low, high in found] == signs, row
    assert "for [five variants]" in text and len(areas) == 5


SHAPES = (
    ("corsd", "no_relations"),
    ("auxiliary_alone", "no_relations"),
    ("no_auxiliary", "no_relations"),
    ("double_ce", "no_relations"),
    ("auxiliary_alone", "double_ce"),
    ("no_class_kd", "exits_alone"),
)


def test_what_the_relation_terms_add_on_shapes_is_as_the_records_say() -> None:
    methods = read_json(ROOT / "results" / "unseen_shapes" / "summary.json")["methods"]
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    rows = text.partition("<!-- shapes -->")[2].partition("<!-- /shapes -->")[0].strip().splitlines()[2:]
    for row, pair in zip(rows, SHAPES, strict=True):
        said = re.findall(r"-?\d+\.\d+", row)
        assert said == [end for k in range(3) for end in _spoken(_lead(methods, *pair, k))], pair
        common = methods[pair[0]]["top1_by_seed"].keys() & methods[pair[1]]["top1_by_seed"].keys()
        assert len(common) == (10 if "exits_alone" in pair else 5)
    found = _lead(methods, "corsd", "auxiliary_alone", 0)
    assert found[1] < 0 < found[2]  # no difference detected
    lines = read_json(ROOT / "results" / "unseen_shapes" / "summary.json")["unseen"]
    kept = {"variant": "corsd", "score": "cosine", "figure": "recall_at_1", "exit": "deepest exit"}
    recall = next(line for line in lines if all(line[k] == v for k, v in kept.items()))
    kept |= {"variant": "no_relations", "over": "corsd"}
    less = next(line for line in lines if all(line[k] == v for k, v in kept.items()))
    assert f"{recall['mean']:.1f} [{recall['low']:.1f}, {recall['high']:.1f}] % at the deepest exit (five seeds" in text
    assert f"{-less['gain']:.1f} [{-less['gain_high']:.1f}, {-less['gain_low']:.1f}] points there" in text


PLANNED = (
    ("no_class_kd", "exits_alone", range(5)),
    ("no_class_kd", "exits_alone", range(5, 10)),
    ("double_ce_alone", "exits_alone", range(5, 10)),
    ("no_class_kd", "double_ce_alone", range(5, 10)),
)


def test_the_planned_test_on_new_shapes_is_as_the_records_say() -> None:
    lines = read_json(ROOT / "results" / "unseen_shapes" / "summary.json")["unseen"]
    kept = {(u["variant"], u["exit"]): u["by_seed"] for u in lines if (u["figure"], u["score"]) == ("map_at_r", "cosine")}
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    rows = text.partition("<!-- planned -->")[2].partition("<!-- /planned -->")[0].strip().splitlines()[2:]
    found = []
    for row, (ours, theirs, seeds) in zip(rows, PLANNED, strict=True):
        exits = ("exit 1", "exit 2", "deepest exit")
        found.append([mean_interval([kept[ours, e][str(s)] - kept[theirs, e][str(s)] for s in seeds]) for e in exits])
        said = re.findall(r"-?\d+\.\d+", row)
        assert said == [end for ends in found[-1] for end in _spoken(ends)], (ours, theirs)
    exit_2 = [kept["no_class_kd", "exit 2"][str(s)] - kept["exits_alone", "exit 2"][str(s)] for s in range(5, 10)]
    assert f"(p = {ttest_1samp(exit_2, 0).pvalue:.4f})" in " ".join(text.split())
    assert found[1][1][1] > 0 and found[1][2][1] < 0  # above 0 at exit 2, not at the deepest exit
    assert all(low < 0 < high for _, low, high in found[3])


PLANNED_BIRDS = (("no_class_kd", "exits_alone"), ("matched_ce", "exits_alone"), ("no_class_kd", "matched_ce"))


def test_the_planned_test_on_new_birds_is_as_the_records_say() -> None:
    lines = read_json(ROOT / "results" / "unseen_birds" / "summary.json")["unseen"]
    kept = {(u["variant"], u["exit"], u["figure"]): u["by_seed"] for u in lines if u["score"] == "cosine"}
    exits = ("exit 1", "exit 2", "exit 3", "deepest exit")

    def gaps(ours: str, theirs: str, exit: str, measure: str = "one_shot") -> list[float]:
        return [kept[ours, exit, measure][str(s)] - kept[theirs, exit, measure][str(s)] for s in range(3, 8)]

    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    rows = text.partition("<!-- planned one shot -->")[2].partition("<!-- /planned one shot -->")[0].strip().splitlines()[2:]
    for row, pair in zip(rows, PLANNED_BIRDS, strict=True):
        found = [mean_interval(gaps(*pair, e)) for e in exits]
        assert re.findall(r"-?\d+\.\d+", row.partition("|")[2].partition("|")[2]) == [
            x for ends in found for x in _spoken(ends)
        ]
    first, deepest = (float(ttest_1samp(gaps(*PLANNED_BIRDS[0], e), 0).pvalue) for e in ("exit 1", "deepest exit"))
    assert f"p = {first:.4f} at exit 1 and {deepest:.4f} at the deepest exit" in text and max(first, deepest) < 0.025
    assert all(mean_interval(gaps(*PLANNED_BIRDS[2], e))[1] > 0 for e in exits)
    recall, map_at_r, five = (
        mean_interval(gaps(*PLANNED_BIRDS[0], "exit 1", measure)) for measure in ("recall_at_1", "map_at_r", "five_shot")
    )
    flat = " ".join(text.split())
    assert (
        "recall@1 gains {:.2f} [{:.2f}, {:.2f}] at exit 1, which is not significant".format(*recall) in flat and recall[1] < 0
    )
    assert "MAP@R gains {:.2f} [{:.2f}, {:.2f}]".format(*map_at_r) in flat
    assert "five-shot accuracy {:.1f} [{:.1f}, {:.1f}]".format(*five) in flat
    assert (
        "by {:.1f} [{:.1f}, {:.1f}] points at exit 1 (n = 5)".format(*mean_interval(gaps(*PLANNED_BIRDS[0], "exit 1"))) in text
    )


def test_what_relations_add_on_unseen_birds_is_as_the_records_say() -> None:
    lines = read_json(ROOT / "results" / "unseen_birds" / "summary.json")["unseen"]
    exits = ("exit 1", "exit 2", "exit 3", "deepest exit")

    def line(variant: str, score: str, figure: str, exit_name: str, **other: str) -> dict[str, Any]:
        wanted = {"variant": variant, "score": score, "figure": figure, "exit": exit_name, **other}
        return next(line for line in lines if all(line[k] == v for k, v in wanted.items()))

    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8").partition("<!-- unseen -->")[2]
    rows = text.partition("<!-- /unseen -->")[0].strip().splitlines()[2:]
    significant = []
    for row, figure in zip(rows, ("recall_at_1", "map_at_r", "one_shot", "five_shot"), strict=True):
        differences = [line("no_relations", "cosine", figure, name, over="corsd") for name in exits]
        ends = [_spoken([-d["gain"], -d["gain_high"], -d["gain_low"]]) for d in differences]
        assert re.findall(r"-?\d+\.\d+", row) == [end for spoken in ends for end in spoken], figure
        significant.append([d["gain_high"] < 0 for d in differences])
        assert {d["gain_n"] for d in differences} == {3}
    assert [sum(at) for at in zip(*significant, strict=True)] == [4, 3, 0, 0]
    for score, said in (("cosine", "15.5 [14.4, 16.7]"), ("relation", "10.5 [8.4, 12.5]")):
        found = line("corsd", score, "recall_at_1", "deepest exit")
        assert said == f"{found['mean']:.1f} [{found['low']:.1f}, {found['high']:.1f}]" and said in text.replace("\n", " ")


def test_relations_without_class_kd_on_unseen_birds_are_as_the_records_say() -> None:
    lines = read_json(ROOT / "results" / "unseen_birds" / "summary.json")["unseen"]
    kept = {(u["variant"], u["exit"], u["figure"]): u["by_seed"] for u in lines if u["score"] == "cosine"}
    exits, measures = ("exit 1", "exit 2", "exit 3", "deepest exit"), ("recall_at_1", "map_at_r", "one_shot", "five_shot")

    def difference(variant: str, other: str, exit: str, measure: str) -> list[float]:
        ours, theirs = (kept[name, exit, measure] for name in (variant, other))
        mean, low, high = mean_interval(ours[s] - theirs[s] for s in ("0", "1", "2"))
        assert mean is not None and low is not None and high is not None
        return [mean, low, high]

    found = {(e, m): difference("no_class_kd", "exits_alone", e, m) for m in measures for e in exits}
    clear = [at for at, (_, low, high) in found.items() if low > 0 or high < 0]
    assert clear == [(e, "one_shot") for e in exits[:3]] + [(e, "five_shot") for e in exits[:2]]
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    said = re.findall(r"-?\d+\.\d+", text.partition("<!-- no_class_kd -->")[2].partition("<!-- /no_class_kd -->")[0])
    assert said == [end for at in [("exit 1", "recall_at_1"), *clear] for end in _spoken(found[at])]
    cost = difference("exits_alone", "no_relations", "exit 1", "recall_at_1")
    mean, low, high = _spoken(cost)
    assert f"class KD alone lowers recall@1 by {mean} [{low}, {high}] points" in text and cost[1] > 0


def test_corsd_and_deep_supervision_on_unseen_birds_are_as_the_records_say() -> None:
    folder = ROOT / "results" / "unseen_birds" / "records"

    def cosine(variant: str, seed: int, exit: int) -> dict[str, float]:
        measures = read_json(folder / f"{variant}-s{seed}.json")["unseen"]["figures"]
        return next(line for line in measures if (line["exit"], line["score"]) == (exit, "cosine"))

    def difference(variant: str, exit: int, measure: str) -> tuple[float, float, float]:
        both = [(cosine(variant, s, exit), cosine("deep_supervision", s, exit)) for s in range(3)]
        mean, low, high = mean_interval([a[measure] - b[measure] for a, b in both])
        assert low is not None and high is not None
        return mean, low, high

    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8").replace("\n", " ")
    said = text.partition("CORSD gains with one example a class")[2].partition("18 differences")[0]
    one_shot = [difference("corsd", exit, "one_shot") for exit in (1, 2, 3, 4)]
    recall = [difference("no_relations", exit, "recall_at_1") for exit in (3, 4)]
    for exit, (mean, low, high) in enumerate(one_shot, 1):
        digits = 2 if exit == 3 else 1
        assert f"{mean:.1f} [{low:.{digits}f}, {high:.{digits}f}]" in said
    assert all(f"{mean:.1f} [{low:.1f}, {high:.1f}]" in said for mean, low, high in recall)
    assert [low > 0 for _, low, _ in one_shot] == [True, True, False, True]
    assert all(high < 0 for _, _, high in recall)
    for measure in ("recall_at_1", "map_at_r", "five_shot"):
        ends = [difference("corsd", exit, measure) for exit in (1, 2, 3, 4)]
        assert all(low < 0 < high for _, low, high in ends), measure


def test_the_calibration_is_as_the_records_say() -> None:
    folder = ROOT / "results" / "cifar100" / "records"

    def difference(mine: str, other: str, value: Callable[[dict[str, Any]], float]) -> list[float]:
        both = [(read_json(folder / f"{mine}-s{s}.json"), read_json(folder / f"{other}-s{s}.json")) for s in range(3)]
        mean, low, high = mean_interval([value(a) - value(b) for a, b in both])
        assert low is not None and high is not None
        return [mean, low, high]

    def exit_value(k: int, name: str) -> Callable[[dict[str, Any]], float]:
        return lambda record: record["test"]["exits"][k][name]

    pairs = [("corsd", "no_relations"), ("corsd", "no_auxiliary"), ("no_auxiliary", "no_relations")]
    values = [lambda r: r["train_top1"][-1], *(exit_value(k, "calibration_error") for k in range(4))]
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8").partition("<!-- calibration -->")[2]
    lines = text.partition("<!-- /calibration -->")[0].strip().splitlines()[2:]
    for line, pair in zip(lines, [*pairs, ("no_class_kd", "deep_supervision")], strict=True):
        said = [[float(number) for number in re.findall(r"-?\d+\.\d+", cell)] for cell in line.split("|")[2:-1]]
        ends = [[round(end, 1) for end in difference(*pair, value)] for value in values]
        ends.append([round(end, 2) for end in difference(*pair, exit_value(-1, "cross_entropy"))])
        assert said == ends, pair
    overconfident, calibrated = (
        sum(exit_value(-1, "calibration_error")(read_json(folder / f"{v}-s{s}.json")) for s in range(3)) / 3
        for v in ("deep_supervision", "no_relations")
    )
    assert (f"{overconfident:.1f}", f"{calibrated:.1f}") == ("20.9", "2.7")
    assert difference("corsd", "no_auxiliary", values[0])[2] < 0 < difference("corsd", "no_auxiliary", values[2])[1]


def test_the_ablation_is_as_its_records_say() -> None:
    methods = read_json(ROOT / "results" / "cifar100" / "summary.json")["methods"]
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    said = re.findall(r"-?\d+\.\d", text.partition("<!-- ablation -->")[2].partition("<!-- /ablation -->")[0])
    undecided = ["no_auxiliary", "no_transfer", "cosine", "l2", "maps", "no_exits"]
    rows = ("no_class_kd", "plain_batches", "no_relations", *undecided, "no_margin", "shared", "release_weights")
    pairs = [*(("corsd", row) for row in rows), ("balanced_baseline", "baseline")]
    assert [float(number) for number in said] == [round(end, 1) for pair in pairs for end in _lead(methods, *pair)]
    for row in ("no_class_kd", "plain_batches", "no_margin", "shared", "release_weights"):
        assert _lead(methods, "corsd", row)[1] > 0
    for row in ("no_relations", *undecided):
        _, low, high = _lead(methods, "corsd", row)
        assert low < 0 < high
    assert {m["n"] for m in methods.values() if m["group"] == "ablation"} == {3}


def test_the_digits_are_as_their_records_say() -> None:
    methods = read_json(ROOT / "results" / "digits" / "summary.json")["methods"]
    top1 = {name: m["top1_by_seed"] for name, m in methods.items()}

    def difference(row: str, other: str, k: int) -> list[float]:
        return [end for end in mean_interval(top1[row][s][k] - top1[other][s][k] for s in top1[row]) if end is not None]

    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    said = re.findall(r"-?\d+\.\d+", text.partition("<!-- digits -->")[2].partition("<!-- /digits -->")[0])
    pairs = [(row, "baseline") for row in ("deep_supervision", "corsd_paper", "paper_no_relations")]
    pairs += [("corsd_paper", "paper_no_relations")]
    assert said == [end for pair in pairs for end in _spoken(difference(*pair, 0))]
    assert all(m["gain"] is None or m["gain_low"] < 0 < m["gain_high"] for m in methods.values())
    for k in range(3):
        _, low, high = difference("corsd_paper", "deep_supervision", k)
        assert low < 0 < high  # cannot be told from deep supervision
        for row, other in (("corsd", "no_relations"), ("corsd_paper", "paper_no_relations")):
            _, low, high = difference(row, other, k)
            assert (low < 0 < high) == ((row, k) != ("corsd_paper", 0))
    assert round(methods["baseline"]["top1"][-1], 1) == 94.2 and "94.2 %" in text


@pytest.mark.parametrize("study", ["cifar100", "cub200"])
def test_the_tables_of_the_studies_are_those_of_their_records(study: str) -> None:
    shown = re.search(rf"<!-- {study} -->\n(.*?)<!-- /{study} -->", README, flags=re.DOTALL)
    assert shown is not None and shown[1].strip() == short_markdown(read_json(ROOT / "results" / study / "summary.json"))


def test_the_ablation_that_the_finding_quotes_is_below_the_table() -> None:
    ablation = read_json(ROOT / "results" / "cub200" / "summary.json")["methods"]["no_class_kd"]
    ends = zip(ablation["top1"], ablation["top1_low"], ablation["top1_high"], strict=True)
    *exits, deepest = [with_interval(*exit_ends) for exit_ends in ends]
    gain = with_interval(*(ablation[key] for key in ("gain", "gain_low", "gain_high")), sign="+")
    said = f"an ablation with {ablation['n']} seeds: {', '.join(exits)} and {deepest} % at exits 1 to 4, gain {gain}."
    assert said in " ".join(README.split())


@pytest.mark.parametrize("study", sorted(path.parent.name for path in (ROOT / "results").glob("*/study.json")))
def test_the_summary_of_a_study_is_that_of_its_records(study: str) -> None:
    now = Study.from_file(ROOT / "results" / study)
    records, file = now.records(), now.path / "summary.json"
    assert file.is_file() == bool(records)  # a study that nobody has trained yet has none
    if records:
        _assert_close(summarise(now, records), read_json(file))


def _assert_close(value: Any, expected: Any) -> None:
    """Equal plain values; the last digits of floats may differ, as scipy's quantiles do from version to version."""
    if isinstance(expected, dict):
        assert value.keys() == expected.keys()
        for key in expected:
            _assert_close(value[key], expected[key])
    elif isinstance(expected, list):
        for one, other in zip(value, expected, strict=True):
            _assert_close(one, other)
    else:
        assert value == (pytest.approx(expected, rel=1e-9, abs=1e-9) if isinstance(expected, float) else expected)
