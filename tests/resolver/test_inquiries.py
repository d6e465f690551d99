"""resolver.inquiries: few connections, however many questions."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from discovery.agent import Agent
from discovery.backends import open_backend
from discovery.config import Config
from discovery.engine import Known
from discovery.errors import RegistryUnavailable
from discovery.model import NamesQuery, PreparedQuery, PreparedResult, Query, Reply
from resolver.inquiries import Inquiries
from tests.discovery.resilience.meddler import REFUSED, Meddler
from tests.tools import wait_until


@pytest.fixture
def meddler(agent: Agent) -> Iterator[Meddler]:
    with Meddler(agent.http[1]) as meddler:
        yield meddler


@pytest.fixture
def inquiries(meddler: Meddler) -> Iterator[Inquiries]:
    backend = open_backend(f"consul://127.0.0.1:{meddler.port}", Config())
    inquiries = Inquiries(backend)
    yield inquiries
    inquiries.close()
    backend.close()


def test_many_questions_take_two_connections(inquiries: Inquiries, meddler: Meddler) -> None:
    told: list[Known] = []
    for number in range(200):
        inquiries.ask(PreparedQuery(f"made-up-{number}"), told.append)
    wait_until(lambda: len(told) == 200)
    assert {known.query for known in told} == {PreparedQuery(f"made-up-{number}") for number in range(200)}
    assert all(known.value == PreparedResult() and known.error is None for known in told)
    assert meddler.open <= 2


def test_an_error_is_told_and_ends_nothing(inquiries: Inquiries, meddler: Meddler) -> None:
    told: list[Known] = []
    meddler.break_with(REFUSED)
    inquiries.ask(NamesQuery(), told.append)
    wait_until(lambda: len(told) == 1)
    meddler.mend()
    inquiries.ask(NamesQuery(), told.append)
    wait_until(lambda: len(told) == 2)
    assert (told[0].value, "403" in str(told[0].error)) == (None, True)
    assert (told[1].value, told[1].error) == ({"consul": ()}, None)


class Odd:
    """A catalogue with a fault, and one that hangs."""

    where = "nowhere"

    def __init__(self) -> None:
        self.interrupted = threading.Event()

    def connect(self) -> Odd:
        return self

    def read(self, query: Query, *, timeout: float) -> Reply:
        if query == NamesQuery():
            raise ZeroDivisionError
        self.interrupted.wait()
        raise RegistryUnavailable("interrupted")

    def interrupt(self) -> None:
        self.interrupted.set()

    def close(self) -> None: ...


def test_a_fault_of_ours_is_told_and_closing_ends_what_hangs() -> None:
    inquiries = Inquiries(Odd())  # type: ignore[arg-type]
    told: list[Known] = []
    inquiries.ask(NamesQuery(), told.append)
    wait_until(lambda: len(told) == 1)
    assert "ZeroDivisionError" in str(told[0].error)
    for number in range(5):
        inquiries.ask(PreparedQuery(str(number)), told.append)
    inquiries.close()
    assert len(told) == 6
    assert not [thread for thread in threading.enumerate() if thread.name == "resolver-inquiry"]
