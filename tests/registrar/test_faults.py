"""A real Consul that hangs, dies, forgets and refuses, and a registrar that is killed, over a fake Docker.

After each fault the agent has what runs within 2 s of the fault's end, and nothing foreign was touched.
"""

from __future__ import annotations

import logging
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from discovery.backends import Backend, open_backend
from discovery.config import Config
from discovery.errors import RegistryUnavailable
from tests.registrar.fake_docker import FakeDocker
from tests.registrar.running import Running
from tests.tools import ConsulAgent, wait_until

BOUND = 2.0  # s

FOREIGN = {"ID": "by-hand", "Name": "by-hand", "Port": 1, "Meta": {"mine": "yes"}}


@pytest.fixture
def docker() -> FakeDocker:
    return FakeDocker()


@pytest.fixture
def agent(start_consul: Callable[..., ConsulAgent]) -> ConsulAgent:
    agent = start_consul()
    agent.request("PUT", "/v1/agent/service/register", FOREIGN)
    return agent


@pytest.fixture
def backend(agent: ConsulAgent) -> Iterator[Backend]:
    with closing(open_backend(agent.uri, Config())) as backend:
        yield backend


def table(agent: ConsulAgent) -> dict[str, int]:
    rows = agent.request("GET", "/v1/agent/services")
    foreign = rows.pop("by-hand", None)
    assert foreign is None or foreign["Meta"] == {"mine": "yes"}
    return {key: row["Port"] for key, row in rows.items()}


def see(agent: ConsulAgent, docker: FakeDocker, *names: str, timeout: float = BOUND) -> None:
    wanted = {f"host-1:{name}:80": docker.port_of(name) for name in names}
    wait_until(lambda: table(agent) == wanted, timeout, message=f"registered is {wanted}")


@contextmanager
def hanging(agent: ConsulAgent) -> Iterator[None]:
    """Stop the agent's process: it accepts connections, and answers nothing."""
    assert agent._process is not None
    os.kill(agent._process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(agent._process.pid, signal.SIGCONT)


def test_an_agent_that_hangs(docker: FakeDocker, agent: ConsulAgent, backend: Backend) -> None:
    with Running(docker, backend) as running:
        docker.run("stays", publish=["80/tcp"])
        docker.run("goes", publish=["80/tcp"])
        see(agent, docker, "stays", "goes")
        with hanging(agent):
            docker.remove("goes")
            for number in range(20):
                docker.run(f"new{number}", publish=["80/tcp"])
            wait_until(lambda: running.reconciler._queue.under_way() > 0.3)
        see(agent, docker, "stays", *(f"new{number}" for number in range(20)))


def test_it_ends_promptly_while_the_agent_hangs(
    docker: FakeDocker, agent: ConsulAgent, backend: Backend
) -> None:
    with Running(docker, backend), hanging(agent):
        pass


def test_81_334_an_agent_that_is_killed_and_forgets(
    docker: FakeDocker, agent: ConsulAgent, backend: Backend
) -> None:
    with Running(docker, backend):
        docker.run("stays", publish=["80/tcp"])
        docker.run("goes", publish=["80/tcp"])
        see(agent, docker, "stays", "goes")
        for _ in range(2):
            agent.restart()
            see(agent, docker, "stays", "goes")
        agent.kill()
        docker.remove("goes")
        docker.run("new", publish=["80/tcp"])
        agent.start()
        see(agent, docker, "stays", "new")


def test_264_327_440_593_an_agent_that_is_not_there_yet(docker: FakeDocker, agent: ConsulAgent) -> None:
    agent.kill()
    docker.run("web", publish=["80/tcp"])
    with closing(open_backend(agent.uri, Config())) as backend, Running(docker, backend):
        agent.start()
        see(agent, docker, "web")


def test_no_fault_of_others_leaves_a_traceback(
    docker: FakeDocker, agent: ConsulAgent, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "registrar")
    with Running(docker, backend):
        docker.run("web", publish=["80/tcp"])
        see(agent, docker, "web")
        docker.go_away()
        agent.restart()
        docker.come_back()
        docker.run("shop", publish=["80/tcp"])
        see(agent, docker, "web", "shop")
    assert not [record for record in caplog.records if record.exc_info]
    assert len(caplog.records) < 20, "an outage is a line or two, not one for each attempt"


def test_a_registrar_killed_at_random_points(docker: FakeDocker, agent: ConsulAgent) -> None:
    """Each life ends in the middle of its writes: they fail from one moment on, as after SIGKILL."""
    random_points = random.Random(7)
    names: list[str] = []
    for life in range(25):
        for _ in range(20):  # 500 events in all
            if names and random_points.random() < 0.4:
                docker.remove(names.pop(random_points.randrange(len(names))))
            else:
                names.append(f"web{life}-{len(names)}-{random_points.random()}")
                docker.run(names[-1], publish=["80/tcp"])
        with closing(open_backend(agent.uri, Config())) as backend:
            dying = Dying(backend, random_points.randrange(1, 12))
            with Running(docker, dying) as running:  # type: ignore[arg-type]
                wait_until(lambda: dying.dead or running.reconciler.idle())  # noqa: B023
    assert len(names) > 30
    with closing(open_backend(agent.uri, Config())) as backend, Running(docker, backend):
        see(agent, docker, *names, timeout=10)


class Dying:
    """A backend whose writes get through only until it dies."""

    def __init__(self, backend: Backend, writes: int) -> None:
        self._backend = backend
        self._left = writes

    @property
    def dead(self) -> bool:
        return self._left <= 0

    def __getattr__(self, name: str) -> object:
        if name in ("register", "deregister"):
            self._left -= 1
            if self._left < 0:
                raise RegistryUnavailable("killed")
        return getattr(self._backend, name)
