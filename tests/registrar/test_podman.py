"""Podman behind its Docker API: the same life of a container, told a little differently.

712 is Registrator's issue on Podman's events, of which none is relied on: they only say where to look.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import docker
import pytest

from discovery.backends import open_backend
from discovery.config import Config
from registrar.docker import Docker
from tests.registrar.dockerd import IMAGE, OBEDIENT, busybox
from tests.registrar.running import Running
from tests.tools import ConsulAgent, missing, require_root, wait_until

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def podman() -> Iterator[dict[str, str]]:
    """A Podman service in namespaces of its own, with one image; yields the environment that leads there."""
    require_root("a Podman in namespaces of its own")
    for command in ("podman", "unshare", "ip", "busybox"):
        if shutil.which(command) is None:
            missing(f"{command} is not installed")
    directory = Path(tempfile.mkdtemp(prefix="portcall-podman-"))
    places = f"--root {directory}/root --runroot {directory}/run --tmpdir {directory}/tmp"
    options = f"{places} --storage-driver vfs --cgroup-manager cgroupfs --events-backend file"
    url = f"unix://{directory}/podman.sock"
    script = f"ip link set lo up && exec podman {options} system service --time 0 {url}"
    namespaces = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        log = stack.enter_context((directory / "log").open("wb"))
        process = subprocess.Popen(
            ["unshare", *namespaces, "sh", "-c", script], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        stack.callback(process.wait)
        stack.callback(process.kill)

        def up() -> bool:
            assert process.poll() is None, (directory / "log").read_text(errors="replace")[-4000:]
            with socket.socket(socket.AF_UNIX) as sock:
                return sock.connect_ex(f"{directory}/podman.sock") == 0

        wait_until(up, 30, message="podman answers")
        with closing(docker.DockerClient(url, version="1.40", timeout=60)) as client:
            changes = ["EXPOSE 5000", 'CMD ["sleep", "1000"]']
            client.api.import_image_from_data(busybox(), repository=IMAGE, changes=changes)
        yield {"DOCKER_HOST": url}


@pytest.fixture
def client(podman: dict[str, str]) -> Iterator[docker.DockerClient]:
    with closing(docker.DockerClient(podman["DOCKER_HOST"], version="1.40", timeout=60)) as client:
        yield client
        for container in client.containers.list(all=True):
            container.remove(force=True)


def table(agent: ConsulAgent) -> dict[str, tuple[str, int]]:
    rows = agent.request("GET", "/v1/agent/services")
    return {key: (row["Service"], row["Port"]) for key, row in rows.items()}


def published(client: docker.DockerClient, name: str) -> int:
    raw: Any = client.api.inspect_container(name)
    return int(raw["NetworkSettings"]["Ports"]["5000/tcp"][0]["HostPort"])


def test_505_202_its_random_id_is_no_part_of_the_owner(podman: dict[str, str]) -> None:
    with closing(Docker(podman)) as engine:
        first, second = engine.connect(), engine.connect()
    assert (first.id, first.name) == (second.id, second.name)


def test_712_the_life_of_a_container_in_consul(
    podman: dict[str, str], client: docker.DockerClient, consul_agent: ConsulAgent
) -> None:
    def see(**ports: int) -> None:
        wanted = {f"host-1:{name}:5000": (IMAGE, port) for name, port in ports.items()}
        wait_until(lambda: table(consul_agent) == wanted, message=f"registered is {wanted}")

    with (
        closing(open_backend(consul_agent.uri, Config())) as backend,
        closing(Docker(podman)) as engine,
    ):
        with Running(engine, backend) as running:
            web = client.containers.run(
                IMAGE, OBEDIENT, name="web", detach=True, publish_all_ports=True, stop_signal="SIGTERM"
            )
            see(web=published(client, "web"))
            web.pause()
            see()
            web.unpause()
            see(web=published(client, "web"))
            web.stop(timeout=5)
            see()
            web.start()
            see(web=published(client, "web"))
            running.settle()
        before = consul_agent.request("GET", f"/v1/health/service/{IMAGE}")
        # Another registrar of the same host finds its own, and has nothing to write.
        with Running(engine, backend) as running:
            running.settle()
            assert consul_agent.request("GET", f"/v1/health/service/{IMAGE}") == before
            web.rename("shop")
            see(shop=published(client, "shop"))
            web.remove(force=True)
            see()
