"""Many processes on one host, processes that fork, and processes that end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import discovery.backends.consul  # noqa: F401 - so that the workers do not each load it
from discovery.client import Client
from discovery.config import Config
from tests.tools import ConsulAgent, wait_until

WORKERS = 32
SERVICES = [f"service-{n}" for n in range(10)]
CONSULS_LIMIT = 200  # connections per client address


def connections(port: int) -> int:
    """How many TCP connections to *port* on this host are established, seen from the clients' side."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[2].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


class Worker:
    """A forked process that follows all services, and says on a pipe when it has seen what it waits for."""

    def __init__(self, settings: dict[str, str]) -> None:
        self.exit_code: int | None = None
        self._said, says = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._said)
                self._work(settings, says)
                os._exit(0)
            finally:
                os._exit(1)
        os.close(says)

    def _work(self, settings: dict[str, str], says: int) -> None:
        signal.alarm(60)  # whatever happens to the test
        client = Client(Config.from_env(settings), timeout=10.0)
        for name in SERVICES:
            client.lookup(name)
        os.write(says, b"1")
        for name in SERVICES:
            client.wait_for(name, min_instances=2)
        os.write(says, b"2")
        for name in SERVICES:
            with client.watch(name) as changes:
                while len(changes.next(30.0)) != 1:
                    pass
        client.close()

    def said(self, what: bytes) -> bool:
        return os.read(self._said, 1) == what

    def end(self, sig: signal.Signals | None = signal.SIGKILL) -> int:
        """Send *sig*, if any, and return the exit code, the negative signal where one ended it."""
        if self.exit_code is None:
            if sig is not None:
                os.kill(self.pid, sig)
            self.exit_code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self._said)
        return self.exit_code


@pytest.fixture
def register(consul_agent: ConsulAgent) -> Callable[[str, int], None]:
    def put(name: str, port: int) -> None:
        row = {"ID": f"{name}-{port}", "Name": name, "Port": port, "Address": "127.0.0.1"}
        consul_agent.request("PUT", "/v1/agent/service/register", row)

    return put


@pytest.fixture
def fork_workers(consul_agent: ConsulAgent, tmp_path: Path) -> Iterator[Callable[[], list[Worker]]]:
    settings = {
        "CONSUL_HTTP_ADDR": consul_agent.address,
        "DISCOVERY_DNS": "off",
        "DISCOVERY_CACHE": "off",
        "DISCOVERY_SHARE": str(tmp_path / "share"),
    }
    workers: list[Worker] = []

    def fork() -> list[Worker]:
        workers.extend(Worker(settings) for _ in range(WORKERS))
        return workers

    yield fork
    for worker in workers:
        worker.end()


def test_17_the_processes_of_a_host_share_their_watches(consul_agent: ConsulAgent, register, fork_workers):
    def ours() -> int:
        return connections(consul_agent.http_port) - before

    for name in SERVICES:
        register(name, 1)
    before = connections(consul_agent.http_port)
    workers = fork_workers()
    assert all(worker.said(b"1") for worker in workers)
    wait_until(lambda: ours() <= len(SERVICES), message="there is one watch for each service")
    for name in SERVICES:
        register(name, 2)
    assert all(worker.said(b"2") for worker in workers)
    assert ours() <= len(SERVICES)
    killed, left = workers[: WORKERS // 2], workers[WORKERS // 2 :]
    assert [worker.end() for worker in killed] == [-signal.SIGKILL] * len(killed)
    for name in SERVICES:
        consul_agent.request("PUT", f"/v1/agent/service/deregister/{name}-2")
    assert [worker.end(None) for worker in left] == [0] * len(left)


PROGRAM = """
    import asyncio, threading
    import discovery

    {body}
"""
BODIES = {
    "lookup": """discovery.lookup("web")""",
    "async": """asyncio.run(discovery.AsyncClient().lookup("web"))""",
    "async, unfinished": """
    client = discovery.AsyncClient()
    async def main():
        await client.lookup("web")
        asyncio.create_task(client.wait_for("web", min_instances=9))
        watch = client.watch("web")
        await anext(watch)
    asyncio.run(main())""",
    "watch in a thread": """
    def work():
        for snapshot in discovery.watch("web"):
            seen.set()
    seen = threading.Event()
    threading.Thread(target=work, daemon=True).start()
    seen.wait()""",
    "call": """print(discovery.call("web", lambda instance: instance.port, hedge=1.0))""",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("share", [True, False], ids=["shared", "alone"])
def test_a_program_that_just_ends_ends_in_silence(
    consul_agent: ConsulAgent, register, tmp_path: Path, body, share
):
    register("web", 80)
    environment = {
        "CONSUL_HTTP_ADDR": consul_agent.address,
        "DISCOVERY_DNS": f"127.0.0.1:{consul_agent.dns_port}",
        "DISCOVERY_CACHE": str(tmp_path / "cache"),
        "DISCOVERY_SHARE": str(tmp_path / "share") if share else "off",
        "DISCOVERY_TIMEOUT": "10",
    }
    program = textwrap.dedent(PROGRAM).format(body=textwrap.dedent(body))
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - started < 15.0
