"""One connection to an agent, against servers that misbehave in every way we know."""

from __future__ import annotations

import base64
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from discovery.backends.consul import transport
from discovery.backends.consul.codec import request
from discovery.backends.consul.transport import Connection, Pool
from discovery.config import ConsulConfig
from discovery.errors import (
    AccessDenied,
    ConfigurationError,
    DiscoveryError,
    RegistryTimeout,
    RegistryUnavailable,
)
from tests.discovery.rawserver import Peer, RawServer, answer, blackhole
from tests.tools import Authority, free_port, wait_until

ASK = request("GET", "catalog/services")
BLOCK = request("GET", "catalog/services", index="7", wait="55s")
PATIENCE = 0.15  # s; what a test gives a server that will not answer
PROMPT = 1.5  # s; generous for a loaded machine, and less than any time-out that must not be waited for


def serve_all(body: object = None, headers: str = "") -> Callable[[Peer], None]:
    """Answer every request alike, on one kept-alive connection."""

    def serve(peer: Peer) -> None:
        while peer.request():
            peer.send(answer({} if body is None else body, headers=headers))

    return serve


@pytest.fixture
def connect() -> Iterator[Callable[[ConsulConfig], Connection]]:
    """Make connections that are closed when the test ends."""
    made: list[Connection] = []

    def make(config: ConsulConfig) -> Connection:
        made.append(Connection(config))
        return made[-1]

    yield make
    for connection in made:
        connection.close()


def failure(connection: Connection, *, timeout: float = 5.0) -> DiscoveryError:
    with pytest.raises(DiscoveryError) as caught:
        connection.call(ASK, timeout=timeout)
    return caught.value


# --- what works ----------------------------------------------------------------------------------------


def test_an_answer_is_parsed_and_the_connection_is_kept(connect):
    with RawServer(serve_all({"web": ["v1"]}, headers="X-Consul-Index: 12\r\n")) as server:
        connection = connect(server.config)
        for _ in range(3):
            reply = connection.call(ASK, timeout=5)
            assert reply.raw == {"web": ["v1"]}
            assert reply.headers["X-Consul-Index"] == "12"
    assert server.accepted == 1
    assert server.requests[0].startswith("GET /v1/catalog/services HTTP/1.1\r\n")


def test_a_write_carries_its_body_and_may_be_answered_with_nothing(connect):
    with RawServer(serve_all(b"")) as server:
        reply = connect(server.config).call(
            request("PUT", "agent/service/register", body={"Name": "web"}), timeout=5
        )
    assert reply.raw is None
    assert "Content-Type: application/json" in server.requests[0]
    assert server.requests[0].endswith('{"Name":"web"}')


def test_a_chunked_answer_is_put_together(connect):
    def serve(peer: Peer) -> None:
        peer.request()
        peer.send(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            b'3\r\n{"w\r\n6\r\neb":[]\r\n1\r\n}\r\n0\r\n\r\n'
        )

    with RawServer(serve) as server:
        assert connect(server.config).call(ASK, timeout=5).raw == {"web": []}


def test_a_unix_socket_is_spoken_to_as_well(connect, tmp_path):
    with RawServer(serve_all(["here"]), unix=str(tmp_path / "consul.sock")) as server:
        assert connect(server.config).call(ASK, timeout=5).raw == ["here"]


def test_a_missing_unix_socket_is_named(connect, tmp_path):
    error = failure(connect(ConsulConfig(socket_path=str(tmp_path / "none.sock"))))
    assert isinstance(error, RegistryUnavailable)
    assert f"unix://{tmp_path}/none.sock" in str(error)
    assert "no such file or directory" in str(error)


def test_the_next_address_of_a_host_name_is_tried(connect, monkeypatch):
    with RawServer(serve_all()) as server:
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
            for port in (free_port(), server.port)
        ]
        monkeypatch.setattr(transport.socket, "getaddrinfo", lambda *_args, **_options: found)
        assert connect(ConsulConfig(host="consul.example")).call(ASK, timeout=5).raw == {}


@pytest.mark.parametrize("host", ["consul.invalid", "kønsul.invalid"])
def test_a_host_name_that_does_not_exist_is_an_unavailable_registry(connect, host):
    error = failure(connect(ConsulConfig(host=host)))
    assert isinstance(error, RegistryUnavailable)
    assert f"{host}:8500" in str(error)


# --- what a peer can do wrong --------------------------------------------------------------------------


def test_a_refused_connection(connect):
    port = free_port()
    error = failure(connect(ConsulConfig(port=port)))
    assert type(error) is RegistryUnavailable
    assert str(error) == (
        f"cannot ask Consul at http://127.0.0.1:{port} for GET /v1/catalog/services: connection refused"
    )


def test_nobody_accepts_the_connection(connect):
    with blackhole() as port:
        error = failure(connect(ConsulConfig(port=port)), timeout=PATIENCE)
    assert isinstance(error, RegistryTimeout)
    assert "did not accept a connection within 0.15 s" in str(error)


def test_connecting_has_a_limit_of_its_own(connect, monkeypatch):
    monkeypatch.setattr(transport, "CONNECT_TIMEOUT", 0.1)
    with blackhole() as port:
        start = time.monotonic()
        assert isinstance(failure(connect(ConsulConfig(port=port)), timeout=60), RegistryTimeout)
        assert time.monotonic() - start < PROMPT


def test_all_addresses_of_a_host_share_the_deadline(connect, monkeypatch):
    with blackhole() as port:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))] * 20
        monkeypatch.setattr(transport.socket, "getaddrinfo", lambda *_args, **_options: found)
        start = time.monotonic()
        assert isinstance(
            failure(connect(ConsulConfig(host="many.example")), timeout=PATIENCE), RegistryTimeout
        )
        assert time.monotonic() - start < PATIENCE + PROMPT


def hangs(peer: Peer) -> None:
    peer.request()
    peer.hang()


def trickles_headers(peer: Peer) -> None:
    peer.request()
    peer.trickle(answer({"padding": "x" * 4000}))


def trickles_the_body(peer: Peer) -> None:
    peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n")
    peer.trickle(b"x" * 4000)


def stops_in_the_body(peer: Peer) -> None:
    peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\nxxx")
    peer.hang()


@pytest.mark.parametrize("serve", [hangs, trickles_headers, trickles_the_body, stops_in_the_body])
def test_a_call_ends_by_its_deadline(connect, serve):
    with RawServer(serve) as server:
        start = time.monotonic()
        error = failure(connect(server.config), timeout=PATIENCE)
        elapsed = time.monotonic() - start
    assert isinstance(error, RegistryTimeout)
    assert str(error) == f"{server.config.url} did not answer GET /v1/catalog/services within {PATIENCE:g} s"
    assert PATIENCE <= elapsed < PATIENCE + PROMPT


def test_a_slow_answer_within_the_deadline_is_taken(connect):
    def serve(peer: Peer) -> None:
        peer.request()
        peer.trickle(answer(["slow"]), pace=0.001)

    with RawServer(serve) as server:
        assert connect(server.config).call(ASK, timeout=10).raw == ["slow"]


def resets(peer: Peer) -> None:
    peer.request()
    peer.reset()


def closes(peer: Peer) -> None:
    peer.request()


def speaks_ssh(peer: Peer) -> None:
    peer.send(b"SSH-2.0-OpenSSH_9.2\r\n")
    peer.request()


def sends_an_endless_header(peer: Peer) -> None:
    peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 70000 + b"\r\n\r\n")


def sends_too_little(peer: Peer) -> None:
    peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n[]")


def sends_a_broken_chunk(peer: Peer) -> None:
    peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n[]\r\n")


@pytest.mark.parametrize(
    "serve",
    [resets, closes, speaks_ssh, sends_an_endless_header, sends_too_little, sends_a_broken_chunk],
)
def test_a_broken_conversation_is_an_unavailable_registry(connect, serve):
    with RawServer(serve) as server:
        error = failure(connect(server.config))
    assert type(error) is RegistryUnavailable
    assert str(error).startswith(f"cannot ask Consul at {server.config.url} for GET /v1/catalog/services: ")


@pytest.mark.parametrize("body", [b"<html>It works!</html>", b"", b"{", b"\xff\xfe"])
def test_an_answer_that_is_not_json_is_not_from_consul(connect, body):
    with RawServer(serve_all(body)) as server:
        error = failure(connect(server.config))
    assert type(error) is RegistryUnavailable
    assert f"{len(body)} octets that are not JSON" in str(error)
    assert "is that a Consul agent?" in str(error)


def test_an_answer_without_end_is_given_up(connect, monkeypatch):
    monkeypatch.setattr(transport, "MAX_BODY", 100_000)

    def serve(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            peer.send(b"x" * 65536)

    with RawServer(serve) as server:
        error = failure(connect(server.config))
    assert type(error) is RegistryUnavailable
    assert "larger than 100000 octets" in str(error)


def test_a_refusal_carries_what_the_agent_said(connect):
    def serve(peer: Peer) -> None:
        while peer.request():
            peer.send(answer(b"ACL not found\n", status="403 Forbidden"))

    with RawServer(serve) as server:
        connection = connect(replace(server.config, token="t-1"))
        for _ in range(2):  # a refusal does not spoil the connection
            error = failure(connection)
            assert isinstance(error, AccessDenied)
            assert error.status == 403
            assert "ACL not found" in str(error)
            assert "policy of this token" in str(error)
    assert server.accepted == 1


# --- kept-alive connections ----------------------------------------------------------------------------


def test_a_kept_connection_that_died_is_replaced_silently(connect):
    def serve(peer: Peer) -> None:
        peer.request()
        peer.send(answer([]))  # and it hangs up without having said so

    with RawServer(serve) as server:
        connection = connect(server.config)
        for n in range(1, 4):
            assert connection.call(ASK, timeout=5).raw == []
            assert server.accepted == connection.opened == n


def test_a_connection_that_the_server_announces_to_close_is_opened_anew(connect):
    def serve(peer: Peer) -> None:
        peer.request()
        peer.send(answer([], headers="Connection: close\r\n"))

    with RawServer(serve) as server:
        connection = connect(server.config)
        for _ in range(2):
            assert connection.call(ASK, timeout=5).raw == []
    assert server.accepted == 2
    assert len(server.requests) == 2


def test_a_dead_connection_is_replaced_only_once(connect):
    def serve(peer: Peer) -> None:
        if server.accepted == 1:
            peer.request()
            peer.send(answer([]))
        else:
            resets(peer)

    with RawServer(serve) as server:
        connection = connect(server.config)
        connection.call(ASK, timeout=5)
        assert type(failure(connection)) is RegistryUnavailable
        assert server.accepted == 2


def test_a_time_out_is_not_tried_again(connect):
    def serve(peer: Peer) -> None:
        peer.request()
        peer.send(answer([]))
        hangs(peer)

    with RawServer(serve) as server:
        connection = connect(server.config)
        connection.call(ASK, timeout=5)
        assert isinstance(failure(connection, timeout=PATIENCE), RegistryTimeout)
        assert len(server.requests) == 2


def test_a_late_answer_is_not_taken_for_the_next_one(connect):
    def serve(peer: Peer) -> None:
        first = server.accepted == 1
        peer.request()
        if first:
            late.wait(5)
        peer.send(answer(["late" if first else "in time"]))

    late = threading.Event()
    with RawServer(serve) as server:
        connection = connect(server.config)
        assert isinstance(failure(connection, timeout=PATIENCE), RegistryTimeout)
        late.set()
        assert connection.call(ASK, timeout=5).raw == ["in time"]


# --- interrupting --------------------------------------------------------------------------------------


def interrupted_call(connection: Connection, ready: Callable[[], object]) -> tuple[DiscoveryError, float]:
    """Call in a thread, interrupt once *ready*; return the error and the seconds from there."""
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(connection.call, BLOCK, timeout=60)
        wait_until(ready)
        start = time.monotonic()
        connection.interrupt()
        error = call.exception(10)
        assert isinstance(error, DiscoveryError)
        return error, time.monotonic() - start


@pytest.mark.parametrize("serve", [hangs, trickles_headers, trickles_the_body])
def test_interrupting_a_read(connect, serve):
    with RawServer(serve) as server:
        error, seconds = interrupted_call(connect(server.config), lambda: server.requests)
    assert type(error) is RegistryUnavailable
    assert "was interrupted" in str(error)
    assert seconds < PROMPT


def test_interrupting_while_it_connects(connect):
    with blackhole() as port:
        connection = connect(ConsulConfig(port=port))
        error, seconds = interrupted_call(connection, lambda: connection._socket is not None)
    assert "was interrupted" in str(error)
    assert seconds < PROMPT


def test_interrupting_after_the_server_closed_an_earlier_connection(connect):
    def serve(peer: Peer) -> None:
        peer.request()
        if server.accepted == 1:
            peer.send(answer([], headers="Connection: close\r\n"))
        else:
            peer.hang()

    with RawServer(serve) as server:
        connection = connect(server.config)
        connection.call(ASK, timeout=5)
        error, seconds = interrupted_call(connection, lambda: len(server.requests) == 2)
    assert "was interrupted" in str(error)
    assert seconds < PROMPT


def test_an_interrupted_connection_stays_unusable(connect):
    with RawServer(serve_all()) as server:
        connection = connect(server.config)
        connection.call(ASK, timeout=5)
        connection.interrupt()
        for _ in range(2):
            assert "was interrupted" in str(failure(connection))
        assert len(server.requests) == 1


def test_interrupting_before_the_first_call_asks_nobody(connect):
    with RawServer(serve_all()) as server:
        connection = connect(server.config)
        connection.interrupt()
        assert "was interrupted" in str(failure(connection))
        assert server.requests == []


# --- what is sent --------------------------------------------------------------------------------------


def headers_sent(config: ConsulConfig) -> dict[str, str]:
    with RawServer(serve_all()) as server:
        connection = Connection(replace(config, port=server.port))
        connection.call(ASK, timeout=5)
        connection.close()
    lines = server.requests[0].split("\r\n")[1:]
    return dict(line.split(": ", 1) for line in lines if line)


def test_without_settings_no_credentials_are_sent():
    sent = headers_sent(ConsulConfig())
    assert not {"X-Consul-Token", "Authorization", "X-Consul-Namespace", "X-Consul-Partition"} & set(sent)


def test_credentials_namespace_and_partition_go_into_headers():
    sent = headers_sent(ConsulConfig(token="t-1", auth="ann:s3cret", namespace="team", partition="east"))
    assert sent["X-Consul-Token"] == "t-1"
    assert sent["Authorization"] == "Basic " + base64.b64encode(b"ann:s3cret").decode()
    assert sent["X-Consul-Namespace"] == "team"
    assert sent["X-Consul-Partition"] == "east"


def test_a_token_file_beats_the_token_and_is_read_for_every_request(connect, tmp_path):
    token = tmp_path / "token"
    with RawServer(serve_all()) as server:
        connection = connect(replace(server.config, token="old", token_file=str(token)))
        for value in ("first\n", "second"):
            token.write_text(value)
            connection.call(ASK, timeout=5)
    assert [
        "X-Consul-Token: first" in server.requests[0],
        "X-Consul-Token: second" in server.requests[1],
    ] == [
        True,
        True,
    ]


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_token_file_that_cannot_be_read_is_named(connect, tmp_path, content):
    token = tmp_path / "token"
    if content is not None:
        token.write_bytes(content)
    error = failure(connect(ConsulConfig(token_file=str(token))))
    assert isinstance(error, ConfigurationError)
    assert str(token) in str(error)
    assert "CONSUL_HTTP_TOKEN_FILE" in str(error)


@pytest.mark.parametrize("token", ["secret\n", "sec\r\nX-Evil: 1", "sécret"])
def test_a_token_that_no_header_can_carry_is_refused_without_showing_it(connect, token):
    error = failure(connect(ConsulConfig(token=token)))
    assert isinstance(error, ConfigurationError)
    assert "X-Consul-Token" in str(error)
    assert "cret" not in str(error)


# --- TLS -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def tls_server(authority: Authority) -> Iterator[RawServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("server.dc1.consul"))
    with RawServer(serve_all(["over TLS"]), tls=context) as server:
        yield server


def test_tls_with_an_authority_of_ones_own(connect, authority, tls_server):
    config = replace(
        tls_server.config, cacert=str(authority.certificate), tls_server_name="server.dc1.consul"
    )
    assert connect(config).call(ASK, timeout=5).raw == ["over TLS"]


def test_a_certificate_for_another_name_is_refused(connect, authority, tls_server):
    error = failure(connect(replace(tls_server.config, cacert=str(authority.certificate))))
    assert type(error) is RegistryUnavailable
    assert "certificate is not accepted" in str(error)
    assert "'127.0.0.1'" in str(error)
    assert "CONSUL_TLS_SERVER_NAME" in str(error)
    assert tls_server.requests == []


def test_a_certificate_of_an_unknown_authority_is_refused(connect, tls_server):
    error = failure(connect(replace(tls_server.config, tls_server_name="server.dc1.consul")))
    assert "certificate is not accepted" in str(error)
    assert "CONSUL_CACERT" in str(error)
    assert tls_server.requests == []


def test_verification_can_be_switched_off(connect, tls_server):
    assert connect(replace(tls_server.config, verify=False)).call(ASK, timeout=5).raw == ["over TLS"]


def test_a_client_certificate_is_shown(connect, authority):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("server.dc1.consul"))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority.certificate)
    certificate, key = map(str, authority.issue("client.dc1.consul"))
    with RawServer(serve_all([]), tls=context) as server:
        config = replace(server.config, verify=False)
        assert (
            connect(replace(config, client_cert=certificate, client_key=key)).call(ASK, timeout=5).raw == []
        )
        assert type(failure(connect(config))) is RegistryUnavailable


@pytest.mark.parametrize("setting", ["cacert", "client_cert"])
def test_a_tls_file_that_is_missing_is_a_wrong_setting(connect, tls_server, setting):
    error = failure(connect(replace(tls_server.config, **{setting: "/nonexistent.pem"})))
    assert isinstance(error, ConfigurationError)
    assert "'/nonexistent.pem'" in str(error)
    assert f"CONSUL_{setting.upper()}" in str(error)


def test_tls_to_a_server_without_it(connect):
    def serve(peer: Peer) -> None:
        peer.sock.recv(1)
        peer.send(answer(b"this is HTTP", status="400 Bad Request"))

    with RawServer(serve) as server:
        error = failure(connect(replace(server.config, tls=True, verify=False)))
    assert type(error) is RegistryUnavailable


def test_a_trickling_answer_over_tls_ends_by_the_deadline_too(connect, authority, tls_server):
    tls_server.serve = trickles_the_body
    start = time.monotonic()
    assert isinstance(
        failure(connect(replace(tls_server.config, verify=False)), timeout=PATIENCE), RegistryTimeout
    )
    assert time.monotonic() - start < PATIENCE + PROMPT


@pytest.mark.parametrize("serve", [hangs, trickles_headers, trickles_the_body])
def test_interrupting_a_read_over_tls(connect, tls_server, serve):
    tls_server.serve = serve
    for _ in range(5):  # the moment matters: between two reads of the TLS layer, or within one
        tls_server.requests.clear()
        connection = connect(replace(tls_server.config, verify=False))
        error, seconds = interrupted_call(connection, lambda: tls_server.requests)
        assert "was interrupted" in str(error)
        assert seconds < PROMPT


def test_a_handshake_that_hangs_ends_by_the_deadline_and_can_be_interrupted(connect):
    with RawServer(Peer.hang) as server:
        config = replace(server.config, tls=True, verify=False)
        assert isinstance(failure(connect(config), timeout=PATIENCE), RegistryTimeout)
        connection = connect(config)
        error, seconds = interrupted_call(connection, lambda: isinstance(connection._socket, ssl.SSLSocket))
    assert "was interrupted" in str(error)
    assert seconds < PROMPT


# --- the pool ------------------------------------------------------------------------------------------


def test_threads_get_the_answers_to_their_own_questions():
    def serve(peer: Peer) -> None:
        while asked := peer.request():
            peer.send(answer(asked.split(" ")[1]))

    with RawServer(serve) as server, ThreadPoolExecutor(16) as threads:
        pool = Pool(server.config)
        asked = [request("GET", f"kv/{n}") for n in range(200)]
        replies = list(threads.map(lambda one: pool.call(one, timeout=10).raw, asked))
        assert replies == [one.target for one in asked]
        wait_until(lambda: server.open <= 4, message="surplus connections are closed")
        pool.close()
        wait_until(lambda: not server.open, message="the others are closed with the pool")


def test_a_pool_can_be_used_after_it_was_closed():
    with RawServer(serve_all()) as server:
        pool = Pool(server.config)
        pool.close()
        assert pool.call(ASK, timeout=5).raw == {}
        pool.close()


def test_a_failed_call_leaves_the_pool_usable():
    with RawServer(serve_all()) as server:
        pool = Pool(server.config)
        server.serve = resets
        with pytest.raises(RegistryUnavailable):
            pool.call(ASK, timeout=5)
        server.serve = serve_all()
        assert pool.call(ASK, timeout=5).raw == {}
        pool.close()


# --- fork ----------------------------------------------------------------------------------------------

FORKS = """
    import faulthandler, os, sys, threading
    from discovery.backends.consul.codec import request
    from discovery.backends.consul.transport import Connection, Pool
    from discovery.config import ConsulConfig

    def sockets():
        names = []
        for fd in os.listdir("/proc/self/fd"):
            try:
                names.append(os.readlink(f"/proc/self/fd/{fd}"))
            except FileNotFoundError:
                pass
        return sum(name.startswith("socket:") for name in names)

    config = ConsulConfig(port=int(sys.argv[1]))
    pool, blocked = Pool(config), Connection(config)
    pool.call(request("GET", "pooled"), timeout=5)
    threading.Thread(target=blocked.call, args=(request("GET", "held"),), kwargs={"timeout": 30}).start()
    input()  # the test says when the server has the second request
    assert sockets() == 2, sockets()
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(30, exit=True)  # nobody else would end a child that hangs
        status = 1
        try:
            assert sockets() == 0, f"the child has {sockets()} of its parent's sockets"
            assert pool.call(request("GET", "child"), timeout=5).raw == "/v1/child"
            pool.close()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
    assert pool.call(request("GET", "parent"), timeout=5).raw == "/v1/parent"
    blocked.interrupt()
    pool.close()
"""


def test_a_forked_child_has_no_socket_of_its_parent():
    def serve(peer: Peer) -> None:
        while asked := peer.request():
            if "held" in asked:
                peer.hang()
            peer.send(answer(asked.split(" ")[1]))

    with RawServer(serve) as server:
        script = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(FORKS), str(server.port)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with script:
            wait_until(lambda: len(server.requests) == 2 or script.poll() is not None, 10)
            _, errors = script.communicate("\n", timeout=20)
    assert script.returncode == 0, errors
    by_connection = [asked.split(" ")[1] for asked in server.requests]
    assert by_connection == ["/v1/pooled", "/v1/held", "/v1/child", "/v1/parent"]
    assert server.accepted == 3  # the child's call went over a connection of its own


def test_connections_that_are_gone_are_not_remembered():
    before = len(transport._connections)
    for _ in range(10):
        Connection(ConsulConfig())
        Pool(ConsulConfig())
    assert len(transport._connections) == before
