"""How an application uses discovery. Type checkers read it and find nothing to say; nobody runs it.

``assert_type`` holds the types that users see: one that became ``Any`` would satisfy every checker.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import assert_type

import discovery
from discovery import AsyncClient, Client, Config, Instance, Snapshot
from discovery.balance import Stats
from discovery.heartbeat import Heartbeat
from discovery.model import ServiceID
from discovery.service import Explanation
from discovery.testing import FakeDiscovery


class Lowest:
    """A strategy of the application's own."""

    def pick(self, live: Sequence[Instance], stats: Stats, key: str | None) -> Instance:
        return min(live, key=stats.load)


def look_up() -> None:
    instance = discovery.lookup("web", tags=["v2"], meta={"a": "b"}, strategy=Lowest(), timeout=0.5)
    assert_type(instance, Instance)
    host, port = instance
    assert_type(host, str)
    assert_type(port, int)
    assert_type(instance.host, str)
    assert_type(instance.tags, tuple[str, ...])
    socket.create_connection(instance, timeout=2).close()
    print(instance.url("/health"), instance.netloc, instance.meta.get("x"), instance.zone, instance.weight)
    snapshot = discovery.lookup_all("web", healthy=False)
    assert_type(snapshot, Snapshot)
    for each in snapshot:
        assert_type(each, Instance)
    print(len(snapshot), snapshot[0], snapshot.added, snapshot.stale)
    assert_type(discovery.call("web", lambda i: i.port, attempts=2, tags=["v2"]), int)
    assert_type(discovery.wait_for("web"), Snapshot)
    with discovery.watch("web") as changes:
        for change in changes:
            assert_type(change, Snapshot)
            break
        end = changes.on_change(lambda s: print(s.removed))
        end()
    with discovery.register("web", port=80) as registration:
        assert_type(registration, Heartbeat)


def errors() -> str:
    try:
        return str(discovery.lookup("web"))
    except discovery.ServiceNotFound as exc:
        return ", ".join(exc.close)
    except discovery.NoHealthyInstances as exc:
        return ", ".join(exc.failing)
    except discovery.DiscoveryError as exc:
        return ", ".join(attempt.source for attempt in exc.attempts)


def client() -> None:
    with Client(Config.from_env(), timeout=1.0) as client:
        with client.borrow("web", strategy="least_loaded") as instance:
            assert_type(instance, Instance)
        client.report(instance, ok=True, latency=0.1)
        assert_type(client.explain("web"), Explanation)


async def asynchronous() -> None:
    async with AsyncClient() as client:
        assert_type(await client.lookup("web", key="user-1"), Instance)
        async for change in client.watch("web"):
            assert_type(change, Snapshot)
            break

        async def connect(instance: Instance) -> asyncio.StreamWriter:
            return (await asyncio.open_connection(*instance))[1]

        assert_type(await client.call("web", connect), asyncio.StreamWriter)
        async with client.borrow("web") as instance:
            assert_type(instance, Instance)


def test_mine(fake_discovery: FakeDiscovery) -> None:
    assert_type(fake_discovery.add("web", port=80), ServiceID)
    fake_discovery.set_status(ServiceID("web"), "critical")
