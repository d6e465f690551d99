"""Durations as Go reads and writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery import durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10.0),
        ("1m30s", 90.0),
        ("1h0m0.5s", 3600.5),
        ("250ms", 0.25),
        ("1us", 1e-6),
        ("1µs", 1e-6),
        ("1\u03bcs", 1e-6),
        ("1ns", 1e-9),
        (".5s", 0.5),
        ("1.s", 1.0),
        ("-5s", -5.0),
        ("+5s", 5.0),
        ("0", 0.0),
        ("-0", 0.0),
    ],
)
def test_reads(text: str, seconds: float) -> None:
    assert durations.from_text(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", 'time: invalid duration ""'),
        ("-", 'time: invalid duration "-"'),
        ("abc", 'time: invalid duration "abc"'),
        (".s", 'time: invalid duration ".s"'),
        ("10", 'time: missing unit in duration "10"'),
        ("1m10", 'time: missing unit in duration "1m10"'),
        ("1x", 'time: unknown unit "x" in duration "1x"'),
        ("5 s", 'time: unknown unit " s" in duration "5 s"'),
        ("1d", 'time: unknown unit "d" in duration "1d"'),
        (f"{'9' * 400}s", f'time: invalid duration "{"9" * 400}s"'),
    ],
)
def test_refuses_in_gos_words(text: str, why: str) -> None:
    with pytest.raises(ValueError) as error:
        durations.from_text(text)
    assert str(error.value) == why


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (10.0, "10s"),
        (60.0, "1m0s"),
        (90.5, "1m30.5s"),
        (3600.0, "1h0m0s"),
        (0.1, "100ms"),
        (0.0015, "1.5ms"),
        (2e-6, "2µs"),
        (3e-9, "3ns"),
        (1.25, "1.25s"),
        (-1.5, "-1.5s"),
    ],
)
def test_writes(seconds: float, text: str) -> None:
    assert durations.to_text(seconds) == text


@given(st.integers(-(10**15), 10**15))
def test_reads_what_it_writes(nanoseconds: int) -> None:
    seconds = nanoseconds / 1e9
    assert durations.from_text(durations.to_text(seconds)) == pytest.approx(seconds, abs=1e-9)


@given(st.text(alphabet="0123456789.smhuµn -+x", max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        durations.from_text(text)
    except ValueError as error:
        assert str(error).startswith("time: ")
