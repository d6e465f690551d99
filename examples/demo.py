#!/usr/bin/env python3
"""A guided tour of portcall on this machine: a registry, two instances, and three ways to find them.

    make demo                  containers where a Docker engine answers and can build them, else processes
    examples/demo.py --processes   processes in any case

It uses free ports on loopback, needs no root, and stops everything that it started.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import discovery

BIN = Path(sys.executable).parent
SERVICE = Path(__file__).resolve().parent / "python-micro-service"
NAME = "python-micro-service"
PATIENCE = 20.0  # seconds that any one step may take
COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ


class DemoError(Exception):
    """A step did not come out as it should; the message says which."""


# --- talking to the reader ---------------------------------------------------------------------------


def chapter(number: int, title: str) -> None:
    print(f"\n{paint('1', f'{number}. {title}')}\n")


def say(text: str) -> None:
    print(f"   {text}")


def show(text: str) -> None:
    for line in text.rstrip("\n").splitlines():
        print(paint("2", "   │ ") + line)


def command(*words: object, background: bool = False) -> None:
    """Show a command as the reader would type it: this interpreter and our files by their short names."""
    short = {sys.executable: "python3", str(SERVICE / "service.py"): "service.py"}
    line = shlex.join(short.get(str(word), str(word)) for word in words)
    print(paint("36", f"   $ {line}{' &' if background else ''}"))


def paint(code: str, text: str) -> str:
    return f"\033[{code}m{text}\033[0m" if COLOUR else text


# --- running things ----------------------------------------------------------------------------------


def free_port() -> int:
    """Return a port that nobody has, over TCP and UDP.

    From below those that the kernel hands out by itself: one of these could be taken by any connection
    before the program that it is meant for has bound it.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        ):
            tcp.bind(("127.0.0.1", port))
            udp.bind(("127.0.0.1", port))
            return port


class Tour:
    """What the tour started, to be stopped in reverse order whatever happens."""

    def __init__(self) -> None:
        self.api = f"http://127.0.0.1:{free_port()}"
        self.dns_port = free_port()
        self.env = {**os.environ, "CONSUL_HTTP_ADDR": self.api}
        self.cleanup = contextlib.ExitStack()
        self.logs = Path(self.cleanup.enter_context(tempfile.TemporaryDirectory(prefix="portcall-demo-")))

    def start(self, *words: object) -> subprocess.Popen[bytes]:
        """Start a program of portcall in the background, and have it stopped at the end."""
        command(*words, background=True)
        with (self.logs / str(words[0])).open("ab") as log:
            process = subprocess.Popen(
                [BIN / str(words[0]), *map(str, words[1:])], env=self.env, stdout=log, stderr=log
            )
        self.cleanup.callback(stop, process)
        return process

    def run(self, *words: object) -> str:
        """Run a program of portcall, show what it prints, and return that."""
        command(*words)
        done = subprocess.run(
            [BIN / str(words[0]), *map(str, words[1:])],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        show(done.stdout + done.stderr)
        if done.returncode:
            raise DemoError(f"{shlex.join(map(str, words))} ended with exit code {done.returncode}")
        return done.stdout

    def printed(self) -> str:
        """What the programs in the background had to say; it is of interest when a step fails."""
        return "".join(
            f"\n{log.name} printed:\n{log.read_text(errors='replace')}" for log in sorted(self.logs.iterdir())
        )

    def registered(self) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{self.api}/v1/catalog/service/{NAME}", timeout=5) as reply:
            rows: list[dict[str, Any]] = json.load(reply)
            return rows


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def until(what: str, condition: Callable[[], Any]) -> float:
    """Wait until *condition* holds; return how many seconds that took."""
    start = time.monotonic()
    while time.monotonic() - start < PATIENCE:
        with contextlib.suppress(OSError, discovery.DiscoveryError):
            if condition():
                return time.monotonic() - start
        time.sleep(0.002)
    raise DemoError(f"{what} did not happen within {PATIENCE:g} s")


def hello(instance: discovery.Instance) -> str:
    with urllib.request.urlopen(instance.url("/"), timeout=5) as reply:
        body: bytes = reply.read()
        return body.decode().strip()


# --- the two kinds of instances ----------------------------------------------------------------------


def with_processes(tour: Tour) -> Callable[[], None]:
    """Start two copies as processes; return the function that stops the first."""
    copies = []
    for _ in range(2):
        port = free_port()
        words = ["register", NAME, "--port", port]
        copies.append(tour.start("discovery", *words, "--", sys.executable, SERVICE / "service.py", port))

    def stop_one() -> None:
        command("kill", copies[0].pid)
        copies[0].send_signal(signal.SIGTERM)

    return stop_one


def with_containers(tour: Tour, docker: str) -> Callable[[], None]:
    """Start two copies as containers and a registrar that finds them; return what stops the first."""
    # -explicit: whatever else runs on this machine is not the tour's business.
    tour.start("registrar", "run", "-explicit", f"consul://{tour.api.partition('://')[2]}")
    names = [f"portcall-demo-{os.getpid()}-{n}" for n in (1, 2)]
    for name in names:
        words = [docker, "run", "-d", "--rm", "--name", name, "-P", "-e", f"SERVICE_NAME={NAME}", NAME]
        command("docker", *words[1:])
        container = subprocess.run(
            words, capture_output=True, text=True, timeout=60, check=True
        ).stdout.strip()
        tour.cleanup.callback(
            subprocess.run, [docker, "rm", "-f", container], capture_output=True, timeout=60, check=False
        )

    def stop_one() -> None:
        command("docker", "stop", names[0])
        done = subprocess.Popen([docker, "stop", names[0]], stdout=subprocess.DEVNULL)
        tour.cleanup.callback(done.wait)

    return stop_one


def usable_docker() -> tuple[str | None, str]:
    """Return the docker command, or None and the reason why processes it is."""
    docker = shutil.which("docker")
    if docker is None:
        return None, "There is no docker command here"
    try:
        asked = subprocess.run([docker, "version"], capture_output=True, text=True, timeout=10, check=False)
        if asked.returncode:
            return None, "No Docker engine answers here"
        if (
            subprocess.run([docker, "image", "inspect", NAME], capture_output=True, timeout=10).returncode
            == 0
        ):
            return docker, ""
        say(f"A Docker engine answers. Building the image of {NAME} (once) ...")
        built = subprocess.run(
            [docker, "build", "-q", "-t", NAME, str(SERVICE)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, "The Docker engine takes too long"
    if built.returncode:
        reason = built.stderr.strip().splitlines()[-1] if built.stderr.strip() else "it did not say why"
        return None, f"The Docker engine cannot build the image ({reason})"
    return docker, ""


# --- the tour ----------------------------------------------------------------------------------------


def tour_through(tour: Tour) -> None:
    print(paint("1", "portcall: a container should answer to its name, and know nothing of how."))

    chapter(1, "A registry")
    say("No Consul is needed to begin: the embedded agent speaks its HTTP API, in memory.")
    say("(Each line behind a $ is what really runs; all of it stops at the end.)")
    tour.start("discovery", "agent", "--http", tour.api.partition("://")[2])
    until("an answer of the agent", lambda: tour.registered() == [])
    say(f"It answers at {tour.api}.")

    chapter(2, f"Two instances of {NAME}")
    docker, reason = (None, "As asked") if "--processes" in sys.argv[1:] else usable_docker()
    if docker:
        say("The registrar watches Docker and registers what `docker run` publishes:")
        stop_one = with_containers(tour, docker)
    else:
        say(f"{reason}, so the instances are processes that register themselves:")
        stop_one = with_processes(tour)
    healthy = f"{tour.api}/v1/health/service/{NAME}?passing"

    def both_pass() -> bool:
        with urllib.request.urlopen(healthy, timeout=5) as reply:
            return len(json.load(reply)) == 2

    until("the registration of both", both_pass)

    chapter(3, "Found over HTTP, as Consul's catalogue tells it")
    command("curl", f"{tour.api}/v1/catalog/service/{NAME}")
    for row in tour.registered():
        address = row["ServiceAddress"] or row["Address"]
        show(f"{row['ServiceID']:<44} {address}:{row['ServicePort']}")

    chapter(4, "Found over DNS")
    say("The resolver answers *.service.consul from a live copy of the catalogue:")
    tour.start("resolver", "run", "--listen", f"127.0.0.1:{tour.dns_port}", "--consul", tour.api)
    until("the resolver", lambda: dns_ports(tour) != [])
    tour.run("resolver", "query", "--server", f"127.0.0.1:{tour.dns_port}", f"{NAME}.service.consul", "SRV")
    say("Asked again and again, the first answer takes turns:")
    firsts = [dns_ports(tour)[0] for _ in range(4)]
    show("  ".join(f":{port}" for port in firsts))
    if len(set(firsts)) != 2:
        raise DemoError(f"four DNS answers began with {firsts}: both instances should have had a turn")

    chapter(5, "Found from code")
    say(f'discovery.lookup("{NAME}") is a (host, port), a fresh pick with every call:')
    with discovery.Client(consul=discovery.Config.from_env(tour.env).consul) as client:
        for _ in range(4):
            instance = client.lookup(NAME)
            show(f"{instance}  {hello(instance)}")

        chapter(6, "One of them stops")
        gone = sorted(str(i) for i in client.lookup_all(NAME))
        begin = time.monotonic()
        stop_one()
        until("its disappearance from lookups", lambda: len(client.lookup_all(NAME)) == 1)
        from_code = time.monotonic() - begin
        until("its disappearance from DNS", lambda: len(set(dns_ports(tour))) == 1)
        from_dns = time.monotonic() - begin
        (left,) = client.lookup_all(NAME)
        gone.remove(str(left))
        say(
            f"{gone[0]} is out of lookup() after {from_code * 1000:.0f} ms, "
            f"out of DNS after {from_dns * 1000:.0f} ms."
        )
        say("Whoever asks now meets the other one, and sees no error:")
        for _ in range(3):
            instance = client.lookup(NAME)
            show(f"{instance}  {hello(instance)}")


def dns_ports(tour: Tour) -> list[int]:
    """Return the ports of the SRV records that the resolver answers, in its order."""
    import dns.message
    import dns.query
    import dns.rdatatype

    query = dns.message.make_query(f"{NAME}.service.consul", dns.rdatatype.SRV)
    try:
        reply = dns.query.udp(query, "127.0.0.1", port=tour.dns_port, timeout=1.0)
    except dns.exception.DNSException:
        return []
    return [record.port for rrset in reply.answer for record in rrset]


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let a SIGTERM end the tour as Ctrl-C does: everything that was started is stopped."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> int:
    begin = time.monotonic()
    tour = Tour()
    try:
        with interruptible(), tour.cleanup:
            try:
                tour_through(tour)
            except DemoError as exc:
                raise DemoError(f"{exc}\n{tour.printed()}") from exc
    except DemoError as exc:
        print(f"\ndemo: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; everything it started is stopped", file=sys.stderr)
        return 130
    print(f"\nThat was the tour ({time.monotonic() - begin:.0f} s). All that it started has been stopped.")
    print("Next: `make up` runs it for real beside Docker; README.md has the three lines for your own hosts.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
