"""What one host sees of the services on the others, over HTTP and over DNS; and how soon.

Everything here is asked from inside a host's network, by a thread of this process that enters it for the
moment: starting a program there for each question would take longer than the times that are measured.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import dns.message
import dns.query
import dns.rdatatype

from tests.tools import wait_until

if TYPE_CHECKING:
    from lab import Host

SERVICE = "python-micro-service"
PORT = 5000
RESOLVER = "172.17.0.1"

# Its ID has the form of the registrar's own, and no container of that name exists: cleaning up by the looks
# of an ID would remove it.
HAND_MADE: dict[str, Any] = {"ID": "registrator:by-hand:80", "Name": "by-hand", "Port": 80, "Tags": ["mine"]}


class Endpoint(NamedTuple):
    address: str
    port: int


def start_service(host: Host, name: str, *options: str) -> Endpoint:
    """`docker run` the example service as `name`, published on port 5000 unless `options` say otherwise."""
    host.docker("run", "--detach", "--name", name, *(options or ("--publish", f"{PORT}:{PORT}")), SERVICE)
    return endpoint(host, name)


def endpoint(host: Host, container: str) -> Endpoint:
    """Where a container's port is reached from other hosts, as Docker knows it."""
    return Endpoint(host.address, host.published(container, PORT))


def catalogue(host: Host, service: str = SERVICE) -> dict[str, Endpoint]:
    """The catalogue as this host's agent tells it: service ID -> where it is."""
    return {
        entry["ServiceID"]: Endpoint(entry["ServiceAddress"] or entry["Address"], entry["ServicePort"])
        for entry in host.consul(f"/v1/catalog/service/{service}")
    }


def query(host: Host, name: str, record_type: str = "A") -> dns.message.Message:
    """One question to this host's resolver."""
    question = dns.message.make_query(name, record_type, use_edns=True)
    with host.network():
        return dns.query.udp(question, RESOLVER, timeout=2.0)


def srv(host: Host, service: str = SERVICE) -> set[Endpoint]:
    """The instances of a service as DNS tells them: SRV records with their targets' addresses."""
    reply = query(host, f"{service}.service.consul", "SRV")
    addresses = {
        rrset.name: record.address
        for rrset in reply.additional
        if rrset.rdtype == dns.rdatatype.A
        for record in rrset
    }
    return {
        Endpoint(addresses[record.target], record.port)
        for rrset in reply.answer
        if rrset.rdtype == dns.rdatatype.SRV
        for record in rrset
    }


def assert_seen(
    host: Host, expected: Iterable[Endpoint], *, within: float, since: float | None = None
) -> None:
    """Both the catalogue and DNS on `host` show exactly `expected`, `within` seconds after `since`.

    Args:
        host: who looks.
        expected: all instances of the example service.
        within: seconds.
        since: the moment of the change on time.monotonic()'s clock; now if not given.
    """
    wanted = set(expected)
    began = time.monotonic() if since is None else since
    history: list[str] = []

    def seen_by_both() -> bool:
        known, answered = set(catalogue(host).values()), srv(host)
        view = f"catalogue {sorted(known)}, DNS {sorted(answered)}"
        if not history or not history[-1].endswith(view):
            history.append(f"  {time.monotonic() - began:6.3f} s: {view}")
        return known == answered == wanted

    try:
        # Waiting longer than is allowed tells late from never.
        wait_until(seen_by_both, within + 10, interval=0.01)
        took = time.monotonic() - began
    except AssertionError:
        took = math.inf
    story = "\n".join([f"{host.name} was to see {sorted(wanted)} within {within} s, and saw:", *history])
    print(story)  # for `pytest -rP`: how much of the time that was allowed it took
    assert took <= within, story


def add_hand_made(host: Host) -> None:
    """Register, on this host's agent, a service that nobody but us owns; wait until the catalogue has it."""
    host.consul("/v1/agent/service/register", "PUT", HAND_MADE)
    wait_until(
        lambda: any(
            entry["Node"] == host.name for entry in host.consul(f"/v1/catalog/service/{HAND_MADE['Name']}")
        ),
        10,
        message=f"the catalogue has the hand-made service of {host.name}",
    )
