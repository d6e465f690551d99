"""The HTTP integrations behind one interface, so that one suite holds for all of them."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

import aiohttp
import httpx
import httpx2
import requests
import urllib3

from discovery.integrations import httpx as httpx_transports
from discovery.integrations import httpx2 as httpx2_transports
from discovery.integrations.aiohttp import Middleware
from discovery.integrations.requests import Session
from discovery.integrations.urllib3 import PoolManager

__all__ = ["LIBRARIES", "Library"]

T = TypeVar("T")
TIMEOUT = 20.0  # s; for the tests' own patience
Finish = Callable[[], Any]
Parameters = dict[str, str]


class Library(Protocol):
    """One client of one library. *options* are the integration's."""

    error: type[Exception]
    """The base of what the library raises when nobody answers."""

    def __init__(self, *, cafile: str | None = None, **options: Any) -> None: ...

    def request(
        self, method: str, url: str, body: str | None = None, parameters: Parameters | None = None
    ) -> Any:
        """Return the JSON of the answer."""

    def begin(self, url: str) -> Finish:
        """Return when an answer has begun; what is returned reads it to its end."""

    def hang_up(self) -> None:
        """Close all connections, and stay usable."""

    def close(self) -> None: ...


class Requests:
    error = requests.RequestException

    def __init__(self, *, cafile: str | None = None, **options: Any) -> None:
        self.session = Session(**options)
        self.verify = cafile or True

    def request(
        self, method: str, url: str, body: str | None = None, parameters: Parameters | None = None
    ) -> Any:
        response = self.session.request(
            method, url, params=parameters, data=body, verify=self.verify, timeout=TIMEOUT
        )
        return response.json()

    def begin(self, url: str) -> Finish:
        response = self.session.get(url, stream=True, timeout=TIMEOUT)
        return response.json

    def hang_up(self) -> None:
        self.session.close()

    def close(self) -> None:
        self.session.close()


class Urllib3:
    error = urllib3.exceptions.HTTPError

    def __init__(self, *, cafile: str | None = None, **options: Any) -> None:
        self.manager = PoolManager(ca_certs=cafile, maxsize=8, **options)

    def request(
        self, method: str, url: str, body: str | None = None, parameters: Parameters | None = None
    ) -> Any:
        if parameters:
            return self.manager.request_encode_url(method, url, parameters, timeout=TIMEOUT).json()
        return self.manager.request(method, url, body=body, timeout=TIMEOUT).json()

    def begin(self, url: str) -> Finish:
        response = self.manager.request("GET", url, preload_content=False)
        return response.json

    def hang_up(self) -> None:
        self.manager.clear()

    def close(self) -> None:
        self.manager.clear()


class Httpx:
    library: Any = httpx
    transports: Any = httpx_transports
    error: type[Exception] = httpx.TransportError

    def __init__(self, *, cafile: str | None = None, **options: Any) -> None:
        self.transport = self.transports.Transport(verify=_tls(cafile), **options)
        self.client = self.library.Client(transport=self.transport, timeout=TIMEOUT, follow_redirects=True)

    def request(
        self, method: str, url: str, body: str | None = None, parameters: Parameters | None = None
    ) -> Any:
        return self.client.request(method, url, params=parameters, content=body).json()

    def begin(self, url: str) -> Finish:
        response = self.client.send(self.client.build_request("GET", url), stream=True)

        def finish() -> Any:
            response.read()
            return response.json()

        return finish

    def hang_up(self) -> None:
        self.transport.close()

    def close(self) -> None:
        self.client.close()


class _Asynchronous:
    """Runs an event loop in a thread, so that it turns between two requests as a server's does."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, steps: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(steps, self._loop).result(TIMEOUT)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class HttpxAsync(_Asynchronous):
    library: Any = httpx
    transports: Any = httpx_transports
    error: type[Exception] = httpx.TransportError

    def __init__(self, *, cafile: str | None = None, **options: Any) -> None:
        super().__init__()
        self.transport = self.transports.AsyncTransport(verify=_tls(cafile), **options)
        self.client = self.library.AsyncClient(
            transport=self.transport, timeout=TIMEOUT, follow_redirects=True
        )

    def request(
        self, method: str, url: str, body: str | None = None, parameters: Parameters | None = None
    ) -> Any:
        return self.run(self.client.request(method, url, params=parameters, content=body)).json()

    def begin(self, url: str) -> Finish:
        response = self.run(self.client.send(self.client.build_request("GET", url), stream=True))

        def finish() -> Any:
            return json.loads(self.run(response.aread()))

        return finish

    def hang_up(self) -> None:
        self.run(self.transport.aclose())

    def close(self) -> None:
        self.run(self.client.aclose())
        self.stop()


class Httpx2(Httpx):
    library = httpx2
    transports = httpx2_transports
    error = httpx2.TransportError


class Httpx2Async(HttpxAsync):
    library = httpx2
    transports = httpx2_transports
    error = httpx2.TransportError


class Aiohttp(_Asynchronous):
    error = aiohttp.ClientError

    def __init__(self, *, cafile: str | None = None, **options: Any) -> None:
        super().__init__()
        self.middleware = Middleware(**options)

        async def session() -> aiohttp.ClientSession:
            connector = aiohttp.TCPConnector(ssl=_tls(cafile))
            return aiohttp.ClientSession(
                connector=connector,
                middlewares=(self.middleware,),
                timeout=aiohttp.ClientTimeout(total=TIMEOUT),
            )

        self.session = self.run(session())

    def request(
        self, method: str, url: str, body: str | None = None, parameters: Parameters | None = None
    ) -> Any:
        async def steps() -> Any:
            async with self.session.request(method, url, params=parameters, data=body) as response:
                return json.loads(await response.read())

        return self.run(steps())

    def begin(self, url: str) -> Finish:
        async def steps() -> aiohttp.ClientResponse:
            return await self.session.get(url)

        response = self.run(steps())

        def finish() -> Any:
            return json.loads(self.run(response.read()))

        return finish

    def hang_up(self) -> None:
        raise AssertionError("aiohttp closes connections only with their connector")

    def close(self) -> None:
        self.middleware.close()
        self.run(self.session.close())
        self.stop()


def _tls(cafile: str | None) -> Any:
    return ssl.create_default_context(cafile=cafile) if cafile else True


LIBRARIES: dict[str, type[Library]] = {
    "requests": Requests,
    "urllib3": Urllib3,
    "httpx": Httpx,
    "httpx-async": HttpxAsync,
    "httpx2": Httpx2,
    "httpx2-async": Httpx2Async,
    "aiohttp": Aiohttp,
}
