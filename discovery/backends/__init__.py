"""Where services come from, and where they are written: the seam between portcall and a registry.

    Catalogue ── connect() ──> Reader      read side: questions, with blocking reads on a Reader
    Registry                               write side: one agent's services and checks

A backend is found by the scheme of its URI in the entry-point group ``discovery.backends`` and is
never imported by name, so that a host without Consul never loads its client.

Laws:
- Backends raise ``discovery.errors`` only; library errors end where the I/O is.
- A Reader is used by one thread at a time; ``interrupt`` alone may be called from another.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from discovery.config import Config
from discovery.errors import ConfigurationError
from discovery.model import CheckID, Query, Registration, Reply, ServiceID, Source, Status

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["AgentInfo", "Backend", "Catalogue", "Reader", "Registry", "open_backend", "read_once"]

GROUP = "discovery.backends"


class Reader(Protocol):
    """One conversation with a catalogue, for reads that may block until something changes."""

    def read(self, query: Query, *, index: int = 0, wait: float = 0.0, timeout: float = 10.0) -> Reply:
        """Answer *query*.

        Args:
            index: 0 answers at once; else the read blocks until the catalogue passes this index.
            wait: seconds the registry may hold a blocking read.
            timeout: seconds for the whole call beyond *wait* (and its jitter of up to ``wait / 16``).

        Raises:
            RegistryUnavailable: no answer, a broken one, or HTTP 5xx.
            RegistryError: the registry refused the question.
        """

    def interrupt(self) -> None:
        """Make a ``read`` under way in another thread fail now, and every later one."""

    def close(self) -> None: ...


class Catalogue(Protocol):
    """The read side of a registry."""

    @property
    def source(self) -> Source:
        """What ``Instance.source`` says of what is read here."""

    @property
    def where(self) -> str:
        """The address, for people: ``http://127.0.0.1:8500``."""

    def connect(self) -> Reader:
        """Return a reader of its own; no I/O until it reads."""

    def read(self, query: Query, *, timeout: float = 10.0) -> Reply:
        """Answer *query* at once, on a pooled connection where there is one. Errors as ``Reader.read``."""


def read_once(catalogue: Catalogue, query: Query, timeout: float) -> Reply:
    """Answer *query* with a reader for this one question: ``Catalogue.read`` where nothing is pooled."""
    with closing(catalogue.connect()) as reader:
        return reader.read(query, timeout=timeout)


@dataclass(frozen=True, slots=True)
class AgentInfo:
    """Who the agent at the other end is (Consul: ``/v1/agent/self``)."""

    node: str
    dc: str
    version: str
    address: str
    """The address that it advertises; what an instance without an address of its own is reached at."""


class Registry(Protocol):
    """The write side: the services of one agent. Errors as ``Reader.read``."""

    def register(self, registration: Registration, *, new: bool = False) -> None:
        """Add or replace one instance, and its checks with it; idempotent. Its maintenance mode stays.

        Args:
            new: the agent is known to have nothing under this id, so nothing need be kept: one question less.
        """

    def deregister(self, service_id: ServiceID) -> None:
        """Remove one instance; an id that the agent does not know is not an error."""

    def registered(self) -> Mapping[ServiceID, Registration]:
        """Return what the agent has, by id, without the definitions of checks (agents do not tell them)."""

    def update_check(self, check_id: CheckID, status: Status, output: str = "") -> None:
        """Report a TTL check. Raises UnknownResource when the agent has forgotten it."""

    def maintenance(self, service_id: ServiceID, enable: bool, reason: str = "") -> None:
        """Take one instance out of answers, or back in. Raises UnknownResource for an unknown id."""

    def agent(self) -> AgentInfo:
        """Return who the agent is."""


class Backend(Catalogue, Registry, Protocol):
    """A registry that can be read and written, as ``open_backend`` returns it."""

    def close(self) -> None:
        """Close every connection; idempotent."""


def open_backend(uri: str, config: Config) -> Backend:
    """Return the backend that *uri* names: ``consul://127.0.0.1:8500``, for example. No I/O.

    Raises:
        ConfigurationError: no installed backend knows the scheme, or the URI is malformed.
    """
    scheme = uri.partition("://")[0].lower()
    entry = _ours().get(scheme) or _installed().get(scheme)
    if entry is None:
        known = ", ".join(f"{name}://" for name in sorted(_installed()))
        raise ConfigurationError(f"no backend for the registry URI {uri!r}; known are {known or 'none'}")
    backend: Backend = entry.load()(uri, config)
    return backend


@functools.cache
def _ours() -> Mapping[str, EntryPoint]:
    """Return the backends of this distribution by scheme.

    A first lookup waits for it, and a look at every other distribution would be a third of what it takes.
    """
    from importlib.metadata import (
        PackageNotFoundError,
        distribution,
    )  # loading it takes longer than all of ours

    try:
        found = distribution("portcall").entry_points
    except PackageNotFoundError:
        return {}  # part of an application's own distribution
    return {entry.name: entry for entry in found.select(group=GROUP)}


@functools.cache
def _installed() -> Mapping[str, EntryPoint]:
    """Return all installed backends by scheme."""
    from importlib.metadata import entry_points

    return {entry.name: entry for entry in entry_points(group=GROUP)}
