"""The load, and what it costs the server: one run of the generator, and the server's clock before and after.

Laws:
- The generator keeps one core and the server the other, so that neither takes from what is measured.
- CPU time is the server's own (user and system, all threads and workers), in the kernel's nanoseconds.
- What was not answered rightly is part of the outcome: a server that drops or refuses is not fast.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Load", "Outcome", "compiled", "cores", "cpu_ns", "pin", "read_questions", "write_questions"]

HERE = Path(__file__).parent
WINDOW = 128
"""Questions under way in a closed run. dnsperf's default is 100; divided evenly among the sockets."""
SOCKETS = 16
_GRACE = 30.0  # s beyond the length of a run, for a machine that is busy with other things


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one run."""

    good: int
    """Answers with the right id and question, NOERROR, and not empty."""
    bad: int
    """All other answers."""
    lost: int
    seconds: float
    cpu_us: float
    """Of the server, in all."""
    p50_us: float
    p99_us: float

    @property
    def cpu_us_per_query(self) -> float:
        return self.cpu_us / max(1, self.good + self.bad)

    @property
    def per_second(self) -> float:
        return self.good / self.seconds

    @property
    def sound(self) -> bool:
        """Whether nearly everything was answered rightly."""
        return self.bad == 0 and self.lost <= (self.good + self.lost) / 100


def compiled(source: str, into: Path) -> Path | None:
    """Return the executable made of *source* (in this directory), or None where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    target = into / Path(source).stem
    if not target.exists():
        subprocess.run([compiler, "-O2", "-o", target, HERE / source], check=True)
    return target


def cpu_ns(pids: Iterable[int]) -> int:
    """Return the nanoseconds of CPU that processes have used, their threads that ended included."""
    # The clock of another process, as clock_getcpuclockid(3) makes it on Linux.
    return sum(time.clock_gettime_ns((~pid << 3) | 2) for pid in pids)


def pin(core: int | None) -> Sequence[str]:
    """Return what to put before a command that shall run on *core* alone."""
    taskset = shutil.which("taskset")
    return [taskset, "-c", str(core)] if taskset and core is not None else []


def write_questions(path: Path, requests: Iterable[bytes]) -> Path:
    """Write *requests* as the generator reads them."""
    path.write_bytes(b"".join(len(one).to_bytes(2) + one for one in requests))
    return path


def read_questions(path: Path) -> Iterator[bytes]:
    """Return what ``write_questions`` wrote."""
    raw, at = path.read_bytes(), 0
    while at < len(raw):
        end = at + 2 + int.from_bytes(raw[at : at + 2])
        yield raw[at + 2 : end]
        at = end


class Load:
    """The generator: compiled where there is a C compiler, else in Python, ten times slower."""

    def __init__(self, scratch: Path, core: int | None) -> None:
        program = compiled("load.c", scratch)
        self.is_compiled = program is not None
        command = [str(program)] if program is not None else [sys.executable, str(HERE / "slow_load.py")]
        self._command = [*pin(core), *command]

    def run(
        self,
        address: tuple[str, int],
        pids: Sequence[int],
        questions: Path,
        seconds: float,
        *,
        rate: float = 0,
        window: int = WINDOW,
        sockets: int = SOCKETS,
    ) -> Outcome:
        """Ask for *seconds*: as fast as answers come, or *rate* questions a second."""
        host, port = address
        arguments = [host, port, seconds, rate, window, sockets, questions]
        before = cpu_ns(pids)
        done = subprocess.run(
            [*self._command, *map(str, arguments)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=seconds + _GRACE,
        )
        used = cpu_ns(pids) - before
        said = json.loads(done.stdout)
        return Outcome(
            good=said["good"],
            bad=said["empty"] + said["wrong"],
            lost=said["lost"],
            seconds=said["seconds"],
            cpu_us=used / 1000,
            p50_us=said["p50"],
            p99_us=said["p99"],
        )


def cores() -> tuple[int | None, int | None]:
    """Return the cores of the generator and of the server; None when there is only one for both."""
    free = sorted(os.sched_getaffinity(0))
    return (free[0], free[1]) if len(free) > 1 else (None, None)
