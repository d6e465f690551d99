from __future__ import annotations

import pytest

from registrar.containers import Container
from registrar.signals import GRACE, StopSignals
from tests.registrar.build import container

STARTED = "2024-05-01T10:00:00Z"
AT = 1714557600 * 10**9
"""Nanoseconds: when the container of these tests started."""
SECOND = 10**9


def web(**config: object) -> Container:
    return container(state={"StartedAt": STARTED}, **config)


@pytest.mark.parametrize(
    ("config", "signal", "ends"),
    [
        ({}, 15, True),
        ({}, 9, True),
        ({}, 1, False),
        ({}, 3, False),
        ({"StopSignal": "SIGQUIT"}, 3, True),
        ({"StopSignal": "SIGQUIT"}, 15, False),
        ({"StopSignal": "SIGHUP"}, 1, True),
    ],
)
def test_248_the_stop_signal_and_sigkill_count(config: dict[str, str], signal: int, ends: bool) -> None:
    signals = StopSignals()
    one = web(**config)
    signals.heard(one.id, signal, AT + SECOND, when=100)
    assert signals.ending(one, now=100) == ((f"signal {signal}", 10 + GRACE) if ends else ("", 0))


def test_another_signal_does_not_make_the_stop_signal_undone() -> None:
    signals = StopSignals()
    one = web()
    signals.heard(one.id, 15, AT + SECOND, when=100)
    signals.heard(one.id, 1, AT + 2 * SECOND, when=101)
    assert signals.ending(one, now=101)[0] == "signal 15"


def test_a_later_start_makes_it_void() -> None:
    signals = StopSignals()
    one = web()
    signals.heard(one.id, 15, AT - 1, when=100)
    assert signals.ending(one, now=100) == ("", 0)


def test_what_was_inspected_before_the_signal_does_not_make_it_void() -> None:
    """A pass may have looked at the stopped container, and read the signals after a new start and stop."""
    signals = StopSignals()
    stopped = container(state={"Running": False, "StartedAt": STARTED})
    signals.heard(stopped.id, 15, AT + SECOND, when=100)
    signals.ending(stopped, now=100)
    assert signals.ending(web(), now=100)[0] == "signal 15"


def test_who_survives_docker_s_patience_stays() -> None:
    signals = StopSignals()
    one = web(StopTimeout=30)
    signals.heard(one.id, 15, AT + SECOND, when=100)
    assert signals.ending(one, now=129)[1] == pytest.approx(1 + GRACE)
    assert signals.ending(one, now=130 + GRACE) == ("", 0)
    # The next signal counts again.
    signals.heard(one.id, 15, AT + 60 * SECOND, when=160)
    assert signals.ending(one, now=160)[0] == "signal 15"


def test_the_same_signal_heard_again_is_as_old_as_before() -> None:
    """A stream that is cut is followed by a replay, which begins with the last event of the one before."""
    signals = StopSignals()
    one = web(StopTimeout=30)
    signals.heard(one.id, 15, AT + SECOND, when=100)
    assert signals.just_sent(one.id)
    signals.heard(one.id, 15, AT + SECOND, when=1000)
    assert not signals.just_sent(one.id)
    assert signals.ending(one, now=1000) == ("", 0)


def test_a_container_that_is_never_killed_is_waited_for() -> None:
    signals = StopSignals()
    one = web(StopTimeout=-1)
    signals.heard(one.id, 15, AT + SECOND, when=100)
    assert signals.ending(one, now=10**6) == ("signal 15", float("inf"))


def test_just_sent_is_true_once_and_only_while_nothing_else_was_heard() -> None:
    signals = StopSignals()
    one = web()
    assert not signals.just_sent(one.id)
    signals.heard(one.id, 15, AT + SECOND, when=100)
    assert signals.just_sent(one.id)
    assert not signals.just_sent(one.id)
    signals.heard(one.id, 15, AT + SECOND, when=100)
    signals.heard(one.id, None, AT + SECOND, when=100)
    assert not signals.just_sent(one.id)


def test_nothing_is_left_of_a_container_that_is_gone() -> None:
    signals = StopSignals()
    one = web()
    signals.heard(one.id, 15, AT + SECOND, when=100)
    signals.forget(one.id)
    assert signals.ending(one, now=100) == ("", 0)
    assert not signals.just_sent(one.id)
    assert not signals._sent
