"""Consul's HTTP API as values: what to ask, and what the answer means.

Laws:
- Pure: strings and parsed JSON in, model values out. ``raw_`` names JSON that is not yet modelled.
- Null and absent are the same: Consul writes both for an empty list or map.
- A status that Consul may add one day counts as critical: sending traffic to an instance whose state we
  cannot read is the worse mistake.
- Equal strings, maps and checks of one reply are one object: ten thousand instances share their few nodes,
  tags, metas and addresses instead of repeating them. Ten thousand replies share the nodes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from sys import intern
from typing import Any, Final
from urllib.parse import quote, urlencode

from discovery import durations
from discovery.errors import (
    AccessDenied,
    DiscoveryError,
    RegistryOverloaded,
    RegistryUnavailable,
    RequestRejected,
    UnknownResource,
)
from discovery.model import (
    Address,
    Check,
    CheckID,
    CheckOf,
    ChecksQuery,
    ConnectQuery,
    FrozenDict,
    HealthCheck,
    IngressQuery,
    Mark,
    MarksQuery,
    NamesQuery,
    Node,
    NodeName,
    NodeServicesQuery,
    NodesQuery,
    PreparedQuery,
    PreparedResult,
    Query,
    Registration,
    ServiceEntry,
    ServiceID,
    ServiceName,
    ServiceQuery,
    Status,
    Weights,
)

__all__ = [
    "Request",
    "error_of",
    "query_request",
    "query_value",
    "registration_from_json",
    "registration_to_json",
    "value_to_raw",
]

_EMPTY: Final[Mapping[str, Any]] = FrozenDict()
_MAX_NODES: Final = 10_000
"""Nodes that replies share: of a cluster larger than most. With more, some are kept several times."""
_STATUSES: Final[Mapping[str, Status]] = {"passing": "passing", "warning": "warning", "critical": "critical"}


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request, ready to send: the target includes the query string."""

    method: str
    target: str
    body: bytes | None = None


def request(method: str, path: str, *, body: Any = None, **params: str | None) -> Request:
    """Build a request for ``/v1/<path>``; parameters that are None are left out, an empty one is a flag."""
    query = urlencode({key.replace("_", "-"): value for key, value in params.items() if value is not None})
    raw_body = None if body is None else json.dumps(body, separators=(",", ":")).encode()
    return Request(method, f"/v1/{path}{'?' + query if query else ''}", raw_body)


def path_segment(value: str) -> str:
    """Quote *value* for one path segment: a name with a slash must not become two."""
    return quote(value, safe="")


# --- questions ---------------------------------------------------------------------------------------


def query_request(query: Query, *, index: int = 0, wait: float = 0.0) -> Request:
    """Return the request for *query*; with an *index* it blocks for up to *wait* seconds.

    Reads are in ``stale`` mode (Consul: "Consistency Modes"): any server may answer. Through an election
    they go on being answered, where the default mode fails them all.
    """
    near = query.near if isinstance(query, ServiceQuery) else None
    match query:
        case ServiceQuery(name=name):
            path = f"health/service/{path_segment(name)}"
        case NamesQuery():
            path = "catalog/services"
        case NodesQuery():
            path = "catalog/nodes"
        case NodeServicesQuery(node=node) | MarksQuery(node=node):
            path = f"catalog/node/{path_segment(node)}"
        case ChecksQuery(status=status):
            path = f"health/state/{status}"
        case ConnectQuery(name=name):
            path = f"health/connect/{path_segment(name)}"
        case IngressQuery(name=name):
            path = f"health/ingress/{path_segment(name)}"
        case PreparedQuery(name=name):
            path = f"query/{path_segment(name)}/execute"
    blocking = {"index": str(index), "wait": duration_to_text(wait)} if index else {}
    return request("GET", path, dc=query.dc, near=near, stale="", **blocking)


def query_value(query: Query, raw: Any) -> Any:
    """Return the value that *query* documents, from the JSON that Consul answered.

    Raises:
        KeyError, TypeError, AttributeError, ValueError: *raw* has not the shape of Consul's API.
    """
    share = _Share()
    match query:
        case ServiceQuery() | ConnectQuery() | IngressQuery():
            return _entries(raw, share)
        case NamesQuery():
            return FrozenDict({ServiceName(intern(name)): share.tags(tags) for name, tags in raw.items()})
        case NodesQuery():
            return tuple(share.node(row) for row in raw)
        case NodeServicesQuery():
            if raw is None:  # Consul answers null for a node that it does not know
                return ()
            services = raw.get("Services") or {}
            return tuple(_entry(raw["Node"], service, (), share) for service in services.values())
        case MarksQuery():
            return _marks((raw or {}).get("Services") or {})
        case ChecksQuery():
            return tuple(map(_check_of, raw))
        case PreparedQuery():
            ttl = (raw.get("DNS") or {}).get("TTL")
            return PreparedResult(
                entries=_entries(raw.get("Nodes") or (), share),
                service=ServiceName(raw["Service"]),
                dc=raw.get("Datacenter") or "",
                ttl=durations.from_text(ttl) if ttl else None,
            )


def definition_request(query: PreparedQuery) -> Request:
    """Return the request for the definition of *query*, filled in where it is a template."""
    return request("GET", f"query/{path_segment(query.name)}/explain", dc=query.dc, stale="")


def is_ordered(raw_definition: Any) -> bool:
    """Whether what the query finds comes in the order of its distance.

    Raises:
        KeyError, TypeError: *raw_definition* has not the shape of Consul's API.
    """
    return bool(raw_definition["Query"]["Service"].get("Near"))


def value_to_raw(query: Query, value: Any) -> Any:
    """Return the *value* of a ``ServiceQuery`` or a ``NamesQuery`` as Consul tells it.

    ``query_value`` is the way back.
    """
    if isinstance(query, NamesQuery):
        return {name: list(tags) for name, tags in value.items()}
    return [
        {
            "Node": _node_to_raw(entry.node),
            "Service": _entry_to_raw(entry),
            "Checks": [_health_check_to_raw(check) for check in entry.checks],
        }
        for entry in value
    ]


def _marks(raw_services: Mapping[str, Any]) -> tuple[Mark, ...]:
    found: dict[str, tuple[int, int]] = {}
    for raw in raw_services.values():
        count, last = found.get(raw["Service"], (0, 0))
        found[raw["Service"]] = count + 1, max(last, raw.get("ModifyIndex") or 0)
    return tuple((ServiceName(intern(name)), count, last) for name, (count, last) in found.items())


def _check_of(raw: Mapping[str, Any]) -> CheckOf:
    name = intern(raw.get("ServiceName") or "")
    return NodeName(intern(raw["Node"])), ServiceName(name), CheckID(raw["CheckID"])


class _Share:
    """Makes equal parts of one reply one object."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._maps: dict[tuple[tuple[str, str], ...], Mapping[str, str]] = {}
        self._tags: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._texts: dict[str, str] = {}
        self._checks: dict[object, HealthCheck] = {}
        self._of_nodes: dict[tuple[HealthCheck, ...], tuple[HealthCheck, ...]] = {}

    def node(self, raw: Mapping[str, Any]) -> Node:
        name = raw["Node"]
        found = self._nodes.get(name)
        if found is None:
            found = Node(
                name=NodeName(intern(name)),
                address=self.text(raw["Address"]),
                dc=intern(raw.get("Datacenter") or ""),
                id=raw.get("ID") or "",
                tagged_addresses=self.map(raw.get("TaggedAddresses")),
                meta=self.map(raw.get("Meta")),
            )
            found = self._nodes[name] = _shared_node(found)
        return found

    def text(self, raw: str | None) -> str:
        return self._texts.setdefault(raw, raw) if raw else ""

    def map(self, raw: Mapping[str, str] | None) -> Mapping[str, str]:
        if not raw:
            return _EMPTY
        return self._maps.setdefault(tuple(raw.items()), FrozenDict(dict(raw)))

    def tags(self, raw: list[str] | None) -> tuple[str, ...]:
        if not raw:
            return ()
        tags = tuple(map(intern, raw))
        return self._tags.setdefault(tags, tags)

    def checks(self, raw_checks: Any) -> tuple[HealthCheck, ...]:
        checks = tuple(map(self._check, raw_checks))
        if any(check.service_id for check in checks):
            return checks  # no other instance has the same
        return self._of_nodes.setdefault(checks, checks)

    def _check(self, raw: Mapping[str, Any]) -> HealthCheck:
        if raw.get("ServiceID"):
            return _health_check(raw, self)
        key = raw["CheckID"], raw.get("Name"), raw["Status"], raw.get("Output")
        found = self._checks.get(key)
        if found is None:
            found = self._checks[key] = _health_check(raw, self)
        return found


_nodes: dict[NodeName, Node] = {}
"""Each as the last reply told it that told something new of it."""


def _shared_node(node: Node) -> Node:
    """Return *node*, as the object that earlier replies have of it."""
    known = _nodes.get(node.name)
    if known == node:
        return known
    if known is not None or len(_nodes) < _MAX_NODES:
        _nodes[node.name] = node
    return node


def _entries(raw_rows: Any, share: _Share) -> tuple[ServiceEntry, ...]:
    return tuple(_entry(row["Node"], row["Service"], row.get("Checks") or (), share) for row in raw_rows)


def _entry(
    raw_node: Mapping[str, Any], raw: Mapping[str, Any], raw_checks: Any, share: _Share
) -> ServiceEntry:
    return ServiceEntry(
        node=share.node(raw_node),
        id=ServiceID(share.text(raw["ID"])),
        name=ServiceName(intern(raw["Service"])),
        address=share.text(raw.get("Address")),
        port=raw.get("Port") or 0,
        tags=share.tags(raw.get("Tags")),
        meta=share.map(raw.get("Meta")),
        tagged_addresses=_other_addresses(raw),
        weights=_weights(raw.get("Weights")),
        checks=share.checks(raw_checks),
        kind=raw.get("Kind") or "",
    )


def _other_addresses(raw: Mapping[str, Any]) -> Mapping[str, Address]:
    """Return the tagged addresses, or none when they all repeat the instance's own address.

    Consul's agent fills them in for every instance that has an address; they would be a third of what
    ten thousand instances take.
    """
    found = (raw.get("TaggedAddresses") or {}).values()
    if raw.get("Address") and all(
        (at["Address"], at["Port"]) == (raw["Address"], raw.get("Port") or 0) for at in found
    ):
        return _EMPTY
    return _tagged_addresses(raw)


def _tagged_addresses(raw: Mapping[str, Any]) -> Mapping[str, Address]:
    found = raw.get("TaggedAddresses")
    if not found:
        return _EMPTY
    return FrozenDict({key: Address(value["Address"], value["Port"]) for key, value in found.items()})


_WEIGHTS: Final = Weights()


def _weights(raw: Mapping[str, int] | None) -> Weights:
    if not raw or (raw.get("Passing") == 1 and raw.get("Warning") == 1):
        return _WEIGHTS
    # Passing 0 comes from catalogues written by hand; Consul's own DNS reads it as 1.
    warning = raw.get("Warning")
    return Weights(passing=raw.get("Passing") or 1, warning=1 if warning is None else warning)


def _health_check(raw: Mapping[str, Any], share: _Share) -> HealthCheck:
    service_id = raw.get("ServiceID")
    return HealthCheck(
        id=CheckID(share.text(raw["CheckID"])),
        name=intern(raw.get("Name") or ""),
        status=_STATUSES.get(raw["Status"], "critical"),
        output=share.text(raw.get("Output")),
        service_id=ServiceID(share.text(service_id)) if service_id else None,
    )


def _node_to_raw(node: Node) -> dict[str, Any]:
    return {
        "Node": node.name,
        "Address": node.address,
        "Datacenter": node.dc,
        "ID": node.id,
        "TaggedAddresses": dict(node.tagged_addresses),
        "Meta": dict(node.meta),
    }


def _entry_to_raw(entry: ServiceEntry) -> dict[str, Any]:
    return {
        "ID": entry.id,
        "Service": entry.name,
        "Address": entry.address,
        "Port": entry.port,
        "Tags": list(entry.tags),
        "Meta": dict(entry.meta),
        "TaggedAddresses": _tagged_addresses_to_raw(entry.tagged_addresses),
        "Weights": {"Passing": entry.weights.passing, "Warning": entry.weights.warning},
        "Kind": entry.kind,
    }


def _health_check_to_raw(check: HealthCheck) -> dict[str, Any]:
    return {
        "CheckID": check.id,
        "Name": check.name,
        "Status": check.status,
        "Output": check.output,
        "ServiceID": check.service_id or "",
    }


def _tagged_addresses_to_raw(addresses: Mapping[str, Address]) -> dict[str, Any]:
    return {key: {"Address": value.host, "Port": value.port} for key, value in addresses.items()}


# --- registrations -----------------------------------------------------------------------------------


def registration_to_json(registration: Registration) -> dict[str, Any]:
    """Return the body of ``/v1/agent/service/register``; what is empty is left out."""
    raw: dict[str, Any] = {"ID": registration.id, "Name": registration.name}
    if registration.port:
        raw["Port"] = registration.port
    if registration.address:
        raw["Address"] = registration.address
    if registration.tags:
        raw["Tags"] = list(registration.tags)
    if registration.meta:
        raw["Meta"] = dict(registration.meta)
    if registration.tagged_addresses:
        raw["TaggedAddresses"] = _tagged_addresses_to_raw(registration.tagged_addresses)
    if registration.weights != _WEIGHTS:
        raw["Weights"] = {"Passing": registration.weights.passing, "Warning": registration.weights.warning}
    if registration.enable_tag_override:
        raw["EnableTagOverride"] = True
    match registration.mesh:
        case "native":
            raw["Connect"] = {"Native": True}
        case "sidecar":
            # A sidecar without Meta inherits its service's, and with it marks of whom that belongs to.
            raw["Connect"] = {"SidecarService": {"Meta": {"sidecar-of": registration.id}}}
    if registration.checks:
        raw["Checks"] = [check_to_json(check) for check in registration.checks]
    return raw


def registration_from_json(raw: Mapping[str, Any]) -> Registration:
    """Return one row of ``/v1/agent/services``. The agent does not tell its checks' definitions."""
    return Registration(
        id=ServiceID(raw["ID"]),
        name=ServiceName(raw["Service"]),
        port=raw.get("Port") or 0,
        address=raw.get("Address") or "",
        tags=tuple(raw.get("Tags") or ()),
        meta=FrozenDict(raw.get("Meta") or {}),
        tagged_addresses=_tagged_addresses(raw),
        weights=_weights(raw.get("Weights")),
        enable_tag_override=bool(raw.get("EnableTagOverride")),
        # Of a sidecar the service's row says nothing: it is a row of its own.
        mesh="native" if (raw.get("Connect") or {}).get("Native") else "",
    )


def check_ids(registration: Registration) -> frozenset[CheckID]:
    """Return the ids under which the agent knows the checks of *registration*: it names those without one."""
    several = len(registration.checks) > 1
    return frozenset(
        check.id or CheckID(f"service:{registration.id}{f':{number}' if several else ''}")
        for number, check in enumerate(registration.checks, 1)
    )


def duration_to_text(seconds: float) -> str:
    """Write *seconds* (0 or more) as a Go duration in whole milliseconds: ``10s``, ``1500ms``.

    What is above 0 stays so: Consul takes ``wait=0s`` for its default of five minutes.
    """
    milliseconds = max(round(seconds * 1000), 1) if seconds else 0
    return f"{milliseconds // 1000}s" if milliseconds % 1000 == 0 else f"{milliseconds}ms"


# Attribute of Check -> key of Consul's check definition, and how the value is written.
_CHECK_KEYS: Final[tuple[tuple[str, str, Callable[[Any], Any]], ...]] = (
    ("id", "CheckID", str),
    ("name", "Name", str),
    ("ttl", "TTL", duration_to_text),
    ("http", "HTTP", str),
    ("method", "Method", str),
    ("header", "Header", lambda value: {key: list(values) for key, values in value.items()}),
    ("body", "Body", str),
    ("tcp", "TCP", str),
    ("grpc", "GRPC", str),
    ("grpc_use_tls", "GRPCUseTLS", bool),
    ("args", "Args", list),
    ("docker_container_id", "DockerContainerID", str),
    ("shell", "Shell", str),
    ("interval", "Interval", duration_to_text),
    ("timeout", "Timeout", duration_to_text),
    ("initial_status", "Status", str),
    ("deregister_after", "DeregisterCriticalServiceAfter", duration_to_text),
    ("tls_skip_verify", "TLSSkipVerify", bool),
    ("notes", "Notes", str),
)


def check_to_json(check: Check) -> dict[str, Any]:
    """Return the definition of *check*; what is empty is left out."""
    return {key: write(value) for name, key, write in _CHECK_KEYS if (value := getattr(check, name))}


# --- errors ------------------------------------------------------------------------------------------


def error_of(status: int, body: str, *, asked: str, where: str, token: bool) -> DiscoveryError | None:
    """Translate an HTTP status into the error to raise, or None for a success.

    Args:
        asked: the request as people read it, ``GET /v1/health/service/web``.
        where: the agent's address.
        token: whether a token was sent; the advice of a 403 differs.
    """
    if 200 <= status < 300:
        return None
    said = " ".join(body.split())[:200] or "no explanation"
    wrong = f"{where} answered {asked} with HTTP {status}: {said}"
    match status:
        case 401 | 403:
            advice = (
                "check what the policy of this token allows"
                if token
                else "set CONSUL_HTTP_TOKEN or CONSUL_HTTP_TOKEN_FILE"
            )
            return AccessDenied(f"{wrong}; {advice}", status=status, body=said)
        case 404:
            return UnknownResource(wrong, status=status, body=said)
        case 429:
            return RegistryOverloaded(wrong, status=status, body=said)
        # An unknown data centre is a 500, though the fault is in the question: taken for an outage it
        # would hold up every other name of this process.
        case 500 if "No path to datacenter" in body:
            return RequestRejected(wrong, status=status, body=said)
        # The agent's own settings forbid what was to be registered, and will in the next second.
        case 500 if "Scripts are disabled" in body:
            return RequestRejected(wrong, status=status, body=said)
        # Consul 1.8 says it so when the check is unknown; newer releases say 404.
        case 500 if "does not have associated TTL" in body:
            return UnknownResource(wrong, status=status, body=said)
        case _ if 400 <= status < 500:
            return RequestRejected(wrong, status=status, body=said)
    return RegistryUnavailable(wrong)
