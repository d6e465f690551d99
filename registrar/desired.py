"""What should be registered for one container, with the reason for every value.

    Container ── Metadata ──┐
    Rules (the operator) ───┼──> desire() ──> Desired ──> one Decision per port
    Host (owner, address) ──┘                              Registration, or why there is none

Where a port is reached, by the container's network:

    network             default                          with -internal
    bridge, own         the port's binding on the host   container's address, inner port
    host                node's address, inner port       node's address, inner port
    container:X         X's binding of that port         X's address, inner port
    none                not registered                   not registered
    macvlan, ipvlan     not published, so not registered container's address, inner port

Laws:
- Pure: the same arguments give the same answer, byte for byte, so that an unchanged container is
  recognised and never written again.
- Address and port are always of one binding, or both of the container: never one of each.
- An empty address means the node's, and Consul answers with what its agent advertises.
- A fault costs only the value it stands in.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from discovery.errors import InvalidName
from discovery.model import Address, Registration, ServiceID, ServiceName
from discovery.names import service_name
from registrar.checks import Target, parse_checks
from registrar.containers import Binding, Container, Port
from registrar.metadata import Metadata, Problem, Value, split_tags
from registrar.owner import MARKS, Owner

__all__ = ["TAG_FIELD", "TAG_FIELDS", "TAG_MAPS", "Choice", "Decision", "Desired", "Host", "Rules", "desire"]

# Consul's limits on service Meta (Consul: "Define services", meta): a service over them is rejected whole.
MAX_META_PAIRS: Final = 64
MAX_META_KEY: Final = 128  # characters
MAX_META_VALUE: Final = 512  # characters
_META_KEY: Final = re.compile(r"[A-Za-z0-9_-]+\Z")

MAX_ID: Final = 255  # characters; an id becomes a part of URLs and of check ids
TAG_FIELD: Final = re.compile(r"\{(?P<kind>[^{}:]*)(?::(?P<key>[^{}]*))?\}")
"""What is filled in within the tags of ``Rules``: ``{container}``, ``{label:KEY}``."""
TAG_FIELDS: Final = ("container", "id", "hostname", "image")
TAG_MAPS: Final = ("label", "env")

_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f]")
_KNOWN_KEYS: Final = frozenset({"name", "tags", "id", "ignore"})
_DIGEST: Final = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator decided about registrations; Registrator's options of the same names."""

    ip: str = ""
    """Register every published port at this address, whatever it is bound to."""
    internal: bool = False
    """Register the container's own address and the port inside."""
    explicit: bool = False
    """Register only ports that are given a SERVICE_NAME."""
    use_ip_from_label: str = ""
    """Name of a label that holds the address to register."""
    tags: tuple[str, ...] = ()
    """Added to the tags of every service; ``{container}`` and the like are filled in."""
    network: str = ""
    """With ``internal``: the network whose address is registered, where the container is attached to it."""
    allow_loopback: bool = False
    """Register ports bound to a loopback address, which only this host can reach."""
    allow_script_checks: bool = False
    """Let containers have commands run on the agent's host."""


@dataclass(frozen=True, slots=True)
class Host:
    """Where the registrar stands."""

    owner: Owner
    node_address: str = ""
    """What the agent advertises; empty when it does not tell. Checks of an instance without an address
    of its own go there."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One value of a registration, and the rule, variable or label that gave it."""

    field: str
    value: str
    rule: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one port."""

    port: Port
    registration: Registration | None
    reason: str
    """Why it is registered, or why not."""
    choices: tuple[Choice, ...] = ()
    default_id: bool = False
    """True when the id was made by the rule and not given by the container."""


@dataclass(frozen=True, slots=True)
class Desired:
    """What becomes of one container."""

    container: Container
    decisions: tuple[Decision, ...]
    problems: tuple[Problem, ...] = ()

    @property
    def registrations(self) -> tuple[Registration, ...]:
        return tuple(decision.registration for decision in self.decisions if decision.registration)

    @property
    def default_ids(self) -> frozenset[ServiceID]:
        """The ids that the rule made."""
        return frozenset(
            decision.registration.id
            for decision in self.decisions
            if decision.registration and decision.default_id
        )


def desire(container: Container, rules: Rules, host: Host, *, stopping: str = "") -> Desired:
    """Decide what should be registered for *container*.

    Args:
        container: as inspected; one in another's network already ``joined`` with that.
        stopping: why it is about to end although it still runs, for example ``signal 15``; then nothing
            is registered, so that nobody is sent to an instance that is closing its doors.
    """
    metadata = Metadata.of(container)
    return _Deciding(container, rules, host, metadata, list(metadata.problems)).decide(stopping)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a port is reached."""

    address: str
    port: int
    rule: str
    tagged: Mapping[str, Address] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(slots=True)
class _Deciding:
    """One container while its ports are decided on."""

    container: Container
    rules: Rules
    host: Host
    metadata: Metadata
    problems: list[Problem]

    def decide(self, stopping: str) -> Desired:
        if reason := self._down(stopping):
            decisions = [Decision(port, None, reason) for port in self.container.ports]
            return Desired(self.container, tuple(decisions), self.metadata.problems)
        eligible = [port for port in self.container.ports if not self._unreachable(port)]
        several = len(eligible) > 1
        decisions = [
            Decision(port, None, reason)
            if (reason := self._unreachable(port) or self._unwanted(port))
            else self._register(port, several)
            for port in self.container.ports
        ]
        return Desired(self.container, tuple(self._with_distinct_ids(decisions)), tuple(self.problems))

    # Whether ---------------------------------------------------------------------------------------------

    def _down(self, stopping: str) -> str:
        state = self.container.state
        if state.paused:
            return "the container is paused"
        if state.restarting:
            return "the container waits to be started again"
        if not state.running:
            return "the container does not run"
        return f"the container is stopping ({stopping})" if stopping else ""

    def _unreachable(self, port: Port) -> str:
        """Say why nobody could reach *port*, or return ``""``."""
        mode = self.container.network_mode
        if mode == "host":
            return ""
        if mode == "none":
            return "the container has no network"
        if self.container.shared_network:
            return f"the container whose network this one uses, {mode}, cannot be found"
        if self.rules.internal:
            if self._label_address() or self._network_address()[0]:
                return ""
            return "the container has no address in any network"
        if not port.bindings:
            return "the port is not published (-internal registers such ports)"
        if not self._usable_bindings(port):
            hosts = ", ".join(sorted({binding.host_ip for binding in port.bindings}))
            return f"the port is published on {hosts} only, out of reach for others (--allow-loopback)"
        return ""

    def _unwanted(self, port: Port) -> str:
        values = self.metadata.for_port(port)
        # Any value counts, "false" too: that is how Registrator reads it, and hosts rely on it.
        if (ignore := values.get("ignore")) and ignore.text:
            return f"ignored by {ignore.origin}={ignore.text}"
        if self.rules.explicit and not _text(values, "name"):
            return "-explicit, and no SERVICE_NAME is given"
        return ""

    # What ------------------------------------------------------------------------------------------------

    def _register(self, port: Port, several: bool) -> Decision:
        values = self.metadata.for_port(port)
        place = self._place(port)
        name, name_rule = self._name(port, values, several)
        service_id, id_rule, default_id = self._id(port, values, several)
        tags = self._tags(port, values)
        meta = self._meta(values)
        target = Target(
            container_name=self.container.name,
            container_id=self.container.id,
            host=place.address or self.host.node_address,
            port=place.port,
            allow_scripts=self.rules.allow_script_checks,
        )
        checks, check_problems = parse_checks(values, target)
        self.problems.extend(check_problems)
        registration = Registration(
            id=service_id,
            name=name,
            port=place.port,
            address=place.address,
            tags=tuple(dict.fromkeys(tag for tag, _ in tags)),
            meta=MappingProxyType({key: value.text for key, value in sorted(meta.items())}),
            tagged_addresses=place.tagged,
            checks=checks,
        )
        check_rules = ", ".join(
            value.origin for key, value in values.items() if key.startswith("check_") and value.text
        )
        choices = [
            Choice("name", name, name_rule),
            Choice("id", service_id, id_rule),
            Choice("address", place.address or "(the node's)", place.rule),
            Choice("port", str(place.port), place.rule),
            *(Choice("tag", tag, rule) for tag, rule in tags),
            *(Choice(f"meta {key}", value.text, value.origin) for key, value in sorted(meta.items())),
            *(Choice("check", _describe(check), check_rules) for check in checks),
        ]
        signed = self.host.owner.sign(registration, self.container.id)
        return Decision(port, signed, place.rule, tuple(choices), default_id)

    def _name(self, port: Port, values: Mapping[str, Value], several: bool) -> tuple[ServiceName, str]:
        given = values.get("name")
        name, rule = self._image_name()
        if given and given.text:
            try:
                name, rule = service_name(given.text, origin=given.origin), given.origin
            except InvalidName as exc:
                self._problem(given, f"{exc}; {name!r} is used")
        # A name given for the port itself is final, even one given as empty: Registrator's users count on it.
        if several and not (given and given.for_port):
            return ServiceName(f"{name}-{port.number}"), f"{rule}, with the port because there are several"
        return name, rule

    def _image_name(self) -> tuple[ServiceName, str]:
        """Return the last part of the image's name, without registry, tag and digest."""
        image = self.container.image
        name = image.partition("@")[0].rpartition("/")[2].partition(":")[0]
        if not name or name == "sha256" or _DIGEST.match(name):
            return ServiceName(self.container.name), f"container name, as the image {image!r} has none"
        return ServiceName(name), f"image {image}"

    def _id(self, port: Port, values: Mapping[str, Value], several: bool) -> tuple[ServiceID, str, bool]:
        protocol = "" if port.protocol == "tcp" else f":{port.protocol}"
        given = values.get("id")
        if given and given.text:
            if len(given.text) > MAX_ID or _UNPRINTABLE.search(given.text):
                self._problem(
                    given, f"an id has at most {MAX_ID} printable characters; the usual one is used"
                )
            elif several and not given.for_port:
                # One id for several ports would leave only the last of them registered.
                service_id = f"{given.text}:{port.number}{protocol}"
                return (
                    ServiceID(service_id),
                    f"{given.origin}, with the port because there are several",
                    False,
                )
            else:
                return ServiceID(given.text), given.origin, False
        service_id = f"{self.host.owner.name}:{self.container.name}:{port.number}{protocol}"
        return ServiceID(service_id), "owner:container:port", True

    def _tags(self, port: Port, values: Mapping[str, Value]) -> Sequence[tuple[str, str]]:
        tags = values.get("tags")
        return [
            *(((tag, tags.origin) for tag in split_tags(tags.text)) if tags else ()),
            *((tag, "-tags") for template in self.rules.tags if (tag := self._filled_in(template))),
            *(((port.protocol, "protocol of the port"),) if port.protocol != "tcp" else ()),
        ]

    def _filled_in(self, template: str) -> str:
        container = self.container
        maps = {"label": container.labels, "env": container.env}
        fields = {
            "container": container.name,
            "id": container.id[:12],
            "hostname": container.hostname,
            "image": container.image,
        }

        def fill(found: re.Match[str]) -> str:
            kind, key = found["kind"], found["key"]
            return maps[kind].get(key, "") if kind in maps else fields.get(kind, found[0])

        return TAG_FIELD.sub(fill, template)

    def _meta(self, values: Mapping[str, Value]) -> dict[str, Value]:
        meta: dict[str, Value] = {}
        for key, value in sorted(values.items()):
            if key in _KNOWN_KEYS or key.startswith("check_"):
                continue
            if problem := _meta_problem(key, value.text):
                self._problem(value, problem)
            elif len(meta) >= MAX_META_PAIRS - len(MARKS):
                self._problem(
                    value, f"Consul keeps {MAX_META_PAIRS} pairs of meta, {len(MARKS)} of them ours"
                )
            else:
                meta[key] = value
        return meta

    def _with_distinct_ids(self, decisions: Iterable[Decision]) -> Iterable[Decision]:
        """Let only the first port have an id that two of them were given."""
        taken: dict[ServiceID, Port] = {}
        for decision in decisions:
            registration = decision.registration
            if registration and (first := taken.setdefault(registration.id, decision.port)) != decision.port:
                reason = f"its id {registration.id!r} is already that of port {first}"
                self.problems.append(
                    Problem(self.container.name, f"the id of port {decision.port}", registration.id, reason)
                )
                yield Decision(decision.port, None, reason)
            else:
                yield decision

    # Where -----------------------------------------------------------------------------------------------

    def _place(self, port: Port) -> _Place:
        """Return where a port that is not ``_unreachable`` is reached."""
        label_address = self._label_address()
        if self.container.network_mode == "host":
            place = _Place("", port.number, "host network: the node's address and the port inside")
        elif self.rules.internal:
            address, rule = self._network_address()
            place = _Place(address, port.number, f"-internal: {rule}")
        else:
            place = self._published(port)
        if self.rules.ip and not self.rules.internal and not label_address:
            place = _Place(self.rules.ip, place.port, f"-ip, with the port of: {place.rule}")
        if label_address:
            rule = f"label {self.rules.use_ip_from_label} (-useIpFromLabel)"
            place = _Place(label_address, place.port, rule)
        return place

    def _published(self, port: Port) -> _Place:
        usable = self._usable_bindings(port)
        first = usable[0]
        rule = f"published as {_endpoint(first)}"
        others = sorted({b.host_port for b in usable} - {first.host_port})
        if others:
            rule += f" (also as {', '.join(map(str, others))})"
        # Both families under one port: clients of either find theirs in the tagged addresses.
        specific = [b for b in usable if b.host_ip and b.host_port == first.host_port]
        families: dict[str, Address] = {}
        for binding in specific:
            family = "lan_ipv6" if ":" in binding.host_ip else "lan_ipv4"
            families.setdefault(family, Address(binding.host_ip, binding.host_port))
        tagged = families if first.host_ip and len(families) > 1 else {}
        return _Place(first.host_ip, first.host_port, rule, MappingProxyType(tagged))

    def _usable_bindings(self, port: Port) -> Sequence[Binding]:
        """Return the bindings that others can reach, the one to register first.

        Best is every address of the host, then a given one; IPv4 before IPv6; the lowest port.
        """

        def preference(binding: Binding) -> tuple[bool, bool, bool, int, str]:
            return (
                _is_loopback(binding.host_ip),
                bool(binding.host_ip),
                ":" in binding.host_ip,
                binding.host_port,
                binding.host_ip,
            )

        usable = (b for b in port.bindings if self.rules.allow_loopback or not _is_loopback(b.host_ip))
        return sorted(usable, key=preference)

    def _network_address(self) -> tuple[str, str]:
        """Return the container's own address and the rule that chose it."""
        networks = {network.name: network for network in self.container.networks}
        own = self.container.network_mode
        preferred = [self.rules.network, "bridge" if own in ("default", "") else own, *sorted(networks)]
        for name in preferred:
            network = networks.get(name)
            if network and (network.ipv4 or network.ipv6):
                why = " (--network)" if name == self.rules.network else ""
                return network.ipv4 or network.ipv6, f"the container's address in network {name}{why}"
        return "", ""

    def _label_address(self) -> str:
        """Return the address in the label of ``-useIpFromLabel``, without a prefix length."""
        label = self.rules.use_ip_from_label
        raw = self.container.labels.get(label, "") if label else ""
        if not raw:
            return ""
        text = raw.rpartition("/")[0] or raw
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            message = "it is no IP address; write for example 10.0.0.5 or 10.0.0.5/24"
        else:
            if not address.is_unspecified and (self.rules.allow_loopback or not address.is_loopback):
                return text
            message = "nobody else can reach this address; write that of the network"
        problem = Problem(self.container.name, f"label {label}", raw, message)
        if problem not in self.problems:
            self.problems.append(problem)
        return ""

    def _problem(self, value: Value, message: str) -> None:
        problem = Problem(self.container.name, value.origin, value.text, message)
        if problem not in self.problems:  # a generic value is met again at every port
            self.problems.append(problem)


def _meta_problem(key: str, text: str) -> str:
    if key in MARKS:
        return "this key is the registrar's own mark"
    if len(key) > MAX_META_KEY or not _META_KEY.match(key):
        return f"a key of meta has at most {MAX_META_KEY} letters, digits, '-' and '_'"
    if key.startswith("consul-"):
        return "Consul keeps keys that begin with 'consul-' for itself"
    if len(text) > MAX_META_VALUE:
        return f"it has {len(text)} characters, and Consul keeps at most {MAX_META_VALUE} of a meta value"
    return ""


def _text(values: Mapping[str, Value], key: str) -> str:
    value = values.get(key)
    return value.text if value else ""


def _is_loopback(host_ip: str) -> bool:
    return bool(host_ip) and ipaddress.ip_address(host_ip).is_loopback


def _endpoint(binding: Binding) -> str:
    host = binding.host_ip or "*"
    return f"[{host}]:{binding.host_port}" if ":" in host else f"{host}:{binding.host_port}"


def _describe(check: object) -> str:
    """Return a check in a few words: what is set in it."""
    fields = getattr(check, "__dataclass_fields__", {})
    set_fields = {
        name: value
        for name in fields
        if (value := getattr(check, name)) not in (None, "", (), False) and value
    }
    return " ".join(f"{name}={value!r}" for name, value in set_fields.items())
