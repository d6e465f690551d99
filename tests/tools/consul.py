"""Real Consul agents on loopback: found, started on free ports, asked, and stopped.

`consul_bin` leaves the search to tools/get-consul, which the Makefile calls too: one rule for both.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from tests.tools.machine import free_port
from tests.tools.waiting import wait_until

__all__ = ["ConsulAgent", "consul_bin"]

_REPOSITORY = Path(__file__).resolve().parents[2]
_open_url = urllib.request.build_opener(urllib.request.ProxyHandler({})).open  # whatever http_proxy says
_START_TIMEOUT = 30.0  # s; a dev agent has its leader within 2 s, a loaded machine takes longer
_ATTEMPTS = 3  # another process may take a free port before Consul binds it


@functools.cache
def consul_bin() -> str:
    """The path of a Consul executable: $CONSUL_BIN, else whatever tools/get-consul finds.

    Raises:
        FileNotFoundError: there is none; the message is get-consul's own.
    """
    found = subprocess.run(
        [_REPOSITORY / "tools" / "get-consul"], capture_output=True, text=True, check=False
    )
    if found.returncode != 0:
        raise FileNotFoundError(found.stderr.strip() or f"tools/get-consul exited {found.returncode}")
    return found.stdout.strip()


@functools.cache
def _version(binary: str) -> tuple[int, int]:
    text = subprocess.run([binary, "version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"Consul v(\d+)\.(\d+)", text)
    if match is None:
        raise ValueError(f"{binary} version: expected 'Consul vX.Y', got {text!r}")
    return int(match[1]), int(match[2])


class ConsulAgent:
    """One real Consul agent, a server of one, listening on loopback only.

    Without a data directory it is a dev agent: all in memory, leader in a second, and a restart forgets
    everything. With one it is a server that keeps its catalogue on disk across `restart`.

        with ConsulAgent() as agent:
            agent.request("PUT", "/v1/agent/service/register", {"Name": "web", "Port": 80})
            agent.request("GET", "/v1/catalog/service/web")
    """

    def __init__(
        self,
        *,
        data_dir: Path | None = None,
        config: Mapping[str, Any] | None = None,
        binary: str | None = None,
        token: str = "",
    ) -> None:
        """Only describe the agent; `start` runs it.

        Args:
            data_dir: where a persistent server keeps its state; None for a dev agent.
            config: further keys of Consul's JSON agent configuration; of ports, those that are not its own.
            binary: the executable; None for `consul_bin()`.
            token: sent with each request; an agent that denies by default shows nothing without.
        """
        self.binary = binary or consul_bin()
        self.data_dir = data_dir
        self.config = dict(config or {})
        self.token = token
        self.http_port = 0
        self.dns_port = 0
        self._ports: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._scratch: Path | None = None

    # Where it is ------------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """`127.0.0.1:PORT` of the HTTP API, the form CONSUL_HTTP_ADDR takes."""
        return f"127.0.0.1:{self.http_port}"

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT` of the HTTP API."""
        return f"http://{self.address}"

    @property
    def uri(self) -> str:
        """`consul://127.0.0.1:PORT`, the form the registrar's command line takes."""
        return f"consul://{self.address}"

    @property
    def version(self) -> tuple[int, int]:
        """(major, minor) of the executable: the few answers that changed between releases depend on it."""
        return _version(self.binary)

    @property
    def pid(self) -> int:
        """The process that runs; benchmarks read its clock."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """What the agent has printed so far."""
        assert self._scratch is not None
        return (self._scratch / "log").read_text(errors="replace")

    # Its life ---------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Run the agent and return once it has a leader and knows its node: writes and queries work."""
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="portcall-consul-"))
        for attempt in range(1, _ATTEMPTS + 1):
            if not self._ports:
                self._choose_ports()
            self._spawn()
            try:
                wait_until(self._ready, _START_TIMEOUT, message="Consul has a leader", ignoring=OSError)
            except AssertionError as exc:
                self.kill()
                raise AssertionError(f"{exc}\n{self.log}") from exc
            if self._process is not None and self._process.poll() is None:
                return self
            self.kill()
            if "address already in use" not in self.log or attempt == _ATTEMPTS:
                break
            self._ports = {}
        raise AssertionError(f"{self.binary} did not start:\n{self.log}")

    def stop(self) -> None:
        """End the agent and remove its temporary files. `data_dir` is the caller's and stays."""
        self.kill()
        if self._scratch is not None:
            shutil.rmtree(self._scratch)
            self._scratch = None

    def kill(self) -> None:
        """End the agent at once (SIGKILL), as a crash would; `start` brings it back on the same ports."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def restart(self) -> None:
        """Kill it and start it again on the same ports: a dev agent comes back with empty memory."""
        self.kill()
        self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    # Asking it --------------------------------------------------------------------------------------------

    def request(self, method: str, path: str, body: object = None, *, timeout: float = 10.0) -> Any:
        """One request of the HTTP API: the JSON it answers, or None for an empty body.

        Raises:
            urllib.error.HTTPError: any status but 2xx.
        """
        data = None if body is None else json.dumps(body).encode()
        headers = {"X-Consul-Token": self.token} if self.token else {}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        with _open_url(request, timeout=timeout) as response:
            text = response.read()
        return json.loads(text) if text.strip() else None

    def clear(self) -> None:
        """Deregister every service and check of this agent, so that a shared agent starts each test empty."""
        for service_id in self.request("GET", "/v1/agent/services"):
            self.request("PUT", f"/v1/agent/service/deregister/{urllib.parse.quote(service_id, safe='')}")
        for check_id in self.request("GET", "/v1/agent/checks"):
            self.request("PUT", f"/v1/agent/check/deregister/{urllib.parse.quote(check_id, safe='')}")

    # Inside -----------------------------------------------------------------------------------------------

    def _choose_ports(self) -> None:
        taken = set(self.config.get("ports", {}).values())
        self._ports = {}
        for name in ("http", "dns", "server", "serf_lan"):
            while (port := free_port()) in taken:
                pass  # nobody holds what was found before, so that it may be found again
            taken.add(port)
            self._ports[name] = port
        self.http_port, self.dns_port = self._ports["http"], self._ports["dns"]

    def _spawn(self) -> None:
        assert self._scratch is not None
        ports = {"serf_wan": -1, "grpc": -1, "https": -1, **self.config.get("ports", {}), **self._ports}
        if self.version >= (1, 14):
            ports["grpc_tls"] = -1  # a dev agent opens it by default; older releases reject the key
        # A server of one elects itself after an election time-out: 5 s and more, unless raft is told that
        # this is no wide-area cluster.
        performance = {"raft_multiplier": 1}
        config = {"performance": performance, "disable_update_check": True, **self.config, "ports": ports}
        config_file = self._scratch / "agent.json"
        config_file.write_text(json.dumps(config))
        mode = ["-dev"]
        if self.data_dir is not None:
            mode = ["-server", "-bootstrap", "-data-dir", str(self.data_dir)]
        # Killed with its starter: a pytest that is killed itself runs no clean-up. The kernel means the
        # thread that started it, so that must be one that lives as long as the agent shall.
        with_us = ["setpriv", "--pdeathsig=KILL"] if shutil.which("setpriv") else []
        here = ["-bind=127.0.0.1", "-client=127.0.0.1", f"-config-file={config_file}"]
        self._log = (self._scratch / "log").open("wb")
        self._process = subprocess.Popen(
            [*with_us, self.binary, "agent", *mode, *here],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def _ready(self) -> bool:
        """True once writes are accepted and the catalogue has the node, or once the process has ended."""
        assert self._process is not None
        if self._process.poll() is not None:
            return True
        try:
            return bool(self.request("GET", "/v1/status/leader", timeout=1.0)) and bool(
                self.request("GET", "/v1/catalog/nodes", timeout=1.0)
            )
        except urllib.error.HTTPError:
            return False  # 500 "No cluster leader" while the election runs
