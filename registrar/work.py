"""The work to do: containers to look at again, and surveys of everything.

    add(id) ─┐                             ┌─> a container, by one worker at a time
             ├─> WorkQueue ── take() ──────┤
    survey() ┘     (closed gate: waits)    └─> SURVEY, alone

Laws:
- Level-triggered: adding what already waits changes nothing, except that it may fall due sooner.
- A container is never worked on twice at once. Added again meanwhile, it comes again afterwards: whatever
  happened after the work began is looked at.
- A survey is exclusive. It replaces the picture of what the agent has, and a container's pass writes to
  that picture: side by side, the survey could bring back what the pass has just removed. Once a survey is
  due nothing new is begun until it is done; it lasts as long as one list of containers and one of services.
- Surveys are at least ``survey_interval`` apart; one asked for sooner is late, never lost.
- While the gate is closed nothing is handed out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, Literal

from registrar.containers import ContainerID

__all__ = ["SURVEY", "Survey", "Task", "WorkQueue"]

Survey = Literal["survey"]
SURVEY: Final[Survey] = "survey"
Task = ContainerID | Survey


class WorkQueue:
    """See the module."""

    def __init__(self, *, survey_interval: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._survey_interval = survey_interval
        self._changed = threading.Condition()
        self._due: dict[ContainerID, float] = {}
        """When each waiting container may be taken."""
        self._running: dict[ContainerID, float] = {}
        """What is under way, and since when."""
        self._survey_due: float | None = None
        self._survey_done = -float("inf")
        self._surveying: float | None = None
        """Since when a survey is under way."""
        self._gate_open = False
        self._held_until = -float("inf")
        self._closed = False

    def add(self, container: ContainerID, *, after: float = 0.0) -> None:
        """Have *container* looked at, *after* seconds or sooner."""
        due = self._clock() + after
        with self._changed:
            self._due[container] = min(due, self._due.get(container, due))
            self._changed.notify_all()

    def survey(self, *, after: float = 0.0) -> None:
        """Have everything looked at."""
        due = self._clock() + after
        with self._changed:
            self._survey_due = due if self._survey_due is None else min(due, self._survey_due)
            self._changed.notify_all()

    def idle(self) -> bool:
        """True when the gate is open, nothing is under way and nothing is due."""
        with self._changed:
            now = self._clock()
            due = any(when <= now for when in self._due.values())
            surveys = self._surveying is not None or self._survey_due is not None
            return self._gate_open and not (self._running or surveys or due)

    def under_way(self) -> float:
        """Return for how many seconds the oldest task has been under way; 0 when there is none."""
        with self._changed:
            since = [*self._running.values(), *([] if self._surveying is None else [self._surveying])]
            return self._clock() - min(since) if since else 0.0

    def open_gate(self, is_open: bool) -> None:
        """Hand out work, or stop doing so; what is under way goes on."""
        with self._changed:
            self._gate_open = is_open
            self._changed.notify_all()

    def hold(self, seconds: float) -> None:
        """Hand out nothing for a while: whoever the work is for has asked to be spared."""
        with self._changed:
            self._held_until = self._clock() + seconds

    def take(self) -> Task | None:
        """Wait for something to do; None when the queue is closed. Give every task back with ``done``."""
        with self._changed:
            while True:
                if self._closed:
                    return None
                task, delay = self._next()
                if task is not None:
                    return task
                self._changed.wait(delay)

    def done(self, task: Task) -> None:
        with self._changed:
            if task == SURVEY:
                self._surveying = None
                self._survey_done = self._clock()
            else:
                self._running.pop(ContainerID(task), None)
            self._changed.notify_all()

    def close(self) -> None:
        """Wake every ``take`` with None, now and ever after."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _next(self) -> tuple[Task | None, float | None]:
        """Return a task, or how long to wait for one (None: until something changes)."""
        if not self._gate_open or self._surveying is not None:
            return None, None
        now = self._clock()
        if now < self._held_until:
            return None, self._held_until - now
        delay: float | None = None
        if self._survey_due is not None:
            due = max(self._survey_due, self._survey_done + self._survey_interval)
            if due <= now:
                if self._running:
                    return None, None
                self._survey_due = None
                self._surveying = now
                return SURVEY, None
            delay = due - now
        for container, due in self._due.items():
            if container in self._running:
                continue
            if due <= now:
                del self._due[container]
                self._running[container] = now
                return container, None
            delay = due - now if delay is None else min(delay, due - now)
        return None, delay
