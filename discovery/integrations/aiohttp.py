"""aiohttp: a client middleware that lets hosts be services.

    import aiohttp
    from discovery.integrations.aiohttp import Middleware

    async with aiohttp.ClientSession(middlewares=(Middleware(),)) as session:
        async with session.get("http://python-micro-service.service.consul/hello") as response:
            ...

Laws:
- The session's connector pools the connections, and by instance: an instance's address is what it sees.
- An answer's body is the reader's: when it breaks off half-way, nobody repeats the request.
- aiohttp itself repeats an idempotent request once more after a broken connection; that one begins anew here.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from typing import Unpack

try:
    import aiohttp
    from aiohttp import ClientHandlerType, ClientRequest, ClientResponse
    from aiohttp.client_proto import ResponseHandler
    from aiohttp.client_reqrep import ConnectionKey
except ImportError as _exc:
    raise ImportError(
        "discovery.integrations.aiohttp needs aiohttp: pip install 'portcall[aiohttp]'"
    ) from _exc

from discovery.errors import DiscoveryError
from discovery.integrations._balancer import Balancer, Fate, Options, Target, port_of
from discovery.integrations._pools import Pools

__all__ = ["Middleware"]


class Middleware:
    """Balances requests to services; keyword arguments as ``Options``.

    One may serve several sessions, also of several event loops. Place it last, where the request is sent:
    what comes before sees the request as it was made.
    """

    def __init__(self, **options: Unpack[Options]) -> None:
        self._balancer = Balancer("aiohttp", **options)
        self._pools = Pools(self._balancer, lambda target, instance: _Connections(), _Connections.retire)

    async def __call__(self, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        target = self._balancer.target(request.url.host)
        if target is None:
            return await handler(request)
        original = request.url, request.server_hostname, request.proxy
        try:
            if not self._pools.ready(target):
                await asyncio.to_thread(self._pools.follow, target)
            return await self._send(target, request, handler)
        except DiscoveryError as exc:
            raise aiohttp.ClientConnectionError(str(exc)) from exc
        finally:
            request.url, request.server_hostname, request.proxy = original

    async def _send(
        self, target: Target, request: ClientRequest, handler: ClientHandlerType
    ) -> ClientResponse:
        url = request.url
        trial = self._balancer.trial(target, request.method, repeatable=True)
        request.proxy = None
        if request.is_ssl() and request.server_hostname is None:
            request.server_hostname = target.host
        while True:
            try:
                with trial.borrow() as instance, self._pools.lease(target, instance) as connections:
                    port = port_of(url.port, url.scheme, instance)
                    request.url = url.with_host(instance.host).with_port(port)
                    connections.used_by(request)
                    response = await handler(request)
                    connections.answered(response)
                    trial.answered(response.status)
                    return response
            except aiohttp.ClientConnectionError as exc:
                if not trial.again(exc, _fate(exc, request)):
                    raise
                await request.close()  # nobody else may still be writing the body

    def close(self) -> None:
        """Follow nothing any more; connections are their session's. Usable again after."""
        self._pools.close()


class _Connections:
    """The connections to one instance, wherever they are pooled."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # sessions may be in several threads, each with its event loop
        self._keys: set[ConnectionKey] = set()
        self._loops: weakref.WeakKeyDictionary[aiohttp.BaseConnector, asyncio.AbstractEventLoop]
        self._loops = weakref.WeakKeyDictionary()
        self._in_use: weakref.WeakSet[ResponseHandler] = weakref.WeakSet()
        self._retired = False

    def used_by(self, request: ClientRequest) -> None:
        """*request* is going to be sent."""
        connector = request.session.connector
        if connector is not None:
            with self._lock:
                self._keys.add(request.connection_key)
                self._loops[connector] = asyncio.get_running_loop()

    def answered(self, response: ClientResponse) -> None:
        """The answer to a request has begun; its body may be on its way."""
        connection = response.connection
        if connection is not None and connection.protocol is not None:
            with self._lock:
                self._in_use.add(connection.protocol)
        if self._retired:
            self.retire()

    def retire(self) -> None:
        """Close idle connections, and those in use when their responses end."""
        self._retired = True
        with self._lock:
            loops = list(self._loops.items())
        for connector, loop in loops:
            try:
                loop.call_soon_threadsafe(self._hang_up, connector)
            except RuntimeError:
                pass  # the loop is closed, and its connections with it

    def _hang_up(self, connector: aiohttp.BaseConnector) -> None:
        with self._lock:
            keys, in_use = list(self._keys), list(self._in_use)
        for key in keys:
            # Of no public interface: aiohttp can close a connector's connections only all at once.
            for protocol, _ in connector._conns.pop(key, ()):
                protocol.close()
        for protocol in in_use:
            protocol.force_close()


def _fate(exc: aiohttp.ClientConnectionError, request: ClientRequest) -> Fate:
    # 1. A certificate or a handshake: ClientSSLError is a ClientConnectorError too.
    if isinstance(exc, aiohttp.ClientSSLError):
        return Fate.FINAL
    # 2. There was no connection.
    if isinstance(exc, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return Fate.UNSENT
    # 3. The connection was there and broke.
    if isinstance(
        exc, aiohttp.ServerDisconnectedError | aiohttp.ClientConnectionResetError | aiohttp.ClientOSError
    ):
        body = request.body
        used_up = isinstance(body, aiohttp.Payload) and body.consumed
        return Fate.FINAL if used_up else Fate.LOST
    # 4. Time-outs of the answer, a closed session.
    return Fate.FINAL
