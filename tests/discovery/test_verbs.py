"""The verbs of both clients: each test runs once with `Client` and once with `AsyncClient`."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pytest

from discovery import balance
from discovery import service as service_module
from discovery.aio import AsyncClient
from discovery.client import Client
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
from discovery.model import Instance, NamesQuery, Node, NodeName, ServiceName, ServiceQuery, Weights
from tests.discovery.fake import FakeCatalogue, entry, service
from tests.discovery.verbs import Loop, Verbs
from tests.tools import wait_until

WEB = service("web")


@pytest.fixture
def catalogue() -> FakeCatalogue:
    fake = FakeCatalogue()
    fake.set(WEB, *(entry(port=port) for port in (1, 2, 3)))
    return fake


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture(params=["sync", "async"])
def start(request: pytest.FixtureRequest, catalogue: FakeCatalogue) -> Iterator[Callable[..., Verbs]]:
    loop = request.getfixturevalue("loop") if request.param == "async" else None
    kind = AsyncClient if loop else Client
    made: list[Verbs] = []

    def make(**settings: object) -> Verbs:
        settings.setdefault("timeout", 5.0)
        made.append(Verbs(kind(Config(), backend=catalogue, **settings), loop))
        return made[-1]

    yield make
    for one in made:
        one.close()
    assert not catalogue.open_readers


@pytest.fixture
def client(start: Callable[..., Verbs]) -> Verbs:
    return start()


def ports(instances: Sequence[Instance]) -> list[int]:
    return [port for _, port in instances]


# --- lookup --------------------------------------------------------------------------------------------


def test_a_lookup_is_a_fresh_pick_each_time(client):
    assert sorted(client.lookup("web").port for _ in range(6)) == [1, 1, 2, 2, 3, 3]


def test_a_warm_lookup_asks_nobody(client, catalogue):
    client.lookup("web")
    asks = len(catalogue.asks)
    for _ in range(100):
        client.lookup("web")
    wait_until(lambda: len(catalogue.asks) <= asks + 1)  # the watch's own
    assert len({ask.reader for ask in catalogue.asks}) == 1


def test_the_errors_are_the_same(client, catalogue):
    catalogue.set(service("ill"), entry("ill", port=9, status="critical"))
    catalogue.refused[service("secret")] = AccessDenied("not allowed", status=403)
    catalogue._values[NamesQuery()] = ({ServiceName("web"): ()}, 1)
    with pytest.raises(InvalidName):
        client.lookup("a/b")
    with pytest.raises(AccessDenied):
        client.lookup("secret")
    with pytest.raises(ServiceNotFound, match="did you mean 'web'") as caught:
        client.lookup("wep")
    assert caught.value.close == ("web",)
    assert [(a.source, a.error) for a in caught.value.attempts] == [("fake://registry", "no instance")]
    with pytest.raises(NoHealthyInstances, match="ill-9 fails check") as caught:
        client.lookup("ill")
    assert [(a.source, a.error) for a in caught.value.attempts] == [("fake://registry", "0 of 1 healthy")]
    catalogue.fail()
    with pytest.raises(RegistryUnavailable):
        client.lookup("new")
    assert client.lookup("new", default=Instance(entry(port=7))).port == 7


def test_a_first_lookup_ends_in_its_time(client, catalogue):
    catalogue.change(silent=True)
    started = time.monotonic()
    with pytest.raises(RegistryTimeout, match=r"did not answer within 0\.\d+ s") as caught:
        client.lookup("new", timeout=0.2)
    assert 0.2 <= time.monotonic() - started < 3.0
    assert [attempt.source for attempt in caught.value.attempts] == ["fake://registry"]


def test_lists_names_and_waits(client, catalogue):
    catalogue.set(WEB, entry(port=1, tags=("v1",)), entry(port=2, status="critical"))
    catalogue._values[NamesQuery()] = ({ServiceName("web"): ("v1",)}, 1)
    assert ports(client.lookup_all("web")) == [1]
    assert ports(client.lookup_all("web", healthy=False)) == [1, 2]
    assert ports(client.lookup_all("web", tags=["v2"])) == []
    assert client.names() == {"web": ("v1",)}
    assert ports(client.wait_for("web")) == [1]
    with pytest.raises(NoHealthyInstances, match="and found 1"):
        client.wait_for("web", min_instances=2, timeout=0.1)


def test_a_watch_tells_every_change(client, catalogue):
    with client.watching("web") as following:
        assert ports(following(5.0)) == [1, 2, 3]
        with pytest.raises(RegistryTimeout, match="did not change"):
            following(0.05)
        catalogue.set(WEB, entry(port=3), entry(port=4))
        change = following(5.0)
        assert (ports(change.added), ports(change.removed)) == ([4], [1, 2])


def test_every_candidate_is_explained(start, catalogue):
    rows = [entry(port=port, tags=("v1",), meta={"zone": "a"}) for port in range(1, 8)]
    rows[0] = entry(port=1, status="critical", output="no answer", tags=("v1",))
    rows[1] = entry(port=2, tags=("v2",))
    rows[3] = entry(port=4, tags=("v1",), meta={"zone": "b"})
    catalogue.set(WEB, *rows)
    client = start(zone="a")
    for _ in range(balance.FAILURES):
        client.report(Instance(rows[4]), ok=False)
    told = client.explain("web", tags=["v1"], exclude=[Instance(rows[2])], strategy="random")
    assert (told.service, told.strategy) == ("web", "random")
    assert [attempt.source for attempt in told.attempts] == ["fake://registry"]
    reasons = {candidate.instance.port: candidate.why_not for candidate in told.candidates}
    assert reasons == {
        1: "web-1 fails check 'check of web-1': no answer",
        2: "web-2 has tags ['v2'] and meta {}",
        3: "web-3 is excluded",
        4: "web-4 is in zone 'b', and there are some in 'a'",
        5: "web-5 failed again and again, and is left out for another 5 s",
        6: None,
        7: None,
    }
    picked = {client.lookup("web", tags=["v1"], exclude=[Instance(rows[2])]).port for _ in range(9)}
    assert picked == {port for port, reason in reasons.items() if reason is None}


# --- choosing ------------------------------------------------------------------------------------------


def test_a_strategy_by_name_for_one_lookup_or_for_all(start, catalogue):
    weights = {1: 1, 2: 2, 3: 5}
    catalogue.set(WEB, *(entry(port=port, weights=Weights(n, n)) for port, n in weights.items()))
    client, weighted = start(), start(strategy="weighted")
    for shares in (
        Counter(client.lookup("web", strategy="weighted").port for _ in range(80)),
        Counter(weighted.lookup("web").port for _ in range(80)),
    ):
        assert all(abs(shares[port] - 10 * weight) <= 3 for port, weight in weights.items()), shares


def test_a_strategy_of_ones_own(client):
    class Last:
        def pick(self, live: Sequence[Instance], stats: balance.Stats, key: str | None) -> Instance:
            return live[-1]

    assert {client.lookup("web", strategy=Last()).port for _ in range(5)} == {3}


def test_an_unknown_strategy_is_refused(client):
    with pytest.raises(ConfigurationError, match="no strategy is called 'fastest'"):
        client.lookup("web", strategy="fastest")


@pytest.mark.parametrize("strategy", [None, "ring_hash", "sticky"])
def test_a_key_meets_the_same_instance(client, strategy):
    met = {key: {client.lookup("web", key=key, strategy=strategy) for _ in range(5)} for key in "abcdefgh"}
    assert all(len(instances) == 1 for instances in met.values())
    assert len(set.union(*met.values())) > 1


def test_an_empty_key_is_a_key(client):
    assert len({client.lookup("web", key="") for _ in range(9)}) == 1


def test_a_filter_has_a_strategy_of_its_own(client, catalogue):
    catalogue.set(WEB, *(entry(port=port, tags=("even",) if port % 2 == 0 else ()) for port in range(1, 7)))
    picked = [client.lookup("web", tags=["even"]).port for _ in range(6)]
    assert Counter(picked) == {2: 2, 4: 2, 6: 2}


def test_the_case_of_a_tag_does_not_matter(client, catalogue):
    catalogue.set(WEB, entry(port=1, tags=("Blue", "v1")), entry(port=2, tags=("v1",)))
    for tags in (["blue"], ["Blue"], "BLUE", ["V1", "blue"]):
        assert {client.lookup("web", tags=tags).port for _ in range(3)} == {1}
        assert ports(client.lookup_all("web", tags=tags)) == [1]
        with client.watching("web", tags=tags) as following:
            assert ports(following(5.0)) == [1]
    assert len(client.inner._services[("web", None, None)]._views) == 2  # not one for each spelling


def test_filters_beyond_what_is_remembered_still_work(client, catalogue):
    catalogue.set(WEB, *(entry(port=port, meta={"n": str(port)}) for port in range(1, 200)))
    for port in range(1, 200):
        assert client.lookup("web", meta={"n": str(port)}).port == port


def in_zone(port: int, zone: str) -> object:
    return entry(port=port, meta={"zone": zone})


def test_a_zone_is_preferred_and_left_when_it_has_none(start, catalogue):
    catalogue.set(WEB, in_zone(1, "a"), in_zone(2, "b"), in_zone(3, "b"))
    client, at_home = start(), start(zone="b")
    assert {client.lookup("web", zone="a").port for _ in range(5)} == {1}
    assert {at_home.lookup("web").port for _ in range(6)} == {2, 3}
    assert {at_home.lookup("web", zone="a").port for _ in range(5)} == {1}
    catalogue.set(WEB, in_zone(1, "a"), entry(port=2, meta={"zone": "b"}, status="critical"))
    wait_until(lambda: {at_home.lookup("web").port for _ in range(5)} == {1})


def test_the_nearest_is_the_first_of_the_registrys_order(client, catalogue):
    near = ServiceQuery(ServiceName("web"), None, "_agent")
    catalogue.set(near, entry(port=3), entry(port=1), entry(port=2))
    assert {client.lookup("web", near="_agent").port for _ in range(5)} == {3}
    assert client.lookup("web", near="_agent", exclude=[Instance(entry(port=3))]).port == 1
    assert ports(client.lookup_all("web", near="_agent")) == [3, 1, 2]
    assert {client.lookup("web", near="_agent", strategy="round_robin").port for _ in range(6)} == {1, 2, 3}


@pytest.fixture
def three_centres(catalogue: FakeCatalogue) -> FakeCatalogue:
    for number, dc in ((2, "dc2"), (3, "dc3")):
        there = Node(NodeName("n"), "10.0.0.1", dc)
        catalogue.set(service("web", dc), entry(port=number * 10, node=there))
    return catalogue


def test_another_data_centre_when_this_one_has_none(start, three_centres):
    client, careful = start(), start(failover=("dc2", "dc3"))
    assert client.lookup("web", failover=["dc2"]).port in (1, 2, 3)
    three_centres.set(WEB, entry(port=1, status="critical"))
    wait_until(lambda: not client.lookup_all("web"))
    assert {client.lookup("web", failover=["dc2", "dc3"]).port for _ in range(3)} == {20}
    assert {careful.lookup("web").port for _ in range(3)} == {20}
    three_centres.set(service("web", "dc2"))
    wait_until(lambda: careful.lookup("web").port == 30)
    with pytest.raises(NoHealthyInstances) as caught:
        client.lookup("web", failover=["dc2"])
    assert len(caught.value.attempts) == 2
    three_centres.set(WEB, entry(port=1))
    wait_until(lambda: careful.lookup("web").port == 1)


def test_another_data_centre_when_this_one_cannot_be_asked(client, three_centres):
    three_centres.refused[WEB] = AccessDenied("not allowed", status=403)
    assert client.lookup("web", failover="dc2").port == 20
    three_centres.refused[service("web", "dc3")] = RegistryUnavailable("no path to dc3")
    with pytest.raises(AccessDenied):
        client.lookup("web", failover="dc3")


def test_a_data_centre_that_cannot_be_asked_is_explained_and_another_one_is_asked(start, three_centres):
    three_centres.refused[WEB] = RegistryUnavailable("no path to it")
    client = start(failover="dc2,dc3")
    for _ in range(2):
        told = client.explain("web")
        assert [(c.instance.port, c.why_not) for c in told.candidates] == [(20, None)]
        assert [attempt.error for attempt in told.attempts] == ["no path to it", "1 of 1 healthy"]
        assert client.lookup("web").port == 20
    three_centres.set(service("web", "dc2"), entry(port=20, status="critical"))
    wait_until(lambda: client.lookup("web").port == 30)
    assert [candidate.instance.port for candidate in client.explain("web").candidates] == [20, 30]
    three_centres.refused[service("ill", "dc3")] = RegistryUnavailable("no path to dc3")
    for verb in (client.lookup, client.explain):
        with pytest.raises(RegistryUnavailable, match="no path to dc3"):
            verb("ill", dc="dc2", failover=["dc3"])


def test_a_set_of_instances_is_that_of_one_data_centre(start, three_centres):
    client = start(failover=("dc2",))
    three_centres.set(WEB)
    assert client.lookup("web").port == 20
    assert ports(client.lookup_all("web")) == []
    with pytest.raises(NoHealthyInstances, match="and found 0"):
        client.wait_for("web", timeout=0.1)
    assert ports(client.wait_for("web", dc="dc2")) == [20]


# --- borrowing and reporting ---------------------------------------------------------------------------


def test_what_is_lent_counts_as_load(client):
    with client.borrow("web") as one, client.borrow("web", strategy="least_loaded", exclude=[one]) as other:
        stats = client.inner._tallies["web"].stats
        assert (stats.load(one), stats.load(other)) == (1, 1)
        third = ({1, 2, 3} - {one.port, other.port}).pop()
        picks = Counter(client.lookup("web", strategy="least_loaded").port for _ in range(200))
        assert picks[third] > 100
    assert (stats.load(one), stats.load(other)) == (0, 0)


def test_failures_eject_and_the_next_lookups_know(start, catalogue, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(service_module.time, "monotonic", lambda: clock[0])
    client = start()
    bad = client.lookup("web")
    others = [i for i in client.lookup_all("web") if i != bad]
    for _ in range(balance.FAILURES):
        with pytest.raises(OSError), client.borrow("web", exclude=others):
            raise OSError("broken")
    assert bad not in {client.lookup("web") for _ in range(30)}
    assert bad not in {client.lookup("web", tags=()) for _ in range(30)}
    assert bad in client.lookup_all("web")
    assert client.lookup("web", exclude=others) == bad  # better than none
    catalogue.set(WEB, *(entry(port=port) for port in (1, 2, 3, 4)))
    wait_until(lambda: 4 in {client.lookup("web").port for _ in range(9)})
    assert bad not in {client.lookup("web") for _ in range(30)}  # a change lets nobody back in
    clock[0] += balance.EJECTION
    wait_until(lambda: bad in {client.lookup("web") for _ in range(9)})


def test_most_instances_failing_is_no_reason_to_overload_the_rest(client):
    for instance in client.lookup_all("web")[:2]:
        for _ in range(balance.FAILURES):
            client.report(instance, ok=False)
    assert len({client.lookup("web") for _ in range(30)}) == 3


def test_a_report_speaks_for_all_ways_to_an_instance(client, catalogue):
    catalogue.set(service("web", "dc1"), *(entry(port=port) for port in (1, 2, 3)))
    client.lookup("web"), client.lookup("WEB"), client.lookup("web", dc="dc1")
    for _ in range(balance.FAILURES):
        client.report(Instance(entry(port=1)), ok=False)
    for options in ({}, {"dc": "dc1"}, {"strategy": "random"}):
        assert {client.lookup("web", **options).port for _ in range(40)} == {2, 3}
    client.report(Instance(entry(port=1)), ok=True, latency=0.1)
    assert {client.lookup("Web").port for _ in range(40)} == {1, 2, 3}


def test_an_interrupted_call_says_nothing_about_the_instance(client):
    only = [i for i in client.lookup_all("web") if i.port != 1]
    for _ in range(balance.FAILURES):
        with pytest.raises(KeyboardInterrupt), client.borrow("web", exclude=only):
            raise KeyboardInterrupt
    assert not client.inner._tallies["web"].stats.ejected


# --- calls ---------------------------------------------------------------------------------------------


class Servers:
    """What a call meets: some instances fail."""

    def __init__(self, **failing: Exception) -> None:
        self.failing = {int(port[1:]): exc for port, exc in failing.items()}
        self.met: list[int] = []

    def __call__(self, instance: Instance) -> int:
        self.met.append(instance.port)
        if instance.port in self.failing:
            failure = self.failing[instance.port]
            raise type(failure)(*failure.args)
        return instance.port


def test_20_a_call_goes_on_with_instances_it_has_not_tried(client):
    servers = Servers(_1=ConnectionError("1"), _2=ConnectionError("2"))
    for _ in range(3):
        servers.met.clear()
        assert client.call("web", servers) == 3
        assert len(servers.met) == len(set(servers.met))


def test_when_all_were_tried_the_last_failure_is_raised_and_says_who(client):
    servers = Servers(**{f"_{n}": ConnectionError(str(n)) for n in (1, 2, 3)})
    with pytest.raises(ConnectionError) as caught:
        client.call("web", servers, attempts=9)
    assert sorted(servers.met) == [1, 2, 3]
    (note,) = caught.value.__notes__
    assert note.startswith("tried 10.0.0.1:") and note.endswith("; there is no other instance")


def test_attempts_are_limited(client):
    servers = Servers(**{f"_{n}": ConnectionError(str(n)) for n in (1, 2, 3)})
    with pytest.raises(ConnectionError) as caught:
        client.call("web", servers, attempts=2)
    assert len(servers.met) == 2
    assert caught.value.__notes__[0].endswith("; 2 attempts were allowed")


def test_other_exceptions_are_the_callers(client):
    with pytest.raises(ValueError):
        client.call("web", Servers(**{f"_{n}": ValueError(str(n)) for n in (1, 2, 3)}))
    servers = Servers(**{f"_{n}": ValueError(str(n)) for n in (1, 2)})
    assert client.call("web", servers, retry_on=(ValueError,)) == 3


def test_what_the_caller_excludes_is_not_tried(client):
    exclude = [i for i in client.lookup_all("web") if i.port == 3]
    servers = Servers(_1=ConnectionError("1"), _2=ConnectionError("2"))
    with pytest.raises(ConnectionError):
        client.call("web", servers, exclude=exclude)
    assert sorted(servers.met) == [1, 2]


def test_one_instance_is_excluded_without_a_list(client):
    left_out = client.lookup("web")
    others = {1, 2, 3} - {left_out.port}
    assert {client.lookup("web", exclude=left_out).port for _ in range(6)} == others
    told = client.explain("web", exclude=left_out)
    assert {c.instance.port for c in told.candidates if c.why_not is None} == others
    servers = Servers(**{f"_{n}": ConnectionError(str(n)) for n in (1, 2, 3)})
    with pytest.raises(ConnectionError):
        client.call("web", servers, exclude=left_out)
    assert set(servers.met) == others


@pytest.mark.parametrize("hedge", [None, 0.1])
def test_no_attempts_are_no_call(client, hedge):
    servers = Servers()
    with pytest.raises(ConfigurationError, match=r"^attempts=0 is not possible: give at least 1$"):
        client.call("web", servers, attempts=0, hedge=hedge)
    assert not servers.met


def test_an_unknown_argument_is_refused(client):
    for verb in (client.lookup, client.lookup_all, client.explain):
        with pytest.raises(TypeError, match="unexpected keyword argument 'bogus'"):
            verb("web", bogus=1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'bogus'"), client.borrow("web", bogus=1):
        pass


def test_a_failed_lookup_is_raised_as_it_is(client):
    with pytest.raises(ServiceNotFound):
        client.call("nope", Servers())
    with pytest.raises(InvalidName):
        client.call("a/b", Servers())


def test_the_default_is_tried_once(client):
    servers = Servers(_7=ConnectionError("7"))
    with pytest.raises(ConnectionError):
        client.call("nope", servers, default=Instance(entry("nope", port=7)))
    assert servers.met == [7]


def test_20_retries_have_a_budget(client, monkeypatch):
    monkeypatch.setattr(service_module.time, "monotonic", lambda: 1000.0)  # no second passes
    servers = Servers(**{f"_{n}": ConnectionError(str(n)) for n in (1, 2, 3)})
    notes = Counter()
    for _ in range(200):
        with pytest.raises(ConnectionError) as caught:
            client.call("web", servers, attempts=2)
        notes[caught.value.__notes__[0].partition("; ")[2].partition(":")[0]] += 1
    retries = len(servers.met) - 200
    assert retries == pytest.approx(0.2 * 200 + balance.RetryBudget.MOST, abs=2)
    assert notes == {"2 attempts were allowed": retries, "the retry budget is spent": 200 - retries}


def slow(verbs: Verbs, slow_ports: set[int], release: threading.Event, ends: list[int]) -> Callable:
    """A server that answers from these ports when it is released."""
    if verbs.is_async:

        async def answer(instance: Instance) -> int:
            try:
                if instance.port in slow_ports:
                    await verbs.pause(30.0, release)
                return instance.port
            finally:
                ends.append(instance.port)

        return answer

    def blocking(instance: Instance) -> int:
        if instance.port in slow_ports:
            release.wait(30.0)
        ends.append(instance.port)
        return instance.port

    return blocking


def test_a_slow_call_is_hedged_and_the_first_answer_counts(client):
    release, ends = threading.Event(), []
    for _ in range(4):
        started = time.monotonic()
        assert client.call("web", slow(client, {1, 2}, release, ends), hedge=0.02) == 3
        assert time.monotonic() - started < 5.0
    release.set()
    wait_until(lambda: Counter(ends)[3] == 4)
    if client.is_async:
        assert client.inner._tallies["web"].stats.load(Instance(entry(port=1))) == 0  # cancelled, and over
    wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("call web")])


def test_hedging_stops_when_there_is_nobody_else(client):
    release, ends = threading.Event(), []
    answer = slow(client, {1, 2}, release, ends)
    exclude = [Instance(entry(port=3))]
    if client.is_async:
        with pytest.raises(TimeoutError):
            client.call("web", limited(answer, 0.3), hedge=0.02, exclude=exclude, retry_on=())
        return
    threading.Timer(0.2, release.set).start()
    assert client.call("web", answer, hedge=0.02, exclude=exclude) in (1, 2)


def limited(answer: Callable, seconds: float) -> Callable:
    import asyncio

    async def within(instance: Instance) -> int:
        return await asyncio.wait_for(answer(instance), seconds)

    return within


def test_a_hedged_call_retries_failures_like_any_other(client):
    servers = Servers(_1=ConnectionError("1"), _2=ConnectionError("2"))
    for _ in range(3):
        assert client.call("web", servers, hedge=1.0) == 3
    every = Servers(**{f"_{n}": ConnectionError(str(n)) for n in (1, 2, 3)})
    with pytest.raises(ConnectionError) as caught:
        client.call("web", every, hedge=1.0, attempts=9)
    assert caught.value.__notes__[0].endswith("; there is no other instance")
    with pytest.raises(ValueError):
        client.call("web", Servers(**{f"_{n}": ValueError(str(n)) for n in (1, 2, 3)}), hedge=1.0)
