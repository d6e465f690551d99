"""urllib3: a ``PoolManager`` whose hosts may be services.

    from discovery.integrations.urllib3 import PoolManager

    http = PoolManager()
    http.request("GET", "http://python-micro-service.service.consul/hello")

Laws:
- One plain urllib3 connection pool per instance does what urllib3 does; here is only the choice between them.
- ``retries`` is about answers (redirects, status codes). What happens when an instance cannot be reached or
  breaks off is a matter of ``attempts``, because urllib3 would ask the same one again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import urllib3
from urllib3 import BaseHTTPResponse, HTTPConnectionPool, HTTPHeaderDict, Retry, Timeout
from urllib3.connection import HTTPConnection
from urllib3.exceptions import (
    ClosedPoolError,
    ConnectTimeoutError,
    HTTPError,
    MaxRetryError,
    NewConnectionError,
    ProtocolError,
)

from discovery.client import Client
from discovery.errors import DiscoveryError
from discovery.integrations._balancer import (
    ATTEMPTS,
    CONNECT_TIMEOUT,
    DEFAULT_PORTS,
    Balancer,
    Fate,
    Target,
    port_of,
)
from discovery.integrations._pools import Pools
from discovery.model import Instance

__all__ = ["PoolManager"]


class PoolManager(urllib3.PoolManager):
    """A ``urllib3.PoolManager`` that balances requests to services.

    Args:
        num_pools: as urllib3's; a service with all its instances counts as one.
        headers: as urllib3's.
        client, attempts, services: see ``Options``.
        connection_pool_kw: as urllib3's; ``maxsize`` is per instance.
    """

    def __init__(
        self,
        num_pools: int = 10,
        headers: Mapping[str, str] | None = None,
        *,
        client: Client | None = None,
        attempts: int = ATTEMPTS,
        services: Collection[str] = (),
        **connection_pool_kw: Any,
    ) -> None:
        super().__init__(num_pools, headers, **connection_pool_kw)
        self._balancer = Balancer("urllib3", client=client, attempts=attempts, services=services)

    def clear(self) -> None:
        """Close all idle connections; those in use are closed when their responses end."""
        for key in self.pools.keys():  # noqa: SIM118 - cannot be iterated: keys() is its copy for other threads
            pool = self.pools.get(key)
            if isinstance(pool, _ServicePool):
                pool.close()
        super().clear()

    def _new_pool(
        self, scheme: str, host: str, port: int, request_context: dict[str, Any] | None = None
    ) -> HTTPConnectionPool:
        # urllib3: "This method is ... intended to be overridden for customization."
        target = self._balancer.target(host)
        if target is None:
            return super()._new_pool(scheme, host, port, request_context)
        settings = dict(self.connection_pool_kw if request_context is None else request_context)
        settings.setdefault("timeout", Timeout(connect=CONNECT_TIMEOUT))
        if scheme == "https":
            settings |= {"server_hostname": target.host, "assert_hostname": target.host}
        new_pool = super()._new_pool

        def make(_target: Target, instance: Instance) -> HTTPConnectionPool:
            return new_pool(scheme, instance.host, port_of(port, scheme, instance), dict(settings))

        retries, defaults = settings.get("retries"), settings.get("headers")
        pool = _ServicePool(host, port, retries=retries, headers=defaults)
        pool.balance(scheme, target, self._balancer, Pools(self._balancer, make, HTTPConnectionPool.close))
        return pool


class _ServicePool(HTTPConnectionPool):
    """Stands for a service where urllib3 expects the pool of a host; has no connections of its own."""

    _target: Target
    _balancer: Balancer
    _pools: Pools[HTTPConnectionPool]

    def balance(
        self, scheme: str, target: Target, balancer: Balancer, pools: Pools[HTTPConnectionPool]
    ) -> None:
        """Finish what ``__init__``, whose arguments are urllib3's, has begun."""
        self.scheme = scheme
        self._target = target
        self._balancer = balancer
        self._pools = pools

    def urlopen(  # type: ignore[override]  # the arguments that nothing is done with have no names here
        self,
        method: str,
        url: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        retries: Retry | bool | int | None = None,
        redirect: bool = True,
        **kw: Any,
    ) -> BaseHTTPResponse:
        """As ``HTTPConnectionPool.urlopen``; redirects are the manager's business, returned as they are."""
        named = HTTPHeaderDict(self.headers if headers is None else headers)
        standard = self.port == DEFAULT_PORTS[self.scheme]
        named.setdefault("Host", self.host if standard else f"{self.host}:{self.port}")
        retries = Retry.from_int(retries, redirect=redirect, default=self.retries)
        once = retries.new(connect=0, read=False, other=0)
        kw |= {"retries": once, "redirect": False, "assert_same_host": False}
        try:
            self._pools.follow(self._target)
            repeatable = body is None or isinstance(body, bytes | str)
            trial = self._balancer.trial(self._target, method, repeatable=repeatable)
            while True:
                try:
                    with trial.borrow() as instance, self._pools.lease(self._target, instance) as pool:
                        response = pool.urlopen(method, url, body, named, **kw)
                        trial.answered(response.status)
                        return response
                except HTTPError as exc:
                    if not trial.again(exc, _fate(exc)):
                        raise
        except DiscoveryError as exc:
            # What urllib3 raises for a name that cannot be resolved.
            reason = NewConnectionError(HTTPConnection(self.host), str(exc))
            raise MaxRetryError(self, url, reason) from exc

    def close(self) -> None:
        for pool in self._pools.close():
            pool.close()
        super().close()


def _fate(exc: HTTPError) -> Fate:
    reason = exc.reason if isinstance(exc, MaxRetryError) else exc
    # 1. ConnectTimeoutError first: a NewConnectionError is one too, and neither got as far as sending.
    if isinstance(reason, ConnectTimeoutError | NewConnectionError | ClosedPoolError):
        return Fate.UNSENT
    # 2. The connection was there and broke.
    if isinstance(reason, ProtocolError):
        return Fate.LOST
    # 3. Certificates, time-outs of the answer, redirects without end.
    return Fate.FINAL
