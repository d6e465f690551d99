"""The two stub resolvers that containers have, each behind one shell command that prints addresses."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lab import Host

IN_CONTAINER = ("--rm", "--dns", "172.17.0.1", "--dns-search", "service.consul")
"""What a container is told so that it finds services by bare name, and all it needs to be told."""


@dataclass(frozen=True, slots=True)
class Stub:
    """One C library's way of asking DNS, in a container of its image."""

    image: str
    command: str
    """Prints the addresses of $NAME, one a line, in the order in which a client would try them."""

    def shell(self, host: Host, script: str, *, name: str) -> str:
        """Run a shell script in which `resolve` asks for `name`; what it printed."""
        whole = f"NAME={name}; resolve() {{ {self.command}; }}; {script}"
        return host.docker("run", *IN_CONTAINER, "--entrypoint", "sh", self.image, "-c", whole)

    def answers(self, host: Host, name: str, times: int) -> list[list[str]]:
        """Ask for `name` that often; each answer as a list of addresses."""
        printed = self.shell(host, f"for i in $(seq {times}); do resolve; echo end; done", name=name)
        return [answer.split() for answer in printed.split("end")[:-1]]


GLIBC = Stub("portcall", "getent ahosts $NAME | sed -n 's/ *STREAM.*//p'")
MUSL = Stub("resolve-musl", "resolve-musl $NAME")


def build_musl_image(host: Host, directory: Path) -> None:
    """Compile resolve.c against musl and put it beside busybox, for its shell."""
    source = Path(__file__).with_name("resolve.c")
    binary = directory / "resolve-musl"
    subprocess.run(["musl-gcc", "-static", "-O1", "-o", binary, source], check=True)
    (directory / "Dockerfile").write_text("FROM busybox\nCOPY resolve-musl /bin/\n")
    host.docker("build", "--quiet", "--tag", MUSL.image, str(directory))
