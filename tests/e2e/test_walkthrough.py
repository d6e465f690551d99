"""The walkthrough of the design documents, step by step, as a reader would type it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from tests.e2e.stubs import IN_CONTAINER
from tests.e2e.view import PORT, SERVICE, Endpoint, assert_seen, catalogue, start_service

if TYPE_CHECKING:
    from lab import Host


def test_both_services_are_in_the_catalogue_asked_at_the_third_host(
    host1: Host, host2: Host, host3: Host
) -> None:
    found = {entry["ServiceID"]: entry for entry in host3.consul(f"/v1/catalog/service/{SERVICE}")}

    assert set(found) == {"registrator:service1:5000", "registrator:service2:5000"}
    for host, service_id in ((host1, "registrator:service1:5000"), (host2, "registrator:service2:5000")):
        assert found[service_id]["Node"] == host.name
        assert found[service_id]["Address"] == host.address
        # Empty means the node's address, which Consul tells whoever asks.
        assert found[service_id]["ServiceAddress"] in ("", host.address)
        assert found[service_id]["ServicePort"] == PORT


def test_a_port_that_docker_chose_is_the_one_in_the_catalogue(
    host1: Host, host3: Host, services: frozenset[Endpoint]
) -> None:
    chosen = start_service(host1, "service3", "--publish-all")

    assert chosen.port != PORT
    assert_seen(host3, services | {chosen}, within=1)
    assert catalogue(host3)["registrator:service3:5000"] == chosen


def test_337_where_docker_chose_another_port_for_ipv6_the_one_that_serves_is_in_the_catalogue(
    host1: Host, host3: Host, services: frozenset[Endpoint]
) -> None:
    def bound(name: str) -> list[str]:
        return [line.rpartition(":")[2] for line in host1.docker("port", name, str(PORT)).splitlines()]

    # Docker counts the ports of each family for itself; one that is published over IPv6 alone parts them.
    only_ipv6 = ["--publish", f"[::]::{PORT}", "--env", "SERVICE_IGNORE=1", SERVICE]
    for number in range(2):
        host1.docker("run", "--detach", "--name", f"ipv6-{number}", *only_ipv6)
        chosen = start_service(host1, "service3", "--publish-all")
        if len(set(bound("service3"))) == 2:
            break
        host1.docker("rm", "--force", "service3")
    assert len(set(bound("service3"))) == 2

    assert_seen(host3, services | {chosen}, within=1)
    said = host3.on("curl", "-sS", "--noproxy", "*", f"http://{chosen.address}:{chosen.port}/")
    assert said == hello(host1, "service3")


def test_curl_reaches_each_instance_from_the_third_host(
    host1: Host, host2: Host, host3: Host, services: frozenset[Endpoint]
) -> None:
    said = {host3.on("curl", "-sS", "--noproxy", "*", f"http://{at.address}:{at.port}/") for at in services}

    assert said == {hello(host1, "service1"), hello(host2, "service2")}


def test_busybox_pings_both_by_bare_name(host1: Host, host2: Host, host3: Host) -> None:
    printed = in_busybox(host3, f"for i in 1 2 3 4 5 6; do ping -c 1 -W 2 {SERVICE} || exit; done")

    assert set(re.findall(rf"PING {SERVICE} \(([0-9.]+)\)", printed)) == {host1.address, host2.address}
    assert printed.count(" 0% packet loss") == 6


def test_busybox_fetches_from_both_by_bare_name(host1: Host, host2: Host, host3: Host) -> None:
    fetch = f"for i in 1 2 3 4 5 6; do wget -q -O - http://{SERVICE}:{PORT}/ || exit; done"

    answers = in_busybox(host3, fetch).splitlines(keepends=True)

    assert len(answers) == 6
    assert set(answers) == {hello(host1, "service1"), hello(host2, "service2")}


LOOK_UP = f"""
import discovery, json
print(json.dumps([discovery.lookup("{SERVICE}") for _ in range(6)]))
"""


def test_a_process_finds_both_with_lookup_and_no_configuration(
    host3: Host, services: frozenset[Endpoint], python: str
) -> None:
    found = json.loads(host3.on("env", "-i", python, "-c", LOOK_UP))

    assert len(found) == 6
    assert {Endpoint(*pair) for pair in found} == services


def test_a_container_finds_both_with_lookup_and_no_configuration(
    host3: Host, services: frozenset[Endpoint]
) -> None:
    found = json.loads(host3.docker("run", "--rm", "--entrypoint", "python3", "portcall", "-c", LOOK_UP))

    assert len(found) == 6
    assert {Endpoint(*pair) for pair in found} == services


def test_the_image_runs_the_program_that_its_first_word_names(
    host3: Host, services: frozenset[Endpoint]
) -> None:
    url = host3.docker("run", "--rm", "portcall", "discovery", "lookup", SERVICE, "--url")

    assert url in {f"http://{at.address}:{at.port}" for at in services}


def test_the_image_hands_every_other_word_to_the_registrar(host1: Host) -> None:
    """And `plan` finds in step what the registrar of this host, started with the same words, registered."""
    mounted = ("--rm", "-h", "registrator", "-v", "/var/run/docker.sock:/tmp/docker.sock", "portcall")

    assert host1.docker("run", "--rm", "portcall", "--version").startswith("portcall ")
    planned = host1.docker("run", *mounted, "plan", f"consul://{host1.address}:8500")
    assert planned == "in step: nothing to write"
    explained = host1.docker("run", *mounted, "explain", "service1", f"consul://{host1.address}:8500")
    assert f"port {PORT}/tcp: registered: published as *:{PORT}" in explained


def hello(host: Host, container: str) -> str:
    """What the service in a container says: the container's hostname is its short id."""
    return f"Hello World from {host.docker('inspect', '--format', '{{.Config.Hostname}}', container)}\n"


def in_busybox(host: Host, script: str) -> str:
    return host.docker("run", *IN_CONTAINER, "busybox", "sh", "-c", script) + "\n"
