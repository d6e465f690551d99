"""requests: a ``Session`` whose hosts may be services.

    from discovery.integrations.requests import Session

    with Session() as session:
        session.get("http://python-micro-service.service.consul/hello", timeout=2)

A session that somebody else made takes part with ``mount(session)``.

Law: one plain ``HTTPAdapter`` per instance does what requests does; here is only the choice between them.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, Unpack
from urllib.parse import urlsplit

try:
    import requests
    from requests.adapters import DEFAULT_POOLSIZE, HTTPAdapter
    from requests.exceptions import ChunkedEncodingError, ConnectTimeout, SSLError
except ImportError as _exc:
    raise ImportError(
        "discovery.integrations.requests needs requests: pip install 'portcall[requests]'"
    ) from _exc
from urllib3.exceptions import ClosedPoolError, MaxRetryError, NewConnectionError, ProtocolError
from urllib3.util import Retry

from discovery.errors import DiscoveryError
from discovery.integrations._balancer import CONNECT_TIMEOUT, Balancer, Fate, Options, Target, port_of
from discovery.integrations._pools import Pools
from discovery.model import Instance

__all__ = ["Adapter", "Session", "mount"]


class Session(requests.Session):
    """A ``requests.Session`` that balances requests to services; keyword arguments as ``Options``."""

    def __init__(self, **options: Unpack[Options]) -> None:
        super().__init__()
        mount(self, **options)


def mount(session: requests.Session, **options: Unpack[Options]) -> Adapter:
    """Let *session* balance requests to services; keyword arguments as ``Options``.

    Replaces the session's adapters for ``http://`` and ``https://``. One that is mounted at a longer prefix
    keeps what it has.
    """
    adapter = Adapter(**options)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return adapter


class Adapter(HTTPAdapter):
    """A transport adapter for services and, as requests' own, for all other hosts.

    Args:
        pool_maxsize: idle connections kept per instance.
        max_retries: what ``HTTPAdapter`` does about an instance's answers, for example by status code.
            Connection failures are not its business: another instance is tried, see ``attempts``.
        pool_block: wait for one of *pool_maxsize* connections instead of opening more.
        options: see ``Options``.
    """

    def __init__(
        self,
        pool_maxsize: int = DEFAULT_POOLSIZE,
        max_retries: int | Retry = 0,
        pool_block: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(pool_maxsize=pool_maxsize, max_retries=max_retries, pool_block=pool_block)
        self._arguments: dict[str, Any] = {
            "pool_maxsize": pool_maxsize,
            "max_retries": max_retries,
            "pool_block": pool_block,
        }
        self._options = options
        self._balancer = Balancer("requests", **options)
        self._pools = Pools(
            self._balancer, partial(_InstanceAdapter, **self._arguments), _InstanceAdapter.retire
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # Sessions are pickled, and begin anew where they arrive.
        return partial(Adapter, **self._arguments, **self._options), ()

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> requests.Response:
        """As ``HTTPAdapter.send``; a body that is not streamed is read here, so that it is repeated too."""
        target = self._balancer.target(urlsplit(request.url or "").hostname)
        if target is None:
            return super().send(request, stream, timeout, verify, cert, proxies)
        if timeout is None:
            timeout = (CONNECT_TIMEOUT, None)
        try:
            return self._send(target, request, stream, timeout, verify, cert)
        except DiscoveryError as exc:
            raise requests.ConnectionError(exc, request=request) from exc

    def _send(
        self,
        target: Target,
        request: requests.PreparedRequest,
        stream: bool,
        timeout: Any,
        verify: Any,
        cert: Any,
    ) -> requests.Response:
        self._pools.follow(target)
        repeatable = request.body is None or isinstance(request.body, bytes | str)
        trial = self._balancer.trial(target, request.method or "", repeatable=repeatable)
        named = _with_host(request)
        while True:
            try:
                with trial.borrow() as instance, self._pools.lease(target, instance) as adapter:
                    response = adapter.send(named, stream, timeout, verify, cert, proxies={})
                    response.request = request
                    trial.answered(response.status_code)
                    if not stream:
                        response.content  # noqa: B018 - reads the body and keeps it
                    return response
            except (requests.ConnectionError, ChunkedEncodingError) as exc:
                if not trial.again(exc, _fate(exc)):
                    raise

    def close(self) -> None:
        """Close all connections; requests under way finish. The adapter stays usable."""
        super().close()
        for adapter in self._pools.close():
            adapter.retire()


class _InstanceAdapter(HTTPAdapter):
    """requests' own adapter, connected to one instance."""

    def __init__(self, target: Target, instance: Instance, **arguments: Any) -> None:
        super().__init__(**arguments)
        # The same instance again would fail again; which other one is the Trial's decision.
        self.max_retries = self.max_retries.new(connect=0, read=False)
        self._host = target.host
        self._instance = instance

    def retire(self) -> None:
        """Close idle connections now and those in use when their responses end."""
        pools = self.poolmanager.pools
        for key in pools.keys():  # noqa: SIM118 - cannot be iterated: keys() is its copy for other threads
            pool = pools.get(key)
            if pool is not None:
                pool.close()  # clear() alone would leave idle ones open until no response needs the pool

    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, verify: Any, cert: Any = None
    ) -> Any:
        where, settings = super().build_connection_pool_key_attributes(request, verify, cert)
        port = port_of(where["port"], where["scheme"], self._instance)
        names: dict[str, str] = {}
        if where["scheme"] == "https":
            names = {"server_hostname": self._host, "assert_hostname": self._host}
        return {**where, "host": self._instance.host, "port": port}, {**settings, **names}


def _with_host(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Return *request* with its URL's host as Host header, where it has none.

    A copy: requests carries the headers of a request over to what it is redirected to, which may be
    another host.
    """
    named = copy.copy(request)
    named.headers = request.headers.copy()
    named.headers.setdefault("Host", urlsplit(request.url or "").netloc.rpartition("@")[2])
    return named


def _fate(exc: requests.RequestException) -> Fate:
    if isinstance(exc, SSLError):
        return Fate.FINAL
    if isinstance(exc, ChunkedEncodingError):
        return Fate.LOST
    if isinstance(exc, ConnectTimeout):
        return Fate.UNSENT
    cause = exc.args[0] if exc.args else None
    if isinstance(cause, MaxRetryError):
        cause = cause.reason
    if isinstance(cause, NewConnectionError | ClosedPoolError):
        return Fate.UNSENT
    return Fate.LOST if isinstance(cause, ProtocolError | OSError) else Fate.FINAL
