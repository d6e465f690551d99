from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from discovery.errors import RegistryUnavailable
from discovery.model import CheckID, ServiceID
from registrar.checks import Probe
from registrar.containers import ContainerID
from registrar.prober import Prober
from registrar.status import Report
from tests.tools import wait_until

WEB, SHOP = ContainerID("web"), ContainerID("shop")


class Executor:
    """Runs nothing; says what a test wants it to say, when it wants it."""

    def __init__(self) -> None:
        self.answer: Callable[[], tuple[int | None, str]] = lambda: (0, "")
        self.executed: list[tuple[str, ...]] = []
        self.cancelled = threading.Event()

    def execute(
        self, container: ContainerID, args: tuple[str, ...], timeout: float
    ) -> tuple[int | None, str]:
        self.executed.append(args)
        return self.answer()

    def cancel(self) -> None:
        self.cancelled.set()


@pytest.fixture
def executor() -> Executor:
    return Executor()


@pytest.fixture
def told() -> list[Report]:
    return []


@pytest.fixture
def prober(executor: Executor, told: list[Report]) -> Iterator[Prober]:
    one = Prober(executor, lambda probe, report: told.append(report))
    yield one
    one.close()


def probe(container: ContainerID = WEB, *, command: str = "true", interval: float = 3600.0) -> Probe:
    return Probe(ServiceID(container), CheckID(f"{container}:command"), container, (command,), interval, 30)


def test_nothing_runs_before_there_is_a_probe(prober: Prober) -> None:
    prober.set(WEB, [])
    assert prober._threads == []


@pytest.mark.parametrize(
    ("code", "status"),
    [(0, "passing"), (1, "warning"), (2, "critical"), (127, "critical"), (None, "critical")],
)
def test_exit_codes_mean_what_they_mean_to_the_agent(
    prober: Prober, executor: Executor, told: list[Report], code: int | None, status: str
) -> None:
    executor.answer = lambda: (code, "words\r\n")
    prober.set(WEB, [probe()])
    wait_until(lambda: told)
    assert told[0].status == status
    assert told[0].output.endswith("words")
    assert (told[0].service_id, told[0].check_id) == ("web", "web:command")


def test_a_probe_is_run_at_once_and_then_every_interval(prober: Prober, executor: Executor) -> None:
    prober.set(WEB, [probe(command="slow")])
    prober.set(SHOP, [probe(SHOP, command="fast", interval=0.01)])
    wait_until(lambda: executor.executed.count(("fast",)) >= 5)
    assert executor.executed.count(("slow",)) == 1


def test_setting_the_same_again_does_not_run_it_again(prober: Prober, executor: Executor) -> None:
    prober.set(WEB, [probe()])
    wait_until(lambda: executor.executed)
    prober.set(WEB, [probe()])
    prober.set(SHOP, [probe(SHOP, command="other")])
    wait_until(lambda: ("other",) in executor.executed)
    assert executor.executed.count(("true",)) == 1


def test_another_command_is_run_at_once(prober: Prober, executor: Executor) -> None:
    prober.set(WEB, [probe()])
    wait_until(lambda: executor.executed)
    prober.set(WEB, [probe(command="other")])
    wait_until(lambda: ("other",) in executor.executed)


def test_what_is_no_longer_wanted_is_not_run(prober: Prober, executor: Executor) -> None:
    prober.set(WEB, [probe(interval=0.01)])
    wait_until(lambda: len(executor.executed) >= 2)
    prober.set(WEB, [])
    prober.set(SHOP, [probe(SHOP, command="other", interval=0.01)])
    executed = executor.executed.count(("true",))
    wait_until(lambda: executor.executed.count(("other",)) >= 5)
    assert executor.executed.count(("true",)) <= executed + 1, "one may have been under way"


def test_a_slow_probe_is_not_run_twice_at_once(
    prober: Prober, executor: Executor, told: list[Report]
) -> None:
    release = threading.Event()

    def answer() -> tuple[int, str]:
        release.wait(10)
        return 0, ""

    executor.answer = answer
    prober.set(WEB, [probe(interval=0.001)])
    wait_until(lambda: executor.executed)
    prober.set(SHOP, [probe(SHOP, command="other", interval=0.001)])
    wait_until(lambda: ("other",) in executor.executed)
    assert executor.executed == [("true",), ("other",)]
    release.set()
    wait_until(lambda: len(told) >= 4)


def test_what_is_set_anew_is_still_run_once_an_interval() -> None:
    """A restart, a pause or a drain takes a probe out and puts the same back."""
    now, ran, executor = [0.0], list[float](), Executor()

    def answer() -> tuple[int, str]:
        ran.append(now[0])
        return 0, ""

    executor.answer = answer
    prober = Prober(executor, lambda probe, report: None, lambda: now[0])
    try:
        for times in range(1, 6):
            prober.set(WEB, [])
            prober.set(WEB, [probe(interval=10)])
            wait_until(lambda: len(ran) == times)  # noqa: B023 it is called here and now
        now[0] = 10.0
        prober.set(SHOP, [probe(SHOP, command="wakes the threads", interval=10)])
        wait_until(lambda: ("wakes the threads",) in executor.executed and ran.count(10.0) >= 2)
        wait_until(lambda: not prober._running)
        assert ran.count(10.0) == 2, "one of each"
        assert len(prober._due) == 2
    finally:
        prober.close()


def test_what_is_set_anew_while_it_runs_waits_for_its_end(
    prober: Prober, executor: Executor, told: list[Report]
) -> None:
    release, under_way, most = threading.Event(), [0], [0]

    def answer() -> tuple[int, str]:
        under_way[0] += 1
        most[0] = max(most[0], under_way[0])
        release.wait(10)
        under_way[0] -= 1
        return 0, ""

    executor.answer = answer
    prober.set(WEB, [probe(command="old")])
    wait_until(lambda: executor.executed)
    for command in ("old", "other", "new"):
        prober.set(WEB, [])
        prober.set(WEB, [probe(command=command)])
    prober.set(SHOP, [])  # wakes a thread, which has nothing to do
    release.set()
    wait_until(lambda: told)
    assert executor.executed == [("old",), ("new",)]
    assert most == [1]
    assert len(told) == 1, "what the old one said was no longer wanted"


def test_docker_away_says_nothing_of_the_service(
    prober: Prober, executor: Executor, told: list[Report]
) -> None:
    def answer() -> tuple[int, str]:
        if len(executor.executed) < 3:
            raise RegistryUnavailable("cannot ask Docker")
        return 0, "back"

    executor.answer = answer
    prober.set(WEB, [probe(interval=0.01)])
    wait_until(lambda: told)
    assert told[0].output == "back"


def test_closing_cancels_what_is_under_way(prober: Prober, executor: Executor) -> None:
    def answer() -> tuple[int, str]:
        assert executor.cancelled.wait(10)
        raise RegistryUnavailable("cancelled")

    executor.answer = answer
    prober.set(WEB, [probe()])
    wait_until(lambda: executor.executed)
    prober.close()
    assert not any(thread.is_alive() for thread in prober._threads)
