"""The Consul backend against both agents: what it writes arrives, and what it reads is what is there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from discovery.backends import Backend, Reader, open_backend
from discovery.config import Config
from discovery.errors import (
    RegistryError,
    RegistryUnavailable,
    RequestRejected,
    UnknownResource,
)
from discovery.model import (
    Address,
    Check,
    CheckID,
    ChecksQuery,
    MarksQuery,
    NamesQuery,
    NodeName,
    NodeServicesQuery,
    NodesQuery,
    Query,
    Registration,
    ServiceEntry,
    ServiceID,
    ServiceName,
    ServiceQuery,
    Weights,
)
from tests.contract.subject import Subject
from tests.contract.web import Web
from tests.tools import free_port, wait_until

WEB = ServiceName("web")
W1 = ServiceID("host:container/1:80")
"""As the registrar makes them, and with a slash."""


@pytest.fixture
def backend(agent: Subject) -> Iterator[Backend]:
    with closing(open_backend(agent.uri, Config())) as backend:
        yield backend


@pytest.fixture
def reader(backend: Backend) -> Iterator[Reader]:
    with closing(backend.connect()) as reader:
        yield reader


def web(**fields: Any) -> Registration:
    return Registration(**{"id": W1, "name": WEB, "port": 80, **fields})


def entries(backend: Backend) -> tuple[ServiceEntry, ...]:
    found: tuple[ServiceEntry, ...] = backend.read(ServiceQuery(WEB)).value
    return found


FULL = web(
    address="10.0.0.1",
    tags=("b", "a"),
    meta={"scheme": "https", "empty": ""},
    tagged_addresses={"wan": Address("1.2.3.4", 443), "lan": Address("10.0.0.2", 0)},
    weights=Weights(passing=3, warning=0),
    enable_tag_override=True,
)
COMPLETED = {"lan_ipv4": Address("10.0.0.1", 80), "wan_ipv4": Address("10.0.0.1", 80)}
"""What agents add to a service with an address of its own."""


@pytest.mark.parametrize("registration", [web(), web(port=0), FULL], ids=["plain", "no port", "full"])
def test_what_is_registered_is_read_back(backend: Backend, registration: Registration) -> None:
    backend.register(registration)
    completed = {**registration.tagged_addresses, **(COMPLETED if registration.address else {})}
    assert backend.registered() == {W1: replace(registration, tagged_addresses=completed)}
    (entry,) = entries(backend)
    assert (entry.id, entry.name, entry.address, entry.port) == (
        W1,
        WEB,
        registration.address,
        registration.port,
    )
    assert (entry.tags, dict(entry.meta)) == (registration.tags, dict(registration.meta))
    assert (dict(entry.tagged_addresses), entry.weights) == (completed, registration.weights)
    assert entry.host == registration.address or entry.host == entry.node.address
    assert entry.status == "passing"
    assert [check.id for check in entry.checks] == ["serfHealth"]


def test_says_who_the_agent_is(agent: Subject, backend: Backend) -> None:
    info = backend.agent()
    assert (info.node, info.dc, info.address) == (agent.node(), "dc1", "127.0.0.1")
    assert info.version.startswith(f"{agent.version[0]}.{agent.version[1]}.")


def test_registering_again_changes_nothing(backend: Backend) -> None:
    registration = replace(FULL, checks=(Check(ttl=60.0),))
    backend.register(registration)
    before = backend.read(ServiceQuery(WEB))
    backend.register(registration)
    assert backend.read(ServiceQuery(WEB)) == before


def test_registering_anew_replaces_service_and_checks(backend: Backend) -> None:
    backend.register(replace(FULL, checks=(Check(ttl=60.0), Check(id=CheckID("own"), ttl=60.0, name="mine"))))
    assert [check.id for check in entries(backend)[0].checks] == ["serfHealth", "own", f"service:{W1}:1"]
    backend.register(web(port=81, checks=(Check(ttl=60.0, initial_status="passing", notes="n"),)))
    (entry,) = entries(backend)
    assert (entry.port, entry.tags) == (81, ())
    assert [(check.id, check.status, check.service_id) for check in entry.checks] == [
        ("serfHealth", "passing", None),
        (f"service:{W1}", "passing", W1),
    ]


NOTES = "a disk is being replaced"


def maintenance(agent: Subject) -> list[str]:
    """The reasons given for the maintenance modes that are on."""
    checks = agent.get("/v1/agent/checks").values()
    return [row["Notes"] for row in checks if row["Type"] == "maintenance"]


def test_registering_anew_leaves_the_maintenance_mode(agent: Subject, backend: Backend) -> None:
    """And replaces all else, as it does without: ``replace-existing-checks`` alone would lift it."""
    mine = (Check(ttl=60.0), Check(id=CheckID("mine"), ttl=60.0), Check(id=CheckID("old"), ttl=60.0))
    backend.register(web(checks=mine), new=True)
    backend.update_check(CheckID("mine"), "passing", "fine")
    backend.maintenance(W1, True, NOTES)
    changed = (Check(id=CheckID("mine"), ttl=60.0), Check(ttl=60.0, initial_status="passing"))
    for _ in range(2):
        backend.register(web(port=81, checks=changed))
        (entry,) = entries(backend)
        assert entry.port == 81
        assert {check.id: (check.status, check.output) for check in entry.checks} == {
            CheckID("serfHealth"): ("passing", entry.checks[0].output),
            CheckID(f"_service_maintenance:{W1}"): ("critical", ""),
            CheckID("mine"): ("passing", "fine"),
            CheckID(f"service:{W1}:2"): ("passing", ""),
        }
        assert maintenance(agent) == [NOTES]
    backend.register(web(port=82))
    assert maintenance(agent) == [NOTES]
    assert set(agent.get("/v1/agent/checks")) == {f"_service_maintenance:{W1}"}
    # What is known to be new has nothing that could be kept; nor has what was deregistered.
    backend.deregister(W1)
    backend.register(web(checks=changed), new=True)
    assert maintenance(agent) == []


def test_replacing_checks_lifts_the_maintenance_mode(agent: Subject) -> None:
    """Consul's own behaviour, for which the backend asks first."""
    agent.register("web")
    agent.put("/v1/agent/service/maintenance/web?enable=true")
    agent.register("web", Port=1)
    assert len(maintenance(agent)) == 1
    agent.put("/v1/agent/service/register?replace-existing-checks=true", {"Name": "web", "Port": 2})
    assert maintenance(agent) == []


def test_deregistering(backend: Backend) -> None:
    backend.register(web(checks=(Check(ttl=60.0),)))
    backend.register(replace(FULL, id=ServiceID("2")))
    backend.deregister(W1)
    assert set(backend.registered()) == {"2"}
    assert [entry.id for entry in entries(backend)] == ["2"]
    backend.deregister(W1)


@pytest.mark.parametrize("status", ["passing", "warning", "critical"])
def test_reports_on_a_ttl_check(backend: Backend, status: Any) -> None:
    backend.register(web(checks=(Check(ttl=60.0, deregister_after=3600.0),)))
    check_id = CheckID(f"service:{W1}")
    backend.update_check(check_id, "warning" if status != "warning" else "passing", "first")
    backend.update_check(check_id, status, "a note: 100 % ünï")
    check = entries(backend)[0].checks[-1]
    assert (check.status, check.output) == (status, "a note: 100 % ünï")


def test_checks_of_every_kind(backend: Backend, web: Web) -> None:
    """Each starts with a status that it will not keep: what it asks for arrived, and is being done."""
    url = f"http://127.0.0.1:{web.port}"
    header = {"X-A": ("1",)}
    checks = {
        "http": (Check(http=f"{url}/ok"), "passing"),
        "post": (Check(http=f"{url}/post", method="POST", header=header, body="hello"), "passing"),
        "tls": (Check(http=f"https://127.0.0.1:{web.port}/", tls_skip_verify=True), "critical"),
        "tcp": (Check(tcp=f"127.0.0.1:{web.port}"), "passing"),
        "ttl": (Check(ttl=0.8), "critical"),
    }
    wanted = {check_id: status for check_id, (_, status) in checks.items()}
    definitions = [
        replace(
            check,
            id=CheckID(check_id),
            initial_status="warning",
            interval=None if check.ttl else 1.0,
            timeout=None if check.ttl else 0.5,
        )
        for check_id, (check, _) in checks.items()
    ]
    backend.register(Registration(id=W1, name=WEB, port=80, checks=tuple(definitions)))
    wait_until(
        lambda: wanted == {check.id: check.status for check in entries(backend)[0].checks if check.service_id}
    )
    method, _, headers, body = next(seen for seen in list(web.seen) if seen[1] == "/post")
    assert (method, headers["X-A"], body) == ("POST", "1", "hello")


def test_maintenance(backend: Backend) -> None:
    backend.register(web())
    backend.maintenance(W1, True, "why & how")
    (entry,) = entries(backend)
    assert entry.status == "critical"
    assert entry.checks[-1].id == f"_service_maintenance:{W1}"
    backend.maintenance(W1, False)
    assert entries(backend)[0].status == "passing"


Act = Callable[[Backend], object]
NONE = ServiceID("none")
REFUSED: list[tuple[str, Act, type[RegistryError], int, int]] = [
    # what, and the status that Consul 1.8 and the current one answer it with
    ("report on an unknown check", lambda b: b.update_check(CheckID("none"), "passing"),
     UnknownResource, 500, 404),
    ("maintenance of an unknown service", lambda b: b.maintenance(NONE, True), UnknownResource, 404, 404),
    ("a service without a name", lambda b: b.register(web(name="")), RequestRejected, 400, 400),
    ("a meta key with a space", lambda b: b.register(web(meta={"a b": "c"})), RequestRejected, 400, 400),
    ("a check without interval", lambda b: b.register(web(checks=(Check(tcp="x:1"),))),
     RequestRejected, 400, 400),
    ("an unknown dc", lambda b: b.read(ServiceQuery(WEB, dc="dc9")), RequestRejected, 500, 500),
    ("names of an unknown dc", lambda b: b.read(NamesQuery(dc="dc9")), RequestRejected, 500, 500),
]  # fmt: skip


@pytest.mark.parametrize(
    ("act", "kind", "consul_1_8", "current"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_refusals(
    agent: Subject, backend: Backend, act: Act, kind: type[RegistryError], consul_1_8: int, current: int
) -> None:
    with pytest.raises(kind) as error:
        act(backend)
    assert error.value.status == agent.by_release(consul_1_8=consul_1_8, current=current)
    assert f"http://{agent.host}:{agent.port}" in str(error.value)
    assert backend.registered() == {}


# --- reading


def test_every_query(agent: Subject, backend: Backend, reader: Reader) -> None:
    backend.register(FULL)
    agent.put(
        "/v1/catalog/register",
        {
            "Node": "n2",
            "Address": "10.0.0.9",
            "NodeMeta": {"zone": "a"},
            "Service": {"Service": "web", "ID": "far", "Tags": ["far"]},
            "Check": {"Name": "c", "ServiceID": "far", "Status": "odd"},
        },
    )
    for read in (backend.read, reader.read):
        by_id = {entry.id: entry for entry in read(ServiceQuery(ServiceName("WEB"))).value}
        assert set(by_id) == {W1, "far"}
        far = by_id[ServiceID("far")]
        assert (far.host, far.port, far.status) == ("10.0.0.9", 0, "critical")
        assert (far.node.name, far.node.dc, dict(far.node.meta)) == ("n2", "dc1", {"zone": "a"})
        names = read(NamesQuery()).value
        assert {name: set(tags) for name, tags in names.items()} == {
            "consul": set(),
            "web": {"a", "b", "far"},
        }
        nodes = {node.name: node for node in read(NodesQuery()).value}
        assert set(nodes) == {agent.node(), "n2"}
        assert nodes[NodeName("n2")] == far.node
        on_n2 = read(NodeServicesQuery(NodeName("n2"))).value
        assert [(entry.id, entry.name, entry.tags, entry.checks) for entry in on_n2] == [
            ("far", "web", ("far",), ())
        ]
        assert read(NodeServicesQuery(NodeName("none"))).value == ()
        assert read(ServiceQuery(ServiceName("none"))).value == ()
        assert read(ServiceQuery(WEB, dc="dc1")).index > 0


def test_marks_change_with_everything_that_happens_to_an_instance(agent: Subject, backend: Backend) -> None:
    def marks() -> set[tuple[str, int]]:
        found = backend.read(MarksQuery(NodeName("n2"))).value
        seen.append(frozenset(found))
        return {(name, count) for name, count, _ in found}

    def put(**service: object) -> None:
        service = {"Service": "web", "ID": "far", **service}
        agent.put("/v1/catalog/register", {"Node": "n2", "Address": "10.0.0.9", "Service": service})

    seen: list[frozenset[Any]] = []
    assert marks() == set()
    weights = {"Passing": 3, "Warning": 1}
    for change in ({}, {"Port": 81}, {"Address": "10.0.0.7"}, {"Tags": ["x"]}, {"Weights": weights}):
        put(**change)
        assert marks() == {("web", 1)}
    put(ID="second")
    assert marks() == {("web", 2)}
    agent.put("/v1/catalog/deregister", {"Node": "n2", "ServiceID": "far"})
    assert marks() == {("web", 1)}
    assert len(set(seen)) == len(seen), "each differs from all before"


def test_checks_are_found_by_their_status(agent: Subject, backend: Backend) -> None:
    def put(status: str, **check: str) -> None:
        check = {"CheckID": "alive", "Name": "alive", "Status": status, **check}
        body = {"Node": "n2", "Address": "x", "Service": {"Service": "far"}, "Check": check}
        agent.put("/v1/catalog/register", body)

    put("passing", ServiceID="far")
    before = set(backend.read(ChecksQuery("critical")).value)
    put("critical", ServiceID="far")
    put("critical", CheckID="disk")
    after = set(backend.read(ChecksQuery("critical")).value)
    assert after - before == {("n2", "far", "alive"), ("n2", "", "disk")}
    put("warning", ServiceID="far")
    assert ("n2", "far", "alive") in backend.read(ChecksQuery("warning")).value


@pytest.mark.parametrize(
    "query",
    [ServiceQuery(WEB), NamesQuery(), NodeServicesQuery(NodeName("n2"))],
    ids=lambda q: type(q).__name__,
)
def test_a_blocking_read_returns_with_the_change(
    agent: Subject, backend: Backend, reader: Reader, query: Query
) -> None:
    agent.put("/v1/catalog/register", {"Node": "n2", "Address": "x", "Service": {"Service": "far"}})
    first = reader.read(query)

    def next_value() -> Any:
        """A return does not imply a change: 1.8 wakes readers of one node for what happens on another."""
        reply = first
        while reply.value == first.value:
            index = reply.index
            reply = reader.read(query, index=index, wait=20.0)
            assert reply.index >= index
        return reply.value

    with ThreadPoolExecutor(1) as thread:
        read = thread.submit(next_value)
        backend.register(web())
        agent.put("/v1/catalog/register", {"Node": "n2", "Address": "x", "Service": {"Service": "web"}})
        assert "web" in str(read.result(timeout=15))


def test_a_blocking_read_comes_back_when_its_wait_is_over(backend: Backend, reader: Reader) -> None:
    backend.register(web())
    first = reader.read(ServiceQuery(WEB))
    started = time.monotonic()
    second = reader.read(ServiceQuery(WEB), index=first.index, wait=0.2)
    assert time.monotonic() - started >= 0.2
    assert (second.value, second.index) == (first.value, first.index)
    assert second.known_leader
    assert reader.read(NamesQuery()).value == {"consul": (), "web": ()}, "on the same connection"


def test_a_reader_follows_through_many_changes(backend: Backend, reader: Reader) -> None:
    seen: list[int] = []

    def follow() -> None:
        index = 0
        while not seen or seen[-1] != 20:
            reply = reader.read(ServiceQuery(WEB), index=index, wait=20.0)
            index = reply.index
            seen.extend(entry.port for entry in reply.value)

    thread = threading.Thread(target=follow)
    thread.start()
    for port in range(1, 21):
        backend.register(web(port=port))
    thread.join()
    assert seen == sorted(seen)


def test_interrupting_a_blocking_read(backend: Backend, reader: Reader) -> None:
    index = reader.read(ServiceQuery(WEB)).index
    with ThreadPoolExecutor(1) as thread:
        read = thread.submit(reader.read, ServiceQuery(WEB), index=index, wait=60.0)
        started = time.monotonic()
        reader.interrupt()
        with pytest.raises(RegistryUnavailable):
            read.result()
    assert time.monotonic() - started < 5
    with pytest.raises(RegistryUnavailable):
        reader.read(ServiceQuery(WEB))


def test_an_agent_that_is_not_there() -> None:
    uri = f"consul://127.0.0.1:{free_port()}"
    with closing(open_backend(uri, Config())) as backend:
        for act in (
            lambda: backend.read(ServiceQuery(WEB)),
            lambda: backend.register(web()),
            lambda: backend.registered(),
        ):
            with pytest.raises(RegistryUnavailable):
                act()
