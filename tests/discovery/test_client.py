"""Names in, instances out: what an application sees, with a registry that does what the test says."""

from __future__ import annotations

import gc
import pkgutil
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

import discovery
from discovery.changes import Awaited
from discovery.client import Client, default_client
from discovery.config import Config
from discovery.errors import (
    AccessDenied,
    ConfigurationError,
    InvalidName,
    NoHealthyInstances,
    RegistryTimeout,
    RegistryUnavailable,
    ServiceNotFound,
)
from discovery.model import FrozenDict, Instance, NamesQuery, Snapshot
from tests.discovery.fake import FakeCatalogue, entry, service
from tests.tools import wait_until

WEB = service("web")
PROMPT = 3.0  # s; generous for a loaded machine, and less than any wait that must not happen


@pytest.fixture
def catalogue() -> FakeCatalogue:
    fake = FakeCatalogue()
    fake.set(WEB, *(entry(port=port) for port in (1, 2, 3, 4)))
    return fake


@pytest.fixture
def start(catalogue: FakeCatalogue) -> Iterator[Callable[..., Client]]:
    """Make clients that are closed when the test ends."""
    made: list[Client] = []

    def make(**settings: object) -> Client:
        settings.setdefault("timeout", 5.0)
        made.append(Client(Config(), backend=catalogue, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()
    assert not catalogue.open_readers


@pytest.fixture
def client(start: Callable[..., Client]) -> Client:
    return start()


def ports(instances) -> list[int]:
    return [port for _, port in instances]


# --- lookup --------------------------------------------------------------------------------------------


def test_a_lookup_returns_host_and_port(client, catalogue):
    catalogue.set(WEB, entry(port=8080, tags=("v1",)))
    host, port = it = client.lookup("web")
    assert (host, port) == ("10.0.0.1", 8080)
    assert isinstance(it, Instance)
    assert (it.id, it.service, it.tags, it.source, it.stale) == ("web-8080", "web", ("v1",), "http", False)


def test_every_lookup_is_the_next_in_turn_from_the_first_on(client):
    turns = ports(client.lookup("web") for _ in range(12))
    assert set(turns[:4]) == {1, 2, 3, 4}
    assert turns == turns[:4] * 3


def test_the_turns_of_many_processes_do_not_begin_at_the_same_instance(start):
    begun = Counter(start().lookup("web").port for _ in range(40))
    assert len(begun) > 1  # 4 ** -39 is what chance has against it


def test_turns_are_fair_over_threads(client):
    with ThreadPoolExecutor(8) as threads:
        counts = sum(
            threads.map(lambda _: Counter(client.lookup("web").port for _ in range(500)), range(8)), Counter()
        )
    assert set(counts.values()) == {1000}


def test_a_filter_has_turns_of_its_own(client, catalogue):
    catalogue.set(WEB, *(entry(port=port, tags=("even",) if port % 2 == 0 else ()) for port in range(1, 7)))
    even, all_of_them = [], []
    for _ in range(6):
        even.append(client.lookup("web", tags=["even"]).port)
        all_of_them.append(client.lookup("web").port)
    assert Counter(even) == {2: 2, 4: 2, 6: 2}
    assert sorted(all_of_them) == [1, 2, 3, 4, 5, 6]


def test_warm_lookups_ask_nobody(client, catalogue):
    client.lookup("web")
    wait_until(lambda: len(catalogue.asks) == 2)  # the first answer, and the read that waits for a change
    for _ in range(1000):
        client.lookup("web")
        client.lookup("web", tags=[])
    assert len(catalogue.asks) == 2


def test_a_name_in_any_case_is_one_service(client, catalogue):
    assert client.lookup("web") and client.lookup("WEB") and client.lookup("Web")
    assert {ask.query for ask in catalogue.asks} == {WEB}


def test_a_change_is_seen_without_asking_for_it(client, catalogue):
    client.lookup("web")
    catalogue.set(WEB, entry(port=9))
    wait_until(lambda: client.lookup("web").port == 9)


def test_only_instances_that_fail_no_check_are_returned(client, catalogue):
    catalogue.set(
        WEB,
        entry(port=1, status="critical"),
        entry(port=2, status="warning"),
        entry(port=3, status="passing"),
    )
    assert Counter(ports(client.lookup("web") for _ in range(10))) == {2: 5, 3: 5}


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"tags": ["v1"]}, {1, 2}),
        ({"tags": ("v1", "blue")}, {2}),
        ({"tags": "v1"}, {1, 2}),
        ({"meta": {"team": "shop"}}, {2, 3}),
        ({"meta": {"team": "shop", "tier": "1"}}, {3}),
        ({"tags": ["blue"], "meta": {"team": "shop"}}, {2}),
        ({"exclude": [("10.0.0.1", 1), ("10.0.0.1", 3)]}, {2, 4}),
        ({"tags": ["v1"], "exclude": {("10.0.0.1", 1)}}, {2}),
    ],
)
def test_filters_narrow_down(client, catalogue, filters, expected):
    catalogue.set(
        WEB,
        entry(port=1, tags=("v1",)),
        entry(port=2, tags=("v1", "blue"), meta=FrozenDict(team="shop")),
        entry(port=3, meta=FrozenDict(team="shop", tier="1")),
        entry(port=4),
    )
    assert {client.lookup("web", **filters).port for _ in range(8)} == expected


def test_excluding_what_was_tried_reaches_every_instance(client):
    tried: list[Instance] = []
    for _ in range(4):
        tried.append(client.lookup("web", exclude=tried))
    assert set(ports(tried)) == {1, 2, 3, 4}
    with pytest.raises(NoHealthyInstances, match="web-1 is excluded"):
        client.lookup("web", exclude=tried)


def test_another_data_centre_is_another_question(client, catalogue):
    catalogue.set(service("web", "dc2"), entry(port=9))
    assert client.lookup("web", dc="dc2").port == 9
    assert client.lookup("web").port != 9


def test_the_data_centre_of_the_settings_is_asked(start, catalogue):
    catalogue.set(service("web", "dc2"), entry(port=9))
    assert start(dc="dc2").lookup("web").port == 9


# --- failures ------------------------------------------------------------------------------------------


def test_a_service_that_does_not_exist_is_not_found_and_close_names_are_offered(client, catalogue):
    catalogue._values[NamesQuery()] = ({"web": (), "web-api": (), "mail": ()}, 11)
    with pytest.raises(ServiceNotFound) as caught:
        client.lookup("wep")
    assert caught.value.close == ("web", "web-api")
    assert str(caught.value) == (
        "no service is called 'wep' in the catalogue of fake://registry; did you mean 'web' or 'web-api'?"
    )


def test_close_names_are_left_out_where_they_cannot_be_had(client, catalogue):
    catalogue.refused[NamesQuery()] = AccessDenied("not allowed", status=403)
    with pytest.raises(ServiceNotFound) as caught:
        client.lookup("wep")
    assert caught.value.close == ()


def test_when_all_fail_their_checks_the_error_says_which(client, catalogue):
    catalogue.set(
        WEB,
        entry(port=1, status="critical", output="connection refused\nmore"),
        entry(port=2, status="critical"),
    )
    with pytest.raises(NoHealthyInstances) as caught:
        client.lookup("web")
    assert caught.value.failing == (
        "web-1 fails check 'check of web-1': connection refused",
        "web-2 fails check 'check of web-2'",
    )
    assert str(caught.value).startswith("none of the 2 instances of 'web' can be used: web-1 fails check")


def test_when_none_has_the_tags_the_error_says_what_there_is(client, catalogue):
    catalogue.set(WEB, entry(port=1, tags=("v1",), meta=FrozenDict(a="1")))
    with pytest.raises(NoHealthyInstances) as caught:
        client.lookup("web", tags=["v2"])
    assert caught.value.failing == ("web-1 has tags ['v1'] and meta {'a': '1'}",)


def test_many_reasons_are_cut_in_the_message_and_kept_in_the_error(client, catalogue):
    catalogue.set(WEB, *(entry(port=port, status="critical") for port in range(1, 21)))
    with pytest.raises(NoHealthyInstances) as caught:
        client.lookup("web")
    assert len(caught.value.failing) == 20
    assert str(caught.value).endswith("; ...")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["", "a b", "a/b", ".."])
def test_a_name_that_cannot_be_one_is_refused_without_asking(client, catalogue, name):
    for look in (client.lookup, client.lookup_all, client.watch, client.wait_for):
        with pytest.raises(InvalidName):
            look(name)
    assert not catalogue.asks


def test_a_lookup_ends_in_its_time(client, catalogue):
    catalogue.change(silent=True)
    start = time.monotonic()
    with pytest.raises(RegistryTimeout):
        client.lookup("web", timeout=0.2)
    assert time.monotonic() - start < 0.2 + PROMPT


def test_the_time_of_a_lookup_includes_the_search_for_close_names(client, catalogue):
    client.lookup_all("nope")
    catalogue.change(silent=True)
    start = time.monotonic()
    with pytest.raises(ServiceNotFound):
        client.lookup("nope", timeout=0.2)
    assert time.monotonic() - start < 0.2 + PROMPT


def test_a_registry_that_cannot_be_reached_is_an_error_at_once_for_what_is_not_known(client, catalogue):
    catalogue.fail()
    start = time.monotonic()
    with pytest.raises(RegistryUnavailable, match="cannot reach the fake registry"):
        client.lookup("web")
    assert time.monotonic() - start < PROMPT
    catalogue.recover()
    assert client.lookup("web")


def test_a_denial_is_raised_and_costs_only_itself(client, catalogue):
    catalogue.refused[service("secret")] = AccessDenied("not allowed", status=403)
    with pytest.raises(AccessDenied):
        client.lookup("secret")
    assert client.lookup("web")


def test_the_default_is_returned_instead_of_a_failure(client, catalogue):
    default = Instance(entry(port=99), source="static")
    catalogue.refused[service("secret")] = AccessDenied("not allowed", status=403)
    assert client.lookup("nope", default=default) is default
    assert client.lookup("secret", default=default) is default
    assert client.lookup("web", tags=["nope"], default=default) is default
    assert client.lookup("web", default=default) is not default
    catalogue.fail()
    assert client.lookup("other", default=default) is default


def test_the_default_does_not_hide_a_wrong_name(client):
    with pytest.raises(InvalidName):
        client.lookup("a b", default=Instance(entry()))


# --- outages -------------------------------------------------------------------------------------------


def test_in_an_outage_the_last_known_instances_are_returned_and_say_stale(client, catalogue):
    client.lookup("web")
    catalogue.fail()
    wait_until(lambda: client.lookup("web").stale)
    assert {client.lookup("web").port for _ in range(4)} == {1, 2, 3, 4}
    snapshot = client.lookup_all("web")
    assert snapshot.stale and all(instance.stale for instance in snapshot)
    catalogue.set(WEB, entry(port=9))
    catalogue.recover()
    wait_until(lambda: not client.lookup("web").stale)
    assert client.lookup("web").port == 9


def test_an_authoritative_empty_answer_is_an_error_also_right_after_an_outage(client, catalogue):
    client.lookup("web")
    catalogue.fail()
    wait_until(lambda: client.lookup("web").stale)
    catalogue.set(WEB)
    catalogue.recover()

    def gone() -> bool:
        with pytest.raises(ServiceNotFound) as caught:
            while True:
                client.lookup("web")
        return "not confirmed" not in str(caught.value)

    assert gone()


def test_a_denial_from_before_an_outage_is_marked_as_not_confirmed(client, catalogue):
    with pytest.raises(ServiceNotFound):
        client.lookup("nope")
    catalogue.fail()
    wait_until(lambda: client.lookup_all("nope").stale)
    with pytest.raises(ServiceNotFound, match="not confirmed: the registry cannot be asked"):
        client.lookup("nope")


# --- lookup_all, names ---------------------------------------------------------------------------------


def test_all_healthy_instances_or_really_all(client, catalogue):
    catalogue.set(WEB, entry(port=1), entry(port=2, status="critical"), entry(port=3, tags=("v1",)))
    healthy, everyone = client.lookup_all("web"), client.lookup_all("web", healthy=False)
    assert (ports(healthy), ports(everyone)) == ([1, 3], [1, 2, 3])
    assert ports(client.lookup_all("web", tags=["v1"])) == [3]
    assert ports(client.lookup_all("web", tags="v1")) == [3]
    assert (everyone.service, everyone.stale, everyone.source) == ("web", False, "http")
    assert everyone.consul_index == catalogue._index
    assert 0 <= time.monotonic() - everyone.fetched_at < 5


def test_all_instances_of_nothing_are_none(client):
    assert client.lookup_all("nope") == Snapshot(
        "nope", consul_index=1, fetched_at=client.lookup_all("nope").fetched_at
    )
    assert not client.lookup_all("nope")


def test_a_snapshot_tells_what_came_and_went_among_the_healthy(client, catalogue):
    catalogue.set(WEB, entry(port=1), entry(port=2))
    client.lookup("web")
    catalogue.set(WEB, entry(port=1, status="critical"), entry(port=2))
    snapshot = wait_until(lambda: len(now := client.lookup_all("web")) == 1 and now)
    assert (ports(snapshot.added), ports(snapshot.removed)) == ([], [1])
    assert client.lookup_all("web", healthy=False).removed == ()


def test_the_names_are_listed_with_their_tags(client, catalogue):
    catalogue._values[NamesQuery()] = ({"web": ("v1",), "mail": ()}, 11)
    assert client.names() == {"web": ("v1",), "mail": ()}


# --- what nobody asks for ------------------------------------------------------------------------------


def test_a_service_that_nobody_looks_up_is_dropped_and_found_anew(start, catalogue):
    client = start(idle=0.1, wait=0.01)
    client.lookup("web")
    client.lookup("WEB")
    wait_until(lambda: not catalogue.open_readers, message="it is no longer followed")
    catalogue.set(WEB, entry(port=9))
    assert client.lookup("web").port == 9  # and not what was known when it was dropped
    assert client.lookup("WEB").port == 9


def test_a_service_that_is_looked_up_stays(start, catalogue):
    client = start(idle=0.3, wait=0.01)
    begin = time.monotonic()
    while time.monotonic() - begin < 0.5:
        client.lookup("web")
        asked = len(catalogue.asks)
        wait_until(lambda asked=asked: len(catalogue.asks) > asked)
    assert len({ask.reader for ask in catalogue.asked(WEB)}) == 1


# --- watch ---------------------------------------------------------------------------------------------


def test_a_watch_yields_what_there_is_and_then_every_change(client, catalogue):
    catalogue.set(WEB, entry(port=1))
    with client.watch("web") as watch:
        first = next(watch)
        assert (ports(first), ports(first.added), ports(first.removed)) == ([1], [1], [])
        catalogue.set(WEB, entry(port=1), entry(port=2))
        second = watch.next(5)
        assert (ports(second), ports(second.added), ports(second.removed)) == ([1, 2], [2], [])
        catalogue.set(WEB, entry(port=2))
        third = watch.next(5)
        assert (ports(third), ports(third.added), ports(third.removed)) == ([2], [], [1])
        catalogue.set(WEB)
        assert not watch.next(5)


def test_an_empty_service_is_a_snapshot_too(client):
    with client.watch("nope") as watch:
        assert not watch.next(5)


def test_a_slow_reader_gets_the_newest_compared_with_what_it_got_before(client, catalogue):
    catalogue.set(WEB, entry(port=1))
    with client.watch("web") as watch, client.watch("web") as other:
        watch.next(5)
        for port in (2, 3, 4):
            catalogue.set(WEB, entry(port=port))
            while ports(other.next(5)) != [port]:
                pass
        newest = watch.next(5)
        assert (ports(newest), ports(newest.added), ports(newest.removed)) == ([4], [4], [1])
        with pytest.raises(RegistryTimeout, match="'web' did not change"):
            watch.next(0)


def test_a_change_that_was_taken_back_is_no_change(client, catalogue):
    catalogue.set(WEB, entry(port=1))
    with client.watch("web") as watch, client.watch("web") as other:
        watch.next(5)
        for port in (2, 1):
            catalogue.set(WEB, entry(port=port))
            while ports(other.next(5)) != [port]:
                pass
        with pytest.raises(RegistryTimeout):
            watch.next(0)


def test_a_watch_tells_no_change_that_it_does_not_show(client, catalogue):
    catalogue.set(WEB, entry(port=1, output="fine"), entry(port=2, status="critical"))
    with client.watch("web") as watch, client.watch("web", healthy=False) as everyone:
        watch.next(5)
        everyone.next(5)
        catalogue.set(WEB, entry(port=1, output="still fine"), entry(port=3, status="critical"))
        assert ports(everyone.next(5)) == [1, 3]
        with pytest.raises(RegistryTimeout):
            watch.next(0)
        catalogue.set(WEB, entry(port=1, status="warning"))
        assert [instance.status for instance in watch.next(5)] == ["warning"]


def test_a_watch_of_tags_shows_only_those(client, catalogue):
    catalogue.set(WEB, entry(port=1), entry(port=2, tags=("v1",)))
    with client.watch("web", tags=["v1"]) as watch:
        assert ports(watch.next(5)) == [2]


def test_a_callback_gets_what_there_is_and_then_every_change_until_it_ends(client, catalogue):
    catalogue.set(WEB, entry(port=1))
    heard: list[Snapshot] = []
    with client.watch("web") as watch:
        watch.next(5)
        end = watch.on_change(heard.append)
        assert [ports(snapshot) for snapshot in heard] == [[1]]
        catalogue.set(WEB, entry(port=2))
        wait_until(lambda: len(heard) == 2)
        assert (ports(heard[1].added), ports(heard[1].removed)) == ([2], [1])
        end()
        catalogue.set(WEB, entry(port=3))
        while ports(watch.next(5)) != [3]:
            pass
        assert len(heard) == 2


def test_a_callback_that_has_ended_is_forgotten(client):
    class Callback:
        def __call__(self, snapshot: Snapshot) -> None:
            pass

    with client.watch("web") as watch:
        watch.next(5)
        callback = Callback()
        forgotten = weakref.ref(callback)
        end = watch.on_change(callback)
        end()
        end()
        del callback, end
        gc.collect()
        assert forgotten() is None


def test_a_callback_that_fails_keeps_the_news_from_nobody(client, catalogue, caplog):
    heard: list[Snapshot] = []
    with client.watch("web") as watch:
        watch.on_change(lambda snapshot: 1 / 0)
        watch.on_change(heard.append)
        watch.next(5)
        catalogue.set(WEB, entry(port=9))
        assert ports(watch.next(5)) == [9]
        wait_until(lambda: heard and ports(heard[-1]) == [9])
    assert "ZeroDivisionError" in caplog.text


def test_a_callback_may_look_up_while_others_do(client, catalogue):
    """With a lock held over callbacks, these two threads would wait for each other for ever."""
    done: list[Instance] = []
    in_callback, other_began = threading.Event(), threading.Event()

    def callback(snapshot: Snapshot) -> None:
        if ports(snapshot) == [9]:
            in_callback.set()
            other_began.wait(5)
            done.append(client.lookup("web"))
            done.append(client.lookup("other"))

    catalogue.set(service("other"), entry("other"))
    with client.watch("web") as watch, ThreadPoolExecutor(1) as threads:
        watch.on_change(callback)
        watch.next(5)
        catalogue.set(WEB, entry(port=9))
        assert in_callback.wait(5)
        first_lookup = threads.submit(client.lookup, "web")
        other_began.set()
        assert first_lookup.result(5).port == 9
        wait_until(lambda: len(done) == 2)


def test_closing_a_watch_ends_its_reader(client):
    watch = client.watch("web")
    with ThreadPoolExecutor(1) as threads:
        yielded = threads.submit(list, watch)
        wait_until(lambda: watch._given is not None)
        watch.close()
        assert len(yielded.result(5)) == 1
    watch.close()
    with pytest.raises(StopIteration):
        watch.next()
    heard: list[Snapshot] = []
    watch.on_change(heard.append)()
    assert not heard


def test_closing_the_client_ends_its_watches(client):
    watch = client.watch("web")
    with ThreadPoolExecutor(1) as threads:
        yielded = threads.submit(list, watch)
        wait_until(lambda: watch._given is not None)
        client.close()
        assert len(yielded.result(5)) == 1


def test_no_watch_survives_a_close_in_another_thread(start, catalogue):
    """However the two meet, the watch is ended or belongs to what begins after the close."""
    client = start()
    stop = threading.Event()

    def close_again_and_again() -> None:
        while not stop.is_set():
            client.close()

    def watch_again_and_again() -> int:
        ended = 0
        for _ in range(100):
            try:
                for _ in client.watch("web"):
                    pass
            except RegistryUnavailable:
                pass  # closed while it subscribed
            ended += 1
        return ended

    with ThreadPoolExecutor(2) as threads:
        closing = threads.submit(close_again_and_again)
        try:
            assert threads.submit(watch_again_and_again).result(30) == 100
        finally:
            stop.set()
            closing.result(5)
            client.close()


def test_a_watch_raises_once_that_the_registry_is_down_and_then_goes_on(client, catalogue):
    catalogue.fail()
    with client.watch("web") as watch:
        with pytest.raises(RegistryUnavailable, match="cannot reach the fake registry"):
            watch.next(5)
        with pytest.raises(RegistryTimeout, match="did not change"):
            watch.next(0.01)
        catalogue.recover()
        assert len(watch.next(5)) == 4
        catalogue.fail()
        lost = watch.next(5)
        assert lost.stale and len(lost) == 4
        assert (lost.added, lost.removed) == ((), ())
        catalogue.recover()
        assert not watch.next(5).stale


def test_a_watch_that_is_refused_raises_it(client, catalogue):
    catalogue.refused[WEB] = AccessDenied("not allowed", status=403)
    with client.watch("web") as watch, pytest.raises(AccessDenied):
        watch.next(5)


def test_a_watch_may_wait_for_ever(client):
    with client.watch("web") as watch:
        assert watch.next(float("inf"))


def test_all_readers_of_one_service_share_one_reader(client, catalogue):
    with client.watch("web") as one, client.watch("web", tags=["v1"]) as two:
        client.lookup("web")
        one.on_change(lambda snapshot: None)
        one.next(5)
        two.next(5)
    assert len({ask.reader for ask in catalogue.asked(WEB)}) == 1


# --- wait_for ------------------------------------------------------------------------------------------


def test_waiting_returns_at_once_what_is_there(client):
    assert len(client.wait_for("web", min_instances=4)) == 4
    assert len(client.wait_for("web", timeout=0)) == 4  # known by now


def test_waiting_lasts_until_enough_are_healthy(client, catalogue):
    catalogue.set(WEB, entry(port=1), entry(port=2, status="critical"))
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(client.wait_for, "web", min_instances=2)
        wait_until(lambda: len(catalogue.asked(WEB)) == 2)
        assert not waiting.done()
        catalogue.set(WEB, entry(port=1), entry(port=2))
        assert ports(waiting.result(5)) == [1, 2]


def test_waiting_for_an_unreachable_registry_too(client, catalogue):
    catalogue.fail()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(client.wait_for, "web")
        wait_until(lambda: len(catalogue.asks) >= 3)
        catalogue.recover()
        assert len(waiting.result(5)) == 4


def test_waiting_in_an_outage_does_not_ask_more_often_than_others(client, catalogue):
    catalogue.fail()
    with pytest.raises(RegistryTimeout):
        client.wait_for("web", timeout=0.5)
    times = [ask.at for ask in catalogue.asks]
    assert len({ask.reader for ask in catalogue.asks}) == 1
    assert min(later - earlier for earlier, later in pairwise(times)) >= 0.04


def test_a_registry_that_is_down_all_the_time_is_the_reason(client, catalogue):
    catalogue.fail()
    with pytest.raises(RegistryTimeout) as caught:
        client.wait_for("web", timeout=0.3)
    assert str(caught.value) == (
        "waited 0.3 s for 1 healthy instance(s) of 'web', "
        "and the registry could not be asked: cannot reach the fake registry"
    )
    assert isinstance(caught.value.__cause__, RegistryUnavailable)


@pytest.mark.parametrize("timeout", [0, -1, 0.01])
def test_without_time_a_registry_that_is_well_is_looked_at_once(client, catalogue, timeout):
    assert len(client.wait_for("web", timeout=timeout)) == 4  # asked for the first time
    with pytest.raises(NoHealthyInstances, match=r"waited 0(.01)? s for 5 .*, and found 4"):
        client.wait_for("web", min_instances=5, timeout=timeout)


def test_a_registry_that_says_nothing_is_no_service_that_did_not_change(client, catalogue, monkeypatch):
    monkeypatch.setattr(Awaited, "FIRST", 0.05)
    catalogue.change(silent=True)
    with pytest.raises(RegistryTimeout) as caught:
        client.wait_for("web", timeout=0)
    assert str(caught.value).endswith("of 'web', and the registry has not answered")


def test_a_time_that_is_no_number_is_refused(client):
    with pytest.raises(ConfigurationError, match="timeout=nan for 'web' is not possible"):
        client.wait_for("web", timeout=float("nan"))


def test_too_few_instances_are_the_reason(client):
    with pytest.raises(NoHealthyInstances) as caught:
        client.wait_for("web", min_instances=5, timeout=0.3)
    assert str(caught.value) == "waited 0.3 s for 5 healthy instance(s) of 'web', and found 4"


def test_no_instance_at_all_is_explained_as_in_a_lookup(client, catalogue):
    with pytest.raises(ServiceNotFound, match="no service is called 'nope'"):
        client.wait_for("nope", timeout=0.3)
    with pytest.raises(NoHealthyInstances, match="has tags"):
        client.wait_for("web", tags=["v9"], timeout=0.3)
    catalogue.set(service("sick"), entry("sick", port=1, status="critical"))
    with pytest.raises(NoHealthyInstances, match="sick-1 fails check"):
        client.wait_for("sick", timeout=0.3)


def test_a_refusal_is_not_waited_for(client, catalogue):
    catalogue.refused[WEB] = AccessDenied("not allowed", status=403)
    with pytest.raises(AccessDenied):
        client.wait_for("web", timeout=30)


def test_closing_the_client_ends_the_waiting(client, catalogue):
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(client.wait_for, "web", min_instances=5)
        wait_until(lambda: len(catalogue.asked(WEB)) == 2)
        client.close()
        with pytest.raises(RegistryUnavailable, match="this client was closed"):
            waiting.result(5)


# --- settings and life ---------------------------------------------------------------------------------


def test_creating_a_client_asks_nothing_and_starts_nothing(catalogue):
    before = threading.active_count()
    client = Client(Config(), backend=catalogue)
    assert threading.active_count() == before
    assert not catalogue.asks
    client.close()


def test_overrides_win_over_a_config_and_over_the_environment(monkeypatch, catalogue):
    monkeypatch.setenv("DISCOVERY_TIMEOUT", "7")
    assert Client(backend=catalogue).config.timeout == 7.0
    assert Client(backend=catalogue, timeout=8.0).config.timeout == 8.0
    assert Client(Config(timeout=9.0), backend=catalogue).config.timeout == 9.0
    assert Client(Config(timeout=9.0), backend=catalogue, timeout=8.0).config.timeout == 8.0
    with pytest.raises(ConfigurationError, match="there is no setting 'timout'"):
        Client(timout=1.0)


def test_closing_ends_all_threads_and_a_later_lookup_starts_anew(client, catalogue):
    before = threading.active_count()
    for _ in range(3):
        assert client.lookup("web")
        with client.watch("web") as watch:
            watch.next(5)
        client.close()
        assert threading.active_count() == before
        assert not catalogue.open_readers
    client.close()


def test_a_client_in_a_with_statement_is_closed_at_its_end(catalogue):
    with Client(Config(), backend=catalogue, timeout=5.0) as client:
        client.lookup("web")
        assert catalogue.open_readers
    assert not catalogue.open_readers


def test_many_threads_may_make_the_first_lookup_together(start, catalogue):
    client = start()
    begin = threading.Barrier(16)

    def look(n: int) -> Instance:
        begin.wait()
        return client.lookup("web" if n % 2 else "WEB")

    with ThreadPoolExecutor(16) as threads:
        assert len(list(threads.map(look, range(16)))) == 16
    assert len([ask for ask in catalogue.asked(WEB) if not ask.index]) == 1


def test_the_module_functions_share_one_client(catalogue, monkeypatch):
    from discovery import client as module

    monkeypatch.setattr(module, "_default", Client(Config(), backend=catalogue, timeout=5.0))
    try:
        assert discovery.lookup("web") in discovery.lookup_all("web")
        assert len(discovery.wait_for("web")) == 4
        with discovery.watch("web") as watch:
            assert len(watch.next(5)) == 4
        assert default_client() is module._default
    finally:
        default_client().close()


def test_no_public_name_is_a_modules():
    """Importing a module sets its name in the package, over the function of that name."""
    assert not set(discovery.__all__) & {module.name for module in pkgutil.iter_modules(discovery.__path__)}


def test_every_public_name_can_be_had():
    for name in discovery.__all__:
        assert getattr(discovery, name) is not None
    assert set(discovery.__all__) <= set(dir(discovery))
    with pytest.raises(AttributeError, match="module 'discovery' has no attribute 'nope'"):
        discovery.nope
