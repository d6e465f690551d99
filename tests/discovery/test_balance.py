"""Strategies, ejection and the retry budget: all of it with a clock and randomness of the test's."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery import balance
from discovery.balance import (
    EJECTION,
    EJECTION_MAX,
    FAILURES,
    STRATEGIES,
    Ewma,
    LeastLoaded,
    RetryBudget,
    RingHash,
    RoundRobin,
    Stats,
    Sticky,
    Strategy,
    Weighted,
)
from discovery.errors import ConfigurationError
from discovery.model import Instance, Weights
from tests.discovery.fake import entry

KEYED = {"ring_hash", "sticky"}


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def instances(count: int, weights: Sequence[int] = ()) -> tuple[Instance, ...]:
    rows = [entry(port=1000 + n) for n in range(count)]
    return tuple(
        Instance(replace(row, weights=Weights(weight, weight)))
        for row, weight in zip(rows, weights or [1] * count, strict=True)
    )


def below(seed: int = 1) -> Callable[[int], int]:
    return random.Random(seed).randrange


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stats(clock: Clock) -> Stats:
    return Stats(clock)


# --- what holds for all strategies ---------------------------------------------------------------------


@given(
    name=st.sampled_from(sorted(STRATEGIES)),
    weights=st.lists(st.integers(0, 300), min_size=1, max_size=20),
    key=st.text(max_size=20),
    seed=st.integers(0, 1000),
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=6),
)
def test_a_pick_is_an_element_of_what_is_given(name, weights, key, seed, sizes):
    everyone = instances(len(weights), weights)
    chosen = balance.strategy(name, below(seed))
    stats = Stats(Clock())
    for size in sizes:  # the set changes under the strategy
        live = everyone[:size]
        for _ in range(5):
            picked = chosen.pick(live, stats, key)
            assert any(picked is instance for instance in live)
            stats.begin(picked)


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"first", *KEYED}))
def test_equal_instances_get_equal_shares(name, stats):
    live = instances(7)
    chosen = balance.strategy(name, below())
    shares = Counter(chosen.pick(live, stats, None) for _ in range(7000))
    assert set(shares) == set(live)
    assert all(850 <= share <= 1150 for share in shares.values()), shares


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_threads_may_pick_at_once(name, stats):
    everyone = instances(9)
    chosen = balance.strategy(name, random.randrange)

    def work(seed: int) -> None:
        mine = random.Random(seed)
        for _ in range(300):
            live = everyone[: mine.randint(1, 9)]
            assert chosen.pick(live, stats, str(mine.randrange(50))) in live

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))


def test_a_wrong_name_is_told_the_right_ones():
    with pytest.raises(ConfigurationError, match="'fastest'; there are round_robin, random, first"):
        balance.strategy("fastest", below())


@pytest.mark.parametrize("name", sorted(KEYED))
def test_what_chooses_by_a_key_needs_one(name, stats):
    with pytest.raises(ConfigurationError, match="pass key="):
        balance.strategy(name, below()).pick(instances(2), stats, None)


def test_any_object_with_a_pick_is_a_strategy(stats):
    class Last:
        def pick(self, live: Sequence[Instance], stats: Stats, key: str | None) -> Instance:
            return live[-1]

    chosen: Strategy = Last()
    assert chosen.pick(instances(3), stats, None).port == 1002


# --- each of them --------------------------------------------------------------------------------------


@given(count=st.integers(1, 30), seed=st.integers(0, 10_000))
def test_round_robin_meets_each_once_in_a_round(count, seed):
    live, chosen, stats = instances(count), RoundRobin(below(seed)), Stats(Clock())
    assert {chosen.pick(live, stats, None) for _ in range(count)} == set(live)


def test_round_robin_begins_at_a_random_place(stats):
    live = instances(10)
    assert len({RoundRobin(below(seed)).pick(live, stats, None) for seed in range(40)}) > 5


def test_the_first_is_the_first(stats):
    assert balance.strategy("first", below()).pick(instances(3), stats, None).port == 1000


@given(
    weights=st.lists(st.integers(0, 1000), min_size=1, max_size=12).filter(any),
    seed=st.integers(0, 10_000),
)
def test_weights_are_kept_and_spread(weights, seed):
    live, chosen, stats = instances(len(weights), weights), Weighted(below(seed)), Stats(Clock())
    picks = 2000
    shares = Counter(chosen.pick(live, stats, None) for _ in range(picks))
    for instance in live:
        due = picks * instance.weight / sum(weights)
        assert abs(shares[instance] - due) <= 8, (instance.weight, shares[instance], due)


def test_a_small_weight_does_not_wait_for_its_turn_in_a_row(stats):
    live, chosen = instances(2, (9, 1)), Weighted(below())
    picked = [chosen.pick(live, stats, None).port for _ in range(1000)]
    turns = [n for n, port in enumerate(picked) if port == 1001]
    gaps = [later - sooner for sooner, later in itertools.pairwise(turns)]
    assert max(gaps) <= 16 and len(turns) == pytest.approx(100, abs=2)


def test_weights_of_nothing_count_as_equal(stats):
    live, chosen = instances(4, (0, 0, 0, 0)), Weighted(below())
    assert set(Counter(chosen.pick(live, stats, None) for _ in range(40))) == set(live)


def test_weights_that_change_are_seen(stats):
    chosen = Weighted(below())
    chosen.pick(instances(2, (1, 0)), stats, None)
    assert {chosen.pick(instances(2, (0, 1)), stats, None).port for _ in range(20)} == {1001}


def test_the_less_loaded_of_two_is_chosen(stats):
    live, chosen = instances(2), LeastLoaded(below())
    stats.begin(live[0])
    assert {chosen.pick(live, stats, None) for _ in range(50)} == {live[1]}
    stats.begin(live[1])
    stats.begin(live[1])
    assert {chosen.pick(live, stats, None) for _ in range(50)} == {live[0]}


def test_load_stays_level_whatever_the_calls_last(stats):
    live, chosen, mine = instances(10), LeastLoaded(below()), random.Random(2)
    under_way: list[Instance] = []
    for _ in range(3000):
        picked = chosen.pick(live, stats, None)
        stats.begin(picked)
        under_way.append(picked)
        if len(under_way) > 100:
            stats.end(under_way.pop(mine.randrange(len(under_way))))
    loads = [stats.load(instance) for instance in live]
    assert max(loads) - min(loads) <= 4, loads


def test_the_faster_of_two_is_chosen(stats, clock):
    live, chosen = instances(2), Ewma(below())
    stats.report(live[0], ok=True, latency=0.2)
    stats.report(live[1], ok=True, latency=0.01)
    assert {chosen.pick(live, stats, None) for _ in range(50)} == {live[1]}
    for _ in range(30):
        stats.begin(live[1])  # its calls pile up
    assert {chosen.pick(live, stats, None) for _ in range(50)} == {live[0]}


def test_a_new_instance_gets_one_call_and_then_what_that_tells(stats):
    live, chosen = instances(2), Ewma(below())
    stats.report(live[0], ok=True, latency=0.01)
    assert chosen.pick(live, stats, None) is live[1]
    stats.begin(live[1])
    assert {chosen.pick(live, stats, None) for _ in range(50)} == {live[0]}


def test_an_instance_that_fails_at_once_does_not_look_fast(stats):
    live, chosen = instances(2), Ewma(below())
    stats.report(live[0], ok=True, latency=0.1)
    stats.report(live[1], ok=False, latency=0.0001)
    assert {chosen.pick(live, stats, None) for _ in range(50)} == {live[0]}


def test_a_peak_counts_at_once_and_is_forgotten_slowly(stats, clock):
    (instance,) = instances(1)
    stats.report(instance, ok=True, latency=0.01)
    stats.report(instance, ok=True, latency=1.0)
    assert stats.latency(instance) == pytest.approx(1.0)
    clock.now += 1.0
    stats.report(instance, ok=True, latency=0.01)
    assert 0.5 < (stats.latency(instance) or 0) < 1.0
    clock.now += 100.0
    assert (stats.latency(instance) or 1) < 0.01  # and so it will be tried again


@given(count=st.integers(2, 12), gone=st.integers(0, 11), keys=st.sets(st.text(max_size=8), max_size=100))
def test_a_ring_moves_the_keys_of_the_one_that_goes_and_no_others(count, gone, keys):
    live, stats = instances(count), Stats(Clock())
    left = tuple(instance for n, instance in enumerate(live) if n != gone % count)
    before, after = RingHash(below()), RingHash(below())
    for key in keys:
        was = before.pick(live, stats, key)
        if was in left:
            assert after.pick(left, stats, key) is was


def test_a_ring_gives_one_that_comes_a_fair_share_of_each(stats):
    ten, nine, ring = instances(10), instances(10)[:9], RingHash(below())
    keys = [f"user-{n}" for n in range(4000)]
    before = {key: ring.pick(nine, stats, key) for key in keys}
    after = {key: ring.pick(ten, stats, key) for key in keys}
    moved = [key for key in keys if before[key] is not after[key] and before[key] != after[key]]
    assert {after[key] for key in moved} == {ten[9]}
    assert 250 <= len(moved) <= 600
    assert len({before[key] for key in moved}) == 9


def test_a_ring_is_the_same_in_every_process_and_order(stats):
    live = instances(5)
    one, other = RingHash(below(1)), RingHash(below(2))
    for n in range(200):
        assert one.pick(live, stats, str(n)) == other.pick(live[::-1], stats, str(n))
    # Written down, so that a release which moves every key of every user does not pass unnoticed.
    assert [one.pick(live, stats, key).port for key in "abcde"] == [1003, 1002, 1003, 1001, 1004]


def test_a_key_sticks_while_its_instance_is_there(stats):
    chosen, live = Sticky(below()), instances(4)
    mine = chosen.pick(live[:2], stats, "me")
    assert {chosen.pick(live, stats, "me") for _ in range(20)} == {mine}  # others come: it stays
    left = tuple(instance for instance in live if instance != mine)
    elsewhere = chosen.pick(left, stats, "me")
    assert elsewhere != mine
    assert chosen.pick(live, stats, "me") == elsewhere  # and does not go back


def test_new_keys_are_spread(stats):
    chosen, live = Sticky(below()), instances(4)
    shares = Counter(chosen.pick(live, stats, str(n)).port for n in range(400))
    assert shares == dict.fromkeys(range(1000, 1004), 100)


def test_a_sticky_pick_describes_the_instance_as_it_is_now(stats):
    chosen = Sticky(below())
    chosen.pick(instances(1), stats, "me")
    now = instances(1, (7,))
    assert chosen.pick(now, stats, "me") is now[0]


def test_keys_in_use_outlive_any_number_of_others(stats):
    chosen, live = Sticky(below()), instances(5)
    mine = chosen.pick(live, stats, "me")
    for n in range(3 * Sticky.MOST):
        chosen.pick(live, stats, str(n))
        if n % 1000 == 0:
            assert chosen.pick(live, stats, "me") is mine
    assert len(chosen._young) + len(chosen._old) <= 2 * Sticky.MOST


# --- ejection ------------------------------------------------------------------------------------------


def fail(stats: Stats, instance: Instance, times: int = FAILURES) -> list[bool]:
    return [stats.report(instance, ok=False) for _ in range(times)]


def test_failures_in_a_row_eject_for_a_while(stats, clock):
    live = instances(3)
    assert fail(stats, live[0]) == [False] * (FAILURES - 1) + [True]
    assert stats.usable(live) == live[1:]
    clock.now += EJECTION
    assert stats.usable(live) == live
    assert stats.expire() and not stats.ejected


def test_a_success_between_begins_the_count_anew(stats):
    live = instances(3)
    fail(stats, live[0], FAILURES - 1)
    stats.report(live[0], ok=True)
    assert fail(stats, live[0]) == [False] * (FAILURES - 1) + [True]


def test_who_comes_back_is_on_trial_and_stays_out_longer_each_time(stats, clock):
    live = instances(3)
    fail(stats, live[0])
    for lasted in (2 * EJECTION, 4 * EJECTION, 8 * EJECTION, EJECTION_MAX, EJECTION_MAX):
        clock.now = stats.ejected[live[0]]
        stats.expire()
        assert fail(stats, live[0], 1) == [True]
        assert stats.ejected[live[0]] - clock.now == pytest.approx(min(lasted, EJECTION_MAX))
    clock.now = stats.ejected[live[0]]
    stats.expire()
    stats.report(live[0], ok=True)
    fail(stats, live[0])
    assert stats.ejected[live[0]] - clock.now == pytest.approx(EJECTION)


def test_a_call_that_began_before_and_succeeds_takes_it_back_in(stats):
    live = instances(3)
    fail(stats, live[0])
    assert stats.report(live[0], ok=True)
    assert stats.usable(live) == live


@given(
    count=st.integers(1, 12),
    failing=st.sets(st.integers(0, 11)),
    live=st.sets(st.integers(0, 11), min_size=1),
)
def test_ejection_never_empties_and_leaves_half_at_least(count, failing, live):
    stats, everyone = Stats(Clock()), instances(12)
    for n in failing:
        fail(stats, everyone[n])
    given = tuple(everyone[n] for n in sorted(live))
    usable = stats.usable(given)
    assert usable
    assert set(usable) <= set(given)
    out = [n for n in live if n in failing]
    if len(out) * 2 <= len(live) and len(out) < len(live):
        assert set(usable) == {everyone[n] for n in live if n not in failing}
    else:
        assert usable == given


def test_what_is_gone_is_forgotten_when_its_calls_are_over(stats):
    live = instances(3)
    fail(stats, live[0])
    stats.begin(live[1])
    stats.keep({live[2]})
    assert not stats.ejected
    assert stats.load(live[1]) == 1
    stats.end(live[1])
    stats.end(live[1])
    assert stats.load(live[1]) == 0
    stats.keep({live[2]})
    assert not stats._records


# --- the retry budget ----------------------------------------------------------------------------------


def test_a_fifth_of_the_calls_may_be_tried_again(clock):
    budget = RetryBudget(clock)
    while budget.withdraw():
        pass
    retries = 0
    for _ in range(1000):
        budget.deposit()
        retries += budget.withdraw()
    assert retries == pytest.approx(200, abs=1)


def test_who_calls_seldom_may_always_try_again(clock):
    budget = RetryBudget(clock)
    for _ in range(100):
        clock.now += 60.0
        budget.deposit()
        assert budget.withdraw()


@given(
    st.lists(st.sampled_from(["deposit", "withdraw", "wait"]), max_size=200),
    st.sampled_from([1.0, 10.0, 100.0]),
)
def test_what_is_saved_has_a_bound(acts, most):
    clock = Clock()
    budget = RetryBudget(clock, most)
    calls = seconds = retries = 0
    for act in acts:
        if act == "deposit":
            calls += 1
            budget.deposit()
        elif act == "withdraw":
            retries += budget.withdraw()
        else:
            seconds += 1
            clock.now += 1.0
    assert retries <= most + calls * budget.RATIO + seconds * budget.PER_SECOND + 1e-6
