"""Containers with nothing but `--dns 172.17.0.1 --dns-search service.consul`, and a C library that asks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.e2e.stubs import Stub
from tests.e2e.view import SERVICE

if TYPE_CHECKING:
    from lab import Host


def test_the_bare_name_gives_both_addresses_and_each_comes_first(
    host1: Host, host2: Host, host3: Host, stub: Stub
) -> None:
    answers = stub.answers(host3, SERVICE, times=6)

    both = {host1.address, host2.address}
    assert len(answers) == 6
    assert all(sorted(answer) == sorted(both) for answer in answers), answers
    assert {answer[0] for answer in answers} == both, "clients take the first, so it must rotate"


def test_a_name_that_is_nowhere_is_refused_at_once(host3: Host, stub: Stub) -> None:
    """Not after the 5 s and more that a stub spends on a server which answers wrongly or not at all."""
    script = "start=$(date +%s); resolve; echo after $(($(date +%s) - start)) s"

    printed = stub.shell(host3, script, name="no-such-service")

    assert re.fullmatch(r"after [01] s", printed)


def test_an_upstream_name_resolves_through_the_resolver(host3: Host, stub: Stub) -> None:
    from lab import UPSTREAM_ADDRESS, UPSTREAM_NAME

    assert stub.answers(host3, UPSTREAM_NAME, times=1) == [[UPSTREAM_ADDRESS]]


@pytest.fixture
def project(host3: Host) -> Iterator[str]:
    """A bridge network, made while the resolver runs, as `docker compose up` makes one."""
    host3.docker("network", "create", "project")
    yield "project"
    host3.docker("network", "rm", "project")


def test_a_container_on_a_network_of_its_own_project_is_answered(
    host1: Host, host2: Host, host3: Host, project: str
) -> None:
    """Docker's own DNS server on such a network passes the question on, with the container's address."""
    script = f"for i in 1 2; do getent ahostsv4 {SERVICE}.service.consul; done"

    printed = host3.docker(
        *("run", "--rm", "--network", project, "--dns", "172.17.0.1"),
        *("--entrypoint", "sh", "portcall", "-c", script),
    )

    assert set(re.findall(r"^[0-9.]+", printed, re.MULTILINE)) == {host1.address, host2.address}
