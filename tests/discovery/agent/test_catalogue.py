"""The catalogue's one promise: a topic is touched exactly when the answers that depend on it change."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from discovery.agent import topics
from discovery.agent.catalogue import Catalogue, CheckRow
from discovery.model import CheckID, Node, NodeName, Registration, ServiceID, ServiceName

# Few values, so that everything meets everything; names that differ in case alone are the same name.
NODES = ("a", "A", "b")
SERVICES = ("web", "Web", "db")
IDS = ("1", "2")
STATUSES = ("passing", "critical")

nodes = st.builds(
    Node,
    name=st.sampled_from(NODES).map(NodeName),
    address=st.sampled_from(("10.0.0.1", "10.0.0.2")),
    id=st.sampled_from(("", "uuid")),
)
services = st.builds(
    Registration,
    id=st.sampled_from(IDS).map(ServiceID),
    name=st.sampled_from(SERVICES).map(ServiceName),
    port=st.sampled_from((0, 1)),
    tags=st.sampled_from(((), ("t",))),
)
checks = st.builds(
    CheckRow,
    node=st.sampled_from(NODES).map(NodeName),
    id=st.sampled_from(("1", "2", "3")).map(CheckID),
    name=st.just("check"),
    status=st.sampled_from(STATUSES),
    output=st.sampled_from(("", "o")),
    service_id=st.sampled_from(("", *IDS)).map(ServiceID),
)
names = st.sampled_from(NODES)
Write = tuple[str, tuple[Any, ...]]
writes: st.SearchStrategy[Write] = st.one_of(
    st.tuples(st.just("put_node"), st.tuples(nodes)),
    st.tuples(st.just("put_service"), st.tuples(names, services)),
    st.tuples(st.just("put_check"), st.tuples(checks)),
    st.tuples(st.just("drop_node"), st.tuples(names)),
    st.tuples(st.just("drop_service"), st.tuples(names, st.sampled_from(IDS))),
    st.tuples(st.just("drop_check"), st.tuples(names, st.sampled_from(("1", "2", "3")))),
)


def possible(catalogue: Catalogue, write: Write) -> bool:
    """Whether what *write* builds on is there: its callers see to that."""
    method, arguments = write
    if method == "put_service":
        return catalogue.node(arguments[0]) is not None
    if method == "put_check":
        check = arguments[0]
        there = catalogue.services_of(check.node)
        return catalogue.node(check.node) is not None and (not check.service_id or check.service_id in there)
    return True


Question = Callable[[Catalogue], Any]


def _each(
    topic: Callable[[str], topics.Topic], names: Iterable[str], ask: Callable[[Catalogue, str], Any]
) -> dict[topics.Topic, Question]:
    return {topic(name): partial(lambda name, catalogue: ask(catalogue, name), name) for name in names}


QUESTIONS: dict[topics.Topic, Question] = {
    topics.NODES: lambda c: c.nodes(),
    # Consul answers with names and tags, but wakes on any change of a registration.
    topics.NAMES: lambda c: [(node.value.name.lower(), c.services_of(node.value.name)) for node in c.nodes()],
    **_each(topics.node_services, NODES, lambda c, node: (c.node(node), c.services_of(node))),
    **_each(topics.node_checks, NODES, lambda c, node: c.checks_of(node)),
    **_each(topics.instances, SERVICES, lambda c, name: [(i.node, i.service) for i in c.instances(name)]),
    **_each(topics.health, SERVICES, lambda c, name: c.instances(name)),
    **_each(topics.checks, SERVICES, lambda c, name: c.checks_named(name)),
    **_each(
        topics.state,
        (*STATUSES, "any"),
        lambda c, status: [row for row in c.all_checks() if status in ("any", row.value.status)],
    ),
}


def answers(catalogue: Catalogue) -> dict[topics.Topic, Any]:
    return {topic: ask(catalogue) for topic, ask in QUESTIONS.items()}


def populated() -> Catalogue:
    """Two nodes with two services each, and a check of each kind: every write finds something to change."""
    catalogue = Catalogue()
    for node in ("a", "b"):
        catalogue.put_node(Node(NodeName(node), "10.0.0.1"))
        for service_id, name in zip(IDS, ("web", "db"), strict=True):
            catalogue.put_service(node, Registration(ServiceID(service_id), ServiceName(name)))
        for check_id, service_id in (("1", ""), ("2", "1"), ("3", "2")):
            row = CheckRow(NodeName(node), CheckID(check_id), "check", service_id=ServiceID(service_id))
            catalogue.put_check(row)
    catalogue.take_touched()
    return catalogue


@settings(max_examples=300)
@given(st.lists(writes, min_size=1, max_size=10))
def test_a_topic_is_touched_exactly_when_its_answer_changes(made: list[Write]) -> None:
    catalogue = populated()
    before = answers(catalogue)
    for write in made:
        if not possible(catalogue, write):
            continue
        index = catalogue.index
        getattr(catalogue, write[0])(*write[1])
        after = answers(catalogue)
        touched = catalogue.take_touched()
        changed = {topic for topic in QUESTIONS if after[topic] != before[topic]}
        # A node that comes or goes without services is no news to those who ask for names.
        assert touched & QUESTIONS.keys() - {topics.NAMES} == changed - {topics.NAMES}, write
        assert (topics.NAMES in touched) == (_services(after) != _services(before)), write
        assert (catalogue.index > index) == bool(touched)
        for topic in touched:
            assert index < catalogue.index_of(topic) <= catalogue.index
        before = after


def _services(asked: dict[topics.Topic, Any]) -> list[Any]:
    return [row for row in asked[topics.NAMES] if row[1]]


@given(st.lists(writes, max_size=10))
def test_an_index_is_that_of_the_newest_thing_in_the_answer_or_newer(made: list[Write]) -> None:
    catalogue = populated()
    for write in made:
        if possible(catalogue, write):
            getattr(catalogue, write[0])(*write[1])
    for node in catalogue.nodes():
        assert node.created <= node.modified <= catalogue.index_of(topics.NODES)
        for row in catalogue.services_of(node.value.name).values():
            assert row.created <= row.modified <= catalogue.index_of(topics.instances(row.value.name))
            assert row.modified <= catalogue.index_of(topics.NAMES)
        for check in catalogue.checks_of(node.value.name):
            assert check.modified <= catalogue.index_of(topics.node_checks(node.value.name))
            assert check.modified <= catalogue.index_of(topics.state("any"))


@given(st.lists(writes, max_size=10), writes)
def test_what_is_written_twice_changes_nothing(made: list[Write], last: Write) -> None:
    catalogue = populated()
    for write in [*made, last]:
        if possible(catalogue, write):
            getattr(catalogue, write[0])(*write[1])
    catalogue.take_touched()
    index = catalogue.index
    if possible(catalogue, last):
        getattr(catalogue, last[0])(*last[1])
    assert (catalogue.index, catalogue.take_touched()) == (index, frozenset())


def test_touched_topics_are_told_once() -> None:
    catalogue = Catalogue()
    catalogue.put_node(Node(NodeName("a"), "10.0.0.1"))
    assert catalogue.take_touched() == {topics.NODES, topics.node_services("A")}
    assert catalogue.take_touched() == frozenset()
