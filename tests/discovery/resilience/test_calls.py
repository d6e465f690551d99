"""Calls to real servers that a real Consul knows of, some of which die."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from discovery.aio import AsyncClient
from discovery.client import Client
from discovery.config import Config
from discovery.errors import RegistryError
from discovery.model import Instance
from tests.discovery.rawserver import Peer, RawServer, answer
from tests.tools import ConsulAgent, wait_until


def serve(peer: Peer) -> None:
    while peer.request():
        peer.send(answer({"port": peer.server.port}))


@pytest.fixture
def servers(consul_agent: ConsulAgent) -> Iterator[list[tuple[RawServer, Callable[[], None]]]]:
    """Three servers and how to kill each; without a check, so that only calls find out which one is dead."""
    with ExitStack() as all_of_them:
        started = []
        for n in range(3):
            one = all_of_them.enter_context(ExitStack())
            server = one.enter_context(RawServer(serve))
            row = {"ID": f"web-{n}", "Name": "web", "Port": server.port, "Address": "127.0.0.1"}
            consul_agent.request("PUT", "/v1/agent/service/register", row)
            started.append((server, one.close))
        yield started


@pytest.fixture
def settings(consul_agent: ConsulAgent) -> Config:
    return Config.from_env({"CONSUL_HTTP_ADDR": consul_agent.address, "DISCOVERY_DNS": "off"}).but(share=None)


def ask(instance: Instance) -> int:
    with socket.create_connection(instance, 5.0) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        if not sock.recv(4096).startswith(b"HTTP/1.1 200"):
            raise ConnectionResetError("no answer")
    return instance.port


async def ask_in_a_loop(instance: Instance) -> int:
    return await asyncio.to_thread(ask, instance)


def test_20_no_call_fails_when_one_of_three_servers_dies(servers, settings):
    with Client(settings) as client:
        first = Counter(client.call("web", ask) for _ in range(30))
        assert sorted(first.values()) == [10, 10, 10]
        dead, kill = servers[0]
        kill()
        later = Counter(client.call("web", ask) for _ in range(300))
        assert set(later) == {server.port for server, _ in servers[1:]}
        assert abs(later[servers[1][0].port] - 150) <= 10
        assert dead.port not in {client.lookup("web").port for _ in range(30)}  # ejected after a few
        assert len(client.lookup_all("web")) == 3  # as the registry says


def test_20_nor_when_it_is_awaited(servers, settings):
    async def main() -> Counter[int]:
        async with AsyncClient(settings) as client:
            await client.lookup("web", timeout=5.0)
            servers[0][1]()
            return Counter([await client.call("web", ask_in_a_loop) for _ in range(100)])

    assert set(asyncio.run(main())) == {server.port for server, _ in servers[1:]}


def test_the_nearest_and_another_data_centre_are_questions_that_consul_understands(servers, settings):
    with Client(settings) as client:
        assert len(client.lookup_all("web", near="_agent", timeout=5.0)) == 3
        assert client.lookup("web", near="_agent").port == client.lookup("web", near="_agent").port
        assert client.lookup("web", dc="dc1", timeout=5.0).dc == "dc1"
        with pytest.raises(RegistryError, match="No path to datacenter"):
            client.lookup("web", dc="nowhere", timeout=5.0)
        assert client.lookup("web", dc="nowhere", failover=["dc1"]).dc == "dc1"
        wait_until(lambda: not client.lookup("web").stale)  # a wrong data centre is no outage
