"""Which registry to ask when nobody said: a few candidates in order, each with a hard time budget.

    CONSUL_HTTP_ADDR or an argument     that one and no other: a guess must not replace a decision
    127.0.0.1:8500                      the agent of this host
    <default gateway>:8500              in a container: the host's agent, seen from docker0

Laws:
- A refused connection moves on at once; a silent one costs at most ``PROBE_TIMEOUT``.
- The first that answers is kept; whether it has a leader is the engine's business.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from discovery.backends import Backend, open_backend
from discovery.config import Config
from discovery.errors import Attempt, RegistryUnavailable

__all__ = ["default_gateway", "find"]

PROBE_TIMEOUT: Final = 0.15
"""Seconds to connect to a guessed address: they are all on this host."""

_CONTAINER_MARKS: Final = (Path("/.dockerenv"), Path("/run/.containerenv"))
_ROUTES: Final = Path("/proc/net/route")


def find(config: Config) -> Backend:
    """Return the registry to use.

    Raises:
        RegistryUnavailable: none of the guessed addresses accepts connections; ``attempts`` lists them.
    """
    if config.consul.explicit:
        return open_backend(_uri(config), config)
    attempts = []
    for candidate in _candidates(config):
        start = time.monotonic()
        try:
            socket.create_connection((candidate.consul.host, candidate.consul.port), PROBE_TIMEOUT).close()
        except OSError as exc:
            elapsed = time.monotonic() - start
            attempts.append(Attempt(candidate.consul.url, elapsed, (exc.strerror or str(exc)).lower()))
            continue
        return open_backend(_uri(candidate), candidate)
    tried = "; ".join(map(str, attempts))
    raise RegistryUnavailable(
        f"no Consul agent found ({tried}); set CONSUL_HTTP_ADDR to the address of one", attempts=attempts
    )


def default_gateway(routes: str) -> str | None:
    """Return the IPv4 default gateway that *routes*, the text of ``/proc/net/route``, names."""
    for line in routes.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and fields[1] == "00000000" and fields[7] == "00000000":
            return socket.inet_ntoa(struct.pack("<L", int(fields[2], 16)))
    return None


def _candidates(config: Config) -> Iterator[Config]:
    yield config
    if any(mark.exists() for mark in _CONTAINER_MARKS):
        try:
            gateway = default_gateway(_ROUTES.read_text(encoding="ascii"))
        except OSError:
            gateway = None
        if gateway:
            yield replace(config, consul=replace(config.consul, host=gateway))


def _uri(config: Config) -> str:
    consul = config.consul
    if consul.socket_path:
        return f"consul-unix://{consul.socket_path}"
    return f"consul{'-tls' if consul.tls else ''}://{consul.url.partition('://')[2]}"
