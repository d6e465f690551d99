"""The tour of ``make demo``, with processes; tests/e2e takes it with containers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.tools import wait_until

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo.py"


def descendants(pid: int) -> set[int]:
    """The processes that *pid* started, and theirs."""
    found: set[int] = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            found |= {child} | descendants(child)
    return found


def test_the_tour_shows_both_instances_and_stops_what_it_started() -> None:
    done = subprocess.run(
        [sys.executable, DEMO, "--processes"], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert len(re.findall(r"Hello World from", done.stdout)) == 7
    assert "is out of lookup() after" in done.stdout


def test_an_interrupted_tour_leaves_no_process_behind() -> None:
    with subprocess.Popen(
        [sys.executable, DEMO, "--processes"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as tour:
        started = wait_until(lambda: len(all_ := descendants(tour.pid)) >= 3 and all_, 30)
        tour.send_signal(signal.SIGTERM)
        printed, _ = tour.communicate(timeout=30)

    assert tour.returncode == 130
    assert "everything it started is stopped" in printed
    assert not [pid for pid in started if os.path.exists(f"/proc/{pid}")]
