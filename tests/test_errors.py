"""What messages show of values, and what becomes of too little memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from corsd_lib.errors import CorsdError, check_choice, check_text, enough_memory, shortened

HUGE = 10**5000  # Python writes out no more than 4,300 digits


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (3, "3"),
        (-(10**70), str(-(10**70))),
        (HUGE, "<integer of about 5,000 digits>"),
        ([-HUGE], "[<negative integer of about 5,000 digits>]"),
        (True, "True"),
        ({"low": 1, "high": {}}, "{'low': 1, 'high': {}}"),
        ({k: k for k in "edcba"}, "{'e': 'e', 'd': 'd', 'c': 'c', 'b': 'b', ...}"),
        ("caf\udce9", r"'caf\udce9'"),
    ],
    ids=lambda value: type(value).__name__,  # pytest writes integers out
)
def test_a_value_is_shown_as_it_is_written_where_that_is_short(value: object, shown: str) -> None:
    assert shortened(value) == shown


@pytest.mark.parametrize("value", ["x" * 9999, 10**200, 10**4299, list(range(9999)), {k: "x" * 999 for k in range(9999)}])
def test_a_large_value_is_shown_in_part(value: object) -> None:
    assert 20 < len(shortened(value)) < 500


def test_a_choice_names_a_value_of_any_size_and_that_there_is_none() -> None:
    with pytest.raises(CorsdError, match=r"^exit <integer of about 5,000 digits> is not available; allowed: 1, 2$"):
        check_choice("exit", HUGE, (1, 2))
    with pytest.raises(CorsdError, match=r"^variant 'x' is not known; allowed: none$"):
        check_choice("variant", "x", ())


def test_a_text_that_is_not_utf_8_is_shown_with_one_backslash() -> None:
    with pytest.raises(CorsdError, match=r"^class 'caf\\udce9' is not valid UTF-8"):
        check_text("class", "a", "caf\udce9")


def test_what_memory_does_not_hold_is_one_error() -> None:
    for take in (lambda: torch.empty(2**60, dtype=torch.uint8), lambda: np.empty(2**60, np.uint8), lambda: bytearray(2**60)):
        said = r"^the image needs more memory than is available.*; use less$"
        with pytest.raises(CorsdError, match=said), enough_memory("the image", "; use less"):
            take()
    with pytest.raises(CorsdError, match="needs more memory than is available"), enough_memory("a network"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_other_errors_are_left_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), enough_memory("a network"):
        raise RuntimeError("shapes differ")
