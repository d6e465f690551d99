"""What the agent has, as far as we know: read by every pass instead of the agent itself.

Laws:
- Memory only, no I/O; may be used from any thread.
- A survey replaces it by the truth; every write that succeeded is noted.
- An id that a pass is about to register is claimed in the moment the plan is made: two containers that
  want one id cannot both find it free.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from discovery.model import Registration, ServiceID
from registrar.containers import ContainerID
from registrar.desired import Desired
from registrar.owner import META_SPEC, Owner, container_of
from registrar.plan import Plan, plan

__all__ = ["Picture", "Row"]

Row = tuple[ServiceID, Mapping[str, str], int]
"""What is compared of a service in the catalogue: id, meta (which has the digest) and port."""


class Picture:
    """See the module."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner = Owner("", "")
        self._actual: dict[ServiceID, Registration] = {}
        """Everything, whoever it belongs to."""
        self._ours: dict[ContainerID, set[ServiceID]] = {}
        """The ids of what is ours, by container."""
        self._claims: dict[ServiceID, Registration] = {}

    def replace(self, actual: Mapping[ServiceID, Registration], owner: Owner) -> None:
        """Take *actual* for the truth; nobody may be writing."""
        with self._lock:
            self._owner = owner
            self._actual = dict(actual)
            self._ours = {}
            self._claims = {}
            for registration in actual.values():
                if owner.owns(registration):
                    self._ours.setdefault(container_of(registration), set()).add(registration.id)

    def plan(self, container: ContainerID, desired: Desired | None, *, claim: bool = False) -> Plan:
        """Plan one container's pass.

        Args:
            desired: None when the container is gone.
            claim: reserve what is to be registered until ``registered`` or ``release``.
        """
        registrations = desired.registrations if desired else ()
        with self._lock:
            relevant = {registration.id for registration in registrations} | self._ours.get(container, set())
            view: dict[ServiceID, Registration] = {}
            for service_id in relevant:
                current = self._claims.get(service_id) or self._actual.get(service_id)
                if current is not None:
                    view[service_id] = current
            made = plan(
                registrations,
                view,
                self._owner,
                containers={container},
                default_ids=desired.default_ids if desired else (),
            )
            if claim:
                self._claims.update({write.registration.id: write.registration for write in made.writes})
        return made

    def registered(self, registration: Registration) -> None:
        """Note a registration that the agent has accepted."""
        with self._lock:
            self._claims.pop(registration.id, None)
            self._forget(registration.id)
            self._actual[registration.id] = registration
            self._ours.setdefault(container_of(registration), set()).add(registration.id)

    def deregistered(self, service_id: ServiceID) -> None:
        """Note that the agent no longer has an id."""
        with self._lock:
            self._forget(service_id)

    def doubt(self, service_id: ServiceID) -> None:
        """Note that the agent no longer has all of what was registered: it is to be registered again.

        Not the same as ``deregistered``: what is there (a maintenance mode, say) is to be kept.
        """
        with self._lock:
            if known := self._actual.get(service_id):
                meta = {key: value for key, value in known.meta.items() if key != META_SPEC}
                self._actual[service_id] = replace(known, meta=MappingProxyType(meta))

    def release(self, service_id: ServiceID) -> bool:
        """Give up a claim, if it still stands: the agent did not take the registration."""
        with self._lock:
            return self._claims.pop(service_id, None) is not None

    def has(self, service_id: ServiceID) -> bool:
        """Whether somebody has the id, or is about to have it."""
        with self._lock:
            return service_id in self._actual or service_id in self._claims

    def containers(self) -> frozenset[ContainerID]:
        """Return the containers that something of ours stands for."""
        with self._lock:
            return frozenset(self._ours)

    def everything(self) -> Mapping[ServiceID, Registration]:
        """Return all that the agent has, whoever it belongs to."""
        with self._lock:
            return dict(self._actual)

    def of(self, container: ContainerID) -> tuple[Registration, ...]:
        """Return what is registered for *container*."""
        with self._lock:
            return tuple(self._actual[service_id] for service_id in self._ours.get(container, ()))

    def ours(self) -> Mapping[ServiceID, Registration]:
        """Return all that is ours."""
        with self._lock:
            return {service_id: self._actual[service_id] for ids in self._ours.values() for service_id in ids}

    def differs_from(self, rows: Iterable[Row], wanted: Collection[ServiceID] = ()) -> bool:
        """Compare with what the catalogue says of this node.

        Args:
            rows: all of the node's services.
            wanted: ids of somebody else's that a container of ours waits for. Nothing else of others
                counts.
        """
        with self._lock:
            missing = {service_id for ids in self._ours.values() for service_id in ids}
            missing.update(service_id for service_id in wanted if service_id in self._actual)
            for service_id, meta, port in rows:
                if service_id in missing:
                    missing.discard(service_id)
                    known = self._actual[service_id]
                    if (known.meta, known.port) != (meta, port):
                        return True
                elif self._owner.signed(meta):
                    return True
        return bool(missing)

    def _forget(self, service_id: ServiceID) -> None:
        gone = self._actual.pop(service_id, None)
        if gone is None:
            return
        container = container_of(gone)
        ids = self._ours.get(container)
        if ids is not None:
            ids.discard(service_id)
            if not ids:
                del self._ours[container]
