"""Servers in processes of their own, registered with an embedded agent, and who is connected to them."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from discovery.backends import Backend
from discovery.model import Registration, ServiceID, ServiceName

__all__ = ["Fleet", "Server", "connections_to"]

HERE = Path(__file__).parent
_ESTABLISHED = "01"  # of /proc/net/tcp, include/net/tcp_states.h


class Server:
    """One process; *script* is run with *arguments* and prints its port first."""

    def __init__(self, *arguments: str, script: str = "server.py") -> None:
        command = [sys.executable, "-I", str(HERE / script), *arguments]
        # Its standard input is how it learns of our end, should nobody be left to kill it.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def kill(self) -> None:
        """End it as a crash would (SIGKILL); idempotent."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, path: str) -> Any:
        """Return what it answers, asked directly."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as response:
            return json.load(response)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()


class Fleet:
    """What is registered under one name."""

    def __init__(self, backend: Backend, name: str = "web") -> None:
        self.backend = backend
        self.name = name

    def register(self, port: int, *, tags: tuple[str, ...] = (), address: str = "127.0.0.1") -> None:
        name = ServiceName(self.name)
        self.backend.register(Registration(self._id(port), name, port, address=address, tags=tags))

    def deregister(self, port: int) -> None:
        self.backend.deregister(self._id(port))

    def _id(self, port: int) -> ServiceID:
        return ServiceID(f"{self.name}:{port}")


def connections_to(port: int) -> int:
    """Return how many TCP connections on this machine are established to port *port*."""
    # gRPC connects with IPv6 sockets, also to IPv4 addresses.
    tables = [Path(f"/proc/net/{table}").read_text(encoding="ascii") for table in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table.splitlines()[1:]]
    return sum(row[2].endswith(f":{port:04X}") and row[3] == _ESTABLISHED for row in rows)
