"""Find the instances of a service by its name.

    import discovery

    host, port = discovery.lookup("python-micro-service")

Importing this does no I/O and loads nothing but this file: the client is loaded when a name from
it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from discovery.aio import AsyncClient, AsyncWatch
    from discovery.balance import Strategy
    from discovery.client import Client, Watch, call, lookup, lookup_all, register, wait_for, watch
    from discovery.config import Config
    from discovery.errors import (
        AccessDenied,
        ConfigurationError,
        DiscoveryError,
        InvalidName,
        LookupFailed,
        NoHealthyInstances,
        RegistryTimeout,
        RegistryUnavailable,
        ServiceNotFound,
    )
    from discovery.model import Instance, Snapshot

__all__ = [
    "lookup",
    "lookup_all",
    "watch",
    "wait_for",
    "call",
    "register",
    "Client",
    "AsyncClient",
    "AsyncWatch",
    "Config",
    "Instance",
    "Snapshot",
    "Strategy",
    "Watch",
    "DiscoveryError",
    "ConfigurationError",
    "InvalidName",
    "RegistryUnavailable",
    "RegistryTimeout",
    "AccessDenied",
    "LookupFailed",
    "ServiceNotFound",
    "NoHealthyInstances",
]

_HOMES = {
    "discovery.aio": ("AsyncClient", "AsyncWatch"),
    "discovery.balance": ("Strategy",),
    "discovery.client": ("Client", "Watch", "call", "lookup", "lookup_all", "register", "wait_for", "watch"),
    "discovery.config": ("Config",),
    "discovery.model": ("Instance", "Snapshot"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'discovery' has no attribute {name!r}")
    value = getattr(import_module(_HOME.get(name, "discovery.errors")), name)
    globals()[name] = value  # the next use finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
