"""Topics: what the answers to each kind of question depend on, and so who wakes when something changes.

A change touches the topics whose answers it alters; a blocking read waits on one topic:

    changed             nodes  node_services  names  instances  health  node_checks  checks  state
                               of N                  of S       of S    of N         of S    of X
    node N                x    x                     S on N     S on N
    service S of N             x               x     x          x
    check of N                                                  S on N  x                    x
    check of S on N                                             x       x            x       x

``agent_service`` is the agent's own view of one service, without the catalogue. ``mesh`` and
``PREPARED_QUERIES`` are of things that the embedded agent has none of; nothing touches them.

Laws:
- Pure.
- Names of nodes and services are folded here, so that no caller can forget to.
"""

from __future__ import annotations

from typing import Final

from discovery.names import fold

__all__ = [
    "NAMES",
    "NODES",
    "PREPARED_QUERIES",
    "Topic",
    "agent_service",
    "checks",
    "health",
    "instances",
    "mesh",
    "node_checks",
    "node_services",
    "state",
]

Topic = tuple[str, str]
"""(kind of question, what it asks about)."""

NODES: Final[Topic] = ("nodes", "")
"""``/v1/catalog/nodes``."""
NAMES: Final[Topic] = ("names", "")
"""``/v1/catalog/services``: wakes on any registration change, even of a port, and never on health."""

PREPARED_QUERIES: Final[Topic] = ("prepared_queries", "")
"""``/v1/query``."""


def node_services(node: str) -> Topic:
    """``/v1/catalog/node/<node>``."""
    return ("node_services", fold(node))


def node_checks(node: str) -> Topic:
    """``/v1/health/node/<node>``."""
    return ("node_checks", fold(node))


def instances(service: str) -> Topic:
    """``/v1/catalog/service/<service>``: without health."""
    return ("instances", fold(service))


def health(service: str) -> Topic:
    """``/v1/health/service/<service>``."""
    return ("health", fold(service))


def mesh(kind: str, service: str) -> Topic:
    """``/v1/health/connect/<service>`` and ``/v1/health/ingress/<service>``, by their *kind*."""
    return (kind, fold(service))


def checks(service: str) -> Topic:
    """``/v1/health/checks/<service>``."""
    return ("checks", fold(service))


def state(status: str) -> Topic:
    """``/v1/health/state/<status>``; ``any`` is every status."""
    return ("state", status)


def agent_service(service_id: str) -> Topic:
    """``/v1/agent/service/<id>``, which blocks on a hash instead of an index."""
    return ("agent_service", service_id)
