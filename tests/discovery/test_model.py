"""The values that everything else is made of."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import socket
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.model import (
    FrozenDict,
    HealthCheck,
    Instance,
    Node,
    NodeName,
    ServiceEntry,
    Snapshot,
    Status,
    Weights,
    worst,
)
from tests.discovery.fake import entry

STATUSES: tuple[Status, ...] = ("passing", "warning", "critical")


def instance(host: str = "10.0.0.1", port: int = 80, **more) -> Instance:
    return Instance(entry(host=host, port=port, **more))


# --- Instance ------------------------------------------------------------------------------------------


def test_an_instance_is_the_tuple_of_host_and_port():
    it = instance("10.0.0.1", 8080)
    host, port = it
    assert (host, port) == ("10.0.0.1", 8080) == it
    assert (it.host, it.port) == (host, port)
    assert isinstance(it, tuple)
    assert {it: 1}["10.0.0.1", 8080] == 1


def test_a_socket_connects_to_an_instance():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        it = instance(*listener.getsockname())
        with socket.socket() as client:
            client.connect(it)
            assert client.getpeername() == it
        with socket.create_connection(it):
            pass


@pytest.mark.parametrize(
    ("host", "netloc"),
    [("10.0.0.1", "10.0.0.1:80"), ("db.example", "db.example:80"), ("fd00::1", "[fd00::1]:80")],
)
def test_an_instance_is_written_as_host_and_port(host, netloc):
    it = instance(host, 80)
    assert it.netloc == str(it) == f"{it}" == netloc
    assert f"{it:>20}" == netloc.rjust(20)
    parts = urlsplit(it.url("health"))
    assert (parts.hostname, parts.port, parts.path) == (host, 80, "/health")


@pytest.mark.parametrize(
    ("path", "scheme", "meta", "url"),
    [
        ("", None, {}, "http://10.0.0.1:80"),
        ("/", None, {}, "http://10.0.0.1:80/"),
        ("a/b?c", None, {}, "http://10.0.0.1:80/a/b?c"),
        ("/a", None, {"scheme": "https"}, "https://10.0.0.1:80/a"),
        ("/a", "grpc", {"scheme": "https"}, "grpc://10.0.0.1:80/a"),
    ],
)
def test_the_url_of_an_instance(path, scheme, meta, url):
    assert instance(meta=meta).url(path, scheme=scheme) == url


def test_an_instance_tells_what_the_catalogue_says():
    row = entry("web", 80, tags=("v1",), meta=FrozenDict(zone="a"), weights=Weights(3, 1))
    it = Instance(row, source="dns", stale=True)
    assert (it.id, it.service, it.node, it.dc) == ("web-80", "web", "node-1", "dc1")
    assert (it.tags, it.meta, it.weight, it.status) == (("v1",), {"zone": "a"}, 3, "passing")
    assert (it.source, it.stale) == ("dns", True)
    assert repr(it) == "<Instance web 10.0.0.1:80 passing, stale>"


def test_the_zone_is_the_instances_own_or_its_nodes():
    node = Node(NodeName("n"), "10.0.0.9", meta=FrozenDict(zone="b"))
    assert instance(node=node, meta={"zone": "a"}).zone == "a"
    assert instance(node=node).zone == "b"
    assert instance().zone is None


def test_an_instance_without_an_address_is_reached_at_its_node():
    assert Instance(entry(host="", port=80)) == ("10.0.0.9", 80)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_an_instance_can_be_copied_and_pickled(again):
    it = Instance(entry(tags=("v1",), meta=FrozenDict(a="1")), source="disk", stale=True)
    twin = again(it)
    assert type(twin) is Instance
    assert twin == it
    assert (twin.entry, twin.source, twin.stale) == (it.entry, "disk", True)


def test_equal_means_the_same_place():
    assert instance(status="critical") == instance(status="passing")
    assert instance(port=1) != instance(port=2)


# --- status and weight ---------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(STATUSES)))
def test_the_aggregate_is_the_worst_status(statuses):
    expected = max(statuses, key=STATUSES.index, default="passing")
    assert worst(statuses) == expected


@pytest.mark.parametrize(("status", "weight"), [("passing", 10), ("warning", 2), ("critical", 10)])
def test_the_weight_follows_the_status(status, weight):
    assert entry(status=status, weights=Weights(10, 2)).weight == weight


def test_an_entry_is_as_healthy_as_its_worst_check():
    checks = tuple(HealthCheck(f"c{n}", "", status) for n, status in enumerate(("passing", "warning")))
    assert dataclasses.replace(entry(), checks=checks).status == "warning"
    assert dataclasses.replace(entry(), checks=()).status == "passing"


# --- frozen --------------------------------------------------------------------------------------------


def test_values_cannot_be_changed():
    row = entry(meta=FrozenDict(a="1"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.port = 1
    with pytest.raises(AttributeError):
        Instance(row).port = 1


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.__setitem__("a", "2"),
        lambda d: d.__delitem__("a"),
        lambda d: d.update(a="2"),
        lambda d: d.setdefault("b", "2"),
        lambda d: d.pop("a"),
        lambda d: d.popitem(),
        lambda d: d.clear(),
        lambda d: d.__ior__({"b": "2"}),
    ],
)
def test_a_shared_mapping_refuses_changes(change):
    mapping = FrozenDict(a="1")
    with pytest.raises(TypeError, match="cannot be changed"):
        change(mapping)
    assert mapping == {"a": "1"}


def test_a_shared_mapping_is_a_value():
    mapping = FrozenDict(a="1")
    assert hash(mapping) == hash(FrozenDict({"a": "1"}))
    assert json.dumps(mapping) == '{"a": "1"}'
    assert type(pickle.loads(pickle.dumps(mapping))) is FrozenDict
    assert copy.deepcopy(mapping) == mapping
    assert dataclasses.asdict(entry(meta=mapping))["meta"] == {"a": "1"}
    assert len({entry(meta=mapping), entry(meta=FrozenDict(a="1"))}) == 1


def test_entries_without_details_share_their_empty_mappings():
    one, two = (
        ServiceEntry(Node(NodeName("n"), ""), "a", "a"),
        ServiceEntry(Node(NodeName("n"), ""), "b", "b"),
    )
    assert one.meta is two.meta is one.node.meta


# --- Snapshot ------------------------------------------------------------------------------------------


def test_a_snapshot_is_a_sequence_of_instances():
    a, b, c = (instance(port=port) for port in (1, 2, 3))
    snapshot = Snapshot("web", (a, b, c))
    assert len(snapshot) == 3
    assert list(snapshot) == [a, b, c]
    assert (snapshot[0], snapshot[-1], snapshot[:2]) == (a, c, (a, b))
    assert b in snapshot
    assert snapshot.index(b) == 1
    assert not Snapshot("web")


def test_a_snapshot_keeps_what_is_wanted_of_all_it_holds():
    instances = tuple(instance(port=port) for port in range(1, 5))
    snapshot = Snapshot("web", instances, 7, 1.5, added=instances[:2], removed=instances[2:], stale=True)
    odd = snapshot.only(lambda it: it.port % 2 == 1)
    assert (odd.instances, odd.added, odd.removed) == (instances[::2], (instances[0],), (instances[2],))
    assert (odd.service, odd.consul_index, odd.fetched_at, odd.stale) == ("web", 7, 1.5, True)


def test_a_snapshot_can_be_pickled():
    snapshot = Snapshot("web", (instance(meta=FrozenDict(a="1")),), 7)
    assert pickle.loads(pickle.dumps(snapshot)) == snapshot
