"""Containers come and go; the other hosts know within a second, and clients never notice."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING

from tests.e2e.stubs import IN_CONTAINER
from tests.e2e.view import PORT, SERVICE, Endpoint, assert_seen, catalogue, endpoint, srv, start_service
from tests.tools import wait_until

if TYPE_CHECKING:
    from lab import Host


def test_a_started_container_is_seen_within_a_second(host3: Host, services: frozenset[Endpoint]) -> None:
    started = start_service(host3, "service3")

    assert_seen(host3, services | {started}, within=1)


def test_a_stopped_container_is_gone_within_a_second_of_the_stop_signal(
    host1: Host, host3: Host, services: frozenset[Endpoint]
) -> None:
    gone = endpoint(host1, "service1")
    asked = time.monotonic()
    stopping = subprocess.Popen(["docker", "stop", "service1"], env=host1.docker_environment)
    try:
        # It still answers then: it is out of the catalogue before it stops serving.
        assert_seen(host3, services - {gone}, within=1, since=asked)
    finally:
        assert stopping.wait(30) == 0

    assert set(catalogue(host3).values()) == srv(host3) == services - {gone}


def test_a_stopped_container_is_back_within_a_second_of_its_start(
    host1: Host, host3: Host, services: frozenset[Endpoint]
) -> None:
    host1.docker("stop", "service1")

    host1.docker("start", "service1")

    assert_seen(host3, services, within=1)


def test_a_killed_container_is_gone_within_a_second(
    host2: Host, host3: Host, services: frozenset[Endpoint]
) -> None:
    gone = endpoint(host2, "service2")
    asked = time.monotonic()

    host2.docker("kill", "service2")

    assert_seen(host3, services - {gone}, within=1, since=asked)


def test_a_restarted_container_is_known_by_its_new_port_within_two_seconds(
    host1: Host, host3: Host, services: frozenset[Endpoint]
) -> None:
    before = start_service(host1, "service3", "--publish-all")
    assert_seen(host3, services | {before}, within=1)

    host1.docker("restart", "service3")

    after = endpoint(host1, "service3")
    assert after != before, "Docker was expected to choose another port"
    assert_seen(host3, services | {after}, within=2)


def test_a_client_that_resolves_by_name_sees_no_error_while_an_instance_stops(
    host1: Host, host3: Host
) -> None:
    loop = f"while :; do timeout 2 wget -q -O - http://{SERVICE}:{PORT}/ || echo FAILED; done"
    host3.docker("run", "--detach", "--name", "client", *IN_CONTAINER[1:], "busybox", "sh", "-c", loop)
    goes = host1.docker("inspect", "--format", "{{.Config.Hostname}}", "service1")

    def answers() -> list[str]:
        return host3.docker("logs", "client", stderr=True).splitlines()

    wait_until(lambda: any(goes in answer for answer in answers()), 10, message=f"{goes} answers")
    host1.docker("stop", "service1")
    stopped = len(answers())
    wait_until(lambda: len(answers()) > stopped + 50, 20, message="50 more answers", interval=0.1)
    host3.docker("kill", "client")

    assert [answer for answer in answers() if "Hello World" not in answer] == []
    assert not any(goes in answer for answer in answers()[-25:]), "service2 alone is left"


CLIENT = f"""
import discovery, sys, urllib.request
while True:
    try:
        host, port = discovery.lookup("{SERVICE}")
        with urllib.request.urlopen(f"http://{{host}}:{{port}}/", timeout=2) as answer:
            print(answer.read().decode().strip(), flush=True)
    except OSError as exc:
        print("FAILED", exc, flush=True)
"""


def test_a_client_that_uses_lookup_sees_no_error_while_an_instance_stops(
    host1: Host, host3: Host, python: str
) -> None:
    goes = host1.docker("inspect", "--format", "{{.Config.Hostname}}", "service1")
    log = host3.directory / "client.log"
    log.unlink(missing_ok=True)
    host3.spawn("client", python, "-c", CLIENT)

    def answers() -> list[str]:
        return log.read_text().splitlines()

    try:
        wait_until(lambda: any(goes in answer for answer in answers()), 10, message=f"{goes} answers")
        host1.docker("stop", "service1")
        stopped = len(answers())
        wait_until(lambda: len(answers()) > stopped + 50, 20, message="50 more answers")
    finally:
        host3.stop("client")

    assert [answer for answer in answers() if "Hello World" not in answer] == []
    assert not any(goes in answer for answer in answers()[-25:]), "service2 alone is left"
