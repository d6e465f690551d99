"""Where a lookup looks when nobody said, in order, each with a hard time budget.

    1. DISCOVERY_<NAME>, DISCOVERY_STATIC      what is fixed
    2. what this process has followed so far   (the engine's; no I/O)
       what another process of this user follows, on this host
    3. Consul over HTTP                        CONSUL_HTTP_ADDR, and no other when that is set; else
         127.0.0.1:8500                        the agent of this host
         <default gateway>:8500                in a container: the host's agent, seen from docker0
    4. SRV records over DNS                    DISCOVERY_DNS; else
         resolv.conf                           which is docker0 in a container started with --dns
         docker0, 127.0.0.1:8600               unless CONSUL_HTTP_ADDR is set: portcall's, Consul's own
    5. what was written down at most a day ago
    6. ``default=``, or an error that says what was tried

Laws:
- A guess never replaces a decision: with an address from somebody, only what the system itself is set up
  to ask is asked besides.
- A refused connection moves on at once; a silent agent costs at most ``HTTP_BUDGET``, all name servers
  together ``DNS_BUDGET``.
- Whether a source has a leader, and when to ask it again, is the chain's and the engine's business.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import os
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from discovery.backends import Backend, Catalogue, open_backend
from discovery.backends.chain import Chain, Link
from discovery.backends.disk import Disk
from discovery.backends.dns import Dns, Server
from discovery.backends.shared import Shared
from discovery.backends.static import Static
from discovery.config import Config
from discovery.errors import Attempt, ConfigurationError, RegistryUnavailable

__all__ = ["catalogue", "default_gateway", "find", "name_servers"]

PROBE_TIMEOUT: Final = 0.15
"""Seconds to connect to a guessed address: they are all on this host."""
HTTP_BUDGET: Final = 0.4
DNS_BUDGET: Final = 0.4
"""Seconds. An agent and a resolver are on this host or next to it, and together they must leave a lookup
with its default of one second the time to fall back to what was written down."""

_CONTAINER_MARKS: Final = (Path("/.dockerenv"), Path("/run/.containerenv"))
_ROUTES: Final = Path("/proc/net/route")
_RESOLV_CONF: Final = Path("/etc/resolv.conf")
_NETWORK: Final = Path("/proc/self/ns/net")
_SHM: Final = Path("/dev/shm")  # noqa: S108 - the directory within is made and checked by ``private``
_DOCKER0: Final = "172.17.0.1"
_CONSUL_DNS: Final = Server("127.0.0.1", 8600)
_AUTO: Final = "auto"


def catalogue(config: Config) -> Chain:
    """Return where to look services up. No question is asked yet.

    Raises:
        ConfigurationError: a setting cannot be used.
    """
    fixed, asked = [], []
    if config.static or config.static_file:
        static = Static(config.static, config.static_file, dc=config.dc)
        fixed.append(Link(static, covers=static.covers))
    share = shared_directory(config)
    for candidate in _candidates(config):
        consul: Catalogue = open_backend(_uri(candidate), candidate)
        if share:
            consul = Shared(consul, share, f"{candidate.consul.url} {network()} {_scope(config)}")
        asked.append(Link(consul, HTTP_BUDGET))
    if config.dns:
        for word in config.dns:
            _server(word)  # a wrong one is told now, not in the first outage
        dns = Dns(functools.partial(name_servers, config), config.domain)
        asked.append(Link(dns, DNS_BUDGET, dns.covers))
    disk = Disk(config.cache, _scope(config)) if config.cache else None
    if len(asked) == 1 and disk is None:
        asked[0].budget = None  # there is nobody to hurry on to
    advice = "" if config.consul.explicit else "; set CONSUL_HTTP_ADDR to the address of a Consul agent"
    return Chain([*fixed, *asked], disk=disk, advice=advice)


def find(config: Config) -> Backend:
    """Return the registry to write to.

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


def name_servers(config: Config) -> list[Server]:
    """Return the name servers to ask now: ``resolv.conf`` is read anew each time, as it changes."""
    servers: list[Server] = []
    for word in config.dns:
        if word != _AUTO:
            servers.append(_server(word))
            continue
        servers += _resolv_conf()
        if not config.consul.explicit:
            docker0 = _gateway() if _in_container() else _DOCKER0 if _is_local(_DOCKER0) else None
            servers += [Server(docker0)] if docker0 else []
            servers.append(_CONSUL_DNS)
    return list(dict.fromkeys(servers))


def default_gateway(routes: str) -> str | None:
    """Return the IPv4 default gateway that *routes*, the text of ``/proc/net/route``, names."""
    for line in routes.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and fields[1] == fields[7] == "00000000" != fields[2]:
            # The kernel writes the address as a number of this machine's byte order. 0 is a route through a
            # device without a gateway, and connecting to 0.0.0.0 would mean this host itself.
            return socket.inet_ntoa(struct.pack("=L", int(fields[2], 16)))
    return None


def _candidates(config: Config) -> Iterator[Config]:
    yield config
    if not config.consul.explicit and _in_container() and (gateway := _gateway()):
        yield replace(config, consul=replace(config.consul, host=gateway))


def _in_container() -> bool:
    return any(mark.exists() for mark in _CONTAINER_MARKS)


def _gateway() -> str | None:
    try:
        return default_gateway(_ROUTES.read_text(encoding="ascii"))
    except OSError:
        return None


def _is_local(address: str) -> bool:
    """Say whether *address* is this host's: a guess must not leave it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((address, 0))
        except OSError:
            return False
    return True


def _resolv_conf() -> list[Server]:
    try:
        text = _RESOLV_CONF.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    words = [line.split() for line in text.splitlines()]
    return [Server(line[1]) for line in words if len(line) > 1 and line[0] == "nameserver"]


def _server(word: str) -> Server:
    """Parse ``host``, ``host:port`` or ``[v6]:port``, for ``auto`` standing in with any server."""
    if word == _AUTO:
        return _CONSUL_DNS
    host, _, port = word.rpartition(":") if word.count(":") == 1 or "]:" in word else (word, "", "53")
    host = host.removeprefix("[").removesuffix("]")
    try:
        ipaddress.ip_address(host)
        if not 0 < int(port) <= 65535:
            raise ValueError(port)
    except ValueError:
        raise ConfigurationError(
            f"{word!r} in DISCOVERY_DNS or dns= is no name server: write an address, for example "
            "172.17.0.1 or 127.0.0.1:8600, or 'auto' or 'off'"
        ) from None
    return Server(host, int(port))


def shared_directory(config: Config) -> str | None:
    """Return the directory in which this user's processes meet, in memory by default; None: they do not."""
    if config.share != _AUTO:
        return config.share
    if (runtime := os.environ.get("XDG_RUNTIME_DIR", "")).startswith("/"):
        return f"{runtime}/portcall"
    return f"{_SHM}/portcall-{os.geteuid()}" if _SHM.is_dir() else None


def network() -> int:
    """Return what tells this network namespace from others: 127.0.0.1 is another host in each."""
    try:
        return _NETWORK.stat().st_ino
    except OSError:
        return 0


def _scope(config: Config) -> str:
    """Return what tells this client's answers from those of clients that may be answered otherwise."""
    consul = config.consul
    who = (consul.token, consul.token_file, consul.auth, consul.namespace, consul.partition)
    where = consul.url if consul.explicit else "default"
    return hashlib.sha256(repr((where, who, config.dns, config.domain)).encode()).hexdigest()


def _uri(config: Config) -> str:
    consul = config.consul
    if consul.socket_path:
        return f"consul-unix://{consul.socket_path}"
    return f"consul{'-tls' if consul.tls else ''}://{consul.url.partition('://')[2]}"
