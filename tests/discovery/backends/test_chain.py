"""Several sources behind one: who is asked, for how long, and whose word counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from discovery.backends import chain as chain_module
from discovery.backends.chain import PROBE, Chain, Link
from discovery.backends.disk import Disk
from discovery.config import Config
from discovery.engine import Engine
from discovery.errors import (
    AccessDenied,
    ConfigurationError,
    DiscoveryError,
    RegistryOverloaded,
    RegistryTimeout,
    RegistryUnavailable,
)
from discovery.model import Query, Reply, Source
from tests.discovery.fake import FakeCatalogue, Heard, entry, service
from tests.tools import wait_until

WEB = service("web")
ONE, TWO = (entry(port=1),), (entry(port=1), entry(port=2))


@dataclass
class Scripted:
    """A source that says one thing, and remembers how it was asked: (index, wait, timeout)."""

    where: str
    says: tuple | DiscoveryError
    source: Source = "http"
    index: int = 7
    error: DiscoveryError | None = None
    asked: list[tuple[int, float, float]] = field(default_factory=list)
    interrupted: bool = False
    closed: int = 0

    def connect(self) -> Scripted:
        return self

    def read(self, query: Query, *, index: int = 0, wait: float = 0.0, timeout: float = 10.0) -> Reply:
        self.asked.append((index, wait, timeout))
        if isinstance(self.says, DiscoveryError):
            raise self.says
        return Reply(self.says, self.index, source=self.source, error=self.error)

    def interrupt(self) -> None:
        self.interrupted = True

    def close(self) -> None:
        self.closed += 1


@dataclass
class Has:
    """What the one who asks has already."""

    where: str
    stale: bool = False


DOWN = RegistryUnavailable("down")
SLOW = RegistryTimeout("slow")


def http(says: tuple | DiscoveryError = ONE, where: str = "http://one") -> Scripted:
    return Scripted(where, says)


def dns(says: tuple | DiscoveryError = TWO) -> Scripted:
    return Scripted("DNS", says, source="dns")


def linked(*sources: Scripted, known: Has | None = None, disk: Disk | None = None) -> Chain:
    chain = Chain([Link(source, 0.4) for source in sources], disk=disk)
    chain.known = lambda query: known
    return chain


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock of the chain; add to its only element."""
    seconds = [1000.0]
    monkeypatch.setattr(chain_module.time, "monotonic", lambda: seconds[0])
    return seconds


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(str(tmp_path / "cache"), "scope")


# --- nothing is known ----------------------------------------------------------------------------------


def test_the_first_that_answers_is_believed():
    one, two = http(), dns()
    reply = linked(one, two).read(WEB)
    assert (reply.value, reply.where, reply.source, reply.attempts) == (ONE, "http://one", "http", ())
    assert two.asked == []


def test_who_cannot_answer_makes_room_and_is_remembered_in_the_reply():
    reply = linked(http(DOWN), dns()).read(WEB)
    assert (reply.value, reply.where) == (TWO, "DNS")
    assert [(attempt.source, attempt.error) for attempt in reply.attempts] == [("http://one", "down")]


def test_an_authoritative_nothing_is_an_answer():
    other = dns()
    assert linked(http(()), other).read(WEB).value == ()
    assert other.asked == []


def test_what_a_source_does_not_cover_it_is_not_asked():
    one, two = http(), dns()
    chain = Chain([Link(one, covers=lambda query: False), Link(two)])
    assert chain.read(WEB).where == "DNS"
    assert one.asked == []


def test_a_wrong_setting_is_raised_at_once():
    other = dns()
    with pytest.raises(ConfigurationError):
        linked(http(ConfigurationError("no such file")), other).read(WEB)
    assert other.asked == []


def test_a_failing_source_rests_while_another_answers(now):
    one, two = http(DOWN), dns()
    chain = linked(one, two)
    for _ in range(3):
        chain.read(WEB)
    assert (len(one.asked), len(two.asked)) == (1, 3)
    now[0] += PROBE
    one.says = ONE
    assert chain.read(WEB).where == "http://one"


def test_a_resting_source_is_asked_when_nobody_else_can_answer(now):
    one, two = http(DOWN), dns()
    chain = linked(one, two)
    chain.read(WEB)
    one.says, two.says = ONE, DOWN
    assert chain.read(WEB).where == "http://one"


def test_nobody_rests_while_nobody_answers(now):
    one, two = http(DOWN), dns(DOWN)
    chain = linked(one, two)
    for _ in range(3):
        with pytest.raises(RegistryUnavailable) as caught:
            chain.read(WEB)
    assert (len(one.asked), len(two.asked)) == (3, 3)
    assert [attempt.source for attempt in caught.value.attempts] == ["http://one", "DNS"]
    assert str(caught.value).startswith(
        "no source of services answers: http://one: down (after 0.00 s); DNS:"
    )


def test_a_source_alone_is_told_in_its_own_words():
    with pytest.raises(RegistryTimeout, match=r"^slow$") as caught:
        Chain([Link(http(SLOW))]).read(WEB)
    assert [attempt.source for attempt in caught.value.attempts] == ["http://one"]


def test_budgets_are_for_the_first_round_and_patience_for_what_was_only_slow():
    one, two = http(SLOW), dns(DOWN)
    with pytest.raises(RegistryUnavailable):
        linked(one, two).read(WEB, timeout=5.0)
    assert one.asked[0][2] == 0.4 and 4.0 < one.asked[1][2] <= 5.0
    assert [timeout for _, _, timeout in two.asked] == [0.4]


def test_a_slow_source_without_a_budget_is_asked_once():
    one = http(SLOW)
    with pytest.raises(RegistryTimeout):
        Chain([Link(one)]).read(WEB, timeout=5.0)
    assert [timeout for _, _, timeout in one.asked] == [5.0]


# --- refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "refusal", [AccessDenied("not allowed", status=403), RegistryOverloaded("slow down", status=429)]
)
def test_a_refusal_is_raised_unless_somebody_else_knows(refusal):
    assert linked(http(refusal), dns()).read(WEB).value == TWO
    for others in ([], [dns(DOWN)], [dns(())]):  # a denial does not outweigh it
        with pytest.raises(type(refusal)) as caught:
            linked(http(refusal), *others).read(WEB)
        assert len(caught.value.attempts) == 1 + len(others)


def test_who_refuses_one_question_is_asked_the_next(now):
    one = http(AccessDenied("not allowed", status=403))
    chain = linked(one, dns())
    chain.read(WEB)
    chain.read(service("db"))
    assert len(one.asked) == 2


# --- something is known --------------------------------------------------------------------------------


def test_a_blocking_read_goes_to_where_the_answer_came_from_in_full():
    one, two = http(), dns()
    chain = linked(one, two, known=Has("http://one"))
    chain.connect().read(WEB, index=7, wait=55.0, timeout=5.0)
    assert one.asked == [(7, 55.0, 5.0)] and two.asked == []


def test_15_a_worse_source_never_replaces_what_a_better_one_told(disk):
    disk.keep(WEB, TWO)
    two = dns()
    for denied in (DOWN, AccessDenied("not allowed", status=403)):
        with pytest.raises(type(denied)):
            linked(http(denied), two, known=Has("http://one", stale=True), disk=disk).read(WEB)
    assert two.asked == []


def test_a_better_source_is_asked_when_it_is_due_and_waited_for_until_then(now):
    one, two = http(DOWN), dns()
    chain = linked(one, two)
    chain.read(WEB)
    chain.known = lambda query: Has("DNS")
    reader = chain.connect()
    now[0] += 10.0
    assert reader.read(WEB, index=7, wait=55.0).where == "DNS"
    index, wait, _ = two.asked[-1]
    assert index == 7 and PROBE * 0.8 - 10 <= wait <= PROBE - 10
    now[0] += wait
    one.says = ONE
    assert reader.read(WEB, index=7, wait=55.0, timeout=5.0).where == "http://one"
    assert one.asked[-1] == (0, 0.0, 5.0)  # its own time, and no other source's index


def test_a_better_source_that_fails_again_rests_again(now):
    one, two = http(DOWN), dns()
    chain = linked(one, two, known=Has("DNS"))
    reader = chain.connect()
    for _ in range(6):
        assert reader.read(WEB, index=7, wait=55.0).where == "DNS"
        now[0] += 7.0
    assert len(one.asked) == 2


def test_probes_are_not_in_step(now):
    rests = set()
    for _ in range(20):
        chain = linked(http(DOWN), dns())
        chain.read(WEB)
        rests.add(chain.links[0].rests_until - now[0])
    assert len(rests) > 10 and all(PROBE * 0.8 <= rest <= PROBE for rest in rests)


def test_what_is_known_from_a_source_that_is_no_more_is_asked_anew():
    one = http()
    assert (
        linked(one, known=Has("DISCOVERY_STATIC=/gone")).connect().read(WEB, index=3, wait=9.0).value == ONE
    )
    assert one.asked[0][:2] == (0, 0.0)


# --- what was written down -----------------------------------------------------------------------------


def test_when_nobody_answers_what_was_written_down_does_and_says_so(disk):
    linked(http(), disk=disk).read(WEB)
    reply = linked(http(DOWN), dns(DOWN), disk=disk).read(WEB)
    assert (reply.value, reply.source) == (ONE, "disk")
    assert str(reply.error).endswith("; using what was known 0 s ago")
    assert [attempt.source for attempt in reply.attempts] == ["http://one", "DNS"]


def test_what_was_written_down_comes_before_patience(disk):
    disk.keep(WEB, ONE)
    one = http(SLOW)
    assert linked(one, disk=disk).read(WEB, timeout=5.0).source == "disk"
    assert len(one.asked) == 1


def test_what_was_written_down_rests_nobody(disk, now):
    disk.keep(WEB, ONE)
    one = http(DOWN)
    chain = linked(one, dns(DOWN), disk=disk)
    chain.read(WEB)
    one.says = TWO
    assert chain.read(WEB).value == TWO


@pytest.mark.parametrize(
    "reply",
    [
        Scripted("x", ONE, source="static"),
        Scripted("x", ONE, source="shared"),
        Scripted("x", ONE, source="dns", error=RegistryUnavailable("from memory")),
    ],
)
def test_only_what_the_registry_itself_said_now_is_written_down(disk, reply):
    linked(reply, disk=disk).read(WEB)
    assert disk.recall(WEB) is None


@pytest.mark.parametrize("source", ["http", "dns"])
def test_what_the_registry_said_is_written_down(disk, source):
    linked(Scripted("x", ONE, source=source), disk=disk).read(WEB)
    assert disk.recall(WEB).value == ONE


def test_a_dns_server_that_answers_from_memory_lets_nobody_rest(now):
    one = http(DOWN)
    two = Scripted("DNS", TWO, source="dns", error=RegistryUnavailable("from memory"))
    chain = linked(one, two)
    assert chain.read(WEB).value == TWO
    chain.read(WEB)
    assert len(one.asked) == 2


# --- its life ------------------------------------------------------------------------------------------


def test_an_interrupt_reaches_every_source_and_stays():
    one, two = http(DOWN), dns()
    reader = linked(one, two).connect()
    reader.read(WEB)
    reader.interrupt()
    assert one.interrupted and two.interrupted
    with pytest.raises(RegistryUnavailable, match="interrupted"):
        reader.read(WEB)
    reader.close()
    assert one.closed == two.closed == 1


def test_closing_closes_what_can_be_closed():
    one = http()
    chain = Chain([Link(one), Link(FakeCatalogue())])
    chain.close()
    assert one.closed == 1


def test_the_engine_goes_on_with_dns_and_comes_back_to_the_registry(monkeypatch):
    """The whole of it with the engine: no source's outage makes another's answer stale."""
    monkeypatch.setattr(chain_module, "PROBE", 0.2)
    registry, heard, db = FakeCatalogue(), Heard(), Heard()
    registry.set(WEB, *ONE)
    registry.fail()
    names = dns()
    chain = Chain([Link(registry, 0.4), Link(names, 0.4, lambda query: query == WEB)])
    engine = Engine(chain, Config(wait=0.1))
    chain.known = engine.peek
    try:
        engine.subscribe(WEB, heard)
        engine.subscribe(service("db"), db)
        heard.value(*TWO)
        db.until(lambda known: known.error is not None)
        assert heard.last.source == "dns" and heard.last.where == "DNS"
        asked = len(names.asked)
        wait_until(lambda: len(names.asked) > asked + 3)
        assert not heard.last.stale
        registry.recover()
        heard.value(*ONE)
        assert heard.last.source == "http"
        db.value()
        asked = len(names.asked)
        registry.fail()
        heard.until(lambda known: known.stale)
        assert heard.last.value == ONE and len(names.asked) == asked
    finally:
        engine.close()
