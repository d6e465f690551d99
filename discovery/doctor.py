"""What can be wrong between a program and its services, as judgements on facts.

    facts (files, answers, clocks) ──judge_...──> Finding: how bad, one sentence, and one on what to do

Laws:
- Pure: who gathers the facts (``cli/doctor``) does the I/O.
- A ``problem`` has to be mended; a ``warning`` will hurt one day, or hurts others than lookups; ``ok`` is
  told too, so that a reader sees what was looked at.
- Every finding that is not ok says what to do, in one sentence.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, Literal

__all__ = [
    "DEFAULT_CONNECTIONS",
    "Finding",
    "Level",
    "Reached",
    "ResolvConf",
    "Skew",
    "connections_to",
    "judge_access",
    "judge_clock",
    "judge_connections",
    "judge_hidden",
    "judge_leader",
    "judge_libc",
    "judge_package",
    "judge_place",
    "judge_search",
    "judge_spelling",
    "worst",
]

Level = Literal["ok", "warning", "problem"]
Reached = Literal["here", "gateway", "network"]
"""Where an address leads: to this host itself, from a container to its host, or to somebody else."""

DEFAULT_CONNECTIONS: Final = 200
"""From one address (Consul: "http_max_conns_per_client"), where the agent does not tell its own limit."""
_NEARLY: Final = 0.8
"""The part of the limit from which on one more busy program may reach it."""
_SKEW: Final = 2.0
"""Seconds. HTTP's Date has whole ones, and the answer took its time."""
_NDOTS_MANY: Final = 3
"""From this on ``web.service.consul``, with two dots, is asked for with each search domain first."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    about: str
    """What it was: ``environment``, ``consul``, ``dns`` ..."""
    level: Level
    says: str
    advice: str = ""
    seconds: float | None = None
    """How long it took to find out, where somebody was asked."""


# --- this machine --------------------------------------------------------------------------------------


def judge_package(
    home: str, version: str, found: str | None, *, others: Collection[str] = (), changed: Collection[str] = ()
) -> Finding:
    """Judge what ``import discovery`` finds.

    Args:
        home: the file of the package that this program runs from.
        found: the file that Python finds first, beginning in the current directory; None: none.
        others: distributions besides portcall that install a package of this name, too.
        changed: files of portcall that are not what its installation wrote.
    """
    if found is not None and found != home:
        return Finding(
            "package",
            "problem",
            f"`import discovery` finds {found} here, not portcall's {home}.",
            "Rename that file or directory, or start Python elsewhere.",
        )
    if others:
        names = " and ".join(sorted(others))
        return Finding(
            "package",
            "problem",
            f"{names} installs a package named discovery, too: the files of both are in one directory.",
            f"Uninstall {names}, then install portcall again.",
        )
    if changed:
        return Finding(
            "package",
            "problem",
            f"Since portcall was installed, something has changed {', '.join(sorted(changed)[:3])}.",
            "Install portcall again.",
        )
    return Finding("package", "ok", f"`import discovery` finds portcall {version}, {home}.")


def judge_spelling(variable: str, known: Collection[str]) -> Finding | None:
    """Judge a variable of the environment that means nothing to portcall, though its name looks like it."""
    close = difflib.get_close_matches(variable, known, n=1, cutoff=0.85)
    if not close or variable in known:
        return None
    return Finding(
        "environment",
        "warning",
        f"{variable} is set and means nothing to portcall.",
        f"Rename it, if {close[0]} was meant.",
    )


# --- the Consul agent ----------------------------------------------------------------------------------

_LACKS: Final = re.compile(
    r"lacks permission '(?P<resource>[a-z]+):(?P<access>[a-z]+)'(?: on \"(?P<on>[^\"]*)\")?"
)
"""How Consul names what is missing, since 1.13; before that it says "Permission denied" alone."""


def judge_access(said: str, *, path: str, token: bool, needed: str = "") -> Finding:
    """Judge a 401 or 403.

    Args:
        said: the body of the answer.
        path: what was asked, ``/v1/health/service/web``.
        token: whether a token was sent.
        needed: rules that what was asked needs, where Consul does not say: ``service:read``.
    """
    if "ACL not found" in said and token:
        return Finding(
            "access",
            "problem",
            f"The agent does not know our token (it answered {path} with: {said}).",
            "Set CONSUL_HTTP_TOKEN or CONSUL_HTTP_TOKEN_FILE to a token of this cluster.",
        )
    lacking = [f"{found['resource']}:{found['access']}" for found in _LACKS.finditer(said)] or needed.split()
    rules = " and ".join(map(_rule, lacking))
    whose = "the token's policy" if token else "the anonymous token, or a token in CONSUL_HTTP_TOKEN"
    return Finding(
        "access",
        "problem",
        f"The agent refuses {path} ({said}): {'our token' if token else 'we send no token, and anybody'} "
        f"lacks {' and '.join(lacking) or 'a permission'}.",
        f"Give {whose}, {rules}." if rules else f"Look at what {whose} allows.",
    )


def judge_hidden(*, token: bool) -> Finding:
    """Judge a catalogue in which ACLs leave nothing to be seen: reads are filtered then, not refused."""
    whose = "our token" if token else "a client without a token"
    return Finding(
        "access",
        "problem",
        f"The agent's ACLs hide services from {whose}: what it may not read looks as if it did not exist.",
        f"Give {'its policy' if token else 'us a token in CONSUL_HTTP_TOKEN whose policy has'} "
        f"{_rule('service:read')} and {_rule('node:read')}.",
    )


def _rule(permission: str) -> str:
    resource, _, access = permission.partition(":")
    prefix = resource if resource in ("operator", "acl", "mesh") else f'{resource}_prefix ""'
    return f'{prefix} {{ policy = "{access}" }}' if prefix != resource else f'{resource} = "{access}"'


def judge_leader(leader: str, error: str = "") -> Finding:
    """Judge what the agent says of its cluster's *leader*: an address, or nothing."""
    if leader:
        return Finding("leader", "ok", f"The cluster has a leader, {leader}.")
    return Finding(
        "leader",
        "problem",
        f"The agent's servers have no leader{f' ({error})' if error else ''}: nothing can be registered, and "
        "answers may be old.",
        "Start the missing servers; `consul operator raft list-peers` names them.",
    )


@dataclass(frozen=True, slots=True)
class Skew:
    """How two clocks compare: what the agent's showed, and when we asked and were answered by ours."""

    agent: float
    asked: float
    answered: float

    @property
    def seconds(self) -> float:
        """How far the agent's clock is ahead of ours, as little as the three numbers allow."""
        # The agent's is cut to whole seconds: it showed anything from that on to a second later.
        if self.agent > self.answered:
            return self.agent - self.answered
        return min(self.agent + 1.0 - self.asked, 0.0)


def judge_clock(skew: Skew) -> Finding:
    """Judge the clocks."""
    if abs(skew.seconds) <= _SKEW:
        return Finding("clock", "ok", "The agent's clock and ours agree.")
    way = "ahead of" if skew.seconds > 0 else "behind"
    return Finding(
        "clock",
        "warning",
        f"The agent's clock is {abs(skew.seconds):.0f} s {way} ours: certificates and tokens may "
        "count as expired, and a machine that was asleep has missed its TTL heartbeats.",
        "Let both machines keep time with NTP (`timedatectl set-ntp true`).",
    )


def judge_place(where: str, advertised: str, *, reached: Reached, advertised_here: bool) -> Finding:
    """Judge where the agent is.

    Args:
        where: its address as we were told it.
        advertised: the address that it gives of its node; empty when it does not say.
        reached: how *where* is reached.
        advertised_here: *advertised* is this machine's, or the node has its name.
    """
    loopback = _is_loopback(advertised)
    if reached == "gateway" and loopback:
        return Finding(
            "place",
            "warning",
            f"The agent advertises {advertised}, which in this container is the container itself: instances "
            "without an address of their own cannot be reached.",
            "Start the agent with -advertise and an address that containers reach, docker0's for example.",
        )
    if reached == "network" and loopback:
        return Finding(
            "place",
            "warning",
            f"The agent at {where} is on another host and advertises {advertised}: its instances cannot be "
            "reached from here.",
            "Start it with -advertise and an address that other hosts reach.",
        )
    if reached == "network" or (reached == "here" and advertised and not loopback and not advertised_here):
        return Finding(
            "place",
            "warning",
            f"The agent is on another host ({advertised or where}): what is registered from here counts as "
            "that host's, and is gone with it.",
            "Run an agent on this host, or pass `address=` to `discovery.register`.",
        )
    host = "this host" if reached == "here" else "this container's host"
    return Finding("place", "ok", f"The agent is on {host}{f', as {advertised}' if advertised else ''}.")


def connections_to(table: str, places: Collection[tuple[str, int]]) -> int:
    """Count the established connections to *places* in *table*, the text of ``/proc/net/tcp`` or ``tcp6``.

    It lists those of all programs in this network namespace, which is what the agent counts by address.
    """
    count = 0
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 3 and fields[3] == "01":  # TCP_ESTABLISHED (Linux: include/net/tcp_states.h)
            address, _, port = fields[2].partition(":")
            count += (_kernel_address(address), int(port, 16)) in places
    return count


def judge_connections(count: int, limit: int) -> Finding:
    """Judge how many connections this host has to its agent."""
    plural = "" if count == 1 else "s"
    said = f"This host has {count} connection{plural} to the agent, which takes {limit} from one address"
    if count < limit * _NEARLY:
        return Finding("connections", "ok", f"{said}.")
    return Finding(
        "connections",
        "problem" if count >= limit else "warning",
        f"{said} and {'refuses' if count >= limit else 'will soon refuse'} all others.",
        "Unset DISCOVERY_SHARE so that processes share their watches, lower DISCOVERY_MAX_WATCHES, or raise "
        "limits.http_max_conns_per_client in the agent's configuration.",
    )


# --- DNS -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ResolvConf:
    """What the C library's resolver is told (resolv.conf(5))."""

    servers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    ndots: int = 1

    @classmethod
    def from_text(cls, text: str) -> ResolvConf:
        """Read the text of ``/etc/resolv.conf``; what cannot be understood is passed over, as libc does."""
        servers: list[str] = []
        search: tuple[str, ...] = ()
        ndots = 1
        for line in text.splitlines():
            match line.split():
                case ["nameserver", address, *_]:
                    servers.append(address)
                case ["search", *domains] | ["domain", *domains]:  # the last line of either counts
                    search = tuple(domain.rstrip(".").lower() for domain in domains)
                case ["options", *options]:
                    for option in options:
                        name, _, value = option.partition(":")
                        if name == "ndots" and value.isdecimal():
                            ndots = int(value)
        return cls(tuple(servers), search, ndots)


def judge_search(conf: ResolvConf, domain: str) -> Finding:
    """Judge whether a service's name alone (``web``) is a host name for programs that do not use portcall."""
    wanted = f"service.{domain}"
    if wanted not in conf.search:
        return Finding(
            "search",
            "warning",
            f"{wanted} is no search domain: `web` is no host name here, `web.{wanted}` is.",
            f"Write the whole name, or search it: docker run --dns-search {wanted}, `search` in resolv.conf.",
        )
    if conf.ndots == 0:
        return Finding(
            "search",
            "warning",
            "ndots:0 asks for `web` as it is, before the search domains.",
            "Take ndots:0 out of resolv.conf (docker run --dns-opt ndots:1).",
        )
    if conf.ndots >= _NDOTS_MANY:
        return Finding(
            "search",
            "warning",
            f"ndots:{conf.ndots} asks for `web.{wanted}` with all {len(conf.search)} search domains first.",
            "Set ndots:1 in resolv.conf (docker run --dns-opt ndots:1), or end names with a dot.",
        )
    return Finding("search", "ok", f"{wanted} is a search domain: `web` alone is a host name.")


def judge_libc(conf: ResolvConf, knows: Mapping[str, bool], *, musl: bool, domain: str) -> Finding | None:
    """Judge what the C library makes of several name servers of which not all know the registry's domain.

    Args:
        knows: whether each server of *conf* answers for the domain.
        musl: it is musl (Alpine), which asks all and takes the first answer, a denial too; glibc asks them
            in turn, and a denial is an answer there, too.

    Returns None where DNS plays no part: no server knows the domain.
    """
    knowing = [server for server in conf.servers if knows.get(server)]
    ignorant = [server for server in conf.servers if not knows.get(server)]
    if not knowing:
        return None
    if not ignorant:
        return Finding("libc", "ok", f"Every name server in resolv.conf knows the domain {domain}.")
    does, their = ("does", "its") if len(ignorant) == 1 else ("do", "their")
    them = f"{' and '.join(ignorant)} {does} not know the domain {domain}"
    advice = (
        f"Name {' and '.join(knowing)} alone (docker run --dns {knowing[0]}), and let it forward other names."
    )
    if musl:
        return Finding(
            "libc",
            "problem",
            f"{them}, and musl asks all at once and takes the first answer: names fail at random.",
            advice,
        )
    if conf.servers[0] in ignorant:
        return Finding(
            "libc", "problem", f"{them} and is asked first: its denial is final, no name is found.", advice
        )
    return Finding(
        "libc",
        "warning",
        f"{them}: whenever the first is slow, glibc takes {their} denial for the answer.",
        advice,
    )


# --- helpers -------------------------------------------------------------------------------------------


def _kernel_address(digits: str) -> str:
    """Return the address of ``/proc/net/tcp``: words of 32 bits, each in this machine's byte order."""
    raw = bytes.fromhex(digits)
    if sys.byteorder == "little":
        raw = b"".join(raw[n : n + 4][::-1] for n in range(0, len(raw), 4))
    address: IPv4Address | IPv6Address = ip_address(raw)
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def worst(findings: Sequence[Finding]) -> Level:
    """Return the worst level of all."""
    levels = {finding.level for finding in findings}
    return "problem" if "problem" in levels else "warning" if "warning" in levels else "ok"
