"""The grammar of ``SERVICE_*``: what a container says about its services, in variables and labels.

    SERVICE_<KEY>                       for every port of the container
    SERVICE_<low>-<high>_<KEY>          for a range of ports
    SERVICE_<port>_<KEY>                for one port, tcp and udp alike
    SERVICE_<port>_<tcp|udp|sctp>_<KEY> for one port of one protocol (a range can be narrowed so too)

What Registrator has no word for stands in labels of our own, so that no ``SERVICE_`` key, all of which
Registrator makes Meta of, gets another meaning:

    portcall.expose=9000,53/udp,0       ports besides those that the image exposes; 0: no port at all
    portcall.network=NAME               with -internal: the network whose address is registered
    portcall.weight=N                   DNS SRV weight (1 to 65535); portcall.<port>.weight for one port
    portcall.tag-override=true          others may set the tags (Consul: EnableTagOverride); also per port
    portcall.mesh=sidecar               a proxy for Consul's service mesh beside it (native: it is its own);
                                        also per port

Laws:
- Pure.
- The more exact form wins; between two equally exact ones a label wins over a variable, and between two
  ranges the narrower one. (Registrator: variables, then labels, last write wins; port before generic.)
- ``SERVICE_`` is written in upper case; the rest is read in any case. ``<port>`` is the port inside the
  container as it is written there: ``080`` is no port.
- Values are taken as they are, never trimmed. An empty value means "not given".
- A fault costs only the value it stands in, and becomes a ``Problem``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, cast

from discovery.model import Mesh
from registrar.containers import Container, Port, Protocol

__all__ = ["EXTENSIONS", "Extensions", "Metadata", "Problem", "Value", "split_tags"]

PREFIX: Final = "SERVICE_"
EXTENSION_PREFIX: Final = "portcall."
EXTENSIONS: Final = (
    *("expose", "network", "weight", "tag-override", "mesh"),
    *("<port>.weight", "<port>.tag-override", "<port>.mesh"),
)

_SCOPED: Final = re.compile(r"(?P<low>\d+)(?:-(?P<high>\d+))?(?:_(?P<protocol>tcp|udp|sctp))?_(?P<key>.+)\Z")
_GENERIC_RANK: Final = (0, 0, 0)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something a container asks for and does not get."""

    container: str
    key: str
    """The variable or label as it is written: ``label SERVICE_80_CHECK_INTERVAL``."""
    value: str
    message: str
    """What is wrong with it, and what would be right."""

    def __str__(self) -> str:
        value = self.value if len(self.value) <= 60 else f"{self.value[:57]}..."
        return f"container {self.container}: {self.key}={value!r}: {self.message}"


@dataclass(frozen=True, slots=True)
class Value:
    """What was given for one key, and where it stands."""

    text: str
    origin: str
    """``variable SERVICE_NAME`` or ``label SERVICE_80_NAME``."""
    for_port: bool = False
    """True when it names the port itself: then a service's name gets no suffix."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """One variable or label, taken apart."""

    key: str
    value: Value
    low: int = 0
    high: int = 65535
    protocol: str | None = None
    rank: tuple[int, int, int] = _GENERIC_RANK
    """Which of two entries wins: the exactness of the port, of the protocol, and the source."""

    def applies_to(self, port: Port) -> bool:
        return self.low <= port.number <= self.high and self.protocol in (None, port.protocol)


@dataclass(frozen=True, slots=True)
class Metadata:
    """All that one container says."""

    entries: tuple[_Entry, ...]
    """Weakest first."""
    problems: tuple[Problem, ...]

    @classmethod
    def of(cls, container: Container) -> Metadata:
        """Read the variables and labels of *container*."""
        entries: list[_Entry] = []
        problems: list[Problem] = []
        sources = ((0, "variable", container.env), (1, "label", container.labels))
        for source, kind, pairs in sources:
            for name, text in pairs.items():
                if not name.startswith(PREFIX):
                    continue
                read = _entry(name.removeprefix(PREFIX), text, f"{kind} {name}", source)
                if isinstance(read, _Entry):
                    entries.append(read)
                else:
                    problems.append(Problem(container.name, f"{kind} {name}", text, read))
        problems.extend(_without_port(container, entries))
        entries.sort(key=lambda entry: entry.rank)
        return cls(tuple(entries), tuple(problems))

    def for_port(self, port: Port) -> Mapping[str, Value]:
        """Return what holds for *port*, by key in lower case."""
        return {entry.key: entry.value for entry in self.entries if entry.applies_to(port)}

    def generic(self) -> Mapping[str, Value]:
        """Return what was said of the container as a whole."""
        return {entry.key: entry.value for entry in self.entries if entry.rank[0] == 0}


@dataclass(frozen=True, slots=True)
class Extensions:
    """What the labels of our own say."""

    container: str
    labels: Mapping[str, str]
    """Without their prefix."""
    ports: tuple[Port, ...] = ()
    problems: tuple[Problem, ...] = ()

    @classmethod
    def of(cls, container: Container) -> Extensions:
        labels: dict[str, str] = {}
        ports: list[Port] = []
        problems: list[Problem] = []
        for label, text in container.labels.items():
            if not label.startswith(EXTENSION_PREFIX):
                continue
            key = label.removeprefix(EXTENSION_PREFIX)
            try:
                ports.extend(_check_extension(key, text))
            except ValueError as exc:
                problems.append(Problem(container.name, f"label {label}", text, str(exc)))
            else:
                labels[key] = text
        return cls(container.name, labels, tuple(ports), tuple(problems))

    def applied_to(self, container: Container) -> Container:
        """Return *container* with the ports that its labels add."""
        known = {(port.number, port.protocol) for port in container.ports}
        added = (port for port in self.ports if (port.number, port.protocol) not in known)
        return replace(container, ports=(*container.ports, *added))

    def weight(self, port: Port) -> tuple[int, str]:
        """Return the weight of *port* and the label that gave it; 1 and ``""`` without one."""
        text, origin = self._for_port(port, "weight")
        return (int(text), origin) if origin else (1, "")

    def tag_override(self, port: Port) -> tuple[bool, str]:
        text, origin = self._for_port(port, "tag-override")
        return text == "true", origin

    def mesh(self, port: Port) -> tuple[Mesh, str]:
        text, origin = self._for_port(port, "mesh")
        return cast(Mesh, text), origin

    def _for_port(self, port: Port, key: str) -> tuple[str, str]:
        for exact in (f"{port.number}.{key}", key):
            if exact in self.labels:
                return self.labels[exact], f"label {EXTENSION_PREFIX}{exact}"
        return "", ""


def _check_extension(key: str, text: str) -> list[Port]:
    """Check one label of our own; returns the ports that it adds.

    Raises:
        ValueError: what is wrong with it, and what would be right.
    """
    name = key.partition(".")[2] if key.partition(".")[0].isdecimal() else key
    match name:
        case "weight":
            # Consul: a weight has 16 bits, as in an SRV record (RFC 2782).
            if not text.isdecimal() or not 1 <= int(text) <= 65535:
                raise ValueError("it is no weight; write a number from 1 to 65535")
        case "tag-override":
            if text not in ("true", "false"):
                raise ValueError("it is neither true nor false; write true or false")
        case "mesh":
            if text not in ("sidecar", "native"):
                raise ValueError("it is no part in a service mesh; write sidecar or native")
        case "network" if key == name:
            pass
        case "expose" if key == name:
            return [_exposed(part) for part in text.split(",")]
        case _:
            raise ValueError(f"there is no such label; known: {', '.join(EXTENSIONS)}")
    return []


def _exposed(text: str) -> Port:
    number, _, protocol = text.strip().partition("/")
    if (
        not number.isdecimal()
        or len(number) > 5
        or int(number) > 65535
        or protocol not in ("", "tcp", "udp", "sctp")
    ):
        raise ValueError(f"{text.strip()[:20]!r} is no port; write for example 9000 or 53/udp")
    return Port(int(number), cast(Protocol, protocol or "tcp"))


def _entry(rest: str, text: str, origin: str, source: int) -> _Entry | str:
    """Take apart what follows the prefix; returns what is wrong when it cannot be."""
    lowered = rest.lower()
    found = _SCOPED.match(lowered)
    if found is None:
        if not lowered:
            return "the key is missing; write for example SERVICE_NAME"
        return _Entry(lowered, Value(text, origin), rank=(0, 0, source))
    for number in (found["low"], found["high"]):
        # Its length first: Python reads no number of thousands of digits.
        if number is not None and (number.startswith("0") or len(number) > 5 or int(number) > 65535):
            return f"{number[:12]} is no port; write one from 1 to 65535 without leading zeros"
    low, high = int(found["low"]), int(found["high"] or found["low"])
    if low > high:
        return f"the range {low}-{high} is empty; write the lower port first"
    # One port is more exact than any range, and a narrow range than a wide one.
    exactness = 65536 - (high - low)
    protocol = found["protocol"]
    value = Value(text, origin, for_port=low == high)
    return _Entry(found["key"], value, low, high, protocol, (exactness, protocol is not None, source))


def _without_port(container: Container, entries: Iterable[_Entry]) -> Iterable[Problem]:
    """Find entries that name a port which the container does not have.

    Ignoring a port that is not there is what was asked for; anything else is a misspelling.
    """
    known = ", ".join(map(str, container.ports)) or "none"
    for entry in entries:
        one_port = entry.rank[0] and entry.low == entry.high
        if one_port and entry.key != "ignore" and not any(map(entry.applies_to, container.ports)):
            yield Problem(
                container.name,
                entry.value.origin,
                entry.value.text,
                f"the container has no such port inside, so it has no effect; its ports are {known}",
            )


def split_tags(text: str) -> Sequence[str]:
    r"""Split *text* at commas; ``\,`` is a comma within a tag. Empty tags are dropped, spaces stay."""
    tags = re.split(r"(?<!\\),", text)
    return [tag.replace("\\,", ",") for tag in tags if tag]
