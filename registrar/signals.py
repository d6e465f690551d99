"""Which containers are stopping: the signals that they were sent.

A container that was sent its stop signal still runs, looks as before when it is inspected, and is about to
close its doors. Docker tells of the signal once, in an event, and nowhere else; so this is the one thing
of an event that is remembered.

Laws:
- Pure: the clock is an argument. Not for several threads at once.
- The stop signal counts, and SIGKILL, which nothing survives; ``kill -s HUP`` does not.
- A signal counts for the life of the container that it was sent to: times are the engine's, and a later
  start makes it void. What was inspected may be older than the signal, so nothing is dropped for it.
- A container that is still there when Docker's patience is over, and ``GRACE`` more, has chosen to stay.
  Hearing of the same signal again, in a replay, does not begin that time anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from registrar.containers import Container, ContainerID

__all__ = ["GRACE", "StopSignals"]

GRACE: Final = 2.0
"""Seconds that Docker may be late with SIGKILL. ``docker stop --time`` is not told in the event; who gives
more time than the container's own stop timeout sees it come back for the rest of it."""
SIGKILL: Final = 9


@dataclass(frozen=True, slots=True)
class _Sent:
    at: int
    """Nanoseconds, the engine's clock."""
    when: float
    """The same moment; seconds, ours."""


class StopSignals:
    """See the module."""

    def __init__(self) -> None:
        self._sent: dict[ContainerID, dict[int, _Sent]] = {}
        """By container and number; of two with one number the later."""
        self._last: set[ContainerID] = set()
        """Containers of which a signal was the last that was heard."""

    def heard(self, container: ContainerID, signal: int | None, at: int, when: float) -> None:
        """Take an event.

        Args:
            signal: the number with a ``kill`` event; None with any other.
            at: nanoseconds on the engine's clock.
            when: the same moment in seconds on ours: before now when the event is replayed.
        """
        if signal is None:
            self._last.discard(container)
            return
        sent = self._sent.setdefault(container, {})
        if signal not in sent or sent[signal].at != at:
            sent[signal] = _Sent(at, when)
            self._last.add(container)

    def ending(self, container: Container, now: float) -> tuple[str, float]:
        """Return why *container* is about to end (``signal 15``), and for how long that is to be believed.

        Returns ``""`` when it is not.
        """
        sent = self._sent.get(container.id, {})
        for signal in [number for number, one in sent.items() if one.at <= container.state.started_at]:
            del sent[signal]
        if not sent:
            self._sent.pop(container.id, None)
        ends = {number: sent[number] for number in (container.stop_signal, SIGKILL) if number in sent}
        if not ends:
            return "", 0.0
        number = max(ends, key=lambda number: ends[number].at)
        left = ends[number].when + container.stop_timeout + GRACE - now
        return (f"signal {number}", left) if left > 0 else ("", 0.0)

    def just_sent(self, container: ContainerID) -> bool:
        """True once after a signal, when nothing was heard of the container since."""
        was = container in self._last
        self._last.discard(container)
        return was

    def forget(self, container: ContainerID) -> None:
        """Drop what is known of a container that is gone."""
        self._sent.pop(container, None)
        self._last.discard(container)
