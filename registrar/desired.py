"""What should be registered for one container, with the reason for every value.

    Container ── Metadata ──┐
    Rules (the operator) ───┼──> desire() ──> Desired ──> one Decision per port and name
    Host (owner, address) ──┘                   │          Registration, or why there is none
    what is registered now ─┘                   ├── kept: what stays visible of a container that ended
                                                └── reports, probes: what is to be told of it later

Laws:
- Pure: the same arguments give the same answer, byte for byte, so that an unchanged container is
  recognised and never written again.
- A container is not trusted. A fault in what it says, or what the operator does not allow it, costs only
  the value it stands in, and becomes a ``Problem``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Final

from discovery.errors import InvalidName
from discovery.model import Check, Registration, ServiceID, ServiceName, Weights
from discovery.names import service_name
from registrar.checks import Probe, Target, has_check, parse_checks
from registrar.containers import Container, Port
from registrar.metadata import Extensions, Metadata, Problem, Value, split_tags
from registrar.owner import MARKS, Owner
from registrar.places import GivenAddress, Place, address_problem, find_places, label_problem
from registrar.rules import Rules
from registrar.status import Report, container_check, describe_end, failed, kept, report_on

__all__ = [
    "KNOWN_KEYS",
    "TAG_FIELD",
    "TAG_FIELDS",
    "TAG_MAPS",
    "Choice",
    "Decision",
    "Desired",
    "Host",
    "desire",
]

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
KNOWN_KEYS: Final = frozenset({"name", "tags", "id", "ignore"})
_DIGEST: Final = re.compile(r"[0-9a-f]{64}\Z")


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
    """What becomes of one port, under one name."""

    port: Port
    registration: Registration | None
    reason: str
    """Why it is registered, or why not."""
    choices: tuple[Choice, ...] = ()
    default_id: bool = False
    """True when the id was made by the rule and not given by the container."""
    probes: tuple[Probe, ...] = ()


@dataclass(frozen=True, slots=True)
class Desired:
    """What becomes of one container."""

    container: Container
    decisions: tuple[Decision, ...]
    problems: tuple[Problem, ...] = ()
    kept: tuple[Registration, ...] = ()
    """What stays registered, as critical, although the container does not serve."""
    reports: tuple[Report, ...] = ()
    """What the agent is to be told of checks that the registrar keeps."""
    look_again: float | None = None
    """Seconds after which this is no longer what is desired."""

    @property
    def registrations(self) -> tuple[Registration, ...]:
        return (*(one.registration for one in self.decisions if one.registration), *self.kept)

    @property
    def probes(self) -> tuple[Probe, ...]:
        """The commands that are to be run inside the container."""
        return tuple(probe for one in self.decisions for probe in one.probes)

    @property
    def default_ids(self) -> frozenset[ServiceID]:
        """The ids that the rule made."""
        return frozenset(one.registration.id for one in self.decisions if one.registration and one.default_id)


def desire(
    container: Container,
    rules: Rules,
    host: Host,
    *,
    stopping: str = "",
    previous: Collection[Registration] = (),
    now: int = 0,
) -> Desired:
    """Decide what should be registered for *container*.

    Args:
        container: as inspected; one in another's network already ``joined`` with that.
        stopping: why it is about to end although it still runs, for example ``signal 15``: nobody shall
            be sent to an instance that is closing its doors.
        previous: what is registered for it now. Only of this can anything be kept when it has ended,
            because Docker then no longer tells where it was.
        now: nanoseconds on the engine's clock, to which a kept registration's age is counted.
    """
    extensions = Extensions.of(container)
    container = extensions.applied_to(container)
    metadata = Metadata.of(container)
    problems = [*metadata.problems, *extensions.problems]
    deciding = _Deciding(container, rules, host, metadata, extensions, problems)
    if reason := deciding.not_serving(stopping):
        return deciding.keep(reason, stopping, previous, now)
    return deciding.register()


@dataclass(slots=True)
class _Deciding:
    """One container while its ports are decided on."""

    container: Container
    rules: Rules
    host: Host
    metadata: Metadata
    extensions: Extensions
    problems: list[Problem]
    several: bool = False
    """More than one port can be reached."""
    checked: bool = False
    """A check is given for one of the ports at least."""

    # A container that does not serve ---------------------------------------------------------------------

    def not_serving(self, stopping: str) -> str:
        """Say why nobody should be sent to the container, or return ``""``."""
        state = self.container.state
        if state.paused:
            return "the container is paused"
        if state.restarting:
            return f"the container waits to be started again; it {describe_end(self.container)}"
        if not state.running:
            return "the container does not run"
        if stopping and self.rules.drain != "off":
            return f"the container is stopping ({stopping})"
        return ""

    def keep(self, reason: str, stopping: str, previous: Collection[Registration], now: int) -> Desired:
        """Decide what stays visible of a container that does not serve."""
        decisions = tuple(Decision(port, None, reason) for port in self.container.ports)
        rules, state = self.rules, self.container.state
        look_again: float | None = None
        if state.paused:
            stays = False
        elif state.up:
            stays = rules.drain == "maintenance" or rules.deregister == "never"
        else:
            stays = rules.deregister == "never" or (
                rules.deregister == "on-success" and failed(self.container)
            )
            left = rules.keep_failed - max(0, now - state.finished_at) / 1e9
            stays = stays and left > 0
            if stays and left < float("inf"):
                look_again = left
        registrations = [
            self.host.owner.sign(registration, self.container.id)
            for registration in (kept(previous, rules) if stays else ())
        ]
        return Desired(
            self.container,
            decisions,
            kept=tuple(registrations),
            reports=tuple(report_on(self.container, one.id, stopping) for one in registrations),
            look_again=look_again,
        )

    # One that serves -------------------------------------------------------------------------------------

    def register(self) -> Desired:
        if problem := label_problem(self.container, self.rules):
            self.problems.append(problem)
        node_address = self.host.node_address
        found = {
            port: find_places(
                self.container, port, self.rules, node_address=node_address, service_ip=self._service_ip(port)
            )
            for port in self.container.ports
        }
        self.several = sum(not isinstance(places, str) for places in found.values()) > 1
        self.checked = any(has_check(self.metadata.for_port(port)) for port in found)
        unwanted = self._unwanted()
        decisions: list[Decision] = []
        for port, places in found.items():
            if isinstance(places, str):
                decisions.append(Decision(port, None, places))
            elif reason := unwanted or self._unwanted_port(port):
                decisions.append(Decision(port, None, reason))
            else:
                for place in places:
                    second = f"@{place.address}:{place.port}" if place != places[0] else ""
                    decisions.extend(self._register(port, place, second))
        decisions = list(self._with_distinct_ids(decisions))
        check_ids = {check.id for one in decisions if one.registration for check in one.registration.checks}
        reports = (
            report_on(self.container, one.registration.id, "") for one in decisions if one.registration
        )
        return Desired(
            self.container,
            tuple(decisions),
            tuple(self.problems),
            reports=tuple(report for report in reports if report.check_id in check_ids),
        )

    def _service_ip(self, port: Port) -> GivenAddress | None:
        """Return the address that the container gives for *port*, if it may."""
        given = self.metadata.for_port(port).get("ip")
        if not given or not given.text or not self.rules.allow_service_ip:
            return None
        if problem := address_problem(given.text, self.rules):
            self._problem(given, problem)
            return None
        return GivenAddress(given.text, given.origin)

    def _unwanted(self) -> str:
        """Say why nothing of this container is registered, or return ``""``."""
        for label, value in self.rules.label_filter:
            if label not in self.container.labels:
                return f"--label-filter, and there is no label {label}"
            if value is not None and self.container.labels[label] != value:
                return f"--label-filter, and label {label} is not {value!r}"
        health = self.container.state.health
        if self.rules.ready and health and health.status == "starting":
            return "--ready, and the healthcheck has not passed yet"
        return ""

    def _unwanted_port(self, port: Port) -> str:
        values = self.metadata.for_port(port)
        # Any value counts, "false" too: that is how Registrator reads it, and hosts rely on it.
        if (ignore := values.get("ignore")) and ignore.text:
            return f"ignored by {ignore.origin}={ignore.text}"
        name = values.get("name")
        if self.rules.explicit and not (name and name.text):
            return "-explicit, and no SERVICE_NAME is given"
        return ""

    def _register(self, port: Port, place: Place, second: str) -> Iterator[Decision]:
        """Decide on one place of one port: one registration under each of its names.

        Args:
            second: what tells the ids of this place from those of the port's first one; empty for that.
        """
        values = self.metadata.for_port(port)
        first_id, id_rule, default_id = self._id(port, values)
        tags = self._tags(port, values)
        meta = self._meta(values)
        weight, weight_rule = self.extensions.weight(port)
        override, override_rule = self.extensions.tag_override(port)
        mesh, mesh_rule = self.extensions.mesh(port)
        for position, (name, name_rule) in enumerate(self._names(port, values)):
            if not self._allowed(name, name_rule, values):
                reason = f"the name {name!r} is not among those of --allow-name"
                yield Decision(port, None, reason)
                continue
            if self.rules.prefix:
                name = ServiceName(f"{self.rules.prefix}-{name}")
                name_rule += ", after --service-prefix"
            # A port has one id under its first name; under the others they are told apart by those.
            service_id = ServiceID((f"{first_id}:{name}" if position else first_id) + second)
            checks, probes = self._checks(service_id, place, values)
            registration = Registration(
                id=service_id,
                name=name,
                port=place.port,
                address=place.address,
                tags=tuple(dict.fromkeys(tag for tag, _ in tags)),
                meta=MappingProxyType({key: value.text for key, value in sorted(meta.items())}),
                tagged_addresses=place.tagged,
                weights=Weights(passing=weight),
                enable_tag_override=override,
                mesh=mesh,
                checks=tuple(check for check, _ in checks),
            )
            choices = [
                Choice("name", name, name_rule),
                Choice("id", service_id, id_rule),
                Choice("address", place.address or "(the node's)", place.rule),
                Choice("port", str(place.port), place.rule),
                *(Choice("tag", tag, rule) for tag, rule in tags),
                *(Choice(f"meta {key}", value.text, value.origin) for key, value in sorted(meta.items())),
                *(Choice("check", _describe(check), rule) for check, rule in checks),
                *([Choice("weight", str(weight), weight_rule)] if weight_rule else []),
                *([Choice("tag override", str(override), override_rule)] if override_rule else []),
                *([Choice("mesh", mesh, mesh_rule)] if mesh_rule else []),
            ]
            signed = self.host.owner.sign(registration, self.container.id)
            default = default_id and not position and not second
            yield Decision(port, signed, place.rule, tuple(choices), default, probes)

    def _checks(
        self, service_id: ServiceID, place: Place, values: Mapping[str, Value]
    ) -> tuple[Sequence[tuple[Check, str]], tuple[Probe, ...]]:
        """Return the checks of one registration, each with its rule, and the commands behind them."""
        target = Target(
            container_name=self.container.name,
            container_id=self.container.id,
            service_id=service_id,
            host=place.address or self.host.node_address,
            port=place.port,
            allow_scripts=self.rules.allow_script_checks,
        )
        given, probes, problems = parse_checks(values, target, elsewhere=self.checked)
        for problem in problems:
            self._add(problem)
        rule = ", ".join(
            value.origin for key, value in values.items() if key.startswith("check_") and value.text
        )
        checks = [(check, rule) for check in given]
        if own := self._own_rule():
            checks.append((container_check(service_id, self.rules), own))
        return checks, probes

    def _own_rule(self) -> str:
        """Say why the registrar keeps a check of this container, or return ``""``."""
        if self.rules.healthcheck and self.container.state.health is not None:
            return "the container's HEALTHCHECK"
        return "-ttl" if self.rules.heartbeat else ""

    def _names(self, port: Port, values: Mapping[str, Value]) -> Iterable[tuple[ServiceName, str]]:
        """Return the names of a port, each with its rule. ``SERVICE_NAME`` may list several."""
        given = values.get("name")
        names: dict[ServiceName, str] = {}
        if given:
            for text in filter(None, given.text.split(",")):
                try:
                    names[service_name(text, origin=given.origin)] = given.origin
                except InvalidName as exc:
                    self._problem(given, str(exc))
        if not names:
            names = dict([self._image_name()])
        # A name given for the port itself is final, even one given as empty: Registrator's users count on it.
        for_port = bool(given and given.for_port)
        match self.rules.suffix:
            case "auto" if self.several and not for_port:
                rule = ", with the port because there are several"
            case "always" if not for_port:
                rule = ", with the port because of --suffix always"
            case _:
                return names.items()
        return [(ServiceName(f"{name}-{port.number}"), origin + rule) for name, origin in names.items()]

    def _image_name(self) -> tuple[ServiceName, str]:
        """Return the last part of the image's name, without registry, tag and digest."""
        image = self.container.image
        name = image.partition("@")[0].rpartition("/")[2].partition(":")[0]
        if not name or name == "sha256" or _DIGEST.match(name):
            return ServiceName(self.container.name), f"container name, as the image {image!r} has none"
        return ServiceName(name), f"image {image}"

    def _allowed(self, name: str, rule: str, values: Mapping[str, Value]) -> bool:
        patterns = self.rules.allow_names
        if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns):
            return True
        origin = values["name"].origin if "name" in values else rule
        message = f"the operator allows only names like {', '.join(patterns)}"
        self._add(Problem(self.container.name, origin, name, message))
        return False

    def _id(self, port: Port, values: Mapping[str, Value]) -> tuple[ServiceID, str, bool]:
        """Return the id of a port, its rule, and whether it is the default."""
        service_id, rule, default = self._plain_id(port, values)
        if self.rules.prefix:
            return ServiceID(f"{self.rules.prefix}:{service_id}"), f"{rule}, after --service-prefix", default
        return service_id, rule, default

    def _plain_id(self, port: Port, values: Mapping[str, Value]) -> tuple[ServiceID, str, bool]:
        protocol = "" if port.protocol == "tcp" else f":{port.protocol}"
        given = values.get("id")
        if given and given.text:
            if len(given.text) > MAX_ID or _UNPRINTABLE.search(given.text):
                self._problem(
                    given, f"an id has at most {MAX_ID} printable characters; the usual one is used"
                )
            elif self.several and not given.for_port:
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
            if key in KNOWN_KEYS or key.startswith("check_") or (key == "ip" and self.rules.allow_service_ip):
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

    def _problem(self, value: Value, message: str) -> None:
        self._add(Problem(self.container.name, value.origin, value.text, message))

    def _add(self, problem: Problem) -> None:
        if problem not in self.problems:  # a generic value is met again at every port
            self.problems.append(problem)


def _meta_problem(key: str, text: str) -> str:
    if key in MARKS:
        return "this key is the registrar's own mark"
    if len(key) > MAX_META_KEY or not _META_KEY.match(key):
        return f"a key of meta has at most {MAX_META_KEY} letters, digits, '-' and '_'"
    if key.startswith("consul-"):
        return "Consul keeps keys that begin with 'consul-' for itself"
    if (octets := len(text.encode(errors="surrogatepass"))) > MAX_META_VALUE:
        return f"it has {octets} octets, and Consul keeps at most {MAX_META_VALUE} of a meta value"
    return ""


def _describe(check: Check) -> str:
    """Return a check in a few words: what is set in it."""
    return " ".join(f"{one.name}={value!r}" for one in fields(check) if (value := getattr(check, one.name)))
