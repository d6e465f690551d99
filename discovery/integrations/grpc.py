"""gRPC: a channel to all instances of a service.

    from discovery.integrations.grpc import channel

    with channel("greeter") as greeter:
        stub = helloworld_pb2_grpc.GreeterStub(greeter)

gRPC itself balances the calls, over one connection to each instance, and leaves out instances that it cannot
connect to. What it cannot do in Python is to learn of instances from us (grpc/grpc#11685). So when the set of
instances changes, calls go on over a new channel to the new set:

    change ──> _Lane: ipv4:a,b,c ──swapped──> _Lane: ipv4:b,c,d
                └─ calls under way end here    └─ new calls

Laws:
- A new channel costs nothing for the instances that stay: gRPC shares connections between channels.
- A channel that was swapped out is closed when its last call ends; a call is never cut off.
- gRPC tries a call elsewhere when it was certainly not sent. One that broke off is repeated only when the
  caller has said that its method is ``idempotent``.
- Authority and TLS go by the service's name.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import socket
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Unpack

try:
    import grpc
except ImportError as _exc:
    raise ImportError("discovery.integrations.grpc needs grpcio: pip install 'portcall[grpc]'") from _exc

from discovery import observe
from discovery.client import Watch
from discovery.errors import DiscoveryError
from discovery.integrations._balancer import Balancer, Options, Target
from discovery.model import Instance, Snapshot
from discovery.names import service_name

__all__ = ["NoInstances", "channel"]

log: Final = logging.getLogger("discovery")

MOST_ATTEMPTS: Final = 5  # gRFC A6: more are not allowed
RETRY_TOKENS: Final = 100
RETRY_RATIO: Final = 0.2
"""gRPC's retry budget: half of the tokens may be lost to failures, each success brings a fifth back."""

Connectivity = Callable[[grpc.ChannelConnectivity], None]


class NoInstances(grpc.RpcError):
    """There is no instance to call: status UNAVAILABLE. Its cause is the ``DiscoveryError`` that says why."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return str(self)

    def trailing_metadata(self) -> tuple[()]:
        return ()


def channel(
    name: str,
    *,
    credentials: grpc.ChannelCredentials | None = None,
    idempotent: Iterable[str] = (),
    options: Sequence[tuple[str, Any]] = (),
    compression: grpc.Compression | None = None,
    **settings: Unpack[Options],
) -> grpc.Channel:
    """Return a channel to the instances of the service *name*; no I/O until it is used.

    Args:
        name: ``greeter``, or as a host: ``v2.greeter.service.dc1.consul``.
        credentials: for TLS; a plain-text channel when None.
        idempotent: methods that may be repeated after they broke off: ``package.Service`` for all of a
            service's, ``package.Service/Method`` for one.
        options: channel arguments of gRPC, which win over those set here.
        compression: as in ``grpc.insecure_channel``.
        settings: see ``Options``.
    """
    balancer = Balancer("grpc", **settings)
    target = target_of(name, balancer)
    arguments = arguments_of(target, balancer, idempotent, options)

    def connect(addresses: str) -> grpc.Channel:
        if credentials is None:
            return grpc.insecure_channel(addresses, arguments, compression)
        return grpc.secure_channel(addresses, credentials, arguments, compression)

    return _Channel(balancer, target, connect)


def target_of(name: str, balancer: Balancer) -> Target:
    """Return the service that *name* means, a host or the name alone."""
    target = balancer.target(name)
    if target is None:
        host = f"{name}.service.{balancer.client.config.domain}"
        target = Target(host, service_name(name, origin="channel"))
    return target


def arguments_of(
    target: Target, balancer: Balancer, idempotent: Iterable[str], options: Sequence[tuple[str, Any]]
) -> list[tuple[str, Any]]:
    """Return the channel arguments (grpc_types.h) of each channel to *target*."""
    arguments: dict[str, Any] = {
        "grpc.default_authority": target.host,
        "grpc.ssl_target_name_override": target.host,  # nothing without TLS
        "grpc.service_config": json.dumps(_service_config(idempotent, balancer.attempts)),
    }
    return list((arguments | dict(options)).items())


class _Channel(grpc.Channel):
    """Passes each call on to the lane of the moment."""

    def __init__(self, balancer: Balancer, target: Target, connect: Callable[[str], grpc.Channel]) -> None:
        self._balancer = balancer
        self._target = target
        self._connect = connect
        self._lock = threading.Lock()
        self._lane: _Lane | None = None
        self._addresses = ""
        self._watch: Watch | None = None
        self._subscribers: dict[Connectivity, bool] = {}
        self._closed = False

    # --- calls

    def unary_unary(self, *arguments: Any, **keywords: Any) -> Any:
        return _Answered(self, "unary_unary", arguments, keywords)

    def stream_unary(self, *arguments: Any, **keywords: Any) -> Any:
        return _Answered(self, "stream_unary", arguments, keywords)

    def unary_stream(self, *arguments: Any, **keywords: Any) -> Any:
        return _Streamed(self, "unary_stream", arguments, keywords)

    def stream_stream(self, *arguments: Any, **keywords: Any) -> Any:
        return _Streamed(self, "stream_stream", arguments, keywords)

    def begin(self) -> _Lane:
        """Return the lane for a new call, which must ``end`` it.

        Raises:
            NoInstances: there are none, or the registry cannot be asked.
        """
        watch = self._watch
        lane = None if watch is not None and watch.closed else self._take()
        if lane is None:
            try:
                self._follow()
                lane = self._take()
                if lane is None:
                    # Empty: the lookup says why, unless the first instance has come just now.
                    self._balancer.client.lookup(
                        self._target.name, tags=self._target.tags, dc=self._target.dc
                    )
                    self._use(self._snapshot())
                    lane = self._take()
            except DiscoveryError as exc:
                raise NoInstances(str(exc)) from exc
        if lane is None:
            raise NoInstances(
                f"{self._target.name!r} has no instance in its own data centre; a channel does not fail over"
            )
        return lane

    # --- connectivity

    def subscribe(self, callback: Connectivity, try_to_connect: bool = False) -> None:
        """As gRPC's; while there are no instances the callback waits for the first to come."""
        try:
            self._follow()
        except DiscoveryError as exc:
            raise NoInstances(str(exc)) from exc
        with self._lock:
            self._subscribers[callback] = try_to_connect
            if self._lane is not None:
                self._lane.channel.subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Connectivity) -> None:
        with self._lock:
            self._subscribers.pop(callback, None)
            if self._lane is not None:
                self._lane.channel.unsubscribe(callback)

    # --- the set of instances

    def close(self) -> None:
        """Cut off all calls and close all connections; idempotent."""
        with self._lock:
            self._closed = True
            lane, self._lane = self._lane, None
            watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()
        if lane is not None:
            lane.channel.close()

    def __enter__(self) -> _Channel:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _take(self) -> _Lane | None:
        with self._lock:
            if self._closed:
                raise ValueError("Cannot invoke RPC on closed channel!")  # as gRPC's own channels do
            if self._lane is not None:
                self._lane.begin()
            return self._lane

    def _snapshot(self) -> Snapshot:
        return self._balancer.client.lookup_all(self._target.name, tags=self._target.tags, dc=self._target.dc)

    def _follow(self) -> None:
        before = self._watch
        if before is not None and not before.closed:  # by its client, which may be in use again
            return
        snapshot = self._snapshot()  # its errors say what is wrong; a watch would wait without a word
        watch = self._balancer.client.watch(self._target.name, tags=self._target.tags, dc=self._target.dc)
        with self._lock:
            mine = self._watch is before and not self._closed
            if mine:
                self._watch = watch
        if mine:
            self._use(snapshot)
            watch.on_change(_forward(weakref.ref(self), watch))
        else:
            watch.close()

    def _use(self, snapshot: Snapshot) -> None:
        """Let new calls go to the instances of *snapshot*."""
        addresses = addresses_of(snapshot)
        with self._lock:
            if self._closed or addresses == self._addresses:
                return
            self._addresses = addresses
            old, self._lane = self._lane, _Lane(self._connect(addresses)) if addresses else None
            for callback, try_to_connect in self._subscribers.items():
                if old is not None:
                    old.channel.unsubscribe(callback)
                if self._lane is not None:
                    self._lane.channel.subscribe(callback, try_to_connect)
        if old is not None:
            old.retire()

    def changed(self, snapshot: Snapshot) -> None:
        self._use(snapshot)
        observe.changed(snapshot)


class _Lane:
    """A gRPC channel to one set of instances, and how many calls are under way on it."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.methods: weakref.WeakKeyDictionary[_Method, Any] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        self._under_way = 0
        self._retired = False

    def begin(self) -> None:
        with self._lock:
            self._under_way += 1

    def end(self) -> None:
        with self._lock:
            self._under_way -= 1
            last = self._retired and not self._under_way
        if last:
            # Not in this thread: it may be the channel's own, which tells of calls that are over, and a
            # channel closed there waits for ever for events that only that thread would take.
            threading.Thread(target=self.channel.close, name="discovery-grpc-close", daemon=True).start()

    def retire(self) -> None:
        """Take no more calls, and close when there are none."""
        with self._lock:
            self._retired = True
            idle = not self._under_way
        if idle:
            self.channel.close()


class _Method:
    """One method of a stub, on whichever lane is the current one."""

    def __init__(
        self, owner: _Channel, kind: str, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> None:
        self._owner = owner
        self._kind = kind
        self._arguments = arguments
        self._keywords = keywords

    def _on(self, lane: _Lane) -> Any:
        method = lane.methods.get(self)
        if method is None:
            method = getattr(lane.channel, self._kind)(*self._arguments, **self._keywords)
            lane.methods[self] = method
        return method

    def _started(self, start: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Start a call that goes on after this returns, and end the lane's part in it when it is over."""
        lane = self._owner.begin()
        try:
            call = getattr(self._on(lane), start)(*arguments, **keywords)
        except BaseException:
            lane.end()
            raise
        if not call.add_callback(lane.end):
            lane.end()  # over already
        return call


class _Answered(_Method):
    """A method with one response."""

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        lane = self._owner.begin()
        try:
            return self._on(lane)(*arguments, **keywords)
        finally:
            lane.end()

    def with_call(self, *arguments: Any, **keywords: Any) -> Any:
        lane = self._owner.begin()
        try:
            return self._on(lane).with_call(*arguments, **keywords)
        finally:
            lane.end()

    def future(self, *arguments: Any, **keywords: Any) -> Any:
        return self._started("future", arguments, keywords)


class _Streamed(_Method):
    """A method with a stream of responses."""

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._started("__call__", arguments, keywords)


def _forward(channel: weakref.ref[_Channel], watch: Watch) -> Callable[[Snapshot], None]:
    """Return a callback that does not keep a channel alive which its user has dropped."""

    def changed(snapshot: Snapshot) -> None:
        owner = channel()
        if owner is not None:
            owner.changed(snapshot)
        else:
            watch.close()

    return changed


def _service_config(idempotent: Iterable[str], attempts: int) -> dict[str, Any]:
    """Return gRPC's service config (grpc/doc/service_config.md): round robin, and what may be repeated."""
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    names = [_method_name(method) for method in idempotent]
    if names and attempts > 1:
        policy = {
            "maxAttempts": min(attempts, MOST_ATTEMPTS),
            "initialBackoff": "0.01s",
            "maxBackoff": "0.1s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
        config["methodConfig"] = [{"name": names, "retryPolicy": policy}]
        config["retryThrottling"] = {"maxTokens": RETRY_TOKENS, "tokenRatio": RETRY_RATIO}
    return config


def _method_name(method: str) -> dict[str, str]:
    service, _, name = method.strip("/").partition("/")
    return {"service": service, "method": name} if name else {"service": service}


def addresses_of(instances: Iterable[Instance]) -> str:
    """Return the gRPC target of *instances* (grpc/doc/naming.md), empty when there are none."""
    found = {address for instance in instances if (address := _address(instance)) is not None}
    if not found:
        return ""
    if all(ip.version == 4 for ip, _ in found):
        return "ipv4:" + ",".join(sorted(f"{ip}:{port}" for ip, port in found))
    # One target cannot mix the two families; an IPv4 address has a form in IPv6 (RFC 4291 section 2.5.5.2).
    mapped = (f"[{ip if ip.version == 6 else f'::ffff:{ip}'}]:{port}" for ip, port in found)
    return "ipv6:" + ",".join(sorted(mapped))


def _address(instance: Instance) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int] | None:
    try:
        return ipaddress.ip_address(instance.host), instance.port
    except ValueError:
        pass
    # A name instead of an address is rare, and gRPC takes several addresses but only one name.
    try:
        host = socket.getaddrinfo(instance.host, instance.port, type=socket.SOCK_STREAM)[0][4][0]
    except OSError as exc:
        log.warning("cannot resolve %s of %s: %s", instance.host, instance.id, exc)
        return None
    return ipaddress.ip_address(host), instance.port
