"""The embedded agent as a whole: state, clocks, checks and HTTP server, put together.

    HTTP threads ──requests──> API ──> State ──definitions──> Runner (a thread per HTTP or TCP check)
         ▲                               ▲  │                    │
         └────────── ring peers ─────────┼──┴── results ◄────────┘
                                       ticker: TTLs and other deadlines

Laws:
- One lock guards the state; nobody waits for anything else while holding it.
- After each change, under the same lock: the readers of the touched topics are woken, the runner follows the
  definitions, the ticker learns of an earlier deadline. ``_changed`` is the one place.
- What ``start`` began ``close`` ends: threads and sockets, also under pending blocking reads.
"""

from __future__ import annotations

import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from types import TracebackType
from typing import Self

from discovery.agent.api import API, VERSION, Request, Response
from discovery.agent.checks import Runner
from discovery.agent.http import Peer, Server
from discovery.agent.state import CHECK_UPDATE_INTERVAL, State
from discovery.agent.topics import Topic
from discovery.model import Check, Node, NodeName, Status

__all__ = ["Agent"]


class Agent:
    """A Consul agent for one host, in memory.

        with Agent(http=("127.0.0.1", 0)) as agent:
            backend = open_backend(agent.uri, Config())

    Closed and started again it comes back at the same address with empty memory, as a Consul agent in its
    development mode does.

    Args:
        http: where to listen; port 0 takes a free one.
        also: further addresses to listen on, docker0's for example.
        node: the node's name; None is this host's.
        dc: the name of the data centre.
        address: what the node advertises: instances without an address of their own are reached there.
        check_update_interval: seconds that a changed output of a check, its status the same, is kept from the
            catalogue, on average (Consul: "check_update_interval"); 0 publishes it at once.
    """

    def __init__(
        self,
        *,
        http: tuple[str, int] = ("127.0.0.1", 8500),
        also: Sequence[tuple[str, int]] = (),
        node: str | None = None,
        dc: str = "dc1",
        address: str = "127.0.0.1",
        check_update_interval: float = CHECK_UPDATE_INTERVAL,
    ) -> None:
        version = 6 if ":" in address else 4
        self.node: Node = Node(
            name=NodeName(node or socket.gethostname()),
            address=address,
            dc=dc,
            id=str(uuid.uuid4()),
            tagged_addresses=dict.fromkeys(("lan", f"lan_ipv{version}", "wan", f"wan_ipv{version}"), address),
            meta={"consul-network-segment": "", "consul-version": VERSION},
        )
        self._http = http
        self._also = tuple(also)
        self._check_update_interval = check_update_interval
        self._life: _Life | None = None
        self._closed = threading.Event()

    @property
    def http(self) -> tuple[str, int]:
        """Host and port of the HTTP API; the real port once the agent has started."""
        return self._http

    @property
    def url(self) -> str:
        """``http://127.0.0.1:PORT`` of the HTTP API: where to reach it from this host."""
        return f"http://{self._reachable}"

    @property
    def uri(self) -> str:
        """``consul://127.0.0.1:PORT``, the form that ``open_backend`` and the registrar take."""
        return f"consul://{self._reachable}"

    @property
    def _reachable(self) -> str:
        host, port = self._http
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def start(self) -> Self:
        """Listen and serve; returns at once.

        Raises:
            ConfigurationError: nobody can listen at the address.
        """
        if self._life is None:
            self._closed.clear()
            self._life = _Life(self.node, (self._http, *self._also), self._check_update_interval)
            self._http = self._life.addresses[0]
        return self

    def close(self) -> None:
        """Hang up on everybody and end every thread; idempotent. Blocking reads under way fail."""
        life, self._life = self._life, None
        if life is not None:
            life.end()
        self._closed.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Rest until somebody calls ``close``, or for *timeout* seconds; say whether it is closed."""
        return self._closed.wait(timeout)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Agent {self.node.name} {self.url} {'running' if self._life else 'closed'}>"


class _Life:
    """An agent from its start to its end; creating it is the start."""

    def __init__(self, node: Node, http: Sequence[tuple[str, int]], check_update_interval: float) -> None:
        # First: only this can fail, and a second address that is taken must not leave the first one open.
        with ExitStack() as opened:
            self._servers = [opened.enter_context(closing(Server(address, self._serve))) for address in http]
            opened.pop_all()
        self.addresses = [server.address for server in self._servers]
        self._lock = threading.Lock()
        self._ending = False
        self._waiting: dict[Topic, set[Peer]] = {}
        self._state = State(
            node, random=random.random, now=time.monotonic(), check_update_interval=check_update_interval
        )
        self._api = API(self._state, random=random.random)
        self._runner = Runner(self._report, random=random.random)
        self._definitions_seen = self._state.definitions_version
        self._ticks_at = self._state.next_due()
        self._earlier = threading.Condition(self._lock)
        self._ticker = threading.Thread(target=self._tick, name="agent-ticker", daemon=True)
        self._ticker.start()
        for server in self._servers:
            server.start()

    def end(self) -> None:
        with self._lock:
            self._ending = True
            self._earlier.notify()
            for peers in self._waiting.values():
                for peer in peers:
                    peer.ring()
        for server in self._servers:
            server.close()
        self._runner.close()
        self._ticker.join()

    # --- the threads: of a connection, of a check, of the clock

    def _serve(self, request: Request, peer: Callable[[], Peer]) -> Response | None:
        now = time.monotonic()
        with self._lock:
            outcome = self._api.handle(request, now)
            self._changed()
        if isinstance(outcome, Response):
            return outcome
        deadline = now + outcome.wait
        with self._waiting_for(outcome.topic, peer()) as waiting:
            while True:
                left = deadline - time.monotonic()
                with self._lock:
                    if outcome.ready() or left <= 0:
                        return outcome.answer()
                if self._ending or not waiting.wait(left):
                    return None

    def _report(self, check: Check, status: Status, output: str) -> None:
        with self._lock:
            if not self._ending:
                self._state.report_run(check, status, output, time.monotonic())
                self._changed()

    def _tick(self) -> None:
        with self._lock:
            while not self._ending:
                self._ticks_at = self._state.next_due()
                left = self._ticks_at - time.monotonic()
                if left > 0:
                    self._earlier.wait(left)
                else:
                    self._state.tick(time.monotonic())
                    self._changed()

    # --- under the lock

    def _changed(self) -> None:
        for topic in self._state.catalogue.take_touched():
            for peer in self._waiting.get(topic, ()):
                peer.ring()
        if self._definitions_seen != self._state.definitions_version and not self._ending:
            self._definitions_seen = self._state.definitions_version
            self._runner.follow(self._state.definitions)
        if self._state.next_due() < self._ticks_at:
            self._earlier.notify()

    @contextmanager
    def _waiting_for(self, topic: Topic, peer: Peer) -> Iterator[Peer]:
        with self._lock:
            self._waiting.setdefault(topic, set()).add(peer)
        try:
            yield peer
        finally:
            with self._lock:
                peers = self._waiting[topic]
                peers.discard(peer)
                if not peers:
                    del self._waiting[topic]
