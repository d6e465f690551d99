"""resolver.policy: networks, credits, bounds."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resolver.policy import LOOPBACK, Policy, Verdict

DOCKER = [*LOOPBACK, ip_network("172.17.0.0/16"), ip_network("fd00:17::/64")]


def ask(policy: Policy, source: str) -> Verdict:
    """One request, as an endpoint treats it."""
    try:
        policy.credits[source]()
    except (KeyError, StopIteration):
        return policy.judge(source)
    return Verdict.ADMITTED


@pytest.mark.parametrize(
    ("source", "allowed"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("172.17.255.255", True),
        ("172.18.0.1", False),
        ("fd00:17::1", True),
        ("fd00:18::1", False),
        ("::ffff:172.17.0.2", True),
        ("::ffff:192.0.2.1", False),
        ("fe80::1%eth0", False),
    ],
)
def test_networks(source: str, allowed: bool) -> None:
    policy = Policy(DOCKER, rate=0)
    assert policy.allows(source) == allowed
    assert ask(policy, source) == (Verdict.ADMITTED if allowed else Verdict.FOREIGN)


@given(st.integers(1, 50), st.integers(0, 120))
def test_a_source_gets_what_the_rate_allows_in_each_second(rate: int, asked: int) -> None:
    policy = Policy(DOCKER, rate=rate)
    for _ in range(2):
        verdicts = [ask(policy, "172.17.0.2") for _ in range(asked)]
        assert verdicts.count(Verdict.ADMITTED) == min(rate, asked)
        assert verdicts.count(Verdict.EXCESSIVE) == max(0, asked - rate)
        assert ask(policy, "172.17.0.3") is Verdict.ADMITTED, "others have their own"
        policy.tick()
    assert policy.excessive == 2 * max(0, asked - rate)


def test_loopback_may_ask_without_end() -> None:
    policy = Policy(DOCKER, rate=2)
    assert {ask(policy, "127.0.0.1") for _ in range(100)} == {Verdict.ADMITTED}


def test_without_a_rate_everybody_may_ask_without_end() -> None:
    policy = Policy(DOCKER, rate=0)
    assert {ask(policy, "172.17.0.2") for _ in range(100)} == {Verdict.ADMITTED}


def test_forged_sources_take_no_memory() -> None:
    policy = Policy([ip_network("10.0.0.0/8")], rate=5)
    for i in range(70_000):
        assert ask(policy, f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}") is Verdict.ADMITTED
    assert len(policy.credits) <= 65_536
    for i in range(1000):
        assert ask(policy, f"192.0.2.{i % 256}") is Verdict.FOREIGN
    assert "192.0.2.1" not in policy.credits
