"""What the agent itself knows: the services and checks registered with it, and when its clocks run out.

    local services and checks ──publish──> catalogue, under the agent's own node
                              <─reconcile─ (each minute: what differs there is put right)

Consul keeps the two apart, and so do we: the output of a check reaches the catalogue later than its status,
and what somebody else writes under our node does not stay.

Laws:
- Pure: the time is an argument (seconds of one monotonic clock), chance is a function given at the start.
- A change of a check's status is published at once. A change of its output alone waits for minutes
  (Consul: "check_update_interval"): a heartbeat with a new text must not wake every reader.
- A check that is registered again keeps its status and output: a client that re-registers on its start
  must not make a healthy instance flap.
- ``next_due`` is never later than the next thing that ``tick`` has to do.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from discovery import durations
from discovery.agent import topics
from discovery.agent.catalogue import Catalogue, CheckRow
from discovery.errors import RegistryError
from discovery.model import (
    NODE_MAINTENANCE,
    SERVICE_MAINTENANCE,
    Address,
    Check,
    CheckID,
    Node,
    Registration,
    ServiceID,
    ServiceName,
    Status,
)

__all__ = ["CHECK_UPDATE_INTERVAL", "State"]

CHECK_UPDATE_INTERVAL: Final = 300.0
"""Seconds (Consul: "check_update_interval"): a changed output waits for half of it up to one and a half."""
RECONCILE_INTERVAL: Final = 60.0
"""Seconds between two comparisons with the catalogue (Consul: "Anti-Entropy", for up to 128 nodes)."""
MIN_DEREGISTER_AFTER: Final = 60.0
"""Seconds; less is taken for this (Consul: "DeregisterCriticalServiceAfter")."""
MAX_OUTPUT: Final = 4096
"""Bytes of check output that are kept (Consul: "check_output_max_size")."""

SERVER_PORT: Final = 8300
"""Consul's RPC port. Nothing listens there; it is what ``consul`` and ``/v1/status/leader`` name."""
_CONSUL: Final = Registration(id=ServiceID("consul"), name=ServiceName("consul"), port=SERVER_PORT)
_MAINTENANCE_NOTE: Final = (
    "Maintenance mode is enabled for this {what}, but no reason was provided. This is a default message."
)


@dataclass(slots=True)
class _LocalCheck:
    """One check of this agent, and its clocks (seconds of the caller's clock; None: not running)."""

    row: CheckRow
    definition: Check | None = None
    """What to run; None for maintenance, which only is."""
    expires_at: float | None = None
    """When its TTL runs out."""
    publish_at: float | None = None
    """When an output that changed alone goes to the catalogue."""
    critical_since: float | None = None
    last_report: str = ""
    """What the last TTL report said, for the output at expiry."""

    def deregister_at(self) -> float | None:
        after = self.definition.deregister_after if self.definition else None
        if not after or not self.row.service_id or self.critical_since is None:
            return None
        return self.critical_since + max(after, MIN_DEREGISTER_AFTER)

    def next_due(self) -> float:
        clocks = (self.expires_at, self.publish_at, self.deregister_at())
        return min((at for at in clocks if at is not None), default=float("inf"))


class State:
    """One agent and the catalogue it writes to.

    Args:
        node: the agent's own node.
        random: uniform in [0, 1): spreads late publications, as Consul does.
        now: the present, in seconds of the clock that every later call uses.
        check_update_interval: seconds; 0 publishes outputs at once.
    """

    def __init__(
        self,
        node: Node,
        *,
        random: Callable[[], float],
        now: float,
        check_update_interval: float = CHECK_UPDATE_INTERVAL,
    ) -> None:
        self.node = node
        self.catalogue: Catalogue = Catalogue()
        self.services: dict[ServiceID, Registration] = {}
        self._checks: dict[CheckID, _LocalCheck] = {}
        self._serf = CheckRow(
            node=node.name,
            id=CheckID("serfHealth"),
            name="Serf Health Status",
            status="passing",
            output="Agent alive and reachable",
        )
        self._random = random
        self._check_update_interval = check_update_interval
        self._reconcile_at = now + RECONCILE_INTERVAL
        self._next_due = self._reconcile_at
        self.definitions: dict[CheckID, Check] = {}
        """The checks that somebody has to run: HTTP and TCP."""
        self.definitions_version: int = 0
        """Grows whenever ``definitions`` changes."""
        self.reconcile()

    # --- what is known

    def checks(self) -> dict[CheckID, CheckRow]:
        return {check_id: check.row for check_id, check in self._checks.items()}

    # --- registering

    def register(self, registration: Registration, now: float, *, replace_checks: bool = False) -> None:
        """Add or replace a service; its checks have their ids.

        Args:
            replace_checks: remove those it had and has no more, a maintenance mode among them (so Consul).
        """
        service = _with_default_addresses(replace(registration, checks=()))
        if self.services.get(service.id) != service:
            self.services[service.id] = service
            self.catalogue.touch(topics.agent_service(service.id))
        self._publish_service(service)
        if replace_checks:
            kept = {check.id for check in registration.checks}
            for check_id in self._checks_of(service.id):
                if check_id not in kept:
                    self._drop_check(check_id)
        for check in registration.checks:
            self._put_check(check, service, now)

    def deregister(self, service_id: ServiceID) -> None:
        """Remove a service and its checks.

        Raises:
            RegistryError: 404, the agent does not know it.
        """
        self._known_service(service_id)
        for check_id in self._checks_of(service_id):
            self._drop_check(check_id)
        del self.services[service_id]
        self.catalogue.drop_service(self.node.name, service_id)
        self.catalogue.touch(topics.agent_service(service_id))

    def register_check(self, check: Check, service_id: ServiceID, now: float) -> None:
        """Add or replace a check of the node, or of the service with *service_id* when it is not empty.

        Raises:
            RegistryError: 404, the agent does not know the service.
        """
        service = self.services.get(service_id)
        if service_id and service is None:
            raise RegistryError(f'ServiceID "{service_id}" does not exist', status=404)
        self._put_check(check, service, now)

    def deregister_check(self, check_id: CheckID) -> None:
        """Remove a check.

        Raises:
            RegistryError: 404, the agent does not know it.
        """
        self._known_check(check_id)
        self._drop_check(check_id)

    # --- what checks report

    def report_ttl(self, check_id: CheckID, status: Status, output: str, now: float) -> None:
        """Take a client's report on its TTL check; the TTL starts anew.

        Raises:
            RegistryError: 404, the agent does not know the check; 500, it has no TTL.
        """
        check = self._known_check(check_id)
        if check.definition is None or check.definition.ttl is None:
            raise RegistryError(f'CheckID "{check_id}" does not have associated TTL', status=500)
        check.last_report = _cut(output)
        check.expires_at = now + check.definition.ttl
        self._set_status(check, status, check.last_report, now)

    def report_run(self, ran: Check, status: Status, output: str, now: float) -> None:
        """Take the result of a check that somebody ran. One that was replaced meanwhile is ignored."""
        check = self._checks.get(ran.id)
        if check is not None and check.definition is ran:
            self._set_status(check, status, output, now)

    # --- maintenance

    def maintain_service(self, service_id: ServiceID, enable: bool, reason: str) -> None:
        """Take a service out of the answers, or back in; being so already is no error.

        Raises:
            RegistryError: 404, the agent does not know it.
        """
        service = self._known_service(service_id)
        check_id = CheckID(f"{SERVICE_MAINTENANCE}{service_id}")
        self._maintain(check_id, "Service Maintenance Mode", "service", service, enable, reason)

    def maintain_node(self, enable: bool, reason: str) -> None:
        """Take all services of this node out of the answers, or back in."""
        check_id = CheckID(NODE_MAINTENANCE)
        self._maintain(check_id, "Node Maintenance Mode", "node", None, enable, reason)

    def _maintain(
        self,
        check_id: CheckID,
        name: str,
        what: str,
        service: Registration | None,
        enable: bool,
        reason: str,
    ) -> None:
        if not enable:
            self._drop_check(check_id)
        elif check_id not in self._checks:
            row = CheckRow(
                node=self.node.name,
                id=check_id,
                name=name,
                notes=reason or _MAINTENANCE_NOTE.format(what=what),
                service_id=service.id if service else ServiceID(""),
                service_name=service.name if service else "",
                service_tags=service.tags if service else (),
                type="maintenance",
            )
            self._store(_LocalCheck(row))

    # --- clocks

    def next_due(self) -> float:
        """Return when ``tick`` is to be called at the latest."""
        return self._next_due

    def tick(self, now: float) -> None:
        """Do what *now* is the time for: expiries, late outputs, dead instances, the comparison."""
        for check in list(self._checks.values()):
            if self._checks.get(check.row.id) is not check:
                continue  # went with its service, a moment ago
            if check.expires_at is not None and check.expires_at <= now:
                check.expires_at = None
                said = f" (last output before timeout follows): {check.last_report}"
                expired = f"TTL expired{said if check.last_report else ''}"
                self._set_status(check, "critical", expired, now)
            if check.publish_at is not None and check.publish_at <= now:
                self._publish(check)
            if (at := check.deregister_at()) is not None and at <= now:
                self.deregister(check.row.service_id)
        if self._reconcile_at <= now:
            self.reconcile()
            self._reconcile_at = now + RECONCILE_INTERVAL
        self._next_due = min([self._reconcile_at, *(check.next_due() for check in self._checks.values())])

    def reconcile(self) -> None:
        """Make the catalogue's view of this node what the agent knows, except for outputs not due yet."""
        name, catalogue = self.node.name, self.catalogue
        catalogue.put_node(self.node)
        services = {_CONSUL.id: _CONSUL, **self.services}
        for service_id in catalogue.services_of(name).keys() - services.keys():
            catalogue.drop_service(name, service_id)
        for service in services.values():
            catalogue.put_service(name, service)
        catalogue.put_check(self._serf)
        there = {row.value.id: row.value for row in catalogue.checks_of(name)}
        for check_id in there.keys() - self._checks.keys() - {self._serf.id}:
            catalogue.drop_check(name, check_id)
        for check_id, check in self._checks.items():
            if check_id not in there or (check.publish_at is None and there[check_id] != check.row):
                catalogue.put_check(check.row)

    # --- inside

    def _known_service(self, service_id: ServiceID) -> Registration:
        try:
            return self.services[service_id]
        except KeyError:
            raise RegistryError(
                f'Unknown service ID "{service_id}". '
                "Ensure that the service ID is passed, not the service name.",
                status=404,
            ) from None

    def _known_check(self, check_id: CheckID) -> _LocalCheck:
        try:
            return self._checks[check_id]
        except KeyError:
            raise RegistryError(
                f'Unknown check ID "{check_id}". Ensure that the check ID is passed, not the check name.',
                status=404,
            ) from None

    def _checks_of(self, service_id: ServiceID) -> list[CheckID]:
        return [key for key, check in self._checks.items() if check.row.service_id == service_id]

    def _put_check(self, definition: Check, service: Registration | None, now: float) -> None:
        old = self._checks.get(definition.id)
        row = CheckRow(
            node=self.node.name,
            id=definition.id,
            name=definition.name,
            notes=definition.notes,
            status=old.row.status if old else definition.initial_status or "critical",
            output=old.row.output if old else "",
            service_id=service.id if service else ServiceID(""),
            service_name=service.name if service else "",
            service_tags=service.tags if service else (),
            type="ttl" if definition.ttl else "http" if definition.http else "tcp",
            interval=durations.to_text(definition.interval) if definition.interval else "",
            timeout=durations.to_text(definition.timeout) if definition.timeout else "",
        )
        # An equal definition stays the same object: whoever runs it is not told to begin anew.
        kept = old.definition if old and old.definition == definition else definition
        # The clock of a critical check that is registered again starts over, so that a service which comes
        # back is not removed for what its predecessor did.
        since = now if old and row.status == "critical" else None
        expires_at = now + definition.ttl if definition.ttl else None
        self._store(_LocalCheck(row, kept, expires_at=expires_at, critical_since=since))

    def _store(self, check: _LocalCheck) -> None:
        self._checks[check.row.id] = check
        self._have_run(check.row.id, check.definition)
        self._watch_clocks_of(check)
        self._publish(check)

    def _drop_check(self, check_id: CheckID) -> None:
        if self._checks.pop(check_id, None) is not None:
            self._have_run(check_id, None)
            self.catalogue.drop_check(self.node.name, check_id)

    def _have_run(self, check_id: CheckID, definition: Check | None) -> None:
        if definition is not None and definition.ttl is not None:
            definition = None
        if self.definitions.get(check_id) is definition:
            return
        if definition is None:
            del self.definitions[check_id]
        else:
            self.definitions[check_id] = definition
        self.definitions_version += 1

    def _set_status(self, check: _LocalCheck, status: Status, output: str, now: float) -> None:
        if status != "critical":
            check.critical_since = None
        elif check.critical_since is None:
            check.critical_since = now
        if (status, output) != (check.row.status, check.row.output):
            late = status == check.row.status and self._check_update_interval > 0
            check.row = replace(check.row, status=status, output=output)
            if not late:
                self._publish(check)
            elif check.publish_at is None:
                check.publish_at = now + self._check_update_interval * (0.5 + self._random())
        self._watch_clocks_of(check)

    def _publish_service(self, service: Registration) -> None:
        self.catalogue.put_node(self.node)
        self.catalogue.put_service(self.node.name, service)

    def _publish(self, check: _LocalCheck) -> None:
        check.publish_at = None
        # Its service and node with it: somebody may have deregistered either in the catalogue.
        if check.row.service_id:
            self._publish_service(self.services[check.row.service_id])
        self.catalogue.put_node(self.node)
        self.catalogue.put_check(check.row)

    def _watch_clocks_of(self, check: _LocalCheck) -> None:
        # Never raised here: a deadline that moved away costs one early tick, not a scan for each heartbeat.
        self._next_due = min(self._next_due, check.next_due())


def _with_default_addresses(service: Registration) -> Registration:
    """Return *service* as Consul's agents complete it: an IP address is its LAN and WAN address too."""
    try:
        ip = ipaddress.ip_address(service.address)
    except ValueError:
        return service  # empty, or a host name
    version = 4 if ip.version == 4 or ip.ipv4_mapped else 6
    at = Address(service.address, service.port)
    defaults = {f"lan_ipv{version}": at, f"wan_ipv{version}": at}
    return replace(service, tagged_addresses={**defaults, **service.tagged_addresses})


def _cut(output: str) -> str:
    """Return *output*, without what is beyond ``MAX_OUTPUT`` bytes."""
    raw = output.encode()
    if len(raw) <= MAX_OUTPUT:
        return output
    kept = raw[:MAX_OUTPUT].decode(errors="ignore")
    return f"{kept} ... (captured {MAX_OUTPUT} of {len(raw)} bytes)"
