"""Consul's HTTP API: which path does what, and what it answers. Requests and responses as values.

    handle(request) ─┬─> Response            answered at once
                     └─> BlockingRead        to be answered when its topic changes, or its time is up

Laws:
- Pure: no sockets, no clock; the caller holds the agent's lock while anything here runs.
- The status, the header names and nearly the words of a current Consul (1.20), errors included. What Consul
  has and portcall does not use (keys and values, sessions, events, ...) is 404, as an unknown path is.
- Deliberately different: whatever ``bodies`` cannot honour is refused with 400 and a sentence.
- Every value that a client sent may be wrong; nothing but ``RegistryError`` leaves a handler.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import parse_qs, unquote

from discovery import durations
from discovery.agent import answers, bodies, filters, topics
from discovery.agent.catalogue import Instance
from discovery.agent.state import SERVER_PORT, State
from discovery.agent.topics import Topic
from discovery.errors import RegistryError
from discovery.model import NODE_MAINTENANCE, SERVICE_MAINTENANCE, CheckID, Registration, ServiceID, Status
from discovery.names import fold

__all__ = ["API", "VERSION", "BlockingRead", "Request", "Response"]

VERSION: Final = "1.20.0+portcall"
"""What ``/v1/agent/self`` calls itself: the release whose API this is, and that it is not that release."""

SERF_PORT: Final = 8301  # Consul's gossip port; nothing listens there
DEFAULT_WAIT: Final = 300.0  # seconds (Consul: "Blocking Queries")
MAX_WAIT: Final = 600.0  # seconds (Consul: "Blocking Queries")
JITTER: Final = 1 / 16
"""Of the wait: added at random, so that readers who began together do not all return together."""

_TRUE: Final = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "FALSE", "false", "False"})


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request."""

    method: str
    path: str
    """Not decoded: a slash in an id arrives as %2F and must not become a separator."""
    query: Mapping[str, Sequence[str]]
    body: bytes = b""

    @classmethod
    def from_target(cls, method: str, target: str, body: bytes = b"") -> Request:
        path, _, query = target.partition("?")
        return cls(method, path, parse_qs(query, keep_blank_values=True), body)

    def get(self, name: str) -> str:
        """Return the first value of a query parameter, or an empty text."""
        return self.query.get(name, [""])[0]


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP response."""

    status: int
    payload: Any
    """JSON to be, or with ``is_text`` a ``str`` that is sent as it stands."""
    is_text: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)


def _text(text: str = "", status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(status, text, is_text=True, headers=headers or {})


@dataclass(frozen=True, slots=True)
class BlockingRead:
    """A read that waits. The caller asks ``ready`` again whenever *topic* was touched."""

    topic: Topic
    wait: float
    """Seconds, jitter included; then it is answered whatever ``ready`` says."""
    ready: Callable[[], bool]
    answer: Callable[[], Response]


Outcome = Response | BlockingRead
_Handler = Callable[[Request, str, float], Outcome]
"""Takes the request, the decoded rest of its path, and the time."""


class API:
    """The endpoints over one agent's state.

    Args:
        random: uniform in [0, 1), for the jitter of blocking reads.
    """

    def __init__(self, state: State, *, random: Callable[[], float]) -> None:
        self._state = state
        self._random = random
        self._dc = state.node.dc
        # Path -> its method and handler. A path that ends in a slash takes what follows it as its argument,
        # the longest one wins: /v1/agent/service/register is not the service "register".
        self._routes: dict[str, tuple[str, _Handler]] = {
            "/v1/agent/self": ("GET", self._self),
            "/v1/agent/members": ("GET", self._members),
            "/v1/agent/services": ("GET", self._agent_services),
            "/v1/agent/service/": ("GET", self._agent_service),
            "/v1/agent/checks": ("GET", self._agent_checks),
            "/v1/agent/health/service/name/": ("GET", self._agent_health_by_name),
            "/v1/agent/health/service/id/": ("GET", self._agent_health_by_id),
            "/v1/agent/service/register": ("PUT", self._register),
            "/v1/agent/service/deregister/": ("PUT", self._deregister),
            "/v1/agent/service/maintenance/": ("PUT", self._maintain_service),
            "/v1/agent/maintenance": ("PUT", self._maintain_node),
            "/v1/agent/check/register": ("PUT", self._register_check),
            "/v1/agent/check/deregister/": ("PUT", self._deregister_check),
            "/v1/agent/check/pass/": ("PUT", self._report_as("passing")),
            "/v1/agent/check/warn/": ("PUT", self._report_as("warning")),
            "/v1/agent/check/fail/": ("PUT", self._report_as("critical")),
            "/v1/agent/check/update/": ("PUT", self._update_check),
            "/v1/catalog/datacenters": ("GET", self._datacenters),
            "/v1/catalog/nodes": ("GET", self._nodes),
            "/v1/catalog/node/": ("GET", self._node),
            "/v1/catalog/services": ("GET", self._names),
            "/v1/catalog/service/": ("GET", self._catalogue_service),
            "/v1/catalog/register": ("PUT", self._catalogue_register),
            "/v1/catalog/deregister": ("PUT", self._catalogue_deregister),
            "/v1/health/service/": ("GET", self._health_service),
            "/v1/health/connect/": ("GET", self._health_mesh("connect")),
            "/v1/health/ingress/": ("GET", self._health_mesh("ingress")),
            "/v1/health/node/": ("GET", self._health_node),
            "/v1/health/checks/": ("GET", self._health_checks),
            "/v1/health/state/": ("GET", self._health_state),
            "/v1/query": ("GET", self._prepared_queries),
            "/v1/query/": ("GET", self._prepared_query),
            "/v1/status/leader": ("GET", self._leader),
            "/v1/status/peers": ("GET", self._peers),
        }

    def handle(self, request: Request, now: float) -> Outcome:
        """Do what *request* asks for, at *now*; a refusal is a response too."""
        try:
            return self._dispatch(request, now)
        except RegistryError as exc:
            return _text(str(exc), exc.status)

    def _dispatch(self, request: Request, now: float) -> Outcome:
        path = request.path
        if path not in self._routes or path.endswith("/"):
            with_argument = (known for known in self._routes if known[-1] == "/" and path.startswith(known))
            path = max(with_argument, key=len, default="")
        if not path:
            raise RegistryError("Invalid URL path: not a recognized HTTP API endpoint\n", status=404)
        method, handler = self._routes[path]
        allow = {"Allow": f"OPTIONS,{method}"}
        if request.method == "OPTIONS":
            return _text(headers=allow)
        if request.method != method:
            return _text(f"method {request.method} not allowed", 405, allow)
        for parameter, feature in (("ns", "Namespaces are"), ("partition", "Partitions are")):
            if request.get(parameter):
                raise RegistryError(
                    f'Invalid query parameter: "{parameter}" - {feature} a Consul Enterprise feature',
                    status=400,
                )
        return handler(request, unquote(request.path[len(path) :]), now)

    # --- the agent: reading

    def _self(self, request: Request, _: str, now: float) -> Response:
        node = self._state.node
        return _json(
            {
                "Config": {
                    "Datacenter": node.dc,
                    "PrimaryDatacenter": node.dc,
                    "NodeName": node.name,
                    "NodeID": node.id,
                    "Revision": "",
                    "Server": True,
                    "Version": VERSION,
                },
                "DebugConfig": {
                    "AdvertiseAddrLAN": node.address,
                    "Datacenter": node.dc,
                    "NodeName": node.name,
                },
                "Member": self._member(),
                "Meta": dict(node.meta),
            }
        )

    def _members(self, request: Request, _: str, now: float) -> Response:
        return _json([self._member()])

    def _member(self) -> dict[str, Any]:
        node = self._state.node
        return {
            "Name": node.name,
            "Addr": node.address,
            "Port": SERF_PORT,
            "Tags": {"role": "consul", "dc": node.dc, "id": node.id, "build": f"{VERSION}:"},
            "Status": 1,  # alive
        }

    def _agent_services(self, request: Request, _: str, now: float) -> Response:
        passes = filters.parse(request.get("filter"))
        rows = {
            service_id: answers.agent_service(service, self._dc)
            for service_id, service in self._state.services.items()
        }
        return _json({service_id: row for service_id, row in rows.items() if passes(row)})

    def _agent_service(self, request: Request, service_id: str, now: float) -> Outcome:
        """One service; with ``hash`` it blocks until the service's content has another one."""

        def content() -> dict[str, Any]:
            service = self._state.services.get(ServiceID(service_id))
            return answers.agent_service(service, self._dc) if service else {}

        def answer() -> Response:
            if not (row := content()):
                return _text(f"unknown service ID: {service_id}", 404)
            digest = answers.content_hash(row)
            return Response(200, {**row, "ContentHash": digest}, headers={"X-Consul-ContentHash": digest})

        wanted, wait = request.get("hash"), _wait(request)

        def ready() -> bool:
            return not (row := content()) or answers.content_hash(row) != wanted

        if not wanted:
            return answer()
        return BlockingRead(topics.agent_service(service_id), self._jittered(wait), ready, answer)

    def _agent_checks(self, request: Request, _: str, now: float) -> Response:
        _no_filter(request)
        checks = self._state.checks()
        return _json({check_id: answers.agent_check(row) for check_id, row in checks.items()})

    def _agent_health_by_name(self, request: Request, name: str, now: float) -> Response:
        if not name:
            raise RegistryError("Missing service Name", status=500)
        found = [self._agent_health(row) for row in self._state.services.values() if row.name == name]
        if not found:
            return _health(request, 404, f"ServiceName {name} Not Found", [])
        status = max((health["AggregatedStatus"] for health in found), key=_AGENT_HEALTH.index)
        return _health(request, _HEALTH_CODE.get(status, 503), status, found)

    def _agent_health_by_id(self, request: Request, service_id: str, now: float) -> Response:
        if not service_id:
            raise RegistryError("Missing serviceID", status=400)
        service = self._state.services.get(ServiceID(service_id))
        if service is None:
            missing = {"AggregatedStatus": "critical", "Service": None, "Checks": None}
            return _health(request, 404, f"ServiceId {service_id} not found", missing)
        health = self._agent_health(service)
        status = health["AggregatedStatus"]
        return _health(request, _HEALTH_CODE.get(status, 503), status, health)

    def _agent_health(self, service: Registration) -> dict[str, Any]:
        """The health of one of the agent's services by its own checks and the node's."""
        checks = [row for row in self._state.checks().values() if row.service_id in ("", service.id)]
        in_maintenance = any(row.id.startswith((NODE_MAINTENANCE, SERVICE_MAINTENANCE)) for row in checks)
        statuses = [row.status for row in checks] + ["maintenance"] * in_maintenance
        return {
            "AggregatedStatus": max(statuses, key=_AGENT_HEALTH.index, default="passing"),
            "Service": answers.agent_service(service, self._dc),
            "Checks": [answers.agent_check(row) for row in checks],
        }

    # --- the agent: writing

    def _register(self, request: Request, _: str, now: float) -> Response:
        registration = bodies.registration_from_json(request.body)
        replace_checks = request.query.get("replace-existing-checks", [None])[0] in ("", "true")
        self._state.register(registration, now, replace_checks=replace_checks)
        return _text()

    def _deregister(self, request: Request, service_id: str, now: float) -> Response:
        self._state.deregister(ServiceID(service_id))
        return _text()

    def _register_check(self, request: Request, _: str, now: float) -> Response:
        self._state.register_check(*bodies.check_from_json(request.body), now)
        return _text()

    def _deregister_check(self, request: Request, check_id: str, now: float) -> Response:
        self._state.deregister_check(CheckID(check_id))
        return _text()

    def _report_as(self, status: Status) -> _Handler:
        def report(request: Request, check_id: str, now: float) -> Response:
            self._state.report_ttl(CheckID(check_id), status, request.get("note"), now)
            return _text()

        return report

    def _update_check(self, request: Request, check_id: str, now: float) -> Response:
        status, output = bodies.report_from_json(request.body)
        self._state.report_ttl(CheckID(check_id), status, output, now)
        return _text()

    def _maintain_service(self, request: Request, service_id: str, now: float) -> Response:
        if not service_id:
            raise RegistryError("Missing service ID", status=400)
        self._state.maintain_service(ServiceID(service_id), _enable(request), request.get("reason"))
        return _text()

    def _maintain_node(self, request: Request, _: str, now: float) -> Response:
        self._state.maintain_node(_enable(request), request.get("reason"))
        return _text()

    # --- the catalogue

    def _datacenters(self, request: Request, _: str, now: float) -> Response:
        return _json([self._dc])

    def _nodes(self, request: Request, _: str, now: float) -> Outcome:
        catalogue = self._state.catalogue
        return self._read(
            request, topics.NODES, lambda: [answers.node(row, self._dc) for row in catalogue.nodes()]
        )

    def _node(self, request: Request, node: str, now: float) -> Outcome:
        _required(node, "Missing node name")
        catalogue = self._state.catalogue

        def answer() -> dict[str, Any] | None:
            row = catalogue.node(node)
            return answers.node_with_services(row, catalogue.services_of(node), self._dc) if row else None

        return self._read(request, topics.node_services(node), answer)

    def _names(self, request: Request, _: str, now: float) -> Outcome:
        return self._read(
            request,
            topics.NAMES,
            lambda: {name: list(tags) for name, tags in self._state.catalogue.names().items()},
        )

    def _catalogue_service(self, request: Request, name: str, now: float) -> Outcome:
        _required(name, "Missing service name")
        return self._read(
            request,
            topics.instances(name),
            lambda: [
                answers.catalogue_service(instance, self._dc)
                for instance in self._state.catalogue.instances(name)
                if _has_tags(instance, request)
            ],
        )

    def _catalogue_register(self, request: Request, _: str, now: float) -> Response:
        asked = bodies.catalogue_registration_from_json(request.body)
        self._in_this_dc(asked.dc)
        catalogue, name = self._state.catalogue, asked.node.name
        # All is looked at before anything is written: Consul's registration is one transaction.
        services = {*catalogue.services_of(name), *([asked.service.id] if asked.service else [])}
        for check in asked.checks:
            if check.service_id and check.service_id not in services:
                raise RegistryError(
                    f"Unknown service ID '{check.service_id}' for check ID '{check.id}'", status=500
                )
        if not asked.skip_node_update or catalogue.node(name) is None:
            catalogue.put_node(replace(asked.node, dc=self._dc))
        if asked.service is not None:
            catalogue.put_service(name, asked.service)
        for check in asked.checks:
            catalogue.put_check(check)
        return _json(True)

    def _catalogue_deregister(self, request: Request, _: str, now: float) -> Response:
        asked = bodies.catalogue_deregistration_from_json(request.body)
        self._in_this_dc(asked.dc)
        if asked.service_id:
            self._state.catalogue.drop_service(asked.node, asked.service_id)
        elif asked.check_id:
            self._state.catalogue.drop_check(asked.node, asked.check_id)
        else:
            self._state.catalogue.drop_node(asked.node)
        return _json(True)

    # --- health

    def _health_service(self, request: Request, name: str, now: float) -> Outcome:
        _required(name, "Missing service name")
        only_passing = "passing" in request.query and (
            request.get("passing") == "" or _boolean(request.get("passing"), "Invalid value for ?passing")
        )

        def wanted(instance: Instance) -> bool:
            passing = all(row.value.status == "passing" for row in instance.checks)
            return _has_tags(instance, request) and (passing or not only_passing)

        return self._read(
            request,
            topics.health(name),
            lambda: [
                answers.health_entry(instance, self._dc)
                for instance in self._state.catalogue.instances(name)
                if wanted(instance)
            ],
        )

    def _health_mesh(self, kind: str) -> _Handler:
        """Proxies and gateways of a service: registering one is refused, so that there are none."""

        def read(request: Request, name: str, now: float) -> Outcome:
            _required(name, "Missing service name")
            return self._read(request, topics.mesh(kind, name), list)

        return read

    def _health_node(self, request: Request, node: str, now: float) -> Outcome:
        _required(node, "Missing node name")
        return self._read(
            request,
            topics.node_checks(node),
            lambda: [answers.catalogue_check(row) for row in self._state.catalogue.checks_of(node)],
        )

    def _health_checks(self, request: Request, name: str, now: float) -> Outcome:
        _required(name, "Missing service name")
        return self._read(
            request,
            topics.checks(name),
            lambda: [answers.catalogue_check(row) for row in self._state.catalogue.checks_named(name)],
        )

    def _health_state(self, request: Request, status: str, now: float) -> Outcome:
        _required(status, "Missing check state")
        return self._read(
            request,
            topics.state(status),
            lambda: [
                answers.catalogue_check(row)
                for row in self._state.catalogue.all_checks()
                if status in ("any", row.value.status)
            ],
        )

    # --- prepared queries: there are none

    def _prepared_queries(self, request: Request, _: str, now: float) -> Outcome:
        return self._read(request, topics.PREPARED_QUERIES, list)

    def _prepared_query(self, request: Request, _: str, now: float) -> Response:
        self._in_this_dc(request.get("dc"))
        raise RegistryError("Query not found", status=404)

    # --- status

    def _leader(self, request: Request, _: str, now: float) -> Response:
        self._in_this_dc(request.get("dc"))
        return _json(f"{self._state.node.address}:{SERVER_PORT}")

    def _peers(self, request: Request, _: str, now: float) -> Response:
        self._in_this_dc(request.get("dc"))
        return _json([f"{self._state.node.address}:{SERVER_PORT}"])

    # --- inside

    def _read(self, request: Request, topic: Topic, payload: Callable[[], Any]) -> Outcome:
        """Answer from the catalogue, at once or, with an ``index``, once *topic* has passed it.

        An index beyond the present one waits out its time, as in Consul: it comes from another life of this
        agent, and whoever sends it is told the present one.
        """
        if "stale" in request.query and "consistent" in request.query:
            raise RegistryError("Cannot specify ?stale with ?consistent, conflicting semantics.", status=400)
        index, wait = _index(request), _wait(request)
        self._in_this_dc(request.get("dc"))
        _no_filter(request)
        catalogue = self._state.catalogue

        def answer() -> Response:
            headers = {
                "X-Consul-Index": str(catalogue.index_of(topic)),
                "X-Consul-KnownLeader": "true",
                "X-Consul-LastContact": "0",
                "X-Consul-Query-Backend": "blocking-query",
                "X-Consul-Effective-Consistency": "consistent" if "consistent" in request.query else "leader",
            }
            return Response(200, payload(), headers=headers)

        if index == 0:
            return answer()
        return BlockingRead(topic, self._jittered(wait), lambda: catalogue.index_of(topic) > index, answer)

    def _jittered(self, wait: float) -> float:
        return wait + self._random() * wait * JITTER

    def _in_this_dc(self, dc: str) -> None:
        if dc not in ("", self._dc):
            raise RegistryError("No path to datacenter", status=500)


_AGENT_HEALTH: Final = ("passing", "warning", "critical", "maintenance")
"""From best to worst."""
_HEALTH_CODE: Final = {"passing": 200, "warning": 429}
"""Every other status is 503."""


def _json(payload: Any) -> Response:
    return Response(200, payload)


def _health(request: Request, code: int, text: str, payload: Any) -> Response:
    return _text(text, code) if request.get("format") == "text" else Response(code, payload)


def _required(argument: str, wrong: str) -> None:
    if not argument:
        raise RegistryError(wrong, status=400)


def _has_tags(instance: Instance, request: Request) -> bool:
    """Whether *instance* has every tag that is asked for; the case does not matter."""
    tags = {fold(tag) for tag in instance.service.value.tags}
    return all(fold(tag) in tags for tag in request.query.get("tag", ()))


def _no_filter(request: Request) -> None:
    # Passing over it would answer with more than was asked for.
    if request.get("filter"):
        raise RegistryError(
            "Failed to create boolean expression evaluator: "
            "portcall's embedded agent filters /v1/agent/services only",
            status=500,
        )


def _index(request: Request) -> int:
    text = request.get("index")
    if text and not re.fullmatch(r"[0-9]{1,20}", text):
        raise RegistryError("Invalid index", status=400)
    return int(text or 0)


def _wait(request: Request) -> float:
    """Return how long the client wants to wait, within Consul's bounds, in seconds."""
    try:
        wait = durations.from_text(request.get("wait") or "0")
    except ValueError as exc:
        raise RegistryError("Invalid wait time", status=400) from exc
    return min(wait, MAX_WAIT) if wait > 0 else DEFAULT_WAIT


def _boolean(text: str, wrong: str) -> bool:
    if text not in _TRUE | _FALSE:
        raise RegistryError(wrong, status=400)
    return text in _TRUE


def _enable(request: Request) -> bool:
    if "enable" not in request.query:
        raise RegistryError("Missing value for enable", status=400)
    text = request.get("enable")
    return _boolean(text, f'Invalid value for enable: "{text}"')
