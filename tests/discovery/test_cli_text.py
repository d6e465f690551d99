"""Tables, durations and colours: what a terminal shows, without a terminal."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.cli.text import Terminal, ago, cut, duration, plain, table, width_of, wrapped

ROWS = [("NAME", "TAGS"), ("web", "v1,blue"), ("database", "")]


class _Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_table_has_columns_and_no_trailing_blanks():
    assert table(ROWS, None) == ["NAME      TAGS", "web       v1,blue", "database"]


def test_a_table_is_cut_where_it_is_widest():
    rows = [("short", "a" * 50, "b" * 20)]
    assert table(rows, 40) == ["short  " + "a" * 12 + "...  " + "b" * 13 + "..."]


def test_a_column_that_yields_is_cut_before_others():
    rows = [("10.0.0.1:8080", "a" * 50, "passing")]
    assert table(rows, 40, yielding=[1]) == ["10.0.0.1:8080  " + "a" * 13 + "...  passing"]
    assert table(rows, 30, yielding=[1]) == ["10.0.0.1...  aaaaa...  passing"]


def test_the_last_column_goes_on_below():
    rows = [("ok", "one two three four"), ("no", "")]
    assert table(rows, 12, wrap=True) == ["ok  one two", "    three", "    four", "no"]
    assert table(rows, None, wrap=True) == ["ok  one two three four", "no"]


@given(
    st.lists(
        st.tuples(st.text(max_size=60), st.text(max_size=60), st.text(max_size=60)), min_size=1, max_size=5
    ),
    st.integers(40, 120),
    st.booleans(),
)
def test_no_line_is_wider_than_the_terminal(rows, width, wrap):
    for line in table(rows, width, wrap=wrap):
        assert width_of(line) <= width
        assert line.isprintable()


def test_what_a_registry_tells_cannot_move_the_cursor():
    assert table([("\x1b[2Jweb\n", "\udcff")], 80) == [r"\x1b[2Jweb\n  \udcff"]
    assert plain("日本") == "日本"


def test_wide_and_combining_characters_have_their_width():
    assert width_of("日本") == 4
    assert width_of("e\u0301") == 1
    assert cut("日本語のサービス", 9) == "日本語..."
    assert cut("abcdef", 2) == ".."
    assert cut("abc", None) == "abc"
    assert table([("日本", "x"), ("abcd", "x")], None) == ["日本  x", "abcd  x"]


def test_sentences_are_wrapped():
    assert wrapped("a bb ccc", None) == ["a bb ccc"]
    assert wrapped("aaaa bbbb cccc", 10, "  ") == ["aaaa bbbb", "  cccc"]
    assert wrapped("", 10) == [""]
    assert wrapped("a 0123456789abcdef b", 10, "  ") == ["a", "  01234567", "  89abcdef", "  b"]
    assert wrapped("0123456789ab cd", 10) == ["0123456789", "ab cd"]
    assert wrapped("日本語のサービス", 8) == ["日本語の", "サービス"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (0.9, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (7200, "2 h"),
        (1e6, "11 d"),
    ],
)
def test_ages(seconds, text):
    assert ago(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ns"),
        (4.12e-7, "412 ns"),
        (2.134e-3, "2.13 ms"),
        (45.67e-6, "45.7 us"),
        (0.25, "250 ms"),
        (1.2, "1.20 s"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("tty", "env", "live", "colour"),
    [
        (True, {"TERM": "xterm"}, True, True),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        (True, {"TERM": "xterm", "NO_COLOR": ""}, True, True),
        (True, {"TERM": "dumb"}, False, False),
        (True, {}, False, False),
        (False, {"TERM": "xterm"}, False, False),
    ],
)
def test_what_may_be_done_with_an_output(tty, env, live, colour):
    terminal = Terminal(_Tty() if tty else io.StringIO(), env)
    assert (terminal.live, terminal.colour) == (live, colour)
    assert terminal.paint("x", "bad") == ("\x1b[31mx\x1b[0m" if colour else "x")
    assert terminal.paint("x", "") == "x"
    assert (terminal.width is not None) == tty
    assert terminal.height > 0
