from __future__ import annotations

import threading

from registrar.containers import ContainerID
from registrar.work import SURVEY, Task, WorkQueue
from tests.tools import wait_until

A, B = ContainerID("a"), ContainerID("b")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def queue_at(clock: Clock, *, survey_interval: float = 1.0) -> WorkQueue:
    queue = WorkQueue(survey_interval=survey_interval, clock=clock)
    queue.open_gate(True)
    return queue


def ready(queue: WorkQueue) -> Task | None:
    """What the queue would hand out now; None when a worker would have to wait."""
    return queue._next()[0]


def test_what_is_added_twice_is_handed_out_once() -> None:
    queue = queue_at(Clock())
    queue.add(A)
    queue.add(A)
    assert queue.take() == A
    queue.done(A)
    assert ready(queue) is None


def test_a_container_is_never_worked_on_twice_at_once() -> None:
    queue = queue_at(Clock())
    queue.add(A)
    assert queue.take() == A
    queue.add(A)
    queue.add(B)
    assert queue.take() == B
    assert ready(queue) is None
    queue.done(A)
    assert queue.take() == A


def test_what_is_to_be_done_later_waits_unless_it_is_wanted_sooner() -> None:
    clock = Clock()
    queue = queue_at(clock)
    queue.add(A, after=5)
    assert queue._next() == (None, 5)
    queue.add(A, after=9)
    assert queue._next() == (None, 5)
    queue.add(A, after=2)
    clock.now += 2
    assert queue.take() == A


def test_a_survey_is_alone() -> None:
    queue = queue_at(Clock())
    queue.add(A)
    assert queue.take() == A
    queue.survey()
    queue.add(B)
    assert ready(queue) is None, "a survey is due: nothing new begins"
    queue.done(A)
    assert queue.take() == SURVEY
    assert ready(queue) is None, "nothing runs beside a survey"
    queue.done(SURVEY)
    assert queue.take() == B


def test_surveys_keep_their_distance_and_none_is_lost() -> None:
    clock = Clock()
    queue = queue_at(clock, survey_interval=1.0)
    queue.survey()
    assert queue.take() == SURVEY
    queue.survey()
    queue.done(SURVEY)
    clock.now += 0.5
    queue.add(A)
    assert queue.take() == A, "other work goes on"
    queue.done(A)
    assert queue._next() == (None, 0.5)
    clock.now += 0.5
    assert queue.take() == SURVEY
    queue.done(SURVEY)
    clock.now += 5
    assert ready(queue) is None


def test_the_gate_keeps_work_until_it_opens() -> None:
    queue = WorkQueue(survey_interval=1.0, clock=Clock())
    queue.add(A)
    queue.survey()
    assert queue._next() == (None, None)
    queue.open_gate(True)
    assert queue.take() == SURVEY


def test_a_hold_passes() -> None:
    clock = Clock()
    queue = queue_at(clock)
    queue.add(A)
    queue.hold(2)
    assert queue._next() == (None, 2)
    clock.now += 2
    assert queue.take() == A


def test_idle_means_nothing_is_due_or_under_way() -> None:
    clock = Clock()
    queue = queue_at(clock)
    assert queue.idle()
    queue.open_gate(False)
    assert not queue.idle(), "what is to be done has not even been asked for"
    queue.open_gate(True)
    queue.add(A, after=1)
    assert queue.idle()
    clock.now += 1
    assert not queue.idle()
    assert queue.take() == A
    assert not queue.idle()
    queue.done(A)
    assert queue.idle()
    queue.survey()
    assert not queue.idle()
    assert queue.take() == SURVEY
    assert not queue.idle()


def test_closing_wakes_everybody() -> None:
    queue = WorkQueue(survey_interval=1.0)
    queue.open_gate(True)
    taken: list[Task | None] = []
    threads = [threading.Thread(target=lambda: taken.append(queue.take())) for _ in range(3)]
    for thread in threads:
        thread.start()
    queue.close()
    for thread in threads:
        thread.join(5)
    assert taken == [None, None, None]
    queue.add(A)
    assert queue.take() is None


def test_a_waiting_worker_gets_what_falls_due() -> None:
    queue = WorkQueue(survey_interval=0.0)
    queue.open_gate(True)
    taken: list[Task | None] = []
    thread = threading.Thread(target=lambda: taken.append(queue.take()))
    thread.start()
    queue.add(A, after=0.05)
    wait_until(lambda: taken == [A])
    thread.join(5)
