"""The agent's own state: its clocks, what it publishes when, and how it keeps the catalogue in step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.agent import topics
from discovery.agent.state import CHECK_UPDATE_INTERVAL, RECONCILE_INTERVAL, State
from discovery.errors import RegistryError
from discovery.model import Check, CheckID, Node, NodeName, Registration, ServiceID, ServiceName, Status

NODE = Node(NodeName("host"), "10.0.0.1", dc="dc1", id="uuid")
WEB = ServiceID("web")
CHECK = CheckID("c")


def new_state(**options: Any) -> State:
    return State(NODE, random=lambda: 0.5, now=0.0, **options)


def registration(*checks: Check, **fields: Any) -> Registration:
    return Registration(id=WEB, name=ServiceName("web"), checks=checks, **fields)


def in_catalogue(state: State) -> dict[str, tuple[str, str]]:
    """Status and output of each check, as the catalogue has them."""
    rows = state.catalogue.checks_of("host")
    return {row.value.id: (row.value.status, row.value.output) for row in rows}


# --- TTL and the deregistration of what stays critical


def test_a_ttl_runs_out_at_its_time() -> None:
    state = new_state()
    state.register(registration(Check(id=CHECK, ttl=10.0)), now=0.0)
    state.report_ttl(CHECK, "passing", "fine", now=5.0)
    state.tick(14.9)
    assert in_catalogue(state)["c"] == ("passing", "fine")
    state.tick(15.0)
    assert in_catalogue(state)["c"] == (
        "critical",
        "TTL expired (last output before timeout follows): fine",
    )


@pytest.mark.parametrize(("asked", "gone_after"), [(300.0, 300.0), (60.0, 60.0), (1.0, 60.0)])
def test_deregisters_what_has_been_critical_for_long(asked: float, gone_after: float) -> None:
    state = new_state()
    state.register(registration(Check(id=CHECK, ttl=10.0, deregister_after=asked)), now=0.0)
    state.tick(10.0)  # expired: critical from here on
    state.tick(10.0 + gone_after - 0.1)
    assert WEB in state.services
    state.catalogue.take_touched()
    state.tick(10.0 + gone_after)
    assert state.services == {}
    assert state.catalogue.instances("web") == []
    assert topics.health("web") in state.catalogue.take_touched()


def test_who_recovers_in_time_stays() -> None:
    state = new_state()
    state.register(
        registration(Check(id=CHECK, http="http://x/", interval=10.0, deregister_after=60.0)), now=0.0
    )
    ran = state.definitions[CHECK]
    state.report_run(ran, "critical", "", now=10.0)
    state.report_run(ran, "warning", "", now=60.0)
    state.report_run(ran, "critical", "", now=65.0)
    state.report_run(ran, "critical", "again", now=100.0)
    state.tick(124.0)
    assert WEB in state.services
    state.tick(125.0)
    assert WEB not in state.services


def test_registering_again_starts_the_deregistration_anew() -> None:
    """Else a service would be removed as it comes back, for what its predecessor did."""
    state = new_state()
    register = registration(Check(id=CHECK, http="http://x/", interval=10.0, deregister_after=60.0))
    state.register(register, now=0.0)
    state.report_run(state.definitions[CHECK], "critical", "", now=0.0)
    state.register(register, now=50.0)
    state.tick(109.0)
    assert WEB in state.services
    state.tick(110.0)
    assert WEB not in state.services


def test_deregisters_services_only() -> None:
    state = new_state()
    state.register_check(Check(id=CHECK, name="c", ttl=1.0, deregister_after=60.0), ServiceID(""), now=0.0)
    state.tick(1.0)
    state.tick(1000.0)
    assert CHECK in state.checks()


# --- outputs


def test_an_output_alone_is_published_late() -> None:
    state = new_state()
    state.register(registration(Check(id=CHECK, ttl=1000.0, initial_status="passing")), now=0.0)
    state.catalogue.take_touched()
    state.report_ttl(CHECK, "passing", "one", now=10.0)
    state.report_ttl(CHECK, "passing", "two", now=200.0)
    due = 10.0 + CHECK_UPDATE_INTERVAL  # half of it to one and a half: chance says 0.5
    assert state.checks()[CHECK].output == "two"
    state.tick(due - 1)
    assert in_catalogue(state)["c"] == ("passing", "")
    assert state.catalogue.take_touched() == frozenset()
    state.tick(due)
    assert in_catalogue(state)["c"] == ("passing", "two")


def test_a_status_takes_its_output_along() -> None:
    state = new_state()
    state.register(registration(Check(id=CHECK, ttl=1000.0, initial_status="passing")), now=0.0)
    state.report_ttl(CHECK, "passing", "one", now=10.0)
    state.report_ttl(CHECK, "warning", "two", now=11.0)
    assert in_catalogue(state)["c"] == ("warning", "two")
    state.catalogue.take_touched()
    state.tick(1000.0)
    assert state.catalogue.take_touched() == frozenset()


def test_outputs_may_be_published_at_once() -> None:
    state = new_state(check_update_interval=0.0)
    state.register(registration(Check(id=CHECK, ttl=1000.0, initial_status="passing")), now=0.0)
    state.report_ttl(CHECK, "passing", "one", now=10.0)
    assert in_catalogue(state)["c"] == ("passing", "one")


# --- what somebody runs


def test_tells_what_is_to_be_run() -> None:
    state = new_state()
    http = Check(id=CheckID("h"), name="h", http="http://x/", interval=1.0)
    tcp = Check(id=CheckID("t"), name="t", tcp="x:1", interval=1.0)
    ttl = Check(id=CheckID("l"), name="l", ttl=1.0)
    state.register(registration(http, tcp, ttl), now=0.0)
    assert state.definitions == {"h": http, "t": tcp}
    version, kept = state.definitions_version, state.definitions[http.id]

    state.register(registration(replace(http), replace(tcp), replace(ttl)), now=1.0)
    assert (state.definitions_version, state.definitions[http.id] is kept) == (version, True)

    state.register(registration(replace(http, timeout=1.0), replace(tcp, tcp=None, ttl=1.0)), now=2.0)
    assert state.definitions == {"h": replace(http, timeout=1.0)}
    assert state.definitions_version > version
    state.report_run(kept, "passing", "of the old one", now=3.0)
    assert state.checks()[http.id].output == ""

    state.deregister(WEB)
    assert state.definitions == {}
    state.report_run(kept, "passing", "too late", now=4.0)
    assert state.checks() == {}


# --- the catalogue


def test_puts_right_what_others_wrote_under_this_node() -> None:
    state = new_state()
    state.register(registration(Check(id=CHECK, ttl=1000.0)), now=0.0)
    wanted = _catalogue_of(state)
    catalogue = state.catalogue
    catalogue.drop_service("host", WEB)
    catalogue.put_service("host", Registration(ServiceID("foreign"), ServiceName("foreign")))
    catalogue.put_node(replace(NODE, address="10.0.0.9"))
    catalogue.drop_check("host", CheckID("serfHealth"))
    state.tick(RECONCILE_INTERVAL - 1)
    assert _catalogue_of(state) != wanted
    state.tick(RECONCILE_INTERVAL)
    assert _catalogue_of(state) == wanted


def test_puts_right_what_others_wrote_of_its_checks() -> None:
    state = new_state()
    state.register(registration(Check(id=CHECK, ttl=1000.0), Check(id=CheckID("d"), ttl=1000.0)), now=0.0)
    wanted = _catalogue_of(state)
    state.catalogue.put_check(replace(state.checks()[CHECK], status="passing"))
    state.catalogue.drop_check("host", CheckID("d"))
    state.tick(RECONCILE_INTERVAL)
    assert _catalogue_of(state) == wanted


def test_a_report_brings_back_a_service_that_others_removed() -> None:
    state = new_state()
    state.register(registration(Check(id=CHECK, ttl=1000.0)), now=0.0)
    state.catalogue.drop_node("host")
    state.report_ttl(CHECK, "passing", "", now=1.0)
    assert [instance.service.value.id for instance in state.catalogue.instances("web")] == [WEB]


def test_other_nodes_are_none_of_its_business() -> None:
    state = new_state()
    state.catalogue.put_node(Node(NodeName("other"), "10.0.0.2"))
    state.catalogue.put_service("other", registration())
    state.tick(RECONCILE_INTERVAL)
    assert len(state.catalogue.instances("web")) == 1


def _catalogue_of(state: State) -> Any:
    """What the catalogue says of this node, without indexes."""
    catalogue = state.catalogue
    node = catalogue.node("host")
    return (
        node and node.value,
        {key: row.value for key, row in catalogue.services_of("host").items()},
        [row.value for row in catalogue.checks_of("host")],
    )


# --- laws, under any use

ids = st.sampled_from(("web", "db")).map(ServiceID)
check_ids = st.sampled_from(("c", "d")).map(CheckID)
statuses: st.SearchStrategy[Status] = st.sampled_from(("passing", "warning", "critical"))
checks = st.builds(
    Check,
    id=check_ids,
    ttl=st.sampled_from((1.0, 20.0, None)),
    interval=st.just(1.0),
    initial_status=st.one_of(st.none(), statuses),
    deregister_after=st.sampled_from((None, 1.0, 90.0)),
).map(lambda check: check if check.ttl else replace(check, tcp="x:1"))
registrations = st.builds(
    Registration,
    id=ids,
    name=st.sampled_from(("web", "db")).map(ServiceName),
    port=st.sampled_from((0, 1)),
    checks=st.lists(checks, max_size=2, unique_by=lambda check: check.id).map(tuple),
)
acts = st.one_of(
    st.tuples(st.just("register"), registrations, st.booleans()),
    st.tuples(st.just("deregister"), ids),
    st.tuples(st.just("report_ttl"), check_ids, statuses, st.sampled_from(("", "o"))),
    st.tuples(st.just("report_run"), check_ids, statuses, st.sampled_from(("", "o"))),
    st.tuples(st.just("register_check"), checks, ids),
    st.tuples(st.just("deregister_check"), check_ids),
    st.tuples(st.just("maintain_service"), ids, st.booleans()),
    st.tuples(st.just("maintain_node"), st.booleans()),
)


def do(state: State, act: tuple[Any, ...], now: float) -> None:
    """One act; what the agent refuses it refuses."""
    try:
        match act:
            case "register", service, replaces:
                state.register(service, now, replace_checks=replaces)
            case "report_run", check_id, status, output:
                if check_id in state.definitions:
                    state.report_run(state.definitions[check_id], status, output, now)
            case ("report_ttl" | "register_check") as method, *arguments:
                getattr(state, method)(*arguments, now)
            case ("maintain_service" | "maintain_node") as method, *arguments:
                getattr(state, method)(*arguments, "reason")
            case method, *arguments:
                getattr(state, method)(*arguments)
    except RegistryError:
        pass


timed_acts = st.lists(st.tuples(st.floats(0.0, 200.0), acts), max_size=15)


@given(timed_acts, st.floats(0.0, 500.0))
def test_the_clock_is_never_late(script: list[tuple[float, Any]], rest: float) -> None:
    """Who ticks only when ``next_due`` says so sees what somebody sees who ticks all the time."""
    lazy, eager = new_state(), new_state()
    now = 0.0
    for pause, act in [*script, (rest, None)]:
        end = now + pause
        while (due := lazy.next_due()) <= end:
            lazy.tick(max(due, now))
        # Every moment at which anything may be due, and some at which nothing is.
        for moment in sorted({end, *(now + pause * step / 8 for step in range(8)), *_dues(eager, now, end)}):
            eager.tick(moment)
        now = end
        if act is not None:
            do(lazy, act, now)
            do(eager, act, now)
        lazy.tick(now)
        eager.tick(now)
        assert {key: row.status for key, row in lazy.checks().items()} == {
            key: row.status for key, row in eager.checks().items()
        }
        assert lazy.services == eager.services


def _dues(state: State, now: float, end: float) -> list[float]:
    return [due for check in state._checks.values() if now <= (due := check.next_due()) <= end]


@given(timed_acts)
def test_what_the_agent_does_itself_leaves_nothing_to_put_right(script: list[tuple[float, Any]]) -> None:
    state = new_state()
    now = 0.0
    for pause, act in script:
        now += pause
        state.tick(now)
        do(state, act, now)
        state.catalogue.take_touched()
        state.reconcile()
        assert state.catalogue.take_touched() == frozenset()
        assert set(state.catalogue.services_of("host")) == {"consul", *state.services}
        assert {row.value.id for row in state.catalogue.checks_of("host")} == {"serfHealth", *state.checks()}
        for check in state.checks().values():
            assert not check.service_id or check.service_id in state.services


@given(timed_acts)
def test_what_is_to_be_run_is_what_is_registered(script: list[tuple[float, Any]]) -> None:
    state = new_state()
    now = 0.0
    for pause, act in script:
        now += pause
        before, version = dict(state.definitions), state.definitions_version
        state.tick(now)
        do(state, act, now)
        changed = {key: id(value) for key, value in before.items()} != {
            key: id(value) for key, value in state.definitions.items()
        }
        assert (state.definitions_version > version) or not changed
        running = {key for key, row in state.checks().items() if row.type == "tcp"}
        assert set(state.definitions) == running
