"""The example applications, run as their docstrings say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import discovery
from discovery.testing import FakeDiscovery
from tests.discovery.integrations.fleet import Server
from tests.tools import free_port, wait_until

ROOT = Path(__file__).resolve().parents[3]
BIN = Path(sys.executable).parent
START = 30.0  # s; importing a framework takes seconds on a busy machine


@contextmanager
def running(*command: str | Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run an application while the ``with`` statement lasts, which begins when it answers on *port*."""
    environment = {**os.environ, "PORT": str(port)}
    # A session of its own: what its runner has started is ended with it.
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        wait_until(lambda: get(port)[0], START, ignoring=OSError, message=f"{command[0]} answers")
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def get(port: int, path: str = "/") -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.read().decode()


def calls_the_service_by_its_name(
    port: int, fake_discovery: FakeDiscovery, start_server: Callable[..., Server]
) -> None:
    status, text = get(port)
    assert (status, "no service is called" in text) == (503, True), text
    servers = [start_server() for _ in range(2)]
    added = [fake_discovery.add("python-micro-service", port=server.port) for server in servers]

    def met() -> set[int]:
        answers = [get(port) for _ in range(4)]
        return {json.loads(text)["port"] for status, text in answers if status == 200}

    wait_until(lambda: met() == {server.port for server in servers}, message="it calls both")
    fake_discovery.remove(added[0])
    wait_until(lambda: met() == {servers[1].port}, message="it calls the one that is left")


def test_flask(fake_discovery: FakeDiscovery, start_server: Callable[..., Server]) -> None:
    port = free_port()
    register = [BIN / "discovery", "register", "flask-app", "--port", str(port), "--check-http", "/health"]
    flask = [BIN / "flask", "--app", "examples/flask-app/app.py", "run", "--port", str(port)]
    with running(*register, "--", *flask, port=port) as app:
        calls_the_service_by_its_name(port, fake_discovery, start_server)
        assert discovery.wait_for("flask-app", timeout=START)[0].port == port
        app.terminate()
        assert app.wait(START) == 0
    wait_until(lambda: not discovery.lookup_all("flask-app"))


def test_fastapi(fake_discovery: FakeDiscovery, start_server: Callable[..., Server]) -> None:
    port = free_port()
    uvicorn = [BIN / "uvicorn", "--app-dir", "examples/fastapi-app", "--port", str(port), "app:app"]
    with running(*uvicorn, port=port) as app:
        assert discovery.lookup("fastapi-app").port == port
        calls_the_service_by_its_name(port, fake_discovery, start_server)
        app.terminate()
        app.wait(START)
    wait_until(lambda: not discovery.lookup_all("fastapi-app"))


def test_django(fake_discovery: FakeDiscovery, start_server: Callable[..., Server]) -> None:
    port = free_port()
    manage = [sys.executable, "examples/django-app/manage.py", "runserver", "--noreload", str(port)]
    with running(*manage, port=port):
        calls_the_service_by_its_name(port, fake_discovery, start_server)
        assert "connected to ('127.0.0.1'" in get(port, "/raw")[1]
