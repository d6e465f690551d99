"""What all HTTP integrations promise, on real servers and a real registry: client.md's pains 8, 9 and 20."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest
import urllib3

from discovery import Client, DiscoveryError, ServiceNotFound
from discovery.backends import Backend
from discovery.balance import FAILURES
from discovery.config import Config
from discovery.model import Node, NodeName, ServiceName, ServiceQuery
from tests.discovery.fake import FakeCatalogue, entry
from tests.discovery.integrations.fleet import Fleet, Server, connections_to
from tests.discovery.integrations.libraries import LIBRARIES, Library
from tests.tools import free_port, wait_until

URL = "http://web.service.consul"
Connect = Callable[..., Library]


@pytest.fixture(params=LIBRARIES)
def connect(request: pytest.FixtureRequest, client: Client) -> Iterator[Connect]:
    """Make a client of the library, on the test's registry; arguments as ``Library``'s."""
    with ExitStack() as stack:

        def make(**options: Any) -> Library:
            library = LIBRARIES[request.param](**{"client": client, **options})
            stack.callback(library.close)
            return library

        yield make


@pytest.fixture
def web(connect: Connect) -> Library:
    return connect()


def test_08_09_each_request_is_balanced_and_connections_are_kept(web: Library, servers: list[Server]) -> None:
    before = {server.port: server.ask("/count")["connections"] for server in servers}

    met = Counter(web.request("GET", f"{URL}/")["port"] for _ in range(3000))

    assert set(met) == set(before)
    assert all(abs(count - 1000) <= 20 for count in met.values()), met  # 2 %
    # One connection of ours each; the other new one is what asks for the count.
    assert [server.ask("/count")["connections"] - before[server.port] for server in servers] == [2, 2, 2]


def test_20_no_idempotent_request_fails_when_an_instance_is_killed(
    web: Library, fleet: Fleet, start_server: Callable[..., Server]
) -> None:
    servers = [start_server() for _ in range(3)]
    for server in servers:
        fleet.register(server.port)
    victim = servers[0]
    met: Counter[int] = Counter()
    failures: list[Exception] = []

    def ask() -> None:
        for n in range(200):
            try:
                method = ("GET", "PUT", "DELETE")[n % 3]
                met[web.request(method, f"{URL}/", "x" if method == "PUT" else None)["port"]] += 1
            except web.error as exc:
                failures.append(exc)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: met[victim.port] > 20, message="the victim is in use")
    victim.kill()
    for thread in threads:
        thread.join()

    assert not failures
    assert sum(met.values()) == 800  # it is registered still: nothing but the failures told us
    assert met[victim.port] < 200


def test_09_connections_to_an_instance_that_left_are_closed_without_a_request(
    web: Library, fleet: Fleet, servers: list[Server]
) -> None:
    for _ in range(6):
        web.request("GET", f"{URL}/")
    leaving, staying = servers[0], servers[1]
    assert connections_to(leaving.port) == connections_to(staying.port) == 1

    fleet.deregister(leaving.port)

    wait_until(lambda: connections_to(leaving.port) == 0, interval=0.001)
    assert connections_to(staying.port) == 1
    assert {web.request("GET", f"{URL}/")["port"] for _ in range(6)} == {s.port for s in servers[1:]}


def test_an_instance_that_comes_or_comes_back_gets_its_share(
    web: Library, fleet: Fleet, shared_servers: list[Server]
) -> None:
    first, second = shared_servers[:2]
    fleet.register(first.port)
    assert {web.request("GET", f"{URL}/")["port"] for _ in range(4)} == {first.port}
    for _ in range(2):
        fleet.register(second.port)
        wait_until(lambda: web.request("GET", f"{URL}/")["port"] == second.port, interval=0)
        fleet.deregister(second.port)
        wait_until(lambda: connections_to(second.port) == 0)


def test_an_answer_under_way_outlives_its_instance(
    web: Library, fleet: Fleet, start_server: Callable[..., Server]
) -> None:
    server = start_server()
    fleet.register(server.port)
    finish = web.begin(f"{URL}/drip")

    fleet.deregister(server.port)
    wait_until(lambda: _is_empty(web))
    assert connections_to(server.port) >= 1
    server.ask("/go")

    assert finish()["path"] == "/drip"
    wait_until(lambda: connections_to(server.port) == 0)


def _is_empty(web: Library) -> bool:
    try:
        web.request("GET", f"{URL}/")
    except web.error:
        return True
    return False


def test_10_nothing_of_the_process_is_patched(web: Library, servers: list[Server]) -> None:
    """Another host is resolved and connected to by what the system and the libraries had all along."""
    assert web.request("GET", f"{URL}/")
    patched = {
        f"{module.__name__}.{name}": function.__module__
        for module, name in [
            (socket, "getaddrinfo"),
            (socket, "create_connection"),
            (urllib3.util.connection, "create_connection"),
        ]
        if "discovery" in (function := getattr(module, name)).__module__
    }
    assert not patched


def test_11_parameters_arrive(web: Library, servers: list[Server]) -> None:
    assert web.request("GET", f"{URL}/", parameters={"a": "1", "b": "x y"})["path"] in (
        "/?a=1&b=x+y",
        "/?a=1&b=x%20y",
    )


def test_host_header_path_and_body_arrive_as_they_are(web: Library, servers: list[Server]) -> None:
    asked = web.request("POST", f"{URL}/a%20b?c=d", "body")

    assert asked["headers"]["host"] == "web.service.consul"
    assert (asked["method"], asked["path"], asked["body"]) == ("POST", "/a%20b?c=d", "body")


def test_a_port_in_the_url_wins_over_the_instances(web: Library, fleet: Fleet, servers: list[Server]) -> None:
    port = servers[0].port
    for server in servers:
        fleet.deregister(server.port)
    fleet.register(free_port())

    asked = web.request("GET", f"http://web.service.consul:{port}/")

    assert asked["port"] == port
    assert asked["headers"]["host"] == f"web.service.consul:{port}"


def test_tags_and_data_centres_in_the_name_choose(web: Library, fleet: Fleet, servers: list[Server]) -> None:
    fleet.register(servers[1].port, tags=("v2", "v2.1", "Blue"))

    for host in ("v2.web.service.consul", "v2.1.WEB.service.dc1.consul.", "Blue.web.service.consul"):
        assert {web.request("GET", f"http://{host}/")["port"] for _ in range(4)} == {servers[1].port}


def test_instances_of_another_data_centre_keep_their_connections_and_lose_them_as_others_do(
    connect: Connect, shared_servers: list[Server]
) -> None:
    here, there = (ServiceQuery(ServiceName("web"), dc) for dc in (None, "dc2"))
    catalogue = FakeCatalogue()
    catalogue.set(here)
    node = Node(NodeName("node-2"), "10.0.0.9", "dc2")
    instances = [entry(port=server.port, host="127.0.0.1", node=node) for server in shared_servers]
    catalogue.set(there, *instances)
    with Client(backend=cast(Backend, catalogue), failover=["dc2"]) as client:
        web = connect(client=client)
        for _ in range(6):
            web.request("GET", f"{URL}/")
        assert [connections_to(server.port) for server in shared_servers] == [1, 1, 1]

        catalogue.set(there, *instances[1:])

        wait_until(lambda: [connections_to(server.port) for server in shared_servers] == [0, 1, 1])


def test_short_names_and_another_domain(connect: Connect, backend: Backend, servers: list[Server]) -> None:
    with Client(backend=backend, domain="cluster.example") as client:
        web = connect(client=client, services=["web"])
        for host in ("web", "web.service.cluster.example"):
            asked = [web.request("GET", f"http://{host}/") for _ in range(3)]
            assert {one["port"] for one in asked} == {server.port for server in servers}
            assert {one["headers"]["host"] for one in asked} == {host}


def test_other_hosts_are_asked_as_usual(web: Library, servers: list[Server]) -> None:
    server = servers[0]

    asked = web.request("GET", f"http://127.0.0.1:{server.port}/")

    assert asked["headers"]["host"] == f"127.0.0.1:{server.port}"


def test_a_redirect_out_of_the_service_names_its_own_host(web: Library, servers: list[Server]) -> None:
    there = f"127.0.0.1:{servers[0].port}"

    asked = web.request("GET", f"{URL}/redirect?http://{there}/there")

    assert (asked["path"], asked["headers"]["host"]) == ("/there", there)


def test_a_redirect_within_the_service_is_balanced_too(web: Library, servers: list[Server]) -> None:
    asked = [web.request("GET", f"{URL}/redirect?/there") for _ in range(6)]

    assert {one["path"] for one in asked} == {"/there"}
    assert {one["headers"]["host"] for one in asked} == {"web.service.consul"}


def test_tls_is_checked_against_the_services_name(
    connect: Connect, fleet: Fleet, backend: Backend, start_server: Callable[..., Server], certificate: Path
) -> None:
    server = start_server("--tls", str(certificate))
    fleet.register(server.port)
    Fleet(backend, "other").register(server.port)
    web = connect(cafile=str(certificate))

    asked = web.request("GET", "https://web.service.consul/")
    assert asked["headers"]["host"] == "web.service.consul"
    # The same instance under a name that its certificate is not for, on no account over the same connection.
    with pytest.raises(web.error, match=r"(?i)certificate"):
        web.request("GET", "https://other.service.consul/")


def test_what_was_certainly_not_sent_goes_to_another_instance(
    web: Library, fleet: Fleet, servers: list[Server]
) -> None:
    dead = free_port()
    fleet.register(dead)

    asked = [web.request("POST", f"{URL}/", f"body {n}") for n in range(12)]

    assert [one["body"] for one in asked] == [f"body {n}" for n in range(12)]
    assert {one["port"] for one in asked} == {server.port for server in servers}


@pytest.mark.parametrize(
    ("method", "attempts", "sent"), [("GET", 2, 2), ("GET", 3, 3), ("GET", 1, 1), ("POST", 3, 1)]
)
def test_what_may_have_been_carried_out_is_repeated_only_if_that_is_harmless(
    connect: Connect, servers: list[Server], method: str, attempts: int, sent: int
) -> None:
    web = connect(attempts=attempts)
    before = sum(server.ask("/count").get("/hang-up", 0) for server in servers)

    with pytest.raises(web.error):
        web.request(method, f"{URL}/hang-up")

    after = sum(server.ask("/count").get("/hang-up", 0) for server in servers)
    if isinstance(web, LIBRARIES["aiohttp"]) and method == "GET":
        sent *= 2  # aiohttp itself begins once more
    assert after - before == sent


def test_each_instance_is_tried_once(connect: Connect, fleet: Fleet) -> None:
    dead = [free_port() for _ in range(2)]
    for port in dead:
        fleet.register(port)
    web = connect(attempts=5)

    with pytest.raises(web.error) as caught:
        web.request("GET", f"{URL}/")

    notes = "".join(_notes(caught.value))
    assert all(notes.count(str(port)) == 1 for port in dead), notes
    assert "no other instance" in notes


def _notes(exc: BaseException | None) -> list[str]:
    """Return the notes of *exc* and of what it was raised from."""
    return [] if exc is None else [*getattr(exc, "__notes__", ()), *_notes(exc.__cause__ or exc.__context__)]


def test_repetitions_are_budgeted(connect: Connect, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("discovery.integrations._balancer.MOST_RETRIES", 0.5)
    for _ in range(2):
        fleet.register(free_port())
    web = connect()

    with pytest.raises(web.error) as caught:
        web.request("GET", f"{URL}/")

    assert "the retry budget is spent" in "".join(_notes(caught.value))


@pytest.mark.parametrize("status", [500, 503])
def test_an_instance_that_answers_with_nothing_but_errors_is_left_out(
    web: Library,
    fleet: Fleet,
    start_server: Callable[..., Server],
    monkeypatch: pytest.MonkeyPatch,
    status: int,
) -> None:
    monkeypatch.setattr("discovery.balance.EJECTION", 60.0)
    servers = [start_server() for _ in range(3)]
    for server in servers:
        fleet.register(server.port)
    sick = servers[0]
    sick.ask(f"/fail?{status}")

    met = Counter(web.request("GET", f"{URL}/")["port"] for _ in range(60))

    assert met[sick.port] == FAILURES
    assert met[servers[1].port] > 25 and met[servers[2].port] > 25


def test_an_instance_that_cannot_do_what_no_other_can_stays(
    web: Library, fleet: Fleet, start_server: Callable[..., Server]
) -> None:
    servers = [start_server() for _ in range(2)]
    for server in servers:
        fleet.register(server.port)
    servers[0].ask("/fail?501")

    met = Counter(web.request("GET", f"{URL}/")["port"] for _ in range(20))

    assert met[servers[0].port] == 10


def test_an_unknown_service_is_the_librarys_own_error_and_says_why(
    web: Library, servers: list[Server]
) -> None:
    with pytest.raises(web.error, match="no service is called 'wed'") as caught:
        web.request("GET", "http://wed.service.consul/")

    assert isinstance(caught.value.__cause__, ServiceNotFound)
    assert caught.value.__cause__.close == ("web",)


def test_a_registry_that_is_down_is_the_librarys_own_error(connect: Connect) -> None:
    config = Config.from_env({"CONSUL_HTTP_ADDR": f"127.0.0.1:{free_port()}"})
    with Client(config) as nowhere:
        web = connect(client=nowhere)
        with pytest.raises(web.error, match="cannot ask Consul") as caught:
            web.request("GET", f"{URL}/")
    assert isinstance(caught.value.__cause__, DiscoveryError)


def test_a_client_that_was_closed_and_is_used_again_is_followed_again(
    web: Library, client: Client, fleet: Fleet, servers: list[Server]
) -> None:
    for _ in range(3):
        web.request("GET", f"{URL}/")
    client.close()

    assert {web.request("GET", f"{URL}/")["port"] for _ in range(6)} == {server.port for server in servers}
    leaving = servers[0]
    assert connections_to(leaving.port) == 1
    fleet.deregister(leaving.port)
    wait_until(lambda: connections_to(leaving.port) == 0)
    assert {web.request("GET", f"{URL}/")["port"] for _ in range(6)} == {s.port for s in servers[1:]}


@pytest.mark.parametrize("connect", [name for name in LIBRARIES if name != "aiohttp"], indirect=True)
def test_closed_connections_are_gone_and_a_later_request_opens_new_ones(
    connect: Connect, servers: list[Server]
) -> None:
    web = connect()
    for _ in range(2):
        for _ in servers:
            web.request("GET", f"{URL}/")
        assert [connections_to(server.port) for server in servers] == [1, 1, 1]
        web.hang_up()
        assert [connections_to(server.port) for server in servers] == [0, 0, 0]
