"""A registrar in a container whose mounted socket dies under it: dockerd is started again, it is not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from registrar.docker import Docker, DockerUnavailable, SocketDeleted
from tests.registrar.dockerd import Dockerd, LiveRestored
from tests.registrar.fake_docker import FakeDocker
from tests.registrar.fake_registry import FakeRegistry
from tests.registrar.running import Running
from tests.tools import free_port, require_root, wait_until

ROOT = Path(__file__).resolve().parents[2]


def test_a_deleted_socket_ends_the_loop_and_says_so() -> None:
    docker = FakeDocker()
    registry = FakeRegistry()

    def connect() -> Any:
        raise SocketDeleted("nobody listens at unix:///tmp/docker.sock, and the file was deleted")

    with (
        pytest.raises(SocketDeleted, match="the file was deleted"),
        Running(docker, registry, deregister_on_exit=True) as running,
    ):
        docker.run("web", publish=["80/tcp"])
        wait_until(registry.table)
        docker.connect = connect  # type: ignore[method-assign]
        docker.cut()
        wait_until(running.ended)
    # Who starts it again finds everything as it was; an end that was not asked for takes nothing away.
    assert set(registry.table()) == {"host-1:web:80"}


def test_a_socket_whose_file_is_still_there_or_gone_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    with closing(Docker({"DOCKER_HOST": f"unix://{path}"})) as engine:
        with pytest.raises(DockerUnavailable) as missing:
            engine.connect()
        # A file that nobody listens at, as after SIGKILL: the next daemon replaces it.
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
        with pytest.raises(DockerUnavailable) as refused:
            engine.connect()
    for caught in (missing, refused):
        assert not isinstance(caught.value, SocketDeleted)


def test_the_command_ends_with_a_sentence_and_exit_1(tmp_path: Path) -> None:
    """With a mount of its own, as a container has it."""
    require_root("a mount in a namespace of its own")
    host, mounted = tmp_path / "host.sock", tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(host))
    mounted.touch()
    program = f"{sys.executable} -c 'from registrar.cli import main; raise SystemExit(main())'"
    done = subprocess.run(
        [
            *("unshare", "--mount", "sh", "-c"),
            f"mount --bind {host} {mounted} && rm {host} && exec {program} run consul://127.0.0.1:{free_port()}",
        ],
        env={**os.environ, "DOCKER_HOST": f"unix://{mounted}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    sentence = (
        f"registrar: nobody listens at unix://{mounted}, and the file was deleted: Docker makes a new one"
    )
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def live(shared_dockerd: Dockerd) -> Iterator[LiveRestored]:
    """A daemon of the test's own; asking for the shared one checks the tools."""
    with LiveRestored() as own:
        yield own


@pytest.mark.docker
def test_dockerd_is_started_again_under_a_registrar_in_a_container(live: LiveRestored) -> None:
    """The real thing: its restart policy starts it anew, with the new socket."""
    path = live.url.removeprefix("unix://")
    here = {"/usr", "/lib", "/lib64", "/etc", str(ROOT), sys.prefix, sys.base_prefix}
    volumes = [f"{place}:{place}:ro" for place in sorted(here) if Path(place).exists()]
    web = live.run("web")
    registrar = live.run(
        "registrator",
        command=[
            *(sys.executable, "-c", "from registrar.cli import main; raise SystemExit(main())"),
            f"consul://127.0.0.1:{free_port()}",
        ],
        working_dir=str(ROOT),
        volumes=[*volumes, f"{path}:/tmp/docker.sock"],
        restart_policy={"Name": "always"},
        hostname="registrator",
    )

    def log() -> str:
        return registrar.logs().decode()

    def started_at(container: Any) -> str:
        container.reload()
        return str(container.attrs["State"]["StartedAt"])

    wait_until(lambda: "watching Docker" in log(), 60, message="the registrar watches Docker")
    before = started_at(registrar), started_at(web)
    live.restart()
    wait_until(lambda: log().count("watching Docker") == 2, 60, message="it watches the new daemon")
    # What it said at its end may be lost: the daemon that would have read it was away.
    assert "Traceback" not in log()
    assert started_at(registrar) != before[0]
    assert started_at(web) == before[1]
