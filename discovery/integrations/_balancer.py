"""What the HTTP integrations decide: which hosts are services, which instance is next, what is repeated.

    host of a URL ──target──> Target ──trial──> Trial ──borrow──> instance, instance, ...
                                                  ▲
                                               again: another one, or is this failure final?

Laws:
- No I/O of its own; a ``borrow`` may wait for the first answer about a name, as ``Client.lookup`` does.
- A request that may have been carried out is repeated only when that does no harm.
- An instance is tried once for a request.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypedDict

from discovery import observe
from discovery.balance import RetryBudget
from discovery.client import Client, default_client
from discovery.errors import ConfigurationError, InvalidName, LookupFailed
from discovery.model import Instance, ServiceName
from discovery.names import fold, service_name
from discovery.service import Loan

__all__ = ["Balancer", "Fate", "Options", "Target", "Trial", "port_of"]

ATTEMPTS: Final = 3
"""Instances that one request is tried on. More would keep a caller waiting whose service is gone."""
MOST_RETRIES: Final = 100.0
"""Repetitions that can be saved up for a service. All requests under way on an instance fail together when
it dies: up to 100 of them with the connection limits that httpx and aiohttp have by default."""
CONNECT_TIMEOUT: Final = 5.0
"""Seconds to connect where the library would wait for ever: an instance whose machine is gone does not even
refuse, and the others would have answered long since."""
DEFAULT_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}  # RFC 9110 section 4.2, RFC 6455
FAULTS: Final = frozenset(range(500, 600)) - {501, 505}
"""Status codes that count as failures of the instance (RFC 9110 section 15.6). These two are no fault of its:
all the others would say the same to the same request."""
IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})  # RFC 9110 section 9.2.2


class Options(TypedDict, total=False):
    """Settings that all integrations take, as keyword arguments."""

    client: Client | None
    """Looks the instances up; the default client when None."""
    attempts: int
    """How many instances one request is tried on at most; 1 never repeats. 3 by default."""
    services: Collection[str]
    """Names of services that are hosts as they are: ``http://web/`` with ``services=["web"]``."""


class Fate(enum.Enum):
    """What became of a request that was not answered."""

    UNSENT = "no connection: the instance cannot have seen it"
    LOST = "the connection broke: it may have been carried out"
    FINAL = "no other instance would help: a time-out of the answer, a fault of the request"


@dataclass(frozen=True, slots=True)
class Target:
    """A service as the host of a URL names it."""

    host: str
    """As in the URL: what Host header and TLS go on saying."""
    name: ServiceName
    tags: tuple[str, ...] = ()
    dc: str | None = None


def port_of(given: int | None, scheme: str, instance: Instance) -> int:
    """Return the port to connect to: the one *given* in the URL, else the instance's.

    The scheme's own port counts as none: a URL is the same with and without it (RFC 3986 section 6.2.3),
    and most libraries drop it.
    """
    return instance.port if given is None or given == DEFAULT_PORTS.get(scheme) else given


class Balancer:
    """Chooses instances for the requests of one *library*; see ``Options`` for the rest.

    Raises:
        ConfigurationError: *attempts* is below 1, or a name in *services* cannot be a service's.
    """

    def __init__(
        self,
        library: str,
        *,
        client: Client | None = None,
        attempts: int = ATTEMPTS,
        services: Collection[str] = (),
    ) -> None:
        if attempts < 1:
            raise ConfigurationError(f"attempts={attempts!r} is not possible: give at least 1")
        self.library = library
        self.attempts = attempts
        self._client = client
        self._services = {fold(name): service_name(name, origin="services=") for name in services}
        self._budgets: dict[ServiceName, RetryBudget] = {}
        self._lock = threading.Lock()

    @property
    def client(self) -> Client:
        return self._client or default_client()

    def target(self, host: str | None) -> Target | None:
        """Return the service that *host* names, or None when it is an ordinary host.

        Services are ``[TAG.]NAME.service[.DATACENTRE].consul`` (Consul: "DNS interface"), with another
        domain where ``Config.domain`` says so, and the short names given as ``services``.
        """
        if not host:
            return None
        host = fold(host.rstrip("."))
        if short := self._services.get(host):
            return Target(host, short)
        domain = "." + fold(self.client.config.domain).strip(".")
        if not host.endswith(domain):
            return None
        dc: str | None = None
        match host.removesuffix(domain).split("."):
            case [*tags, name, "service"]:
                pass
            case [*tags, name, "service", dc]:
                pass
            case _:
                return None
        try:
            checked = service_name(name, origin=host)
        except InvalidName:
            return None  # for the library to refuse, in its own words
        # A tag may hold dots: all that stands before the name is one.
        return Target(host, checked, (".".join(tags),) if tags else (), dc)

    def trial(self, target: Target, method: str, *, repeatable: bool) -> Trial:
        """Begin a request to *target*.

        Args:
            repeatable: its body can be sent a second time.
        """
        with self._lock:
            budget = self._budgets.get(target.name)
            if budget is None:
                budget = self._budgets[target.name] = RetryBudget(time.monotonic, MOST_RETRIES)
            budget.deposit()
        return Trial(self, target, harmless=repeatable and method.upper() in IDEMPOTENT)

    def may_repeat(self, target: Target) -> bool:
        """Take one repetition from what *target*'s budget allows."""
        with self._lock:
            return self._budgets[target.name].withdraw()

    def after_fork(self) -> None:
        self._lock = threading.Lock()


class Trial:
    """One request: tried on one instance after another until one answers, or it must not be repeated."""

    def __init__(self, balancer: Balancer, target: Target, *, harmless: bool) -> None:
        self._balancer = balancer
        self._target = target
        self._harmless = harmless
        self._tried: list[Instance] = []
        self._failure: Exception | None = None
        self._loan: Loan | None = None

    @contextmanager
    def borrow(self) -> Iterator[Instance]:
        """Lend the next instance; how the ``with`` statement ends is how the attempt went.

        Raises:
            Exception: what the last attempt failed with, when no other instance is left.
            DiscoveryError: as ``Client.lookup``, at the first attempt.
        """
        target, client = self._target, self._balancer.client
        try:
            instance = client.lookup(target.name, tags=target.tags, dc=target.dc, exclude=tuple(self._tried))
        except LookupFailed:
            if self._failure is None:
                raise
            self._failure.add_note(f"tried {self._names()}; there is no other instance")
            raise self._failure from None
        self._tried.append(instance)
        self._loan = client._lend(instance)
        began_at = time.monotonic()
        error: BaseException | None = None
        with self._loan:
            try:
                yield instance
            except BaseException as exc:
                error = exc
                raise
            finally:
                seconds = time.monotonic() - began_at
                observe.attempted(lambda: self._event(instance, seconds, error))

    def answered(self, status: int) -> None:
        """The instance that was lent last has answered with *status*."""
        if status in FAULTS and self._loan is not None:
            self._loan.ok = False

    def again(self, exc: Exception, fate: Fate) -> bool:
        """Say whether to borrow another instance, after *exc* from this one."""
        if exc is self._failure:
            return False  # raised by borrow: nobody is left
        self._failure = exc
        if fate is Fate.FINAL or (fate is Fate.LOST and not self._harmless):
            return False
        if len(self._tried) >= self._balancer.attempts:
            exc.add_note(f"tried {self._names()}; attempts={self._balancer.attempts}")
            return False
        if not self._balancer.may_repeat(self._target):
            exc.add_note(f"tried {self._names()}; the retry budget is spent: a fifth of all requests")
            return False
        return True

    def _names(self) -> str:
        return ", ".join(map(str, self._tried))

    def _event(self, instance: Instance, seconds: float, error: BaseException | None) -> observe.Attempt:
        number = len(self._tried)
        return observe.Attempt(self._balancer.library, self._target.name, instance, number, seconds, error)
