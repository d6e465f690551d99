"""The protocol: paths, methods, headers, connections and how many of them."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.contract.subject import Subject
from tests.tools import wait_until


@pytest.mark.parametrize(
    "target",
    ["/v1/nothing", "/v1/agent", "/v1/catalog/services/", "/v1/agent/maintenance/?enable=1", "/v1/health/x"],
)
def test_unknown_paths(agent: Subject, target: str) -> None:
    answer = agent.ask("GET", target)
    unknown = "Invalid URL path: not a recognized HTTP API endpoint\n"
    assert (answer.status, answer.text) == agent.by_release(consul_1_8=(404, ""), current=(404, unknown))


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        ("PUT", "/v1/agent/services", "OPTIONS,GET"),
        ("DELETE", "/v1/catalog/nodes", "OPTIONS,GET"),
        ("HEAD", "/v1/catalog/nodes", "OPTIONS,GET"),
        ("POST", "/v1/agent/service/register", "OPTIONS,PUT"),
        ("GET", "/v1/agent/service/register", "OPTIONS,PUT"),
        ("GET", "/v1/agent/check/pass/x", "OPTIONS,PUT"),
        ("PUT", "/v1/agent/service/register/", "OPTIONS,GET"),
        ("PATCH", "/v1/catalog/register", "OPTIONS,PUT"),
    ],
)
def test_methods_not_allowed(agent: Subject, method: str, target: str, allowed: str) -> None:
    answer = agent.ask(method, target)
    assert (answer.status, answer.headers["Allow"]) == (405, allowed)
    assert answer.text == ("" if method == "HEAD" else f"method {method} not allowed")


def test_options(agent: Subject) -> None:
    answer = agent.ask("OPTIONS", "/v1/catalog/nodes")
    assert (answer.status, answer.headers["Allow"], answer.text) == (200, "OPTIONS,GET", "")


def test_headers_of_a_read(agent: Subject) -> None:
    answer = agent.ask("GET", "/v1/catalog/nodes")
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Consul-KnownLeader"] == "true"
    assert answer.headers["X-Consul-LastContact"] == "0"
    assert answer.headers["X-Consul-Effective-Consistency"] == "leader"
    assert answer.index >= 1
    policy = answer.headers["X-Consul-Default-ACL-Policy"]
    assert policy == agent.by_release(consul_1_8=None, current="allow")
    assert answer.headers["Date"].endswith(" GMT")
    missing = agent.ask("GET", "/v1/health/service/none")
    assert missing.index >= 1


def test_headers_of_a_blocking_read(agent: Subject) -> None:
    """The streaming that newer releases answer health reads with never says that it knows the leader."""
    for target, streams in (("/v1/health/service/none", True), ("/v1/catalog/services", False)):
        answer = agent.ask("GET", f"{target}?index={agent.index(target)}&wait=20ms")
        backend = answer.headers["X-Consul-Query-Backend"]
        if agent.is_embedded or agent.by_release(consul_1_8=True, current=not streams):
            assert answer.headers["X-Consul-KnownLeader"] == "true"
            assert backend in (None, "blocking-query")
        else:
            assert (answer.headers["X-Consul-KnownLeader"], backend) == ("false", "streaming")


def test_pretty(agent: Subject) -> None:
    assert agent.ask("GET", "/v1/catalog/datacenters?pretty").text == '[\n    "dc1"\n]\n'


def test_a_connection_serves_many_requests(agent: Subject) -> None:
    connection = http.client.HTTPConnection(agent.host, agent.port, timeout=10)
    connection.connect()
    opened = connection.sock
    for method, target, body, status in [
        ("PUT", "/v1/agent/service/register", {"Name": "web"}, 200),
        ("GET", "/v1/agent/services", None, 200),
        ("PUT", "/v1/agent/service/register", {"Name": 5}, 400),
        ("GET", "/v1/nothing", None, 404),
        ("POST", "/v1/agent/services", {"ignored": True}, 405),
        ("HEAD", "/v1/agent/services", None, 405),
        ("PUT", "/v1/agent/service/deregister/web", None, 200),
    ]:
        connection.request(method, target, None if body is None else json.dumps(body))
        response = connection.getresponse()
        response.read()
        assert response.status == status
        assert connection.sock is opened
    connection.close()


def test_requests_sent_before_the_answers_are_read(agent: Subject) -> None:
    """RFC 9112 section 9.3.2; also while the first of them blocks."""
    index = agent.index("/v1/health/service/none")
    with socket.create_connection((agent.host, agent.port), timeout=10) as connection:
        blocking = f"GET /v1/health/service/none?index={index}&wait=200ms HTTP/1.1\r\nHost: x\r\n\r\n"
        last = "GET /v1/catalog/datacenters HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        connection.sendall((blocking + last).encode())
        with connection.makefile("rb") as stream:
            text = stream.read().decode()
    assert text.count("HTTP/1.1 200 OK") == 2
    assert text.index("X-Consul-Index") < text.index("dc1")


def test_what_is_no_http(agent: Subject) -> None:
    with socket.create_connection((agent.host, agent.port), timeout=10) as connection:
        connection.sendall(b"what is this\r\n\r\n")
        with connection.makefile("rb") as stream:
            text = stream.read()
    assert text.startswith(b"HTTP/1.1 400 ")


LIMIT = 200


@pytest.fixture
def sockets() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def _connect(agent: Subject, client: str, sockets: ExitStack) -> socket.socket:
    """A connection from another loopback address, so that nobody else's count."""
    return sockets.enter_context(
        socket.create_connection((agent.host, agent.port), timeout=5, source_address=(client, 0))
    )


def _served(connection: socket.socket) -> bytes:
    """The first line that the agent says on this connection; empty when it hangs up without a word."""
    try:
        connection.sendall(b"GET /v1/status/leader HTTP/1.1\r\nHost: x\r\n\r\n")
        return connection.recv(4096).partition(b"\r\n")[0]
    except (ConnectionResetError, BrokenPipeError):
        return b""


def test_200_connections_from_one_address(agent: Subject, sockets: ExitStack) -> None:
    first = _connect(agent, "127.0.0.2", sockets)
    for _ in range(LIMIT - 1):
        _connect(agent, "127.0.0.2", sockets)
    assert _served(first) == b"HTTP/1.1 200 OK"

    refused = _connect(agent, "127.0.0.2", sockets)
    if agent.by_release(consul_1_8=True, current=False):
        assert _served(refused) == b""
    else:
        with refused.makefile("rb") as stream:
            text = stream.read()
        assert text.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
        assert text.endswith(
            b"\r\n\r\nYour IP is issuing too many concurrent connections, please rate limit your calls\n"
        )
    assert _served(_connect(agent, "127.0.0.3", sockets)) == b"HTTP/1.1 200 OK"

    first.close()
    wait_until(lambda: _served(_connect(agent, "127.0.0.2", sockets)) == b"HTTP/1.1 200 OK")


def test_whoever_leaves_a_blocking_read_gives_the_place_back(agent: Subject, sockets: ExitStack) -> None:
    # 1.8 notices when the read ends, newer releases at once.
    wait = agent.by_release(consul_1_8="1s", current="60s")
    target = f"/v1/health/service/none?index={agent.index('/v1/health/service/none')}&wait={wait}"
    blocked = _connect(agent, "127.0.0.4", sockets)
    blocked.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    for _ in range(LIMIT - 1):
        _connect(agent, "127.0.0.4", sockets)
    wait_until(lambda: _served(_connect(agent, "127.0.0.4", sockets)) != b"HTTP/1.1 200 OK")
    blocked.close()
    wait_until(lambda: _served(_connect(agent, "127.0.0.4", sockets)) == b"HTTP/1.1 200 OK")
