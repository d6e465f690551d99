"""Answers: what the agent and its catalogue hold, as the JSON of a current Consul.

Consul tells the same service in three forms, each with its own keys, and so must we:

    agent_service       /v1/agent/services, /v1/agent/service/<id>
    node_service        /v1/health/service/<name>, /v1/catalog/node/<node>
    catalogue_service   /v1/catalog/service/<name>

Laws:
- Pure.
- Where releases differ, the newest form; old clients read it, since Consul only ever adds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from discovery.agent.catalogue import CheckRow, Instance, Row
from discovery.model import Node, Registration

__all__ = [
    "agent_check",
    "agent_service",
    "catalogue_check",
    "catalogue_service",
    "content_hash",
    "health_entry",
    "node",
    "node_with_services",
]


def agent_service(service: Registration, dc: str) -> dict[str, Any]:
    return {
        "ID": service.id,
        "Service": service.name,
        "Tags": list(service.tags),
        "Meta": dict(service.meta),
        "Port": service.port,
        "Address": service.address,
        **_tagged_addresses(service, "TaggedAddresses"),
        "Weights": _weights(service),
        "EnableTagOverride": service.enable_tag_override,
        "Datacenter": dc,
    }


def content_hash(raw_service: Mapping[str, Any]) -> str:
    """Return what a client of ``/v1/agent/service/<id>`` waits for a change of."""
    text = json.dumps(raw_service, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def agent_check(check: CheckRow) -> dict[str, Any]:
    return catalogue_check(Row(check, 0, 0))  # Consul: the agent itself has no indexes


def catalogue_check(row: Row[CheckRow]) -> dict[str, Any]:
    check = row.value
    return {
        "Node": check.node,
        "CheckID": check.id,
        "Name": check.name,
        "Status": check.status,
        "Notes": check.notes,
        "Output": check.output,
        "ServiceID": check.service_id,
        "ServiceName": check.service_name,
        "ServiceTags": list(check.service_tags),
        "Type": check.type,
        "Interval": check.interval,
        "Timeout": check.timeout,
        "ExposedPort": 0,
        "Definition": dict(check.definition),
        "CreateIndex": row.created,
        "ModifyIndex": row.modified,
    }


def health_entry(instance: Instance, dc: str) -> dict[str, Any]:
    return {
        "Node": node(instance.node, dc),
        "Service": _node_service(instance.service),
        "Checks": [catalogue_check(row) for row in instance.checks],
    }


def catalogue_service(instance: Instance, dc: str) -> dict[str, Any]:
    at, service = instance.node.value, instance.service.value
    return {
        "ID": at.id,
        "Node": at.name,
        "Address": at.address,
        "Datacenter": dc,
        "TaggedAddresses": dict(at.tagged_addresses) or None,
        "NodeMeta": dict(at.meta) or None,
        "ServiceKind": "",
        "ServiceID": service.id,
        "ServiceName": service.name,
        "ServiceTags": list(service.tags),
        "ServiceAddress": service.address,
        **_tagged_addresses(service, "ServiceTaggedAddresses"),
        "ServiceWeights": _weights(service),
        "ServiceMeta": dict(service.meta),
        "ServicePort": service.port,
        "ServiceSocketPath": "",
        "ServiceEnableTagOverride": service.enable_tag_override,
        "ServiceProxy": _NO_PROXY,
        "ServiceConnect": {},
        "ServiceLocality": None,
        "CreateIndex": instance.service.created,
        "ModifyIndex": instance.service.modified,
    }


def node(row: Row[Node], dc: str) -> dict[str, Any]:
    at = row.value
    return {
        "ID": at.id,
        "Node": at.name,
        "Address": at.address,
        "Datacenter": dc,
        "TaggedAddresses": dict(at.tagged_addresses) or None,
        "Meta": dict(at.meta) or None,
        "CreateIndex": row.created,
        "ModifyIndex": row.modified,
    }


def node_with_services(row: Row[Node], services: Mapping[Any, Row[Registration]], dc: str) -> dict[str, Any]:
    return {
        "Node": node(row, dc),
        "Services": {service_id: _node_service(service) for service_id, service in services.items()},
    }


_NO_PROXY = {"Mode": "", "MeshGateway": {}, "Expose": {}}


def _node_service(row: Row[Registration]) -> dict[str, Any]:
    service = row.value
    return {
        "ID": service.id,
        "Service": service.name,
        "Tags": list(service.tags),
        "Address": service.address,
        **_tagged_addresses(service, "TaggedAddresses"),
        "Meta": dict(service.meta) or None,
        # Newer releases leave a port of 0 out of this form, and of this form only.
        **({"Port": service.port} if service.port else {}),
        "Weights": _weights(service),
        "EnableTagOverride": service.enable_tag_override,
        "Proxy": _NO_PROXY,
        "Connect": {},
        "PeerName": "",
        "CreateIndex": row.created,
        "ModifyIndex": row.modified,
    }


def _weights(service: Registration) -> dict[str, int]:
    return {"Passing": service.weights.passing, "Warning": service.weights.warning}


def _tagged_addresses(service: Registration, key: str) -> dict[str, Any]:
    if not service.tagged_addresses:
        return {}
    return {key: {tag: {"Address": at.host, "Port": at.port} for tag, at in service.tagged_addresses.items()}}
