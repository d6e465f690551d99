"""The planner: tables for its rules, and properties over anything that can be desired and found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from discovery.model import Address, Check, Registration, ServiceID, ServiceName, Weights
from registrar.containers import ContainerID
from registrar.owner import META_CONTAINER, META_OWNER, META_SPEC, Owner, container_of
from registrar.plan import Plan, differences, plan

OURS = Owner("registrator", "engine-1")
THEIRS = Owner("registrator", "engine-2")
C1, C2 = ContainerID("c1"), ContainerID("c2")


def bare(service_id: str = "a", port: int = 80, name: str = "web") -> Registration:
    return Registration(ServiceID(service_id), ServiceName(name), port)


def ours(service_id: str = "a", port: int = 80, container: ContainerID = C1) -> Registration:
    return OURS.sign(bare(service_id, port), container)


def table(*registrations: Registration) -> dict[ServiceID, Registration]:
    return {registration.id: registration for registration in registrations}


def told(made: Plan) -> dict[str, list[str]]:
    """The plan in words: kind -> ids."""
    return {
        "register": [write.registration.id for write in made.writes if not write.changes],
        "change": [write.registration.id for write in made.writes if write.changes],
        "deregister": [removal.registration.id for removal in made.removals],
        "refuse": [refusal.registration.id for refusal in made.refusals],
    }


NOTHING: dict[str, list[str]] = {"register": [], "change": [], "deregister": [], "refuse": []}


@pytest.mark.parametrize(
    ("desired", "actual", "expected"),
    [
        pytest.param([ours()], [], {"register": ["a"]}, id="new"),
        pytest.param([ours()], [ours()], {}, id="the same"),
        pytest.param([ours(port=81)], [ours()], {"change": ["a"]}, id="different"),
        pytest.param([], [ours()], {"deregister": ["a"]}, id="gone"),
        pytest.param([], [THEIRS.sign(bare(), C1)], {}, id="another owner's"),
        pytest.param([], [bare()], {}, id="nobody's"),
        pytest.param([ours()], [THEIRS.sign(bare(), C1)], {"refuse": ["a"]}, id="id of another owner's"),
        pytest.param([ours()], [bare(port=81)], {"refuse": ["a"]}, id="id of nobody's"),
        pytest.param([ours(), ours(container=C2)], [], {"register": ["a"], "refuse": ["a"]}, id="id twice"),
    ],
)
def test_the_table(
    desired: list[Registration], actual: list[Registration], expected: dict[str, list[str]]
) -> None:
    assert told(plan(desired, table(*actual), OURS)) == {**NOTHING, **expected}


def test_a_refusal_says_who_has_the_id() -> None:
    (refusal,) = plan([ours()], table(THEIRS.sign(bare(), C1)), OURS).refusals
    assert str(refusal) == "the id 'a' belongs to the registrar 'registrator/engine-2'"
    (refusal,) = plan([ours()], table(bare(port=1)), OURS).refusals
    assert str(refusal) == "the id 'a' belongs to a service that no registrar made"


def test_of_two_containers_with_one_id_the_holder_keeps_it() -> None:
    made = plan([ours(), ours(container=C2)], table(ours(container=C2)), OURS)
    assert told(made) == {**NOTHING, "refuse": ["a"]}
    assert container_of(made.refusals[0].registration) == C1


def test_what_registrator_left_is_taken_over() -> None:
    """The same id by rule, the same name and port, and no mark: nobody but Registrator wrote that."""
    left = replace(bare(), address="10.0.0.1", tags=("old",))
    made = plan([ours()], table(left), OURS, default_ids={ServiceID("a")})
    assert told(made) == {**NOTHING, "change": ["a"]}


@pytest.mark.parametrize(
    ("found", "default_ids"),
    [
        (bare(), set()),  # an id that the container chose
        (bare(port=81), {ServiceID("a")}),
        (bare(name="other"), {ServiceID("a")}),
        (THEIRS.sign(bare(), C1), {ServiceID("a")}),
    ],
)
def test_nothing_else_is_taken_over(found: Registration, default_ids: set[ServiceID]) -> None:
    made = plan([ours()], table(found), OURS, default_ids=default_ids)
    assert told(made) == {**NOTHING, "refuse": ["a"]}


def test_a_plan_for_one_container_leaves_the_others_alone() -> None:
    actual = table(ours("a"), ours("b", container=C2))
    assert told(plan([], actual, OURS, containers={C1})) == {**NOTHING, "deregister": ["a"]}
    wants_b = ours("b", port=81)
    made = plan([wants_b], actual, OURS, containers={C1})
    assert told(made) == {**NOTHING, "deregister": ["a"], "refuse": ["b"]}


@pytest.mark.parametrize(
    ("found", "fields"),
    [
        (replace(bare(), name=ServiceName("x")), ("name",)),
        (replace(bare(), port=1, address="10.0.0.1"), ("port", "address")),
        (replace(bare(), tags=("x",)), ("tags",)),
        (replace(bare(), weights=Weights(2, 1)), ("weights",)),
        (replace(bare(), meta={"x": "y"}), ("meta",)),
        (replace(bare(), checks=(Check(ttl=1),)), ("checks",)),
    ],
)
def test_what_differs_is_named(found: Registration, fields: tuple[str, ...]) -> None:
    signed = OURS.sign(found, C1)
    # The agent does not give checks back.
    assert differences(replace(signed, checks=()), ours()) == fields


def test_tagged_addresses_that_consul_adds_are_no_difference() -> None:
    mine = ours()
    added = replace(mine, tagged_addresses={"lan_ipv4": Address("10.0.0.1", 80)})
    assert differences(added, mine) == ()
    wanted = OURS.sign(replace(bare(), tagged_addresses={"lan_ipv4": Address("10.0.0.2", 80)}), C1)
    assert "tagged_addresses" in differences(added, wanted)


def test_347_tags_that_others_may_set_are_no_difference() -> None:
    free = OURS.sign(replace(bare(), enable_tag_override=True), C1)
    assert differences(replace(free, tags=("by hand",)), free) == ()


# --- properties ----------------------------------------------------------------------------------------

IDS = st.sampled_from(["a", "b", "c", "d"]).map(ServiceID)
CONTAINERS = st.sampled_from([C1, C2])
BARE = st.builds(
    Registration,
    id=IDS,
    name=st.sampled_from(["web", "db"]).map(ServiceName),
    port=st.sampled_from([80, 81]),
    tags=st.sampled_from([(), ("x",)]),
    checks=st.sampled_from([(), (Check(ttl=10.0),)]),
)
DESIRED = st.lists(st.builds(OURS.sign, BARE, CONTAINERS), max_size=5)
ACTUAL = st.lists(
    st.one_of(BARE, st.builds(OURS.sign, BARE, CONTAINERS), st.builds(THEIRS.sign, BARE, CONTAINERS)),
    max_size=4,
).map(lambda found: table(*found))
SCOPE = st.sampled_from([None, {C1}, {C2}])


def apply(made: Plan, actual: Mapping[ServiceID, Registration]) -> dict[ServiceID, Registration]:
    after = dict(actual)
    for write in made.writes:
        after[write.registration.id] = write.registration
    for removal in made.removals:
        del after[removal.registration.id]
    return after


def in_scope(desired: list[Registration], scope: set[ContainerID] | None) -> list[Registration]:
    return [one for one in desired if scope is None or container_of(one) in scope]


@given(DESIRED, ACTUAL, st.sets(IDS), SCOPE)
@example([ours(), OURS.sign(bare(name="db"), C1)], table(bare(name="db")), {ServiceID("a")}, None)
def test_applying_a_plan_leaves_nothing_to_do(
    desired: list[Registration],
    actual: dict[ServiceID, Registration],
    default_ids: set[ServiceID],
    scope: set[ContainerID] | None,
) -> None:
    wanted = in_scope(desired, scope)
    made = plan(wanted, actual, OURS, containers=scope, default_ids=default_ids)
    after = apply(made, actual)
    again = plan(wanted, after, OURS, containers=scope, default_ids=default_ids)
    assert again.in_step
    assert {r.registration.id for r in again.refusals} == {r.registration.id for r in made.refusals}


@given(DESIRED, ACTUAL, st.sets(IDS), SCOPE)
def test_what_is_not_ours_is_never_touched(
    desired: list[Registration],
    actual: dict[ServiceID, Registration],
    default_ids: set[ServiceID],
    scope: set[ContainerID] | None,
) -> None:
    wanted = in_scope(desired, scope)
    after = apply(plan(wanted, actual, OURS, containers=scope, default_ids=default_ids), actual)
    for service_id, before in actual.items():
        if after.get(service_id) == before:
            continue
        adopted = META_OWNER not in before.meta and service_id in default_ids
        assert OURS.owns(before) or adopted
        if adopted:
            now = after[service_id]
            assert (now.name, now.port) == (before.name, before.port)
        elif scope is not None:
            assert container_of(before) in scope


@given(DESIRED, ACTUAL, st.sets(IDS))
def test_everything_desired_is_there_or_refused(
    desired: list[Registration], actual: dict[ServiceID, Registration], default_ids: set[ServiceID]
) -> None:
    made = plan(desired, actual, OURS, default_ids=default_ids)
    after = apply(made, actual)
    refused = [refusal.registration for refusal in made.refusals]
    for registration in desired:
        if registration not in refused:
            assert differences(after[registration.id], registration) == ()
    assert {one.id for one in after.values() if OURS.owns(one)} <= {one.id for one in desired}


@given(DESIRED, ACTUAL)
def test_what_is_in_step_is_not_written(
    desired: list[Registration], actual: dict[ServiceID, Registration]
) -> None:
    for write in plan(desired, actual, OURS).writes:
        current = actual.get(write.registration.id)
        assert current is None or write.changes


def test_marks_are_not_meta_of_the_container() -> None:
    assert set(ours().meta) == {META_OWNER, META_CONTAINER, META_SPEC}
