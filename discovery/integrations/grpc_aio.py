"""gRPC in asyncio: a ``grpc.aio`` channel to all instances of a service.

    from discovery.integrations.grpc_aio import channel

    async with channel("greeter") as greeter:
        stub = helloworld_pb2_grpc.GreeterStub(greeter)
        reply = await stub.SayHello(helloworld_pb2.HelloRequest(name="you"))

As ``discovery.integrations.grpc``: gRPC balances, a change of the instances swaps the channel below, and
calls under way end on the old one.

Laws:
- A channel belongs to one event loop, as gRPC's own do. Everything but the news of a change happens there, so
  there is no lock.
- Nothing here blocks the loop. ``async with`` and ``channel_ready`` await the first answer about the name; a
  call that comes before that fails.
- Where nobody can be called the call fails as gRPC's do: ``grpc.aio.AioRpcError`` with status UNAVAILABLE,
  whose cause is the ``DiscoveryError``, where there is one.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import Any, Unpack

try:
    import grpc
    import grpc.aio
except ImportError as _exc:
    raise ImportError("discovery.integrations.grpc_aio needs grpcio: pip install 'portcall[grpc]'") from _exc

from discovery import observe
from discovery.changes import Watch
from discovery.errors import DiscoveryError
from discovery.integrations._balancer import Balancer, Options, Target
from discovery.integrations.grpc import addresses_of, arguments_of, target_of
from discovery.model import Snapshot

__all__ = ["channel"]


def channel(
    name: str,
    *,
    credentials: grpc.ChannelCredentials | None = None,
    idempotent: Iterable[str] = (),
    options: Sequence[tuple[str, Any]] = (),
    compression: grpc.Compression | None = None,
    interceptors: Sequence[grpc.aio.ClientInterceptor] | None = None,
    **settings: Unpack[Options],
) -> grpc.aio.Channel:
    """Return a channel to the instances of the service *name*; no I/O until it is used.

    Args:
        name, credentials, idempotent, options, compression, settings: as in ``discovery.integrations.grpc``.
        interceptors: as in ``grpc.aio.insecure_channel``.
    """
    balancer = Balancer("grpc", **settings)
    target = target_of(name, balancer)
    arguments = arguments_of(target, balancer, idempotent, options)

    def connect(addresses: str) -> grpc.aio.Channel:
        if credentials is None:
            return grpc.aio.insecure_channel(addresses, arguments, compression, interceptors)
        return grpc.aio.secure_channel(addresses, credentials, arguments, compression, interceptors)

    return _Channel(balancer, target, connect)


class _Channel(grpc.aio.Channel):
    """Passes each call on to the lane of the moment."""

    def __init__(
        self, balancer: Balancer, target: Target, connect: Callable[[str], grpc.aio.Channel]
    ) -> None:
        self._balancer = balancer
        self._target = target
        self._connect = connect
        self._lane: _Lane | None = None
        self._addresses = ""
        self._swapped: asyncio.Event | None = None  # anew with each swap
        self._watch: Watch | None = None
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()  # the loop holds its tasks weakly

    # --- calls

    def unary_unary(self, *arguments: Any, **keywords: Any) -> Any:
        return _Method(self, "unary_unary", arguments, keywords)

    def unary_stream(self, *arguments: Any, **keywords: Any) -> Any:
        return _Method(self, "unary_stream", arguments, keywords)

    def stream_unary(self, *arguments: Any, **keywords: Any) -> Any:
        return _Method(self, "stream_unary", arguments, keywords)

    def stream_stream(self, *arguments: Any, **keywords: Any) -> Any:
        return _Method(self, "stream_stream", arguments, keywords)

    def lane(self) -> _Lane:
        """Return the lane for a new call.

        Raises:
            grpc.aio.UsageError: the channel is closed.
            grpc.aio.AioRpcError: there are no instances, or nothing is known of them yet.
        """
        if self._closed:
            raise grpc.aio.UsageError("Channel is closed.")  # as gRPC's own channels do
        if self._watch is None or self._watch.closed:  # by its client, which may be in use again
            self.spawn(self._follow_again())
        if self._lane is not None:
            return self._lane
        if self._watch is None:
            raise _unavailable(
                f"nothing is known of {self._target.name!r} yet: enter the channel with `async with`, or "
                "await its channel_ready()"
            )
        raise _unavailable(f"{self._target.name!r} has no healthy instance")

    # --- connectivity

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        if self._closed:
            return grpc.ChannelConnectivity.SHUTDOWN
        if self._lane is None:
            return grpc.ChannelConnectivity.IDLE
        return self._lane.channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        while self.get_state() == last_observed_state:
            lane = self._lane
            await self._this_or_swap(
                lane.channel.wait_for_state_change(last_observed_state) if lane is not None else None
            )

    async def channel_ready(self) -> None:
        """Wait until an instance is connected; while there are none, for the first to come."""
        await self._follow()
        while self.get_state(try_to_connect=True) is not grpc.ChannelConnectivity.READY:
            if self._closed:
                raise grpc.aio.UsageError("Channel is closed.")
            lane = self._lane
            await self._this_or_swap(lane.channel.channel_ready() if lane is not None else None)

    async def _this_or_swap(self, this: Coroutine[Any, Any, None] | None) -> None:
        """Wait for *this*, or until another lane is the current one."""
        if self._swapped is None:
            self._swapped = asyncio.Event()
        waiting: list[asyncio.Future[Any]] = [asyncio.ensure_future(self._swapped.wait())]
        if this is not None:
            waiting.append(asyncio.ensure_future(this))
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for future in waiting:
                future.cancel()
            # What a channel that was closed meanwhile has to say is of no interest.
            await asyncio.gather(*waiting, return_exceptions=True)

    # --- the set of instances

    async def __aenter__(self) -> _Channel:
        await self._follow()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """As gRPC's; idempotent."""
        self._closed = True
        watch, self._watch = self._watch, None
        lane, self._lane = self._lane, None
        self._tell_swap()
        if watch is not None:
            watch.close()
        if lane is not None:
            await lane.channel.close(grace)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self) -> None:
        """Know the instances, and follow them; awaits the first answer about the name.

        Raises:
            grpc.aio.AioRpcError: the registry cannot be asked.
        """
        if self._watch is not None and not self._watch.closed:
            return
        client, target = self._balancer.client, self._target

        def begin() -> tuple[str, Watch]:
            snapshot = client.lookup_all(target.name, tags=target.tags, dc=target.dc)
            addresses = addresses_of(snapshot)  # which may resolve names
            return addresses, client.watch(target.name, tags=target.tags, dc=target.dc)

        before = self._watch
        try:
            addresses, watch = await asyncio.to_thread(begin)
        except DiscoveryError as exc:
            raise _unavailable(str(exc)) from exc
        if self._watch is not before or self._closed:
            watch.close()  # another task was quicker
            return
        self._watch = watch
        self._use(addresses)
        # A task of its own: this one may be cancelled, and the watch would tell nobody then.
        self.spawn(_listen(watch, _forward(weakref.ref(self), watch, asyncio.get_running_loop())))

    async def _follow_again(self) -> None:
        try:
            await self._follow()
        except grpc.aio.AioRpcError:
            pass  # the next call tries again

    def changed(self, watch: Watch, addresses: str) -> None:
        """The instances are now at *addresses*; in the loop."""
        if watch is self._watch:
            self._use(addresses)

    def _use(self, addresses: str) -> None:
        if addresses == self._addresses or self._closed:
            return
        self._addresses = addresses
        old, self._lane = self._lane, _Lane(self, self._connect(addresses)) if addresses else None
        self._tell_swap()
        if old is not None:
            old.retire()

    def _tell_swap(self) -> None:
        swapped, self._swapped = self._swapped, None
        if swapped is not None:
            swapped.set()

    def spawn(self, steps: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(steps)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Lane:
    """A gRPC channel to one set of instances, and how many calls are under way on it."""

    def __init__(self, owner: _Channel, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.methods: weakref.WeakKeyDictionary[_Method, Any] = weakref.WeakKeyDictionary()
        self._owner = owner
        self._under_way = 0
        self._retired = False

    def begin(self, call: Any) -> Any:
        self._under_way += 1
        call.add_done_callback(self._ended)
        return call

    def retire(self) -> None:
        """Take no more calls, and close when there are none."""
        self._retired = True
        self._close_if_idle()

    def _ended(self, _: object) -> None:
        self._under_way -= 1
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self._retired and not self._under_way:
            self._owner.spawn(self.channel.close())


class _Method:
    """One method of a stub, on whichever lane is the current one."""

    def __init__(
        self, owner: _Channel, kind: str, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> None:
        self._owner = owner
        self._kind = kind
        self._arguments = arguments
        self._keywords = keywords

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        lane = self._owner.lane()
        method = lane.methods.get(self)
        if method is None:
            method = getattr(lane.channel, self._kind)(*self._arguments, **self._keywords)
            lane.methods[self] = method
        return lane.begin(method(*arguments, **keywords))


def _unavailable(details: str) -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, details)


async def _listen(watch: Watch, callback: Callable[[Snapshot], None]) -> None:
    """Have *callback* called, for the first time too, in a thread that may be blocked."""
    with suppress(DiscoveryError):  # its client is closed: the next call follows anew
        await asyncio.to_thread(watch.on_change, callback)


def _forward(
    channel: weakref.ref[_Channel], watch: Watch, loop: asyncio.AbstractEventLoop
) -> Callable[[Snapshot], None]:
    """Return a callback that does not keep a channel alive which its user has dropped."""

    def changed(snapshot: Snapshot) -> None:
        owner = channel()
        try:
            if owner is None:
                raise RuntimeError("nobody uses it any more")
            loop.call_soon_threadsafe(owner.changed, watch, addresses_of(snapshot))
        except RuntimeError:  # the loop is closed, too
            watch.close()
        else:
            observe.changed(snapshot)

    return changed
