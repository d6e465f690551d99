from __future__ import annotations

import signal
from typing import Any

import pytest

from registrar.containers import Binding, Container, Health, Network, Port, Summary, signal_number
from tests.registrar.build import container, container_id, raw_container


def test_what_docker_tells_is_read() -> None:
    web = container(
        "web",
        image="registry:5000/team/web:1.2",
        expose=["443/tcp"],
        publish={"80/tcp": [("0.0.0.0", 8080)]},
        env={"SERVICE_NAME": "a=b", "EMPTY": ""},
        labels={"SERVICE_TAGS": "x"},
        network="backend",
        networks={"front": "10.1.0.2", "backend": "fd00::2"},
        StopSignal="SIGQUIT",
        StopTimeout=30,
    )
    assert web.id == container_id("web")
    assert web.name == "web"
    assert web.image == "registry:5000/team/web:1.2"
    assert web.env == {"SERVICE_NAME": "a=b", "EMPTY": ""}
    assert web.labels == {"SERVICE_TAGS": "x"}
    assert web.ports == (Port(80, "tcp", (Binding("0.0.0.0", 8080),)), Port(443, "tcp"))
    assert web.networks == (Network("backend", "", "fd00::2"), Network("front", "10.1.0.2"))
    assert web.stop_signal == signal.SIGQUIT
    assert web.stop_timeout == 30
    assert web.state.up
    assert web.state.started_at == 1714557600_500000000


def test_the_least_that_docker_may_tell_is_read() -> None:
    """Podman and old engines leave most of it out, and write null for empty."""
    raw = {"Id": "a" * 64, "Config": {"Env": None, "Labels": None}, "NetworkSettings": {"Networks": None}}
    bare = Container.from_json(raw)
    assert bare.name == "a" * 12
    assert bare.ports == ()
    assert bare.stop_signal == signal.SIGTERM
    assert bare.stop_timeout == 10
    assert not bare.state.up


@pytest.mark.parametrize(
    ("state", "up"),
    [
        ({"Running": True}, True),
        ({"Running": False}, False),
        ({"Running": True, "Paused": True}, False),
        ({"Running": True, "Restarting": True}, False),
    ],
)
def test_up_means_that_processes_run(state: dict[str, Any], up: bool) -> None:
    assert container(state=state).state.up is up


def test_bindings_come_in_an_order_of_their_own() -> None:
    bindings = [("::", 8081), ("10.0.0.1", 8080), ("0.0.0.0", 8081)]
    one = container(publish={"80/tcp": bindings})
    other = container(publish={"80/tcp": bindings[::-1]})
    assert one.ports == other.ports
    assert one.ports[0].bindings == (
        Binding("0.0.0.0", 8081),
        Binding("10.0.0.1", 8080),
        Binding("::", 8081),
    )


def test_tcp_comes_before_udp_of_the_same_port() -> None:
    assert [str(port) for port in container(expose=["53/udp", "53/sctp", "53/tcp", "7/udp"]).ports] == [
        "7/udp",
        "53/tcp",
        "53/udp",
        "53/sctp",
    ]


def test_health_is_read_with_the_last_output() -> None:
    log = [{"Output": "first"}, {"Output": "cannot connect\n"}]
    sick = container(state={"Health": {"Status": "unhealthy", "Log": log}})
    assert sick.state.health == Health("unhealthy", "cannot connect")
    podman = container(state={"Healthcheck": {"Status": "starting", "Log": None}})
    assert podman.state.health == Health("starting")
    assert container(state={"Health": {"Status": "none"}}).state.health is None


def test_never_is_no_time() -> None:
    assert container(state={"StartedAt": "0001-01-01T00:00:00Z"}).state.started_at == 0


def test_a_time_zone_is_understood() -> None:
    utc = container(state={"StartedAt": "2024-05-01T10:00:00.123456789Z"}).state.started_at
    east = container(state={"StartedAt": "2024-05-01T12:00:00.123456789+02:00"}).state.started_at
    assert utc == east == 1714557600_123456789


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("SIGTERM", 15),
        ("term", 15),
        ("15", 15),
        ("SIGHUP", 1),
        ("SIGRTMIN+3", signal.SIGRTMIN + 3),
        ("RTMAX-1", signal.SIGRTMAX - 1),
        ("SIGNONSENSE", None),
        ("", None),
    ],
)
def test_signals_are_read_as_docker_writes_them(name: str, number: int | None) -> None:
    assert signal_number(name) == number


def test_a_container_in_anothers_network_has_its_addresses_and_bindings() -> None:
    pod = container("pod", publish={"80/tcp": [("0.0.0.0", 8080)], "90/tcp": [("0.0.0.0", 8090)]})
    app = container("app", expose=["80/tcp", "70/tcp"], network=f"container:{pod.id}")
    assert app.shared_network == pod.id
    joined = app.joined(pod)
    assert joined.networks == pod.networks
    assert joined.network_of == pod.id
    assert not joined.shared_network
    # Port 90 is the other container's own service; port 70 nobody has published.
    assert joined.ports == (Port(70, "tcp"), Port(80, "tcp", (Binding("0.0.0.0", 8080),)))


def raw_row(**changes: Any) -> dict[str, Any]:
    return {
        "Id": "a" * 64,
        "Names": ["/web"],
        "State": "running",
        "Status": "Up 5 seconds",
        "Ports": [{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 32768, "Type": "tcp"}],
        "NetworkSettings": {"Networks": {"bridge": {"IPAddress": "172.17.0.2"}}},
        **changes,
    }


def test_a_growing_age_does_not_change_a_fingerprint() -> None:
    assert Summary.from_json(raw_row()) == Summary.from_json(raw_row(Status="Up 6 seconds"))


@pytest.mark.parametrize(
    "changes",
    [
        {"Names": ["/web2"]},
        {"State": "paused"},
        {"Status": "Up 5 seconds (healthy)"},
        {"Status": "Exited (1) 5 seconds ago"},
        {"Ports": [{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 32769, "Type": "tcp"}]},
        {"NetworkSettings": {"Networks": {"bridge": {"IPAddress": "172.17.0.3"}}}},
        {"NetworkSettings": {"Networks": {}}},
    ],
)
def test_what_a_registration_is_made_of_changes_the_fingerprint(changes: dict[str, Any]) -> None:
    assert Summary.from_json(raw_row()).fingerprint != Summary.from_json(raw_row(**changes)).fingerprint


def test_links_do_not_change_the_name() -> None:
    assert Summary.from_json(raw_row(Names=["/other/alias", "/web"])).name == "web"


def test_raw_containers_of_these_tests_have_the_form_of_dockers() -> None:
    assert raw_container("web")["NetworkSettings"]["Networks"] == {"bridge": {"IPAddress": "172.17.0.2"}}
