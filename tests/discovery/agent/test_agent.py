"""The agent as a process has it: its address, its threads and sockets, its end."""

from __future__ import annotations

import http.client
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from discovery.agent import Agent, topics
from discovery.agent.http import MAX_BODY
from discovery.errors import ConfigurationError
from tests.contract.subject import Blocked, Subject
from tests.tools import wait_until


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Threads and descriptors are as many afterwards as before."""
    threads, descriptors = threading.active_count(), _descriptors()
    yield
    assert threading.active_count() == threads
    assert _descriptors() == descriptors


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def agent() -> Iterator[Agent]:
    with Agent(http=("127.0.0.1", 0)) as agent:
        yield agent


def subject(agent: Agent) -> Subject:
    return Subject("embedded", *agent.http, (1, 20))


def test_says_where_it_is(agent: Agent) -> None:
    host, port = agent.http
    assert port > 0
    assert (agent.url, agent.uri) == (f"http://{host}:{port}", f"consul://{host}:{port}")
    assert repr(agent) == f"<Agent {agent.node.name} {agent.url} running>"
    assert subject(agent).get("/v1/agent/self")["Config"]["NodeName"] == socket.gethostname()


@pytest.mark.parametrize(("bound", "url"), [("0.0.0.0", "http://127.0.0.1:{}"), ("::1", "http://[::1]:{}")])
def test_listens_on_other_addresses(bound: str, url: str) -> None:
    with Agent(http=(bound, 0), node="n", dc="d", address="10.9.8.7") as agent:
        assert agent.url == url.format(agent.http[1])
        reachable = Subject("embedded", "127.0.0.1" if bound == "0.0.0.0" else bound, agent.http[1], (1, 20))
        (node,) = reachable.get("/v1/catalog/nodes")
        assert (node["Node"], node["Datacenter"], node["Address"]) == ("n", "d", "10.9.8.7")
        assert reachable.get("/v1/status/leader") == "10.9.8.7:8300"


@pytest.fixture
def own_addresses() -> tuple[str, str]:
    """Two loopback addresses that no other process uses, so that every port of theirs is free."""
    pid = os.getpid()
    return f"127.77.{pid >> 8 & 255}.{pid & 255}", f"127.78.{pid >> 8 & 255}.{pid & 255}"


def test_listens_on_several_addresses(own_addresses: tuple[str, str]) -> None:
    first, second = own_addresses
    with Agent(http=(first, 8500), also=[(second, 8500)]) as agent:
        assert agent.url == f"http://{first}:8500"
        subject(agent).register("web")
        assert set(Subject("embedded", second, 8500, (1, 20)).get("/v1/agent/services")) == {"web"}
    for host in own_addresses:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, 8500))


def test_an_address_that_is_taken_leaves_none_open(agent: Agent, own_addresses: tuple[str, str]) -> None:
    first, _ = own_addresses
    with pytest.raises(ConfigurationError, match=rf"127\.0\.0\.1 port {agent.http[1]}"):
        Agent(http=(first, 8500), also=[agent.http]).start()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((first, 8500))


def test_an_ipv6_node() -> None:
    with Agent(http=("127.0.0.1", 0), address="fd00::1") as agent:
        (node,) = subject(agent).get("/v1/catalog/nodes")
        assert node["TaggedAddresses"] == dict.fromkeys(("lan", "lan_ipv6", "wan", "wan_ipv6"), "fd00::1")


def test_starts_and_ends_at_once() -> None:
    started = time.monotonic()
    with Agent(http=("127.0.0.1", 0)):
        pass
    assert time.monotonic() - started < 0.5


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.1", "no.such.invalid"])
def test_an_address_that_cannot_be_had(agent: Agent, host: str) -> None:
    port = agent.http[1]
    with pytest.raises(ConfigurationError, match=rf"cannot listen on {host} port {port}: .+; give another"):
        Agent(http=(host, port)).start()


def test_closing_ends_blocking_reads(agent: Agent) -> None:
    reads = [Blocked(subject(agent), "/v1/health/service/web", wait="60s") for _ in range(20)]
    waiting = agent._life._waiting  # type: ignore[union-attr]
    wait_until(lambda: sum(map(len, list(waiting.values()))) == 20)
    # One more sends its next request while the first one blocks: its socket says no more that it hung up.
    early = socket.create_connection(agent.http)
    request = b"GET /v1/health/service/early?index=1&wait=60s HTTP/1.1\r\nHost: x\r\n\r\n"
    early.sendall(request)
    (peer,) = wait_until(lambda: waiting.get(topics.health("early"), set()))
    early.sendall(request)
    wait_until(lambda: not peer._watch_connection)
    started = time.monotonic()
    agent.close()
    assert time.monotonic() - started < 1
    for read in reads:
        with pytest.raises((OSError, http.client.HTTPException)):
            read.answer()
    early.close()


def test_closing_hangs_up_on_idle_connections(agent: Agent) -> None:
    with socket.create_connection(agent.http, timeout=5) as idle:
        subject(agent).get("/v1/agent/self")
        agent.close()
        assert idle.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(agent.http)


def test_closing_ends_checks(agent: Agent) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        subject(agent).register("web", Check={"HTTP": url, "Interval": "1s", "Timeout": "60s"})
        connection, _ = listener.accept()
        with connection:
            started = time.monotonic()
            agent.close()
            assert time.monotonic() - started < 1


def test_comes_back_empty_at_the_same_address(agent: Agent) -> None:
    address = agent.http
    for _ in range(3):
        subject(agent).register("web", Check={"TTL": "10s"})
        agent.close()
        agent.close()
        agent.start()
        agent.start()
        assert agent.http == address
        assert subject(agent).get("/v1/agent/services") == {}
        assert subject(agent).get("/v1/agent/checks") == {}


def test_waits_for_its_end(agent: Agent) -> None:
    assert not agent.wait(0.0)
    closer = threading.Thread(target=agent.close)
    closer.start()
    assert agent.wait(5.0)
    closer.join()
    assert "closed" in repr(agent)


def _say(agent: Agent, raw: bytes) -> bytes:
    """All that the agent answers to these bytes before it hangs up."""
    with socket.create_connection(agent.http, timeout=5) as connection:
        connection.sendall(raw)
        with connection.makefile("rb") as stream:
            return stream.read()


@pytest.mark.parametrize(
    ("headers", "status", "text"),
    [
        (f"Content-Length: {MAX_BODY + 1}", 413, f"has {MAX_BODY + 1} bytes, at most {MAX_BODY} are read"),
        ("Content-Length: 99999999999999999999", 413, "the body has 99999999999999999999 bytes"),
        ("Content-Length: x", 400, "Content-Length 'x' is not a number of bytes"),
        ("Content-Length: -1", 400, "Content-Length '-1' is not a number of bytes"),
        ("Transfer-Encoding: chunked", 411, "send the body with a Content-Length"),
    ],
)  # fmt: skip
def test_bodies_that_are_not_read(agent: Agent, headers: str, status: int, text: str) -> None:
    said = _say(agent, f"PUT /v1/agent/service/register HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n".encode())
    assert said.startswith(f"HTTP/1.1 {status} ".encode())
    assert text.encode() in said
    assert b"Connection: close\r\n" in said


def test_a_body_that_breaks_off(agent: Agent) -> None:
    with socket.create_connection(agent.http, timeout=5) as connection:
        connection.sendall(b"PUT /v1/agent/service/register HTTP/1.1\r\nContent-Length: 14\r\n\r\n{")
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(4096) == b""
    assert subject(agent).get("/v1/agent/services") == {}


def test_http_1_0_is_answered_and_closed(agent: Agent) -> None:
    said = _say(agent, b"GET /v1/status/leader HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 200 OK\r\n")
    assert said.endswith(b'"127.0.0.1:8300"')


def test_a_client_that_waits_for_leave_to_send(agent: Agent) -> None:
    """RFC 9110 section 10.1.1; curl does with bodies over 1 MB, some proxies always."""
    body = b'{"Name":"web"}'
    with socket.create_connection(agent.http, timeout=5) as connection:
        connection.sendall(
            b"PUT /v1/agent/service/register HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        assert connection.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        with connection.makefile("rb") as stream:
            assert stream.read().startswith(b"HTTP/1.1 200 OK\r\n")


def test_many_writers_and_readers_at_once(agent: Agent) -> None:
    """Nothing is lost between an answer and the next question: each reader sees what was written last."""
    wanted = 40
    seen: list[int] = []

    def read() -> None:
        index = count = 0
        while count < wanted:
            answer = subject(agent).ask("GET", f"/v1/health/service/web?index={index}&wait=20s", timeout=30)
            index, count = answer.index, len(answer.json)
        seen.append(count)

    def write(writer: int) -> None:
        for number in range(wanted // 4):
            subject(agent).register("web", ID=f"{writer}-{number}")

    threads = [threading.Thread(target=read) for _ in range(8)]
    threads += [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [wanted] * 8
