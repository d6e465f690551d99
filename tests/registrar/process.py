"""The registrar as a process of its own, which can be killed and weighed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.tools import free_port

__all__ = ["RegistrarProcess", "processor_seconds"]

_PROGRAM = "import sys; from registrar.cli import main; sys.exit(main())"
_open_url = urllib.request.build_opener(urllib.request.ProxyHandler({})).open  # whatever http_proxy says


class RegistrarProcess:
    """``registrar run`` with its metrics.

    with RegistrarProcess("consul://127.0.0.1:8500", env={"DOCKER_HOST": ...}) as registrar:
        registrar.kill()
        registrar.start()
    """

    def __init__(self, uri: str, *options: str, env: Mapping[str, str]) -> None:
        self._metrics = f"127.0.0.1:{free_port()}"
        arguments = ["--owner", "host-1", "--metrics", self._metrics, *options, uri]
        self._command = [sys.executable, "-c", _PROGRAM, "run", *arguments]
        self._env = {**os.environ, **env}
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.NamedTemporaryFile(prefix="portcall-registrar-")  # noqa: SIM115 closed by __exit__

    @property
    def log(self) -> str:
        """What it has printed, in all of its lives."""
        return Path(self._log.name).read_text(errors="replace")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command, env=self._env, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )

    def kill(self) -> None:
        """SIGKILL: nothing is tidied up."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def terminate(self) -> int:
        """SIGTERM, and wait; its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(20)
        self._process = None
        return code

    def look(self) -> None:
        """SIGHUP: have everything looked at."""
        os.kill(self.pid, signal.SIGHUP)

    def metric(self, name: str, label: str = "") -> float:
        """One value of its metrics; 0 while it does not tell."""
        wanted = f"portcall_registrar_{name}{f'{{{label}}}' if label else ''} "
        with contextlib.suppress(OSError), _open_url(f"http://{self._metrics}/metrics", timeout=5) as reply:
            for line in reply.read().decode().splitlines():
                if line.startswith(wanted):
                    return float(line.split()[-1])
        return 0.0

    def memory(self) -> int:
        """Octets that are resident now."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        if kind is not None:
            print(self.log[-6000:])
        self._log.close()


def processor_seconds(pid: int) -> float:
    """Seconds of processor time that a process has used, in steps of 10 ms (proc(5): stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
