"""What is particular to one library."""

from __future__ import annotations

import asyncio
import gc
import io
import os
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Any

import aiohttp
import httpx
import pytest
import requests
import urllib3

from discovery import Client
from discovery.agent import Agent
from discovery.integrations.aiohttp import Middleware
from discovery.integrations.httpx import Transport
from discovery.integrations.requests import Adapter, Session, mount
from discovery.integrations.urllib3 import PoolManager
from tests.discovery.integrations.fleet import Fleet, Server, connections_to
from tests.tools import free_port, wait_until

URL = "http://web.service.consul"


# --- requests, urllib3: they read the body before they hand it over


@pytest.mark.parametrize(("stream", "asked"), [(False, 3), (True, 1)])
def test_an_answer_that_breaks_off_in_its_body_is_asked_for_elsewhere(
    client: Client, servers: list[Server], stream: bool, asked: int
) -> None:
    before = total(servers, "/half")
    with Session(client=client) as session, pytest.raises(requests.exceptions.ChunkedEncodingError):
        session.get(f"{URL}/half", timeout=5, stream=stream).json()
    assert total(servers, "/half") == before + asked

    before = total(servers, "/half")
    with PoolManager(client=client) as manager, pytest.raises(urllib3.exceptions.ProtocolError):
        manager.request("GET", f"{URL}/half", preload_content=not stream).json()
    assert total(servers, "/half") == before + asked


def total(servers: list[Server], path: str) -> int:
    """Return how many requests for *path* the servers have seen."""
    return sum(server.ask("/count").get(path, 0) for server in servers)


# --- requests


def test_a_plain_session_takes_part_once_mounted(client: Client, servers: list[Server]) -> None:
    with requests.Session() as session:
        mount(session, client=client)
        met = {session.get(f"{URL}/", params={"a": "b"}, timeout=5).json()["port"] for _ in range(3)}
    assert met == {server.port for server in servers}


def test_a_session_can_be_pickled(
    agent: Agent, servers: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(attempts=2)
    copy = pickle.loads(pickle.dumps(session))
    adapter = copy.get_adapter(f"{URL}/")
    assert isinstance(adapter, Adapter)
    assert adapter._balancer.attempts == 2
    copy.close()
    session.close()


def test_proxies_are_for_other_hosts(client: Client, servers: list[Server]) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    with Session(client=client) as session:
        session.proxies = {"http": nowhere}
        assert session.get(f"{URL}/", timeout=5).ok
        with pytest.raises(requests.ConnectionError):
            session.get("http://example.invalid/", timeout=5)


def test_a_body_that_can_be_read_once_is_not_sent_twice(client: Client, servers: list[Server]) -> None:
    before = total(servers, "/hang-up")
    with Session(client=client) as session, pytest.raises(requests.ConnectionError):
        session.put(f"{URL}/hang-up", data=io.BytesIO(b"once"), timeout=5)
    assert total(servers, "/hang-up") == before + 1


def test_the_response_is_of_the_request_as_it_was_made(client: Client, servers: list[Server]) -> None:
    with Session(client=client) as session:
        response = session.get(f"{URL}/path", timeout=5)
        assert response.url == response.request.url == f"{URL}/path"
        assert "Host" not in response.request.headers
        given = session.get(f"{URL}/", headers={"Host": "virtual.example"}, timeout=5)
        assert given.json()["headers"]["host"] == "virtual.example"


# --- urllib3


def test_a_pool_of_the_manager_can_be_used_by_itself(client: Client, servers: list[Server]) -> None:
    with PoolManager(client=client) as manager:
        pool = manager.connection_from_url(f"{URL}/")
        met = {pool.request("GET", "/path").json()["port"] for _ in range(3)}
        assert met == {server.port for server in servers}
        assert pool.request("GET", "/redirect?http://example.invalid/").status == 302


# --- httpx


def test_a_transport_is_mounted_for_services(client: Client, servers: list[Server]) -> None:
    with httpx.Client(mounts={"all://*.service.consul": Transport(client=client)}, timeout=5) as http:
        response = http.get(f"{URL}/path")
    assert str(response.url) == str(response.request.url) == f"{URL}/path"


def test_a_mounted_transport_beats_the_environments_proxy(
    client: Client, servers: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    with httpx.Client(mounts={"all://*.service.consul": Transport(client=client)}, timeout=5) as http:
        assert http.get(f"{URL}/").is_success


# --- aiohttp


def test_all_requests_under_way_on_an_instance_that_dies_are_answered_by_others(
    client: Client, fleet: Fleet, start_server: Callable[..., Server]
) -> None:
    servers = [start_server() for _ in range(3)]
    for server in servers:
        fleet.register(server.port)
    victim, *others = servers

    async def steps() -> list[int]:
        async with aiohttp.ClientSession(middlewares=(Middleware(client=client),)) as session:

            async def ask() -> int:
                async with session.get(f"{URL}/wait") as response:
                    await response.read()
                    return response.status

            asked = [asyncio.create_task(ask()) for _ in range(90)]
            await asyncio.to_thread(
                wait_until, lambda: total(servers, "/wait") == 90, 30, message="all are under way"
            )
            assert victim.ask("/count")["/wait"] > 20
            await asyncio.to_thread(victim.kill)
            for server in others:
                await asyncio.to_thread(server.ask, "/go")
            return await asyncio.gather(*asked)

    assert asyncio.run(steps()) == [200] * 90


def test_one_middleware_serves_sessions_of_several_loops(
    client: Client, fleet: Fleet, servers: list[Server]
) -> None:
    middleware = Middleware(client=client)

    async def steps() -> int:
        async with aiohttp.ClientSession(middlewares=(middleware,)) as session:
            for _ in range(6):
                async with session.get(f"{URL}/") as response:
                    await response.read()
            assert [connections_to(server.port) for server in servers] == [1, 1, 1]
            fleet.deregister(servers[0].port)
            while connections_to(servers[0].port):
                await asyncio.sleep(0.001)  # the loop must turn: it is what closes them
            fleet.register(servers[0].port)
            return connections_to(servers[1].port)

    for _ in range(2):
        assert asyncio.run(asyncio.wait_for(steps(), 10)) == 1
    middleware.close()


# --- all of them: life and death


@pytest.mark.parametrize("make", [Session, PoolManager], ids=["requests", "urllib3"])
def test_a_client_that_nobody_closes_takes_its_connections_with_it(
    client: Client, servers: list[Server], make: Callable[..., Any]
) -> None:
    http = make(client=client)
    http.request("GET", f"{URL}/", timeout=5)
    assert sum(connections_to(server.port) for server in servers) == 1
    gone = weakref.ref(http)
    del http
    gc.collect()
    assert gone() is None
    assert sum(connections_to(server.port) for server in servers) == 0


def test_a_forked_child_has_connections_of_its_own(client: Client, servers: list[Server]) -> None:
    session = Session(client=client)
    for _ in range(3):
        session.get(f"{URL}/", timeout=5)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            asked = [session.get(f"{URL}/child", timeout=5).json()["path"] for _ in range(3)]
            doubled = [connections_to(server.port) for server in servers] == [2, 2, 2]
            code = 0 if asked == ["/child"] * 3 and doubled else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [session.get(f"{URL}/", timeout=5).json()["path"] for _ in range(3)] == ["/"] * 3
    assert [connections_to(server.port) for server in servers] == [1, 1, 1]
    session.close()


@pytest.mark.parametrize(
    ("module", "library", "extra"),
    [
        ("requests", "requests", "requests"),
        ("httpx", "httpx", "httpx"),
        ("httpx2", "httpx2", "httpx2"),
        ("aiohttp", "aiohttp", "aiohttp"),
        ("grpc", "grpc", "grpc"),
        ("grpc_aio", "grpc", "grpc"),
        ("prometheus", "prometheus_client", "prometheus"),
        ("opentelemetry", "opentelemetry", "opentelemetry"),
    ],
)
def test_without_its_library_a_module_says_what_to_install(module: str, library: str, extra: str) -> None:
    program = (
        f"import sys; sys.modules[{library!r}] = None\n"
        f"try: import discovery.integrations.{module}\n"
        "except ImportError as exc: print(exc)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert told.startswith(f"discovery.integrations.{module} needs ")
    assert f"pip install 'portcall[{extra}]'" in told
