"""What a service is: the values that the three packages exchange.

Two directions, two shapes.

    written  Registration ── Check          what a registrar asks of the agent
    read     ServiceEntry ── Node, HealthCheck   one row of the catalogue, as Consul tells it
             Instance                        the same row as application code wants it: (host, port)
             Snapshot                        all rows of one service at one moment

Laws:
- Pure: no clock, no I/O. Everything is frozen; a change is a new value.
- Times are seconds (float). Names are kept as registered; comparisons go through ``names.fold``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal, NewType, NoReturn, TypeVar, overload

from discovery.errors import Attempt, DiscoveryError

__all__ = [
    "Address",
    "Check",
    "CheckID",
    "CheckOf",
    "ChecksQuery",
    "ConnectQuery",
    "FrozenDict",
    "HealthCheck",
    "IngressQuery",
    "Instance",
    "Mesh",
    "Node",
    "NodeName",
    "Mark",
    "MarksQuery",
    "NamesQuery",
    "NodeServicesQuery",
    "NodesQuery",
    "PreparedQuery",
    "PreparedResult",
    "Query",
    "Registration",
    "Reply",
    "ServiceEntry",
    "ServiceID",
    "ServiceName",
    "ServiceQuery",
    "Snapshot",
    "Source",
    "Status",
    "Weights",
    "worst",
]

ServiceName = NewType("ServiceName", str)
ServiceID = NewType("ServiceID", str)
CheckID = NewType("CheckID", str)
NodeName = NewType("NodeName", str)

Status = Literal["passing", "warning", "critical"]
Mesh = Literal["", "native", "sidecar"]
Source = Literal["static", "shared", "http", "dns", "disk"]

NODE_MAINTENANCE: Final = "_node_maintenance"
"""Id of the check by which Consul marks a node under maintenance."""
SERVICE_MAINTENANCE: Final = "_service_maintenance:"
"""Prefix of the check ids by which Consul marks one instance under maintenance."""

_RANK: Final[Mapping[str, int]] = {"passing": 0, "warning": 1, "critical": 2}
_V = TypeVar("_V")


class FrozenDict(dict[str, _V]):
    """A dictionary that refuses changes, so that ten thousand instances may share one.

    Unlike a ``MappingProxyType`` it can be pickled, copied deeply, hashed and written as JSON.
    """

    __slots__ = ()

    def _refuse(self, *_args: object, **_kwargs: object) -> NoReturn:
        raise TypeError("this mapping is shared and cannot be changed; copy it with dict() first")

    if not TYPE_CHECKING:  # type checkers see a Mapping, which has none of these
        __setitem__ = __delitem__ = __ior__ = _refuse
        clear = pop = popitem = setdefault = update = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenDict, (dict(self),)  # the default would set item by item


_EMPTY: Final[Mapping[str, Any]] = FrozenDict()


def _no_items() -> Mapping[str, Any]:
    return _EMPTY  # one object for all: most instances have no meta


def worst(statuses: Sequence[Status]) -> Status:
    """Return the aggregate status: any critical is critical, else any warning, else passing.

    No checks at all is passing (Consul: "Health", "no checks = healthy").
    """
    return max(statuses, key=_RANK.__getitem__, default="passing")


@dataclass(frozen=True, slots=True)
class Address:
    """A tagged address of a service: ``lan_ipv4``, ``wan`` and so on."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Weights:
    """DNS SRV weights of an instance by its aggregate status (Consul: "Weights")."""

    passing: int = 1
    warning: int = 1


@dataclass(frozen=True, slots=True)
class Node:
    """A Consul node: the agent that an instance is registered with."""

    name: NodeName
    address: str
    dc: str = ""
    id: str = ""
    tagged_addresses: Mapping[str, str] = field(default_factory=_no_items)
    meta: Mapping[str, str] = field(default_factory=_no_items)


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """The state of one check, as the catalogue reports it."""

    id: CheckID
    name: str
    status: Status
    output: str = ""
    service_id: ServiceID | None = None
    """None for a check of the whole node."""


@dataclass(frozen=True, slots=True)
class ServiceEntry:
    """One row of ``/v1/health/service``: an instance, its node, and the checks of both."""

    node: Node
    id: ServiceID
    name: ServiceName
    address: str = ""
    """Empty when the instance is to be reached at its node's address."""
    port: int = 0
    tags: tuple[str, ...] = ()
    meta: Mapping[str, str] = field(default_factory=_no_items)
    tagged_addresses: Mapping[str, Address] = field(default_factory=_no_items)
    weights: Weights = Weights()
    checks: tuple[HealthCheck, ...] = ()
    kind: str = ""
    """Empty for an ordinary service, else for example ``connect-proxy``."""

    @property
    def status(self) -> Status:
        """The aggregate over the instance's own checks and its node's."""
        return worst([check.status for check in self.checks])

    @property
    def host(self) -> str:
        """The address to connect to: the service's own, else its node's."""
        return self.address or self.node.address

    @property
    def weight(self) -> int:
        return self.weights.warning if self.status == "warning" else self.weights.passing


@dataclass(frozen=True, slots=True)
class Check:
    """A check that the agent shall run (or, for ``ttl``, be told about).

    Exactly one of ``ttl``, ``http``, ``tcp``, ``grpc``, ``docker_container_id`` with ``args``, or
    ``args`` alone says what it does. Durations are seconds.
    """

    id: CheckID = CheckID("")
    """Empty: Consul names it ``service:<service id>``, with ``:<n>`` when there are several."""
    name: str = ""
    ttl: float | None = None
    http: str | None = None
    method: str | None = None
    header: Mapping[str, tuple[str, ...]] = field(default_factory=_no_items)
    body: str | None = None
    tcp: str | None = None
    grpc: str | None = None
    grpc_use_tls: bool = False
    args: tuple[str, ...] = ()
    docker_container_id: str | None = None
    shell: str | None = None
    interval: float | None = None
    timeout: float | None = None
    initial_status: Status | None = None
    deregister_after: float | None = None
    tls_skip_verify: bool = False
    notes: str = ""


@dataclass(frozen=True, slots=True)
class Registration:
    """An instance as its agent shall know it (Consul: ``/v1/agent/service/register``)."""

    id: ServiceID
    name: ServiceName
    port: int = 0
    address: str = ""
    """Empty: Consul answers with the node's advertised address."""
    tags: tuple[str, ...] = ()
    meta: Mapping[str, str] = field(default_factory=_no_items)
    tagged_addresses: Mapping[str, Address] = field(default_factory=_no_items)
    weights: Weights = Weights()
    enable_tag_override: bool = False
    checks: tuple[Check, ...] = ()
    mesh: Mesh = ""
    """Its part in Consul's service mesh: ``native`` when it speaks Connect itself, ``sidecar`` when the agent
    is to register a proxy with it; empty: none."""


# --- questions to the catalogue, and what comes back -------------------------------------------------


@dataclass(frozen=True, slots=True)
class ServiceQuery:
    """All instances of one service, healthy or not. The reply's value: ``tuple[ServiceEntry, ...]``."""

    name: ServiceName
    dc: str | None = None
    """None: the agent's own data centre."""
    near: str | None = None
    """The node whose nearest instances come first (``_agent``: the agent's own); None: in no order."""


@dataclass(frozen=True, slots=True)
class NamesQuery:
    """All service names with their tags. The reply's value: ``Mapping[ServiceName, tuple[str, ...]]``."""

    dc: str | None = None


@dataclass(frozen=True, slots=True)
class NodesQuery:
    """All nodes. The reply's value: ``tuple[Node, ...]``."""

    dc: str | None = None


@dataclass(frozen=True, slots=True)
class NodeServicesQuery:
    """The services of one node. The reply's value: ``tuple[ServiceEntry, ...]``, without their checks."""

    node: NodeName
    dc: str | None = None


@dataclass(frozen=True, slots=True)
class MarksQuery:
    """What tells which services of one node have changed, in a fraction of ``NodeServicesQuery``.

    The reply's value: ``tuple[Mark, ...]``.
    """

    node: NodeName
    dc: str | None = None


Mark = tuple[ServiceName, int, int]
"""A service of a node: its name, how many instances it has there, and when one of them changed last. Whatever
happens to its instances, one of the numbers changes."""


@dataclass(frozen=True, slots=True)
class ChecksQuery:
    """All checks that have one status. The reply's value: ``tuple[CheckOf, ...]``."""

    status: Status
    dc: str | None = None


CheckOf = tuple[NodeName, ServiceName, CheckID]
"""A check: its node, its service (empty: of the node itself), and its id."""


@dataclass(frozen=True, slots=True)
class ConnectQuery:
    """Where a service is reached in Consul's service mesh: its sidecar proxies, and instances that need none.

    The reply's value: ``tuple[ServiceEntry, ...]``, whose names are those of the proxies.
    """

    name: ServiceName
    dc: str | None = None


@dataclass(frozen=True, slots=True)
class IngressQuery:
    """The ingress gateways through which a service is reached. The reply's value as of ``ConnectQuery``."""

    name: ServiceName
    dc: str | None = None


@dataclass(frozen=True, slots=True)
class PreparedQuery:
    """What a prepared query finds, by its name or id. The reply's value: ``PreparedResult``.

    It cannot block: Consul executes it anew each time (Consul: "Prepared Queries").
    """

    name: str
    dc: str | None = None
    """Where it is executed; None: in the agent's own data centre."""


@dataclass(frozen=True, slots=True)
class PreparedResult:
    """What a prepared query found. One that does not exist finds nothing."""

    entries: tuple[ServiceEntry, ...] = ()
    """Healthy by the query's own rules."""
    service: ServiceName = ServiceName("")
    """What it looked for; a template fills it in."""
    dc: str = ""
    """Where it found it, after failover perhaps."""
    ttl: float | None = None
    """Seconds for which DNS clients may keep it; None: as for the service."""
    ordered: bool = False
    """The nearest instance comes first."""


Query = (
    ServiceQuery
    | NamesQuery
    | NodesQuery
    | NodeServicesQuery
    | MarksQuery
    | ChecksQuery
    | ConnectQuery
    | IngressQuery
    | PreparedQuery
)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a registry answered to a ``Query``. ``value`` has the shape that the query documents."""

    value: Any
    index: int
    """Consul's X-Consul-Index; 0 where the source has none."""
    known_leader: bool = True
    """False: a server without a leader answered from what it had."""
    last_contact: float = 0.0
    """Seconds since that server last heard from the leader."""
    source: Source = "http"
    where: str = ""
    """The address of what answered, for people."""
    attempts: tuple[Attempt, ...] = ()
    """What was asked in vain before."""
    error: DiscoveryError | None = None
    """Set when this is what was known once, and why nothing newer can be had."""
    connection: int = 0
    """Counts the connections of the reader that got it, where it keeps one: what a new one comes to may be
    another process, which remembers nothing of what was told to the last."""


# --- what application code sees ----------------------------------------------------------------------


class _Attributes:
    """The attributes of one ``Instance``.

    Objects of an ordinary class share the keys of their dictionaries, those of a kind of tuple do not: each
    instance would take 80 octets more (240 from Python 3.12 on), and 10,000 of them would not fit into 5 MB.
    """

    def __init__(self, entry: ServiceEntry, source: Source, stale: bool) -> None:
        self.entry = entry
        self.source = source
        self.stale = stale


class Instance(tuple[str, int]):
    """A place to connect to: the tuple ``(host, port)``, with attributes.

    It unpacks (``host, port = instance``), goes into ``socket.connect`` as it is, and formats as
    ``host:port``. Two instances are equal when host and port are.
    """

    entry: ServiceEntry
    """The row of the catalogue that this is made from."""
    source: Source
    """Where the row came from."""
    stale: bool
    """True while the registry cannot be asked whether this is still so."""

    def __new__(cls, entry: ServiceEntry, *, source: Source = "http", stale: bool = False) -> Instance:
        self = super().__new__(cls, (entry.host, entry.port))
        self.__dict__ = _Attributes(entry, source, stale).__dict__
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore_instance, (self.entry, self.source, self.stale)

    @property
    def host(self) -> str:
        return self[0]

    @property
    def port(self) -> int:
        return self[1]

    @property
    def id(self) -> ServiceID:
        return self.entry.id

    @property
    def service(self) -> ServiceName:
        return self.entry.name

    @property
    def node(self) -> NodeName:
        return self.entry.node.name

    @property
    def dc(self) -> str:
        return self.entry.node.dc

    @property
    def tags(self) -> tuple[str, ...]:
        return self.entry.tags

    @property
    def meta(self) -> Mapping[str, str]:
        return self.entry.meta

    @property
    def weight(self) -> int:
        return self.entry.weight

    @property
    def status(self) -> Status:
        return self.entry.status

    @property
    def zone(self) -> str | None:
        """The ``zone`` of the instance's meta, else of its node's meta, else None."""
        return self.entry.meta.get("zone") or self.entry.node.meta.get("zone")

    @property
    def netloc(self) -> str:
        """``host:port``, an IPv6 address in brackets: the authority of a URL (RFC 3986 section 3.2)."""
        host, port = self
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def url(self, path: str = "", *, scheme: str | None = None) -> str:
        """Return ``scheme://netloc/path``; the scheme defaults to the instance's meta, then ``http``."""
        scheme = scheme or self.meta.get("scheme") or "http"
        return f"{scheme}://{self.netloc}{path if path.startswith('/') or not path else '/' + path}"

    def __str__(self) -> str:
        return self.netloc

    def __format__(self, spec: str) -> str:
        return format(self.netloc, spec)

    def __repr__(self) -> str:
        flags = f"{self.status}{', stale' if self.stale else ''}"
        return f"<Instance {self.service} {self.netloc} {flags}>"


def _restore_instance(entry: ServiceEntry, source: Source, stale: bool) -> Instance:
    return Instance(entry, source=source, stale=stale)


@dataclass(frozen=True, slots=True)
class Snapshot(Sequence[Instance]):
    """All instances of a service at one moment; a sequence of ``Instance``.

    ``added`` and ``removed`` compare with the snapshot before, by host and port.
    """

    service: ServiceName
    instances: tuple[Instance, ...] = ()
    consul_index: int | None = None
    """X-Consul-Index of the reply (``index`` is what a sequence calls its search)."""
    fetched_at: float = 0.0
    """Seconds on the monotonic clock when the registry confirmed this."""
    source: Source = "http"
    stale: bool = False
    added: tuple[Instance, ...] = field(default=(), compare=False)
    removed: tuple[Instance, ...] = field(default=(), compare=False)

    @overload
    def __getitem__(self, item: int) -> Instance: ...
    @overload
    def __getitem__(self, item: slice) -> tuple[Instance, ...]: ...
    def __getitem__(self, item: int | slice) -> Instance | tuple[Instance, ...]:
        return self.instances[item]

    def __len__(self) -> int:
        return len(self.instances)

    def __iter__(self) -> Iterator[Instance]:
        return iter(self.instances)

    def only(self, wanted: Callable[[Instance], bool]) -> Snapshot:
        """Return this snapshot with the *wanted* instances alone."""
        return replace(
            self,
            instances=tuple(filter(wanted, self.instances)),
            added=tuple(filter(wanted, self.added)),
            removed=tuple(filter(wanted, self.removed)),
        )
