"""Every error that portcall raises.

    DiscoveryError                       the root; catch it to catch all of ours
    ├── ConfigurationError               a setting is wrong; also a ValueError
    │   └── InvalidName                  a service name that cannot be one
    ├── RegistryError                    the registry answered, and the answer is no
    │   ├── AccessDenied                 401 or 403: token or policy; also a PermissionError
    │   ├── RequestRejected              any other 4xx: our request is at fault
    │   │   └── UnknownResource          404
    │   └── RegistryOverloaded           429: told to slow down
    ├── RegistryUnavailable              no answer, or a 5xx; also a ConnectionError
    │   └── RegistryTimeout              no answer in time; also a TimeoutError
    └── LookupFailed                     also a LookupError
        ├── ServiceNotFound              no such service (carries close names)
        └── NoHealthyInstances           it exists, and every instance fails its checks

Laws:
- Library errors are translated once, where the I/O is, with ``raise ... from``.
- A message is a sentence that names the value, where it came from and what would be right:
  command lines print it as it is.
- Every error can be pickled and copied: one raised in a worker process arrives whole in its parent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "AccessDenied",
    "Attempt",
    "ConfigurationError",
    "DiscoveryError",
    "InvalidName",
    "LookupFailed",
    "NoHealthyInstances",
    "RegistryError",
    "RegistryOverloaded",
    "RegistryTimeout",
    "RegistryUnavailable",
    "RequestRejected",
    "ServiceNotFound",
    "UnknownResource",
]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One source that was asked before the error was raised."""

    source: str
    """What was asked, for example ``http://127.0.0.1:8500``."""
    elapsed: float
    """Seconds until it answered or was given up."""
    error: str
    """Why it did not help."""

    def __str__(self) -> str:
        return f"{self.source}: {self.error} (after {self.elapsed:.2f} s)"


class DiscoveryError(Exception):
    """The root of every error that portcall raises.

    ``attempts`` says what was tried, in order; empty where nothing had to be asked.
    """

    def __init__(self, message: str, *, attempts: Sequence[Attempt] = ()) -> None:
        super().__init__(message)
        self.attempts: tuple[Attempt, ...] = tuple(attempts)

    def __reduce__(self) -> tuple[Any, ...]:
        # BaseException would call the class with the message alone, which those with more attributes
        # refuse; a process pool hangs on a result that it cannot unpickle.
        return _restore, (type(self), self.args, self.__dict__)


def _restore(kind: type[DiscoveryError], args: tuple[Any, ...], attributes: dict[str, Any]) -> DiscoveryError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(attributes)
    return error


class ConfigurationError(DiscoveryError, ValueError):
    """A setting is wrong. The message names it, its value, its origin and what would be right."""


class InvalidName(ConfigurationError):
    """A service name that no registry and no DNS name could carry."""


class RegistryError(DiscoveryError):
    """The registry answered, and the answer is no.

    ``status`` is the HTTP status code, ``body`` the start of what came with it.
    """

    def __init__(self, message: str, *, status: int, body: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.body = body


class AccessDenied(RegistryError, PermissionError):
    """The registry refused our token, or its policy does not allow this (HTTP 401, 403)."""


class RequestRejected(RegistryError):
    """The registry found fault with what we asked (HTTP 4xx); asking again will not help."""


class UnknownResource(RequestRejected):
    """The registry does not know what we named, a check or a service id for example (HTTP 404)."""


class RegistryOverloaded(RegistryError):
    """The registry asked us to slow down (HTTP 429)."""


class RegistryUnavailable(DiscoveryError, ConnectionError):
    """The registry could not be reached, broke off, or answered with HTTP 5xx."""


class RegistryTimeout(RegistryUnavailable, TimeoutError):
    """The registry did not answer in the time it was given."""


class LookupFailed(DiscoveryError, LookupError):
    """A lookup that was answered, but with nothing to connect to."""


class ServiceNotFound(LookupFailed):
    """No service has this name. ``close`` holds registered names that look like it."""

    def __init__(self, message: str, *, close: Sequence[str] = (), attempts: Sequence[Attempt] = ()) -> None:
        super().__init__(message, attempts=attempts)
        self.close: tuple[str, ...] = tuple(close)


class NoHealthyInstances(LookupFailed):
    """The service exists, and none of its instances may be used.

    ``failing`` holds one line per instance that was left out, with the check that failed.
    """

    def __init__(
        self, message: str, *, failing: Sequence[str] = (), attempts: Sequence[Attempt] = ()
    ) -> None:
        super().__init__(message, attempts=attempts)
        self.failing: tuple[str, ...] = tuple(failing)
