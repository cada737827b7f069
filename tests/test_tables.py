from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from corsd_lib.errors import CorsdError
from corsd_lib.studies.intervals import mean_interval, with_interval
from corsd_lib.studies.study import Study
from corsd_lib.studies.summary import relative_to, summarise, trained_exits
from corsd_lib.studies.tables import markdown, short_markdown, table

# Student's t at 97.5 %, from a printed table: degrees of freedom -> t.
T = {1: 12.706205, 2: 4.302653, 4: 2.776445}
VARIANTS: dict[str, Any] = {
    "baseline": {"label": "plain network", "train": {"method": "baseline"}},
    "corsd": {"label": "CORSD", "seeds": [1, 2, 3]},
    "margin": {"label": "without | margin", "group": "ablation", "from": "corsd", "seeds": [7]},
}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    values = {"title": "By hand", "seeds": [0, 1, 2], "train": {"data": "cifar100", "epochs": 30}, "variants": VARIANTS}
    return Study.from_dict(values, tmp_path / "study.json")


def record(
    *top1: float, images: int = 60_000, macs: int = 100, seconds: float = 10.0, epochs: int = 30, threads: int = 1
) -> dict[str, Any]:
    return {
        "provenance": {"device": "cpu", "threads": threads},
        "config": {"epochs": epochs, "method_options": {"margin": 1.0}},
        "test": {"exits": [{"top1": v} for v in top1]},
        "train_top1": [v + 30 for v in top1],
        "images": images,
        "macs": macs,
        "seconds": seconds,
    }


RECORDS: dict[str, dict[int, dict[str, Any]]] = {
    "baseline": {0: record(50.0), 1: record(51.0, seconds=20.0), 2: record(52.0, seconds=30.0)},
    "corsd": {
        1: record(40.0, 54.0, macs=150, seconds=30.0),
        2: record(42.0, 56.0, macs=150, seconds=45.0),
        3: record(44.0, 61.0, macs=150, seconds=99.0),
    },
    "margin": {7: record(39.0, 49.0, images=80_000)},
}


@pytest.mark.parametrize(
    "values,mean,half",
    [
        ([1.0, 2.0, 3.0], 2.0, T[2] / math.sqrt(3)),
        ([1.0, 1.0, 1.0, 1.0, 6.0], 2.0, T[4] * math.sqrt(5) / math.sqrt(5)),  # variance 20 / 4
    ],
)
def test_the_interval_is_that_of_student(values: list[float], mean: float, half: float) -> None:
    assert mean_interval(values) == pytest.approx((mean, mean - half, mean + half), rel=1e-6)


@pytest.mark.parametrize("values", [[3.0], [10.0, 14.0], [-1.7, -1.7], [5.0, 5.0, 5.0], [0.1 + 0.2, 0.3, 0.3]])
def test_few_values_and_a_tie_decide_nothing(values: list[float]) -> None:
    """Two that agree by luck gave -1.7 ± 0.0, and the interval of any two is too wide or says too much."""
    assert mean_interval(values) == (pytest.approx(sum(values) / len(values)), None, None)


def test_no_value_has_no_mean() -> None:
    assert mean_interval(iter([])) == (None, None, None)


def test_the_summary_is_that_of_a_calculation_by_hand(study: Study) -> None:
    summary = summarise(study, RECORDS)
    methods = summary.pop("methods")
    assert summary == {
        "title": "By hand",
        "data": "cifar100",
        "train": {"data": "cifar100", "epochs": 30},
        "equal": "images",
        "baseline": "baseline",
        "seeds": [0, 1, 2],
    }
    corsd = methods["corsd"]
    half = T[2] * 2 / math.sqrt(3), T[2] * math.sqrt(13) / math.sqrt(3)  # deviations of 40, 42, 44 and of 54, 56, 61
    assert corsd["top1"] == pytest.approx([42, 57])
    assert corsd["top1_low"] == pytest.approx([42 - half[0], 57 - half[1]], rel=1e-6)
    assert corsd["top1_high"] == pytest.approx([42 + half[0], 57 + half[1]], rel=1e-6)
    assert corsd["top1_by_seed"] == {"1": [40.0, 54.0], "2": [42.0, 56.0], "3": [44.0, 61.0]}
    # Seeds 1 and 2 are in both: 54 - 51 and 56 - 52. Not 57 - 51, the difference of the means.
    assert [corsd[k] for k in ("gain", "gain_low", "gain_high", "gain_n")] == [3.5, None, None, 2]
    assert (corsd["macs_ratio"], corsd["time_ratio"]) == (1.5, 3.0)  # the fastest took 30 s, the baseline's 10
    assert (corsd["n"], corsd["seeds"], corsd["label"], corsd["group"], corsd["from"]) == (
        3,
        [1, 2, 3],
        "CORSD",
        "methods",
        None,
    )
    assert (corsd["epochs"], corsd["images"], corsd["macs"], corsd["seconds"]) == (30, 60_000, 150, 58.0)
    assert corsd["train_top1"] == 87.0 and corsd["options"] == {"margin": 1.0}


def test_what_cannot_be_said_is_none(study: Study) -> None:
    methods = summarise(study, RECORDS)["methods"]
    plain, alone = methods["baseline"], methods["margin"]
    assert [plain[k] for k in ("gain", "gain_low", "gain_high")] == [None] * 3 and plain["macs_ratio"] == 1
    assert (alone["top1"], alone["top1_low"], alone["top1_high"]) == ([39.0, 49.0], [None, None], [None, None])
    assert [alone[k] for k in ("gain", "gain_low", "macs_ratio")] == [None] * 3  # no seed in common
    assert alone["gain_n"] == plain["gain_n"] == 0
    assert (alone["from"], alone["group"]) == ("corsd", "ablation")
    one = summarise(study, {"baseline": {1: record(50.0)}, "corsd": {1: record(40.0, 53.0)}})["methods"]["corsd"]
    assert (one["gain"], one["gain_low"], one["gain_high"]) == (3.0, None, None)


def test_times_are_compared_on_the_same_kind_of_machine_only(study: Study) -> None:
    def ratio(*ours: dict[str, Any]) -> float | None:
        records = {"baseline": {0: record(50.0, seconds=20.0)}, "corsd": dict(enumerate(ours))}
        return summarise(study, records)["methods"]["corsd"]["time_ratio"]

    quick = record(40.0, 53.0, seconds=10.0, threads=2)
    assert ratio(quick) is None
    assert ratio(quick, record(40.0, 53.0, seconds=50.0), record(40.0, 53.0, seconds=30.0)) == 1.5


def test_the_table_says_which_exits_were_not_trained(study: Study) -> None:
    summary = summarise(study, {"baseline": {0: record(50.0)}, "corsd": {0: record(1.0, 40.0, 50.0)}})
    assert trained_exits(summary["methods"]["corsd"]) == [False, True, True]
    assert "| CORSD | 1 | not trained | 40.0 ± – | 50.0 ± – |" in markdown(summary)


def test_rows_without_a_record_are_left_out(study: Study) -> None:
    methods = summarise(study, {"corsd": RECORDS["corsd"]})["methods"]
    assert list(methods) == ["corsd"] and methods["corsd"]["gain"] is None
    assert summarise(study, {})["methods"] == {}


def test_the_frame_lines_the_exits_up_at_the_deepest(study: Study) -> None:
    frame = table(summarise(study, RECORDS))
    assert list(frame["variant"]) == ["baseline", "corsd", "margin"]
    assert list(frame.columns[:7]) == ["variant", "label", "group", "n", "exit 1 top1", "exit 1 top1_low", "exit 1 top1_high"]
    assert frame["exit 1 top1"].isna().tolist() == [True, False, False]
    assert frame["deepest exit top1"].tolist() == [51.0, 57.0, 49.0]
    assert frame["gain"].isna().tolist() == [True, False, True] and frame["gain"][1] == 3.5


TABLE = """\
| method | group | seeds | exit 1, % | deepest exit, % | gain | epochs | images | MACs | time | train, % |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| plain network | methods | 3 |  | 51.0 ± 2.5 | – | 30 | 60,000 | x1.00 | x1.00 | 81.0 |
| CORSD | methods | 3 | 42.0 ± 5.0 | 57.0 ± 9.0 | +3.5 ± – (n = 2) | 30 | 60,000 | x1.50 | x3.00 | 87.0 |
| without / margin | ablation | 1 | 39.0 ± – | 49.0 ± – | – | 30 | 80,000 | – | x1.00 | 79.0 |
"""


def test_the_table_for_readers(study: Study) -> None:
    rows, note = markdown(summarise(study, RECORDS)).split("\n\n")
    assert rows + "\n" == TABLE
    assert note.startswith("Equal images for all variants but without | margin. Top-1 on test after the last epoch")
    assert "There is none (–) with fewer than three seeds or where all seeds agree" in note
    assert "95 % Student-t interval" in note and "points over plain network at the deepest exit, paired by seed" in note


def test_one_group_needs_no_column_and_equal_rows_no_exception(study: Study) -> None:
    text = markdown(summarise(study, {k: RECORDS[k] for k in ("baseline", "corsd")}))
    assert text.startswith("| method | seeds | exit 1, % |") and "Equal images for all variants. Top-1" in text


def test_numbers_carry_half_their_interval() -> None:
    assert with_interval(47.24, 46.8, 47.68) == "47.2 ± 0.4"
    assert with_interval(-0.26, -1.0, 0.48, sign="+") == "-0.3 ± 0.7"
    assert (with_interval(3.0, None, None, sign="+"), with_interval(None, None, None)) == ("+3.0 ± –", "–")
    assert with_interval(3.0, 2.97, 3.03) == "3.0 ± <0.1"  # narrow is not certain


def test_gains_over_another_row_are_paired_by_seed(study: Study) -> None:
    summary = summarise(study, RECORDS)
    other = relative_to(summary, "corsd")
    plain = other["methods"]["baseline"]
    # -3 and -4 for seeds 1 and 2; seed 0 has no partner
    assert [plain[k] for k in ("gain", "gain_low", "gain_high", "gain_n")] == [-3.5, None, None, 2]
    assert [other["methods"][row]["gain"] for row in ("corsd", "margin")] == [None, None]
    assert other["baseline"] == "corsd" and summary["methods"]["baseline"]["gain"] is None  # the summary is left as it was
    with pytest.raises(CorsdError, match="reference"):
        relative_to(summary, "byot")


def test_the_short_table_has_the_methods_and_what_they_came_to(study: Study) -> None:
    lines = short_markdown(summarise(study, RECORDS)).splitlines()
    assert lines[0] == "| method | seeds | exit 1, % | deepest exit, % | gain, points | train, % |"
    assert lines[3].startswith("| CORSD | 3 | 42.0 ± 5.0 | 57.0 ± 9.0 | +3.5 ± – (n = 2) |") and lines[3].endswith("| 87.0 |")
    assert len(lines) == 4  # no ablation


def test_a_gain_of_three_pairs_has_the_interval_of_their_differences(study: Study) -> None:
    records = {"baseline": RECORDS["baseline"], "corsd": {s: record(54.0 + d) for s, d in enumerate((0, 2, 4))}}
    row = summarise(study, records)["methods"]["corsd"]
    half = T[2] / math.sqrt(3)  # of 4, 5 and 6
    assert (row["gain"], row["gain_low"], row["gain_high"]) == pytest.approx((5, 5 - half, 5 + half), rel=1e-6)
    assert "| +5.0 ± 2.5 |" in short_markdown(summarise(study, records))


def test_a_tie_does_not_read_as_certainty(study: Study) -> None:
    """As it was: a gain of "-1.7 ± 0.0", both ends equal, and so decided."""
    records = {"baseline": RECORDS["baseline"], "corsd": {s: record(48.3 + s) for s in range(3)}}
    summary = summarise(study, records)
    row = summary["methods"]["corsd"]
    assert row["gain"] == pytest.approx(-1.7) and [row["gain_low"], row["gain_high"], row["gain_n"]] == [None, None, 3]
    assert "| -1.7 ± – |" in markdown(summary) and "± 0.0" not in markdown(summary)
    assert table(summary)["gain_n"].tolist() == [0, 3]
