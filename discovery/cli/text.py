"""Text for people: tables that fit a terminal, durations, and colours where they are wanted.

Laws:
- No line is longer than the width that was given; None is a pipe, into which everything is written in full.
- What a registry tells is not ours: control characters in it could rewrite the screen, so they are shown as
  escapes.
- Colours are added when the layout is done, so that it is the same without them.
"""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from typing import Final, TextIO

__all__ = ["Terminal", "ago", "cut", "duration", "plain", "table", "width_of", "wrapped"]

_GAP: Final = "  "
_LEAST: Final = 8
"""Columns that a cell keeps when a table is too wide: fewer could not be told apart."""
_CUT: Final = "..."
_COLOURS: Final[Mapping[str, str]] = {
    "good": "32",
    "doubtful": "33",
    "bad": "31",
    "faint": "2",
    "strong": "1",
}


class Terminal:
    """Where output goes, and what may be done there.

    Args:
        env: TERM=dumb (no cursor to move) and NO_COLOR (no-color.org: any value but an empty one) are obeyed.
    """

    def __init__(self, stream: TextIO, env: Mapping[str, str]) -> None:
        self._tty = stream.isatty()
        self.live: bool = self._tty and env.get("TERM", "dumb") != "dumb"
        """Whether lines can be drawn again."""
        self.colour: bool = self.live and not env.get("NO_COLOR")

    @property
    def width(self) -> int | None:
        """Columns, asked anew each time as windows change; None: any number."""
        return shutil.get_terminal_size().columns if self._tty else None

    @property
    def height(self) -> int:
        """Lines."""
        return shutil.get_terminal_size().lines

    def paint(self, text: str, colour: str) -> str:
        """Return *text* in *colour*: ``good``, ``doubtful``, ``bad``, ``faint``, ``strong`` or empty."""
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if self.colour and colour else text


def plain(text: str) -> str:
    """Return *text* with what is no printable character written as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def width_of(text: str) -> int:
    """Return how many columns *text* takes: Chinese and its like two each, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def cut(text: str, width: int | None) -> str:
    """Return *text* in at most *width* columns; dots say that it is cut."""
    if width is None or width_of(text) <= width:
        return text
    kept = text
    while kept and width_of(kept) > width - len(_CUT):
        kept = kept[:-1]
    return kept + _CUT[:width]


def wrapped(text: str, width: int | None, indent: str = "") -> list[str]:
    """Return *text* as lines of at most *width* columns; those after the first begin with *indent*."""
    if width is None:
        return [text]
    width = max(width, _LEAST)
    lines = [""]
    for word in text.split():
        line = lines[-1]
        begun = line != (indent if len(lines) > 1 else "")
        if width_of(line) + begun + width_of(word) <= width:
            lines[-1] += f" {word}" if begun else word
            continue
        if not begun:
            lines.pop()
        rest = word
        while rest:  # a word that is wider than the line is broken
            line = indent if lines else ""
            while rest and width_of(line + rest[0]) <= width:
                line, rest = line + rest[0], rest[1:]
            lines.append(line)
    return lines


def table(
    rows: Sequence[Sequence[str]],
    width: int | None,
    *,
    wrap: bool = False,
    yielding: Collection[int] = (),
) -> list[str]:
    """Return *rows* in columns; cells that have no room are cut.

    Args:
        wrap: the last column goes on in the next line instead.
        yielding: columns that are cut before others: an address without its port is none.
    """
    cells = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(width_of, column)) for column in zip(*cells, strict=True)]
    if width is not None:
        if wrap:
            widths[-1] = min(widths[-1], width // 3)  # what it has in any case
        cut_last = set(range(len(widths) - wrap))
        for columns in (cut_last & set(yielding), cut_last - set(yielding)):
            _narrow(widths, width, columns)
    lines = []
    for row in cells:
        fixed = row[:-1] if wrap else row
        start = "".join(_padded(cell, columns) for cell, columns in zip(fixed, widths, strict=False))
        if not wrap:
            lines.append(cut(start.rstrip(), width))
            continue
        indent = " " * width_of(start)
        room = None if width is None else max(width - len(indent), _LEAST)
        first, *others = wrapped(row[-1], room)
        lines += [f"{start}{first}".rstrip(), *(indent + line for line in others)]
    return lines


def ago(seconds: float) -> str:
    """Return *seconds* as one number and its unit: ``5 s``, ``3 min``, ``2 h``, ``4 d``."""
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{int(max(seconds, 0.0))} s"


def duration(seconds: float) -> str:
    """Return what something took, with three digits: ``412 ns``, ``2.13 ms``, ``1.20 s``."""
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= size:
            number = seconds / size
            return f"{number:.{2 if number < 10 else 1 if number < 100 else 0}f} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def _narrow(widths: list[int], width: int, columns: Collection[int]) -> None:
    """Take from the widest of *columns* until all fit, or none has more than the least."""
    while columns and sum(widths) + len(_GAP) * (len(widths) - 1) > width:
        widest = max(columns, key=lambda n: widths[n])
        if widths[widest] <= _LEAST:
            return
        widths[widest] -= 1


def _padded(cell: str, width: int) -> str:
    text = cut(cell, width)
    return text + " " * (width - width_of(text)) + _GAP
