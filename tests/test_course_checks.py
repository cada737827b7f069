"""Predictions and hints of the course."""

from __future__ import annotations

import pytest
import torch

from corsd_lib import CorsdError
from corsd_lib.course import Hint, answered, compare, expect, with_ends


def test_a_hint_is_an_assertion_error_that_jupyter_shows_without_a_traceback() -> None:
    with pytest.raises(AssertionError, match="detach the teacher") as caught:
        expect(torch.tensor(False), "detach the teacher")
    assert caught.value._render_traceback_() == ["Not yet: detach the teacher"]  # type: ignore[attr-defined]
    expect(torch.tensor(True), "is not raised")


def test_a_stub_has_no_answer_and_none_is_an_answer() -> None:
    with pytest.raises(Hint, match="no answer yet"):
        answered(...)
    answered(None)
    answered(torch.zeros(2))


@pytest.mark.parametrize(
    ("predicted", "printed"),
    [
        (None, "Accuracy: 81 %."),
        (50, "Accuracy: 81 %. You predicted 50 %: 31 % too low."),
        (95.2, "Accuracy: 81 %. You predicted 95 %: 14 % too high."),
        (torch.tensor(80.0).item(), "Accuracy: 81 %. You predicted 80 %: close."),
    ],
)
def test_a_number_is_compared_with_the_result(
    predicted: float | None, printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    compare("Accuracy", predicted, 81.0, " %", atol=5)
    assert capsys.readouterr().out == f"{printed}\n"


@pytest.mark.parametrize(("predicted", "verdict"), [(" BYOT ", "as you predicted"), ("none", "you predicted none")])
def test_a_word_is_compared_with_the_result(predicted: str, verdict: str, capsys: pytest.CaptureFixture[str]) -> None:
    compare("Best first exit", predicted, "byot")
    assert capsys.readouterr().out == f"Best first exit: byot, {verdict}.\n"


@pytest.mark.parametrize("predicted", ["half", True, [1, 2]])
def test_a_prediction_of_another_kind_is_refused(predicted: object) -> None:
    with pytest.raises(CorsdError, match=r"the prediction of Accuracy is .*; allowed: a number"):
        compare("Accuracy", predicted, 81.0)


def test_an_interval_has_two_decimals_where_an_end_would_read_zero() -> None:
    assert with_ends(1.23, 0.068, 2.391) == "+1.2 [+0.1, +2.4]"
    assert with_ends(1.518, 0.049, 2.988) == "+1.52 [+0.05, +2.99]"
    assert with_ends(-0.452, -0.912, 0.008) == "-0.45 [-0.91, +0.01]"
    assert with_ends(0.5, None, None) == "+0.5"
    assert with_ends(-1.599, -1.624, -1.575) == "-1.60 [-1.62, -1.57]"
    assert with_ends(-0.0, -0.8, 0.8) == "+0.0 [-0.8, +0.8]"
