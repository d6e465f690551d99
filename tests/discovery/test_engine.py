"""The laws of the engine, one by one, on a catalogue that does what the test says."""

from __future__ import annotations

import gc
import itertools
import logging
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from discovery import engine as engine_module
from discovery.config import Config
from discovery.engine import Engine, Known
from discovery.errors import (
    AccessDenied,
    DiscoveryError,
    RegistryOverloaded,
    RegistryTimeout,
    RegistryUnavailable,
    RequestRejected,
)
from discovery.model import NamesQuery, PreparedQuery
from tests.discovery.fake import FakeCatalogue, Heard, entry, service
from tests.tools import wait_until

WEB = service("web")
API = service("api")
ONE, TWO = entry(port=1), entry(port=2)
PROMPT = 3.0  # s; generous for a loaded machine, and less than any wait that must not happen


@pytest.fixture(autouse=True)
def tenfold_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's pauses, divided by ten: the tests below measure them against these names."""
    for name in ("POLL", "LEADERLESS_PAUSE", "BACKOFF_MIN", "BACKOFF_MAX", "_BURST_SECONDS"):
        monkeypatch.setattr(engine_module, name, getattr(engine_module, name) / 10)


@pytest.fixture
def catalogue() -> FakeCatalogue:
    fake = FakeCatalogue()
    fake.set(WEB, ONE)
    fake.set(API, entry("api"))
    return fake


@pytest.fixture
def start(catalogue: FakeCatalogue) -> Iterator[Callable[..., Engine]]:
    """Make engines that are closed when the test ends, all their threads gone and readers closed."""
    made: list[Engine] = []

    def make(**settings: object) -> Engine:
        made.append(Engine(catalogue, Config(**settings)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for engine in made:
        engine.close()
    assert not engine_threads()
    assert not catalogue.open_readers


@pytest.fixture
def engine(start: Callable[..., Engine]) -> Engine:
    return start()


def engine_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("discovery-")]


def queries(count: int) -> list:
    return [service(f"service-{n}") for n in range(count)]


# --- reading -------------------------------------------------------------------------------------------


def test_creating_an_engine_asks_nothing_and_starts_nothing(catalogue):
    engine = Engine(catalogue, Config())
    assert not engine_threads()
    assert not catalogue.asks
    engine.close()


def test_get_never_waits_and_starts_to_follow(engine, catalogue):
    catalogue.change(silent=True)
    assert engine.get(WEB) is None
    catalogue.change(silent=False)
    known = wait_until(lambda: engine.get(WEB))
    assert known == Known(WEB, (ONE,), known.index, known.fetched_at)
    catalogue.set(WEB, ONE, TWO)
    wait_until(lambda: engine.get(WEB).value == (ONE, TWO), message="the change arrives")


def test_fetch_waits_for_the_first_answer_only(engine, catalogue):
    assert engine.fetch(WEB, 5).value == (ONE,)
    catalogue.change(silent=True)
    assert engine.fetch(WEB, 0).value == (ONE,)


def test_fetch_gives_up_in_time(engine, catalogue):
    catalogue.change(silent=True)
    start = time.monotonic()
    with pytest.raises(RegistryTimeout, match=r"fake://registry did not answer within 0\.1 s"):
        engine.fetch(WEB, 0.1)
    assert time.monotonic() - start < PROMPT


def test_fetch_may_wait_for_ever(engine):
    assert engine.fetch(WEB, float("inf")).value == (ONE,)


def test_what_arrives_after_a_fetch_gave_up_is_kept(engine, catalogue):
    catalogue.change(silent=True)
    with pytest.raises(RegistryTimeout):
        engine.fetch(WEB, 0.05)
    catalogue.change(silent=False)
    wait_until(lambda: engine.get(WEB), message="the answer arrives later")


def test_an_authoritative_empty_answer_is_empty(engine, catalogue):
    assert engine.fetch(service("none"), 5).value == ()
    engine.fetch(WEB, 5)
    catalogue.set(WEB)
    wait_until(lambda: engine.get(WEB).value == (), message="the last instance goes")


def test_one_question_has_one_reader_however_many_ask_it(engine, catalogue):
    heard = [Heard() for _ in range(8)]
    with ThreadPoolExecutor(16) as threads:
        fetched = [threads.submit(engine.fetch, WEB, 5) for _ in range(32)]
        for one in heard:
            threads.submit(engine.subscribe, WEB, one)
        assert {call.result().value for call in fetched} == {(ONE,)}
    for one in heard:
        one.value(ONE)
    catalogue.set(WEB, TWO)
    for one in heard:
        one.value(TWO)
    assert len({ask.reader for ask in catalogue.asked(WEB)}) == 1
    assert len(engine_threads()) == 1


# --- subscribing ---------------------------------------------------------------------------------------


def test_a_subscriber_hears_what_is_known_at_once_and_then_every_change(engine, catalogue):
    first, second = Heard(), Heard()
    engine.subscribe(WEB, first)
    first.value(ONE)
    engine.subscribe(WEB, second)
    assert [known.value for known in second.all] == [(ONE,)]  # before subscribe returned
    for instances in [(ONE, TWO), (TWO,), ()]:
        catalogue.set(WEB, *instances)
        first.value(*instances)
        second.value(*instances)
    assert [known.value for known in first.all] == [(ONE,), (ONE, TWO), (TWO,), ()]


def test_a_return_without_a_change_is_not_told(engine, catalogue):
    heard = Heard()
    engine.subscribe(WEB, heard)
    heard.value(ONE)
    asked = len(catalogue.asked(WEB))
    catalogue.set(WEB, entry(port=1))  # registered again as it was
    wait_until(lambda: len(catalogue.asked(WEB)) > asked)
    catalogue.set(WEB, TWO)
    heard.value(TWO)
    assert [known.value for known in heard.all] == [(ONE,), (TWO,)]


def test_an_equal_answer_keeps_the_object(engine, catalogue):
    before = engine.fetch(WEB, 5)
    catalogue.set(WEB, entry(port=1))
    after = wait_until(lambda: (now := engine.get(WEB)).index > before.index and now)
    assert after.value is before.value


def test_unsubscribing_frees_the_watch_at_once(engine, catalogue):
    heard = Heard()
    unsubscribe = engine.subscribe(WEB, heard)
    heard.value(ONE)
    unsubscribe()
    wait_until(lambda: not engine_threads() and not catalogue.open_readers, PROMPT)
    unsubscribe()  # again is no error
    catalogue.set(WEB, TWO)
    engine.subscribe(WEB, other := Heard())
    other.value(TWO)
    assert [known.value for known in heard.all] == [(ONE,)]


def test_unsubscribing_leaves_the_others_and_those_who_read(engine, catalogue):
    heard = Heard()
    end_one, end_other = engine.subscribe(WEB, lambda known: None), engine.subscribe(WEB, heard)
    end_one()
    catalogue.set(WEB, TWO)
    heard.value(TWO)
    assert engine.get(WEB).value == (TWO,)
    for instances in [(ONE,), (TWO,)]:  # the watch has returned since somebody read
        catalogue.set(WEB, *instances)
        heard.value(*instances)
    end_other()
    assert engine.get(WEB).value == (TWO,)
    assert len({ask.reader for ask in catalogue.asked(WEB)}) == 1


def test_a_subscriber_that_fails_harms_nobody_else(engine, catalogue, caplog):
    def fails(known: Known) -> None:
        raise ZeroDivisionError("the subscriber's own fault")

    engine.subscribe(WEB, fails)
    engine.subscribe(WEB, heard := Heard())
    for instances in [(TWO,), (ONE,)]:
        catalogue.set(WEB, *instances)
        heard.value(*instances)
    assert "the subscriber's own fault" in caplog.text


def test_a_subscriber_may_use_the_engine_from_its_callback(engine, catalogue):
    """With a lock of the engine held, each of these would wait for ever for another thread."""
    results: list[object] = []
    with ThreadPoolExecutor(1) as threads:

        def callback(known: Known) -> None:
            if known.value != (TWO,):
                return
            results.append(threads.submit(engine.fetch, WEB, 5).result(5).value)
            threads.submit(engine.get, API).result(5)
            threads.submit(engine.subscribe, WEB, Heard()).result(5)()
            unsubscribe()
            results.append(engine.fetch(API, 5).value)

        unsubscribe = engine.subscribe(WEB, callback)
        engine.fetch(WEB, 5)
        catalogue.set(WEB, TWO)
        wait_until(lambda: len(results) == 2)
    assert results == [(TWO,), (entry("api"),)]


def test_a_callback_may_close_the_engine(engine, catalogue):
    def callback(known: Known) -> None:
        engine.close()
        closed.set()

    closed = threading.Event()
    engine.subscribe(WEB, callback)
    assert closed.wait(5)
    wait_until(lambda: not engine_threads())


def test_a_slow_subscriber_does_not_hold_up_reading(engine, catalogue):
    go_on, inside = threading.Event(), threading.Event()

    def slow(known: Known) -> None:
        inside.set()
        go_on.wait(10)

    catalogue.change(silent=True)  # else it may be told at once, in this thread
    engine.subscribe(WEB, slow)
    catalogue.change(silent=False)
    assert inside.wait(5)
    start = time.monotonic()
    assert engine.get(WEB).value == (ONE,)
    assert engine.fetch(WEB, 5).value == (ONE,)
    engine.subscribe(WEB, heard := Heard())
    assert heard.all
    assert time.monotonic() - start < PROMPT
    go_on.set()


def test_nobody_hears_something_older_than_what_it_heard(engine, catalogue):
    """Subscribers come while answers arrive: greeting and news meet in two threads."""
    stop = threading.Event()
    orders: list[Heard] = []

    def churn() -> None:
        for n in range(300):
            catalogue.set(WEB, entry(port=n + 1))
        stop.set()

    with ThreadPoolExecutor(4) as threads:
        engine.fetch(WEB, 5)
        churning = threads.submit(churn)
        while not stop.is_set():
            orders.append(Heard())
            threads.submit(engine.subscribe, WEB, orders[-1]).result()
        churning.result()
    for heard in orders:
        heard.value(entry(port=300))
        indexes = [known.index for known in heard.all]
        assert indexes == sorted(indexes)


# --- indexes -------------------------------------------------------------------------------------------


def test_a_read_blocks_on_the_index_of_the_last_answer(engine, catalogue):
    known = engine.fetch(WEB, 5)
    wait_until(lambda: len(catalogue.asked(WEB)) == 2)
    assert [ask.index for ask in catalogue.asked(WEB)] == [0, known.index]


def test_an_index_that_goes_backwards_starts_anew(engine, catalogue):
    engine.fetch(WEB, 5)
    wait_until(lambda: len(catalogue.asked(WEB)) == 2)
    catalogue.rewind(3)
    catalogue.release_blocked()  # the read's wait is over, and the restored server says index 3
    wait_until(lambda: len(catalogue.asked(WEB)) == 4)
    assert [ask.index for ask in catalogue.asked(WEB)][2:] == [0, 3]
    catalogue.set(WEB, TWO)  # index 4: below the old one, and seen all the same
    wait_until(lambda: engine.get(WEB).value == (TWO,))


def test_the_index_0_is_never_waited_on(engine, catalogue):
    catalogue.rewind(0)
    engine.fetch(WEB, 5)
    wait_until(lambda: len(catalogue.asked(WEB)) == 2)
    assert catalogue.asked(WEB)[1].index == 1


def test_a_registry_that_answers_at_once_each_time_is_asked_at_a_bounded_rate(engine, catalogue):
    catalogue.change(strips_index=True)
    engine.fetch(WEB, 5)
    asked = wait_until(lambda: len(catalogue.asked(WEB)) >= 48 and catalogue.asked(WEB))
    # The first 16 may come at once; each 16 more take this time at least, in pauses or because they did.
    assert asked[47].at - asked[0].at > 1.5 * engine_module._BURST_SECONDS


def test_news_is_not_held_up_however_often_it_comes(engine, catalogue, monkeypatch):
    monkeypatch.setattr(engine_module, "_BURST_SECONDS", 3600.0)
    engine.subscribe(WEB, heard := Heard())
    for port in range(2, 50):
        catalogue.set(WEB, ONE, entry(port=port))
        heard.value(ONE, entry(port=port))


# --- a cluster without a leader ------------------------------------------------------------------------


def test_without_a_leader_what_is_known_is_kept_and_stale(engine, catalogue, monkeypatch):
    monkeypatch.setattr(engine_module, "LEADERLESS_PAUSE", 0.01)
    engine.subscribe(WEB, heard := Heard())
    confirmed = heard.value(ONE)
    catalogue.change(leader=False)
    catalogue.set(WEB)  # a server that has just started knows nothing yet
    lost = heard.until(lambda known: known.stale)
    assert lost.value == (ONE,)
    assert lost.fetched_at == confirmed.fetched_at
    assert isinstance(lost.error, RegistryUnavailable)
    assert "have no leader" in str(lost.error)
    asked = len(catalogue.asked(WEB))
    wait_until(lambda: len(catalogue.asked(WEB)) > asked + 2)
    assert {ask.index for ask in catalogue.asked(WEB)[asked + 1 :]} == {0}  # asked, not waited for
    catalogue.change(leader=True)
    assert heard.until(lambda known: not known.stale).value == ()
    assert heard.last.error is None


def test_without_a_leader_an_answer_is_better_than_none(engine, catalogue):
    catalogue.change(leader=False)
    known = engine.fetch(WEB, 5)
    assert known.value == (ONE,)
    assert known.stale


def test_servers_without_a_leader_are_not_asked_in_a_hurry(engine, catalogue):
    catalogue.change(leader=False)
    engine.fetch(WEB, 5)
    first, second = wait_until(lambda: len(asked := catalogue.asked(WEB)) == 2 and asked)
    assert second.at - first.at >= engine_module.LEADERLESS_PAUSE


# --- an outage -----------------------------------------------------------------------------------------


def test_an_outage_keeps_what_is_known_and_says_stale(engine, catalogue):
    engine.subscribe(WEB, heard := Heard())
    confirmed = heard.value(ONE)
    catalogue.fail()
    lost = heard.until(lambda known: known.stale)
    assert lost.value == (ONE,)
    assert lost.fetched_at == confirmed.fetched_at
    assert lost.error is catalogue.down
    assert engine.fetch(WEB, 5) == lost
    catalogue.set(WEB, TWO)
    catalogue.recover()
    heard.value(TWO)
    assert [known.stale for known in heard.all] == [False, True, False]


def test_in_an_outage_one_follower_of_all_tries_with_pauses(engine, catalogue):
    followed = queries(20)
    heard = {query: Heard() for query in followed}
    for query, one in heard.items():
        catalogue.set(query, ONE)
        engine.subscribe(query, one)
    for one in heard.values():
        one.value(ONE)
    wait_until(lambda: all(len(catalogue.asked(query)) == 2 for query in followed))
    before = len(catalogue.asks)
    catalogue.fail()
    for one in heard.values():
        one.until(lambda known: known.stale)
    wait_until(lambda: len(catalogue.asks) >= before + 5, message="five attempts")
    attempts = catalogue.asks[before:]
    pauses = [later.at - earlier.at for earlier, later in itertools.pairwise(attempts)]
    assert min(pauses) >= engine_module.BACKOFF_MIN / 2
    assert catalogue.at_once == 1
    catalogue.recover()
    for one in heard.values():
        one.value(ONE)


def test_while_one_attempt_hangs_nobody_else_tries(engine, catalogue):
    followed = queries(10)
    heard = {query: Heard() for query in followed}
    for query, one in heard.items():
        engine.subscribe(query, one)
    for one in heard.values():
        one.value()
    wait_until(lambda: all(len(catalogue.asked(query)) == 2 for query in followed))
    catalogue.fail()
    for one in heard.values():
        one.until(lambda known: known.stale)
    catalogue.change(silent=True)
    before = len(catalogue.asks)
    prober = wait_until(lambda: len(catalogue.asks) > before and catalogue.asks[-1])
    # It is dropped while it tries: another takes over, so the outage still ends.
    ends = {query: engine.subscribe(query, Heard()) for query in followed}
    assert len(catalogue.asks) == before + 1
    engine._unsubscribe(engine._followers[prober.query], engine._followers[prober.query].subscriptions[0])
    ends[prober.query]()
    successor = wait_until(lambda: len(catalogue.asks) > before + 1 and catalogue.asks[-1])
    assert successor.query != prober.query
    catalogue.recover(silent=False)
    for query, one in heard.items():
        if query != prober.query:
            one.value()


def test_the_outage_is_logged_once_and_its_end_too(engine, catalogue, caplog):
    caplog.set_level(logging.WARNING, "discovery")
    heard = [Heard() for _ in range(5)]
    for query, one in zip(queries(5), heard, strict=True):
        engine.subscribe(query, one)
    for one in heard:
        one.value()
    catalogue.fail()
    before = len(catalogue.asks)
    wait_until(lambda: len(catalogue.asks) > before + 2)
    catalogue.recover()
    for one in heard:
        one.value()
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "cannot reach the fake registry; trying again until it answers",
        "fake://registry answers again",
    ]


def test_a_question_asked_in_an_outage_is_tried_at_once_and_fails_with_the_reason(engine, catalogue):
    engine.fetch(WEB, 5)
    catalogue.fail()
    wait_until(lambda: engine.get(WEB).stale)
    for attempt in range(1, 4):
        start = time.monotonic()
        with pytest.raises(RegistryUnavailable, match="cannot reach the fake registry"):
            engine.fetch(API, 5)
        assert time.monotonic() - start < PROMPT
        assert len(catalogue.asked(API)) >= attempt
    catalogue.recover()
    assert engine.fetch(API, 5).value == (entry("api"),)


def test_a_question_asked_in_an_outage_can_end_it(engine, catalogue, monkeypatch):
    monkeypatch.setattr(engine_module, "BACKOFF_MIN", 60.0)
    engine.fetch(WEB, 5)
    catalogue.fail()
    wait_until(lambda: engine.get(WEB).stale)
    catalogue.recover()
    assert engine.fetch(API, 5).value == (entry("api"),)
    wait_until(lambda: not engine.get(WEB).stale, PROMPT, message="the others hear that it is over")


def test_a_subscriber_hears_that_the_registry_cannot_be_asked(engine, catalogue):
    catalogue.fail()
    engine.subscribe(WEB, heard := Heard())
    known = heard.until(lambda known: known.error is not None)
    assert known.value is None
    assert not known.stale
    engine.subscribe(API, other := Heard())  # it waits behind the first, and hears it too
    assert other.until(lambda known: known.error is not None).value is None
    assert engine.get(API).error is not None


def test_who_waits_behind_another_s_attempts_says_stale_too(start, catalogue):
    """A follower that was between two reads when the outage came has not failed by itself."""
    engine = start(max_watches=1)
    engine.subscribe(WEB, watched := Heard())
    watched.value(ONE)
    polled = [Heard() for _ in range(3)]
    for query, one in zip(queries(3), polled, strict=True):
        engine.subscribe(query, one)
        one.value()
    catalogue.fail()
    for one in [watched, *polled]:
        one.until(lambda known: known.stale)
    catalogue.recover()
    for one in polled:
        one.value()


def test_an_error_is_raised_as_each_waiters_own(engine, catalogue):
    catalogue.fail()
    errors = []
    for _ in range(2):
        with pytest.raises(RegistryUnavailable) as caught:
            engine.fetch(WEB, 5)
        errors.append(caught.value)
    assert errors[0] is not errors[1]
    assert engine.get(WEB).error.__traceback__ is None or errors[0].__traceback__ is not None
    frames = weakref.ref(errors[0])
    del errors, caught
    gc.collect()
    assert frames() is None  # and with it the frames of those who looked up


def test_an_overloaded_registry_is_left_alone_like_one_that_is_down(engine, catalogue):
    engine.subscribe(WEB, heard := Heard())
    heard.value(ONE)
    catalogue.fail(RegistryOverloaded("slow down", status=429))
    assert isinstance(heard.until(lambda known: known.stale).error, RegistryOverloaded)
    before = len(catalogue.asks)
    attempts = wait_until(lambda: len(catalogue.asks) >= before + 3 and catalogue.asks[before:])
    assert attempts[2].at - attempts[1].at >= engine_module.BACKOFF_MIN / 2
    catalogue.recover()
    heard.value(ONE)


# --- a question that is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "refusal",
    [
        AccessDenied("denied", status=403),
        RequestRejected("no such data centre", status=500),
        KeyError("ours"),
    ],
)
def test_a_refused_question_costs_only_itself(engine, catalogue, refusal):
    engine.subscribe(WEB, heard := Heard())
    heard.value(ONE)
    catalogue.refused[API] = refusal
    expected = type(refusal) if isinstance(refusal, DiscoveryError) else DiscoveryError
    for _ in range(2):
        start = time.monotonic()
        with pytest.raises(expected):
            engine.fetch(API, 5)
        assert time.monotonic() - start < PROMPT
    assert engine.gate.error is None
    catalogue.set(WEB, TWO)
    heard.value(TWO)
    assert not any(known.stale for known in heard.all)


def test_a_refused_question_is_asked_again_with_pauses_until_it_is_granted(engine, catalogue):
    catalogue.refused[API] = AccessDenied("denied", status=403)
    engine.subscribe(API, heard := Heard())
    heard.until(lambda known: known.error is not None)
    first, second = wait_until(lambda: len(asked := catalogue.asked(API)) >= 2 and asked[:2])
    assert second.at - first.at >= engine_module.BACKOFF_MAX
    del catalogue.refused[API]
    heard.value(entry("api"))


def test_a_fault_of_ours_in_an_outage_says_nothing_about_the_registry(engine, catalogue, caplog):
    engine.subscribe(WEB, heard := Heard())
    heard.value(ONE)
    catalogue.refused[API] = KeyError("ours")
    catalogue.fail()
    heard.until(lambda known: known.stale)
    engine.subscribe(API, Heard())
    asked = wait_until(lambda: len(asked := catalogue.asked(API)) >= 3 and asked)
    assert (
        min(later.at - earlier.at for earlier, later in itertools.pairwise(asked))
        >= engine_module.BACKOFF_MAX
    )
    assert "answers again" not in caplog.text
    catalogue.recover()
    heard.value(ONE)


def test_what_was_known_before_a_refusal_is_kept_as_stale(engine, catalogue):
    engine.subscribe(WEB, heard := Heard())
    heard.value(ONE)
    catalogue.change(refused={WEB: AccessDenied("the token was revoked", status=403)})
    lost = heard.until(lambda known: known.stale)
    assert lost.value == (ONE,)
    assert isinstance(lost.error, AccessDenied)


def test_a_refused_question_that_nobody_asks_any_more_is_dropped(start, catalogue):
    engine = start(idle=0.05)
    catalogue.refused[API] = AccessDenied("denied", status=403)
    with pytest.raises(AccessDenied):
        engine.fetch(API, 5)
    wait_until(lambda: not engine_threads(), message="it is no longer followed")


# --- the cap -------------------------------------------------------------------------------------------


def test_a_prepared_query_is_polled_since_it_cannot_block(start, catalogue):
    query, heard = PreparedQuery("q"), Heard()
    catalogue.set(query, ONE)
    engine = start()
    engine.subscribe(query, heard)
    heard.value(ONE)
    catalogue.set(query, TWO)
    heard.value(TWO)
    assert {ask.index for ask in catalogue.asked(query)} == {0}
    assert not [name for name in engine_threads() if name.startswith("discovery-watch")]


def test_beyond_the_cap_questions_are_polled(start, catalogue):
    engine = start(max_watches=2)
    for query in queries(5):
        catalogue.set(query, ONE)
        assert engine.fetch(query, 5).value == (ONE,)
    assert len([name for name in engine_threads() if name.startswith("discovery-watch")]) == 2
    polled = queries(5)[2:]
    assert {ask.index for query in polled for ask in catalogue.asked(query)} == {0}
    assert len({ask.reader for query in polled for ask in catalogue.asked(query)}) == 1
    heard = Heard()
    engine.subscribe(polled[0], heard)
    catalogue.set(polled[0], TWO)
    heard.value(TWO)


def test_a_polled_question_is_asked_once_a_second(start, catalogue):
    engine = start(max_watches=1)
    engine.fetch(WEB, 5)
    engine.fetch(API, 5)
    for query in queries(3):
        engine.fetch(query, 5)  # each wakes the poller, for itself alone
    asked = wait_until(lambda: len(asked := catalogue.asked(API)) >= 2 and asked)
    assert asked[1].at - asked[0].at >= engine_module.POLL


def test_a_polled_question_gets_the_watch_that_becomes_free(start, catalogue):
    engine = start(max_watches=1)
    unsubscribe = engine.subscribe(WEB, watched := Heard())
    watched.value(ONE)
    engine.subscribe(API, heard := Heard())
    heard.value(entry("api"))
    assert len(engine_threads()) == 2
    unsubscribe()
    wait_until(lambda: any(ask.index for ask in catalogue.asked(API)), message="a blocking read")
    wait_until(lambda: len(engine_threads()) == 1, message="the poller, out of work, has ended")
    catalogue.set(API, TWO)
    heard.value(TWO)
    engine.subscribe(WEB, again := Heard())  # and now this one is polled
    again.value(ONE)


def test_the_poller_can_end_an_outage_and_leave(start, catalogue):
    """A polled question that is dropped while it tries must not keep the others from trying."""
    engine = start(max_watches=1)
    engine.subscribe(WEB, watched := Heard())
    watched.value(ONE)
    end_polled = engine.subscribe(API, polled := Heard())
    polled.value(entry("api"))
    catalogue.fail()
    watched.until(lambda known: known.stale)
    polled.until(lambda known: known.stale)
    end_polled()
    catalogue.recover()
    watched.value(ONE)


# --- idle questions ------------------------------------------------------------------------------------


def test_a_question_that_nobody_reads_any_more_is_dropped(start, catalogue):
    engine = start(idle=0.2, wait=0.01)
    engine.fetch(WEB, 5)
    start_at = time.monotonic()
    while time.monotonic() - start_at < 0.4:  # as long as somebody reads it, it stays
        assert engine.get(WEB).value == (ONE,)
        asked = len(catalogue.asked(WEB))
        wait_until(lambda asked=asked: len(catalogue.asked(WEB)) > asked)
    assert len({ask.reader for ask in catalogue.asked(WEB)}) == 1
    wait_until(lambda: not engine_threads() and not catalogue.open_readers)
    assert engine.fetch(WEB, 5).value == (ONE,)  # and it can be asked again


def test_a_polled_question_that_nobody_reads_any_more_is_dropped(start, catalogue):
    engine = start(idle=0.2, max_watches=1)
    engine.subscribe(WEB, Heard())
    engine.fetch(API, 5)
    wait_until(lambda: len(engine_threads()) == 1, message="the poller has ended")


def test_a_subscription_lasts_while_it_is_used(start, catalogue):
    engine = start(idle=0.1, wait=0.01)
    in_use, ended = True, threading.Event()
    engine.subscribe(WEB, heard := Heard(), used=lambda: in_use, dropped=ended.set)
    heard.value(ONE)
    asked = len(catalogue.asked(WEB))
    started_at = time.monotonic()
    wait_until(lambda: time.monotonic() - started_at > 0.3 and len(catalogue.asked(WEB)) > asked + 5)
    assert not ended.is_set()
    in_use = False
    assert ended.wait(5)
    wait_until(lambda: not engine_threads())


def test_a_subscription_without_a_say_lasts(start, catalogue):
    engine = start(idle=0.01, wait=0.01)
    engine.subscribe(WEB, heard := Heard())
    wait_until(lambda: len(catalogue.asked(WEB)) > 10)
    catalogue.set(WEB, TWO)
    heard.value(TWO)


# --- closing -------------------------------------------------------------------------------------------


def test_close_ends_blocking_reads_at_once(start, catalogue):
    engine = start(max_watches=8)
    for query in queries(12):
        engine.fetch(query, 5)
    wait_until(lambda: len([ask for ask in catalogue.asks if ask.index]) == 8)
    started = time.monotonic()
    engine.close()
    assert time.monotonic() - started < PROMPT
    assert not engine_threads()
    assert not catalogue.open_readers
    engine.close()  # again is no error


def test_close_ends_the_poller_in_the_middle_of_a_read(start, catalogue):
    engine = start(max_watches=1)
    engine.fetch(WEB, 5)
    catalogue.change(silent=True)
    engine.get(API)
    wait_until(lambda: catalogue.asked(API))
    started = time.monotonic()
    engine.close()
    assert time.monotonic() - started < PROMPT
    assert not engine_threads()


def test_close_ends_those_who_wait_in_an_outage(engine, catalogue):
    for query in queries(5):
        engine.fetch(query, 5)
    catalogue.fail()
    wait_until(lambda: all(engine.get(query).stale for query in queries(5)))
    started = time.monotonic()
    engine.close()
    assert time.monotonic() - started < PROMPT


def test_close_ends_a_fetch_that_waits(engine, catalogue):
    catalogue.change(silent=True)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(engine.fetch, WEB, 60)
        wait_until(lambda: catalogue.asked(WEB))
        engine.close()
        with pytest.raises(RegistryUnavailable, match="is closed"):
            waiting.result(PROMPT)


def test_a_closed_engine_refuses_new_questions(engine):
    engine.close()
    for ask in [
        engine.get,
        lambda query: engine.fetch(query, 1),
        lambda query: engine.subscribe(query, Heard()),
    ]:
        with pytest.raises(RegistryUnavailable, match="this client of fake://registry is closed"):
            ask(WEB)


def test_queries_of_every_kind_are_followed(engine, catalogue):
    catalogue.set(NamesQuery(), "a")
    assert engine.fetch(NamesQuery(), 5).value == ("a",)
    assert engine.fetch(service("web", "dc2"), 5).value == ()


# --- fork ----------------------------------------------------------------------------------------------

FORKS = """
    import faulthandler, os, threading
    from discovery.config import Config
    from discovery.engine import Engine
    from tests.discovery.fake import FakeCatalogue, Heard, entry, service
    from tests.tools import wait_until

    WEB, API, ONE, TWO = service("web"), service("api"), entry(port=1), entry(port=2)
    catalogue = FakeCatalogue()
    catalogue.set(WEB, ONE)
    catalogue.set(API, ONE)
    engine = Engine(catalogue, Config(max_watches=1))
    heard = Heard()
    engine.subscribe(WEB, heard)
    engine.fetch(API, 5)  # polled
    heard.value(ONE)

    def child(scenario):
        faulthandler.dump_traceback_later(30, exit=True)  # nobody else would end a child that hangs
        catalogue._changed = threading.Condition()  # the fake's own; another thread may have held it
        assert threading.active_count() == 1
        scenario()
        engine.close()
        assert threading.active_count() == 1, threading.enumerate()

    def sees_what_has_changed():
        catalogue.set(WEB, TWO)
        known = engine.fetch(WEB, 5)
        assert known.value == (TWO,) and not known.stale, known
        assert engine.fetch(API, 5).value == (ONE,)
        catalogue.set(WEB, ONE)
        wait_until(lambda: engine.get(WEB).value == (ONE,))
        assert len(heard.all) == 1, "the parent's subscriber is called in the child"

    def keeps_what_the_parent_knew():
        catalogue.fail()
        known = engine.fetch(WEB, 5)
        assert known.value == (ONE,) and known.stale, known

    def says_at_once_what_the_parent_knew():
        catalogue.change(silent=True)
        known = engine.get(WEB)
        assert known.value == (ONE,) and known.stale, known

    for scenario in (sees_what_has_changed, keeps_what_the_parent_knew, says_at_once_what_the_parent_knew):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                child(scenario)
                status = 0
            finally:
                if status:
                    import traceback; traceback.print_exc()
                os._exit(status)
        _, status = os.waitpid(pid, 0)
        assert status == 0, scenario
    catalogue.set(WEB, TWO)  # and the parent goes on
    heard.value(TWO)
    engine.close()
"""


def test_a_forked_child_has_the_answers_and_resumes():
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(FORKS)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
