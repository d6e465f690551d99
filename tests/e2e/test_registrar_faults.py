"""What breaks around a registrar on a real host; then it tells the truth again within two seconds.

A registrar of the test's own, with an owner of its own, runs beside the host's: so each meets the other's
services on the same agent, and leaves them alone. What should be registered is read from Docker, by a
container's name, state and published port, and not from any code that is tested.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import docker
import pytest

from tests.e2e.view import assert_seen
from tests.tools import wait_until

if TYPE_CHECKING:
    from lab import Host

    from tests.e2e.view import Endpoint

BOUND = 2.0  # s
PATIENCE = 30.0  # s where no time is promised
OWNER = "fault-run"
OWNERS = (OWNER, "registrator")
PROGRAM = "import sys; from registrar.cli import main; sys.exit(main())"
OBEDIENT = ["sh", "-c", "trap 'exit 0' TERM; sleep 1000 & wait"]
FOREIGN = {"ID": f"{OWNER}:by-hand:80", "Name": "by-hand-too", "Port": 80, "Meta": {"mine": "yes"}}


class Registrar:
    """``registrar run`` on a host, with an owner of its own; its way to Docker can be cut."""

    def __init__(self, host: Host, python: str) -> None:
        self._host = host
        self.relay = Relay(host.directory / "relay.sock", host.directory / "run" / "docker.sock")
        options = ["--owner", OWNER, "--deregister-on-exit", "consul://127.0.0.1:8500"]
        self._command = [
            *("env", f"DOCKER_HOST=unix://{host.directory}/relay.sock"),
            *(python, "-c", PROGRAM, "run", *options),
        ]

    @property
    def log(self) -> str:
        """What it has printed, in all of its lives."""
        return (self._host.directory / f"{OWNER}.log").read_text(errors="replace")

    def start(self) -> None:
        self._host.spawn(OWNER, *self._command)

    def kill(self) -> None:
        self._host.stop(OWNER, signal.SIGKILL)

    def __enter__(self) -> Self:
        (self._host.directory / f"{OWNER}.log").unlink(missing_ok=True)
        self.relay.listen()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End it, and with it all that it has registered."""
        self._host.stop(OWNER)
        self.relay.close()


class Relay:
    """A socket before Docker's: what runs through it can be cut without anybody else noticing."""

    def __init__(self, path: Path, target: Path) -> None:
        self._path, self._target = path, target
        self._listener: socket.socket | None = None
        self._lock = threading.Lock()
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def listen(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self._path))
        self._listener.listen(64)
        self._start(self._accept, self._listener)

    def cut(self) -> None:
        """Break every connection."""
        with self._lock:
            for end in self._ends:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Break every connection, and let nobody in: the socket is gone."""
        if self._listener is None:
            return
        self._path.unlink()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads.pop(0).join()  # from here on nobody is added
        self._listener.close()
        self._listener = None
        self.cut()
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        for end in self._ends:
            end.close()
        self._ends.clear()

    def _start(self, target: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # that is how it is told to end
            while True:
                near, _ = listener.accept()
                far = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                far.connect(str(self._target))
                with self._lock:
                    self._ends += [near, far]
                self._start(self._copy, near, far)
                self._start(self._copy, far, near)

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(65536):
                sink.sendall(chunk)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def engine(host1: Host) -> Iterator[Any]:
    """The SDK's client of host-1's Docker; what a test has made there goes with it."""
    client = docker.DockerClient(host1.socket, version="1.41", timeout=60)
    try:
        yield client
    finally:
        mine = client.containers.list(all=True, filters={"name": "fault-"})
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda one: one.remove(force=True), mine))
        client.close()


@pytest.fixture
def registrar(host1: Host, engine: Any, python: str) -> Iterator[Registrar]:
    """A registrar that has looked around. At the end nothing foreign was touched, and no traceback told."""
    host1.consul("/v1/agent/service/register", "PUT", FOREIGN)
    before = host1.consul("/v1/agent/services")[FOREIGN["ID"]]
    try:
        with Registrar(host1, python) as registrar:
            wait_until(lambda: registered(host1, "service1"), PATIENCE, message="it registers service1")
            yield registrar
        assert host1.consul("/v1/agent/services").get(FOREIGN["ID"]) == before
        assert "Traceback" not in registrar.log
    finally:
        host1.consul(f"/v1/agent/service/deregister/{FOREIGN['ID']}", "PUT")


def create(engine: Any, name: str, *, published: bool = False) -> Any:
    """A container that exposes port 80: on the host's network, or published at a port of Docker's choice."""
    where = {"publish_all_ports": True} if published else {"network_mode": "host"}
    made = engine.api.create_container(
        "busybox", OBEDIENT, name=name, ports=[80], host_config=engine.api.create_host_config(**where)
    )
    return engine.containers.get(made["Id"])


def running(engine: Any) -> dict[str, int]:
    """The containers of a test that serve, and the host's port of each over IPv4; asked of Docker."""
    found = {}
    for one in engine.api.containers(filters={"name": "fault-", "status": "running"}):
        published = [port["PublicPort"] for port in one["Ports"] if "." in port.get("IP", "")]
        found[one["Names"][0].lstrip("/")] = published[0] if published else 80
    return found


def registered(host: Host, part: str = "fault-", owner: str = OWNER) -> dict[str, int]:
    """What an owner has registered on the agent: container -> port."""
    rows = host.consul("/v1/agent/services")
    ids = {key: key.split(":") for key in rows}
    return {
        name: rows[key]["Port"]
        for key, (who, name, _) in ids.items()
        if who == owner and name.startswith(part)
    }


def takes_writes(host: Host) -> bool:
    """Register what is registered already; without a leader the agent refuses that, or does not answer."""
    host.consul("/v1/agent/service/register", "PUT", FOREIGN)
    return True


def assert_true(host: Host, engine: Any, *, within: float = BOUND) -> None:
    """Both registrars have told the agent what Docker has, *within* seconds from now."""
    wanted = running(engine)
    for owner in OWNERS:
        wait_until(
            lambda: registered(host, owner=owner) == wanted,  # noqa: B023
            within,
            message=f"{owner} has registered {wanted}",
        )


def test_two_hundred_containers_started_and_killed_at_once(
    host1: Host, engine: Any, registrar: Registrar
) -> None:
    with ThreadPoolExecutor(16) as pool:
        names = [f"fault-{number}" for number in range(200)]
        containers = list(pool.map(lambda name: create(engine, name), names))
        list(pool.map(lambda one: one.start(), containers))
        assert len(running(engine)) == 200
        assert_true(host1, engine)
        list(pool.map(lambda one: one.kill(), containers))
        assert running(engine) == {}
        assert_true(host1, engine)


def test_a_registrar_killed_at_random_points_of_five_hundred_events(
    host1: Host, engine: Any, registrar: Registrar
) -> None:
    containers = [create(engine, f"fault-{number}", published=number < 4) for number in range(12)]
    for one in containers:
        one.start()
    told = 0
    over = threading.Event()

    def listen(stream: Any) -> None:
        nonlocal told
        for _ in stream:
            told += 1

    def kill_now_and_then(dice: random.Random) -> int:
        kills = 0
        while not over.wait(dice.uniform(0.2, 1.5)):
            registrar.kill()
            registrar.start()
            kills += 1
        return kills

    mine = {"type": "container", "container": [one.id for one in containers]}
    stream = engine.events(decode=True, filters=mine)
    with ThreadPoolExecutor(2) as pool:
        listening = pool.submit(listen, stream)
        killing = pool.submit(kill_now_and_then, random.Random(7))
        try:
            act_at_random(containers, random.Random(20261123), until=lambda: told >= 500)
        finally:
            over.set()
            stream.close()
        listening.result()
        assert killing.result() > 3
    registrar.kill()
    lives = registrar.log.count("watching Docker")
    registrar.start()
    wait_until(lambda: registrar.log.count("watching Docker") > lives, PATIENCE)
    assert_true(host1, engine)


def status(container: Any) -> str:
    """What Docker says of a container now: it answers a pause before it has noted it."""
    container.reload()
    return str(container.status)


def act_at_random(containers: list[Any], dice: random.Random, *, until: Callable[[], bool]) -> None:
    """Do this and that to containers. What costs Docker little is most of it."""
    cheap = ["rename"] * 6 + ["pause"] * 4 + ["signal"] * 4
    names = (f"fault-new{number}" for number in itertools.count())
    paused: set[str] = set()
    while not until():
        one = dice.choice(containers)
        match "unpause" if one.id in paused else dice.choice([*cheap, "restart", "stop", "kill"]):
            case "rename":
                one.rename(next(names))
            case "pause":
                one.pause()
                wait_until(lambda: status(one) == "paused")  # noqa: B023
                paused.add(one.id)
            case "unpause":
                one.unpause()
                wait_until(lambda: status(one) == "running")  # noqa: B023
                paused.remove(one.id)
            case "signal":
                one.kill("WINCH")
            case "restart":
                one.restart()
            case "stop":
                one.stop()
                one.start()
            case "kill":
                one.kill()
                one.start()


def test_docker_s_event_stream_cut_and_its_socket_gone_and_back(
    host1: Host, engine: Any, registrar: Registrar
) -> None:
    stays, goes, restarts, sleeps = (create(engine, f"fault-{n}", published=True) for n in range(4))
    for one in (stays, goes, restarts, sleeps):
        one.start()
    assert_true(host1, engine)

    registrar.relay.cut()
    sleeps.pause()
    assert_true(host1, engine)

    for turn in range(2):
        registrar.relay.close()
        before = registered(host1)
        wait_until(lambda: registrar.log.count("waiting for Docker") > turn, PATIENCE)  # noqa: B023
        if turn:
            sleeps.unpause()
            goes.start()
        else:
            goes.stop()
        restarts.restart()
        create(engine, f"fault-new{turn}").start()
        assert registered(host1) == before, "who cannot see the containers changes nothing"
        registrar.relay.listen()
        assert_true(host1, engine)


def test_consul_without_a_leader(
    host1: Host, host2: Host, host3: Host, engine: Any, registrar: Registrar, services: frozenset[Endpoint]
) -> None:
    stays, goes = (create(engine, f"fault-{number}", published=True) for number in range(2))
    stays.start()
    goes.start()
    assert_true(host1, engine)
    others = (host2, host3)
    for host in others:
        host.stop("consul", signal.SIGKILL)
    try:
        wait_until(lambda: not host1.has_leader(), PATIENCE, message="the cluster has lost its leader")
        goes.stop()
        stays.restart()
        create(engine, "fault-new").start()
        noticed = ("waiting for the registry", "trying again")
        wait_until(lambda: any(words in registrar.log for words in noticed), PATIENCE)
    finally:
        for host in others:
            host.start_consul()
    host1.wait_for_leader()
    # A leader that is elected is not at work yet; the fault is over when the agent takes a write again.
    wait_until(lambda: takes_writes(host1), PATIENCE, ignoring=OSError, message="the agent takes writes")
    assert_true(host1, engine)
    # The next test finds a cluster that agrees again.
    assert_seen(host3, services, within=PATIENCE)
