"""resolver.config: Consul's agent keys, addresses, resolv.conf."""

from __future__ import annotations

import json
import os
from ipaddress import ip_address
from pathlib import Path

import pytest

from discovery.errors import ConfigurationError
from resolver.config import (
    Endpoint,
    Settings,
    SystemUpstreams,
    apply_agent_config,
    forward_from_text,
    nameservers,
    read_agent_config,
    upstream_from_text,
    without,
)
from resolver.forward import Upstream
from resolver.records import Soa

AGENT = {
    "datacenter": "east",
    "domain": "sd.example.",
    "alt_domain": "consul",
    "recursors": ["192.0.2.53", "192.0.2.54:5353", "2001:db8::53", "[2001:db8::54]:5353"],
    "translate_wan_addrs": True,
    "dns_config": {
        "node_ttl": "1m30s",
        "service_ttl": {"*": "5s", "Web": "10s", "db-*": "1500ms"},
        "soa": {"refresh": 1, "retry": 2, "expire": 3, "min_ttl": 4},
        "only_passing": True,
        "udp_answer_limit": 5,
        "a_record_limit": 7,
        "enable_truncate": True,
        "disable_compression": True,
        "enable_additional_node_meta_txt": False,
        "recursor_timeout": "3s",
    },
}


def test_consuls_keys_have_consuls_meaning() -> None:
    settings, warnings = apply_agent_config(Settings(), AGENT, origin="agent.json")
    assert warnings == []
    zone, answers = settings.zone, settings.answers
    assert (zone.domain, zone.alt_domain, zone.datacenter) == ((b"sd", b"example"), (b"consul",), "east")
    assert zone.translate_wan_addrs
    assert settings.upstreams == (
        Upstream("192.0.2.53"),
        Upstream("192.0.2.54", 5353),
        Upstream("2001:db8::53"),
        Upstream("2001:db8::54", 5353),
    )
    assert zone.node_ttl == 90
    assert dict(zone.service_ttl) == {"*": 5.0, "web": 10.0, "db-*": 1.5}
    assert zone.soa == Soa(refresh=1, retry=2, expire=3, min_ttl=4)
    assert zone.only_passing
    assert zone.a_record_limit == 7
    assert not zone.node_meta_txt
    assert (answers.udp_answer_limit, answers.enable_truncate, answers.disable_compression) == (5, True, True)
    assert settings.upstream_attempt == 3.0


def test_an_empty_configuration_changes_nothing() -> None:
    assert apply_agent_config(Settings(), {}, origin="agent.json") == (Settings(), [])


def test_every_key_without_effect_is_named() -> None:
    raw = {"server": True, "dns_config": {"use_cache": True, "soa": {"mname": "x"}}, "ports": {"dns": 53}}
    settings, warnings = apply_agent_config(Settings(), raw, origin="agent.json")
    assert settings == Settings()
    assert [warning.split()[0] for warning in warnings] == [
        "server",
        "ports",
        "dns_config.use_cache",
        "dns_config.soa.mname",
    ]
    assert all("agent.json" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        ({"domain": 7}, "domain=7"),
        ({"domain": "a..b"}, "domain"),
        ({"recursors": "192.0.2.53"}, "recursors"),
        ({"recursors": ["ns.example.test"]}, "ns.example.test"),
        ({"dns_config": []}, "dns_config"),
        ({"dns_config": {"node_ttl": "10"}}, "dns_config.node_ttl='10'"),
        ({"dns_config": {"node_ttl": 10}}, "dns_config.node_ttl=10"),
        ({"dns_config": {"service_ttl": {"web": "soon"}}}, "dns_config.service_ttl.web='soon'"),
        ({"dns_config": {"udp_answer_limit": -1}}, "dns_config.udp_answer_limit=-1"),
        ({"dns_config": {"only_passing": 1}}, "dns_config.only_passing=1"),
        ({"dns_config": {"a_record_limit": True}}, "dns_config.a_record_limit=True"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_its_origin(raw: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        apply_agent_config(Settings(), raw, origin="agent.json")
    assert named in str(raised.value)
    assert "agent.json" in str(raised.value)


def test_reading_the_file(tmp_path: Path) -> None:
    path = tmp_path / "agent.json"
    with pytest.raises(ConfigurationError, match="No such file"):
        read_agent_config(path)
    path.write_text('domain = "consul"')
    with pytest.raises(ConfigurationError, match="HCL"):
        read_agent_config(path)
    path.write_text("[]")
    with pytest.raises(ConfigurationError, match="list"):
        read_agent_config(path)
    path.write_text(json.dumps(AGENT))
    assert read_agent_config(path) == AGENT


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("172.17.0.1", Endpoint("172.17.0.1", 53)),
        ("172.17.0.1:5353", Endpoint("172.17.0.1", 5353)),
        ("0.0.0.0:0", Endpoint("0.0.0.0", 0)),
        ("::1", Endpoint("::1", 53)),
        ("[::1]", Endpoint("::1", 53)),
        ("[::1]:5353", Endpoint("::1", 5353)),
    ],
)
def test_endpoints(text: str, expected: Endpoint) -> None:
    assert Endpoint.from_text(text, origin="--listen") == expected


@pytest.mark.parametrize(
    "text", ["", "docker0:53", "1.2.3.4:", "1.2.3.4:dns", "1.2.3.4:65536", "[::1]x:53", "1.2.3.4:-1"]
)
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--listen"):
        Endpoint.from_text(text, origin="--listen")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", Upstream("192.0.2.1", 53)),
        ("[2001:db8::1]:5353", Upstream("2001:db8::1", 5353)),
        ("tls://192.0.2.1", Upstream("192.0.2.1", 853, tls=True)),
        ("tls://192.0.2.1:8853#dns.test", Upstream("192.0.2.1", 8853, tls=True, tls_name="dns.test")),
        ("tls://[2001:db8::1]#dns.test", Upstream("2001:db8::1", 853, tls=True, tls_name="dns.test")),
    ],
)
def test_upstreams(text: str, expected: Upstream) -> None:
    assert upstream_from_text(text, origin="--upstream") == expected


@pytest.mark.parametrize("upstream", [Upstream("192.0.2.1"), Upstream("2001:db8::1", 853, True, "dns.test")])
def test_upstreams_are_written_as_they_are_read(upstream: Upstream) -> None:
    assert upstream_from_text(str(upstream), origin="--upstream") == upstream


def test_domains_with_upstreams_of_their_own() -> None:
    assert forward_from_text("Corp.example=10.0.0.53,tls://10.0.0.54", origin="--forward") == (
        (b"corp", b"example"),
        (Upstream("10.0.0.53"), Upstream("10.0.0.54", 853, tls=True)),
    )
    for wrong in ("corp.example", "=10.0.0.53", "corp.example=", "a..b=10.0.0.53", "corp.example=ns.example"):
        with pytest.raises(ConfigurationError, match="--forward"):
            forward_from_text(wrong, origin="--forward")


# --- resolv.conf

RESOLV_CONF = """\
# made by hand
nameserver 127.0.0.1
nameserver   192.0.2.53   # trailing words
nameserver ns.example.test
nameserver
nameserver 192.0.2.53
nameserver fe80::1%eth0
search example.test
"""


def test_nameservers_are_read_as_glibc_reads_them() -> None:
    assert nameservers(RESOLV_CONF) == (
        Upstream("127.0.0.1"),
        Upstream("192.0.2.53"),
        Upstream("fe80::1%eth0"),
    )


def test_whoever_would_ask_itself_is_left_out() -> None:
    """A resolver in its own resolv.conf would forward each question to itself for ever."""
    here = [ip_address("192.168.1.5"), ip_address("fd00::5")]

    def left(upstream: str, *listen: str, port: int = 53) -> bool:
        own = [Endpoint(one, port) for one in listen]
        return without([Upstream(upstream)], own, lambda: here) == (Upstream(upstream),)

    for upstream in ("127.0.0.1", "0.0.0.0", "::ffff:127.0.0.1"):
        assert not left(upstream, "127.0.0.1")
        assert not left(upstream, "0.0.0.0")
        assert left(upstream, "127.0.0.1", port=5353)
        assert left(upstream, "172.17.0.1")
        assert left(upstream, "::"), "of the other family"
    assert not left("192.168.1.5", "172.17.0.1", "0.0.0.0")
    assert left("192.168.1.6", "172.17.0.1", "0.0.0.0")
    for upstream in ("::1", "::", "fd00::5", "fd00::5%eth0"):
        assert not left(upstream, "::")
    assert left("fd00::6", "::")


def test_resolv_conf_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    system = SystemUpstreams([Endpoint("127.0.0.1", 53)], list, path)
    assert system.get(0.0) == ()
    path.write_text("nameserver 192.0.2.1\n")
    assert system.get(1.0) == (), "not looked at for each question"
    assert system.get(10.0) == (Upstream("192.0.2.1"),)
    new = tmp_path / "new"
    new.write_text("nameserver 192.0.2.2\n")
    os.utime(new, ns=(1, 1))
    new.rename(path)
    assert system.get(20.0) == (Upstream("192.0.2.2"),)
    path.unlink()
    assert system.get(30.0) == (Upstream("192.0.2.2"),), "gone while it is being replaced"
