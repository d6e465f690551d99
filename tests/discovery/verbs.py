"""One face for both clients, so that one test holds both to the same behaviour."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from discovery.aio import AsyncClient
from discovery.client import Client
from discovery.model import Instance, Snapshot

__all__ = ["Loop", "Verbs"]

_T = TypeVar("_T")


class Loop:
    """An event loop in a thread of its own, in debug mode: what blocks it for long is a failure."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="loop of the test")
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def close(self) -> None:
        self.run(self.loop.shutdown_default_executor())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        self.loop.close()


class Verbs:
    """What a test calls; carried out by a `Client`, or by an `AsyncClient` in a loop."""

    def __init__(self, client: Client | AsyncClient, loop: Loop | None) -> None:
        self.client = client
        self._loop = loop

    @property
    def is_async(self) -> bool:
        return self._loop is not None

    @property
    def inner(self) -> Client:
        """The one that decides."""
        return self.client._client if isinstance(self.client, AsyncClient) else self.client

    def __getattr__(self, name: str) -> Callable[..., Any]:
        verb = getattr(self.client, name)
        return lambda *args, **options: self._done(verb(*args, **options))

    def call(self, name: str, fn: Callable[[Instance], Any], **options: Any) -> Any:
        if self._loop is None:
            return self.client.call(name, fn, **options)

        async def awaited(instance: Instance) -> Any:
            answer = fn(instance)
            return await answer if asyncio.iscoroutine(answer) else answer

        return self._loop.run(self.client.call(name, awaited, **options))

    def pause(self, seconds: float, wakes: threading.Event) -> Any:
        """In a *fn* of `call`: take so long, or until *wakes* is set."""
        if self._loop is None:
            return wakes.wait(seconds)

        async def wait() -> None:
            await asyncio.sleep(seconds)

        return wait()

    @contextmanager
    def borrow(self, name: str, **options: Any) -> Iterator[Instance]:
        if self._loop is None:
            with self.client.borrow(name, **options) as instance:
                yield instance
            return
        lent = self.client.borrow(name, **options)
        instance = self._loop.run(lent.__aenter__())
        try:
            yield instance
        except BaseException as exc:
            if not self._loop.run(lent.__aexit__(type(exc), exc, exc.__traceback__)):
                raise
        else:
            self._loop.run(lent.__aexit__(None, None, None))

    @contextmanager
    def watching(self, name: str, **options: Any) -> Iterator[Callable[[float], Snapshot]]:
        """Watch, and lend the function that returns the next snapshot."""
        watch = self.client.watch(name, **options)
        try:
            yield lambda timeout=5.0: self._done(watch.next(timeout))
        finally:
            self._done(watch.close())

    def _done(self, result: Any) -> Any:
        if self._loop is not None and asyncio.iscoroutine(result):
            return self._loop.run(result)
        return result
