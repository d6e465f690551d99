"""One host in one process: registrar and resolver, and an embedded agent where there is no Consul.

    registrar up [--dns ADDR:PORT] [options] [URI]

    URI or CONSUL_HTTP_ADDR given      that registry
    else 127.0.0.1:8500 answers        that one
    else                               the embedded agent, on 127.0.0.1:8500 and docker0's address

Laws:
- An address that somebody chose is never replaced by the embedded agent: two registries that each know
  half of the services are worse than one that is down.
- What cannot be bound is said before anything runs.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Final

from discovery.agent import Agent
from discovery.backends import Backend, open_backend
from discovery.sources import PROBE_TIMEOUT
from registrar.cli import Parser, obey_signals
from registrar.config import Settings as RegistrarSettings
from registrar.config import add_options, normalised, settings_from
from registrar.docker import Docker
from registrar.monitor import Monitor
from registrar.reconcile import Reconciler
from resolver.config import Endpoint, Settings
from resolver.forward import Upstream
from resolver.server import Resolver

__all__ = ["main"]

log = logging.getLogger("registrar")

DOCKER0: Final = "docker0"
LOOPBACK: Final = "127.0.0.1"
_SIOCGIFADDR: Final = 0x8915  # linux/sockios.h: the IPv4 address of an interface


@dataclass(frozen=True, slots=True)
class _Registry:
    backend: Backend
    embedded: bool


def main(arguments: Sequence[str]) -> int:
    """Run ``registrar up`` until SIGTERM or SIGINT; the exit code.

    Raises:
        ConfigurationError: an option cannot be used, or an address cannot be bound.
    """
    parser = Parser(
        prog="registrar up",
        description="Registrar and resolver of one host in one process.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--dns",
        action="append",
        metavar="ADDR:PORT",
        help=f"where to answer DNS (repeatable); default: port 53 of {DOCKER0}, else of {LOOPBACK}",
    )
    parser.add_argument(
        "--upstream",
        action="append",
        metavar="IP[:PORT]",
        help="where other names are asked (repeatable); default: /etc/resolv.conf",
    )
    add_options(parser)
    options = parser.parse_args(normalised(arguments))
    settings = settings_from(options, os.environ)
    bridge = interface_address(DOCKER0)
    if bridge is None and not options.dns:
        print(f"registrar: there is no {DOCKER0} (yet), so DNS is answered on {LOOPBACK}", file=sys.stderr)
    dns = _dns_settings(options.dns or [f"{bridge or LOOPBACK}:53"], options.upstream)

    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING, stream=sys.stderr
    )
    for name in ("registrar", "resolver"):
        logging.getLogger(name).setLevel(logging.INFO)
    with ExitStack() as running:
        registry = _registry(settings, bridge, running)
        resolver = running.enter_context(Resolver(dns, registry.backend, config=settings.discovery))
        engine = running.enter_context(closing(Docker()))
        reconciler = Reconciler(engine, registry.backend, settings, hostname=socket.gethostname())
        if settings.metrics:
            running.enter_context(Monitor(reconciler, *settings.metrics))
        obey_signals(reconciler)
        print(_welcome(registry, resolver.addresses), flush=True)
        reconciler.run()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # from here on a second one ends it the hard way
    return 0


def interface_address(name: str) -> str | None:
    """Return the IPv4 address of a network interface, or None where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            raw = fcntl.ioctl(sock.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
        except OSError:
            return None
    return socket.inet_ntoa(raw[20:24])


def _dns_settings(listen: Sequence[str], upstreams: Sequence[str] | None) -> Settings:
    settings = Settings(listen=tuple(Endpoint.from_text(one, origin="--dns") for one in listen))
    if upstreams:
        found = (Endpoint.from_text(one, origin="--upstream") for one in upstreams)
        settings = replace(settings, upstreams=tuple(Upstream(one.host, one.port) for one in found))
    return settings


def _registry(settings: RegistrarSettings, bridge: str | None, running: ExitStack) -> _Registry:
    """Open the registry to use, starting the embedded agent where nobody chose one and none answers."""
    consul = settings.discovery.consul
    chosen = consul.explicit or settings.uri.partition("://")[2]
    if chosen or _accepts(consul.host, consul.port):
        backend = open_backend(settings.uri, settings.discovery)
        return _Registry(running.enter_context(closing(backend)), embedded=False)
    # Containers reach the host at docker0's address; 127.0.0.1 would be each container itself.
    also = [(bridge, consul.port)] if bridge else []
    agent = Agent(http=(LOOPBACK, consul.port), also=also, address=bridge or LOOPBACK)
    running.enter_context(agent)
    return _Registry(
        running.enter_context(closing(open_backend(agent.uri, settings.discovery))), embedded=True
    )


def _accepts(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), PROBE_TIMEOUT).close()
    except OSError:
        return False
    return True


def _welcome(registry: _Registry, addresses: Sequence[Endpoint]) -> str:
    """Return what a person who has just started it wants to know."""
    kind = "embedded: in memory, this host only" if registry.embedded else "Consul"
    dns = addresses[0].host
    return "\n".join(
        [
            "portcall is up; Ctrl-C stops it",
            f"  registry  {registry.backend.where} ({kind})",
            f"  DNS       {', '.join(map(str, addresses))}",
            "  try       docker run -d --name web -P IMAGE",
            f"            docker run --rm --dns {dns} --dns-search service.consul busybox nslookup IMAGE",
            "            discovery ls",
        ]
    )
