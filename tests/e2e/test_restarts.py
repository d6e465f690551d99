"""The daemons themselves come and go; when they are back, so is the truth, within two seconds."""

from __future__ import annotations

import shutil
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.e2e.view import (
    SERVICE,
    Endpoint,
    add_hand_made,
    assert_seen,
    catalogue,
    endpoint,
    start_service,
)
from tests.tools import wait_until

if TYPE_CHECKING:
    from lab import Host


def test_what_changed_while_the_registrar_was_dead_is_known_when_it_is_back(
    host1: Host, host3: Host, services: frozenset[Endpoint]
) -> None:
    stopped = endpoint(host1, "service1")
    host1.docker("kill", "registrator")
    host1.docker("stop", "service1")
    started = start_service(host1, "service3", "--publish-all")
    assert set(catalogue(host3).values()) == services, "nobody is there to tell"

    host1.docker("start", "registrator")

    assert_seen(host3, services - {stopped} | {started}, within=2)


def test_the_registrar_restarted_leaves_the_catalogue_alone(host1: Host, host3: Host) -> None:
    """No flapping: a deploy of the registrar is no outage of the services."""
    before = modify_indexes(host3)

    host1.docker("restart", "registrator")
    wait_until(lambda: "registrator" in host1.docker("ps", "--format", "{{.Names}}"), 5)
    # The registrar has looked at everything once it has registered a container that came after it.
    probe = start_service(host1, "service3", "--publish-all")
    wait_until(lambda: probe in catalogue(host3).values(), 5, message=f"{probe} in the catalogue")

    after = modify_indexes(host3)
    assert {service_id: after.get(service_id) for service_id in before} == before


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "crashed"])
def test_dockerd_restarted_takes_dead_containers_out_and_restarted_ones_in(
    how: signal.Signals, host1: Host, host3: Host, services: frozenset[Endpoint]
) -> None:
    dies = endpoint(host1, "service1")  # no restart policy
    before = start_service(host1, "service3", "--publish-all", "--restart", "always")
    assert_seen(host3, services | {before}, within=1)

    host1.stop("dockerd", how)
    host1.start_dockerd()
    back = time.monotonic()

    wait_until(lambda: host1.docker("port", "service3", check=False), 10, message="service3 is restarted")
    after = endpoint(host1, "service3")
    assert_seen(host3, services - {dies} | {after}, within=2, since=back)


def test_a_consul_agent_restarted_empty_has_its_services_back(
    host1: Host, host3: Host, services: frozenset[Endpoint]
) -> None:
    containers = started_containers(host1)
    host1.stop("consul", signal.SIGKILL)
    shutil.rmtree(host1.directory / "consul")

    host1.start_consul()
    host1.wait_for_leader()
    back = time.monotonic()

    # Not by the catalogue alone: until the agent has told it that it is empty, that shows what was.
    wait_until(lambda: "registrator:service1:5000" in host1.consul("/v1/agent/services"), 2)
    assert_seen(host3, services, within=2, since=back)
    assert started_containers(host1) == containers, "no container was touched"
    add_hand_made(host1)  # it was lost with the agent's memory, and it is ours to bring back


def modify_indexes(host: Host) -> dict[str, int]:
    """When each instance was last written to the catalogue, in Consul's own count."""
    entries = host.consul(f"/v1/catalog/service/{SERVICE}")
    return {entry["ServiceID"]: entry["ModifyIndex"] for entry in entries}


def started_containers(host: Host) -> str:
    """The running containers and when each was started."""
    running = host.docker("ps", "--quiet", "--no-trunc").split()
    return host.docker("inspect", "--format", "{{.Name}} {{.State.StartedAt}}", *running)
