"""discovery.rota: who is to be asked next."""

from __future__ import annotations

import threading
import time

from discovery.rota import Rota
from tests.tools import wait_until


def test_turns_come_in_the_order_of_their_times() -> None:
    rota: Rota[str] = Rota()
    now = time.monotonic()
    for item, at in (("third", now - 1), ("second", now - 2), ("first", now - 3)):
        rota.add(item, at)
    assert [rota.next() for _ in range(3)] == ["first", "second", "third"]


def test_nobody_waits_for_a_time_longer_than_it_is_away() -> None:
    rota: Rota[str] = Rota()
    at = time.monotonic() + 0.05
    rota.add("web", at)
    assert rota.next() == "web"
    assert time.monotonic() >= at


def test_without_items_there_is_nothing_to_wait_for() -> None:
    rota: Rota[str] = Rota()
    assert rota.next() is None
    rota.add("web", 0.0)
    assert rota.next() == "web"
    assert rota.next() is None, "it is in hand"
    assert (len(rota), rota.waiting) == (1, 0)


def test_who_is_in_a_hurry_comes_first() -> None:
    rota: Rota[str] = Rota()
    far = time.monotonic() + 3600
    for item in ("a", "b", "c"):
        rota.add(item, far)
    rota.hurry(["b", "nobody"])
    assert rota.next() == "b"
    rota.hurry()
    assert {rota.next(), rota.next()} == {"a", "c"}


def test_a_hurry_for_an_item_in_hand_counts_when_it_is_added_again() -> None:
    rota: Rota[str] = Rota()
    far = time.monotonic() + 3600
    rota.add("web", 0.0)
    assert rota.next() == "web"
    rota.hurry(["web"])
    rota.add("web", far)
    assert rota.next() == "web"
    rota.hurry(["web"])
    rota.heed("web")  # it is about to be read: that is what the hurry was for
    rota.add("web", far)
    rota.add("other", 0.0)
    assert rota.next() == "other"


def test_who_waits_is_woken_by_a_hurry_and_by_the_end() -> None:
    rota: Rota[str] = Rota()
    rota.add("a", time.monotonic() + 3600)
    got: list[str | None] = []

    def take() -> None:
        got.extend([rota.next(), rota.next()])

    thread = threading.Thread(target=take)
    thread.start()
    rota.hurry(["a"])
    wait_until(lambda: not thread.is_alive())
    assert got == ["a", None]
    rota.add("b", time.monotonic() + 3600)
    thread = threading.Thread(target=lambda: got.append(rota.next()))
    thread.start()
    rota.drop("b")
    thread.join(5.0)
    assert got == ["a", None, None]


def test_after_the_end_nobody_waits_and_nothing_is_added() -> None:
    rota: Rota[str] = Rota()
    rota.add("in hand", 0.0)
    assert rota.next() == "in hand"
    rota.add("waiting", time.monotonic() + 3600)
    thread = threading.Thread(target=rota.next)
    thread.start()
    rota.end()
    thread.join(5.0)
    assert not thread.is_alive()
    rota.add("in hand", 0.0)
    assert rota.next() is None
