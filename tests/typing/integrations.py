"""How an application uses the integrations, for type checkers; see ``program``."""

from __future__ import annotations

from typing import assert_type

import aiohttp
import grpc
import grpc.aio
import httpx
import httpx2
import requests
import urllib3

import discovery
from discovery.integrations import opentelemetry, prometheus
from discovery.integrations.aiohttp import Middleware
from discovery.integrations.grpc import channel
from discovery.integrations.grpc_aio import channel as aio_channel
from discovery.integrations.httpx import AsyncTransport, Transport
from discovery.integrations.httpx2 import Transport as Transport2
from discovery.integrations.requests import Session, mount
from discovery.integrations.urllib3 import PoolManager
from discovery.observe import Attempt, observe

URL = "http://web.service.consul/"


def plain() -> None:
    with Session(services=["web"], attempts=2) as session:
        assert_type(session.get(URL, timeout=2), requests.Response)
    mount(requests.Session(), client=discovery.Client())
    with httpx.Client(mounts={"all://*.service.consul": Transport(http2=True)}) as client:
        assert_type(client.get(URL), httpx.Response)
    with httpx2.Client(mounts={"all://*.service.consul": Transport2()}) as client2:
        assert_type(client2.get(URL), httpx2.Response)
    with PoolManager(maxsize=3) as http:
        assert_type(http.request("GET", URL), urllib3.BaseHTTPResponse)
    with channel("web", idempotent=["helloworld.Greeter"]) as greeter:
        assert_type(greeter, grpc.Channel)


async def asynchronous() -> None:
    mounts = {"all://*.service.consul": AsyncTransport()}
    async with httpx.AsyncClient(mounts=mounts) as client:
        assert_type(await client.get(URL), httpx.Response)
    async with aiohttp.ClientSession(middlewares=(Middleware(),)) as session, session.get(URL) as answer:
        assert_type(answer, aiohttp.ClientResponse)
    async with aio_channel("web", idempotent=["helloworld.Greeter"]) as greeter:
        assert_type(greeter, grpc.aio.Channel)


class Printer:
    """An observer of the application's own."""

    def attempted(self, attempt: Attempt) -> None:
        print(attempt.service, attempt.instance, attempt.seconds)

    def changed(self, snapshot: discovery.Snapshot) -> None:
        print(snapshot.service, len(snapshot))


def observed() -> None:
    for end in (observe(Printer()), prometheus.install(), opentelemetry.install()):
        end()
