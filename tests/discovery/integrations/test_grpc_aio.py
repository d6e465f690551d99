"""The gRPC channel for event loops, on real servers: what ``test_grpc`` promises, awaited."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from discovery import Client, RegistryUnavailable
from discovery.config import Config
from discovery.integrations.grpc_aio import channel
from tests.discovery.integrations.fleet import Fleet, Server, connections_to
from tests.tools import free_port, wait_until

TIMEOUT = 20.0  # s; for the tests' own patience
Steps = Callable[[grpc.aio.Channel], Coroutine[Any, Any, None]]


@pytest.fixture
def run(client: Client) -> Callable[..., None]:
    """Run *steps* with a channel to ``web``, in an event loop of its own."""

    def run(steps: Steps, **options: Any) -> None:
        async def main() -> None:
            async with channel("web", client=client, **options) as web:
                await steps(web)

        asyncio.run(main(), debug=True)

    return run


async def who(channel: grpc.aio.Channel) -> int:
    return int(await channel.unary_unary("/test.Echo/Who")(b"", timeout=TIMEOUT))


async def until(met: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not await met():
            await asyncio.sleep(0)


async def all_three(web: grpc.aio.Channel) -> bool:
    return len({await who(web) for _ in range(3)}) == 3


async def gone(port: int) -> None:
    await asyncio.to_thread(wait_until, lambda: connections_to(port) == 0)


def test_each_call_is_balanced_over_one_connection_per_instance(run, grpc_servers: list[Server]) -> None:
    async def steps(web: grpc.aio.Channel) -> None:
        ask = web.unary_unary("/test.Echo/Who")
        await until(lambda: all_three(web))
        met = Counter([int(await ask(b"", timeout=TIMEOUT)) for _ in range(3000)])
        assert all(abs(met[server.port] - 1000) <= 20 for server in grpc_servers), met  # 2 %
        assert [connections_to(server.port) for server in grpc_servers] == [1, 1, 1]

    run(steps)


def test_12_connections_follow_the_instances_without_a_call(
    run, client: Client, fleet: Fleet, grpc_servers: list[Server]
) -> None:
    leaving, *staying = grpc_servers

    async def steps(web: grpc.aio.Channel) -> None:
        for _ in range(2):
            await until(lambda: all_three(web))
            fleet.deregister(leaving.port)
            await gone(leaving.port)
            assert {await who(web) for _ in range(6)} <= {server.port for server in staying}
            fleet.register(leaving.port)
            await until(lambda: all_three(web))
            assert [connections_to(server.port) for server in staying] == [1, 1]
            client.close()  # and it goes on with the client's next life
            await who(web)

    run(steps)


def test_no_idempotent_call_fails_when_an_instance_is_killed(
    run, fleet: Fleet, start_server: Callable[..., Server]
) -> None:
    servers = [start_server(script="grpc_server.py") for _ in range(3)]
    for server in servers:
        fleet.register(server.port)

    async def steps(web: grpc.aio.Channel) -> None:
        ask = web.unary_unary("/test.Echo/Who")
        await until(lambda: all_three(web))
        for n in range(30):
            if n == 10:
                servers[0].kill()
            answers = await asyncio.gather(*(ask(b"", timeout=TIMEOUT) for _ in range(20)))
        assert set(map(int, answers)) == {server.port for server in servers[1:]}

    run(steps, idempotent=["test.Echo"])


def test_a_stream_outlives_a_change_and_its_channel_goes_with_it(
    run, fleet: Fleet, grpc_servers: list[Server]
) -> None:
    async def steps(web: grpc.aio.Channel) -> None:
        stream = web.stream_stream("/test.Echo/Count")(timeout=TIMEOUT)
        await stream.write(b"")
        port = int(await stream.read())
        fleet.deregister(port)

        async def without() -> bool:
            return port not in {await who(web) for _ in range(3)}

        await until(without)
        await stream.write(b"")
        assert int(await stream.read()) == port
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        del stream  # gRPC keeps the connection of a call for as long as the call is there, ended or not
        await gone(port)

    run(steps)


def test_all_kinds_of_calls(run, grpc_servers: list[Server]) -> None:
    async def one() -> AsyncIterator[bytes]:
        yield b""

    async def steps(web: grpc.aio.Channel) -> None:
        ports = {server.port for server in grpc_servers}
        call = web.unary_unary("/test.Echo/Who")(b"", timeout=TIMEOUT)
        assert int(await call) in ports and await call.code() is grpc.StatusCode.OK
        assert int(await web.stream_unary("/test.Echo/Count")(one(), timeout=TIMEOUT)) in ports
        answers = web.unary_stream("/test.Echo/Count")(b"", timeout=TIMEOUT)
        assert [int(answer) in ports async for answer in answers] == [True]
        assert await web.unary_unary("/test.Echo/Name")(b"", timeout=TIMEOUT) == b"web.service.consul"

    run(steps)


def test_tls_is_checked_against_the_services_name(
    run, fleet: Fleet, start_server: Callable[..., Server], certificate: Path
) -> None:
    server = start_server(str(certificate), script="grpc_server.py")
    fleet.register(server.port)

    async def steps(web: grpc.aio.Channel) -> None:
        assert await who(web) == server.port

    run(steps, credentials=grpc.ssl_channel_credentials(certificate.read_bytes()))


def test_it_gets_ready_with_its_first_instance_and_fails_without_one(
    run, fleet: Fleet, shared_grpc_servers: list[Server]
) -> None:
    port = shared_grpc_servers[0].port

    async def steps(web: grpc.aio.Channel) -> None:
        with pytest.raises(grpc.aio.AioRpcError, match="'web' has no healthy instance") as caught:
            await who(web)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert web.get_state() is grpc.ChannelConnectivity.IDLE
        ready = asyncio.create_task(web.channel_ready())
        changed = asyncio.create_task(web.wait_for_state_change(grpc.ChannelConnectivity.IDLE))
        fleet.register(port)
        async with asyncio.timeout(TIMEOUT):
            await ready
            await changed
        assert web.get_state() is grpc.ChannelConnectivity.READY
        assert await who(web) == port
        await web.close()
        await web.close()
        assert web.get_state() is grpc.ChannelConnectivity.SHUTDOWN
        with pytest.raises(grpc.aio.UsageError):
            await who(web)

    run(steps)


def test_a_call_does_not_wait_for_a_name_that_nobody_asked_for(
    client: Client, grpc_servers: list[Server]
) -> None:
    async def main() -> None:
        web = channel("web", client=client)
        with pytest.raises(grpc.aio.AioRpcError, match="await its channel_ready"):
            await who(web)
        await web.channel_ready()
        assert await who(web)
        await web.close()

    asyncio.run(main())


def test_the_name_of_a_host_is_resolved_outside_of_the_loop(
    run, fleet: Fleet, shared_grpc_servers: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (server.port for server in shared_grpc_servers[:2])
    resolve, resolved = socket.getaddrinfo, []

    def getaddrinfo(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        if host == "here.test":
            resolved.append((port, threading.current_thread() is threading.main_thread()))
            host = "127.0.0.1"
        return resolve(host, port, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    fleet.register(first, address="here.test")

    async def steps(web: grpc.aio.Channel) -> None:
        assert await who(web) == first
        fleet.register(second, address="here.test")

        async def both() -> bool:
            return {await who(web) for _ in range(2)} == {first, second}

        await until(both)

    run(steps)
    assert set(resolved) == {(first, False), (second, False)}


def test_a_registry_that_is_down_is_an_rpc_error_that_says_why() -> None:
    nowhere = Config.from_env({"CONSUL_HTTP_ADDR": f"127.0.0.1:{free_port()}"})

    async def main() -> None:
        with Client(nowhere) as lost, pytest.raises(grpc.aio.AioRpcError) as caught:
            async with channel("web", client=lost):
                pass
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert isinstance(caught.value.__cause__, RegistryUnavailable)

    asyncio.run(main())
