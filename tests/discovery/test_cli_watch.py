"""`discovery watch` on a terminal: a table that is drawn anew, and what a person sees of it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from discovery.cli.watching import Board
from discovery.model import (
    CheckID,
    HealthCheck,
    Instance,
    Node,
    NodeName,
    ServiceEntry,
    ServiceID,
    ServiceName,
    Snapshot,
)
from tests.tools import free_port

# --- the table -----------------------------------------------------------------------------------------

WEB = ServiceName("web")


def instance(port: int, *, status: str = "passing", tags: tuple[str, ...] = ()) -> Instance:
    check = HealthCheck(CheckID("c"), "c", status)
    node = Node(NodeName("host-1"), "10.0.0.1")
    return Instance(ServiceEntry(node, ServiceID(f"web-{port}"), WEB, port=port, tags=tags, checks=(check,)))


def snapshot(*instances: Instance) -> Snapshot:
    return Snapshot(WEB, instances)


def lines(board: Board, now: float, *, width: int | None = None, height: int = 24) -> list[str]:
    return [line for line, _ in board.lines(now, width, height)]


def test_what_was_there_before_we_looked_has_no_age():
    board = Board("web", "http://x")
    board.changed(snapshot(instance(1), instance(2, status="critical", tags=("v1",))), 0.0)
    assert lines(board, 5.0) == [
        "web: 2 instances, 1 healthy, from http://x",
        "   INSTANCE    STATUS    FOR  TAGS  NODE",
        "   10.0.0.1:1  passing              host-1",
        "!  10.0.0.1:2  critical       v1    host-1",
    ]


def test_what_comes_changes_and_leaves_is_marked_for_a_while():
    board = Board("web", "x")
    board.changed(snapshot(instance(1), instance(3)), 0.0)
    board.changed(snapshot(instance(1, status="critical"), instance(2)), 10.0)
    marks = [line.split()[:3] for line in lines(board, 12.0)[2:]]
    assert marks == [
        ["!", "10.0.0.1:1", "critical"],
        ["+", "10.0.0.1:2", "passing"],
        ["-", "10.0.0.1:3", "gone"],
    ]
    assert all(" 2 s" in line for line in lines(board, 12.0)[2:])
    assert [colour for _, colour in board.lines(12.0, None, 24)[2:]] == ["doubtful", "good", "bad"]
    later = lines(board, 80.0)[2:]
    assert [line.split()[0] for line in later] == ["!", "10.0.0.1:2"]  # and nobody is gone any more
    assert "1 min" in later[1]


def test_one_that_comes_back_is_new():
    board = Board("web", "x")
    board.changed(snapshot(instance(1)), 0.0)
    board.changed(snapshot(), 1.0)
    assert lines(board, 2.0)[0].startswith("web: 0 instances, 0 healthy")
    board.changed(snapshot(instance(1)), 3.0)
    assert lines(board, 4.0)[2].split()[:3] == ["+", "10.0.0.1:1", "passing"]


def test_a_change_of_tags_keeps_the_age():
    board = Board("web", "x")
    board.changed(snapshot(), 0.0)
    board.changed(snapshot(instance(1)), 10.0)
    board.changed(snapshot(instance(1, tags=("v2",))), 20.0)
    assert lines(board, 40.0)[2].split() == ["10.0.0.1:1", "passing", "30", "s", "v2", "host-1"]


def test_an_outage_is_said_in_the_heading():
    board = Board("web", "http://x")
    board.changed(replace(snapshot(instance(1)), stale=True), 0.0)
    (text, colour), *_ = board.lines(0.0, None, 24)
    assert text == "web: 1 instance, 1 healthy, not confirmed (http://x is away)"
    assert colour == "bad"


def test_the_window_is_never_left():
    board = Board("web" * 40, "http://x")
    board.changed(snapshot(*(instance(n, tags=("a" * 90,)) for n in range(1, 100))), 0.0)
    drawn = lines(board, 0.0, width=60, height=10)
    assert len(drawn) < 10
    assert max(map(len, drawn)) <= 60
    assert drawn[-1] == "   and 94 more; the window is too low for them"
    assert len(lines(board, 0.0, width=60, height=1)) == 3


# --- the terminal --------------------------------------------------------------------------------------


class Screen:
    """The command on a terminal of 80 columns and 24 lines; `text` is all that it has written."""

    def __init__(self, *arguments: str, **env: str) -> None:
        self._master, slave = pty.openpty()
        self.resize(80)
        self.process = subprocess.Popen(
            [sys.executable, "-X", "dev", "-W", "error", "-m", "discovery.cli", *arguments],
            cwd=Path(__file__).parents[2],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": "xterm", **env},
        )
        os.close(slave)
        self.text = ""

    def resize(self, width: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))

    def until(self, wanted: str, seconds: float = 30.0) -> str:
        """Read until *wanted* was written after what was read before, and return that part."""
        part, deadline = "", time.monotonic() + seconds
        while not re.search(wanted, part):
            left = deadline - time.monotonic()
            assert left > 0, f"{wanted!r} did not appear in {part!r}"
            if select.select([self._master], [], [], left)[0]:
                try:
                    part += os.read(self._master, 65536).decode()
                except OSError:  # the other end is closed
                    assert re.search(wanted, part), f"{wanted!r} did not appear in {part!r}"
        self.text += part
        return part

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(30)

    def rest(self) -> str:
        part = ""
        while select.select([self._master], [], [], 0)[0]:
            try:
                part += os.read(self._master, 65536).decode()
            except OSError:
                break
        return part

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def screen() -> Iterator[Callable[..., Screen]]:
    opened: list[Screen] = []

    def start(*arguments: str, **env: str) -> Screen:
        opened.append(Screen(*arguments, **env))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def test_a_terminal_is_drawn_again_with_every_change(screen, agent, register, registry):
    register("web", 8080)
    seen = screen("watch", "web", CONSUL_HTTP_ADDR=agent.url)
    first = seen.until("8080.*passing")
    assert "web: 1 instance, 1 healthy" in first
    register("web", 8081)
    seen.until(r"\x1b\[\d+F")  # up again, over what was drawn
    added = seen.until(r"\+  127.0.0.1:8081  passing  0 s|\+  127.0.0.1:8081  passing  1 s")
    assert "\x1b[32m" in added  # green
    registry.deregister("web-8080")
    seen.until("-  127.0.0.1:8080  gone")
    seen.until("8081  passing  [2-9] s")  # times go on without a change
    agent.close()
    lost = seen.until(r"not confirmed \(http://.* is away\)")
    assert seen.interrupt() == 130
    assert "discovery:" not in lost  # a line of the log would stand in the table
    assert "Traceback" not in seen.text + seen.rest()


def test_a_window_that_was_resized_is_drawn_from_the_top(screen, agent, register):
    register("web", 8080, tags=("a-tag-that-is-long" * 3,))
    seen = screen("watch", "web", CONSUL_HTTP_ADDR=agent.url)
    assert "\x1b[2J" not in seen.until("8080.*passing")
    seen.resize(50)
    narrow = seen.until(r"(?s)\x1b\[2J\x1b\[H.*8080.*passing.*\x1b\[J").partition("\x1b[2J")[2]
    assert max(map(len, re.sub(r"\x1b\[[0-9;]*[A-Z a-z]", "", narrow).splitlines())) <= 50


def test_no_color_is_obeyed(screen, agent, register):
    register("web", 8080)
    seen = screen("watch", "web", CONSUL_HTTP_ADDR=agent.url, NO_COLOR="1")
    seen.until("8080.*passing")
    seen.interrupt()
    assert not re.search(r"\x1b\[[0-9;]*m", seen.text + seen.rest())


def test_a_dumb_terminal_gets_a_line_per_change(screen, agent, register):
    register("web", 8080)
    seen = screen("watch", "web", CONSUL_HTTP_ADDR=agent.url, TERM="dumb")
    seen.until(r"\d\d:\d\d:\d\d  \+ 127.0.0.1:8080  \(1 instance\)")
    assert seen.interrupt() == 130
    assert "\x1b" not in seen.text + seen.rest()


def test_a_registry_that_is_down_ends_it(screen):
    seen = screen("watch", "web", CONSUL_HTTP_ADDR=f"127.0.0.1:{free_port()}")
    seen.until("discovery: cannot ask Consul .*connection refused")
    assert seen.process.wait(30) == 5


@pytest.mark.parametrize("command", ["ls", "explain", "doctor", "bench"])
def test_no_command_writes_wider_than_the_terminal(screen, agent, register, command):
    name = "a-service-" + "with-a-long-name-" * 6
    register(name, 8080, tags=tuple(f"a-tag-that-is-long-{n}" for n in range(9)))
    arguments = [command] if command == "ls" else [command, name]
    seen = screen(*arguments, CONSUL_HTTP_ADDR=agent.url)
    assert seen.process.wait(30) == 0
    text = re.sub(r"\x1b\[[0-9;]*m", "", seen.rest())
    assert text and max(map(len, text.splitlines())) <= 80
