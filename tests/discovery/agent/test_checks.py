"""Running checks against servers that misbehave; the well-behaved are in tests/contract."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from discovery.agent.checks import MAX_REDIRECTS, Runner
from discovery.model import Check, CheckID, Status
from tests.tools import wait_until

Results = list[tuple[str, Status, str]]


@pytest.fixture
def results() -> Results:
    return []


@pytest.fixture
def runner(results: Results) -> Iterator[Runner]:
    runner = Runner(
        lambda check, status, output: results.append((check.id, status, output)), random=lambda: 0.0
    )
    yield runner
    runner.close()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("agent-check")] == []


@contextmanager
def server(converse: Callable[[socket.socket], None]) -> Iterator[int]:
    """A TCP server that has *converse* talk to one client after another; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    try:
                        converse(connection)
                    except OSError:
                        pass  # the check hung up, as it should

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def http(port: int, path: str = "/", **fields: object) -> dict[CheckID, Check]:
    check = Check(id=CheckID("c"), http=f"http://127.0.0.1:{port}{path}", interval=60.0, **fields)  # type: ignore[arg-type]
    return {check.id: check}


def until_hung_up(connection: socket.socket) -> None:
    while connection.recv(4096):
        pass


def test_a_server_that_never_answers(runner: Runner, results: Results) -> None:
    with server(until_hung_up) as port:
        runner.follow(http(port, timeout=0.1))
        wait_until(lambda: results)
    assert results[0][1:] == (
        "critical",
        f'Get "http://127.0.0.1:{port}/": context deadline exceeded '
        "(Client.Timeout exceeded while awaiting headers)",
    )


def test_a_server_that_drips(runner: Runner, results: Results) -> None:
    """A byte now and then satisfies the timeout of each read; the deadline is for all of them."""

    def drip(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        while True:
            connection.sendall(b"x")
            connection.settimeout(0.01)
            try:
                if not connection.recv(4096):
                    return
            except TimeoutError:
                pass

    with server(drip) as port:
        started = time.monotonic()
        runner.follow(http(port, timeout=0.2))
        wait_until(lambda: results)
        assert time.monotonic() - started < 2
    assert results[0][1] == "critical"


def test_a_server_that_does_not_shake_hands(runner: Runner, results: Results) -> None:
    with server(until_hung_up) as port:
        check = Check(id=CheckID("c"), http=f"https://127.0.0.1:{port}/", interval=60.0, timeout=0.1)
        runner.follow({check.id: check})
        wait_until(lambda: results)
    assert results[0][1] == "critical"


@pytest.mark.parametrize(
    ("said", "status", "output"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", "passing", "200 OK Output: half"),
        (b"HTTP/1.1 200 \r\n\r\n\xff\xfe", "passing", "200  Output: \ufffd\ufffd"),
        (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", "critical", "302 Found Output: "),
        (b"what\r\n\r\n", "critical", "what"),
        (b"", "critical", "Remote end closed connection without response"),
    ],
)
def test_odd_responses(runner: Runner, results: Results, said: bytes, status: str, output: str) -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(said)

    with server(answer) as port:
        runner.follow(http(port))
        wait_until(lambda: results)
    assert results[0][1] == status
    assert results[0][2].strip().endswith(output.strip())


def test_a_redirect_in_a_circle(runner: Runner, results: Results) -> None:
    requests = []

    def redirect(connection: socket.socket) -> None:
        requests.append(connection.recv(4096))
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n")

    with server(redirect) as port:
        runner.follow(http(port))
        wait_until(lambda: results)
    assert results[0][1] == "critical"
    assert results[0][2].endswith(f"stopped after {MAX_REDIRECTS} redirects")
    assert len(requests) == MAX_REDIRECTS + 1


def test_a_redirect_elsewhere_does_not_take_credentials_along(runner: Runner, results: Results) -> None:
    requests = []

    def answer(connection: socket.socket) -> None:
        requests.append(connection.recv(4096).decode())
        connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    with server(answer) as elsewhere:

        def redirect(connection: socket.socket) -> None:
            requests.append(connection.recv(4096).decode())
            location = f"http://127.0.0.1:{elsewhere}/"
            connection.sendall(
                f"HTTP/1.1 307 T\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()
            )

        with server(redirect) as port:
            header = {"Authorization": ("secret",), "X-Kept": ("yes",), "Host": ("virtual",)}
            runner.follow(http(port, header=header))
            wait_until(lambda: results)
    first, second = requests
    assert "Authorization: secret\r\n" in first
    assert "Host: virtual\r\n" in first
    assert "secret" not in second
    assert f"Host: 127.0.0.1:{elsewhere}\r\n" in second
    assert "X-Kept: yes\r\n" in first
    assert "X-Kept: yes\r\n" in second


@pytest.mark.parametrize(
    ("check", "output"),
    [
        (Check(http="http://"), 'Get "http://": no Host in request URL'),
        (Check(http="http://127.0.0.1:99999/"), 'Get "http://127.0.0.1:99999/": Port out of range 0-65535'),
        (Check(http="http://[::1/"), 'Get "http://[::1/": Invalid IPv6 URL'),
        (Check(http="http://no.such.invalid/"),
         'Get "http://no.such.invalid/": dial tcp: lookup no.such.invalid: no such host'),
        (Check(http="http://127.0.0.1:1/", method="get"),
         'Get "http://127.0.0.1:1/": dial tcp 127.0.0.1:1: connect: connection refused'),
        (Check(tcp="[::1]:1"), "dial tcp [::1]:1: connect: connection refused"),
        (Check(tcp="127.0.0.1:99999"), "dial tcp: address 127.0.0.1:99999: Port out of range 0-65535"),
        (Check(tcp="no.such.invalid:1"), "dial tcp: lookup no.such.invalid: no such host"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_reached(runner: Runner, results: Results, check: Check, output: str) -> None:
    runner.follow({check.id: check})
    wait_until(lambda: results)
    assert results[0][1:] == ("critical", output)


def test_a_header_that_is_none(runner: Runner, results: Results) -> None:
    with server(until_hung_up) as port:
        runner.follow(http(port, header={"bad name\r\n": ("x",)}))
        wait_until(lambda: results)
    assert results[0][1] == "critical"


def test_close_does_not_wait_for_a_server(runner: Runner, results: Results) -> None:
    asked = threading.Event()

    def hang(connection: socket.socket) -> None:
        connection.recv(4096)
        asked.set()
        until_hung_up(connection)

    with server(hang) as port:
        runner.follow(http(port, timeout=60.0))
        assert asked.wait(5)
        started = time.monotonic()
        runner.close()
        assert time.monotonic() - started < 0.5
    assert results == [], "what was cut off is no result"


def test_follows_changes(runner: Runner, results: Results) -> None:
    """The same checks go on, changed ones begin anew, and those that are gone report no more."""
    seen: list[str] = []

    def answer(connection: socket.socket) -> None:
        seen.append(connection.recv(4096).split()[1].decode())
        connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    with server(answer) as port:
        first = http(port, "/first")
        runner.follow(first)
        wait_until(lambda: len(results) == 1)
        runner.follow(dict(first))
        runner.follow(http(port, "/second"))
        wait_until(lambda: len(results) == 2)
        runner.follow({})
    assert seen == ["/first", "/second"]
