# Made from httpx.py by `python3 tools/make-httpx2`: change that one.
"""httpx2: transports whose hosts may be services.

    import httpx2
    from discovery.integrations.httpx2 import Transport

    with httpx2.Client(mounts={"all://*.service.consul": Transport()}) as client:
        client.get("http://python-micro-service.service.consul/hello")

``AsyncTransport`` is the same for an ``AsyncClient`` (with asyncio). Mounted as above, or given as
``transport=``: hosts that are no services go through as usual.

Laws:
- One plain httpx2 transport per instance does what httpx2 does; here is only the choice between them.
- httpx2 closes a transport together with the connections in use, so one that is retired is closed when its
  last response ends; until then its idle connections stay too.
- An answer's body is the reader's: when it breaks off half-way, nobody repeats the request.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Final, Unpack, cast

try:
    import httpx2
except ImportError as _exc:
    raise ImportError("discovery.integrations.httpx2 needs httpx2: pip install 'portcall[httpx2]'") from _exc

from discovery.errors import DiscoveryError
from discovery.integrations._balancer import Balancer, Fate, Options, Target, Trial, port_of
from discovery.integrations._pools import Pools
from discovery.model import Instance

__all__ = ["AsyncTransport", "Transport"]

_LIMITS: Final = httpx2.Limits(max_connections=100, max_keepalive_connections=20)  # httpx2's own defaults


class Transport(httpx2.BaseTransport):
    """Balances requests to services.

    Args:
        verify: as ``httpx2.Client``'s; a mounted transport does not take it over from its client.
        http2: speak HTTP/2 where an instance offers it (needs ``httpx2[http2]``).
        limits: connections per instance.
        options: see ``Options``.
    """

    def __init__(
        self,
        *,
        verify: ssl.SSLContext | str | bool = True,
        http2: bool = False,
        limits: httpx2.Limits = _LIMITS,
        **options: Unpack[Options],
    ) -> None:
        context = httpx2.create_ssl_context(verify)  # once for all: loading the certificates takes 10 ms

        def new() -> httpx2.HTTPTransport:
            return httpx2.HTTPTransport(verify=context, http2=http2, limits=limits)

        self._balancer = Balancer("httpx2", **options)
        self._pools = Pools(self._balancer, lambda target, instance: _Pool(new()), _Pool.retire)
        self._other_hosts = new()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        target = self._balancer.target(request.url.host)
        if target is None:
            return self._other_hosts.handle_request(request)
        try:
            self._pools.follow(target)
            trial = _trial(self._balancer, target, request)
            while True:
                try:
                    with trial.borrow() as instance, self._pools.lease(target, instance) as pool:
                        response = pool.send(_addressed(request, target, instance))
                        trial.answered(response.status_code)
                        return response
                except httpx2.TransportError as exc:
                    if not trial.again(exc, _fate(exc)):
                        raise
        except DiscoveryError as exc:
            raise httpx2.ConnectError(str(exc), request=request) from exc

    def close(self) -> None:
        """Close all connections, also those in use. The transport stays usable."""
        self._other_hosts.close()
        for pool in self._pools.close():
            pool.close()


class AsyncTransport(httpx2.AsyncBaseTransport):
    """As ``Transport``, for an ``httpx2.AsyncClient`` that runs in asyncio."""

    def __init__(
        self,
        *,
        verify: ssl.SSLContext | str | bool = True,
        http2: bool = False,
        limits: httpx2.Limits = _LIMITS,
        **options: Unpack[Options],
    ) -> None:
        context = httpx2.create_ssl_context(verify)

        def new() -> httpx2.AsyncHTTPTransport:
            return httpx2.AsyncHTTPTransport(verify=context, http2=http2, limits=limits)

        self._balancer = Balancer("httpx2", **options)
        self._pools = Pools(self._balancer, lambda target, instance: _AsyncPool(new()), _AsyncPool.retire)
        self._other_hosts = new()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        target = self._balancer.target(request.url.host)
        if target is None:
            return await self._other_hosts.handle_async_request(request)
        try:
            if not self._pools.ready(target):
                await asyncio.to_thread(self._pools.follow, target)
            trial = _trial(self._balancer, target, request)
            while True:
                try:
                    with trial.borrow() as instance, self._pools.lease(target, instance) as pool:
                        response = await pool.send(_addressed(request, target, instance))
                        trial.answered(response.status_code)
                        return response
                except httpx2.TransportError as exc:
                    if not trial.again(exc, _fate(exc)):
                        raise
        except DiscoveryError as exc:
            raise httpx2.ConnectError(str(exc), request=request) from exc

    async def aclose(self) -> None:
        """Close all connections, also those in use. The transport stays usable."""
        await self._other_hosts.aclose()
        for pool in self._pools.close():
            await pool.aclose()


def _trial(balancer: Balancer, target: Target, request: httpx2.Request) -> Trial:
    # Any other stream is used up by the first attempt, or cannot be told.
    repeatable = isinstance(request.stream, httpx2.ByteStream)
    return balancer.trial(target, request.method, repeatable=repeatable)


def _addressed(request: httpx2.Request, target: Target, instance: Instance) -> httpx2.Request:
    """Return *request* with its URL at *instance*; httpx2 has put the name into the Host header."""
    port = port_of(request.url.port, request.url.scheme, instance)
    return httpx2.Request(
        request.method,
        request.url.copy_with(host=instance.host, port=port),
        headers=request.headers,
        stream=request.stream,
        extensions={"sni_hostname": target.host, **request.extensions},
    )


def _fate(exc: httpx2.TransportError) -> Fate:
    if isinstance(exc, httpx2.ConnectError | httpx2.ConnectTimeout):
        return Fate.UNSENT
    if isinstance(exc, httpx2.NetworkError | httpx2.RemoteProtocolError):
        return Fate.LOST
    return Fate.FINAL


class _Pool:
    """The transport of one instance, and how many responses still come through it."""

    def __init__(self, transport: httpx2.HTTPTransport) -> None:
        self._transport = transport
        self._lock = threading.Lock()
        self._under_way = 0
        self._retired = False

    def send(self, request: httpx2.Request) -> httpx2.Response:
        with self._lock:
            # One that was retired a moment ago opens again for this request and is closed at its end.
            self._under_way += 1
        try:
            response = self._transport.handle_request(request)
        except BaseException:
            self.ended()
            raise
        response.stream = _Body(cast(httpx2.SyncByteStream, response.stream), self)
        return response

    def ended(self) -> None:
        with self._lock:
            self._under_way -= 1
            last = self._retired and not self._under_way
        if last:
            self.close()

    def retire(self) -> None:
        with self._lock:
            self._retired = True
            idle = not self._under_way
        if idle:
            self.close()

    def close(self) -> None:
        self._transport.close()


class _Body(httpx2.SyncByteStream):
    """A response's body that tells its pool when it is closed."""

    def __init__(self, stream: httpx2.SyncByteStream, pool: _Pool) -> None:
        self._stream = stream
        self._pool: _Pool | None = pool

    def __iter__(self) -> Iterator[bytes]:
        yield from self._stream

    def close(self) -> None:
        pool, self._pool = self._pool, None
        try:
            self._stream.close()
        finally:
            if pool is not None:
                pool.ended()


class _AsyncPool:
    """As ``_Pool``; all but ``retire`` happens in one event loop, which is its lock."""

    def __init__(self, transport: httpx2.AsyncHTTPTransport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._under_way = 0
        self._retired = False
        self._closing: asyncio.Task[None] | None = None

    async def send(self, request: httpx2.Request) -> httpx2.Response:
        self._under_way += 1
        try:
            response = await self._transport.handle_async_request(request)
        except BaseException:
            self.ended()
            raise
        response.stream = _AsyncBody(cast(httpx2.AsyncByteStream, response.stream), self)
        return response

    def ended(self) -> None:
        self._under_way -= 1
        self._close_if_over()

    def retire(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._retire)
        except RuntimeError:
            pass  # the loop is closed, and its connections with it

    def _retire(self) -> None:
        self._retired = True
        self._close_if_over()

    def _close_if_over(self) -> None:
        if self._retired and not self._under_way:
            self._closing = self._loop.create_task(self._transport.aclose())

    async def aclose(self) -> None:
        if self._closing is not None:
            await self._closing
        await self._transport.aclose()


class _AsyncBody(httpx2.AsyncByteStream):
    """As ``_Body``."""

    def __init__(self, stream: httpx2.AsyncByteStream, pool: _AsyncPool) -> None:
        self._stream = stream
        self._pool: _AsyncPool | None = pool

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._stream:
            yield part

    async def aclose(self) -> None:
        pool, self._pool = self._pool, None
        try:
            await self._stream.aclose()
        finally:
            if pool is not None:
                pool.ended()
