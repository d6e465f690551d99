"""resolver.failover: from agent to agent."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from discovery.agent import Agent
from discovery.backends import open_backend
from discovery.config import Config
from discovery.errors import RegistryUnavailable, RequestRejected
from discovery.model import NamesQuery, Query, Reply, Source
from resolver.config import Settings
from resolver.failover import Failover
from resolver.server import Resolver
from tests.resolver.conftest import ANYWHERE, addresses, ask
from tests.resolver.test_server import register
from tests.tools import wait_until


class Scripted:
    """A backend and its reader in one: answers, or raises what it was told to."""

    source: Source = "http"

    def __init__(self, where: str, error: Exception | None = None) -> None:
        self.where = where
        self.error = error
        self.asked: list[int] = []

    def connect(self) -> Scripted:
        return self

    def read(self, query: Query, *, index: int = 0, wait: float = 0.0, timeout: float = 10.0) -> Reply:
        self.asked.append(index)
        if self.error is not None:
            raise self.error
        return Reply({self.where: ()}, index=7)

    def interrupt(self) -> None:
        self.error = RegistryUnavailable("interrupted")

    def close(self) -> None: ...


def failover(*agents: Scripted) -> Failover:
    return Failover(agents)  # type: ignore[arg-type]


def test_the_first_is_asked_until_it_fails_and_then_the_next() -> None:
    a, b = Scripted("a"), Scripted("b")
    both = failover(a, b)
    reader, other = both.connect(), both.connect()
    assert reader.read(NamesQuery()).value == {"a": ()}
    assert reader.read(NamesQuery(), index=7).value == {"a": ()}
    a.error = RegistryUnavailable("down")
    assert reader.read(NamesQuery(), index=7).value == {"b": ()}
    assert other.read(NamesQuery(), index=7).value == {"b": ()}, "all move together"
    a.error = None
    assert reader.read(NamesQuery(), index=7).value == {"b": ()}, "and stay there"
    assert both.where == "b"
    assert a.asked == [0, 7, 7]
    assert b.asked == [0, 0, 7], "an index is only shown to the agent that it came from"


def test_a_refusal_is_an_answer() -> None:
    a, b = Scripted("a", RequestRejected("no", status=400)), Scripted("b")
    with pytest.raises(RequestRejected):
        failover(a, b).read(NamesQuery())
    assert b.asked == []


def test_when_none_answers_the_error_names_all() -> None:
    a, b = Scripted("a", RegistryUnavailable("a is down")), Scripted("b", RegistryUnavailable("b is down"))
    with pytest.raises(RegistryUnavailable, match=r"a is down; b is down"):
        failover(a, b).read(NamesQuery())


def test_an_interrupted_reader_asks_nobody_else() -> None:
    a, b = Scripted("a"), Scripted("b")
    reader = failover(a, b).connect()
    reader.read(NamesQuery())
    reader.interrupt()
    with pytest.raises(RegistryUnavailable, match="interrupted"):
        reader.read(NamesQuery())
    assert b.asked == []


@pytest.fixture
def two_agents() -> Iterator[tuple[Agent, Agent]]:
    with Agent(http=("127.0.0.1", 0), node="a") as one, Agent(http=("127.0.0.1", 0), node="b") as two:
        yield one, two


def test_answers_go_on_with_the_second_agent_and_are_fresh(two_agents: tuple[Agent, Agent]) -> None:
    one, two = two_agents
    for agent in two_agents:
        register(agent, "w1", "10.0.0.1")
    both = Failover([open_backend(agent.uri, Config()) for agent in two_agents])
    with Resolver(Settings(listen=(ANYWHERE,), upstreams=()), both) as resolver:
        assert addresses(ask(resolver, "web.service.consul")) == ["10.0.0.1"]
        one.close()
        register(two, "w2", "10.0.0.2")
        wait_until(lambda: len(addresses(ask(resolver, "web.service.consul"))) == 2)
        wait_until(lambda: not ask(resolver, "web.service.consul", use_edns=0).options)
        register(two, "w3", "10.0.0.3")
        wait_until(lambda: len(addresses(ask(resolver, "web.service.consul"))) == 3)
    both.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("discovery-watch")]
