from __future__ import annotations

from collections.abc import Mapping

import pytest

from registrar.containers import Port
from registrar.metadata import Metadata, split_tags
from tests.registrar.build import container

PORTS = ["80/tcp", "81/tcp", "53/tcp", "53/udp"]
NOTHING: Mapping[str, str] = {}


def read(
    port: Port, *, env: Mapping[str, str] = NOTHING, labels: Mapping[str, str] = NOTHING
) -> dict[str, str]:
    found = Metadata.of(container(expose=PORTS, env=env, labels=labels)).for_port(port)
    return {key: value.text for key, value in found.items()}


def problems(*, env: Mapping[str, str] = NOTHING, labels: Mapping[str, str] = NOTHING) -> list[str]:
    return [str(problem) for problem in Metadata.of(container(expose=PORTS, env=env, labels=labels)).problems]


HTTP, DNS_TCP, DNS_UDP = Port(80, "tcp"), Port(53, "tcp"), Port(53, "udp")


@pytest.mark.parametrize(
    ("env", "labels", "expected"),
    [
        pytest.param({"SERVICE_NAME": "a"}, {}, {"name": "a"}, id="variable"),
        pytest.param({}, {"SERVICE_NAME": "a"}, {"name": "a"}, id="label"),
        pytest.param({"SERVICE_NAME": "a"}, {"SERVICE_NAME": "b"}, {"name": "b"}, id="label over variable"),
        pytest.param({"SERVICE_80_NAME": "a"}, {"SERVICE_NAME": "b"}, {"name": "a"}, id="port over label"),
        pytest.param(
            {"SERVICE_80_NAME": "a"}, {"SERVICE_80_NAME": "b"}, {"name": "b"}, id="label over variable, port"
        ),
        pytest.param(
            {"SERVICE_80_TCP_NAME": "a"}, {"SERVICE_80_NAME": "b"}, {"name": "a"}, id="protocol over port"
        ),
        pytest.param(
            {"SERVICE_80_NAME": "a"}, {"SERVICE_70-90_NAME": "b"}, {"name": "a"}, id="port over range"
        ),
        pytest.param(
            {"SERVICE_79-81_NAME": "a"}, {"SERVICE_70-90_NAME": "b"}, {"name": "a"}, id="narrow over wide"
        ),
        pytest.param({"SERVICE_70-90_NAME": "a"}, {"SERVICE_NAME": "b"}, {"name": "a"}, id="range over all"),
        pytest.param({"SERVICE_70-80_IGNORE": "1"}, {}, {"ignore": "1"}, id="range includes its end"),
        pytest.param({"SERVICE_81-90_IGNORE": "1"}, {}, {}, id="outside the range"),
        pytest.param({"SERVICE_81_NAME": "a"}, {}, {}, id="another port"),
        pytest.param({"SERVICE_80_UDP_NAME": "a", "SERVICE_80_NAME": "b"}, {}, {"name": "b"}, id="protocol"),
        pytest.param({"SERVICE_Name": "a"}, {}, {"name": "a"}, id="key in any case"),
        pytest.param({"service_NAME": "a"}, {}, {}, id="prefix in upper case only"),
        pytest.param({"SERVICE_REGION": " us2 "}, {}, {"region": " us2 "}, id="not trimmed"),
        pytest.param({"SERVICE_80_NAME": ""}, {"SERVICE_NAME": "b"}, {"name": ""}, id="empty for the port"),
        pytest.param({"SERVICE_80_X_Y": "1"}, {}, {"x_y": "1"}, id="underscores in the key"),
        pytest.param({"SERVICE_80_TCP": "1"}, {}, {"tcp": "1"}, id="a key that is called tcp"),
        pytest.param({"SERVICE_80": "1"}, {}, {"80": "1"}, id="a key that is a number"),
        pytest.param({"PATH": "/bin"}, {"maintainer": "x"}, {}, id="what is not ours"),
    ],
)
def test_precedence(env: dict[str, str], labels: dict[str, str], expected: dict[str, str]) -> None:
    assert read(HTTP, env=env, labels=labels) == expected


def test_a_port_is_tcp_and_udp_alike_unless_the_protocol_is_given() -> None:
    env = {"SERVICE_53_NAME": "dns", "SERVICE_53_UDP_NAME": "dns-udp"}
    assert read(DNS_TCP, env=env) == {"name": "dns"}
    assert read(DNS_UDP, env=env) == {"name": "dns-udp"}


def test_the_origin_is_told_as_it_is_written() -> None:
    metadata = Metadata.of(container(expose=PORTS, env={"SERVICE_80_name": "a"}, labels={"SERVICE_X": "b"}))
    values = metadata.for_port(HTTP)
    assert values["name"].origin == "variable SERVICE_80_name"
    assert values["name"].for_port
    assert values["x"].origin == "label SERVICE_X"
    assert not values["x"].for_port


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("SERVICE_080_NAME", "080 is no port; write one from 1 to 65535 without leading zeros"),
        (f"SERVICE_{'9' * 5000}_NAME", "999999999999 is no port; write one from 1 to 65535 without"),
        ("SERVICE_99999_NAME", "99999 is no port; write one from 1 to 65535 without leading zeros"),
        ("SERVICE_90-80_NAME", "the range 90-80 is empty; write the lower port first"),
        ("SERVICE_", "the key is missing; write for example SERVICE_NAME"),
        ("SERVICE_82_NAME", "no such port inside, so it has no effect; its ports are 53/tcp, 53/udp, 80/tcp"),
        ("SERVICE_80_UDP_NAME", "no such port inside"),
    ],
)
def test_a_fault_is_told_with_container_key_and_value(name: str, message: str) -> None:
    (problem,) = problems(env={name: "x"})
    assert problem.startswith(f"container web: variable {name}='x': ")
    assert message in problem
    assert read(HTTP, env={name: "x", "SERVICE_NAME": "kept"}) == {"name": "kept"}


def test_ignoring_what_is_not_there_is_no_fault() -> None:
    assert problems(env={"SERVICE_443_IGNORE": "true", "SERVICE_8000-9000_NAME": "x"}) == []


def test_a_long_value_is_told_in_short() -> None:
    (problem,) = problems(env={"SERVICE_080_NAME": "x" * 600})
    assert len(problem) < 250


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ("", []),
        ("a", ["a"]),
        ("a,b", ["a", "b"]),
        ("a,,b,", ["a", "b"]),
        ("a, b", ["a", " b"]),
        (r"a\,b,c", ["a,b", "c"]),
        (r"\,", [","]),
        (r"a\b", [r"a\b"]),
    ],
)
def test_tags_are_split_at_commas_in_written_order(text: str, tags: list[str]) -> None:
    assert split_tags(text) == tags
