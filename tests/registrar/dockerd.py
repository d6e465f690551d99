"""A real dockerd of the tests' own, in namespaces of its own: nothing of it shows on this machine."""

from __future__ import annotations

import contextlib
import io
import shutil
import socket
import subprocess
import tarfile
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import docker
import docker.errors
import requests

from tests.tools import wait_until

__all__ = ["IMAGE", "OBEDIENT", "Dockerd", "LiveRestored", "busybox"]

IMAGE = "python-micro-service"
OBEDIENT = ["/bin/sh", "-c", "trap 'exit 0' TERM; sleep 1000 & wait"]
"""A process 1 that ends when it is asked to; a bare ``sleep`` would ignore SIGTERM there."""

_STARTED = 30.0  # s
_COMMANDS = ("sh", "sleep", "true", "test")


class Dockerd:
    """One daemon with one image, ``IMAGE``: busybox, exposing port 5000.

    with Dockerd() as dockerd:
        dockerd.run("web", publish_all_ports=True)
    """

    runs = "exec dockerd {places}"
    """What the first process of its namespaces does."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="portcall-dockerd-"))
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{self._directory}/docker.sock"
        self.env = {"DOCKER_HOST": self.url}
        self.client: docker.DockerClient

    def start(self) -> None:
        """Run the daemon and wait until it answers; containers of its life before are not started."""
        d = self._directory
        # The mounts are its own, so that what it leaves mounted ends with it; --kill-child takes every
        # process of its pid namespace along.
        places = f"--data-root {d}/data --exec-root {d}/exec --pidfile {d}/pid -H {self.url}"
        script = f"ip link set lo up && {self.runs.format(places=places)}"
        namespaces = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        with (d / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["unshare", *namespaces, "sh", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

        def up() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, (d / "log").read_text(errors="replace")[-4000:]
            return _answers(f"{d}/docker.sock")

        wait_until(up, _STARTED, message="dockerd answers")
        self.client = docker.DockerClient(self.url, version="1.41", timeout=30)

    def kill(self) -> None:
        """SIGKILL the daemon and every container with it."""
        self.client.close()
        if self._process is not None:
            children = self._children()
            self._process.kill()
            self._process.wait()
            self._process = None
            # The first process of a pid namespace becomes a zombie when all others of it have ended, and
            # with them their locks on the files that the next daemon needs.
            for child in children:
                wait_until(lambda: _has_ended(child), message="dockerd has ended")  # noqa: B023
        # Process ids of the namespace that is gone: the next daemon would take its own for containerd's.
        (self._directory / "pid").unlink(missing_ok=True)
        shutil.rmtree(self._directory / "exec", ignore_errors=True)

    def _children(self) -> list[str]:
        """The process id, out here, of the first process in there."""
        assert self._process is not None
        unshare = self._process.pid
        return Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split()

    def restart(self) -> None:
        self.kill()
        self.start()

    def __enter__(self) -> Self:
        try:
            self.start()
            self.client.api.import_image_from_data(
                busybox(), repository=IMAGE, changes=["EXPOSE 5000", 'CMD ["sleep", "1000"]']
            )
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    def run(self, name: str, **options: Any) -> Any:
        """``docker run -d``; options are the SDK's."""
        return self.client.containers.run(IMAGE, name=name, detach=True, **options)

    def beside(self, *command: str) -> list[str]:
        """The command line that runs *command* in this engine's network, where docker0 is."""
        assert self._process is not None
        return ["nsenter", f"--target={self._process.pid}", "--net", "--", *command]

    def clear(self) -> None:
        """Remove every container and every network that was made."""
        for one in self.client.containers.list(all=True, ignore_removed=True):
            with contextlib.suppress(docker.errors.NotFound, requests.RequestException):
                one.remove(force=True)
        self.client.networks.prune()


class LiveRestored(Dockerd):
    """A daemon whose containers run on while it is started again."""

    runs = "while :; do dockerd --live-restore {places}; done"

    def restart(self) -> None:
        """Stop the daemon alone, as a package's update does; the shell in there starts it again."""
        socket_file = self._directory / "docker.sock"
        before = socket_file.stat().st_ino
        pid = (self._directory / "pid").read_text()
        (child,) = self._children()
        subprocess.run(["nsenter", f"--target={child}", "--pid", "sh", "-c", f"kill -TERM {pid}"], check=True)

        def replaced() -> bool:
            return socket_file.exists() and socket_file.stat().st_ino != before and _answers(str(socket_file))

        wait_until(replaced, _STARTED, message="dockerd answers at a new socket")


def _answers(path: str) -> bool:
    """Ask without the SDK: it leaves a socket open for each attempt that is refused or reset."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        try:
            sock.connect(path)
            sock.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in sock.recv(64)
        except OSError:
            return False


def _has_ended(pid: str) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return status.rpartition(")")[2].split()[0] in "ZX"


def busybox() -> bytes:
    """Return the layer of an image with a shell and a few commands."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add("/bin/busybox", "bin/busybox")
        for command in _COMMANDS:
            link = tarfile.TarInfo(f"bin/{command}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
    return buffer.getvalue()
