"""``discovery watch``: a table that is drawn again with each change, or one line per change in a pipe."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from discovery.cli.text import Terminal, ago, cut, plain, table
from discovery.client import Client
from discovery.errors import RegistryTimeout
from discovery.model import Instance, ServiceID, Snapshot

__all__ = ["Board", "change_line", "show"]

_TICK: Final = 1.0  # s between two drawings: the times on it count seconds
_RECENT: Final = 10.0
"""Seconds that what came, changed or left is marked: long enough to see it after looking away."""
_COLOURS: Final = {"+": "good", "-": "bad", "!": "doubtful"}


@dataclass(frozen=True, slots=True)
class _Row:
    """One instance on the board."""

    instance: Instance
    since: float | None
    """When it became what it is, in seconds on the monotonic clock; None: before we looked."""
    gone: bool = False

    def mark(self, now: float) -> str:
        if self.gone:
            return "-"
        if self.instance.status == "critical":
            return "!"
        return "+" if self.since is not None and now - self.since < _RECENT else " "

    @property
    def status(self) -> str:
        return "gone" if self.gone else self.instance.status


class Board:
    """What the table shows. Clocks are arguments.

    Args:
        where: who tells, for the heading.
    """

    def __init__(self, name: str, where: str) -> None:
        self._name = name
        self._where = where
        self._rows: dict[tuple[Instance, ServiceID], _Row] = {}
        self._snapshot: Snapshot | None = None

    def changed(self, snapshot: Snapshot, now: float) -> None:
        """Take in a new *snapshot*, of all instances, healthy or not."""
        first = self._snapshot is None
        rows = {}
        for instance in snapshot:
            key = instance, instance.id
            before = self._rows.get(key)
            if before is None or before.status != instance.status:
                rows[key] = _Row(instance, None if first else now)
            else:
                rows[key] = replace(before, instance=instance)
        for key, row in self._rows.items():
            if key not in rows:
                rows[key] = row if row.gone else replace(row, since=now, gone=True)
        self._rows = rows
        self._snapshot = snapshot

    def lines(self, now: float, width: int | None, height: int) -> list[tuple[str, str]]:
        """Return the lines to draw, each with its colour; at most *height*."""
        self._rows = {
            key: row
            for key, row in self._rows.items()
            if not row.gone or row.since is None or now - row.since < _RECENT
        }
        shown = sorted(self._rows.values(), key=lambda row: row.instance)
        cells = [("", "INSTANCE", "STATUS", "FOR", "TAGS", "NODE")]
        for row in shown:
            i = row.instance
            since = "" if row.since is None else ago(now - row.since)
            cells.append((row.mark(now), str(i), row.status, since, ",".join(i.tags), i.node))
        heading, *rows = table(cells, width, yielding=(4, 5))
        marked = [(line, _COLOURS.get(row.mark(now), "")) for line, row in zip(rows, shown, strict=True)]
        room = max(height - 4, 1)  # for the two lines above, the one below, and the cursor's
        if len(marked) > room:
            beyond = len(marked) - room + 1
            marked[room - 1 :] = [
                (cut(f"   and {beyond} more; the window is too low for them", width), "faint")
            ]
        return [*self._summary(width), (heading, "strong"), *marked]

    def _summary(self, width: int | None) -> list[tuple[str, str]]:
        snapshot = self._snapshot or ()
        healthy = sum(instance.status != "critical" for instance in snapshot)
        count = f"{len(snapshot)} instance{'' if len(snapshot) == 1 else 's'}, {healthy} healthy"
        if self._snapshot is not None and self._snapshot.stale:
            return [
                (
                    cut(f"{plain(self._name)}: {count}, not confirmed ({self._where} is away)", width),
                    "bad",
                )
            ]
        return [(cut(f"{plain(self._name)}: {count}, from {self._where}", width), "")]


def show(client: Client, name: str, tags: Sequence[str], terminal: Terminal) -> None:
    """Draw the board of *name* until the program is interrupted.

    Raises:
        KeyboardInterrupt: that.
        DiscoveryError: nothing is known, and the registry cannot be asked.
    """
    board = Board(name, client.where)
    screen = _Screen(terminal)
    with client.watch(name, tags=tags, healthy=False) as changes:
        snapshot: Snapshot | None = changes.next()
        try:
            while True:
                if snapshot is not None:
                    board.changed(snapshot, time.monotonic())
                screen.draw(board)
                try:
                    snapshot = changes.next(_TICK)
                except RegistryTimeout:  # nothing has changed; whatever is known stays so
                    snapshot = None
                except StopIteration:
                    return
        except KeyboardInterrupt:
            print("\r\x1b[K", end="", flush=True)  # over the ^C that the terminal wrote
            raise


def change_line(snapshot: Snapshot) -> str:
    """Return one line: the time, what came and went, and how many there are now."""
    changes = [plain(f"+ {i}") for i in snapshot.added] + [plain(f"- {i}") for i in snapshot.removed]
    count = f"{len(snapshot)} instance{'' if len(snapshot) == 1 else 's'}"
    stale = ", not confirmed: the registry cannot be asked" if snapshot.stale else ""
    return f"{time.strftime('%H:%M:%S')}  {'  '.join(changes) or '='}  ({count}{stale})"


class _Screen:
    """Where the board is drawn, each time over the last."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._lines = 0
        self._size: tuple[int | None, int] | None = None

    def draw(self, board: Board) -> None:
        """Draw in one write, so that nothing flickers."""
        terminal = self._terminal
        size = terminal.width, terminal.height
        lines = board.lines(time.monotonic(), *size)
        start = f"\x1b[{self._lines}F" if self._lines else ""
        if self._size not in (None, size):
            start = (
                "\x1b[2J\x1b[H"  # the terminal has wrapped what was there: nobody knows how many lines it is
            )
        text = "".join(f"{terminal.paint(line, colour)}\x1b[K\n" for line, colour in lines)
        print(f"{start}{text}\x1b[J", end="", flush=True)
        self._lines, self._size = len(lines), size
