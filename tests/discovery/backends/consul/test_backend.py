"""The Consul backend as its callers see it: addresses, headers, and answers that make no sense.

That it does the right thing with an agent's right answers is the contract suite's business.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest

from discovery import backends
from discovery.backends import open_backend
from discovery.backends.consul import Consul
from discovery.config import Config, ConsulConfig
from discovery.errors import ConfigurationError, RegistryTimeout, RegistryUnavailable
from discovery.model import NamesQuery, NodesQuery, PreparedQuery, PreparedResult, Registration, ServiceQuery
from tests.discovery.rawserver import Peer, RawServer, answer

WEB = ServiceQuery("web")


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[Consul, RawServer]]]:
    """Start a server that answers everything alike, and return a backend for it."""
    opened: list[tuple[Consul, RawServer]] = []

    def start(body: object, *, status: str = "200 OK", headers: str = "") -> tuple[Consul, RawServer]:
        def talk(peer: Peer) -> None:
            while peer.request():
                peer.send(answer(body, status=status, headers=headers))

        server = RawServer(talk).__enter__()
        opened.append((Consul(server.config), server))
        return opened[-1]

    yield start
    for consul, server in opened:
        consul.close()
        server.__exit__(None, None, None)


# --- addresses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "where"),
    [
        ("consul://10.0.0.1:8501", "http://10.0.0.1:8501"),
        ("consul://consul.example", "http://consul.example:8500"),
        ("consul-tls://10.0.0.1:8501", "https://10.0.0.1:8501"),
        ("consul-unix:///run/consul.sock", "unix:///run/consul.sock"),
        ("consul://", "http://192.0.2.7:8507"),
    ],
)
def test_a_uri_opens_the_backend_for_its_address(uri, where):
    config = Config(consul=ConsulConfig(host="192.0.2.7", port=8507, token="t-1"))
    backend = open_backend(uri, config)
    assert backend.where == where
    assert backend.source == "http"
    assert backend.config.token == "t-1"
    assert backend.config.explicit
    backend.close()


@pytest.mark.parametrize("uri", ["etcd://127.0.0.1:2379", "127.0.0.1:8500", "etcd://[::1", ""])
def test_a_uri_of_no_known_registry_is_refused_with_those_that_are(uri):
    with pytest.raises(ConfigurationError) as caught:
        open_backend(uri, Config())
    assert f"no backend for the registry URI {uri!r}; known are " in str(caught.value)
    assert "consul://" in str(caught.value)


def test_other_distributions_bring_backends_and_do_not_replace_ours(tmp_path, monkeypatch):
    (tmp_path / "other-1.0.dist-info").mkdir()
    (tmp_path / "other-1.0.dist-info" / "METADATA").write_text("Name: other\nVersion: 1.0\n")
    (tmp_path / "other-1.0.dist-info" / "entry_points.txt").write_text(
        "[discovery.backends]\nother = builtins:max\nconsul = builtins:max\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(backends, "_installed", functools.cache(backends._installed.__wrapped__))
    assert open_backend("other://", "another argument") == "other://"
    assert isinstance(open_backend("consul://", Config()), Consul)


def test_a_uri_with_a_wrong_address_is_refused():
    with pytest.raises(ConfigurationError, match="from the registry URI"):
        open_backend("consul://10.0.0.1:port", Config())


# --- headers -------------------------------------------------------------------------------------------


def test_what_the_headers_say_is_kept_with_the_answer(serve):
    headers = "X-Consul-Index: 42\r\nX-Consul-KnownLeader: false\r\nX-Consul-LastContact: 250\r\n"
    consul, _ = serve([], headers=headers)
    reply = consul.read(WEB)
    assert (reply.value, reply.index, reply.known_leader, reply.last_contact) == ((), 42, False, 0.25)


def test_an_agent_that_says_nothing_of_leaders_and_indexes_has_a_leader_and_no_index(serve):
    consul, _ = serve([])
    reply = consul.read(WEB)
    assert (reply.index, reply.known_leader, reply.last_contact) == (0, True, 0.0)


def test_a_stream_that_has_brought_nothing_yet_is_no_empty_answer(serve):
    """Consul 1.20 does this when its wait ends before the stream's first word; index 1 means none."""
    headers = "X-Consul-Index: {}\r\nX-Consul-KnownLeader: false\r\nX-Consul-Query-Backend: streaming\r\n"
    consul, _ = serve([], headers=headers.format(1))
    with pytest.raises(
        RegistryUnavailable, match="had nothing from its servers to answer /v1/health/service/web"
    ):
        consul.read(WEB)
    consul, _ = serve([], headers=headers.format(13))
    reply = consul.read(WEB)
    assert (reply.value, reply.index, reply.known_leader) == ((), 13, True)


def test_a_blocking_read_is_asked_with_its_index_and_given_time_beyond_its_wait(serve):
    consul, server = serve([])
    reader = consul.connect()
    reader.read(WEB, index=42, wait=30.0, timeout=5.0)
    reader.close()
    assert "/v1/health/service/web?stale=&index=42&wait=30s " in server.requests[0]


def test_a_blocking_read_whose_agent_was_replaced_asks_the_new_one_without_the_index(serve):
    def hang_up_after_one(peer: Peer) -> None:
        peer.request()
        peer.send(answer([], headers="X-Consul-Index: 3\r\n"))

    with RawServer(hang_up_after_one) as server:
        reader = Consul(server.config).connect()
        first = reader.read(WEB)
        second = reader.read(WEB, index=42, wait=30.0)
        reader.close()
    assert (first.connection, second.connection, second.index) == (1, 2, 3)
    assert server.requests[-1].startswith("GET /v1/health/service/web?stale= "), "it would be held for 30 s"


# --- prepared queries ----------------------------------------------------------------------------------

RAW_ROWS = [
    {"Node": {"Node": name, "Address": f"10.0.0.{n}"}, "Service": {"ID": f"web-{n}", "Service": "web"}}
    for n, name in enumerate(["near", "far"], start=1)
]


def talk_about_queries(near: str, status: str = "200 OK", rows: object = RAW_ROWS) -> Callable[[Peer], None]:
    """Answer an execution with *rows*, and the question for the definition with *status*."""

    def talk(peer: Peer) -> None:
        while asked := peer.request():
            if "/execute" in asked:
                peer.send(answer({"Service": "web", "Nodes": rows}))
            else:
                peer.send(answer({"Query": {"Service": {"Near": near}}}, status=status))

    return talk


@pytest.mark.parametrize(
    ("near", "status", "ordered"),
    [
        ("_agent", "200 OK", True),
        ("", "200 OK", False),
        ("", "403 Forbidden", True),  # who knows? An order kept in vain harms least
        ("", "404 Not Found", True),  # removed a moment ago
    ],
)
def test_a_prepared_query_is_executed_and_its_definition_says_whether_the_order_counts(near, status, ordered):
    with RawServer(talk_about_queries(near, status)) as server:
        consul = Consul(server.config)
        reader = consul.connect()
        replies = [consul.read(PreparedQuery("q")), reader.read(PreparedQuery("q"), index=42, wait=30.0)]
        reader.close()
        consul.close()
    for reply in replies:
        assert [entry.id for entry in reply.value.entries] == ["web-1", "web-2"]
        assert reply.value.ordered is ordered
    assert not any("index=" in request for request in server.requests), "it cannot block"


def test_the_order_of_one_instance_is_nobodys_question():
    with RawServer(talk_about_queries("_agent", rows=RAW_ROWS[:1])) as server:
        consul = Consul(server.config)
        assert len(consul.read(PreparedQuery("q")).value.entries) == 1
        consul.close()
    assert ["/execute" in request for request in server.requests] == [True]


def test_a_prepared_query_that_does_not_exist_finds_nothing(serve):
    consul, _ = serve(b"Query not found", status="404 Not Found")
    assert consul.read(PreparedQuery("q")).value == PreparedResult()


def test_a_new_agent_that_hangs_is_not_given_the_wait_of_the_last_one(serve):
    def hang_up_after_one_and_hang(peer: Peer) -> None:
        peer.request()
        if server.accepted == 1:
            peer.send(answer([]))
        else:
            server.closing.wait()

    with RawServer(hang_up_after_one_and_hang) as server:
        reader = Consul(server.config).connect()
        reader.read(WEB)
        with pytest.raises(RegistryTimeout, match=r"within 0\.2 s"):
            reader.read(WEB, index=42, wait=300.0, timeout=0.2)
        reader.close()


# --- answers that make no sense ------------------------------------------------------------------------


def blocking_read(consul: Consul) -> None:
    reader = consul.connect()
    try:
        reader.read(WEB, index=1, wait=1.0)
    finally:
        reader.close()


@pytest.mark.parametrize(
    ("ask", "body"),
    [
        (lambda consul: consul.read(WEB), {"a": "map"}),
        (lambda consul: consul.read(WEB), None),
        (lambda consul: consul.read(WEB), [{"Node": None, "Service": None}]),
        (lambda consul: consul.read(NamesQuery()), ["a", "list"]),
        (lambda consul: consul.read(NodesQuery()), [1]),
        (lambda consul: consul.read(PreparedQuery("q")), []),
        (lambda consul: consul.read(PreparedQuery("q")), {"Service": "web", "Nodes": RAW_ROWS}),
        (blocking_read, "text"),
        (Consul.registered, ["a", "list"]),
        (Consul.registered, {"web": {"ID": "web"}}),
        (Consul.agent, []),
        (Consul.agent, {"Config": {}}),
    ],
)
def test_json_that_is_not_consuls_is_an_unavailable_registry(serve, ask, body):
    consul, server = serve(body)
    with pytest.raises(RegistryUnavailable) as caught:
        ask(consul)
    assert f"http://127.0.0.1:{server.port} answered /v1/" in str(caught.value)
    assert "not of Consul's form" in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_header_that_is_no_number_is_no_answer_from_consul(serve):
    consul, _ = serve([], headers="X-Consul-Index: soon\r\n")
    with pytest.raises(RegistryUnavailable, match="not of Consul's form"):
        consul.read(WEB)


def test_an_agent_without_services_has_none(serve):
    consul, _ = serve({})
    assert consul.registered() == {}


# --- writes --------------------------------------------------------------------------------------------


def test_an_id_is_one_segment_of_a_path(serve):
    consul, server = serve(b"")
    consul.deregister("host:a/b c:80")
    consul.update_check("a/b", "passing", "fine")
    consul.maintenance("a/b", True, "tea & cake")
    consul.maintenance("a/b", False)
    asked = [one.split(" ")[1] for one in server.requests]
    assert asked == [
        "/v1/agent/service/deregister/host%3Aa%2Fb%20c%3A80",
        "/v1/agent/check/update/a%2Fb",
        "/v1/agent/service/maintenance/a%2Fb?enable=true&reason=tea+%26+cake",
        "/v1/agent/service/maintenance/a%2Fb?enable=false",
    ]
    assert server.requests[1].endswith('{"Status":"passing","Output":"fine"}')


def test_registering_replaces_the_checks_there_were(serve):
    consul, server = serve(b"")
    consul.register(Registration(id="web", name="web"), new=True)
    assert server.requests[0].startswith("PUT /v1/agent/service/register?replace-existing-checks=true ")
    assert len(server.requests) == 1


def test_registering_asks_first_whether_a_maintenance_mode_would_be_lost(serve):
    consul, server = serve({})
    consul.register(Registration(id="web", name="web"))
    assert server.requests[0].startswith("GET /v1/agent/checks ")
    assert server.requests[1].startswith("PUT /v1/agent/service/register?replace-existing-checks=true ")


def test_deregistering_what_is_gone_already_is_no_error(serve):
    consul, _ = serve(b'Unknown service ID "web"', status="404 Not Found")
    consul.deregister("web")


def test_the_agent_tells_who_it_is(serve):
    consul, _ = serve(
        {
            "Config": {"NodeName": "host-1", "Datacenter": "dc1", "Version": "1.8.7"},
            "Member": {"Addr": "172.28.128.3"},
        }
    )
    info = consul.agent()
    assert (info.node, info.dc, info.version, info.address) == ("host-1", "dc1", "1.8.7", "172.28.128.3")
