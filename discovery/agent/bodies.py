"""Request bodies: JSON, read as strictly as Consul's Go reads it, into the values that the agent works on.

Go's decoder, which clients have learned to live with:

    keys            any case; an unknown one is refused; null is the zero value
    strings, ints   never converted: "80" is no port, 80.0 is no int
    durations       "10s" or a number of nanoseconds; "10" lacks its unit

Laws:
- Pure.
- Whatever is wrong is a ``RegistryError`` with the status and, nearly, the words of a current Consul.
- What Consul can do and this agent cannot is refused with a sentence that says so, never taken silently: a
  check that nobody runs would keep its instance out of every answer, or in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from discovery import durations
from discovery.agent.catalogue import CheckRow
from discovery.errors import RegistryError
from discovery.model import (
    Address,
    Check,
    CheckID,
    Node,
    NodeName,
    Registration,
    ServiceID,
    ServiceName,
    Status,
    Weights,
)

__all__ = [
    "CatalogueDeregistration",
    "CatalogueRegistration",
    "catalogue_deregistration_from_json",
    "catalogue_registration_from_json",
    "check_from_json",
    "registration_from_json",
    "report_from_json",
]

_MAX_META_PAIRS: Final = 64
_MAX_META_KEY: Final = 128  # characters
_MAX_META_VALUE: Final = 512  # characters
_META_KEY: Final = re.compile(r"[A-Za-z0-9_-]+\Z")
_MAX_WEIGHT: Final = 65535  # RFC 2782: 16 bits
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\Z")
_ANY_ADDRESS: Final = frozenset({"0.0.0.0", "::", "[::]"})
_STATUSES: Final[Mapping[str, Status]] = {"passing": "passing", "warning": "warning", "critical": "critical"}


def registration_from_json(body: bytes) -> Registration:
    """Read the body of ``/v1/agent/service/register``; ids and names that were left out are filled in.

    Raises:
        RegistryError: 400, or 500 for a script check.
    """
    raw = _service(_parse(body), "Alias")
    if not raw["Name"]:
        raise _bad("Missing service name")
    if raw["Address"] in _ANY_ADDRESS:
        raise _bad("Invalid service address")
    _check_meta(raw["Meta"], "Invalid Service Meta")
    service_id = ServiceID(raw["ID"] or raw["Name"])
    raw_checks = [raw_check for raw_check in [raw["Check"]] if any(raw_check.values())] + raw["Checks"]
    for raw_check in raw_checks:
        _validate_check(raw_check)
        if raw_check["Status"] and raw_check["Status"] not in _STATUSES:
            raise _bad("Status for checks must 'passing', 'warning', 'critical'")
    for field, what in _BEYOND.items():
        if raw[field]:
            raise _cannot(what)
    default_id = f"service:{service_id}"
    return Registration(
        id=service_id,
        name=ServiceName(raw["Name"]),
        port=raw["Port"],
        address=raw["Address"],
        tags=tuple(raw["Tags"]),
        meta=raw["Meta"],
        tagged_addresses=_addresses(raw["TaggedAddresses"]),
        weights=_agent_weights(raw["Weights"]),
        enable_tag_override=raw["EnableTagOverride"],
        checks=tuple(
            _check(
                raw_check,
                check_id=raw_check["CheckID"]
                or (default_id if len(raw_checks) == 1 else f"{default_id}:{number}"),
                name=raw_check["Name"] or f"Service '{raw['Name']}' check",
            )
            for number, raw_check in enumerate(raw_checks, 1)
        ),
    )


def check_from_json(body: bytes) -> tuple[Check, ServiceID]:
    """Read the body of ``/v1/agent/check/register``: the check, and its service or an empty id.

    Raises:
        RegistryError: 400, or 500 for a script check.
    """
    raw = _check_definition(_parse(body), "Alias")
    if not raw["Name"]:
        raise _bad("Missing check name")
    if raw["Status"] and raw["Status"] not in _STATUSES:
        raise _bad("Bad check status")
    _validate_check(raw)
    return _check(raw, check_id=raw["ID"] or raw["Name"], name=raw["Name"]), ServiceID(raw["ServiceID"])


def report_from_json(body: bytes) -> tuple[Status, str]:
    """Read the body of ``/v1/agent/check/update``: status and output.

    Raises:
        RegistryError: 400.
    """
    raw = _report(_parse(body), "checkUpdate")
    if raw["Status"] not in _STATUSES:
        raise _bad(f"Invalid check status: '{raw['Status']}'")
    return _STATUSES[raw["Status"]], raw["Output"]


@dataclass(frozen=True, slots=True)
class CatalogueRegistration:
    """The body of ``/v1/catalog/register``."""

    dc: str
    node: Node
    skip_node_update: bool
    """Leave the node as it is, where it exists."""
    service: Registration | None
    checks: tuple[CheckRow, ...]


def catalogue_registration_from_json(body: bytes) -> CatalogueRegistration:
    """Read the body of ``/v1/catalog/register``.

    Raises:
        RegistryError: 400 for JSON of the wrong form, 500 for values that Consul's servers refuse.
    """
    raw = _catalogue_registration(_parse(body), "RegisterRequest")
    if not raw["Node"]:
        raise _refused("Must provide node")
    if not raw["Address"] and not raw["SkipNodeUpdate"]:
        raise _refused("Must provide address if SkipNodeUpdate is not set")
    if raw["ID"] and not _UUID.match(raw["ID"]):
        why = "uuid string is wrong length" if len(raw["ID"]) != 36 else "uuid is improperly formatted"
        raise _refused(f"Bad node ID: {why}")
    raw_checks = [*([raw["Check"]] if raw["Check"] else []), *raw["Checks"]]
    return CatalogueRegistration(
        dc=raw["Datacenter"],
        node=Node(
            name=NodeName(raw["Node"]),
            address=raw["Address"],
            id=raw["ID"],
            tagged_addresses=raw["TaggedAddresses"],
            meta=raw["NodeMeta"],
        ),
        skip_node_update=raw["SkipNodeUpdate"],
        service=_catalogue_service(raw["Service"], raw["Node"]) if raw["Service"] else None,
        checks=tuple(_catalogue_check(raw_check, raw["Node"]) for raw_check in raw_checks),
    )


@dataclass(frozen=True, slots=True)
class CatalogueDeregistration:
    """The body of ``/v1/catalog/deregister``: without service and check the whole node goes."""

    dc: str
    node: NodeName
    service_id: ServiceID
    check_id: CheckID


def catalogue_deregistration_from_json(body: bytes) -> CatalogueDeregistration:
    """Read the body of ``/v1/catalog/deregister``.

    Raises:
        RegistryError: 400 for JSON of the wrong form, 500 without a node.
    """
    raw = _catalogue_deregistration(_parse(body), "DeregisterRequest")
    if not raw["Node"]:
        raise _refused("Must provide node")
    return CatalogueDeregistration(
        raw["Datacenter"], NodeName(raw["Node"]), ServiceID(raw["ServiceID"]), CheckID(raw["CheckID"])
    )


# --- checks ------------------------------------------------------------------------------------------

_INTERVAL_CHECKS: Final = ("ScriptArgs", "HTTP", "TCP", "UDP", "GRPC", "H2PING", "OSService")
_NOT_RUN: Final = {
    "UDP": "UDP checks",
    "GRPC": "gRPC checks",
    "H2PING": "HTTP/2 ping checks",
    "OSService": "checks of operating-system services",
    "AliasNode": "alias checks",
    "AliasService": "alias checks",
    "SuccessBeforePassing": "thresholds of check results",
    "FailuresBeforeWarning": "thresholds of check results",
    "FailuresBeforeCritical": "thresholds of check results",
    "OutputMaxSize": "check outputs of another size",
    "ProxyHTTP": "checks through a proxy",
    "ProxyGRPC": "checks through a proxy",
    "TCPUseTLS": "TCP checks over TLS",
    "TLSServerName": "checks for another TLS server name",
    "DisableRedirects": "HTTP checks that do not follow redirects",
}
"""What a check may ask for that this agent does not do."""
_BEYOND: Final = {
    "Kind": "kinds of services",
    "Proxy": "service mesh",
    "Connect": "service mesh",
    "SocketPath": "services on unix sockets",
    "Locality": "localities",
}
"""What a service may be that this agent does not know."""


def _validate_check(raw: Mapping[str, Any]) -> None:
    """Raise what Consul finds wrong with a check definition, then what this agent cannot do."""
    by_interval = any(raw[field] for field in _INTERVAL_CHECKS)
    alias = raw["AliasNode"] or raw["AliasService"]
    if raw["Interval"] > 0 and raw["TTL"] > 0:
        raise _bad("Invalid check: Interval and TTL cannot both be specified")
    if by_interval and raw["Interval"] <= 0:
        raise _bad(
            "Invalid check: Interval must be > 0 for Script, HTTP, H2PING, TCP, UDP or OSService checks"
        )
    if not by_interval and not alias and raw["TTL"] <= 0:
        raise _bad("Invalid check: TTL must be > 0 for TTL checks")
    for field, what in _NOT_RUN.items():
        if raw[field]:
            raise _cannot(what)
    if raw["ScriptArgs"]:
        raise RegistryError(
            "Scripts are disabled on this agent from remote calls; "
            "to enable, configure 'enable_script_checks' to true",
            status=500,
        )


def _check(raw: Mapping[str, Any], *, check_id: str, name: str) -> Check:
    return Check(
        id=CheckID(check_id),
        name=name,
        ttl=raw["TTL"] if raw["TTL"] > 0 else None,
        http=raw["HTTP"] or None,
        method=raw["Method"] or None,
        header={key: tuple(values) for key, values in raw["Header"].items()},
        body=raw["Body"] or None,
        # Of a check that names both, Consul runs the HTTP one.
        tcp=(raw["TCP"] or None) if not raw["HTTP"] else None,
        interval=raw["Interval"] or None,
        timeout=raw["Timeout"] if raw["Timeout"] > 0 else None,
        initial_status=_STATUSES.get(raw["Status"]),
        deregister_after=raw["DeregisterCriticalServiceAfter"] or None,
        tls_skip_verify=raw["TLSSkipVerify"],
        notes=raw["Notes"],
    )


# --- services and nodes ------------------------------------------------------------------------------


def _agent_weights(raw: Mapping[str, int] | None) -> Weights:
    if raw is None:
        return Weights()
    if raw["Passing"] < 1:
        raise _bad("Invalid Weights: Passing must be greater than 0")
    if raw["Warning"] < 0:
        raise _bad("Invalid Weights: Warning must be greater or equal than 0")
    if max(raw["Passing"], raw["Warning"]) > _MAX_WEIGHT:
        raise _bad(f"Invalid Weights: DNS Weight must be between 0 and {_MAX_WEIGHT}")
    return Weights(raw["Passing"], raw["Warning"])


def _check_meta(meta: Mapping[str, str], wrong: str, *, status: int = 400) -> None:
    if len(meta) > _MAX_META_PAIRS:
        why = f"Node metadata cannot contain more than {_MAX_META_PAIRS} key/value pairs"
        raise RegistryError(f"{wrong}: {why}", status=status)
    for key, value in meta.items():
        if not key:
            why = "Key cannot be blank"
        elif not _META_KEY.match(key):
            why = "Key contains invalid characters"
        elif len(key) > _MAX_META_KEY:
            why = f"Key is too long (limit: {_MAX_META_KEY} characters)"
        elif key.startswith("consul-"):
            why = "Key prefix 'consul-' is reserved for internal use"
        elif len(value.encode(errors="surrogatepass")) > _MAX_META_VALUE:
            why = f"Value is too long (limit: {_MAX_META_VALUE} characters)"
        else:
            continue
        raise RegistryError(
            f"{wrong}: Couldn't load metadata pair ('{key}', '{value}'): {why}", status=status
        )


def _addresses(raw: Mapping[str, Mapping[str, Any]]) -> dict[str, Address]:
    return {key: Address(value["Address"], value["Port"]) for key, value in raw.items()}


def _catalogue_service(raw: Mapping[str, Any], node: str) -> Registration:
    if not raw["Service"]:
        raise _refused("Must provide service name (Service.Service) when service ID is provided")
    if raw["Address"] in _ANY_ADDRESS:
        raise _refused("Invalid service address")
    service_id = raw["ID"] or raw["Service"]
    wrong = f"failed inserting service: Invalid Service Meta for node {node} and serviceID {service_id}"
    _check_meta(raw["Meta"], wrong, status=500)
    for field, what in _BEYOND.items():
        if raw[field]:
            raise _cannot(what)
    weights = raw["Weights"]
    return Registration(
        id=ServiceID(service_id),
        name=ServiceName(raw["Service"]),
        port=raw["Port"],
        address=raw["Address"],
        tags=tuple(raw["Tags"]),
        meta=raw["Meta"],
        tagged_addresses=_addresses(raw["TaggedAddresses"]),
        weights=Weights(weights["Passing"], weights["Warning"]) if weights else Weights(),
        enable_tag_override=raw["EnableTagOverride"],
    )


def _catalogue_check(raw: Mapping[str, Any], node: str) -> CheckRow:
    check_id = raw["CheckID"] or raw["Name"]
    if not check_id:
        raise _refused(f'failed inserting check on node "{node}": it has neither CheckID nor Name')
    if raw["Node"] and raw["Node"].lower() != node.lower():
        raise _refused(
            f"Node '{raw['Node']}' for check '{check_id}' doesn't match register request node '{node}'"
        )
    definition = raw["Definition"]
    kind = next((kind for kind in ("HTTP", "TCP") if definition.get(kind)), "").lower()
    return CheckRow(
        node=NodeName(node),
        id=CheckID(check_id),
        name=raw["Name"],
        status=raw["Status"] or "critical",
        notes=raw["Notes"],
        output=raw["Output"],
        service_id=ServiceID(raw["ServiceID"]),
        type=raw["Type"] or kind,
        interval=raw["Interval"],
        timeout=raw["Timeout"],
        definition=definition,
    )


# --- Go's JSON ---------------------------------------------------------------------------------------

_Reader = Callable[[Any, str], Any]
"""Reads raw JSON that stands at the given path; None (null, or nothing) gives the zero value."""


def _no_constant(text: str) -> Any:
    raise ValueError(f"invalid character {text[0]!r} looking for beginning of value")  # NaN, Infinity


_DECODER: Final = json.JSONDecoder(parse_constant=_no_constant)
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def _parse(body: bytes) -> Any:
    """Return the first JSON value of *body*; like Go's decoder, what follows it is not looked at."""
    text = body.decode(errors="replace").lstrip()
    if not text:
        raise _bad("Request decode failed: EOF")
    try:
        return _DECODER.raw_decode(text)[0]
    except (ValueError, RecursionError) as exc:
        raise _bad(f"Request decode failed: {exc}") from exc


def _bad(text: str) -> RegistryError:
    return RegistryError(text, status=400)


def _refused(text: str) -> RegistryError:
    return RegistryError(text, status=500)  # Consul's servers know no other


def _cannot(what: str) -> RegistryError:
    return _bad(
        f"portcall's embedded agent does not do {what}; it runs HTTP, TCP and TTL checks of plain services. "
        "Register this with a Consul agent"
    )


def _mismatch(raw: Any, path: str, wanted: str) -> RegistryError:
    kinds = ((bool, "bool"), (str, "string"), (list, "array"), (dict, "object"))
    kind = next((name for type_, name in kinds if isinstance(raw, type_)), "number")
    if kind == "number" and wanted == "int":
        kind = f"number {raw}"
    return _bad(
        f"Request decode failed: json: cannot unmarshal {kind} into Go struct field .{path} of type {wanted}"
    )


def _string(raw: Any, path: str) -> str:
    if raw is None:
        return ""
    if not isinstance(raw, str):
        raise _mismatch(raw, path, "string")
    return _SURROGATE.sub("\ufffd", raw)  # half of a pair is no text, and nothing could be encoded with it


def _int(raw: Any, path: str) -> int:
    if raw is None:
        return 0
    if isinstance(raw, bool) or not isinstance(raw, int) or not -(2**63) <= raw < 2**63:
        raise _mismatch(raw, path, "int")
    return raw


def _bool(raw: Any, path: str) -> bool:
    if raw is None:
        return False
    if not isinstance(raw, bool):
        raise _mismatch(raw, path, "bool")
    return raw


def _seconds(raw: Any, path: str) -> float:
    """Read a duration: Go's text, or a number of nanoseconds."""
    if isinstance(raw, str):
        try:
            return durations.from_text(raw)
        except ValueError as exc:
            raise _bad(f"Request decode failed: {exc}") from exc
    if isinstance(raw, int | float) and not isinstance(raw, bool):
        return min(raw, 2**63 - 1) / 1e9
    return 0.0  # Consul looks at strings and numbers, and passes over anything else


def _anything(raw: Any, path: str) -> Any:
    return raw


def _list_of(read: _Reader, wanted: str) -> _Reader:
    def read_list(raw: Any, path: str) -> list[Any]:
        if raw is None:
            return []
        if not isinstance(raw, list):
            raise _mismatch(raw, path, wanted)
        return [read(item, path) for item in raw]

    return read_list


def _map_of(read: _Reader, wanted: str) -> _Reader:
    def read_map(raw: Any, path: str) -> dict[str, Any]:
        if raw is None:
            return {}
        if not isinstance(raw, dict):
            raise _mismatch(raw, path, wanted)
        return {key: read(value, path) for key, value in raw.items()}

    return read_map


def _struct(wanted: str, fields: Mapping[str, _Reader], aliases: Mapping[str, str] | None = None) -> _Reader:
    """Return a reader of an object with these fields; keys are taken in any case, *aliases* in lower case."""
    names = {name.lower(): name for name in fields} | dict(aliases or {})

    def read_struct(raw: Any, path: str) -> dict[str, Any]:
        if raw is None:
            raw = {}
        if not isinstance(raw, dict):
            raise _mismatch(raw, path, wanted)
        values = {}
        for key, value in raw.items():
            name = names.get(key.lower())
            if name is None:
                raise _bad(f'Request decode failed: json: unknown field "{key}"')
            values[name] = fields[name](value, f"{path}.{name}")
        return {name: values[name] if name in values else read(None, path) for name, read in fields.items()}

    return read_struct


def _pointer(read: _Reader) -> _Reader:
    """Return a reader for which null stays None, where Go has a pointer."""
    return lambda raw, path: None if raw is None else read(raw, path)


_strings: Final = _list_of(_string, "[]string")
_string_map: Final = _map_of(_string, "map[string]string")
_address: Final = _struct("structs.ServiceAddress", {"Address": _string, "Port": _int})
_address_map: Final = _map_of(_address, "map[string]structs.ServiceAddress")

_CHECK: Final[Mapping[str, _Reader]] = {
    "Name": _string,
    "Notes": _string,
    "Status": _string,
    "ServiceID": _string,
    "TTL": _seconds,
    "HTTP": _string,
    "Method": _string,
    "Header": _map_of(_strings, "map[string][]string"),
    "Body": _string,
    "TCP": _string,
    "Interval": _seconds,
    "Timeout": _seconds,
    "DeregisterCriticalServiceAfter": _seconds,
    "TLSSkipVerify": _bool,
    "ScriptArgs": _strings,
    "DockerContainerID": _string,
    "Shell": _string,
    "UDP": _string,
    "GRPC": _string,
    "GRPCUseTLS": _bool,
    "H2PING": _string,
    "H2PingUseTLS": _bool,
    "OSService": _string,
    "AliasNode": _string,
    "AliasService": _string,
    "SuccessBeforePassing": _int,
    "FailuresBeforeWarning": _int,
    "FailuresBeforeCritical": _int,
    "OutputMaxSize": _int,
    "ProxyHTTP": _string,
    "ProxyGRPC": _string,
    "TCPUseTLS": _bool,
    "TLSServerName": _string,
    "DisableRedirects": _bool,
}
_CHECK_ALIASES: Final = {
    "args": "ScriptArgs",
    "script_args": "ScriptArgs",
    "deregister_critical_service_after": "DeregisterCriticalServiceAfter",
    "docker_container_id": "DockerContainerID",
    "service_id": "ServiceID",
    "tls_server_name": "TLSServerName",
    "tls_skip_verify": "TLSSkipVerify",
    "tcp_use_tls": "TCPUseTLS",
    "grpc_use_tls": "GRPCUseTLS",
}
_check_type: Final = _struct("structs.CheckType", {"CheckID": _string, **_CHECK}, _CHECK_ALIASES)
_check_definition: Final = _struct(
    "structs.CheckDefinition", {"ID": _string, "Token": _string, **_CHECK}, _CHECK_ALIASES
)
_report: Final = _struct("api.checkUpdate", {"Status": _string, "Output": _string})

_SERVICE: Final[Mapping[str, _Reader]] = {
    "ID": _string,
    "Port": _int,
    "Address": _string,
    "Tags": _strings,
    "Meta": _string_map,
    "TaggedAddresses": _address_map,
    "Weights": _pointer(_struct("structs.Weights", {"Passing": _int, "Warning": _int})),
    "EnableTagOverride": _bool,
    **dict.fromkeys(_BEYOND, _anything),
}
_service: Final = _struct(
    "structs.ServiceDefinition",
    {
        "Name": _string,
        "Check": _check_type,
        "Checks": _list_of(_check_type, "structs.CheckTypes"),
        "Token": _string,
        **_SERVICE,
    },
    {"enable_tag_override": "EnableTagOverride", "tagged_addresses": "TaggedAddresses"},
)

_INDEXES: Final[Mapping[str, _Reader]] = {"CreateIndex": _int, "ModifyIndex": _int}
_node_service: Final = _struct("structs.NodeService", {"Service": _string, **_SERVICE, **_INDEXES})
_health_check: Final = _struct(
    "structs.HealthCheck",
    {
        "Node": _string,
        "CheckID": _string,
        "Name": _string,
        "Status": _string,
        "Notes": _string,
        "Output": _string,
        "ServiceID": _string,
        "ServiceName": _string,
        "ServiceTags": _strings,
        "Type": _string,
        "Interval": _string,
        "Timeout": _string,
        "ExposedPort": _int,
        "Definition": _map_of(_anything, "structs.HealthCheckDefinition"),
        **_INDEXES,
    },
)
_catalogue_registration: Final = _struct(
    "structs.RegisterRequest",
    {
        "Datacenter": _string,
        "ID": _string,
        "Node": _string,
        "Address": _string,
        "TaggedAddresses": _string_map,
        "NodeMeta": _string_map,
        "SkipNodeUpdate": _bool,
        "Token": _string,
        "Service": _pointer(_node_service),
        "Check": _pointer(_health_check),
        "Checks": _list_of(_health_check, "structs.HealthChecks"),
    },
)
_catalogue_deregistration: Final = _struct(
    "structs.DeregisterRequest",
    {
        "Datacenter": _string,
        "Node": _string,
        "Address": _string,
        "ServiceID": _string,
        "CheckID": _string,
        "Token": _string,
    },
)
