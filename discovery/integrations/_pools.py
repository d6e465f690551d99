"""One pool of connections per instance, closed when its instance leaves.

    client.watch(name) ──change──> pools of instances that are gone ──> retired
    request ──lease──> the pool of the instance that it goes to

Laws:
- A pool is made when the first request goes to its instance, and retired by the change that takes the
  instance away, in the thread that learned of it.
- A request that was given its instance just before that change may make the pool anew: the request's end
  retires it again.
- A client that was closed has ended our watches with it; the next request begins new ones.
- A child process begins without pools: a connection that two processes write to belongs to neither.
- An owner that is dropped without being closed drops its pools with it: callbacks hold it weakly.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from discovery import observe
from discovery.client import Client, Watch
from discovery.integrations._balancer import Balancer, Target
from discovery.model import Instance, ServiceName, Snapshot

__all__ = ["Pools"]

P = TypeVar("P")
_Service = tuple[Client, ServiceName, str | None]
"""Whose instances are followed. With the client, because tests exchange the default one."""
_Key = tuple[_Service, str, Instance]
"""Of a pool. With the host, because a TLS connection is good for one name only."""


class Pools(Generic[P]):
    """The pools of one session.

    Args:
        balancer: whose client follows the services.
        make: makes the pool of an instance; called with a lock held, must not wait.
        retire: called once with a pool that no new request will be given, from any thread; closes what is
            idle and lets requests under way finish.
    """

    def __init__(
        self,
        balancer: Balancer,
        make: Callable[[Target, Instance], P],
        retire: Callable[[P], None],
    ) -> None:
        self._balancer = balancer
        self._make = make
        self._retire = retire
        self._lock = threading.Lock()
        self._pools: dict[_Key, P] = {}
        self._live: dict[_Service, frozenset[Instance]] = {}
        self._centres: dict[_Service, set[str]] = {}  # data centres that its instances have been in
        self._watches: dict[_Service, Watch] = {}
        _all.add(self)

    def ready(self, target: Target) -> bool:
        """Say whether *target* is followed and has instances, so that nobody has to wait for them."""
        return self._is_ready(self._service(target))

    def follow(self, target: Target) -> None:
        """Make sure that *target* is followed and has instances. Waits unless it is ``ready``.

        Raises:
            DiscoveryError: as ``Client.lookup``.
        """
        service = self._service(target)
        if not self._is_ready(service):
            self._balancer.client.lookup(target.name, tags=target.tags, dc=target.dc)
            self._watch(service)

    def _is_ready(self, service: _Service) -> bool:
        watch = self._watches.get(service)
        return watch is not None and not watch.closed and bool(self._live.get(service))

    def _watch(self, service: _Service) -> None:
        before = self._watches.get(service)
        if before is not None and not before.closed:
            return
        client, name, dc = service
        watch = client.watch(name, dc=dc)
        with self._lock:
            mine = self._watches.get(service) is before
            if mine:
                self._watches[service] = watch
        if mine:
            # Without the lock: callbacks come with locks of the engine held, and take ours.
            watch.on_change(_forward(weakref.ref(self), service, watch))
        else:
            watch.close()

    @contextmanager
    def lease(self, target: Target, instance: Instance) -> Iterator[P]:
        """Lend the pool of *instance* for one request."""
        service = self._service(target)
        if instance.dc and instance.dc not in self._centres.get(service, ()):
            # From a data centre that lookups fall back to: whether it left is for that one to say.
            service = (*service[:2], instance.dc)
            self._watch(service)
        key = (service, target.host, instance)
        pool = self._pools.get(key)
        if pool is None:
            with self._lock:
                pool = self._pools.get(key)
                if pool is None:
                    pool = self._pools[key] = self._make(target, instance)
        try:
            yield pool
        finally:
            if instance not in self._live.get(service, (instance,)):
                self._sweep(service)

    def close(self) -> list[P]:
        """Follow nothing and forget all pools; returns them for the caller to close. Usable again after."""
        with self._lock:
            pools, self._pools = self._pools, {}
            watches, self._watches = self._watches, {}
            self._live, self._centres = {}, {}
        for watch in watches.values():
            watch.close()
        return list(pools.values())

    def _service(self, target: Target) -> _Service:
        return self._balancer.client, target.name, target.dc

    def _changed(self, service: _Service, watch: Watch, snapshot: Snapshot) -> None:
        with self._lock:
            if self._watches.get(service) is not watch:
                return  # closed meanwhile
            self._centres.setdefault(service, set()).update(instance.dc for instance in snapshot)
            self._live[service] = frozenset(snapshot)
        self._sweep(service)
        observe.changed(snapshot)

    def _sweep(self, service: _Service) -> None:
        """Retire the pools of *service* whose instances are not there any more."""
        with self._lock:
            live = self._live.get(service)
            if live is None:
                return  # closed meanwhile
            gone = [key for key in self._pools if key[0] == service and key[2] not in live]
            retired = [self._pools.pop(key) for key in gone]
        for pool in retired:
            self._retire(pool)

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        self._pools = {}
        self._live = {}
        self._centres = {}
        self._watches = {}
        self._balancer.after_fork()


def _forward(pools: weakref.ref[Pools[P]], service: _Service, watch: Watch) -> Callable[[Snapshot], None]:
    def changed(snapshot: Snapshot) -> None:
        owner = pools()
        if owner is not None:
            owner._changed(service, watch, snapshot)
        else:
            watch.close()

    return changed


_all: weakref.WeakSet[Pools[Any]] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for pools in list(_all):
        pools._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
