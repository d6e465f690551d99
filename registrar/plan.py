"""What to write so that the agent has what is desired: the difference, and nothing else.

    desired    actual                      becomes
    yes        absent                      register
    yes        ours, the same              nothing
    yes        ours, different             register again, with what differs
    yes        nobody's, and the same      register again: it is taken over from Registrator
    yes        somebody else's             refused
    no         ours                        deregister
    no         somebody else's             nothing

Laws:
- Pure.
- Only registrations that carry our owner mark are ever changed or removed. The one exception is an
  unmarked one with an id of the form ``owner:container:port``, and with the name and port that we would
  register: Registrator left it, and a host that changes from one to the other keeps its services.
  An id that a container chose for itself never takes anything over.
- Applying a plan and planning again gives an empty plan.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from discovery.model import Registration, ServiceID
from registrar.containers import ContainerID
from registrar.owner import META_OWNER, META_SPEC, Owner, container_of

__all__ = ["Plan", "Refusal", "Removal", "Write", "differences", "plan"]


@dataclass(frozen=True, slots=True)
class Write:
    """A registration to send."""

    registration: Registration
    changes: tuple[str, ...] = ()
    """The fields that differ from what the agent has; empty for a new one."""


@dataclass(frozen=True, slots=True)
class Removal:
    """A registration of ours that nothing stands behind any more."""

    registration: Registration


@dataclass(frozen=True, slots=True)
class Refusal:
    """A registration that is not sent, because its id belongs to somebody else."""

    registration: Registration
    holder: str
    """Who has the id, for people."""

    def __str__(self) -> str:
        return f"the id {self.registration.id!r} belongs to {self.holder}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, in this order: first make room, then register."""

    removals: tuple[Removal, ...] = ()
    writes: tuple[Write, ...] = ()
    refusals: tuple[Refusal, ...] = ()

    @property
    def in_step(self) -> bool:
        """True when there is nothing to write."""
        return not self.removals and not self.writes


def plan(
    desired: Iterable[Registration],
    actual: Mapping[ServiceID, Registration],
    owner: Owner,
    *,
    containers: Collection[ContainerID] | None = None,
    default_ids: Collection[ServiceID] = (),
) -> Plan:
    """Compare.

    Args:
        desired: signed registrations; of two with one id, the one that already holds it stays, else the
            first.
        actual: everything the agent has, ours or not.
        containers: plan only for these; what stands for another one is left alone and its ids are
            taken. None: all of them, which is how leftovers of containers long gone are found.
        default_ids: the desired ids that were made by rule, and so may be taken over from Registrator.
    """
    writes: list[Write] = []
    refusals: list[Refusal] = []
    kept: dict[ServiceID, Registration] = {}
    for registration in sorted(desired, key=lambda wanted: _claim(actual.get(wanted.id), wanted)):
        current = actual.get(registration.id)
        if other := kept.get(registration.id):
            refusals.append(Refusal(registration, f"container {container_of(other)[:12]}"))
            continue
        if current is not None and not owner.owns(current):
            adoptable = registration.id in default_ids and _unmarked_twin(current, registration)
            if not adoptable:
                refusals.append(Refusal(registration, _describe_holder(current)))
                continue
        elif current is not None and containers is not None and container_of(current) not in containers:
            refusals.append(Refusal(registration, f"container {container_of(current)[:12]}"))
            continue
        kept[registration.id] = registration
        if current is None:
            writes.append(Write(registration))
        elif changes := differences(current, registration):
            writes.append(Write(registration, changes))
    removals = [
        Removal(current)
        for service_id, current in actual.items()
        if service_id not in kept
        and owner.owns(current)
        and (containers is None or container_of(current) in containers)
    ]
    return Plan(tuple(removals), tuple(writes), tuple(refusals))


def differences(actual: Registration, desired: Registration) -> tuple[str, ...]:
    """Name the fields in which *actual* is not *desired*; checks are compared by the digest in Meta."""
    # Not ``mesh``: of a sidecar the agent does not tell. The digest has it.
    fields = ("name", "port", "address", "weights", "enable_tag_override")
    changed = [name for name in fields if getattr(actual, name) != getattr(desired, name)]
    # With EnableTagOverride others may set the tags (Consul: anti-entropy): theirs are not ours to undo.
    if not desired.enable_tag_override and actual.tags != desired.tags:
        changed.append("tags")
    mine = {key: value for key, value in desired.meta.items() if key != META_SPEC}
    if {key: value for key, value in actual.meta.items() if key != META_SPEC} != mine:
        changed.append("meta")
    # Consul adds tagged addresses of its own to a service that has an address.
    tagged = actual.tagged_addresses
    if any(tagged.get(name) != address for name, address in desired.tagged_addresses.items()):
        changed.append("tagged_addresses")
    if not changed and actual.meta.get(META_SPEC) != desired.meta.get(META_SPEC):
        changed.append("checks")
    return tuple(changed)


def _claim(current: Registration | None, wanted: Registration) -> int:
    """Rank who gets an id that several want: who has it already, then who has had it, then anybody.

    Without the first, two that take turns would be written again and again.
    """
    if current is None or container_of(current) != container_of(wanted):
        return 2
    return 1 if differences(current, wanted) else 0


def _unmarked_twin(current: Registration, wanted: Registration) -> bool:
    return META_OWNER not in current.meta and (current.name, current.port) == (wanted.name, wanted.port)


def _describe_holder(current: Registration) -> str:
    if owner := current.meta.get(META_OWNER):
        return f"the registrar {owner!r}"
    return "a service that no registrar made"
