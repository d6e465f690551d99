"""Which hosts are services."""

from __future__ import annotations

import pytest

from discovery import Client, ConfigurationError, InvalidName
from discovery.integrations._balancer import Balancer, Target
from discovery.model import ServiceName


@pytest.mark.parametrize(
    ("host", "name", "tags", "dc"),
    [
        ("web.service.consul", "web", (), None),
        ("WEB.Service.Consul.", "web", (), None),
        ("web.service.dc2.consul", "web", (), "dc2"),
        ("v1.web.service.consul", "web", ("v1",), None),
        ("v1.2.web.service.dc2.consul", "web", ("v1.2",), "dc2"),
        ("service.service.consul", "service", (), None),
        ("short", "Short", (), None),
    ],
)
def test_the_hosts_of_services(host: str, name: str, tags: tuple[str, ...], dc: str | None) -> None:
    expected = Target(host.lower().rstrip("."), ServiceName(name), tags, dc)
    assert Balancer("test", services=["Short"]).target(host) == expected


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        ".",
        "localhost",
        "127.0.0.1",
        "::1",
        "consul",
        "service.consul",
        "web.consul",
        ".service.consul",
        "a b.service.consul",
        "web.node.consul",
        "web.service",
        "web.service.consul.example.com",
        "web.serviceconsul",
    ],
)
def test_the_hosts_of_nobody(host: str | None) -> None:
    assert Balancer("test").target(host) is None


def test_a_domain_of_several_labels() -> None:
    balancer = Balancer("test", client=Client(domain="cluster.example."))

    assert balancer.target("web.service.cluster.example") == Target(
        "web.service.cluster.example", ServiceName("web")
    )
    assert balancer.target("web.service.example") is None
    assert balancer.target("web.service.consul") is None


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="attempts=0 is not possible"):
        Balancer("test", attempts=0)
    with pytest.raises(InvalidName, match="from services="):
        Balancer("test", services=["a b"])
