"""What event loops add: nothing blocks them, any number of them may use one client, cancelling is clean."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from discovery.agent import Agent
from discovery.aio import AsyncClient
from discovery.client import Client
from discovery.config import Config
from discovery.errors import RegistryUnavailable, ServiceNotFound
from tests.discovery.fake import FakeCatalogue, entry, service
from tests.tools import wait_until

WEB = service("web")


@pytest.fixture
def catalogue() -> FakeCatalogue:
    fake = FakeCatalogue()
    fake.set(WEB, entry(port=1), entry(port=2))
    return fake


@pytest.fixture
def start(catalogue: FakeCatalogue) -> Iterator[Callable[..., AsyncClient]]:
    made: list[AsyncClient] = []

    def make(**settings: object) -> AsyncClient:
        settings.setdefault("timeout", 5.0)
        made.append(AsyncClient(Config(), backend=catalogue, **settings))
        return made[-1]

    yield make
    for one in made:
        asyncio.run(one.close())
    assert not catalogue.open_readers


@pytest.fixture
def client(start: Callable[..., AsyncClient]) -> AsyncClient:
    return start()


def waiting(client: AsyncClient) -> int:
    """How many wait for a first answer."""
    engine = client._client._engine
    return sum(len(follower._waking) for follower in engine._followers.values()) if engine else 0


async def until(condition: Callable[[], object], timeout: float = 5.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


# --- 7: loops ------------------------------------------------------------------------------------------


def test_07_made_outside_of_a_loop_and_used_in_one_after_another(client, catalogue):
    for _ in range(3):
        assert asyncio.run(client.lookup("web")).port in (1, 2)
    assert len({ask.reader for ask in catalogue.asked(WEB)}) == 1


def test_07_used_in_many_loops_at_once(client, catalogue):
    catalogue.change(silent=True)
    picked: list[int] = []

    def work() -> None:
        async def main() -> None:
            picked.extend([(await client.lookup("web")).port for _ in range(100)])

        asyncio.run(main())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: waiting(client) == 4)
    catalogue.change(silent=False)
    for thread in threads:
        thread.join(5)
    assert len(picked) == 400 and picked.count(1) == 200
    assert len(catalogue.asked(WEB)) <= 3
    assert waiting(client) == 0


def test_07_a_loop_that_ended_while_it_waited_hurts_nobody(client, catalogue):
    catalogue.change(silent=True)

    async def main() -> None:
        asyncio.create_task(client.lookup("web"))  # noqa: RUF006 - it ends with the loop
        await until(lambda: waiting(client))

    asyncio.run(main())
    catalogue.change(silent=False)
    assert asyncio.run(client.lookup("web")).port in (1, 2)


def test_a_client_without_a_loop_shares_its_answers(catalogue):
    with Client(Config(), backend=catalogue) as plain:
        plain.lookup("web")
        wait_until(lambda: len(catalogue.asks) == 2)  # the first answer, and the read that waits for a change

        async def main() -> None:
            async with AsyncClient(client=plain) as client:
                for _ in range(10):
                    await client.lookup("web")

        asyncio.run(main())
        assert len(catalogue.asks) == 2
        assert plain.lookup("web")  # it is still open


# --- nothing blocks ------------------------------------------------------------------------------------


def test_while_one_waits_the_loop_goes_on(client, catalogue):
    catalogue.change(silent=True)

    async def main() -> int:
        cold = asyncio.create_task(client.lookup("web"))
        await until(lambda: waiting(client))
        turns = 0
        for _ in range(100):
            await asyncio.sleep(0)
            turns += 1
        assert not cold.done()
        catalogue.change(silent=False)
        await cold
        return turns

    assert asyncio.run(main()) == 100


def test_a_warm_lookup_does_not_even_yield(client):
    async def main() -> None:
        await client.lookup("web")
        coroutine = client.lookup("web")
        with pytest.raises(StopIteration) as returned:
            coroutine.send(None)
        assert returned.value.value.port in (1, 2)

    asyncio.run(main())


def test_thousands_wait_together_for_one_question(client, catalogue):
    catalogue.change(silent=True)

    async def main() -> None:
        tasks = [asyncio.create_task(client.lookup("web")) for _ in range(2000)]
        await until(lambda: waiting(client) == 2000)
        catalogue.change(silent=False)
        picked = await asyncio.gather(*tasks)
        assert sum(port == 1 for _, port in picked) == 1000

    before = threading.active_count()
    asyncio.run(main())
    assert len(catalogue.asked(WEB)) <= 3
    assert threading.active_count() <= before + 1  # the watch's


# --- cancelling ----------------------------------------------------------------------------------------


def test_a_cancelled_lookup_leaves_nothing_behind(client, catalogue):
    catalogue.change(silent=True)

    async def main() -> None:
        for _ in range(20):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.005):
                    await client.lookup("web")
        assert waiting(client) == 0

    asyncio.run(main())
    catalogue.change(silent=False)


def test_a_cancelled_call_says_nothing_about_the_instance(client):
    async def main() -> None:
        async def for_ever(instance: object) -> None:
            await asyncio.Event().wait()

        for _ in range(10):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.005):
                    await client.call("web", for_ever)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await client.call("web", for_ever, hedge=0.001)
        stats = client._client._tallies["web"].stats
        assert not stats.ejected
        assert [stats.load(instance) for instance in await client.lookup_all("web")] == [0, 0]

    asyncio.run(main())


def test_a_cancelled_watch_can_be_awaited_again(client, catalogue):
    async def main() -> None:
        async with client.watch("web") as changes:
            assert len(await anext(changes)) == 2
            for _ in range(5):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.005):
                        await anext(changes)
            catalogue.set(WEB, entry(port=3))
            assert [i.port for i in await anext(changes)] == [3]

    asyncio.run(main())


def test_closing_ends_who_waits(client, catalogue):
    catalogue.change(silent=True)

    async def main() -> None:
        lookup = asyncio.create_task(client.lookup("new", timeout=60.0))
        wait = asyncio.create_task(client.wait_for("web", min_instances=9, timeout=60.0))
        watch = client.watch("web")
        change = asyncio.create_task(anext(watch))
        await until(lambda: waiting(client) and len(client._client._watches) == 2)
        await client.close()
        for task in (lookup, wait):
            with pytest.raises(RegistryUnavailable, match="closed"):
                await task
        with pytest.raises(StopAsyncIteration):
            await change

    asyncio.run(main())
    catalogue.change(silent=False)


# --- watching ------------------------------------------------------------------------------------------


def test_changes_come_in_an_async_for(client, catalogue):
    async def main() -> list[int]:
        counts = []
        async with client.watch("web") as changes:
            async for snapshot in changes:
                counts.append(len(snapshot))
                if len(counts) == 3:
                    return counts
                catalogue.set(WEB, *(entry(port=port) for port in range(len(counts))))
        return counts

    assert asyncio.run(main()) == [2, 1, 2]


def test_a_callback_runs_in_the_loop(client, catalogue):
    async def main() -> None:
        seen: list[tuple[int, int]] = []
        async with client.watch("web") as changes:
            end = await changes.on_change(
                lambda snapshot: seen.append((len(snapshot), threading.get_ident()))
            )
            catalogue.set(WEB, entry(port=3))
            await until(lambda: len(seen) == 2)
            assert seen == [(2, threading.get_ident()), (1, threading.get_ident())]
            end()
            catalogue.set(WEB)
            while await changes.next(5.0):
                pass  # until the one that is empty, which came after the end of the callback
        assert len(seen) == 2

    asyncio.run(main())


def test_a_watch_of_nothing_known_raises_and_goes_on(client, catalogue):
    async def main() -> None:
        catalogue.fail()
        async with client.watch("web") as changes:
            with pytest.raises(RegistryUnavailable):
                await changes.next(5.0)
            catalogue.recover()
            while True:
                try:
                    assert len(await changes.next(5.0)) == 2
                    return
                except RegistryUnavailable:
                    continue

    asyncio.run(main())


# --- a real registry -----------------------------------------------------------------------------------


@pytest.mark.parametrize("debug", [False, True])
def test_against_a_real_registry_from_the_first_lookup_on(agent: Agent, register, debug):
    register("web", 8080)

    async def main() -> None:
        settings = Config.from_env({"CONSUL_HTTP_ADDR": agent.url, "DISCOVERY_DNS": "off"})
        async with AsyncClient(settings, share=None) as client:
            assert await client.lookup("web", timeout=5.0) == ("127.0.0.1", 8080)
            assert client.where == agent.url
            with pytest.raises(ServiceNotFound, match="did you mean 'web'"):
                await client.lookup("wep", timeout=5.0)
            heartbeat = await client.register("web", port=8081)
            assert len(await client.wait_for("web", min_instances=2, timeout=5.0)) == 2
            await asyncio.to_thread(heartbeat.close)
            async with client.watch("web") as changes:
                async for snapshot in changes:
                    if len(snapshot) == 1:
                        break

    asyncio.run(main(), debug=debug)
    gc.collect()  # a coroutine that was never awaited, a socket that was left open would be told here
