"""resolver.follow: what is followed, since when, and until when."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, cast

import pytest

from discovery.engine import Engine as DiscoveryEngine
from discovery.engine import Known
from discovery.errors import RegistryTimeout, RegistryUnavailable, RequestRejected
from discovery.model import (
    ConnectQuery,
    IngressQuery,
    NamesQuery,
    NodesQuery,
    PreparedQuery,
    PreparedResult,
    Query,
    Reply,
    ServiceName,
    ServiceQuery,
)
from resolver import follow
from resolver.engine import Answer, AnswerSettings, Engine
from resolver.facts import AddressesQuery, AliasQuery, Fact, nothing
from resolver.follow import Follower
from resolver.zone import ZoneSettings
from tests.resolver.world import SERIAL, entry, node, packet

WEB = ServiceQuery(ServiceName("web"))


class Registry:
    """The catalogue and its readers in one: a read waits until the test has said what it answers."""

    where = "http://127.0.0.1:8500"

    def __init__(self) -> None:
        self.under_way: list[Query] = []
        self.most = 0  # reads at a time
        self._answers: dict[Query, Reply | Exception] = {}
        self._interrupted = False
        self._changed = threading.Condition()

    def connect(self) -> Registry:
        return self

    def read(self, query: Query, *, timeout: float) -> Reply:
        with self._changed:
            self.under_way.append(query)
            self.most = max(self.most, len(self.under_way))
            self._changed.wait_for(lambda: self._interrupted or query in self._answers)
            self.under_way.remove(query)
            if self._interrupted:
                raise RegistryUnavailable("interrupted")
            answer = self._answers.pop(query)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def answer(self, query: Query, answer: Reply | Exception) -> None:
        with self._changed:
            self._answers[query] = answer
            self._changed.notify_all()

    def interrupt(self) -> None:
        with self._changed:
            self._interrupted = True
            self._changed.notify_all()

    def close(self) -> None: ...


class Subscriptions:
    """Stands in for discovery's engine: remembers who subscribed and says what the test wants."""

    def __init__(self) -> None:
        self.catalogue = Registry()
        self.callbacks: dict[Query, Callable[[Known], None]] = {}
        self.ended: list[Query] = []

    def subscribe(self, query: Query, callback: Callable[[Known], None]) -> Callable[[], None]:
        self.callbacks[query] = callback

        def unsubscribe() -> None:
            self.ended.append(query)
            del self.callbacks[query]

        return unsubscribe

    def say(self, query: Query, value: Any = None, **how: Any) -> None:
        """Tell it to who is subscribed; else it is the answer to an inquiry."""
        if query in self.callbacks:
            self.callbacks[query](Known(query, value, fetched_at=time.monotonic(), **how))
        else:
            self.catalogue.answer(
                query, how.get("error") or Reply(value, 1, known_leader=not how.get("stale"))
            )


Use = Callable[[Subscriptions, Engine, Follower], Awaitable[None]]


def run(use: Use, *, idle: float = 600.0, max_stale: float = 600.0) -> None:
    async def main() -> None:
        subscriptions = Subscriptions()
        engine = Engine(
            ZoneSettings(),
            AnswerSettings(),
            monotonic=time.monotonic,
            wall_clock=lambda: float(SERIAL),
            random=Random(1),
        )
        follower = Follower(
            cast(DiscoveryEngine, subscriptions),
            engine,
            asyncio.get_running_loop(),
            idle=idle,
            max_stale=max_stale,
        )
        follower.start()
        try:
            await asyncio.wait_for(use(subscriptions, engine, follower), 10)
        finally:
            follower.close()
        assert not subscriptions.callbacks, "closing ends every subscription"

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until *condition* holds; the test's own time limit ends it otherwise."""
    while not condition():
        await asyncio.sleep(0.001)


def test_names_and_nodes_are_followed_from_the_start_and_a_service_when_asked_for() -> None:
    async def use(subscriptions: Subscriptions, engine: Engine, follower: Follower) -> None:
        assert set(subscriptions.callbacks) == {NamesQuery(), NodesQuery()}
        told: list[int] = []
        for number in range(3):
            follower.when_known(WEB, lambda number=number: told.append(number))  # type: ignore[misc]
        assert set(subscriptions.callbacks) == {NamesQuery(), NodesQuery(), WEB}
        subscriptions.say(WEB, (entry("web", "10.0.0.1"),))
        await until(lambda: told == [0, 1, 2])
        assert engine.facts[WEB] == Fact((entry("web", "10.0.0.1"),))
        follower.when_known(WEB, lambda: told.append(3))
        await until(lambda: told == [0, 1, 2, 3])

    run(use)


def test_a_failure_is_a_word_too() -> None:
    async def use(subscriptions: Subscriptions, engine: Engine, follower: Follower) -> None:
        told: list[bool] = []
        follower.when_known(WEB, lambda: told.append(True))
        subscriptions.say(WEB, None, error=RegistryTimeout("no answer in 5 s"))
        await until(lambda: bool(told))
        assert engine.facts[WEB] == Fact(None, stale=True, why="no answer in 5 s", timed_out=True)

    run(use)


def test_what_is_too_old_is_forgotten() -> None:
    async def use(subscriptions: Subscriptions, engine: Engine, follower: Follower) -> None:
        learned: list[Any] = []  # a busy machine may let both happen before anybody looks
        learn = engine.learn

        def note(query: Query | AddressesQuery | AliasQuery, fact: Fact) -> None:
            learned.append(fact.value)
            learn(query, fact)

        engine.learn = note  # type: ignore[method-assign]
        subscriptions.say(NamesQuery(), {"web": ()}, stale=True, error=RegistryUnavailable("refused"))
        await until(lambda: len(learned) == 2)
        assert learned == [{"web"}, None]
        assert engine.facts[NamesQuery()].value is None
        subscriptions.say(NamesQuery(), {"api": ()})
        await until(lambda: engine.facts[NamesQuery()] == Fact(frozenset({"api"})))

    run(use, max_stale=0.05)


def test_a_fresh_word_in_time_keeps_it() -> None:
    async def use(subscriptions: Subscriptions, engine: Engine, follower: Follower) -> None:
        loop = asyncio.get_running_loop()
        subscriptions.say(NamesQuery(), {"web": ()}, stale=True, error=RegistryUnavailable("refused"))
        await until(lambda: NamesQuery() in engine.facts)
        subscriptions.say(NamesQuery(), {"web": ()})
        await until(lambda: not engine.facts[NamesQuery()].stale)
        later = loop.time() + 0.2
        await until(lambda: loop.time() > later)
        assert engine.facts[NamesQuery()] == Fact(frozenset({"web"}))

    run(use, max_stale=0.1)


def test_a_name_that_nobody_asks_for_is_dropped_and_one_that_is_asked_for_is_not() -> None:
    api = ServiceQuery(ServiceName("api"))

    async def use(subscriptions: Subscriptions, engine: Engine, follower: Follower) -> None:
        subscriptions.say(NamesQuery(), {"web": (), "api": ()})
        for query in (WEB, api):
            follower.when_known(query, lambda: None)
            subscriptions.say(query, (entry(query.name, "10.0.0.1"),))
        await until(lambda: WEB in engine.facts and api in engine.facts)
        while WEB in engine.facts:
            # From the hot table, as the server does: the engine is not called, and still it counts.
            raw = packet("api.service.consul")
            ready = engine.tables["udp"].hot.get(raw[2:])
            if ready is None:
                assert isinstance(engine.decide(raw, "udp"), Answer)
            else:
                try:
                    ready()
                except StopIteration:
                    engine.tables["udp"].wind_up(raw[2:])
            await asyncio.sleep(0.001)
        assert subscriptions.ended == [WEB]
        assert api in engine.facts
        follower.when_known(WEB, lambda: None)
        assert WEB in subscriptions.callbacks, "and it comes back when asked for again"

    run(use, idle=1.0)  # a busy machine may well stand still for a tenth of this


def test_a_word_that_comes_after_the_name_was_dropped_is_not_taken_in() -> None:
    async def use(subscriptions: Subscriptions, engine: Engine, follower: Follower) -> None:
        told: list[bool] = []
        follower.when_known(WEB, lambda: told.append(WEB in engine.facts))
        late = subscriptions.callbacks[WEB]
        subscriptions.say(WEB, ())
        await until(lambda: told == [True])
        await until(lambda: WEB not in engine.facts)
        late(Known(WEB, (entry("web", "10.0.0.1"),)))
        subscriptions.say(NodesQuery(), ())
        await until(lambda: NodesQuery() in engine.facts)
        assert WEB not in engine.facts

    run(use, idle=0.05)


def test_a_data_centre_that_does_not_exist_costs_no_watch() -> None:
    rejected = RequestRejected("No path to datacenter", status=500)

    async def use(subscriptions: Subscriptions, engine: Engine, follower: Follower) -> None:
        for number in range(300):
            told: list[bool] = []
            query = NamesQuery(f"dc{number}")
            follower.when_known(query, lambda told=told: told.append(True))  # type: ignore[misc]
            subscriptions.say(query, error=rejected)
            await until(lambda told=told: bool(told))  # type: ignore[misc]
            assert engine.facts[query] == Fact(frozenset())
        assert set(subscriptions.callbacks) == {NamesQuery(), NodesQuery()}
        assert len(engine.facts) <= 256

    run(use)


STRANGERS = [
    PreparedQuery("made-up"),
    ConnectQuery(ServiceName("made-up")),
    IngressQuery(ServiceName("made-up")),
]


@pytest.mark.parametrize("query", STRANGERS)
@pytest.mark.parametrize("down", [False, True])
def test_a_stranger_that_leads_nowhere_is_remembered_for_a_moment_and_not_followed(
    query: Query, down: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "_NOTHING_KEPT", 0.05)

    async def use(subscriptions: Subscriptions, engine: Engine, follower: Follower) -> None:
        subscriptions.say(NamesQuery(), {"web": ()})
        told: list[Fact] = []
        follower.when_known(query, lambda: told.append(engine.facts[query]))
        if down:
            subscriptions.say(query, error=RegistryUnavailable("refused"))
        else:
            subscriptions.say(query, PreparedResult() if isinstance(query, PreparedQuery) else ())
        await until(lambda: bool(told))
        assert told == [Fact(None, stale=True, why="refused") if down else Fact(nothing(query))]
        assert query not in subscriptions.callbacks
        await until(lambda: query not in engine.facts)
        follower.when_known(query, lambda: None)
        await until(lambda: query in subscriptions.catalogue.under_way)  # it is asked for anew

    run(use)


def test_proxies_of_a_listed_service_are_followed_before_there_are_any() -> None:
    query = ConnectQuery(ServiceName("web"))

    async def use(subscriptions: Subscriptions, engine: Engine, follower: Follower) -> None:
        subscriptions.say(NamesQuery(), {"Web": ()})
        await until(lambda: NamesQuery() in engine.facts)
        follower.when_known(query, lambda: None)
        subscriptions.say(query, ())
        await until(lambda: query in engine.facts)
        assert query in subscriptions.callbacks

    run(use)


@pytest.mark.parametrize("query", STRANGERS)
def test_a_stranger_that_leads_somewhere_is_followed_until_it_does_not(query: Query) -> None:
    async def use(subscriptions: Subscriptions, engine: Engine, follower: Follower) -> None:
        found = (entry("web", "10.0.0.1"),)
        is_prepared = isinstance(query, PreparedQuery)
        follower.when_known(query, lambda: None)
        assert query not in subscriptions.callbacks
        subscriptions.say(query, PreparedResult(found) if is_prepared else found)
        await until(lambda: query in engine.facts)
        assert query in subscriptions.callbacks
        subscriptions.say(query, PreparedResult() if is_prepared else ())
        await until(lambda: query not in subscriptions.callbacks)
        assert engine.facts[query] == Fact(nothing(query))

    run(use)


def test_as_many_prepared_queries_are_followed_as_can_be_polled() -> None:
    async def use(subscriptions: Subscriptions, engine: Engine, follower: Follower) -> None:
        for number in range(100):
            told: list[bool] = []
            query = PreparedQuery(f"q{number}")
            follower.when_known(query, lambda told=told: told.append(True))  # type: ignore[misc]
            subscriptions.say(query, PreparedResult((entry("web", "10.0.0.1"),)))
            await until(lambda told=told: bool(told))  # type: ignore[misc]
        prepared = [query for query in subscriptions.callbacks if isinstance(query, PreparedQuery)]
        assert len(prepared) == 64
        assert PreparedQuery("q99") in prepared
        assert PreparedQuery("q0") not in engine.facts

    run(use)


def test_made_up_names_of_a_template_do_not_push_out_those_in_use() -> None:
    async def use(subscriptions: Subscriptions, engine: Engine, follower: Follower) -> None:
        subscriptions.say(NodesQuery(), (node(),))
        await until(lambda: NodesQuery() in engine.facts)
        for number in range(100):
            told: list[bool] = []
            query = PreparedQuery(f"q{number}")
            follower.when_known(query, lambda told=told: told.append(True))  # type: ignore[misc]
            subscriptions.say(query, PreparedResult((entry("web", "10.0.0.1"),)))
            await until(lambda told=told: bool(told))  # type: ignore[misc]
            for _ in range(2 if number == 0 else 1):
                assert isinstance(engine.decide(packet(f"q{number}.query.consul"), "udp"), Answer)
        assert PreparedQuery("q0") in subscriptions.callbacks
        assert PreparedQuery("q1") not in subscriptions.callbacks

    run(use)


def test_a_new_order_of_what_has_none_is_no_news() -> None:
    query = PreparedQuery("q")
    one, two = entry("web", "10.0.0.1"), entry("web", "10.0.0.2")

    async def use(subscriptions: Subscriptions, engine: Engine, follower: Follower) -> None:
        follower.when_known(query, lambda: None)
        subscriptions.say(query, PreparedResult((one,)))
        await until(lambda: query in subscriptions.callbacks)
        seen = []
        for ordered in (False, True):
            for entries in ((one, two), (two, one)):
                subscriptions.say(query, PreparedResult(entries, ordered=ordered))
                await asyncio.sleep(0)  # call_soon_threadsafe: in the next round of the loop
                seen.append(engine.facts[query].value.entries)
        assert seen == [(one, two), (one, two), (one, two), (two, one)]

    run(use)


def test_few_strangers_are_asked_for_at_a_time_and_few_wait() -> None:
    async def use(subscriptions: Subscriptions, engine: Engine, follower: Follower) -> None:
        told: list[int] = []
        names = [NamesQuery(f"dc{number}") for number in range(100)]
        for number, query in enumerate(names):
            waits = follower.when_known(query, lambda number=number: told.append(number))  # type: ignore[misc]
            assert waits == (number < 64)
        for query in names:
            subscriptions.say(query, error=RequestRejected("No path to datacenter", status=500))
        await until(lambda: len(told) == 64)
        assert set(told) == set(range(64))
        assert subscriptions.catalogue.most <= 2
        assert set(subscriptions.callbacks) == {NamesQuery(), NodesQuery()}

    run(use)


def test_while_the_catalogue_is_away_no_stranger_is_asked_for() -> None:
    async def use(subscriptions: Subscriptions, engine: Engine, follower: Follower) -> None:
        subscriptions.say(NamesQuery(), {"web": ()}, stale=True, error=RegistryTimeout("no answer in 5 s"))
        await until(lambda: NamesQuery() in engine.facts)
        told: list[Fact] = []
        query = PreparedQuery("q")
        follower.when_known(query, lambda: told.append(engine.facts[query]))
        await until(lambda: bool(told))
        assert told == [Fact(None, stale=True, why="no answer in 5 s", timed_out=True)]

    run(use)


def test_what_a_leaderless_server_says_of_a_stranger_denies_nothing() -> None:
    async def use(subscriptions: Subscriptions, engine: Engine, follower: Follower) -> None:
        told: list[bool] = []
        query = PreparedQuery("q")
        follower.when_known(query, lambda: told.append(engine.facts[query].stale))
        subscriptions.say(query, PreparedResult(), stale=True)
        await until(lambda: told == [True])

    run(use)
