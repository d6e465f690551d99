"""A registry and servers for the integrations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from discovery import Client, Config
from discovery.agent import Agent
from discovery.backends import Backend, open_backend
from tests.discovery.integrations.fleet import Fleet, Server
from tests.tools import Authority


@pytest.fixture(scope="session")
def shared_servers() -> Iterator[list[Server]]:
    """Three servers for the tests that leave them alive."""
    with ExitStack() as servers:
        yield [servers.enter_context(Server()) for _ in range(3)]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and certificate of ``web.service.consul`` in one file; it is its own authority."""
    folder = tmp_path_factory.mktemp("tls")
    both = folder / "both.pem"
    both.write_text("".join(path.read_text() for path in Authority(folder).self_signed("web.service.consul")))
    return both


@pytest.fixture
def agent() -> Iterator[Agent]:
    with Agent(http=("127.0.0.1", 0)) as agent:
        yield agent


@pytest.fixture
def backend(agent: Agent) -> Iterator[Backend]:
    backend = open_backend(agent.uri, Config())
    yield backend
    backend.close()


@pytest.fixture
def client(backend: Backend) -> Iterator[Client]:
    with Client(backend=backend) as client:
        yield client


@pytest.fixture
def fleet(backend: Backend) -> Fleet:
    """Instances of the service ``web``; none yet."""
    return Fleet(backend)


@pytest.fixture
def servers(fleet: Fleet, shared_servers: list[Server]) -> list[Server]:
    """Three servers, registered as ``web``."""
    for server in shared_servers:
        fleet.register(server.port)
    return shared_servers


@pytest.fixture(scope="module")
def shared_grpc_servers() -> Iterator[list[Server]]:
    with ExitStack() as servers:
        yield [servers.enter_context(Server(script="grpc_server.py")) for _ in range(3)]


@pytest.fixture
def grpc_servers(fleet: Fleet, shared_grpc_servers: list[Server]) -> list[Server]:
    """Three gRPC servers, registered as ``web``."""
    for server in shared_grpc_servers:
        fleet.register(server.port)
    return shared_grpc_servers


@pytest.fixture
def start_server() -> Iterator[Callable[..., Server]]:
    """Start a server of the test's own; arguments as ``Server``'s."""
    with ExitStack() as servers:
        yield lambda *arguments, **options: servers.enter_context(Server(*arguments, **options))
