"""A lookup with nothing configured but what the environment says: each source in its turn and its time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from discovery import sources
from discovery.agent import Agent
from discovery.client import Client
from discovery.config import Config, ConsulConfig
from discovery.errors import (
    AccessDenied,
    ConfigurationError,
    NoHealthyInstances,
    RegistryTimeout,
    RegistryUnavailable,
    ServiceNotFound,
)
from discovery.model import Instance
from tests.discovery.fake import entry
from tests.discovery.nameserver import NameServer, denial, srv
from tests.discovery.rawserver import Peer, RawServer, answer, blackhole
from tests.tools import free_port, wait_until

TWO = srv(("10.0.0.1", 80), ("10.0.0.2", 80))
SLACK = 2.0  # s beyond a budget; the machine may be busy


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Client]]:
    """Start a client as a process with these variables would have it."""
    (tmp_path / "cache").mkdir(mode=0o700, exist_ok=True)
    environment = {
        "CONSUL_HTTP_ADDR": f"127.0.0.1:{free_port()}",
        "DISCOVERY_DNS": "off",
        "DISCOVERY_CACHE": str(tmp_path / "cache"),
        "DISCOVERY_SHARE": "off",
    }
    with ExitStack() as clients:

        def start(**variables: object) -> Client:
            said = {**environment, **{name: str(value) for name, value in variables.items()}}
            return clients.enter_context(Client(Config.from_env(said)))

        yield start


def silent(peer: Peer) -> None:
    peer.request()
    peer.hang()


# --- the order -----------------------------------------------------------------------------------------


def test_what_is_fixed_needs_nobody(look, tmp_path):
    file = tmp_path / "services.json"
    file.write_text(json.dumps({"db": ["10.0.0.9:5432"]}))
    client = look(DISCOVERY_PYTHON_MICRO_SERVICE="10.0.0.1:5000,10.0.0.2:5000", DISCOVERY_STATIC=file)
    started = time.monotonic()
    picked = [client.lookup("python-micro-service") for _ in range(2)]
    assert sorted(picked) == [("10.0.0.1", 5000), ("10.0.0.2", 5000)]
    assert client.lookup("DB") == ("10.0.0.9", 5432)
    assert client.lookup("db").source == "static" and not client.lookup("db").stale
    assert time.monotonic() - started < SLACK
    with pytest.raises(RegistryUnavailable):
        client.lookup("other")
    wait_until(lambda: not client.lookup("db").stale)  # its failure does not make anything else stale


def test_a_variable_that_is_wrong_is_told_to_who_asks_for_it(look):
    client = look(DISCOVERY_WEB="10.0.0.1")
    with pytest.raises(ConfigurationError, match=r"DISCOVERY_WEB='10\.0\.0\.1'"):
        client.lookup("web", default=Instance(entry()))


def test_what_is_fixed_comes_before_the_registry_and_the_registry_before_dns(look, agent: Agent, register):
    register("web", 8080)
    register("db", 5432)
    with NameServer(TWO) as names:
        client = look(CONSUL_HTTP_ADDR=agent.url, DISCOVERY_DNS=names.server, DISCOVERY_WEB="10.0.0.7:1")
        assert (client.lookup("web").source, client.lookup("db").source) == ("static", "http")
    assert names.udp == 0


def test_dns_answers_where_there_is_no_registry(look):
    with NameServer(TWO) as names:
        client = look(DISCOVERY_DNS=names.server)
        assert {client.lookup("web") for _ in range(4)} == {("10.0.0.1", 80), ("10.0.0.2", 80)}
        instance = client.lookup("web")
        assert (instance.source, instance.stale) == ("dns", False)
        names.answer = denial()
        with pytest.raises(ServiceNotFound, match="in the catalogue of DNS"):
            client.lookup("nobody")


def test_the_registry_takes_over_when_it_comes(look, agent: Agent, register, monkeypatch):
    register("web", 8080, tags=("v1",))
    monkeypatch.setattr("discovery.backends.chain.PROBE", 0.3)
    agent.close()
    with NameServer(TWO) as names:
        client = look(CONSUL_HTTP_ADDR=agent.url, DISCOVERY_DNS=names.server)
        assert client.lookup("web").source == "dns"
        with pytest.raises(NoHealthyInstances, match="which tells no tags"):
            client.lookup("web", tags=["v1"])
        agent.start()
        register("web", 8080, tags=("v1",))
        wait_until(lambda: client.lookup("web").source == "http")
        assert client.lookup("web", tags=["v1"]).port == 8080
        asked = names.udp
        agent.close()
        wait_until(lambda: client.lookup("web").stale)
        assert client.lookup("web", tags=["v1"]).source == "http"  # stale, and no poorer
        assert names.udp == asked


def test_public_denials_count_for_nothing(look):
    with NameServer(denial(".")) as public, NameServer(TWO) as own:
        assert look(DISCOVERY_DNS=f"{public.server},{own.server}").lookup("web").source == "dns"
    nobody = pytest.raises(RegistryUnavailable, match="is not the authority of consul")
    with NameServer(denial(".")) as public, nobody:
        look(DISCOVERY_DNS=public.server).lookup("web")


def test_what_was_known_a_while_ago_and_the_default_come_last(look, agent: Agent, register, caplog):
    register("web", 8080)
    before = look(CONSUL_HTTP_ADDR=agent.url)
    assert before.lookup("web", timeout=5.0).source == "http"
    before.close()
    agent.close()
    client = look(CONSUL_HTTP_ADDR=agent.url)
    caplog.clear()
    for _ in range(3):
        instance = client.lookup("web", default=Instance(entry(port=1)))
        assert (instance, instance.source, instance.stale) == (("127.0.0.1", 8080), "disk", True)
    assert client.lookup("db", default=Instance(entry(port=1))).port == 1
    warnings = [record.message for record in caplog.records]
    assert len(warnings) == 1 and "using what was known 0 s ago" in warnings[0]


def test_a_refusal_is_told_unless_another_source_knows(look):
    def refuse(peer: Peer) -> None:
        while peer.request():
            peer.send(answer(b"Permission denied", "403 Forbidden"))

    with RawServer(refuse) as registry, NameServer(denial()) as names:
        client = look(CONSUL_HTTP_ADDR=registry.config.url, DISCOVERY_DNS=names.server)
        with pytest.raises(AccessDenied, match="set CONSUL_HTTP_TOKEN") as caught:
            client.lookup("web")
        assert [attempt.source for attempt in caught.value.attempts] == [registry.config.url, "DNS"]
        names.answer = TWO
        other = look(CONSUL_HTTP_ADDR=registry.config.url, DISCOVERY_DNS=names.server)
        assert other.lookup("web").source == "dns"


def test_without_any_source_the_error_names_them_all_and_what_to_do(monkeypatch):
    monkeypatch.setattr(sources, "_CONTAINER_MARKS", ())
    with NameServer(denial(".")) as public:
        settings = Config(consul=ConsulConfig(port=free_port()), dns=(str(public.server),))
        with Client(settings) as client, pytest.raises(RegistryUnavailable) as caught:
            client.lookup("web")
    assert str(caught.value).endswith("set CONSUL_HTTP_ADDR to the address of a Consul agent")
    consul, dns = caught.value.attempts
    assert "connection refused" in consul.error and consul.elapsed < 1.0
    assert dns.source == f"DNS at {public.server}"


# --- the time ------------------------------------------------------------------------------------------


def elapsed(lookup: Callable[[], object]) -> float:
    started = time.monotonic()
    lookup()
    return time.monotonic() - started


def test_a_silent_registry_and_silent_names_leave_time_for_what_is_on_disk(look, agent: Agent, register):
    register("web", 8080)
    with RawServer(silent) as registry, NameServer(lambda _: None) as names:
        meddled = {"CONSUL_HTTP_ADDR": registry.config.url, "DISCOVERY_DNS": names.server}
        config = look(**meddled).config
        disk = sources.catalogue(config).disk
        assert disk is not None
        known = look(CONSUL_HTTP_ADDR=agent.url)
        known.lookup("web", timeout=5.0)
        disk.keep(known._services["web", None, None].query, tuple(i.entry for i in known.lookup_all("web")))
        client = look(**meddled)
        client._running_engine()  # loads the libraries, as the clock has not started
        assert 0.7 <= elapsed(lambda: client.lookup("web")) < 1.0 + SLACK
        assert client.lookup("web").source == "disk"


def test_when_all_are_silent_the_error_comes_in_time_and_says_who_was(look):
    with RawServer(silent) as registry, NameServer(lambda _: None) as names:
        client = look(CONSUL_HTTP_ADDR=registry.config.url, DISCOVERY_DNS=names.server)
        client._running_engine()
        started = time.monotonic()
        with pytest.raises(RegistryTimeout) as caught:
            client.lookup("web")
        assert time.monotonic() - started < 1.0 + SLACK
    assert [attempt.source for attempt in caught.value.attempts] == [
        registry.config.url,
        f"DNS at {names.server}",
    ]
    assert all(0.3 < attempt.elapsed < 0.4 + SLACK for attempt in caught.value.attempts)


def test_a_slow_registry_gets_its_time_in_the_end(look):
    def slow(peer: Peer) -> None:
        while peer.request():
            if peer.server.closing.wait(0.6):
                return
            web = {"ID": "w", "Service": "web", "Port": 1}
            row = {"Node": {"Node": "n", "Address": "10.0.0.1"}, "Service": web}
            peer.send(answer([row], headers="X-Consul-Index: 5\r\n"))

    with RawServer(slow) as registry, NameServer(denial(".")) as names:
        client = look(CONSUL_HTTP_ADDR=registry.config.url, DISCOVERY_DNS=names.server)
        assert client.lookup("web", timeout=10.0).source == "http"


def test_a_packet_filter_costs_the_budget(look):
    with blackhole() as port, NameServer(TWO) as names:
        client = look(CONSUL_HTTP_ADDR=f"127.0.0.1:{port}", DISCOVERY_DNS=names.server)
        client._running_engine()
        assert 0.4 <= elapsed(lambda: client.lookup("web")) < 0.8 + SLACK
        assert elapsed(lambda: client.lookup("other")) < 0.35  # it is not tried again for each name
