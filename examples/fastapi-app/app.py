"""A FastAPI application that calls a service by its name, and can be found by its own.

    pip install fastapi uvicorn 'portcall[httpx]'
    PORT=8000 uvicorn --app-dir examples/fastapi-app --port 8000 app:app

It registers itself while it runs. The workers of one port share one entry, and each renews it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI, Response

import discovery
from discovery.integrations.httpx import AsyncTransport


@asynccontextmanager
async def life(app: FastAPI) -> AsyncIterator[None]:
    services = {"all://*.service.consul": AsyncTransport()}
    async with httpx.AsyncClient(mounts=services, timeout=2) as app.state.http:
        # Registering waits for the agent's answer, so it has a thread of its own; so has its end.
        heartbeat = await asyncio.to_thread(discovery.register, "fastapi-app", port=int(os.environ["PORT"]))
        yield
        await asyncio.to_thread(heartbeat.close)


app = FastAPI(lifespan=life)


@app.get("/")
async def greeting() -> Response:
    try:
        answer = await app.state.http.get("http://python-micro-service.service.consul/")
    except httpx.HTTPError as exc:
        return Response(f"nobody to ask: {exc}\n", status_code=503)
    return Response(answer.content, answer.status_code)
