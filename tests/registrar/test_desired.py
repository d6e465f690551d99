"""What is registered for a container. Numbers in test names are Registrator's issues."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from discovery.model import Address, Check
from registrar.desired import desire
from registrar.owner import META_CONTAINER, META_OWNER, META_SPEC
from registrar.rules import Rules, Suffix
from tests.registrar.build import (
    HOST,
    OWNER,
    PUBLISHED,
    container,
    container_id,
    decided,
    decision,
    registered,
)

INTERNAL = Rules(internal=True)
TWO_PORTS = {"80/tcp": [("0.0.0.0", 32768)], "443/tcp": [("0.0.0.0", 32769)]}


def summary(desired: Any) -> dict[str, tuple[str, str, int]]:
    """Port -> (name, address, port) of what is registered."""
    return {
        str(one.port): (one.registration.name, one.registration.address, one.registration.port)
        for one in desired.decisions
        if one.registration
    }


def reason(rules: Rules | None = None, port: str = "80/tcp", **options: Any) -> str:
    """Why a port, which must not be registered, is not."""
    made = decision(rules, port, **options)
    assert made.registration is None
    return made.reason


def problems(rules: Rules | None = None, **options: Any) -> list[str]:
    return [str(problem) for problem in decided(rules, **options).problems]


# --- the walkthrough -----------------------------------------------------------------------------------


def test_the_walkthrough() -> None:
    registration = registered(
        name="service1",
        port="5000/tcp",
        image="python-micro-service",
        publish={"5000/tcp": [("0.0.0.0", 32768)]},
    )
    assert registration.id == "host-1:service1:5000"
    assert registration.name == "python-micro-service"
    assert registration.address == ""
    assert registration.port == 32768
    assert registration.tags == ()
    assert registration.checks == ()
    assert dict(registration.meta) == {
        META_OWNER: "host-1/ENGN:0000:00",
        META_CONTAINER: container_id("service1"),
        META_SPEC: registration.meta[META_SPEC],
    }
    assert re.fullmatch("[0-9a-f]{16}", registration.meta[META_SPEC])


# --- names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("nginx", "nginx"),
        ("nginx:1.25", "nginx"),
        ("library/nginx", "nginx"),
        ("registry:5000/team/web:1.2", "web"),
        ("registry:5000/web", "web"),
        ("web@sha256:" + "a" * 64, "web"),
        ("team/web:1@sha256:" + "a" * 64, "web"),
        ("sha256:" + "a" * 64, "box"),
        ("a" * 64, "box"),
        ("", "box"),
    ],
)
def test_the_name_is_the_last_part_of_the_images(image: str, name: str) -> None:
    assert registered(name="box", image=image, publish=PUBLISHED).name == name


@pytest.mark.parametrize(
    ("env", "names"),
    [
        ({}, {"80/tcp": "nginx-80", "443/tcp": "nginx-443"}),
        ({"SERVICE_NAME": "web"}, {"80/tcp": "web-80", "443/tcp": "web-443"}),
        ({"SERVICE_80_NAME": "web"}, {"80/tcp": "web", "443/tcp": "nginx-443"}),
        ({"SERVICE_80_NAME": ""}, {"80/tcp": "nginx", "443/tcp": "nginx-443"}),
        ({"SERVICE_70-90_NAME": "web"}, {"80/tcp": "web-80", "443/tcp": "nginx-443"}),
        # A port that is ignored still counts: taking the mark away must not rename the other.
        ({"SERVICE_443_IGNORE": "1"}, {"80/tcp": "nginx-80"}),
    ],
)
def test_311_437_270_492_several_ports_get_a_suffix(env: dict[str, str], names: dict[str, str]) -> None:
    desired = decided(publish=TWO_PORTS, env=env)
    assert {port: name for port, (name, _, _) in summary(desired).items()} == names


def test_a_port_that_is_not_published_does_not_count() -> None:
    assert registered(publish=PUBLISHED, expose=["443/tcp"]).name == "nginx"


def test_a_name_that_cannot_be_one_costs_only_itself() -> None:
    options: dict[str, Any] = {"publish": PUBLISHED, "env": {"SERVICE_NAME": "my web"}}
    assert registered(**options).name == "nginx"
    (problem,) = problems(**options)
    assert problem.startswith("container web: variable SERVICE_NAME='my web': ")


@pytest.mark.parametrize(
    ("suffix", "publish", "env", "name"),
    [
        ("always", PUBLISHED, {}, "nginx-80"),
        ("always", PUBLISHED, {"SERVICE_80_NAME": "web"}, "web"),
        ("never", TWO_PORTS, {}, "nginx"),
    ],
)
def test_311_437_270_492_the_suffix_is_the_operators_choice(
    suffix: Suffix, publish: Any, env: dict[str, str], name: str
) -> None:
    assert registered(Rules(suffix=suffix), publish=publish, env=env).name == name


def test_328_653_a_port_can_have_several_names() -> None:
    desired = decided(publish=PUBLISHED, env={"SERVICE_NAME": "web,shop"})
    assert [(one.id, one.name, one.port) for one in desired.registrations] == [
        ("host-1:web:80", "web", 32768),
        ("host-1:web:80:shop", "shop", 32768),
    ]
    assert desired.default_ids == {"host-1:web:80"}


# --- ids -----------------------------------------------------------------------------------------------


def test_an_id_tells_the_protocol_unless_it_is_tcp() -> None:
    publish = {f"53/{protocol}": [("0.0.0.0", 53)] for protocol in ("tcp", "udp", "sctp")}
    ids = [registration.id for registration in decided(name="dns", publish=publish).registrations]
    assert ids == ["host-1:dns:53", "host-1:dns:53:udp", "host-1:dns:53:sctp"]


def test_a_given_id_is_taken() -> None:
    made = decision(publish=PUBLISHED, env={"SERVICE_ID": "web-1"})
    assert made.registration is not None
    assert made.registration.id == "web-1"
    assert not made.default_id


def test_one_id_given_for_several_ports_gets_a_suffix() -> None:
    desired = decided(publish=TWO_PORTS, env={"SERVICE_ID": "web", "SERVICE_443_ID": "tls"})
    assert [registration.id for registration in desired.registrations] == ["web:80", "tls"]


def test_of_two_ports_with_one_id_the_first_has_it() -> None:
    options: dict[str, Any] = {"publish": TWO_PORTS, "env": {"SERVICE_80_ID": "x", "SERVICE_443_ID": "x"}}
    assert reason(port="443/tcp", **options) == "its id 'x' is already that of port 80/tcp"
    assert registered(port="80/tcp", **options).id == "x"
    assert len(problems(**options)) == 1


@pytest.mark.parametrize("bad", ["x" * 256, "a\nb"])
def test_an_id_that_cannot_be_one_costs_only_itself(bad: str) -> None:
    options: dict[str, Any] = {"publish": PUBLISHED, "env": {"SERVICE_ID": bad}}
    assert registered(**options).id == "host-1:web:80"
    assert len(problems(**options)) == 1


# --- whether -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["1", "true", "false", " "])
def test_any_value_of_ignore_ignores(value: str) -> None:
    assert (
        reason(publish=PUBLISHED, env={"SERVICE_IGNORE": value})
        == f"ignored by variable SERVICE_IGNORE={value}"
    )
    assert registered(publish=PUBLISHED, env={"SERVICE_IGNORE": ""})


def test_298_462_198_170_302_explicit_wants_a_name() -> None:
    explicit = Rules(explicit=True)
    assert reason(explicit, publish=PUBLISHED) == "-explicit, and no SERVICE_NAME is given"
    assert reason(explicit, publish=PUBLISHED, labels={"SERVICE_NAME": ""})
    assert registered(explicit, publish=PUBLISHED, labels={"SERVICE_NAME": "web"}).name == "web"
    assert registered(explicit, publish=PUBLISHED, env={"SERVICE_80_NAME": "web"}).name == "web"


def test_a_container_may_have_only_the_names_that_are_allowed() -> None:
    rules = Rules(allow_names=("web-*", "shop"))
    options: dict[str, Any] = {"publish": PUBLISHED, "env": {"SERVICE_NAME": "web-1,bank,shop"}}
    assert [one.name for one in decided(rules, **options).registrations] == ["web-1", "shop"]
    (problem,) = problems(rules, **options)
    assert problem == (
        "container web: variable SERVICE_NAME='bank': the operator allows only names like web-*, shop"
    )
    assert reason(rules, publish=PUBLISHED) == "the name 'nginx' is not among those of --allow-name"


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [({}, False), ({"team": "blue"}, False), ({"team": "red"}, False), ({"team": "red", "public": ""}, True)],
)
def test_298_462_198_170_302_only_containers_with_the_labels_are_registered(
    labels: dict[str, str], wanted: bool
) -> None:
    rules = Rules(label_filter=(("team", "red"), ("public", None)))
    made = decision(rules, publish=PUBLISHED, labels=labels)
    assert (made.registration is not None) is wanted
    assert made.reason.startswith("--label-filter") is not wanted


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ({"Running": False}, "the container does not run"),
        ({"Paused": True}, "the container is paused"),
        ({"Restarting": True}, "the container waits to be started again; it exited with code 0"),
    ],
)
def test_what_does_not_run_is_not_registered(state: dict[str, Any], why: str) -> None:
    assert reason(publish=PUBLISHED, state=state) == why


def test_127_685_122_431_457_what_is_stopping_is_not_registered() -> None:
    desired = desire(container(publish=PUBLISHED), Rules(), HOST, stopping="signal 15")
    assert desired.registrations == ()
    assert desired.decisions[0].reason == "the container is stopping (signal 15)"


def test_a_container_without_ports_has_nothing_to_register() -> None:
    assert decided().decisions == ()


# --- where: bindings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bindings", "address", "port"),
    [
        ([("0.0.0.0", 1)], "", 1),
        ([("0.0.0.0", 1), ("::", 1)], "", 1),
        ([("", 1)], "", 1),
        ([("10.0.0.5", 1)], "10.0.0.5", 1),
        ([("fd00::5", 1)], "fd00::5", 1),
        ([("fd00::5", 1), ("10.0.0.5", 2)], "10.0.0.5", 2),
        ([("10.0.0.5", 1), ("0.0.0.0", 2)], "", 2),
        ([("0.0.0.0", 9), ("0.0.0.0", 8)], "", 8),
        ([("127.0.0.1", 1), ("10.0.0.5", 2)], "10.0.0.5", 2),
        ([("::", 1), ("0.0.0.0", 2)], "", 2),
        ([("::", 1), ("10.0.0.5", 2)], "10.0.0.5", 2),
    ],
)
def test_337_291_409_477_address_and_port_are_of_one_binding(
    bindings: list[tuple[str, int]], address: str, port: int
) -> None:
    registration = registered(publish={"80/tcp": bindings})
    assert (registration.address, registration.port) == (address, port)


APART = {"80/tcp": [("0.0.0.0", 32769), ("::", 32768)]}
"""Port 80 as ``docker run -P`` publishes it where Docker's counts of the two families have drifted apart."""


@pytest.mark.parametrize(
    ("node", "rules", "options", "address", "port"),
    [
        ("172.28.128.3", Rules(), {}, "", 32769),
        ("", Rules(), {}, "", 32769),
        ("fd00::3", Rules(), {}, "", 32768),
        ("172.28.128.3", Rules(every_binding=True), {}, "", 32769),
        ("172.28.128.3", Rules(ip="fd00::3"), {}, "fd00::3", 32768),
        ("fd00::3", Rules(ip="172.28.128.3"), {}, "172.28.128.3", 32769),
        ("172.28.128.3", Rules(use_ip_from_label="ip"), {"labels": {"ip": "fd00::3/64"}}, "fd00::3", 32768),
        ("172.28.128.3", Rules(allow_service_ip=True), {"env": {"SERVICE_IP": "fd00::3"}}, "fd00::3", 32768),
    ],
)
def test_337_291_409_477_the_port_is_that_of_the_addresss_family(
    node: str, rules: Rules, options: dict[str, Any], address: str, port: int
) -> None:
    desired = desire(container(publish=APART, **options), rules, replace(HOST, node_address=node))
    assert [(one.address, one.port) for one in desired.registrations] == [(address, port)]


@pytest.mark.parametrize(
    ("ip", "bindings", "ports"),
    [
        ("fd00::5", [("10.0.0.5", 80), ("fd00::5", 81)], [81]),
        ("fd00::5", [("0.0.0.0", 32769), ("fd00::5", 8081)], [8081]),
        ("fd00::9", [("10.0.0.5", 80), ("fd00::5", 81)], [81]),
        ("192.168.1.1", [("10.0.0.5", 80), ("192.168.1.1", 81)], [81, 80]),
        ("192.168.1.1", [("0.0.0.0", 82), ("192.168.1.1", 81)], [81, 82]),
        ("10.0.0.9", [("10.0.0.5", 80), ("fd00::5", 81)], [80]),
        ("10.0.0.9", [("fd00::5", 81)], [81]),  # whatever translates between the two
    ],
)
def test_337_291_409_477_a_given_address_has_a_port_of_its_own_binding_or_family(
    ip: str, bindings: list[tuple[str, int]], ports: list[int]
) -> None:
    for every in (False, True):
        desired = decided(Rules(ip=ip, every_binding=every), publish={"80/tcp": bindings})
        assert [one.port for one in desired.registrations] == (ports if every else ports[:1])
        assert {one.address for one in desired.registrations} == {ip}


@pytest.mark.parametrize(
    ("node", "binding", "why"),
    [
        ("172.28.128.3", "::", "over IPv6 only, where the node's address 172.28.128.3 is not"),
        ("fd00::3", "0.0.0.0", "over IPv4 only, where the node's address fd00::3 is not"),
    ],
)
def test_337_a_port_of_the_other_family_alone_is_not_registered_at_the_nodes_address(
    node: str, binding: str, why: str
) -> None:
    one = container(publish={"80/tcp": [(binding, 32768)]})
    (decision,) = desire(one, Rules(), replace(HOST, node_address=node)).decisions
    assert decision.registration is None
    assert why in decision.reason
    # Where the agent does not tell its address, nobody knows better.
    (unknown,) = desire(one, Rules(), replace(HOST, node_address="")).registrations
    assert (unknown.address, unknown.port) == ("", 32768)


def test_691_256_598_229_321_both_families_of_one_port_become_tagged_addresses() -> None:
    registration = registered(publish={"80/tcp": [("10.0.0.5", 80), ("fd00::5", 80)]})
    assert registration.address == "10.0.0.5"
    assert registration.tagged_addresses == {
        "lan_ipv4": Address("10.0.0.5", 80),
        "lan_ipv6": Address("fd00::5", 80),
    }


def test_every_binding_is_an_instance_where_asked() -> None:
    publish = {
        "80/tcp": [("0.0.0.0", 8080), ("::", 8080), ("10.0.0.5", 81), ("127.0.0.1", 82), ("fd00::5", 81)]
    }
    env = {"SERVICE_NAME": "web,shop"}
    every = Rules(every_binding=True)
    desired = decided(every, publish=publish, env=env)
    assert [(one.id, one.name, one.address, one.port) for one in desired.registrations] == [
        ("host-1:web:80", "web", "", 8080),
        ("host-1:web:80:shop", "shop", "", 8080),
        ("host-1:web:80@10.0.0.5:81", "web", "10.0.0.5", 81),
        ("host-1:web:80:shop@10.0.0.5:81", "shop", "10.0.0.5", 81),
        ("host-1:web:80@fd00::5:81", "web", "fd00::5", 81),
        ("host-1:web:80:shop@fd00::5:81", "shop", "fd00::5", 81),
    ]
    assert desired.default_ids == {"host-1:web:80"}
    # Places that became one are registered once, and the first stays the first.
    publish["80/tcp"].append(("fd00::6", 8080))
    moved = decided(replace(every, ip="203.0.113.7"), publish=publish)
    assert [(one.id, one.address, one.port) for one in moved.registrations] == [
        ("host-1:web:80", "203.0.113.7", 8080),
        ("host-1:web:80@203.0.113.7:81", "203.0.113.7", 81),
    ]
    assert len(decided(replace(every, internal=True), publish=publish).registrations) == 1


@pytest.mark.parametrize("host_ip", ["127.0.0.1", "127.0.1.1", "::1"])
def test_272_185_loopback_is_refused_unless_asked(host_ip: str) -> None:
    publish = {"80/tcp": [(host_ip, 80)]}
    assert host_ip in reason(publish=publish)
    assert registered(Rules(allow_loopback=True), publish=publish).address == host_ip
    # The address of -ip does not make the port any more reachable.
    assert host_ip in reason(Rules(ip="10.0.0.9"), publish=publish)


def test_38_42_465_487_576_an_unpublished_port_is_registered_with_internal_only() -> None:
    assert reason(expose=["80/tcp"]) == "the port is not published (-internal registers such ports)"
    registration = registered(INTERNAL, expose=["80/tcp"])
    assert (registration.address, registration.port) == ("172.17.0.2", 80)


# --- where: networks -----------------------------------------------------------------------------------


def test_608_152_host_mode_is_the_nodes_address_and_the_port_inside() -> None:
    for rules in (Rules(), INTERNAL):
        registration = registered(rules, expose=["80/tcp"], network="host")
        assert (registration.address, registration.port) == ("", 80)


def test_608_152_host_mode_takes_ports_that_the_image_does_not_expose() -> None:
    registration = registered(port="9000/tcp", network="host", labels={"portcall.expose": "9000, 53/udp"})
    assert (registration.id, registration.port) == ("host-1:web:9000", 9000)


def test_38_42_465_487_576_a_service_needs_no_port() -> None:
    named = {"portcall.expose": "9000", "SERVICE_9000_NAME": "admin"}
    assert registered(port="9000/tcp", network="host", labels=named).name == "admin"
    assert problems(network="host", labels=named) == []
    labels = {"portcall.expose": "0"}
    published = registered(port="0/tcp", labels=labels)
    assert (published.id, published.address, published.port) == ("host-1:web:0", "", 0)
    inside = registered(INTERNAL, port="0/tcp", labels=labels)
    assert (inside.address, inside.port) == ("172.17.0.2", 0)


def test_298_462_198_170_302_a_range_of_ports_can_be_ignored() -> None:
    publish = {f"{port}/tcp": [("0.0.0.0", port)] for port in (80, 10000, 10001, 20000, 20001)}
    desired = decided(publish=publish, env={"SERVICE_10000-20000_IGNORE": "1", "SERVICE_10001_IGNORE": ""})
    assert [registration.port for registration in desired.registrations] == [80, 10001, 20001]


SWARM = {"com.docker.swarm.service.name": "shop", "com.docker.swarm.task.name": "shop.1.k3x"}


def test_443_567_607_588_a_task_of_a_swarm_is_a_container_with_an_odd_name() -> None:
    task: dict[str, Any] = {"name": "shop.1.k3x", "labels": SWARM, "image": "web:1@sha256:" + "a" * 64}
    rules = Rules(tags=("{label:com.docker.swarm.service.name}",))
    registration = registered(rules, publish=PUBLISHED, **task)
    assert (registration.id, registration.name) == ("host-1:shop.1.k3x:80", "web")
    assert (registration.port, registration.tags) == (32768, ("shop",))


def test_443_567_607_588_what_the_routing_mesh_publishes_is_no_port_of_the_task() -> None:
    mesh: dict[str, Any] = {"expose": ["80/tcp"], "labels": SWARM, "networks": {"ingress": "10.0.0.4"}}
    assert "routing mesh" in reason(**mesh)
    assert reason(INTERNAL, **mesh) == "the container has no address in any network but ingress"
    mesh["networks"] |= {"shop": "10.0.1.3"}
    assert registered(INTERNAL, **mesh).address == "10.0.1.3"
    # Who names it is taken at their word.
    assert registered(replace(INTERNAL, network="ingress"), **mesh).address == "10.0.0.4"


@pytest.mark.parametrize("rules", [Rules(), INTERNAL])
def test_without_a_network_nothing_is_registered(rules: Rules) -> None:
    assert reason(rules, expose=["80/tcp"], network="none") == "the container has no network"


def test_337_a_user_network_does_not_change_a_published_address() -> None:
    registration = registered(publish=PUBLISHED, network="backend", networks={"backend": "10.1.0.2"})
    assert (registration.address, registration.port) == ("", 32768)


@pytest.mark.parametrize(
    ("network", "networks", "rules", "address"),
    [
        ("default", {"bridge": "172.17.0.2"}, INTERNAL, "172.17.0.2"),
        ("backend", {"backend": "10.1.0.2"}, INTERNAL, "10.1.0.2"),
        ("backend", {"apple": "10.9.0.2", "backend": "10.1.0.2"}, INTERNAL, "10.1.0.2"),
        ("default", {"bridge": "172.17.0.2", "apple": "10.9.0.2"}, INTERNAL, "172.17.0.2"),
        ("gone", {"b": "10.2.0.2", "a": "10.1.0.2"}, INTERNAL, "10.1.0.2"),
        ("backend", {"backend": "10.1.0.2", "web": "10.2.0.2"}, replace(INTERNAL, network="web"), "10.2.0.2"),
        ("backend", {"backend": "10.1.0.2"}, replace(INTERNAL, network="web"), "10.1.0.2"),
        ("six", {"six": "fd00::2"}, INTERNAL, "fd00::2"),
    ],
)
def test_498_529_316_293_internal_chooses_a_network(
    network: str, networks: dict[str, str], rules: Rules, address: str
) -> None:
    registration = registered(rules, expose=["80/tcp"], network=network, networks=networks)
    assert (registration.address, registration.port) == (address, 80)


def test_macvlan_publishes_nothing_and_has_an_address_of_its_own() -> None:
    options: dict[str, Any] = {"expose": ["80/tcp"], "network": "lan", "networks": {"lan": "192.168.7.5"}}
    assert reason(**options) == "the port is not published (-internal registers such ports)"
    registration = registered(INTERNAL, **options)
    assert (registration.address, registration.port) == ("192.168.7.5", 80)


def test_498_529_316_293_a_label_chooses_the_network() -> None:
    networks = {"back": "10.1.0.2", "front": "10.2.0.2"}
    options: dict[str, Any] = {"expose": ["80/tcp"], "network": "back", "networks": networks}
    rules = replace(INTERNAL, network="back")
    assert registered(rules, labels={"portcall.network": "front"}, **options).address == "10.2.0.2"


def test_internal_without_any_address_registers_nothing() -> None:
    why = reason(INTERNAL, expose=["80/tcp"], network="backend", networks={"backend": ""})
    assert why == "the container has no address in any network"


def test_506_675_a_shared_network_has_the_bindings_of_its_owner() -> None:
    pod = container("pod", publish=PUBLISHED)
    app = container("app", expose=["80/tcp"], network=f"container:{pod.id}")
    (published,) = desire(app.joined(pod), Rules(), HOST).registrations
    assert (published.id, published.address, published.port) == ("host-1:app:80", "", 32768)
    (internal,) = desire(app.joined(pod), INTERNAL, HOST).registrations
    assert (internal.address, internal.port) == ("172.17.0.2", 80)
    (lost,) = desire(app, Rules(), HOST).decisions
    assert lost.registration is None
    assert "cannot be found" in lost.reason


# --- where: what the operator says -----------------------------------------------------------------------


def test_ip_overrides_what_a_port_is_bound_to() -> None:
    rules = Rules(ip="203.0.113.7")
    for bindings in ([("0.0.0.0", 80)], [("10.0.0.5", 80)]):
        registration = registered(rules, publish={"80/tcp": bindings})
        assert (registration.address, registration.port) == ("203.0.113.7", 80)


def test_internal_is_stronger_than_ip() -> None:
    assert registered(Rules(ip="203.0.113.7", internal=True), expose=["80/tcp"]).address == "172.17.0.2"


def test_ip_is_the_address_in_host_mode_too() -> None:
    assert registered(Rules(ip="203.0.113.7"), expose=["80/tcp"], network="host").address == "203.0.113.7"


@pytest.mark.parametrize("value", ["10.9.8.7", "10.9.8.7/24"])
def test_an_address_from_a_label_is_stronger_than_ip(value: str) -> None:
    rules = Rules(use_ip_from_label="net.ip", ip="203.0.113.7")
    assert registered(rules, publish=PUBLISHED, labels={"net.ip": value}).address == "10.9.8.7"
    inside = replace(rules, internal=True)
    registration = registered(inside, expose=["80/tcp"], labels={"net.ip": value}, network="x", networks={})
    assert (registration.address, registration.port) == ("10.9.8.7", 80)


def test_without_the_label_the_address_is_unchanged() -> None:
    rules = Rules(use_ip_from_label="net.ip", ip="203.0.113.7")
    assert registered(rules, publish=PUBLISHED).address == "203.0.113.7"
    (problem,) = problems(rules, publish=PUBLISHED)
    assert problem.startswith("container web: label net.ip='': there is no address in it")
    assert problems(rules) == [], "it has no port, so nobody looks for its address"


@pytest.mark.parametrize("value", ["gateway", "0.0.0.0", "127.0.0.1", "10.0.0/24"])
def test_an_unusable_address_in_a_label_costs_only_itself(value: str) -> None:
    rules = Rules(use_ip_from_label="net.ip")
    options: dict[str, Any] = {"publish": PUBLISHED, "labels": {"net.ip": value}}
    assert registered(rules, **options).address == ""
    assert len(problems(rules, **options)) == 1


def test_a_container_may_say_where_it_is_reached_only_where_allowed() -> None:
    options: dict[str, Any] = {
        "publish": TWO_PORTS,
        "env": {"SERVICE_IP": "10.9.8.7", "SERVICE_443_IP": "fd00::7", "SERVICE_CHECK_TCP": "1"},
    }
    plain = registered(**options)
    assert (plain.address, plain.meta["ip"]) == ("", "10.9.8.7")
    allowed = Rules(allow_service_ip=True, ip="203.0.113.7")
    assert [one.address for one in decided(allowed, **options).registrations] == ["10.9.8.7", "fd00::7"]
    one = registered(allowed, **options)
    assert "ip" not in one.meta
    assert (one.port, one.checks[0].tcp) == (32768, "10.9.8.7:32768")
    # It makes no port reachable that is not.
    assert reason(allowed, expose=["80/tcp"], env=options["env"])
    for unusable in ("host-1", "0.0.0.0", "127.0.0.1"):
        options["env"] = {"SERVICE_IP": unusable}
        assert registered(allowed, **options).address == "203.0.113.7"
        assert len(problems(allowed, **options)) == 1


def test_a_prefix_stands_before_names_and_ids() -> None:
    env = {"SERVICE_80_NAME": "web,shop", "SERVICE_443_ID": "tls"}
    rules = Rules(prefix="test", allow_names=("web", "shop", "nginx-443"))
    desired = decided(rules, publish=TWO_PORTS, env=env)
    assert [(one.id, one.name) for one in desired.registrations] == [
        ("test:host-1:web:80", "test-web"),
        ("test:host-1:web:80:test-shop", "test-shop"),
        ("test:tls", "test-nginx-443"),
    ]


# --- tags ----------------------------------------------------------------------------------------------


def test_tags_come_in_written_order_then_the_operators_then_the_protocol() -> None:
    rules = Rules(tags=("site", "a"))
    options: dict[str, Any] = {
        "publish": {"53/udp": [("0.0.0.0", 53)]},
        "env": {"SERVICE_TAGS": "ignored"},
        "labels": {"SERVICE_53_TAGS": r"b,a, c,x\,y"},
    }
    assert registered(rules, "53/udp", **options).tags == ("b", "a", " c", "x,y", "site", "udp")


def test_677_503_396_the_operators_tags_are_filled_in() -> None:
    rules = Rules(tags=("c:{container}", "{hostname}/{id}", "{label:team}", "{env:NONE}", "{image}"))
    registration = registered(rules, publish=PUBLISHED, labels={"team": "red"}, image="web:1")
    short = container_id("web")[:12]
    assert registration.tags == ("c:web", f"{short}/{short}", "red", "web:1")


# --- meta ----------------------------------------------------------------------------------------------


def own_meta(**options: Any) -> dict[str, str]:
    meta = registered(publish=PUBLISHED, **options).meta
    return {key: value for key, value in meta.items() if not key.startswith("portcall-")}


def test_619_620_other_keys_become_meta_and_checks_do_not() -> None:
    env = {
        "SERVICE_REGION": "us2",
        "SERVICE_80_Zone": "a",
        "SERVICE_NAME": "web",
        "SERVICE_TAGS": "x",
        "SERVICE_CHECK_HTTP": "/" + "x" * 600,
    }
    assert own_meta(env=env) == {"region": "us2", "zone": "a"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SERVICE_LONG", "x" * 513),
        ("SERVICE_" + "K" * 129, "x"),
        ("SERVICE_with.dot", "x"),
        ("SERVICE_portcall-owner", "somebody"),
        ("SERVICE_consul-x", "x"),
    ],
)
def test_meta_that_consul_would_reject_costs_only_itself(key: str, value: str) -> None:
    options: dict[str, Any] = {"labels": {key: value, "SERVICE_OK": "yes"}}
    assert own_meta(**options) == {"ok": "yes"}
    assert registered(publish=PUBLISHED, **options).meta[META_OWNER] == str(OWNER)
    (problem,) = problems(publish=PUBLISHED, **options)
    assert problem.startswith(f"container web: label {key}=")


def test_consul_keeps_64_pairs_of_meta_and_three_are_ours() -> None:
    env = {f"SERVICE_K{number:03}": "x" for number in range(70)}
    assert len(registered(publish=PUBLISHED, env=env).meta) == 64
    assert len(problems(publish=PUBLISHED, env=env)) == 9


def test_a_fault_in_a_generic_key_is_told_once_for_all_ports() -> None:
    assert len(problems(publish=TWO_PORTS, env={"SERVICE_LONG": "x" * 513})) == 1


# --- labels of our own ---------------------------------------------------------------------------------


def test_weights_and_tag_override() -> None:
    labels = {"portcall.weight": "5", "portcall.443.weight": "9", "portcall.80.tag-override": "true"}
    http = registered(publish=TWO_PORTS, labels=labels)
    https = registered(publish=TWO_PORTS, labels=labels, port="443/tcp")
    assert (http.weights.passing, https.weights.passing) == (5, 9)
    assert (http.enable_tag_override, https.enable_tag_override) == (True, False)


def test_347_664_a_part_in_the_service_mesh() -> None:
    labels = {"portcall.mesh": "sidecar", "portcall.443.mesh": "native"}
    made = [registered(publish=TWO_PORTS, labels=labels, port=port) for port in ("80/tcp", "443/tcp")]
    assert [one.mesh for one in made] == ["sidecar", "native"]
    assert registered(publish=TWO_PORTS).mesh == ""
    digests = {registered(publish=PUBLISHED, labels=one).meta[META_SPEC] for one in ({}, labels)}
    assert len(digests) == 2, "a change of it is noticed, though agents do not tell it"


@pytest.mark.parametrize(
    ("label", "value", "message"),
    [
        ("portcall.weight", "0", "from 1 to 65535"),
        ("portcall.mesh", "true", "write sidecar or native"),
        ("portcall.80.weight", "many", "from 1 to 65535"),
        ("portcall.tag-override", "yes", "write true or false"),
        ("portcall.expose", "http", "'http' is no port"),
        ("portcall.expose", "80,99999", "'99999' is no port"),
        ("portcall.expose", "9" * 40, "is no port"),
        ("portcall.wieght", "1", "known: expose, network, weight"),
        ("portcall.80.expose", "1", "there is no such label"),
    ],
)
def test_a_wrong_label_of_our_own_costs_only_itself(label: str, value: str, message: str) -> None:
    options: dict[str, Any] = {"publish": PUBLISHED, "labels": {label: value}}
    assert registered(**options) == registered(publish=PUBLISHED)
    (problem,) = problems(**options)
    assert problem.startswith(f"container web: label {label}={value!r}: ")
    assert message in problem


# --- checks --------------------------------------------------------------------------------------------


def test_a_check_goes_where_clients_go() -> None:
    env = {"SERVICE_CHECK_TCP": "1"}
    assert registered(publish=PUBLISHED, env=env).checks == (Check(tcp="172.28.128.3:32768", interval=10),)
    assert registered(INTERNAL, expose=["80/tcp"], env=env).checks == (
        Check(tcp="172.17.0.2:80", interval=10),
    )
    bound = registered(publish={"80/tcp": [("10.0.0.5", 81)]}, env=env)
    assert bound.checks == (Check(tcp="10.0.0.5:81", interval=10),)


def test_a_setting_for_all_ports_is_for_those_that_have_a_check() -> None:
    env = {"SERVICE_CHECK_INTERVAL": "5s", "SERVICE_80_CHECK_2_HTTP": "/", "SERVICE_CHECK_2_TIMEOUT": "1s"}
    assert problems(publish=TWO_PORTS, env=env) == []
    assert registered(publish=TWO_PORTS, env=env, port="443/tcp").checks == ()
    assert len(problems(publish=TWO_PORTS, env={"SERVICE_CHECK_INTERVAL": "5s"})) == 1
    assert len(problems(publish=TWO_PORTS, env=env | {"SERVICE_443_CHECK_INTERVAL": "5s"})) == 1


# --- the registrar's own check ---------------------------------------------------------------------------


def health(status: str, output: str = "") -> dict[str, Any]:
    return {"Health": {"Status": status, "Log": [{"Output": output}]}}


CHECK_ID = "host-1:web:80:container"


@pytest.mark.parametrize(
    ("state", "status", "output"),
    [
        (health("starting"), "warning", "the healthcheck has not passed yet"),
        (health("healthy", "ok"), "passing", "ok"),
        (health("unhealthy", "HTTP 500"), "critical", "HTTP 500"),
    ],
)
def test_578_a_healthcheck_becomes_a_check_with_its_output(
    state: dict[str, Any], status: str, output: str
) -> None:
    desired = decided(publish=PUBLISHED, state=state)
    (registration,) = desired.registrations
    assert [check.id for check in registration.checks] == [CHECK_ID]
    (report,) = desired.reports
    assert (report.service_id, report.check_id) == (registration.id, CHECK_ID)
    assert (report.status, report.output) == (status, output)
    # Another state is told, not registered.
    assert desired.registrations == decided(publish=PUBLISHED, state=health("healthy")).registrations


def test_578_only_where_it_is_wanted() -> None:
    assert registered(publish=PUBLISHED).checks == ()
    assert registered(Rules(healthcheck=False), publish=PUBLISHED, state=health("healthy")).checks == ()


def test_ready_registers_only_what_has_been_healthy() -> None:
    ready = Rules(ready=True)
    assert reason(ready, publish=PUBLISHED, state=health("starting"))
    assert registered(ready, publish=PUBLISHED, state=health("healthy"))
    assert registered(ready, publish=PUBLISHED)


def test_a_heartbeat_gives_every_service_a_check() -> None:
    desired = decided(Rules(heartbeat=60), publish=PUBLISHED)
    (registration,) = desired.registrations
    assert [(check.id, check.ttl) for check in registration.checks] == [(CHECK_ID, 60)]
    assert [(report.status, report.output) for report in desired.reports] == [("passing", "running")]


# --- what ended and stays visible --------------------------------------------------------------------------


def ended(
    rules: Rules, *, stopping: str = "", age: float = 0.0, **state: Any
) -> tuple[list[str], list[tuple[str, str]], float | None]:
    """What is kept of a registered container in a state: ids, reports, and for how long."""
    before = decided(publish=PUBLISHED, env={"SERVICE_CHECK_TCP": "1"}).registrations
    raw = {"FinishedAt": "2024-05-01T10:00:00Z", **state}
    after = container(publish=PUBLISHED, state=raw)
    now = after.state.finished_at + int(age * 1e9)
    desired = desire(after, rules, HOST, stopping=stopping, previous=before, now=now)
    assert all(decision.registration is None for decision in desired.decisions)
    for one in desired.kept:
        assert OWNER.owns(one)
        assert [check.id for check in one.checks] == [CHECK_ID]
        assert (one.name, one.port, one.address) == (before[0].name, before[0].port, before[0].address)
    ids = [one.id for one in desired.kept]
    return ids, [(report.status, report.output) for report in desired.reports], desired.look_again


WEB = ["host-1:web:80"]
ON_SUCCESS, NEVER = Rules(deregister="on-success"), Rules(deregister="never")


@pytest.mark.parametrize(
    ("rules", "state", "kept", "output"),
    [
        (Rules(), {"ExitCode": 1}, [], ""),
        (ON_SUCCESS, {"ExitCode": 0}, [], ""),
        (ON_SUCCESS, {"ExitCode": 1}, WEB, "exited with code 1"),
        (ON_SUCCESS, {"ExitCode": 143}, [], ""),
        (ON_SUCCESS, {"ExitCode": 137}, [], ""),
        (ON_SUCCESS, {"ExitCode": 137, "OOMKilled": True}, WEB, "exited with code 137, out of memory"),
        (ON_SUCCESS, {"ExitCode": 2, "Running": True, "Restarting": True}, WEB, "exited with code 2"),
        (ON_SUCCESS, {"Running": True, "Paused": True}, [], ""),
        (NEVER, {"ExitCode": 0}, WEB, "exited with code 0"),
    ],
)
def test_82_128_646_a_crash_can_stay_visible(
    rules: Rules, state: dict[str, Any], kept: list[str], output: str
) -> None:
    ids, reports, look_again = ended(rules, **{"Running": False, **state})
    assert ids == kept
    assert reports == ([("critical", output)] if kept else [])
    assert look_again is None


def test_82_128_646_a_crash_stays_visible_for_a_while() -> None:
    rules = replace(ON_SUCCESS, keep_failed=600.0)
    assert ended(rules, Running=False, ExitCode=1, age=100) == (
        WEB,
        [("critical", "exited with code 1")],
        500,
    )
    assert ended(rules, Running=False, ExitCode=1, age=600) == ([], [], None)


@pytest.mark.parametrize(
    ("rules", "kept"),
    [(Rules(), []), (Rules(drain="maintenance"), WEB), (NEVER, WEB), (ON_SUCCESS, [])],
)
def test_draining_can_be_visible(rules: Rules, kept: list[str]) -> None:
    ids, reports, _ = ended(rules, stopping="signal 15")
    assert ids == kept
    assert reports == ([("critical", "stopping (signal 15)")] if kept else [])


def test_draining_can_be_switched_off() -> None:
    desired = desire(container(publish=PUBLISHED), Rules(drain="off"), HOST, stopping="signal 15")
    assert len(desired.registrations) == 1


def test_keeping_what_is_kept_changes_nothing() -> None:
    crashed = container(publish=PUBLISHED, state={"Running": False, "ExitCode": 1})
    before = decided(publish={"80/tcp": [("10.0.0.5", 80)]}).registrations
    once = desire(crashed, ON_SUCCESS, HOST, previous=before)
    # An agent adds tagged addresses of its own, and tells no checks.
    added = {"lan_ipv4": Address("10.0.0.5", 80), "wan_ipv4": Address("10.0.0.5", 80)}
    found = [replace(one, checks=(), tagged_addresses=added) for one in once.kept]
    assert desire(crashed, ON_SUCCESS, HOST, previous=found).kept == once.kept


# --- explanations --------------------------------------------------------------------------------------


def test_every_value_has_its_reason() -> None:
    made = decision(
        Rules(tags=("site",)),
        publish=PUBLISHED,
        env={"SERVICE_80_NAME": "web", "SERVICE_CHECK_TCP": "1"},
        labels={"SERVICE_TAGS": "a", "SERVICE_REGION": "eu"},
    )
    rules = {(choice.field, choice.value): choice.rule for choice in made.choices}
    assert rules == {
        ("name", "web"): "variable SERVICE_80_NAME",
        ("id", "host-1:web:80"): "owner:container:port",
        ("address", "(the node's)"): "published as *:32768",
        ("port", "32768"): "published as *:32768",
        ("tag", "a"): "label SERVICE_TAGS",
        ("tag", "site"): "-tags",
        ("meta region", "eu"): "label SERVICE_REGION",
        ("check", "tcp='172.28.128.3:32768' interval=10.0"): "variable SERVICE_CHECK_TCP",
    }


def test_the_same_container_gives_the_same_registration() -> None:
    options: dict[str, Any] = {
        "publish": PUBLISHED,
        "labels": {"SERVICE_B": "1", "SERVICE_A": "2"},
        "env": {"SERVICE_CHECK_HTTP": "/", "SERVICE_CHECK_HEADER": '{"b": "1", "a": "2"}'},
    }
    backwards = {**options, "labels": {"SERVICE_A": "2", "SERVICE_B": "1"}}
    backwards["env"] = {"SERVICE_CHECK_HEADER": '{"a": "2", "b": "1"}', "SERVICE_CHECK_HTTP": "/"}
    assert registered(**options) == registered(**backwards)
