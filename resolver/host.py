"""This host: its networks, who is on it, and giving up root.

Laws: Linux first; what another system cannot tell is left out, never guessed.
"""

from __future__ import annotations

import fcntl
import grp
import logging
import os
import pwd
import resource
import socket
import struct
from array import array
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address
from pathlib import Path
from typing import Final

from discovery.errors import ConfigurationError
from resolver.policy import LOOPBACK, Network

__all__ = ["Inhabitants", "addresses", "become", "networks_of", "raise_descriptor_limit"]

log = logging.getLogger("resolver")

_SIOCGIFCONF: Final = 0x8912
_SIOCGIFNETMASK: Final = 0x891B
_IFREQ: Final = "16sLLHBBB3x"
"""struct ifreq, whose largest part is a struct ifmap."""
_IF_INET6: Final = Path("/proc/net/if_inet6")
_ROUTES: Final = (
    (Path("/proc/net/route"), 1, "0" * 8, 0),
    (Path("/proc/net/ipv6_route"), 0, "0" * 32, 9),
)
"""Where the kernel tells its routes, the column of the destination, a default route's, and the column of the
interface."""
_BRIDGE: Final = "/sys/class/net/{}/bridge"
_LOOK_KEPT: Final = 1.0  # s
_NOBODY: Final = "nobody"


def networks_of(hosts: Iterable[str]) -> tuple[Network, ...]:
    """Return loopback and the networks of the interfaces that have these addresses.

    A wildcard address stands for all interfaces.
    """
    addresses = [ip_address(host) for host in hosts]
    found = list(LOOPBACK)
    for _, interface in _interfaces():
        listens = any(
            interface.version == address.version and (address.is_unspecified or interface.ip == address)
            for address in addresses
        )
        if listens and interface.network not in found:
            found.append(interface.network)
    return tuple(found)


class Inhabitants:
    """Who is on this host: the host itself, and what is behind its bridges, as Docker's networks are.

    Docker's networks come and go with every ``docker compose up``, and their containers ask with addresses
    of their own. The host itself may come with any of its addresses: what it asks at docker0 passes Docker's
    masquerading, which gives it the address of another interface.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """Look when first asked.

        Args:
            clock: monotonic seconds.
        """
        self._clock = clock
        self._own: frozenset[IPv4Address | IPv6Address] = frozenset()
        self._bridges: tuple[Network, ...] = ()
        self._looked_at = float("-inf")

    def has(self, address: IPv4Address | IPv6Address) -> bool:
        """Whether *address* is on this host."""
        now = self._clock()
        if now - self._looked_at >= _LOOK_KEPT:
            self._looked_at = now
            # Not what can be bound: where ip_nonlocal_bind is set, as on hosts with keepalived, all can.
            self._own, self._bridges = addresses(), tuple(_bridges())
        if address in self._own:
            return True
        return any(address.version == network.version and address in network for network in self._bridges)


def _bridges() -> Iterator[Network]:
    """The networks of this host's bridges, but for those that lead to the world outside."""
    outward = _outward()
    for name, interface in _interfaces():
        if name not in outward and Path(_BRIDGE.format(name)).is_dir():
            yield interface.network


def _outward() -> set[str]:
    """The interfaces of the default routes."""
    names = set()
    for path, destination, default, name in _ROUTES:
        try:
            lines = path.read_text(encoding="ascii").splitlines()
        except OSError:
            continue  # no such protocol, or not a system that shows it
        names |= {fields[name] for line in lines if (fields := line.split())[destination] == default}
    return names


def addresses() -> frozenset[IPv4Address | IPv6Address]:
    """Return every address of this host."""
    return frozenset(interface.ip for _, interface in _interfaces())


def _interfaces() -> Iterator[tuple[str, IPv4Interface | IPv6Interface]]:
    """Every interface with its address and network; one with several addresses several times."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for request in _ipv4_requests(sock):
            try:
                # Of several addresses of an interface, the request says which one is meant.
                mask = fcntl.ioctl(sock, _SIOCGIFNETMASK, request)[20:24]
            except OSError:
                continue  # it has gone meanwhile
            name = request[:16].partition(b"\0")[0].decode().partition(":")[0]  # without an alias' label
            yield name, IPv4Interface(f"{socket.inet_ntoa(request[20:24])}/{socket.inet_ntoa(mask)}")
    try:
        lines = _IF_INET6.read_text(encoding="ascii").splitlines()
    except OSError:
        return  # no IPv6
    for line in lines:
        digits, _, prefix, *_, name = line.split()
        yield name, IPv6Interface((int(digits, 16), int(prefix, 16)))


def _ipv4_requests(sock: socket.socket) -> Iterator[bytes]:
    """A struct ifreq for each IPv4 address (netdevice(7)): the interface's name, and a struct sockaddr_in."""
    size = struct.calcsize(_IFREQ)
    try:
        (needed, _) = struct.unpack("iP", fcntl.ioctl(sock, _SIOCGIFCONF, struct.pack("iP", 0, 0)))
        room = array("B", bytes(needed + 16 * size))  # some may come between the two calls
        asked = struct.pack("iP", len(room), room.buffer_info()[0])
        (used, _) = struct.unpack("iP", fcntl.ioctl(sock, _SIOCGIFCONF, asked))
    except OSError:
        return  # not a system that has this call
    for start in range(0, used, size):
        yield room[start : start + size].tobytes()


def become(user: str | None) -> None:
    """Give up root for *user*, for good; call it once the ports are bound and before any thread runs.

    Args:
        user: a name; None: ``nobody``, if we are root and nobody can read Python. ``root`` changes nothing.

    Raises:
        ConfigurationError: there is no such user, or we may not become it.
    """
    if user == "root" or (user is None and os.geteuid() != 0):
        return
    try:
        entry = pwd.getpwnam(user or _NOBODY)
    except KeyError:
        if user is None:
            log.warning("this system has no user %s; going on as root", _NOBODY)
            return
        raise ConfigurationError(f"there is no user {user!r} (--user)") from None
    if entry.pw_uid == os.geteuid():
        return
    if user is None and not _can_read_python(entry):
        log.warning("%s cannot read %s; going on as root (--user chooses)", _NOBODY, os.__file__)
        return
    groups = [one.gr_gid for one in grp.getgrall() if entry.pw_name in one.gr_mem]
    try:
        os.setgroups(groups)
        os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
        os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    except OSError as exc:
        raise ConfigurationError(f"cannot become {entry.pw_name!r}: {exc.strerror}; start as root") from exc
    log.info("going on as %s", entry.pw_name)


def _can_read_python(entry: pwd.struct_passwd) -> bool:
    """Whether *entry* can read the standard library, of which parts are imported when first needed.

    A Python in root's home, as version managers make it, is readable by root alone.
    """
    os.seteuid(entry.pw_uid)
    try:
        return all(os.access(path, os.R_OK, effective_ids=True) for path in (os.__file__, __file__))
    finally:
        os.seteuid(0)


def raise_descriptor_limit() -> None:
    """Allow as many open files as we may: each forwarded question has a socket of its own."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
