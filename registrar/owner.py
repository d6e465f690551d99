"""Whose a registration is: the marks that the registrar leaves in a service's Meta.

    portcall-owner      who wrote it: the owner's name and the Docker engine it watches
    portcall-container  the container it stands for
    portcall-spec       a digest of everything that was registered

Laws:
- Pure.
- What carries no owner, or another one, is somebody else's.
- The digest covers the checks: an agent does not tell how a check is defined, so without it a changed
  check could not be told from an unchanged one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from discovery.model import Registration
from registrar.containers import ContainerID

__all__ = ["MARKS", "META_CONTAINER", "META_OWNER", "META_SPEC", "Owner", "container_of", "owner_name"]

META_OWNER: Final = "portcall-owner"
META_CONTAINER: Final = "portcall-container"
META_SPEC: Final = "portcall-spec"
MARKS: Final = frozenset({META_OWNER, META_CONTAINER, META_SPEC})

_BARE_CONTAINER_ID: Final = re.compile(r"[0-9a-f]{12}\Z")


@dataclass(frozen=True, slots=True)
class Owner:
    """One registrar: its name, which begins every service id, and the engine it watches.

    The engine's id makes two registrars that were given the same name two owners.
    """

    name: str
    engine: str

    def __str__(self) -> str:
        return f"{self.name}/{self.engine[:12]}" if self.engine else self.name

    def owns(self, registration: Registration) -> bool:
        return self.signed(registration.meta)

    def signed(self, meta: Mapping[str, str]) -> bool:
        """True when *meta* carries this owner's mark."""
        return meta.get(META_OWNER) == str(self)

    def sign(self, registration: Registration, container: ContainerID) -> Registration:
        """Return *registration* with the three marks in its Meta."""
        meta = {
            **registration.meta,
            META_OWNER: str(self),
            META_CONTAINER: container,
            META_SPEC: _digest(registration),
        }
        return replace(registration, meta=MappingProxyType(meta))


def container_of(registration: Registration) -> ContainerID:
    """Return the container that a registration of ours stands for."""
    return ContainerID(registration.meta.get(META_CONTAINER, ""))


def owner_name(given: str, hostname: str, engine_name: str) -> str:
    """Choose the name that ids begin with: *given*, else *hostname*, else Docker's name of the host.

    Docker names a container that was given no hostname by its own id. Such a name changes whenever the
    registrar's container is made anew, and with it every id would: then Docker's name is taken.
    """
    if given:
        return given
    if hostname and not _BARE_CONTAINER_ID.match(hostname):
        return hostname
    return engine_name or hostname


def _digest(registration: Registration) -> str:
    """Return 16 hexadecimal digits that change when anything in *registration* does."""
    text = repr(
        (
            registration.name,
            registration.port,
            registration.address,
            registration.tags,
            sorted(registration.meta.items()),
            sorted(registration.tagged_addresses.items()),
            registration.weights,
            registration.enable_tag_override,
            [
                replace(check, header=MappingProxyType(dict(sorted(check.header.items()))))
                for check in registration.checks
            ],
            # Only where there is one: a release that adds a field shall not write every service again.
            *([registration.mesh] if registration.mesh else []),
        )
    )
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
