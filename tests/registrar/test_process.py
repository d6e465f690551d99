"""The registrar as a process, between a real Consul and a fake engine behind Docker's API, when things break.

After each fault the agent has what runs within 2 s of the fault's end, nothing foreign was touched, and the
log tells no traceback.
"""

from __future__ import annotations

import os
import shutil
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from registrar.docker import Docker
from tests.registrar.faulty_proxy import FAULTS, FaultyProxy
from tests.registrar.process import RegistrarProcess
from tests.registrar.served_docker import ServedDocker
from tests.tools import Authority, ConsulAgent, free_port, wait_until

BOUND = 2.0  # s
STARTED = 15.0  # s for Python to start on a loaded machine
PATIENCE = 30.0  # s where no time is promised

FOREIGN = {"ID": "host-1:by-hand:80", "Name": "by-hand", "Port": 1, "Meta": {"mine": "yes"}}


@pytest.fixture
def docker() -> Iterator[ServedDocker]:
    with ServedDocker() as docker:
        yield docker


@pytest.fixture
def agent(consul_agent: ConsulAgent) -> ConsulAgent:
    consul_agent.request("PUT", "/v1/agent/service/register", FOREIGN)
    return consul_agent


def table(agent: ConsulAgent) -> dict[str, int]:
    rows = agent.request("GET", "/v1/agent/services")
    foreign = rows.pop(FOREIGN["ID"], None)
    assert foreign is None or foreign["Meta"] == {"mine": "yes"}
    return {key: row["Port"] for key, row in rows.items()}


def see(agent: ConsulAgent, docker: ServedDocker, *names: str, timeout: float = BOUND) -> None:
    wanted = {f"host-1:{name}:80": docker.port_of(name) for name in names}
    wait_until(lambda: table(agent) == wanted, timeout, message=f"registered is {wanted}")


def check_end(registrar: RegistrarProcess, agent: ConsulAgent) -> None:
    """What holds at the end of every test."""
    assert "Traceback" not in registrar.log
    assert agent.request("GET", "/v1/agent/services")[FOREIGN["ID"]]["Meta"] == {"mine": "yes"}


# --- faults ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
def test_an_agent_that_answers_wrongly_late_or_never(
    docker: ServedDocker, agent: ConsulAgent, fault: str
) -> None:
    docker.run("stays", publish=["80/tcp"])
    docker.run("goes", publish=["80/tcp"])
    env = {"DOCKER_HOST": docker.url}
    with (
        FaultyProxy("127.0.0.1", agent.http_port) as proxy,
        RegistrarProcess(proxy.uri, env=env) as registrar,
    ):
        see(agent, docker, "stays", "goes", timeout=STARTED)
        with proxy.fault(fault):
            docker.remove("goes")
            new = [f"new{number}" for number in range(20)]
            for name in new:
                docker.run(name, publish=["80/tcp"])
            wait_until(lambda: proxy.struck >= 2, message="the registrar has met the fault")
        see(agent, docker, "stays", *new)
        check_end(registrar, agent)
        told = [line for line in registrar.log.splitlines() if " WARNING " in line or " ERROR " in line]
        assert len(told) < 30, "a fault is a line or two, or one for each container; not one for each attempt"


@pytest.mark.parametrize("fault", ["403", "500", "hangs"])
def test_an_agent_that_is_faulty_from_the_beginning(
    docker: ServedDocker, agent: ConsulAgent, fault: str
) -> None:
    docker.run("web", publish=["80/tcp"])
    env = {"DOCKER_HOST": docker.url}
    with FaultyProxy("127.0.0.1", agent.http_port) as proxy, ExitStack() as lasting:
        lasting.enter_context(proxy.fault(fault))
        with RegistrarProcess(proxy.uri, env=env) as registrar:
            wait_until(lambda: proxy.struck >= 1, STARTED, message="the registrar has met the fault")
            lasting.close()
            see(agent, docker, "web")
            check_end(registrar, agent)


def test_docker_s_socket_gone_and_back(docker: ServedDocker, agent: ConsulAgent) -> None:
    docker.run("stays", publish=["80/tcp"])
    docker.run("goes", publish=["80/tcp"])
    with RegistrarProcess(agent.uri, env={"DOCKER_HOST": docker.url}) as registrar:
        see(agent, docker, "stays", "goes", timeout=STARTED)
        for turn in range(2):
            docker.go_away()
            wait_until(lambda: registrar.log.count("waiting for Docker") > turn)  # noqa: B023
            assert len(table(agent)) == 2, "who cannot see the containers removes none"
            docker.remove("stays" if turn else "goes")
            docker.run(f"new{turn}", publish=["80/tcp"])
            docker.come_back()
            see(agent, docker, *(["new0", "new1"] if turn else ["stays", "new0"]))
        check_end(registrar, agent)


def test_an_event_stream_that_is_cut(docker: ServedDocker, agent: ConsulAgent) -> None:
    with RegistrarProcess(agent.uri, env={"DOCKER_HOST": docker.url}) as registrar:
        wait_until(lambda: registrar.metric("docker_up"), STARTED)
        names = []
        for number in range(10):
            docker.cut()
            names.append(f"web{number}")
            docker.run(names[-1], publish=["80/tcp"])
            if number % 3 == 2:
                docker.remove(names.pop(0))
        see(agent, docker, *names)
        check_end(registrar, agent)


def test_memory_is_flat_over_ten_thousand_events(docker: ServedDocker, agent: ConsulAgent) -> None:
    with RegistrarProcess(agent.uri, env={"DOCKER_HOST": docker.url}) as registrar:
        wait_until(lambda: registrar.metric("docker_up"), STARTED)

        def live_and_die(lives: int) -> int:
            for first in range(0, lives, 50):
                numbers = range(first, min(first + 50, lives))
                for number in numbers:
                    env = {"SERVICE_TAGS": f"tag{number}", "SERVICE_080_X": "a problem"}
                    docker.run(f"web{number}", publish=["80/tcp"], env=env)
                wait_until(lambda: len(table(agent)) == len(numbers), PATIENCE)  # noqa: B023
                for number in numbers:
                    docker.health(f"web{number}", "healthy", "ok")
                    docker.rename(f"web{number}", f"shop{number}")
                    docker.kill(f"shop{number}", "SIGHUP", dies=False)
                    docker.stop(f"shop{number}")
                    docker.remove(f"shop{number}")
                wait_until(lambda: not table(agent), PATIENCE)
            return registrar.memory()

        warm = live_and_die(200)
        before = docker.events_told
        grown = live_and_die(1150) - warm
        assert docker.events_told - before >= 10_000
        assert grown < 3 << 20, f"{grown / 2**20:.1f} MiB more than after warming up"
        assert registrar.metric("events_total", 'action="destroy"') == 1350
        check_end(registrar, agent)


# --- the ways to Docker and to Consul -------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def certificates(authority: Authority, tmp_path: Path) -> Path:
    """A directory as DOCKER_CERT_PATH wants it."""
    directory = tmp_path / "docker"
    directory.mkdir()
    certificate, key = authority.issue("client")
    shutil.copy(authority.certificate, directory / "ca.pem")
    shutil.copy(certificate, directory / "cert.pem")
    shutil.copy(key, directory / "key.pem")
    return directory


@pytest.fixture
def encrypted_docker(authority: Authority) -> Iterator[ServedDocker]:
    """Behind TLS, for clients with a certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.certificate))
    context.load_cert_chain(*authority.issue("localhost"))
    context.verify_mode = ssl.CERT_REQUIRED
    with ServedDocker(tls=context) as docker:
        yield docker


def test_docker_behind_tls(encrypted_docker: ServedDocker, certificates: Path, agent: ConsulAgent) -> None:
    docker = encrypted_docker
    docker.run("web", publish=["80/tcp"])
    env = {"DOCKER_HOST": docker.url, "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(certificates)}
    with RegistrarProcess(agent.uri, env=env) as registrar:
        see(agent, docker, "web", timeout=STARTED)
        docker.go_away()
        docker.run("shop", publish=["80/tcp"])
        docker.come_back()
        see(agent, docker, "web", "shop")
        docker.stop("web")
        see(agent, docker, "shop")
        check_end(registrar, agent)
        assert registrar.terminate() == 0


def test_a_docker_host_that_vanishes_is_noticed_by_its_silence(
    encrypted_docker: ServedDocker, certificates: Path
) -> None:
    """The system asks whether it is still there; that it gets no answer cannot be made on one host."""
    docker = encrypted_docker
    env = {"DOCKER_HOST": docker.url, "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(certificates)}
    with closing(Docker(env)) as engine:
        engine.connect()
        with closing(engine.events(0)) as events:
            with socket.socket(fileno=os.dup(events._response.raw.fileno())) as sock:
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                asked = [
                    sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
                    for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
                    if hasattr(socket, name)
                ]
            assert asked == [10, 5, 3][: len(asked)]
            docker.run("web")
            assert next(iter(events)).action == "create", "it can still be read"


def test_docker_that_is_not_who_it_should_be_is_not_believed(
    encrypted_docker: ServedDocker, certificates: Path, agent: ConsulAgent, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(Authority(other).certificate, certificates / "ca.pem")
    env = {
        "DOCKER_HOST": encrypted_docker.url,
        "DOCKER_TLS_VERIFY": "1",
        "DOCKER_CERT_PATH": str(certificates),
    }
    encrypted_docker.run("web", publish=["80/tcp"])
    with RegistrarProcess(agent.uri, env=env) as registrar:
        wait_until(lambda: "waiting for Docker" in registrar.log, STARTED)
        assert "certificate" in registrar.log
        assert table(agent) == {}
        check_end(registrar, agent)


def test_consul_behind_tls(
    docker: ServedDocker, authority: Authority, start_consul: Callable[..., ConsulAgent]
) -> None:
    port = free_port()
    cert, key = authority.issue("agent.example.test")
    client_cert, client_key = authority.issue("consul-client")
    agent = start_consul(
        config={
            "ports": {"https": port},
            "cert_file": str(cert),
            "key_file": str(key),
            "ca_file": str(authority.certificate),
            "verify_incoming_https": True,
        }
    )
    agent.request("PUT", "/v1/agent/service/register", FOREIGN)
    env = {
        "DOCKER_HOST": docker.url,
        "CONSUL_CACERT": str(authority.certificate),
        "CONSUL_TLS_SERVER_NAME": "agent.example.test",
        "CONSUL_CLIENT_CERT": str(client_cert),
        "CONSUL_CLIENT_KEY": str(client_key),
    }
    docker.run("web", publish=["80/tcp"])
    with RegistrarProcess(f"consul-tls://127.0.0.1:{port}", env=env) as registrar:
        see(agent, docker, "web", timeout=STARTED)
        docker.stop("web")
        see(agent, docker)
        check_end(registrar, agent)
        assert registrar.terminate() == 0


def test_consul_behind_a_unix_socket(
    docker: ServedDocker, start_consul: Callable[..., ConsulAgent], tmp_path: Path
) -> None:
    path = tmp_path / "consul.sock"
    agent = start_consul(config={"addresses": {"http": f"127.0.0.1 unix://{path}"}})
    agent.request("PUT", "/v1/agent/service/register", FOREIGN)
    docker.run("web", publish=["80/tcp"])
    with RegistrarProcess(f"consul-unix://{path}", env={"DOCKER_HOST": docker.url}) as registrar:
        see(agent, docker, "web", timeout=STARTED)
        docker.stop("web")
        see(agent, docker)
        check_end(registrar, agent)
        assert registrar.terminate() == 0
