"""Services that are where somebody says they are: from the environment, or from a file.

    DISCOVERY_PYTHON_MICRO_SERVICE=10.0.0.1:5000,10.0.0.2:5000
    DISCOVERY_STATIC=/etc/services.toml

The file is TOML when its name ends in ``.toml``, else JSON. Each service is a list of addresses, or of
tables where there is more to say:

    web = ["10.0.0.1:80", { address = "[2001:db8::1]:80", tags = ["v2"], meta = { zone = "a" }, weight = 3 }]

Laws:
- Nothing is read before a service is asked for. A variable is parsed when its service is: one that is
  meant for somebody else must not break the others.
- The file is looked at again whenever it is asked, and once a second while somebody waits: editing it is
  enough. While it cannot be read any more, what it said before holds.
- The environment beats the file.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from discovery.backends import read_once
from discovery.errors import ConfigurationError, RegistryUnavailable
from discovery.model import (
    FrozenDict,
    Node,
    NodeName,
    Query,
    Reply,
    ServiceEntry,
    ServiceID,
    ServiceName,
    ServiceQuery,
    Source,
    Weights,
)
from discovery.names import env_name, fold

__all__ = ["Static", "address"]

log: Final = logging.getLogger("discovery")

RESTAT: Final = 1.0  # seconds between two looks at the file
_KEYS: Final = frozenset({"address", "tags", "meta", "weight", "id"})

Entries = tuple[ServiceEntry, ...]


class Static:
    """A catalogue of fixed services.

    Args:
        variables: from a name as ``names.env_name`` writes it to ``host:port,host:port``.
        file: the path of the file, or None.
        dc: the data centre that all of this is in; other ones are not covered.
    """

    source: Source = "static"

    def __init__(
        self, variables: Mapping[str, str], file: str | None = None, *, dc: str | None = None
    ) -> None:
        self._variables = variables
        self._file = Path(file) if file else None
        self._dc = dc
        # The file's stamp, and what it said when it could last be read.
        self._read: tuple[object, Mapping[str, Any] | None] = (None, None)

    @property
    def where(self) -> str:
        return f"DISCOVERY_STATIC={self._file}" if self._file else "the environment"

    def covers(self, query: Query) -> bool:
        """Say whether *query* is answered here; every other source is nobody's business then.

        Raises:
            ConfigurationError: the file cannot be read or parsed.
        """
        return self._raw(query) is not None

    def connect(self) -> StaticReader:
        return StaticReader(self)

    def read(self, query: Query, *, timeout: float = 10.0) -> Reply:
        return read_once(self, query, timeout)

    def entries(self, query: Query) -> Entries | None:
        """Return the instances of the service that *query* asks for, None when it is not covered.

        Raises:
            ConfigurationError: what is said of it cannot be understood.
        """
        found = self._raw(query)
        if found is None or not isinstance(query, ServiceQuery):
            return None
        origin, raw = found
        if not isinstance(raw, list):
            raise ConfigurationError(f'{origin} is no list of instances: write ["host:port", ...]')
        return tuple(_entry(query.name, row, origin) for row in raw)

    def _raw(self, query: Query) -> tuple[str, Any] | None:
        if not isinstance(query, ServiceQuery) or query.dc != self._dc:
            return None
        variable = env_name(query.name)
        if text := self._variables.get(variable):
            return f"DISCOVERY_{variable}={text!r}", [part for part in text.replace(",", " ").split() if part]
        services = self._services()
        for name, raw in services.items():
            if fold(name) == fold(query.name):
                return f"{name!r} in {self._file}", raw
        return None

    def _services(self) -> Mapping[str, Any]:
        if self._file is None:
            return {}
        known, services = self._read
        stamp: object = None
        try:
            status = self._file.stat()
            stamp = status.st_mtime_ns, status.st_size, status.st_ino
            if stamp != known:
                services = _parse(self._file)
        except (OSError, ValueError) as exc:
            detail = (exc.strerror or "").lower() if isinstance(exc, OSError) else exc
            wrong = f"cannot use DISCOVERY_STATIC={str(self._file)!r}: {detail}"
            if services is None:
                raise ConfigurationError(wrong) from exc
            if stamp != known:  # somebody is editing it
                log.warning("%s; going on with what it said before", wrong)
        self._read = stamp, services
        return services or {}


class StaticReader:
    """Reads that wait for the file to change."""

    def __init__(self, static: Static) -> None:
        self._static = static
        self._interrupted = threading.Event()
        self._last: dict[Query, tuple[Entries, int]] = {}  # and the index that it was given

    def read(self, query: Query, *, index: int = 0, wait: float = 0.0, timeout: float = 10.0) -> Reply:
        deadline = time.monotonic() + (wait if index else 0.0)
        while True:
            if self._interrupted.is_set():
                raise RegistryUnavailable(f"reading {self._static.where} was interrupted")
            entries = self._static.entries(query)
            if entries is None:
                raise RegistryUnavailable(f"{self._static.where} says nothing about {query}")
            known, number = self._last.get(query, (None, 0))
            if entries != known:
                number += 1
                self._last[query] = entries, number
            left = deadline - time.monotonic()
            if number != index or left <= 0:
                return Reply(entries, number, source="static", where=self._static.where)
            self._interrupted.wait(min(left, RESTAT))

    def interrupt(self) -> None:
        self._interrupted.set()

    def close(self) -> None:
        """Nothing is open."""


def address(text: str, *, origin: str) -> tuple[str, int]:
    """Parse ``host:port`` or ``[v6]:port``.

    Raises:
        ConfigurationError: naming *text* and *origin*.
    """
    host, _, raw_port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    well_formed = bare and (":" not in bare or host != bare) and raw_port.isascii() and raw_port.isdigit()
    if not well_formed or not 0 < int(raw_port) <= 65535:
        raise ConfigurationError(
            f"{text!r} in {origin} is no address: write host:port, for example 10.0.0.1:5000 or [::1]:5000"
        )
    return bare, int(raw_port)


def _parse(file: Path) -> Mapping[str, Any]:
    text = file.read_text(encoding="utf-8")
    services = tomllib.loads(text) if file.suffix == ".toml" else json.loads(text)
    if not isinstance(services, dict):
        raise ValueError("it holds no table of services")
    return services


def _entry(name: ServiceName, raw: Any, origin: str) -> ServiceEntry:
    row = raw if isinstance(raw, dict) else {"address": raw}
    if unknown := set(row) - _KEYS:
        raise ConfigurationError(
            f"unknown keys {sorted(unknown)} in {origin}; there are {', '.join(sorted(_KEYS))}"
        )
    host, port = address(str(row.get("address", "")), origin=origin)
    tags, meta, weight = row.get("tags", []), row.get("meta", {}), row.get("weight", 1)
    if not (isinstance(tags, list) and isinstance(meta, dict) and type(weight) is int and weight >= 0):
        raise ConfigurationError(
            f"{row!r} in {origin} has wrong types: tags is a list, meta a table, weight a whole number"
        )
    return ServiceEntry(
        node=Node(NodeName(""), host),
        id=ServiceID(str(row.get("id") or f"{host}:{port}")),
        name=name,
        address=host,
        port=port,
        tags=tuple(map(str, tags)),
        meta=FrozenDict({str(key): str(value) for key, value in meta.items()}),
        weights=Weights(weight, weight),
    )
