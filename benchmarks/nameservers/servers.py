"""The servers that are compared: how each is started with the catalogue in it, and stopped.

    registry ──┬── ours                 follows it
               ├── Consul's own DNS     is it, or another agent with the same catalogue
               └── an origin of ours, with a TTL of an hour
                        └── unbound, dnsmasq: they hold what they asked it once
    built in: miekg/dns (Go), the C server

Laws:
- All listen on loopback on free ports, with configurations of their own; nothing of the machine's is touched.
- Whatever is started is stopped by its process id, also after a failure.
- A contender that is not here is a sentence that says how to get it.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.nameservers.load import compiled, pin
from discovery.agent import Agent
from tests.tools import ConsulAgent, free_port

__all__ = ["Absent", "Catalogue", "Registry", "Server", "Starter"]

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
HOST = "127.0.0.1"
all_cores = sorted(os.sched_getaffinity(0))
available = len(all_cores)
_START = 60.0  # s for a server to answer; a machine may be busy with other things
_APT = "apt-get install {} (or tools/get-peers)"


class Absent(Exception):
    """A contender is not on this machine; the message says how to get it."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers."""

    name: str
    port: int
    pids: tuple[int, ...]

    @property
    def address(self) -> tuple[str, int]:
        return HOST, self.port

    @property
    def rss_mib(self) -> float:
        """Resident memory of all its processes."""
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.pids)
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What is registered: services with some instances each, on as many nodes."""

    services: int
    instances: int = 3

    def name(self, number: int) -> str:
        return f"service-{number:05}"

    def entry(self, number: int, k: int) -> Mapping[str, object]:
        """One instance, as ``/v1/catalog/register`` takes it."""
        return {
            "Node": f"n{k}",
            "Address": f"10.200.0.{k + 1}",
            "Service": {
                "ID": f"{self.name(number)}-{k}",
                "Service": self.name(number),
                "Port": 8000,
                "Address": f"10.{k}.{number >> 8}.{number & 255}",
            },
        }


class Registry:
    """A registry with a catalogue in it: a real Consul, or the embedded agent."""

    def __init__(self, agent: ConsulAgent | Agent) -> None:
        self._agent = agent
        port = agent.http_port if isinstance(agent, ConsulAgent) else int(agent.url.rpartition(":")[2])
        self.url = f"http://{HOST}:{port}"
        self._http = http.client.HTTPConnection(HOST, port, timeout=30)

    @property
    def name(self) -> str:
        if isinstance(self._agent, ConsulAgent):
            return "Consul {}.{}".format(*self._agent.version)
        return "the embedded agent"

    @property
    def server(self) -> Server | None:
        """Its own DNS; None when it has none."""
        if not isinstance(self._agent, ConsulAgent):
            return None
        return Server(f"{self.name}'s own DNS", self._agent.dns_port, (self._agent.pid,))

    def put(self, path: str, body: Mapping[str, object]) -> None:
        if self._http.sock is None:
            self._http.connect()
            # Head and body are two writes; with Nagle's algorithm the second waits 40 ms for the other end.
            self._http.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._http.request("PUT", path, json.dumps(body))
        reply = self._http.getresponse()
        said = reply.read()
        if reply.status != 200:
            raise RuntimeError(f"{self.url}{path} answered {reply.status}: {said[:200]!r}")

    def fill(self, catalogue: Catalogue) -> None:
        for number in range(catalogue.services):
            for k in range(catalogue.instances):
                self.put("/v1/catalog/register", catalogue.entry(number, k))

    def close(self) -> None:
        self._http.close()


@contextmanager
def consul(binary: str, core: int | None, config: Mapping[str, object]) -> Iterator[Registry]:
    """A real Consul on *core*, with further keys of its *config*."""
    # A cache in front of it keeps only what says RA, as it does with a recursor; this one is never asked.
    config = {"limits": {"http_max_conns_per_client": 1000}, "recursors": [f"{HOST}:9"], **config}
    agent = ConsulAgent(binary=binary, config=config)
    free = os.sched_getaffinity(0)
    try:
        if core is not None:
            os.sched_setaffinity(0, {core})  # what is started inherits it, and sizes itself by it
        agent.start()
    finally:
        os.sched_setaffinity(0, free)
    registry = Registry(agent)
    try:
        yield registry
    finally:
        registry.close()
        agent.stop()


@contextmanager
def embedded() -> Iterator[Registry]:
    with Agent(http=(HOST, 0), node="host-1", address="10.1.0.1") as agent:
        registry = Registry(agent)
        try:
            yield registry
        finally:
            registry.close()


class Starter:
    """Starts servers on one core, and stops what it started."""

    def __init__(self, scratch: Path, core: int | None, probe: bytes) -> None:
        """Start nothing yet.

        Args:
            scratch: a directory for configurations and logs.
            probe: a request that a server answers when it is ready.
        """
        self._scratch = scratch
        self._core = core
        self._probe = probe
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Starter:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in list(self._processes):
            self._end(pid)

    def stop(self, server: Server) -> None:
        for pid in server.pids:
            if pid in self._processes:
                self._end(pid)

    def ours(
        self,
        registry: str,
        name: str = "portcall",
        *,
        options: Sequence[str] = (),
        config: Mapping[str, object] | None = None,
        pinned: bool = True,
    ) -> Server:
        """A resolver with all that is on in real life: metrics, policy with a rate limit, an upstream."""
        file = self._scratch / f"{name.replace(' ', '-')}.json"
        file.write_text(json.dumps(config or {}))
        port = free_port()
        program = "import sys; from resolver.cli import main; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", program, "run", "--listen", f"{HOST}:{port}", "--consul", registry]
        command += ["--metrics", f"{HOST}:{free_port()}", "--config", str(file), *options]
        if "--upstream" not in options:
            command += ["--upstream", f"{HOST}:9"]
        return self._spawn(name, port, command, pinned=pinned)

    def unbound(self, origin: Server) -> Server:
        binary = _needed("unbound", _APT.format("unbound"))
        port, file = free_port(), self._scratch / "unbound.conf"
        # No DNSSEC: nobody else here validates. Everything else that makes it fast is as its manual advises.
        file.write_text(f"""
server:
  interface: {HOST}@{port}
  num-threads: 1
  module-config: "iterator"
  rrset-roundrobin: yes
  minimal-responses: yes
  msg-cache-size: 64m
  rrset-cache-size: 128m
  so-rcvbuf: 4m
  do-not-query-localhost: no
  local-zone: "consul." nodefault
  do-daemonize: no
  use-syslog: no
  logfile: ""
  chroot: ""
  username: ""
  pidfile: ""
  directory: "{self._scratch}"
remote-control:
  control-enable: no
forward-zone:
  name: "consul."
  forward-addr: {HOST}@{origin.port}
""")
        return self._spawn("unbound", port, [binary, "-d", "-c", str(file)])

    def dnsmasq(self, origin: Server) -> Server:
        binary = _needed("dnsmasq", _APT.format("dnsmasq-base"))
        port = free_port()
        options = [
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--pid-file=",
        ]
        options += [f"--port={port}", f"--listen-address={HOST}", "--bind-interfaces", "--cache-size=200000"]
        options += [f"--server={HOST}#{origin.port}", "--dns-forward-max=1000", f"--user={_user()}"]
        return self._spawn("dnsmasq", port, [binary, *options])

    def miekg(self, catalogue: Catalogue) -> Server:
        go = _needed("go", "install Go; its modules come by the Go proxy")
        target = self._scratch / "minimal"
        if not target.exists():
            built = subprocess.run(
                [go, "build", "-o", target, "."],
                cwd=HERE / "minimal",
                capture_output=True,
                text=True,
                check=False,
            )
            if built.returncode:
                raise Absent(f"it could not be built: {built.stderr.strip().splitlines()[-1]}")
        port = free_port()
        sizes = [str(catalogue.services), str(catalogue.instances)]
        return self._spawn("minimal miekg/dns server", port, [str(target), str(port), *sizes])

    def c_server(self) -> Server:
        program = compiled("answer.c", self._scratch)
        if program is None:
            raise Absent("it needs a C compiler (apt-get install gcc libc6-dev)")
        port = free_port()
        return self._spawn("C, answers all alike", port, [str(program), str(port)])

    def _spawn(self, name: str, port: int, command: Sequence[str], *, pinned: bool = True) -> Server:
        log = (self._scratch / f"{name.replace(' ', '-').replace('/', '-')}.log").open("wb")
        with log:
            process = subprocess.Popen(
                [*(pin(self._core) if pinned else ()), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        self._processes[process.pid] = process
        deadline = time.monotonic() + _START
        while not _answers(port, self._probe):
            if process.poll() is not None or time.monotonic() > deadline:
                said = Path(log.name).read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{name} does not answer: {' '.join(command)}\n{said}")
            time.sleep(0.02)
        return Server(name, port, (process.pid, *_children(process.pid)))

    def _end(self, pid: int) -> None:
        process = self._processes.pop(pid)
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _needed(command: str, how: str) -> str:
    # Daemons live where the PATH of a plain user does not lead.
    found = shutil.which(command) or shutil.which(command, path="/usr/sbin:/usr/local/sbin:/usr/local/go/bin")
    if found is None:
        raise Absent(f"not installed; {how}")
    return found


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def _children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _answers(port: int, request: bytes) -> bool:
    """Whether the server at *port* has an answer to *request*; waits a little for it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0.2)
        client.connect((HOST, port))
        try:
            client.send(request)
            return client.recv(4096)[6:8] != b"\0\0"
        except OSError:
            return False


def get(tool: str, *options: str) -> str:
    """Return what tools/*tool* finds.

    Raises:
        Absent: nothing.
    """
    found = subprocess.run([ROOT / "tools" / tool, *options], stdout=subprocess.PIPE, text=True, check=False)
    if found.returncode:
        raise Absent(f"tools/{tool} {' '.join(options)} finds none".rstrip())
    return found.stdout.strip()
