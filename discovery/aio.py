"""The client for event loops: the same verbs, decided by the same code.

    async with AsyncClient() as client:
        host, port = await client.lookup("web")

Laws:
- Nothing here blocks the loop. What is known is read from memory; for the first answer about a name, for
  a change and for a time to pass the loop is awaited; what must do I/O runs in a thread.
- No decision is made here: see ``client.Steps``, ``service.Trial`` and ``changes.Awaited``.
- The background threads belong to the client and not to a loop: one client serves any number of loops, one
  after another or at once in several threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar, Unpack

from discovery.backends import Backend
from discovery.changes import Awaited, Watch
from discovery.client import Client, Options, Steps
from discovery.config import Config
from discovery.engine import Known
from discovery.errors import DiscoveryError, LookupFailed, RegistryError, RegistryTimeout, RegistryUnavailable
from discovery.heartbeat import Heartbeat, mind_sigterm
from discovery.model import Instance, Query, ServiceName, Snapshot
from discovery.service import Explanation, Trial

__all__ = ["AsyncClient", "AsyncWatch"]

_T = TypeVar("_T")


class AsyncClient:
    """``Client`` for event loops; construct it anywhere, also outside of a loop.

    Args:
        config, backend, overrides: those of ``Client``.
        client: the client whose threads and answers to share; it is not closed with this one.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        backend: Backend | None = None,
        client: Client | None = None,
        **overrides: Any,
    ) -> None:
        self._own = client is None
        self._client = client if client is not None else Client(config, backend=backend, **overrides)
        self._warm = self._client._warm  # emptied, never replaced

    @property
    def config(self) -> Config:
        return self._client.config

    @property
    def where(self) -> str:
        """The addresses of what is asked."""
        return self._client.where

    async def lookup(self, name: str, /, **options: Unpack[Options]) -> Instance:
        """As ``Client.lookup``; awaits only the first answer about a name."""
        if not options:
            service = self._warm.get(name)
            if service is not None and (live := service.live):
                service.was_used = True
                return live[service.next() % len(live)]
        try:
            return await self._run(
                self._client._choose(name, self._client._wish(**options)), options.get("timeout")
            )
        except (LookupFailed, RegistryUnavailable, RegistryError):
            default = options.get("default")
            if default is None:
                raise
            return default

    async def lookup_all(
        self,
        name: str,
        /,
        *,
        tags: Sequence[str] = (),
        meta: Mapping[str, str] | None = None,
        dc: str | None = None,
        near: str | None = None,
        healthy: bool = True,
        timeout: float | None = None,
    ) -> Snapshot:
        """As ``Client.lookup_all``; awaits only the first answer about a name."""
        return await self._run(self._client._all(name, tags, meta, dc, near, healthy), timeout)

    async def explain(self, name: str, /, **options: Unpack[Options]) -> Explanation:
        """As ``Client.explain``."""
        return await self._run(
            self._client._explain(name, self._client._wish(**options)), options.get("timeout")
        )

    async def names(
        self, *, dc: str | None = None, timeout: float | None = None
    ) -> Mapping[ServiceName, tuple[str, ...]]:
        """As ``Client.names``."""
        return await self._run(self._client._names(dc), timeout)

    def watch(
        self, name: str, /, *, tags: Sequence[str] = (), dc: str | None = None, healthy: bool = True
    ) -> AsyncWatch:
        """As ``Client.watch``: an asynchronous iterator, which begins when it is first awaited."""
        return AsyncWatch(self, lambda: self._client.watch(name, tags=tags, dc=dc, healthy=healthy))

    async def wait_for(
        self,
        name: str,
        /,
        *,
        min_instances: int = 1,
        timeout: float = 30.0,
        tags: Sequence[str] = (),
        dc: str | None = None,
    ) -> Snapshot:
        """As ``Client.wait_for``."""
        awaited = Awaited(name, min_instances, timeout, asyncio.get_running_loop().time)
        async with self.watch(name, tags=tags, dc=dc) as changes:
            while not awaited.over:
                try:
                    found = await changes.next(awaited.left)
                except RegistryUnavailable as exc:  # down, or nothing has changed in the time that was left
                    awaited.missed(exc)
                except StopAsyncIteration:
                    raise awaited.closed() from None
                else:
                    if awaited.enough(found):
                        return found
        if awaited.found_none:
            await self.lookup(name, tags=tags, dc=dc)  # raises the error that says why there is none
        raise awaited.failure()

    @asynccontextmanager
    async def borrow(self, name: str, /, **options: Unpack[Options]) -> AsyncIterator[Instance]:
        """As ``Client.borrow``, for ``async with``. A cancelled call says nothing about the instance."""
        instance = await self.lookup(name, **options)
        with self._client._lend(instance):
            yield instance

    def report(self, instance: Instance, *, ok: bool, latency: float | None = None) -> None:
        """As ``Client.report``."""
        self._client.report(instance, ok=ok, latency=latency)

    async def call(
        self,
        name: str,
        fn: Callable[[Instance], Awaitable[_T]],
        /,
        *,
        attempts: int = 3,
        retry_on: tuple[type[Exception], ...] = (ConnectionError,),
        hedge: float | None = None,
        **options: Unpack[Options],
    ) -> _T:
        """As ``Client.call``, for a *fn* that is awaited. With *hedge* the slower ones are cancelled."""
        trial = Trial(self._client._tally(name), attempts, options)
        if hedge is not None:
            return await self._hedged(name, fn, trial, retry_on, hedge)
        while (instance := await self._next(name, trial)) is not None:
            try:
                with self._client._lend(instance):
                    return await fn(instance)
            except retry_on as exc:
                if not trial.again(exc):
                    raise
        raise trial.failure()

    async def register(self, name: str, /, **arguments: Any) -> Heartbeat:
        """As ``Client.register``. The heartbeat is a thread; ``close`` of this client ends it, too."""
        mind_sigterm()  # here, where the main thread is
        return await asyncio.to_thread(self._client.register, name, **arguments)

    async def close(self) -> None:
        """As ``Client.close``; a client that was given stays open."""
        if self._own:
            await asyncio.to_thread(self._client.close)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    # --- carrying out what the client decides

    async def _run(self, steps: Steps[_T], timeout: float | None) -> _T:
        """As ``Client._run``, awaiting the answers."""
        loop = asyncio.get_running_loop()
        await self._ready()  # before the clock starts
        deadline = loop.time() + (self.config.timeout if timeout is None else timeout)
        try:
            query = next(steps)
            while True:
                try:
                    known = await self._fetch(query, max(deadline - loop.time(), 0.05))
                except DiscoveryError as exc:
                    query = steps.throw(exc)
                else:
                    query = steps.send(known)
        except StopIteration as end:
            result: _T = end.value
            return result

    async def _ready(self) -> None:
        if self._client._engine is None:
            await asyncio.to_thread(self._client._running_engine)  # the first one loads the libraries

    async def _fetch(self, query: Query, timeout: float) -> Known:
        """As ``Engine.fetch``."""
        news = _News()
        pending = self._client._running_engine().ask(query, news)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    while not pending.answered:
                        await news.wait()
            return pending.result(timeout)
        finally:
            pending.close()

    async def _next(self, name: str, trial: Trial) -> Instance | None:
        """As ``Client._next``."""
        try:
            return trial.begin(await self.lookup(name, **trial.options))
        except LookupFailed:
            if not trial.tried:
                raise
            return None

    async def _hedged(
        self,
        name: str,
        fn: Callable[[Instance], Awaitable[_T]],
        trial: Trial,
        retry_on: tuple[type[Exception], ...],
        hedge: float,
    ) -> _T:
        """As ``Client._hedged``, with tasks for threads."""

        async def attempt(instance: Instance) -> _T:
            with self._client._lend(instance):
                return await fn(instance)

        running: set[asyncio.Task[_T]] = set()
        another = hedging = True
        try:
            while True:
                instance = await self._next(name, trial) if another else None
                if instance is not None:
                    running.add(asyncio.create_task(attempt(instance)))
                elif not running:
                    raise trial.failure()
                elif another:
                    hedging = False
                done, _ = await asyncio.wait(
                    running, timeout=hedge if hedging else None, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    another = hedging = trial.hedge()
                    continue
                task = done.pop()
                running.discard(task)
                failure = task.exception()
                if failure is None:
                    return task.result()
                if not isinstance(failure, retry_on):
                    raise failure
                another = trial.again(failure)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


class AsyncWatch:
    """``Watch`` for event loops: ``async for snapshot in client.watch("web")``.

    It belongs to the loop in which it is first awaited. Close it, or use it in ``async with``.
    """

    def __init__(self, client: AsyncClient, begin: Callable[[], Watch]) -> None:
        self._client = client
        self._begin = begin
        self._watch: Watch | None = None
        self._news: _News | None = None

    async def next(self, timeout: float | None = None) -> Snapshot:
        """As ``Watch.next``; ``StopAsyncIteration`` where that raises ``StopIteration``."""
        watch, news = await self._begun()
        try:
            async with asyncio.timeout(timeout):
                while not watch.has_news():
                    await news.wait()
        except TimeoutError:
            if not watch.has_news():
                raise RegistryTimeout(f"{watch.name!r} did not change in the time given") from None
        try:
            return watch.next(0.0)
        except StopIteration:
            raise StopAsyncIteration from None

    def __aiter__(self) -> AsyncWatch:
        return self

    async def __anext__(self) -> Snapshot:
        return await self.next()

    async def on_change(self, callback: Callable[[Snapshot], None]) -> Callable[[], None]:
        """As ``Watch.on_change``, with *callback* called in this loop."""
        watch, _ = await self._begun()
        loop = asyncio.get_running_loop()
        return watch.on_change(lambda snapshot: _soon(loop, callback, snapshot))

    async def close(self) -> None:
        """End the watch; who awaits it gets ``StopAsyncIteration``. Idempotent."""
        if self._watch is not None:
            self._watch.close()

    async def __aenter__(self) -> AsyncWatch:
        await self._begun()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def _begun(self) -> tuple[Watch, _News]:
        await self._client._ready()
        # No await from here on: of two tasks that meet here one begins the watch.
        if self._watch is None or self._news is None:
            self._watch, self._news = self._begin(), _News()
            self._watch.wake = self._news
        return self._watch, self._news


class _News:
    """An event that any thread may set and that the loop it was made in awaits."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def __call__(self) -> None:
        _soon(self._loop, self._event.set)

    async def wait(self) -> None:
        """Wait for the next time; look at what it is about afterwards, as it may be old news."""
        await self._event.wait()
        self._event.clear()


def _soon(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *arguments: object) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody waits there any more
        loop.call_soon_threadsafe(callback, *arguments)
