"""This host: the networks of its interfaces, and giving up root.

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
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Final

from discovery.errors import ConfigurationError
from resolver.policy import LOOPBACK, Network

__all__ = ["become", "networks_of", "raise_descriptor_limit"]

log = logging.getLogger("resolver")

_SIOCGIFADDR: Final = 0x8915
_SIOCGIFNETMASK: Final = 0x891B
_IF_INET6: Final = Path("/proc/net/if_inet6")
_NOBODY: Final = "nobody"


def networks_of(hosts: Iterable[str]) -> tuple[Network, ...]:
    """Return loopback, the networks of the interfaces that have these addresses, and this host itself.

    A wildcard address stands for all interfaces. The host itself, because Docker's masquerading gives what it
    asks at docker0 the address of another of its interfaces for a source.
    """
    addresses = [address for host in hosts if not (address := ip_address(host)).is_loopback]
    interfaces = [
        one for one in _interfaces() if any(one.version == address.version for address in addresses)
    ]
    ours: list[Network] = [ip_network(interface.ip) for interface in interfaces]
    listening = [
        interface.network
        for interface in interfaces
        if any(address.is_unspecified or interface.ip == address for address in addresses)
    ]
    return tuple(dict.fromkeys([*LOOPBACK, *ours, *listening]))


def _interfaces() -> Iterator[IPv4Interface | IPv6Interface]:
    """Every address of this host with its network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                address = fcntl.ioctl(sock, _SIOCGIFADDR, request)[20:24]
                mask = fcntl.ioctl(sock, _SIOCGIFNETMASK, request)[20:24]
            except OSError:
                continue  # no IPv4 address, or not a system that has these calls
            interface = ip_interface(f"{socket.inet_ntoa(address)}/{socket.inet_ntoa(mask)}")
            yield interface
    try:
        lines = _IF_INET6.read_text(encoding="ascii").splitlines()
    except OSError:
        return  # no IPv6
    for line in lines:
        digits, _, prefix, *_ = line.split()
        yield IPv6Interface((int(digits, 16), int(prefix, 16)))


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
