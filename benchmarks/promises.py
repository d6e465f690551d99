"""What the benchmarks of the client have in common: promises and how they were kept, and an agent to ask."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.tools import ConsulAgent

__all__ = ["INSTALLED", "Promise", "Run", "child", "main", "percentile", "print_promises"]

PEERS = {
    "cachetools": "cachetools",
    "consul": "py-consul",
    "dns": "dnspython",
    "requests": "requests",
    "srvlookup": "srvlookup",
}
INSTALLED = {name for name in PEERS if find_spec(name) is not None}
"""The modules of the peers that are here."""


@dataclass(frozen=True)
class Promise:
    """One line of the last table."""

    what: str
    measured: float
    limit: float
    unit: str = ""
    at_least: bool = False

    def __str__(self) -> str:
        kept = self.measured >= self.limit if self.at_least else self.measured <= self.limit
        goal = f"{'>=' if self.at_least else '<='} {self.limit:,g} {self.unit}"
        return (
            f"{self.what:<48}{goal:<18}{f'{self.measured:,.4g} {self.unit}':<17}{'met' if kept else 'MISSED'}"
        )


@dataclass(frozen=True)
class Run:
    """What the sections of a benchmark are given."""

    agent: ConsulAgent
    rounds: int
    smoke: bool


Section = Callable[[Run], Iterator[Promise]]
"""Prints a table, and yields what was promised about it."""


def percentile(samples: Sequence[float], percent: float) -> float:
    return sorted(samples)[min(int(len(samples) * percent / 100), len(samples) - 1)]


def child(program: str, *arguments: str) -> list[str]:
    """Run *program* in a fresh interpreter, which shares nothing with others, and return its words."""
    with ExitStack() as stack:
        home = stack.enter_context(_directory_in_memory())
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env={**os.environ, "DISCOVERY_SHARE": f"{home}/share", "DISCOVERY_CACHE": f"{home}/cache"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return done.stdout.split()


def main(doc: str, sections: Mapping[str, Section]) -> None:
    """Run the *sections* that the command line asks for against an agent, and say what became of promises."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(sections)}; all")
    parser.add_argument("--rounds", type=int, default=12, metavar="N", help="turns of each contender (12)")
    parser.add_argument("--smoke", action="store_true", help="a moment only, to see that it runs")
    options = parser.parse_args()
    if unknown := set(options.sections) - set(sections):
        parser.error(f"there is no section {', '.join(sorted(unknown))}")

    promises: list[Promise] = []
    with ExitStack() as stack:
        agent = stack.enter_context(ConsulAgent())
        # Where a client shares and writes down what it follows; not where those of this user do.
        home = stack.enter_context(_directory_in_memory())
        os.environ |= {
            "CONSUL_HTTP_ADDR": agent.address,
            "DISCOVERY_CACHE": f"{home}/cache",
            "DISCOVERY_SHARE": f"{home}/share",
            "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        }
        run = Run(agent, 1 if options.smoke else options.rounds, options.smoke)
        cores = len(os.sched_getaffinity(0))
        version = ".".join(map(str, agent.version))
        print(f"Consul {version}, Python {sys.version.split()[0]}, {cores} cores, {_load()} at the start")
        for name in options.sections or sections:
            print()
            promises += sections[name](run)
            print(f"({_load()})", flush=True)
    if absent := sorted(PEERS[name] for name in PEERS.keys() - INSTALLED):
        print(f"\nleft out, as they are not installed: {', '.join(absent)}")
    print()
    print_promises(*promises)


def print_promises(*promises: Promise) -> None:
    print(f"{'promise':<48}{'goal':<18}{'measured':<17}")
    print(*promises, sep="\n")


def _directory_in_memory() -> tempfile.TemporaryDirectory[str]:
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)


def _load() -> str:
    return f"load average {os.getloadavg()[0]:.1f}"
