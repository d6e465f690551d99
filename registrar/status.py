"""The check that the registrar itself keeps of a service: the state of its container.

    container                    status     output
    runs, no HEALTHCHECK         passing    running
    runs, health starting        warning    the healthcheck has not passed yet
    runs, healthy / unhealthy    passing / critical, with the healthcheck's own output
    got its stop signal          critical   stopping (signal 15)
    ended, and is kept           critical   exited with code 1, out of memory

A service has it when there is something to tell: its image has a HEALTHCHECK, the container is stopping
or ended and stays visible, or a heartbeat was asked for. It is a TTL check, and the registrar reports it.

Laws:
- Pure.
- Its definition does not depend on the status: a change of that is told, not registered again.
- ``starting`` is a warning: an instance in its first seconds is found, as it is without a HEALTHCHECK
  (``--ready`` registers it later instead).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from discovery.model import Address, Check, CheckID, Registration, ServiceID, Status
from registrar.containers import Container
from registrar.owner import MARKS
from registrar.rules import Rules

__all__ = ["Report", "check_id", "container_check", "describe_end", "failed", "kept", "report_on"]

FOREVER: Final = 10 * 365 * 86400.0
"""Seconds: the TTL where nobody asked for a heartbeat. The last known state stays when the registrar is
replaced by a newer one, as the registrations do."""
MAX_OUTPUT: Final = 4096  # characters; Consul keeps as much of a check's output by default
SIGNAL_BIT: Final = 128
"""Exit codes from here on are 128 + the signal that ended the process (POSIX shells, and Docker)."""


@dataclass(frozen=True, slots=True)
class Report:
    """What the agent is to be told of a TTL check."""

    service_id: ServiceID
    check_id: CheckID
    status: Status
    output: str


def check_id(service_id: ServiceID) -> CheckID:
    return CheckID(f"{service_id}:container")


def container_check(service_id: ServiceID, rules: Rules) -> Check:
    """Return the definition of the check."""
    return Check(id=check_id(service_id), name="Docker container", ttl=rules.heartbeat or FOREVER)


def report_on(container: Container, service_id: ServiceID, stopping: str) -> Report:
    """Return what is to be told of *container* now."""
    status, output = _status(container, stopping)
    return Report(service_id, check_id(service_id), status, output[:MAX_OUTPUT])


def _status(container: Container, stopping: str) -> tuple[Status, str]:
    state = container.state
    if not state.up:
        return "critical", describe_end(container)
    if stopping:
        return "critical", f"stopping ({stopping})"
    if state.health is None:
        return "passing", "running"
    match state.health.status:
        case "healthy":
            return "passing", state.health.output or "healthy"
        case "starting":
            return "warning", "the healthcheck has not passed yet"
        case status:
            return "critical", state.health.output or status


def describe_end(container: Container) -> str:
    """Say how the last life of *container* ended."""
    state = container.state
    memory = ", out of memory" if state.oom_killed else ""
    return f"exited with code {state.exit_code}{memory}"


def failed(container: Container) -> bool:
    """True when the last life of *container* ended by a fault of its own.

    An exit code with 128 in it is the work of a signal, mostly of ``docker stop`` (Registrator's rule);
    but the kernel's signal for want of memory is a crash.
    """
    state = container.state
    return state.oom_killed or bool(state.exit_code and not state.exit_code & SIGNAL_BIT)


def kept(previous: Collection[Registration], rules: Rules) -> tuple[Registration, ...]:
    """Return *previous* as they stay while their container does not serve: with this check alone.

    Any other check would ask an instance that is not there, and how it was defined no agent tells. The
    result is not signed.
    """
    return tuple(
        replace(
            registration,
            meta=MappingProxyType(
                {key: value for key, value in registration.meta.items() if key not in MARKS}
            ),
            # Consul adds those by itself; as ours they would look like a difference.
            tagged_addresses=MappingProxyType(
                {
                    name: address
                    for name, address in registration.tagged_addresses.items()
                    if address != Address(registration.address, registration.port)
                }
            ),
            checks=(container_check(registration.id, rules),),
        )
        for registration in sorted(previous, key=lambda registration: registration.id)
    )
