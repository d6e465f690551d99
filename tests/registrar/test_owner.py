from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from discovery.model import Address, Check, Registration, ServiceID, ServiceName, Weights
from registrar.containers import ContainerID
from registrar.owner import META_SPEC, Owner, container_of, owner_name

OWNER = Owner("registrator", "MWF6:O3GY:OKZT:0001")
WEB = Registration(ServiceID("a"), ServiceName("web"), 80, checks=(Check(tcp="10.0.0.1:80", interval=10),))


@pytest.mark.parametrize(
    ("given", "hostname", "engine", "name"),
    [
        ("mine", "registrator", "host-1", "mine"),
        ("", "registrator", "host-1", "registrator"),
        ("", "743322fb4705", "host-1", "host-1"),  # 181 312 622 644 475
        ("", "743322FB4705", "host-1", "743322FB4705"),
        ("", "", "host-1", "host-1"),
        ("", "743322fb4705", "", "743322fb4705"),
    ],
)
def test_181_312_622_644_475_the_name_is_not_a_containers_id(
    given: str, hostname: str, engine: str, name: str
) -> None:
    assert owner_name(given, hostname, engine) == name


def test_505_202_two_registrars_of_one_name_are_two_owners() -> None:
    signed = OWNER.sign(WEB, ContainerID("c1"))
    assert OWNER.owns(signed)
    assert container_of(signed) == "c1"
    assert not Owner("registrator", "another engine").owns(signed)
    assert not Owner("another name", OWNER.engine).owns(signed)
    assert not OWNER.owns(WEB)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "web2"},
        {"port": 81},
        {"address": "10.0.0.2"},
        {"tags": ("a",)},
        {"meta": {"a": "b"}},
        {"tagged_addresses": {"wan": Address("203.0.113.1", 80)}},
        {"weights": Weights(10, 1)},
        {"enable_tag_override": True},
        {"checks": ()},
        {"checks": (Check(tcp="10.0.0.1:80", interval=11),)},
        {"checks": (Check(tcp="10.0.0.1:80", interval=10, header={"a": ("b",)}),)},
    ],
)
def test_the_digest_tells_every_difference(change: dict[str, Any]) -> None:
    def digest(registration: Registration) -> str:
        return OWNER.sign(registration, ContainerID("c1")).meta[META_SPEC]

    assert digest(WEB) == digest(replace(WEB))
    assert digest(replace(WEB, **change)) != digest(WEB)
