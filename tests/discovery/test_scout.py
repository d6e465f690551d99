"""discovery.scout, through the engine: thousands of questions, and few reads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from discovery import engine as engine_module
from discovery import scout as scout_module
from discovery.config import Config
from discovery.engine import Engine
from discovery.errors import AccessDenied
from discovery.model import ChecksQuery, MarksQuery, NamesQuery, Node, NodesQuery
from tests.discovery.fake import FakeCatalogue, Heard, entry, service
from tests.tools import wait_until

COUNT = 40
ONE, TWO, THREE = entry(port=1), entry(port=2), entry(port=3)
NODE = Node("n1", "10.1.0.1", "dc1")
CRITICAL = ChecksQuery("critical")


class Cluster(FakeCatalogue):
    """Forty services on one node, as Consul would tell of them."""

    def __init__(self) -> None:
        super().__init__()
        self.marks = {f"service-{n}": 1 for n in range(COUNT)}
        for query in QUERIES:
            self.set(query, ONE)
        self.set(NodesQuery(), NODE)
        self._tell()

    def register(self, number: int, *instances: object) -> None:
        self.set(QUERIES[number], *instances)
        self.marks[f"service-{number}"] += 1
        self._tell()

    def _tell(self) -> None:
        self.set(MarksQuery(NODE.name), *((name, 1, index) for name, index in self.marks.items()))
        self.set(NamesQuery(), *self.marks)


QUERIES = [service(f"service-{n}") for n in range(COUNT)]


@pytest.fixture(autouse=True)
def hardly_any_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not told by the scout would be seen after an hour."""
    monkeypatch.setattr(engine_module, "LOOK_AGAIN", 3600.0)
    monkeypatch.setattr(scout_module, "RETRY", 0.05)
    for name in ("LEADERLESS_PAUSE", "BACKOFF_MIN", "BACKOFF_MAX", "_BURST_SECONDS"):
        monkeypatch.setattr(engine_module, name, getattr(engine_module, name) / 10)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def engine(cluster: Cluster) -> Iterator[Engine]:
    engine = Engine(cluster, Config(max_watches=1))
    yield engine
    engine.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("discovery-")]
    assert not cluster.open_readers


Follow = Callable[[], list[Heard]]


@pytest.fixture
def heard(engine: Engine) -> list[Heard]:
    """What is told of each service, once the scout sees."""
    all_heard = []
    for query in QUERIES:
        engine.subscribe(query, one := Heard())
        all_heard.append(one)
    for one in all_heard:
        one.value(ONE)
    wait_until(lambda: engine._scout is not None and engine._scout.sees, message="the scout sees")
    wait_until(lambda: quiet(engine), message="what the first comparison told has been read")
    return all_heard


def quiet(engine: Engine) -> bool:
    """Whether no poller has anything to do."""
    waiting = list(engine._rota._times.values())
    return len(waiting) == len(engine._rota) == COUNT - 1 and all(waiting)


def test_a_change_is_seen_and_nothing_else_is_read(
    engine: Engine, cluster: Cluster, heard: list[Heard]
) -> None:
    before = [len(cluster.asked(query)) for query in QUERIES]
    for instances in ((TWO,), (THREE,), (ONE, TWO), ()):
        cluster.register(30, *instances)
        heard[30].value(*instances)
    after = [len(cluster.asked(query)) for query in QUERIES]
    others = [n for n in range(1, COUNT) if n != 30]
    assert [after[n] - before[n] for n in others] == [0] * len(others)
    assert {ask.index for ask in cluster.asked(QUERIES[30])} == {0}


def test_a_check_that_fails_is_seen_by_itself(engine: Engine, cluster: Cluster, heard: list[Heard]) -> None:
    """Consul: the list of names is no health source; nothing in it changes."""
    before = len(cluster.asked(MarksQuery(NODE.name)))
    cluster.set(QUERIES[30], TWO)
    cluster.set(CRITICAL, (NODE.name, "service-30", "alive"))
    heard[30].value(TWO)
    cluster.set(QUERIES[30], ONE)
    cluster.set(CRITICAL)
    heard[30].value(ONE)
    assert len(cluster.asked(MarksQuery(NODE.name))) == before


def test_a_check_of_a_node_is_one_of_all_its_services(
    engine: Engine, cluster: Cluster, heard: list[Heard]
) -> None:
    for query in QUERIES:
        cluster.set(query, TWO)
    cluster.set(CRITICAL, (NODE.name, "", "serfHealth"))
    for one in heard:
        one.value(TWO)


def test_an_address_of_a_node_is_one_of_all_its_services(
    engine: Engine, cluster: Cluster, heard: list[Heard]
) -> None:
    for query in QUERIES:
        cluster.set(query, TWO)
    cluster.set(NodesQuery(), Node("n1", "10.1.0.2", "dc1"))
    for one in heard:
        one.value(TWO)


def test_a_node_that_is_gone_takes_its_services_along(
    engine: Engine, cluster: Cluster, heard: list[Heard]
) -> None:
    for query in QUERIES:
        cluster.set(query)
    cluster.set(MarksQuery(NODE.name))
    cluster.set(NodesQuery())
    for one in heard:
        one.value()


def test_what_happened_in_an_outage_is_seen_after_it(
    engine: Engine, cluster: Cluster, heard: list[Heard]
) -> None:
    cluster.fail()
    for one in heard:  # although nobody would read them for an hour
        one.until(lambda known: known.stale, "hears that it is stale")
    cluster.register(30, TWO)
    cluster.recover()
    heard[30].value(TWO)
    for one in heard:
        one.until(lambda known: not known.stale, "is fresh again", timeout=20.0)


def test_who_may_not_see_polls(engine: Engine, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "POLL", 0.1)
    cluster.refused[CRITICAL] = AccessDenied("denied", status=403)
    all_heard = [Heard() for _ in QUERIES]
    for query, one in zip(QUERIES, all_heard, strict=True):
        engine.subscribe(query, one)
    for one in all_heard:
        one.value(ONE)
    wait_until(lambda: bool(cluster.asked(CRITICAL)))
    assert engine._scout is not None
    assert not engine._scout.sees
    cluster.set(QUERIES[30], TWO)
    all_heard[30].value(TWO)


def test_a_node_that_cannot_be_read_is_read_again(
    engine: Engine, cluster: Cluster, heard: list[Heard]
) -> None:
    cluster.refused[MarksQuery(NODE.name)] = AccessDenied("denied", status=403)
    cluster.register(30, TWO)
    wait_until(lambda: engine._scout is not None and not engine._scout.sees)
    del cluster.refused[MarksQuery(NODE.name)]
    heard[30].value(TWO)


def test_few_questions_have_no_scout(engine: Engine, cluster: Cluster, heard: list[Heard]) -> None:
    with engine._lock:
        followers = list(engine._followers.values())
    for follower in followers:
        for subscription in list(follower.subscriptions):
            if follower.query in QUERIES[3:]:
                engine._unsubscribe(follower, subscription)
    wait_until(lambda: engine._scout is None, message="the scout has been sent home")
    wait_until(lambda: "discovery-scout" not in [thread.name for thread in threading.enumerate()])
    engine.subscribe(QUERIES[5], one := Heard())
    one.value(ONE)


def test_close_ends_a_comparison(engine: Engine, cluster: Cluster, heard: list[Heard]) -> None:
    asked = len(cluster.asked(MarksQuery(NODE.name)))
    cluster.silent = True  # new reads hang
    cluster.set(NamesQuery(), "other")
    cluster.release_blocked()
    cluster.change(silent=False)
    wait_until(lambda: len(cluster.asked(MarksQuery(NODE.name))) > asked)
    engine.close()
