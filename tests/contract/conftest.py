"""The two agents under one interface, and tools for reads that block."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from discovery.agent import Agent
from tests.contract.subject import Blocked, Subject
from tests.contract.web import Web
from tests.tools import ConsulAgent


def _clean(agent: Subject) -> None:
    """Take back what a test did beside services and checks of the agent, which `consul_agent` clears."""
    agent.put("/v1/agent/maintenance?enable=false")
    own = agent.node()
    for node in agent.get("/v1/catalog/nodes"):
        if node["Node"] != own:
            agent.put("/v1/catalog/deregister", {"Node": node["Node"]})


@pytest.fixture(params=["embedded", "consul"])
def agent(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """Each agent in turn, with no services."""
    if request.param == "embedded":
        with Agent(http=("127.0.0.1", 0)) as embedded:
            yield Subject("embedded", *embedded.http, (1, 20))
    else:
        consul: ConsulAgent = request.getfixturevalue("consul_agent")
        subject = Subject("consul", "127.0.0.1", consul.http_port, consul.version)
        yield subject
        _clean(subject)


Block = Callable[..., Blocked]


@pytest.fixture
def block(agent: Subject) -> Iterator[Block]:
    """Start a blocking read of a target, from its present index on; ended before the test is."""
    with ExitStack() as reads:

        def start(target: str, *, wait: str = "10s", index: int | None = None) -> Blocked:
            blocked = Blocked(agent, target, wait=wait, index=index)
            reads.callback(blocked.join)
            return blocked

        yield start


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    thread.join()
    server.server_close()
