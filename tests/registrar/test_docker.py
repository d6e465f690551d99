"""A real dockerd: what it tells, that the fake of these tests tells the same, and the loop on top of it."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from docker.types import EndpointSpec

from discovery.backends import open_backend
from discovery.config import Config
from discovery.errors import ConfigurationError
from registrar.containers import Binding, ContainerID, Port, State
from registrar.docker import Docker, DockerUnavailable, Event
from registrar.owner import META_CONTAINER
from registrar.rules import Rules
from tests.registrar.dockerd import IMAGE, OBEDIENT, Dockerd
from tests.registrar.fake_docker import FakeDocker
from tests.registrar.running import Running
from tests.tools import Authority, ConsulAgent, wait_until

pytestmark = pytest.mark.docker

EVERYWHERE = (Binding("0.0.0.0", 8080), Binding("::", 8080))
"""What one ``-p 8080:...`` binds."""


@pytest.fixture
def engine(dockerd: Dockerd) -> Iterator[Docker]:
    with closing(Docker(dockerd.env)) as engine:
        yield engine


class Heard:
    """The events of an engine, collected by a thread."""

    def __init__(self, engine: Any) -> None:
        self.events: list[Event] = []
        self._stream = engine.events(engine.connect().now)
        self._thread = threading.Thread(target=self._listen)

    def _listen(self) -> None:
        for event in self._stream:
            self.events.append(event)

    def actions(self, container: str) -> list[tuple[str, int | None]]:
        return [(event.action, event.signal) for event in list(self.events) if event.container == container]

    def __enter__(self) -> Heard:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._thread.join(5)
        assert not self._thread.is_alive(), "closing the stream did not end the thread that reads it"


# --- the engine ----------------------------------------------------------------------------------------


def test_an_engine_says_who_it_is(engine: Docker) -> None:
    info = engine.connect()
    assert len(info.id) >= 12
    assert info.name
    assert info.version
    assert info.now > 1_700_000_000 * 10**9


def test_a_container_is_read_as_it_was_made(engine: Docker, dockerd: Dockerd) -> None:
    made = dockerd.run(
        "web",
        ports={"80/tcp": 8080, "53/udp": ("127.0.0.1", 5353)},
        environment={"SERVICE_NAME": "shop"},
        labels={"SERVICE_TAGS": "a,b"},
        stop_signal="SIGQUIT",
    )
    engine.connect()
    found = engine.inspect("web")
    assert found == engine.inspect(made.id)
    assert found is not None
    assert (found.id, found.name, found.image) == (made.id, "web", IMAGE)
    assert found.env["SERVICE_NAME"] == "shop"
    assert found.labels["SERVICE_TAGS"] == "a,b"
    assert found.ports == (
        Port(53, "udp", (Binding("127.0.0.1", 5353),)),
        Port(80, "tcp", EVERYWHERE),
        Port(5000, "tcp"),
    )
    assert [network.name for network in found.networks] == ["bridge"]
    assert found.networks[0].ipv4.startswith("172.")
    assert found.stop_signal == 3
    assert found.state.up
    assert [summary.id for summary in engine.list()] == [made.id]
    assert engine.inspect("nobody") is None


def test_a_shared_network_is_followed(engine: Docker, dockerd: Dockerd) -> None:
    pod = dockerd.run("pod", ports={"5000/tcp": 8080})
    dockerd.run("app", network_mode=f"container:{pod.id}")
    dockerd.run("app-of-app", network_mode="container:app")
    engine.connect()
    for name in ("app", "app-of-app"):
        found = engine.inspect(name)
        assert found is not None
        assert found.network_of == pod.id
        assert found.ports == (Port(5000, "tcp", EVERYWHERE),)


def test_nobody_at_the_socket_is_said_so(tmp_path: Any) -> None:
    engine = Docker({"DOCKER_HOST": f"unix://{tmp_path}/none.sock"})
    with pytest.raises(DockerUnavailable, match=r"cannot ask Docker at unix:///.*none.sock"):
        engine.connect()
    with pytest.raises(DockerUnavailable, match="not connected"):
        engine.list()


def test_unusable_tls_variables_are_said_so(tmp_path: Any) -> None:
    env = {"DOCKER_HOST": "tcp://127.0.0.1:1", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(tmp_path)}
    with pytest.raises(ConfigurationError, match="Docker's TLS variables"):
        Docker(env).connect()


@pytest.fixture
def behind_tls(dockerd: Dockerd, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The way to the engine over TLS, for who has a certificate, as ``dockerd --tlsverify`` has it."""
    authority = Authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("localhost"))
    context.load_verify_locations(authority.certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    for file, name in zip(authority.issue("registrar"), ("cert.pem", "key.pem"), strict=True):
        file.rename(tmp_path / name)

    class Relay(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with (
                contextlib.suppress(OSError),
                context.wrap_socket(self.request, server_side=True) as near,
                socket.socket(socket.AF_UNIX) as far,
            ):
                far.connect(dockerd.url.removeprefix("unix://"))
                other = threading.Thread(target=pump, args=(far, near))
                other.start()
                pump(near, far)
                other.join()

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Relay) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield {
            "DOCKER_HOST": f"tcp://localhost:{server.server_address[1]}",
            "DOCKER_TLS_VERIFY": "1",
            "DOCKER_CERT_PATH": str(tmp_path),
        }
        server.shutdown()
        thread.join()


def test_an_engine_is_asked_over_tls(behind_tls: dict[str, str], dockerd: Dockerd) -> None:
    web = dockerd.run("web", publish_all_ports=True)
    with closing(Docker(behind_tls)) as engine:
        assert engine.connect().id
        assert [summary.name for summary in engine.list()] == ["web"]
        found = engine.inspect(web.id)
        assert found is not None and found.name == "web"
        assert engine.inspect("nobody") is None
        assert engine.execute(found.id, ("true",), 10) == (0, "")
        with Heard(engine) as heard:
            web.rename("shop")
            wait_until(lambda: heard.actions(web.id) == [("rename", None)])


def test_events_are_replayed_from_the_moment_given(engine: Docker, dockerd: Dockerd) -> None:
    """The engine answers a subscription before it has made it; the replay closes the gap."""
    now = engine.connect().now
    web = dockerd.run("web")
    with closing(engine.events(now)) as stream:
        # Without the replay there would be nothing to read, ever: the container already runs.
        assert next(event.action for event in stream if event.container == web.id) == "create"


def test_a_stream_ends_with_the_daemon(dockerd: Dockerd) -> None:
    with closing(Docker(dockerd.env)) as engine, Heard(engine) as heard:
        dockerd.restart()
        heard._thread.join(5)
        assert not heard._thread.is_alive()


def test_a_command_is_run_inside_a_container(engine: Docker, dockerd: Dockerd) -> None:
    web = dockerd.run("web", environment={"COLOUR": "blue"})
    engine.connect()
    assert engine.execute(web.id, ("sh", "-c", "echo $COLOUR; exit 3"), 10) == (3, "blue\r\n")
    assert engine.execute(web.id, ("true",), 10) == (0, "")
    code, output = engine.execute(web.id, ("sh", "-c", "echo begun; sleep 60"), 3)
    assert (code, output) == (None, "begun\r\n")
    assert engine.execute(web.id, ("/no/such/program",), 10)[0] in (126, 127)
    with pytest.raises(DockerUnavailable, match="No such container"):
        engine.execute(ContainerID("0" * 64), ("true",), 10)


def test_a_command_under_way_can_be_cancelled(engine: Docker, dockerd: Dockerd) -> None:
    web = dockerd.run("web")
    engine.connect()
    failures: list[Exception] = []

    def execute() -> None:
        try:
            engine.execute(web.id, ("sleep", "60"), 60)
        except DockerUnavailable as exc:
            failures.append(exc)

    thread = threading.Thread(target=execute)
    thread.start()
    wait_until(lambda: engine._executing)
    engine.cancel()
    thread.join(5)
    assert not thread.is_alive()
    execute()
    assert len(failures) <= 2


# --- the fake tells the same -----------------------------------------------------------------------------


class Script:
    """What an operator does, on either engine."""

    def __init__(self, dockerd: Dockerd | None, fake: FakeDocker | None) -> None:
        self.dockerd, self.fake = dockerd, fake

    def run(self, name: str) -> str:
        if self.fake:
            return self.fake.run(name, publish=["5000/tcp"], image=IMAGE)
        assert self.dockerd
        return str(self.dockerd.run(name, publish_all_ports=True, command=OBEDIENT).id)

    def __getattr__(self, verb: str) -> Callable[..., None]:
        if self.fake:
            return {"hup": lambda name: self.fake.kill(name, "SIGHUP", dies=False)}.get(  # type: ignore[union-attr]
                verb, getattr(self.fake, verb, None)
            )  # type: ignore[return-value]
        assert self.dockerd
        containers = self.dockerd.client.containers
        return {
            "stop": lambda name: containers.get(name).stop(),
            "start": lambda name: containers.get(name).start(),
            "kill": lambda name: containers.get(name).kill(),
            "hup": lambda name: containers.get(name).kill("HUP"),
            "pause": lambda name, paused=True: getattr(
                containers.get(name), "pause" if paused else "unpause"
            )(),
            "rename": lambda name, new: containers.get(name).rename(new),
            "remove": lambda name: containers.get(name).remove(force=True),
        }[verb]


def lifetime(script: Script, engine: Any, heard: Heard) -> dict[str, Any]:
    """Lead a container through its life; what is seen of it on the way."""
    seen: dict[str, Any] = {}

    def look(moment: str) -> None:
        found = engine.inspect(web)
        # Of what differs from one engine to the next, only whether it is there.
        seen[moment] = found and {
            "name": found.name,
            "ports": [(str(port), bool(port.bindings)) for port in found.ports],
            "host ports": len({binding.host_port for port in found.ports for binding in port.bindings}),
            "state": replace(found.state, started_at=0, finished_at=0),
            "started": found.state.started_at > 0,
            "network": [network.name for network in found.networks],
        }
        wait_until(lambda: engine.list() is not None)
        seen[f"{moment}, listed"] = [row.name for row in engine.list()]

    def port() -> int:
        found = engine.inspect(web)
        assert found is not None
        return int(found.ports[0].bindings[0].host_port)

    web = script.run("web")
    look("running")
    first = port()
    script.stop("web")
    look("stopped")
    script.start("web")
    seen["port changed"] = port() != first
    script.pause("web")
    look("paused")
    script.pause("web", paused=False)
    script.hup("web")
    script.rename("web", "shop")
    look("renamed")
    script.kill("shop")
    look("killed")
    script.start("shop")
    script.remove("shop")
    look("removed")
    wait_until(lambda: ("destroy", None) in heard.actions(web))
    told_by_both = {"create", "start", "kill", "die", "stop", "pause", "unpause", "rename", "destroy"}
    seen["events"] = [action for action in heard.actions(web) if action[0] in told_by_both]
    return seen


def test_the_fake_leads_a_container_through_the_same_life(engine: Docker, dockerd: Dockerd) -> None:
    fake = FakeDocker()
    with Heard(engine) as heard:
        real_life = lifetime(Script(dockerd, None), engine, heard)
    with Heard(fake) as heard:
        fake_life = lifetime(Script(None, fake), fake, heard)
    # The process of the real one ends by itself, with 0; the fake's is ended by the signal.
    for life in (real_life, fake_life):
        life["stopped"]["state"] = replace(life["stopped"]["state"], exit_code=0)
    assert fake_life == real_life
    assert real_life["events"][:5] == [
        ("create", None),
        ("start", None),
        ("kill", 15),
        ("die", None),
        ("stop", None),
    ]
    assert real_life["paused"]["state"] == State(running=True, paused=True)


def test_a_network_event_names_the_container(engine: Docker, dockerd: Dockerd) -> None:
    back = dockerd.client.networks.create("back")
    web = dockerd.run("web")
    with Heard(engine) as heard:
        back.connect(web)
        wait_until(lambda: ("connect", None) in heard.actions(web.id))
        found = engine.inspect(web.id)
        assert found is not None
        assert [network.name for network in found.networks] == ["back", "bridge"]
        back.disconnect(web)
        wait_until(lambda: ("disconnect", None) in heard.actions(web.id))


# --- the loop --------------------------------------------------------------------------------------------


@pytest.fixture
def own_dockerd(shared_dockerd: Dockerd) -> Iterator[Dockerd]:
    """A daemon that a test may turn into something else; asking for the shared one checks the tools."""
    with Dockerd() as own:
        yield own


@pytest.fixture
def loop(dockerd: Dockerd, consul_agent: ConsulAgent) -> Iterator[Callable[..., Running]]:
    """Start a reconciler between the real dockerd and a real Consul."""
    started: list[tuple[Running, Any, Docker]] = []

    def start(**settings: Any) -> Running:
        backend = open_backend(consul_agent.uri, Config())
        engine = Docker(dockerd.env)
        running = Running(engine, backend, **settings)
        running.__enter__()
        started.append((running, backend, engine))
        return running

    yield start
    for running, backend, engine in started:
        running.__exit__(None, None, None)
        backend.close()
        engine.close()


def services(agent: ConsulAgent) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = agent.request("GET", "/v1/agent/services")
    return rows


def table(agent: ConsulAgent) -> dict[str, int]:
    return {key: row["Port"] for key, row in services(agent).items()}


def see(agent: ConsulAgent, **ports: int) -> None:
    wanted = {f"host-1:{name}:5000": port for name, port in ports.items()}
    wait_until(lambda: table(agent) == wanted, message=f"registered is {wanted}")


def published(dockerd: Dockerd, name: str) -> int:
    api = dockerd.client.api
    return int(api.inspect_container(name)["NetworkSettings"]["Ports"]["5000/tcp"][0]["HostPort"])


def test_the_life_of_a_container_in_consul(
    dockerd: Dockerd, consul_agent: ConsulAgent, loop: Callable[..., Running]
) -> None:
    consul_agent.request(
        "PUT", "/v1/agent/service/register", {"ID": "host-1:by-hand:5000", "Name": "x", "Port": 9}
    )
    loop()
    web = dockerd.run("web", publish_all_ports=True, command=OBEDIENT)
    see(consul_agent, web=published(dockerd, "web"), **{"by-hand": 9})
    web.restart()
    see(consul_agent, web=published(dockerd, "web"), **{"by-hand": 9})
    web.pause()
    see(consul_agent, **{"by-hand": 9})
    web.unpause()
    web.rename("shop")
    see(consul_agent, shop=published(dockerd, "shop"), **{"by-hand": 9})
    web.kill("HUP")
    web.stop()
    see(consul_agent, **{"by-hand": 9})
    web.start()
    see(consul_agent, shop=published(dockerd, "shop"), **{"by-hand": 9})
    web.remove(force=True)
    see(consul_agent, **{"by-hand": 9})


def test_a_stopping_container_leaves_before_it_ends(
    dockerd: Dockerd, consul_agent: ConsulAgent, loop: Callable[..., Running]
) -> None:
    loop()
    slow = ["/bin/sh", "-c", "trap 'sleep 2; exit 0' TERM; sleep 1000 & wait"]
    web = dockerd.run("web", publish_all_ports=True, command=slow)
    see(consul_agent, web=published(dockerd, "web"))
    stopping = threading.Thread(target=web.stop)
    stopping.start()
    try:
        see(consul_agent)
        assert dockerd.client.api.inspect_container("web")["State"]["Running"]
    finally:
        stopping.join()


def test_internal_registers_what_a_late_network_gives(
    dockerd: Dockerd, consul_agent: ConsulAgent, loop: Callable[..., Running]
) -> None:
    loop(rules=Rules(internal=True, network="back"))
    back = dockerd.client.networks.create("back")
    web = dockerd.run("web")

    def address() -> str:
        services = consul_agent.request("GET", "/v1/agent/services")
        return str(services.get("host-1:web:5000", {}).get("Address"))

    def docker_says(network: str) -> str:
        networks = dockerd.client.api.inspect_container("web")["NetworkSettings"]["Networks"]
        return str(networks[network]["IPAddress"])

    wait_until(lambda: address() == docker_says("bridge"))
    back.connect(web)
    wait_until(lambda: address() == docker_says("back"))


def test_347_664_a_sidecar_is_the_agents_and_goes_with_its_service(
    dockerd: Dockerd, consul_agent: ConsulAgent, loop: Callable[..., Running]
) -> None:
    running = loop()
    web = dockerd.run("web", publish_all_ports=True, labels={"portcall.mesh": "sidecar"})
    dockerd.run("shop", publish_all_ports=True, labels={"portcall.mesh": "native", "SERVICE_NAME": "shop"})
    sidecar = "host-1:web:5000-sidecar-proxy"
    wait_until(lambda: set(services(consul_agent)) == {"host-1:web:5000", "host-1:shop:5000", sidecar})
    row = services(consul_agent)[sidecar]
    assert (row["Kind"], row["Service"]) == ("connect-proxy", f"{IMAGE}-sidecar-proxy")
    assert row["Proxy"]["DestinationServiceID"] == "host-1:web:5000"
    assert services(consul_agent)["host-1:shop:5000"]["Connect"] == {"Native": True}
    before = services(consul_agent)
    for _ in range(3):
        running.settle()
    assert services(consul_agent) == before
    web.remove(force=True)
    wait_until(lambda: set(services(consul_agent)) == {"host-1:shop:5000"})


def test_a_change_does_not_lift_an_operators_maintenance_mode(
    dockerd: Dockerd, consul_agent: ConsulAgent, loop: Callable[..., Running]
) -> None:
    loop(rules=Rules(drain="maintenance"))
    healthcheck = {"test": ["CMD", "true"], "interval": 200_000_000}
    slow = [
        "/bin/sh",
        "-c",
        "trap 'while ! test -e /end; do sleep 0.1; done; exit 0' TERM; sleep 1000 & wait",
    ]
    options: dict[str, Any] = {"publish_all_ports": True, "healthcheck": healthcheck, "command": slow}
    web = dockerd.run("web", stop_signal="SIGTERM", **options)
    service_id, own = "host-1:web:5000", "host-1:web:5000:container"
    maintenance = f"_service_maintenance:{service_id}"
    wait_until(lambda: checks(consul_agent).get(own) == ("passing", "healthy"))
    consul_agent.request("PUT", f"/v1/agent/service/maintenance/{service_id}?enable=true&reason=disk")
    # Somebody writes over the registration: it is written anew.
    body = {"ID": service_id, "Name": IMAGE, "Port": 1, "Meta": services(consul_agent)[service_id]["Meta"]}
    consul_agent.request("PUT", "/v1/agent/service/register", body)
    wait_until(lambda: services(consul_agent)[service_id]["Port"] == published(dockerd, "web"))
    # Somebody removes its check: it is registered anew, and told again.
    consul_agent.request("PUT", f"/v1/agent/check/deregister/{own}")
    web.exec_run(["sh", "-c", "true"])
    # It drains, visibly, and stays in maintenance.
    stopping = threading.Thread(target=web.stop, kwargs={"timeout": 30})
    stopping.start()
    try:
        wait_until(lambda: checks(consul_agent).get(own) == ("critical", "stopping (signal 15)"))
        assert set(checks(consul_agent)) == {maintenance, own}
        web.exec_run(["sh", "-c", "echo > /end"])
    finally:
        stopping.join()
    wait_until(lambda: services(consul_agent) == {})


def test_81_334_an_agent_restarted_empty_has_its_services_back(
    dockerd: Dockerd, start_consul: Callable[..., ConsulAgent]
) -> None:
    agent = start_consul()
    web = dockerd.run("web", publish_all_ports=True)
    started = dockerd.client.api.inspect_container(web.id)["State"]["StartedAt"]
    with (
        closing(open_backend(agent.uri, Config())) as backend,
        closing(Docker(dockerd.env)) as engine,
        Running(engine, backend),
    ):
        see(agent, web=published(dockerd, "web"))
        agent.restart()
        see(agent, web=published(dockerd, "web"))
    assert dockerd.client.api.inspect_container(web.id)["State"]["StartedAt"] == started


def test_377_dockerd_killed_and_started_again(
    dockerd: Dockerd, consul_agent: ConsulAgent, loop: Callable[..., Running]
) -> None:
    loop()
    dockerd.run("dies", publish_all_ports=True)
    see(consul_agent, dies=published(dockerd, "dies"))
    dockerd.restart()
    see(consul_agent)
    dockerd.run("new", publish_all_ports=True)
    see(consul_agent, new=published(dockerd, "new"))


def test_443_567_607_588_the_tasks_of_a_swarm_in_consul(
    consul_agent: ConsulAgent, own_dockerd: Dockerd
) -> None:
    api = own_dockerd.client
    api.swarm.init(advertise_addr="127.0.0.1:2377", listen_addr="127.0.0.1:2377")

    def create(name: str, mode: str | None, host_port: int) -> Any:
        ports = {host_port: (5000, "tcp", mode)}
        return api.services.create(
            IMAGE, name=name, command=OBEDIENT[0], args=OBEDIENT[1:], endpoint_spec=EndpointSpec(ports=ports)
        )

    def running_tasks(service: Any) -> list[dict[str, Any]]:
        return [task for task in service.tasks() if task["Status"]["State"] == "running"]

    with (
        closing(open_backend(consul_agent.uri, Config())) as backend,
        closing(Docker(own_dockerd.env)) as engine,
        Running(engine, backend, rules=Rules(tags=("{label:com.docker.swarm.service.name}",))) as running,
    ):
        shop = create("shop", "host", 8080)
        (task,) = wait_until(lambda: running_tasks(shop), 60)
        service_id = f"host-1:shop.1.{task['ID']}:5000"
        wait_until(lambda: table(consul_agent) == {service_id: 8080})
        assert consul_agent.request("GET", "/v1/agent/services")[service_id]["Tags"] == ["shop"]
        mesh = create("mesh", None, 8081)
        wait_until(lambda: running_tasks(mesh), 60)
        running.settle()
        assert table(consul_agent) == {service_id: 8080}
        shop.remove()
        wait_until(lambda: table(consul_agent) == {})


def test_nothing_is_written_when_nothing_differs(
    dockerd: Dockerd, consul_agent: ConsulAgent, loop: Callable[..., Running]
) -> None:
    running = loop()
    labels = {"SERVICE_CHECK_TTL": "1h", "SERVICE_TAGS": "a"}
    web = dockerd.run("web", publish_all_ports=True, labels=labels)
    see(consul_agent, web=published(dockerd, "web"))

    def indexes() -> list[int]:
        """Of this container's service and of its check.

        The agent is shared, and its catalogue, which comes after, may still show another test's under the id.
        """
        rows = consul_agent.request("GET", f"/v1/health/service/{IMAGE}")
        mine = [row for row in rows if row["Service"]["Meta"].get(META_CONTAINER) == web.id]
        checks = [check for row in mine for check in row["Checks"] if check["ServiceID"]]
        return [one["ModifyIndex"] for one in (*(row["Service"] for row in mine), *checks)]

    wait_until(lambda: len(indexes()) == 2)
    before = indexes()
    for _ in range(3):
        running.settle()
    assert indexes() == before


def checks(agent: ConsulAgent) -> dict[str, tuple[str, str]]:
    rows = agent.request("GET", "/v1/agent/checks")
    return {key: (row["Status"], row["Output"]) for key, row in rows.items()}


def test_578_a_real_healthcheck_shows_in_consul(
    dockerd: Dockerd, consul_agent: ConsulAgent, loop: Callable[..., Running]
) -> None:
    loop()
    test = ["CMD-SHELL", "test ! -e /sick || { echo sick; exit 1; }"]
    healthcheck = {"test": test, "interval": 200_000_000, "retries": 1}
    web = dockerd.run("web", publish_all_ports=True, healthcheck=healthcheck)
    check = "host-1:web:5000:container"
    wait_until(lambda: checks(consul_agent).get(check) == ("passing", "healthy"))
    web.exec_run(["sh", "-c", "echo > /sick"])
    wait_until(lambda: checks(consul_agent).get(check) == ("critical", "sick"))


def test_414_338_424_a_command_of_a_real_container_shows_in_consul(
    dockerd: Dockerd, consul_agent: ConsulAgent, loop: Callable[..., Running]
) -> None:
    loop()
    labels = {"SERVICE_CHECK_CMD": "sh -c 'echo warm; exit 1'", "SERVICE_CHECK_INTERVAL": "200ms"}
    dockerd.run("web", publish_all_ports=True, labels=labels)
    wait_until(lambda: checks(consul_agent) == {"host-1:web:5000:command": ("warning", "warm")})


def test_82_128_646_a_real_crash_stays_visible(
    dockerd: Dockerd, consul_agent: ConsulAgent, loop: Callable[..., Running]
) -> None:
    running = loop(rules=Rules(deregister="on-success"))
    web = dockerd.run(
        "web", publish_all_ports=True, command=["sh", "-c", "trap 'exit 7' USR1; sleep 1000 & wait"]
    )
    port = published(dockerd, "web")
    see(consul_agent, web=port)
    web.kill("USR1")
    crashed = {"host-1:web:5000:container": ("critical", "exited with code 7")}
    wait_until(lambda: checks(consul_agent) == crashed)
    running.settle()
    assert table(consul_agent) == {"host-1:web:5000": port}
    web.start()
    wait_until(lambda: checks(consul_agent) == {})
    web.remove(force=True)
    see(consul_agent)
