"""Docker's JSON, inspected or listed -> frozen ``Container`` and ``Summary``.

Laws:
- Pure. What Docker leaves out (an older API, Podman, a container that does not run) is an empty value here.
- Only ``NetworkSettings.Networks`` and ``NetworkSettings.Ports`` are read: API 1.52 removed the top-level
  ``IPAddress``, and on a user-defined network it was always empty.
- Times are Docker's clock, in nanoseconds since the epoch: comparable with each other, not with ours.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, Literal, NewType, cast

__all__ = [
    "Binding",
    "Container",
    "ContainerID",
    "Health",
    "Network",
    "Port",
    "Protocol",
    "State",
    "Summary",
    "nanoseconds",
    "signal_number",
]

ContainerID = NewType("ContainerID", str)
Protocol = Literal["tcp", "udp", "sctp"]

DEFAULT_STOP_TIMEOUT: Final = 10.0
"""Seconds between the stop signal and SIGKILL where the container does not say (docker stop: ``--time``)."""

_EVERYWHERE: Final = ("", "0.0.0.0", "::")
_PROTOCOLS: Final = ("tcp", "udp", "sctp")
_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?\d*(Z|[+-]\d\d:\d\d)\Z")


@dataclass(frozen=True, slots=True)
class Binding:
    """A published port: where on the host it listens."""

    host_ip: str
    """As Docker says it. ``0.0.0.0`` and ``::`` are every address of one family, ``""`` of both (Podman)."""
    host_port: int

    @property
    def everywhere(self) -> bool:
        """True when it listens on every address of the host, of one family at least."""
        return self.host_ip in _EVERYWHERE


@dataclass(frozen=True, slots=True, order=True)
class Port:
    """A port inside the container, with all places on the host where it is published."""

    number: int
    protocol: Protocol
    bindings: tuple[Binding, ...] = ()

    def __str__(self) -> str:
        return f"{self.number}/{self.protocol}"


@dataclass(frozen=True, slots=True)
class Network:
    """A network that the container is attached to, with its addresses there (empty: none)."""

    name: str
    ipv4: str = ""
    ipv6: str = ""


@dataclass(frozen=True, slots=True)
class Health:
    """What Docker's HEALTHCHECK last said."""

    status: str
    """``starting``, ``healthy`` or ``unhealthy``."""
    output: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """How the container's life stands."""

    running: bool = False
    paused: bool = False
    restarting: bool = False
    exit_code: int = 0
    oom_killed: bool = False
    started_at: int = 0
    """Nanoseconds, Docker's clock; 0 when it never started."""
    finished_at: int = 0
    health: Health | None = None
    """None without a HEALTHCHECK."""

    @property
    def up(self) -> bool:
        """True when the container's processes run.

        Docker says ``Running`` of a paused container, and of one that waits to be started again.
        """
        return self.running and not self.paused and not self.restarting


@dataclass(frozen=True, slots=True)
class Container:
    """One container, as far as a registrar cares."""

    id: ContainerID
    name: str
    image: str = ""
    """As it was given when the container was made: ``registry:5000/team/web:1.2``."""
    hostname: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[Port, ...] = ()
    """Exposed and published ports in order of number and protocol."""
    network_mode: str = ""
    networks: tuple[Network, ...] = ()
    """In order of name."""
    state: State = State()
    stop_signal: int = signal.SIGTERM
    stop_timeout: float = DEFAULT_STOP_TIMEOUT
    """Seconds from the stop signal to SIGKILL; infinite where Docker was told never to send that."""
    network_of: ContainerID = ContainerID("")
    """The container whose network this one shares, once ``joined`` with it."""

    @property
    def shared_network(self) -> str:
        """Id or name of the container whose network this one uses (``--network container:X``), or ``""``."""
        kind, _, target = self.network_mode.partition(":")
        return target if kind == "container" else ""

    def joined(self, target: Container) -> Container:
        """Return this container with the network that it shares with *target*.

        Docker tells neither addresses nor bindings of a container in another's network: they are the
        other's. A port that only the other one exposes stays the other's own service.
        """
        published = {(port.number, port.protocol): port.bindings for port in target.ports}
        ports = tuple(
            replace(port, bindings=published.get((port.number, port.protocol), ())) for port in self.ports
        )
        return replace(
            self,
            networks=target.networks,
            network_mode=target.network_mode,
            ports=ports,
            network_of=target.network_of or target.id,
        )

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Container:
        """Read the answer of ``/containers/<id>/json``."""
        raw_config: Mapping[str, Any] = raw.get("Config") or {}
        raw_network: Mapping[str, Any] = raw.get("NetworkSettings") or {}
        raw_host: Mapping[str, Any] = raw.get("HostConfig") or {}
        stop_timeout = raw_config.get("StopTimeout")
        if stop_timeout is None:
            stop_timeout = DEFAULT_STOP_TIMEOUT
        return cls(
            id=ContainerID(raw["Id"]),
            name=str(raw.get("Name") or raw["Id"][:12]).lstrip("/"),
            image=raw_config.get("Image") or "",
            hostname=raw_config.get("Hostname") or "",
            env=_environment(raw_config.get("Env") or ()),
            labels=MappingProxyType(dict(raw_config.get("Labels") or {})),
            ports=_ports(raw_config.get("ExposedPorts") or {}, raw_network.get("Ports") or {}),
            network_mode=raw_host.get("NetworkMode") or "",
            networks=_networks(raw_network.get("Networks") or {}),
            state=_state(raw.get("State") or {}),
            stop_signal=signal_number(raw_config.get("StopSignal") or "SIGTERM") or signal.SIGTERM,
            stop_timeout=float(stop_timeout) if stop_timeout >= 0 else float("inf"),
        )


@dataclass(frozen=True, slots=True)
class Summary:
    """One row of Docker's list: enough to know whether a container must be inspected again."""

    id: ContainerID
    name: str
    fingerprint: int
    """Differs whenever anything that a registration is made of may differ.

    Environment, labels and image never change in a container's life; names, ports, networks, state,
    health and exit code are in the list.
    """

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Summary:
        """Read one element of the answer of ``/containers/json``."""
        names = tuple(sorted(raw.get("Names") or ()))
        raw_networks = (raw.get("NetworkSettings") or {}).get("Networks") or {}
        ports = frozenset(
            (port.get("IP"), port.get("PrivatePort"), port.get("PublicPort"), port.get("Type"))
            for port in raw.get("Ports") or ()
        )
        # "Up 5 minutes (healthy)", "Exited (137) 2 hours ago": the time grows, what is in brackets counts.
        status = tuple(re.findall(r"\(([^)]*)\)", raw.get("Status") or ""))
        fingerprint = hash((names, raw.get("State"), status, ports, _networks(raw_networks)))
        name = min(names, key=lambda name: name.count("/"), default=raw["Id"][:12])
        return cls(ContainerID(raw["Id"]), name.lstrip("/"), fingerprint)


def signal_number(name: str) -> int | None:
    """Return the number of a signal as Docker writes it: ``SIGTERM``, ``term``, ``15``, ``SIGRTMIN+3``."""
    text = name.strip().upper().removeprefix("SIG")
    if text.isdecimal():
        return int(text)
    if found := re.fullmatch(r"RTMIN\+(\d+)", text):
        return int(signal.SIGRTMIN) + int(found[1])
    if found := re.fullmatch(r"RTMAX-(\d+)", text):
        return int(signal.SIGRTMAX) - int(found[1])
    try:
        return int(signal.Signals[f"SIG{text}"])
    except KeyError:
        return None


def nanoseconds(raw: str) -> int:
    """Read Docker's RFC 3339 time; ``0001-01-01T00:00:00Z``, its "never", is 0."""
    found = _TIME.match(raw)
    if found is None:
        return 0
    moment = datetime.fromisoformat(found[1] + ("+00:00" if found[3] == "Z" else found[3])).astimezone(UTC)
    seconds = int((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds())
    return max(0, seconds * 1_000_000_000 + int((found[2] or "").ljust(9, "0")))


def _environment(raw: list[str] | tuple[str, ...]) -> Mapping[str, str]:
    # "NAME" without "=" is how Docker writes a variable that was to be taken out.
    pairs = (item.partition("=") for item in raw if "=" in item)
    return MappingProxyType({name: value for name, _, value in pairs})


def _ports(raw_exposed: Mapping[str, Any], raw_published: Mapping[str, Any]) -> tuple[Port, ...]:
    found: dict[tuple[int, Protocol], set[Binding]] = {}
    for key in (*raw_exposed, *raw_published):
        number, _, protocol = key.partition("/")
        protocol = protocol or "tcp"
        if not number.isdecimal() or protocol not in _PROTOCOLS:
            continue
        bindings = found.setdefault((int(number), cast(Protocol, protocol)), set())
        for raw_binding in raw_published.get(key) or ():
            host_port = str(raw_binding.get("HostPort") or "")
            if host_port.isdecimal() and int(host_port):
                bindings.add(Binding(raw_binding.get("HostIp") or "", int(host_port)))
    order = sorted(found, key=lambda port: (port[0], _PROTOCOLS.index(port[1])))
    # Docker's order of bindings is not the order they were asked for: ours is at least always the same.
    return tuple(
        Port(*port, bindings=tuple(sorted(found[port], key=lambda b: (b.host_ip, b.host_port))))
        for port in order
    )


def _networks(raw: Mapping[str, Any]) -> tuple[Network, ...]:
    return tuple(
        Network(
            name, (raw[name] or {}).get("IPAddress") or "", (raw[name] or {}).get("GlobalIPv6Address") or ""
        )
        for name in sorted(raw)
    )


def _state(raw: Mapping[str, Any]) -> State:
    raw_health = raw.get("Health") or raw.get("Healthcheck") or {}  # the second is how Podman spells it
    status = raw_health.get("Status") or ""
    log = raw_health.get("Log") or ()
    health = Health(status, (log[-1].get("Output") or "").strip() if log else "")
    return State(
        running=bool(raw.get("Running")),
        paused=bool(raw.get("Paused")),
        restarting=bool(raw.get("Restarting")),
        exit_code=int(raw.get("ExitCode") or 0),
        oom_killed=bool(raw.get("OOMKilled")),
        started_at=nanoseconds(raw.get("StartedAt") or ""),
        finished_at=nanoseconds(raw.get("FinishedAt") or ""),
        health=health if status and status != "none" else None,
    )
