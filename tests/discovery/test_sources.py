"""Where a lookup looks when nobody said: the order, and the time that each candidate may take."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from discovery import sources
from discovery.backends.dns import Server
from discovery.client import Client
from discovery.config import Config, ConsulConfig
from discovery.errors import ConfigurationError, RegistryUnavailable
from tests.discovery.rawserver import RawServer, answer, blackhole
from tests.tools import free_port

PROMPT = 3.0  # s; generous for a loaded machine


def routes(*rows: tuple[str, str, str]) -> str:
    """/proc/net/route with rows of (destination, gateway, mask), as addresses."""
    lines = ["Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT"]
    for destination, gateway, mask in rows:
        numbers = [
            f"{struct.unpack('=L', socket.inet_aton(one))[0]:08X}" for one in (destination, gateway, mask)
        ]
        lines.append(f"eth0\t{numbers[0]}\t{numbers[1]}\t0003\t0\t0\t0\t{numbers[2]}\t0\t0\t0")
    return "\n".join(lines) + "\n"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say what this machine looks like to the search: in a container or not, with which gateway."""

    def look(*, container: bool = False, gateway: str | None = None, resolv_conf: str | None = None) -> None:
        (tmp_path / "mark").touch()
        monkeypatch.setattr(sources, "_CONTAINER_MARKS", (tmp_path / ("mark" if container else "none"),))
        table = routes(("0.0.0.0", gateway, "0.0.0.0")) if gateway else routes()
        (tmp_path / "route").write_text(table)
        monkeypatch.setattr(sources, "_ROUTES", tmp_path / "route")
        if resolv_conf is not None:
            (tmp_path / "resolv.conf").write_text(resolv_conf)
        monkeypatch.setattr(sources, "_RESOLV_CONF", tmp_path / "resolv.conf")
        monkeypatch.setattr(sources, "_is_local", lambda address: False)

    look()
    return look


def config(port: int, **more: object) -> Config:
    """Settings in which nobody chose the address."""
    return Config(consul=ConsulConfig(port=port), **more)


# --- the gateway ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "gateway"),
    [
        (
            routes(("0.0.0.0", "172.17.0.1", "0.0.0.0"), ("172.17.0.0", "0.0.0.0", "255.255.0.0")),
            "172.17.0.1",
        ),
        (routes(("10.0.0.0", "10.0.0.1", "255.0.0.0"), ("0.0.0.0", "10.0.0.9", "0.0.0.0")), "10.0.0.9"),
        (routes(("0.0.0.0", "0.0.0.0", "0.0.0.0")), None),
        (routes(("0.0.0.0", "10.0.0.1", "128.0.0.0")), None),
        (routes(), None),
        ("", None),
        ("Iface\tDestination\nshort\t00000000\n", None),
    ],
)
def test_the_default_gateway_is_read_from_the_table_of_routes(table, gateway):
    assert sources.default_gateway(table) == gateway


# --- the registry to write to --------------------------------------------------------------------------


def test_the_agent_of_this_host_is_found(agent, machine):
    registry = sources.find(config(agent.http[1]))
    assert registry.where == agent.url
    registry.close()


def test_an_address_that_somebody_chose_is_taken_without_asking(machine):
    port = free_port()
    chosen = Config(consul=ConsulConfig().at(f"127.0.0.1:{port}", origin="the test"))
    registry = sources.find(chosen)
    assert registry.where == f"http://127.0.0.1:{port}"
    registry.close()


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:8501", "[::1]:8501", "https://consul.example:443", "unix:///run/a%41.sock", "http://host"],
)
def test_a_chosen_address_arrives_unchanged(machine, address):
    chosen = Config(consul=ConsulConfig(token="t-1").at(address, origin="the test"))
    registry = sources.find(chosen)
    assert registry.where == chosen.consul.url
    assert registry.config.token == "t-1"
    registry.close()


def test_in_a_container_the_gateway_comes_next(machine):
    with RawServer(lambda peer: None, host="127.0.0.2") as host:
        machine(container=True, gateway="127.0.0.2")
        registry = sources.find(config(host.port))
        assert registry.where == f"http://127.0.0.2:{host.port}"
        registry.close()


def test_outside_of_a_container_the_gateway_is_somebody_elses(machine):
    with RawServer(lambda peer: None, host="127.0.0.2") as host:
        machine(container=False, gateway="127.0.0.2")
        with pytest.raises(RegistryUnavailable) as caught:
            sources.find(config(host.port))
    assert host.accepted == 0
    assert [attempt.source for attempt in caught.value.attempts] == [f"http://127.0.0.1:{host.port}"]


def test_when_there_is_none_the_error_says_what_was_tried(machine):
    port = free_port()
    machine(container=True, gateway="127.0.0.2")
    with pytest.raises(RegistryUnavailable) as caught:
        sources.find(config(port))
    assert [(attempt.source, attempt.error) for attempt in caught.value.attempts] == [
        (f"http://127.0.0.1:{port}", "connection refused"),
        (f"http://127.0.0.2:{port}", "connection refused"),
    ]
    assert "set CONSUL_HTTP_ADDR to the address of one" in str(caught.value)


def test_a_silent_address_costs_its_budget_and_no_more(machine):
    with blackhole() as port:
        begin = time.monotonic()
        with pytest.raises(RegistryUnavailable) as caught:
            sources.find(config(port))
        assert sources.PROBE_TIMEOUT <= time.monotonic() - begin < sources.PROBE_TIMEOUT + PROMPT
    assert caught.value.attempts[0].error == "timed out"


# --- the catalogue to read -----------------------------------------------------------------------------


def lookup_at(catalogue_config: Config, name: str = "web"):
    with Client(catalogue_config, timeout=5.0) as client:
        return client.lookup(name)


def test_what_is_fixed_comes_first(machine):
    fixed = config(free_port(), static={"WEB": "10.0.0.1:80"})
    instance = lookup_at(fixed)
    assert (instance, instance.source) == (("10.0.0.1", 80), "static")


def test_what_an_argument_fixes_is_named_as_a_lookup_names_it(machine):
    with Client(config(free_port()), static={"python-Web.1": "10.0.0.1:80"}) as client:
        assert client.lookup("python-web.1") == ("10.0.0.1", 80)


def test_the_agent_answers_what_is_not_fixed(agent, register, machine):
    register("web", 8080)
    instance = lookup_at(config(agent.http[1], static={"OTHER": "10.0.0.1:80"}))
    assert (instance, instance.source) == (("127.0.0.1", 8080), "http")


def test_in_a_container_the_hosts_agent_answers(machine):
    row = {
        "Node": {"Node": "n", "Address": "10.0.0.9"},
        "Service": {"ID": "web", "Service": "web", "Port": 80},
    }

    def serve(peer) -> None:
        while peer.request():
            peer.send(answer([row], headers="X-Consul-Index: 5\r\n"))

    with RawServer(serve, host="127.0.0.2") as host:
        machine(container=True, gateway="127.0.0.2")
        assert lookup_at(config(host.port)) == ("10.0.0.9", 80)


def test_when_nobody_answers_the_error_says_who_was_asked(machine):
    port = free_port()
    with pytest.raises(RegistryUnavailable) as caught:
        lookup_at(config(port))
    assert f"http://127.0.0.1:{port}" in str(caught.value)
    assert "CONSUL_HTTP_ADDR" in str(caught.value)


# --- name servers --------------------------------------------------------------------------------------


def test_the_name_servers_are_those_of_the_system_and_consuls_own(machine):
    machine(resolv_conf="search service.consul\nnameserver 10.0.0.53\nnameserver\n# nameserver 10.0.0.54\n")
    assert sources.name_servers(Config(dns=("auto",))) == [Server("10.0.0.53"), Server("127.0.0.1", 8600)]


def test_in_a_container_the_gateway_may_be_a_name_server(machine):
    machine(container=True, gateway="172.17.0.1", resolv_conf="nameserver 172.17.0.1\n")
    assert sources.name_servers(Config(dns=("auto",))) == [Server("172.17.0.1"), Server("127.0.0.1", 8600)]


def test_with_a_chosen_registry_only_the_systems_own_are_asked(machine):
    machine(container=True, gateway="172.17.0.1", resolv_conf="nameserver 10.0.0.53\n")
    chosen = Config(consul=ConsulConfig(explicit=True), dns=("auto",))
    assert sources.name_servers(chosen) == [Server("10.0.0.53")]


def test_the_systems_servers_are_read_anew_each_time(machine):
    auto = Config(consul=ConsulConfig(explicit=True), dns=("auto",))
    assert sources.name_servers(auto) == []
    for address in ("10.0.0.53", "10.0.0.54"):
        machine(resolv_conf=f"nameserver {address}\n")
        assert sources.name_servers(auto) == [Server(address)]


@pytest.mark.parametrize(
    ("word", "server"),
    [
        ("10.0.0.53", Server("10.0.0.53", 53)),
        ("10.0.0.53:8600", Server("10.0.0.53", 8600)),
        ("fd00::1", Server("fd00::1", 53)),
        ("[fd00::1]:8600", Server("fd00::1", 8600)),
        ("[fd00::1]", Server("fd00::1", 53)),
    ],
)
def test_a_name_server_may_be_written_in_many_ways(machine, word, server):
    assert sources.name_servers(Config(dns=(word,))) == [server]


@pytest.mark.parametrize(
    "word", ["consul.example", "10.0.0.53:0", "10.0.0.53:x", "10.0.0.53:99999", "[::1]:", ":53"]
)
def test_a_wrong_name_server_is_refused_before_anything_is_asked(machine, word):
    with pytest.raises(ConfigurationError) as caught:
        sources.catalogue(Config(dns=(word,)))
    assert f"{word!r} in DISCOVERY_DNS or dns= is no name server: write an address" in str(caught.value)
