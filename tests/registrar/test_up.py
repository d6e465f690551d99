"""``registrar up``: one process beside a real Docker engine, no Consul anywhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.registrar.dockerd import IMAGE, OBEDIENT, Dockerd
from tests.tools import ConsulAgent, wait_until

REGISTRAR = str(Path(sys.executable).parent / "registrar")
DISCOVERY = str(Path(sys.executable).parent / "discovery")
DOCKER0 = "172.17.0.1"
START = 30.0  # s; a loaded machine takes its time to start a process

pytestmark = pytest.mark.docker


def environment(dockerd: Dockerd) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("CONSUL_")}
    return {**ours, **dockerd.env}


class Up:
    """``registrar up`` in the engine's network, and what it printed."""

    def __init__(self, dockerd: Dockerd, log: Path, *arguments: str) -> None:
        self._log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                dockerd.beside(REGISTRAR, "up", *arguments),
                env=environment(dockerd),
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    @property
    def printed(self) -> str:
        return self._log.read_text()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=START)


@pytest.fixture
def up(dockerd: Dockerd, tmp_path: Path) -> Iterator[Up]:
    running = Up(dockerd, tmp_path / "log")
    try:
        wait_until(lambda: "portcall is up" in running.printed, START, message="it is up")
        yield running
    finally:
        running.process.kill()
        running.process.wait()


def discovery(dockerd: Dockerd, *arguments: str) -> str:
    done = subprocess.run(
        dockerd.beside(DISCOVERY, *arguments),
        env=environment(dockerd),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.stdout.strip()


def test_a_container_is_found_by_name_over_http_and_over_dns_from_another_container(
    dockerd: Dockerd, up: Up
) -> None:
    web = dockerd.run("web", publish_all_ports=True, command=OBEDIENT)
    web.reload()
    port = web.ports["5000/tcp"][0]["HostPort"]
    wait_until(
        lambda: discovery(dockerd, "lookup", IMAGE) == f"{DOCKER0}:{port}", START, message="it is found"
    )

    asked = dockerd.client.containers.run(
        IMAGE,
        ["/bin/busybox", "nslookup", f"{IMAGE}.service.consul"],
        dns=[DOCKER0],
        remove=True,
    ).decode()
    assert f"Address: {DOCKER0}" in asked

    web.stop()
    wait_until(lambda: discovery(dockerd, "lookup", IMAGE) == "", START, message="it is gone")


def test_sigterm_ends_it_with_exit_code_0_and_no_traceback(up: Up) -> None:
    assert up.stop() == 0
    assert "Traceback" not in up.printed


def test_a_registry_that_answers_is_used_and_no_agent_is_embedded(
    dockerd: Dockerd, tmp_path: Path, consul_executable: str
) -> None:
    """Here Consul is on another network: its address is given, and nothing else may stand in for it."""
    with ConsulAgent(binary=consul_executable) as agent:
        running = Up(dockerd, tmp_path / "log", "--dns", "127.0.0.1:53", agent.uri)
        try:
            wait_until(lambda: "waiting for the registry" in running.printed, START, message="it waits")
            assert "embedded" not in running.printed
        finally:
            assert running.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--dns", "300.1.1.1:53"], "'300.1.1.1:53' from --dns"),
        (["--dns", "192.0.2.1:53"], "no interface of this host has that address"),
        (["etcd://127.0.0.1"], "etcd://127.0.0.1"),
    ],
)
def test_what_cannot_be_used_ends_it_with_a_sentence_and_exit_code_2(
    dockerd: Dockerd, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    running = Up(dockerd, tmp_path / "log", *arguments)
    assert running.process.wait(timeout=START) == 2
    assert sentence in running.printed
    assert "Traceback" not in running.printed
