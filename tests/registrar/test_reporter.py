from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from discovery.errors import RegistryUnavailable, UnknownResource
from discovery.model import CheckID, ServiceID, Status
from registrar.reporter import Reporter
from registrar.status import Report
from tests.registrar.fake_registry import FakeRegistry
from tests.tools import wait_until

WEB = ServiceID("web")
CHECK = CheckID("web:container")
OLD, NEW = Report(WEB, CHECK, "passing", "running"), Report(WEB, CHECK, "critical", "stopping (signal 15)")


class Agent(FakeRegistry):
    """Takes what it is told while ``open`` is set, and lets it wait until then."""

    def __init__(self) -> None:
        super().__init__()
        self.checks[CHECK] = ("critical", "")
        self.asked: list[Status] = []
        self.open = threading.Event()
        self.open.set()

    def update_check(self, check_id: CheckID, status: Status, output: str = "") -> None:
        self.asked.append(status)
        assert self.open.wait(10)
        super().update_check(check_id, status, output)


@pytest.fixture
def agent() -> Agent:
    return Agent()


@pytest.fixture
def reporter(agent: Agent) -> Reporter:
    return Reporter(agent)


def test_a_renewal_under_way_does_not_undo_what_is_told_meanwhile(agent: Agent, reporter: Reporter) -> None:
    reporter.tell(OLD)
    agent.open.clear()
    with ThreadPoolExecutor() as threads:
        renewal = threads.submit(reporter.renew, CHECK)
        wait_until(lambda: len(agent.asked) == 2)
        news = threads.submit(reporter.tell, NEW)
        late = threads.submit(reporter.renew, CHECK)
        agent.open.set()
        for each in (renewal, news, late):
            each.result(10)
    assert agent.checks[CHECK] == (NEW.status, NEW.output)
    reporter.renew(CHECK)
    assert agent.checks[CHECK] == (NEW.status, NEW.output)


def test_what_is_forgotten_while_it_is_told_is_due_again(agent: Agent, reporter: Reporter) -> None:
    for forgotten in (WEB, None):
        agent.open.clear()
        agent.asked.clear()
        with ThreadPoolExecutor() as threads:
            telling = threads.submit(reporter.tell, OLD)
            wait_until(lambda: agent.asked)
            reporter.forget(forgotten)
            agent.open.set()
            telling.result(10)
        assert reporter.due([OLD]) == [OLD]
        assert reporter.kept() == []


def test_what_another_service_forgets_is_its_own_matter(reporter: Reporter) -> None:
    reporter.tell(OLD)
    reporter.forget(ServiceID("shop"))
    assert reporter.due([OLD]) == []
    assert reporter.kept() == [OLD]


def test_what_could_not_be_told_is_due_and_does_not_have_the_old_renewed(
    agent: Agent, reporter: Reporter
) -> None:
    """Whether it arrived is not known: renewing what was told before might undo it."""
    reporter.tell(OLD)
    agent.faults["update_check"] = RegistryUnavailable("timed out")
    with pytest.raises(RegistryUnavailable):
        reporter.tell(NEW)
    assert reporter.due([NEW]) == [NEW]
    assert reporter.kept() == []


def test_a_renewal_that_fails_is_made_again_while_the_agent_knows_the_check(
    agent: Agent, reporter: Reporter
) -> None:
    reporter.tell(OLD)
    agent.faults["update_check"] = RegistryUnavailable("timed out")
    with pytest.raises(RegistryUnavailable):
        reporter.renew(CHECK)
    assert reporter.kept() == [OLD]
    agent.faults["update_check"] = UnknownResource("unknown check", status=404)
    with pytest.raises(UnknownResource):
        reporter.renew(CHECK)
    assert reporter.kept() == []


def test_what_a_command_said_is_not_renewed(agent: Agent, reporter: Reporter) -> None:
    check = CheckID("web:command")
    agent.checks[check] = ("critical", "")
    reporter.tell(Report(WEB, check, "passing", "fine"))
    assert reporter.kept() == []
