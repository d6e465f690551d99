"""``make demo`` on a machine with a Docker engine: the same tour, with containers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lab import Host

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo.py"


def test_the_tour_runs_on_containers_and_removes_them(host1: Host, python: str) -> None:
    before = host1.docker("ps", "--all", "--quiet")

    # The embedded agent of the tour: the host's Consul is not its business.
    printed = host1.on("env", "-u", "CONSUL_HTTP_ADDR", python, str(DEMO))

    assert "$ docker run -d --rm --name portcall-demo-" in printed
    assert "is out of lookup() after" in printed
    assert host1.docker("ps", "--all", "--quiet") == before
